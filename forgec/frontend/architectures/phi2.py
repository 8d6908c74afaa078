"""Phi 2: LayerNorm, and a plain GELU network that reads the same norm as the attention. Phi 3 is a llama.

Source: llama.cpp, src/models/phi2.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of Phi 2; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        normed = block.norm("attn_norm", x)
        x = block.add("attn_residual", x, block.attention(normed, AttentionForm(spec.rope)))
        x = block.add("ffn_residual", x, block.plain(normed, ops.GELU()))
    return model.head(x)
