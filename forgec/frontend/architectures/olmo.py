"""OLMo 1 and 2 (and 3).

OLMo 1: the llama layer with LayerNorm without weights, and q, k and v clamped in some. OLMo 2 norms the whole
of q and of k, and each block's output instead of its input; OLMo 3 (also "olmo2") adds windowed layers that
rotate without scaling. Source: llama.cpp, src/models/{olmo,olmo2}.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build", "build2"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of OLMo 1; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="bare")
    form = AttentionForm(spec.rope, clamp=spec.qkv_clamp or 0.0)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.gated(block.norm("ffn_norm", x), ops.SiLU()))
    return model.head(x)


def build2(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of OLMo 2 or 3; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        windowed = spec.sliding_window > 0 and spec.windowed(layer, 4)
        rope = spec.rope.local(spec.rope.freq_base) if windowed else spec.rope
        form = AttentionForm(rope, window=spec.sliding_window if windowed else 0, qk_norm="row")
        x = block.add("attn_residual", x, block.norm("post_attention_norm", block.attention(x, form)))
        x = block.add("ffn_residual", x, block.norm("post_ffw_norm", block.gated(x, ops.SiLU())))
    return model.head(x)
