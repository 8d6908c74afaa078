"""StableLM: the llama layer with LayerNorm and a partial rotation.

The 12B model norms each head of q and k with weights of its own, and has no norm before the feed-forward
network, which then reads the attention's. Source: llama.cpp, src/models/stablelm.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        form = AttentionForm(spec.rope, qk_norm="heads" if block.has("attn_q_norm.weight") else "")
        normed = block.norm("attn_norm", x)
        x = block.add("attn_residual", x, block.attention(normed, form))
        if block.has("ffn_norm.weight"):
            normed = block.norm("ffn_norm", x)
        x = block.add("ffn_residual", x, block.gated(normed, ops.SiLU()))
    return model.head(x)
