"""Command R, and Command R7B and Aya ("cohere2"): attention and network side by side behind one LayerNorm.

No biases; the logits are scaled. The larger Command R norm the heads of q and k. In cohere2 three of four
layers have a window, and only these rotate. Source: llama.cpp, src/models/{command-r,cohere2}.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build", "build2"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of Command R; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    normed = model.has("blk.0.attn_q_norm.weight")
    form = AttentionForm(spec.rope, qk_norm="heads" if normed else "")
    return _layers(model, [form] * spec.block_count)


def build2(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of cohere2; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    window = model.required("attention.sliding_window", spec.sliding_window or None)
    local, everything = AttentionForm(spec.rope, window=window), AttentionForm(None)
    layers = range(spec.block_count)
    return _layers(model, [local if spec.windowed(layer, 4) else everything for layer in layers])


def _layers(model: ModelBuilder, forms: list[AttentionForm]) -> Graph:
    x = model.embedding()
    for layer, form in enumerate(forms):
        block = model.layer(layer)
        normed = block.norm("attn_norm", x)
        x = block.add("attn_residual", x, block.attention(normed, form))
        x = block.add("ffn_residual", x, block.gated(normed, ops.SiLU()))
    return model.head(x, ops.Scale(model.required("logit_scale", model.spec.logit_scale)))
