"""Granite 3 and 4 (dense): the llama layer with factors on embedding, scores, blocks and logits.

Source: llama.cpp, src/models/granite.cpp.
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
    logit_scale = model.required("logit_scale", spec.logit_scale)
    # "finetuned" is how these files say whether they rotate at all.
    rope = None if spec.rope_finetuned is False else spec.rope
    form = AttentionForm(rope, scale=spec.attention_scale or None)
    factor = spec.residual_scale or None
    x = model.embedding(spec.embedding_scale or 1.0)
    for layer in range(spec.block_count):
        block = model.layer(layer)
        attention = block.attention(block.norm("attn_norm", x), form)
        x = block.add("attn_residual", x, block.scaled("attn_scaled", attention, factor))
        feed_forward = block.gated(block.norm("ffn_norm", x), ops.SiLU())
        x = block.add("ffn_residual", x, block.scaled("ffn_scaled", feed_forward, factor))
    return model.head(x, ops.Scale(1.0 / logit_scale))
