"""The llama family: Llama 1 to 3, SmolLM, TinyLlama, Mistral 7B and all else that GGUF calls "llama".

Pre-norm layers of grouped-query attention with RoPE and a SwiGLU feed-forward network. Biases are taken
where the file has them. Source: llama.cpp, src/models/llama.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x)))
        x = block.add("ffn_residual", x, block.swiglu(block.norm("ffn_norm", x)))
    return model.head(x)
