"""Arcee's foundation model (AFM): the llama layer with a plain network of squared ReLU.

Source: llama.cpp, src/models/arcee.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    form = AttentionForm(spec.rope, scale=spec.attention_scale or None)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.plain(block.norm("ffn_norm", x), ops.SquaredReLU()))
    return model.head(x)
