"""SmolLM 3: the llama layer, and every fourth layer without rotation (NoPE).

Source: llama.cpp, src/models/smollm3.cpp; arXiv:2501.18795 on layers without positions.
"""

from __future__ import annotations

from dataclasses import replace

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]

#: Every so many layers one does not rotate; the file does not say.
NO_ROPE_STEP = 4


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    rotated = AttentionForm(spec.rope, scale=spec.attention_scale or None)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        form = rotated if (layer + 1) % NO_ROPE_STEP else replace(rotated, rope=None)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.gated(block.norm("ffn_norm", x), ops.SiLU()))
    return model.head(x)
