"""GLM 4 of 2025: the llama layer with a norm behind each block. ChatGLM and the GLM 4 of 2024 are llamas.

Source: llama.cpp, src/models/glm4.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of GLM 4; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        attention = block.attention(block.norm("attn_norm", x), AttentionForm(spec.rope))
        x = block.add("attn_residual", x, block.norm("post_attention_norm", attention))
        feed_forward = block.gated(block.norm("ffn_norm", x), ops.SiLU())
        x = block.add("ffn_residual", x, block.norm("post_ffw_norm", feed_forward))
    return model.head(x)
