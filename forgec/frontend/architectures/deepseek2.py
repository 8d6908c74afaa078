"""DeepSeek V2, V3 and R1, and what else GGUF calls "deepseek2": latent attention and experts.

The first layers have a dense feed-forward network, the others experts of which some are shared. V3 scores by
sigmoid, chooses with a bias and within groups. Source: llama.cpp, src/models/deepseek2.cpp; arXiv:2412.19437.
"""

from __future__ import annotations

import math
from dataclasses import replace

from forgec.frontend.architectures.builders import ModelBuilder, TensorTable
from forgec.frontend.architectures.experts import (
    ExpertForm,
    experts,
    latent_attention,
    required_experts,
    required_latent,
)
from forgec.frontend.rope import RopeSpec
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    numbers = required_experts(spec)
    model = ModelBuilder(gguf, spec)
    inner = model.required("expert_feed_forward_length", numbers.feed_forward_length)
    form = ExpertForm(
        inner,
        gating=numbers.gating or "softmax",
        normalise=numbers.normalise,
        scale=numbers.scale or 1.0,
        shared=inner * model.required("expert_shared_count", numbers.shared_count),
    )
    rope, scale = _rotation(spec)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, latent_attention(block, block.norm("attn_norm", x), rope, scale))
        normed = block.norm("ffn_norm", x)
        dense = layer < numbers.leading_dense
        x = block.add(
            "ffn_residual", x, block.gated(normed, ops.SiLU()) if dense else experts(block, normed, form)
        )
    return model.head(x)


def _rotation(spec: ModelSpec) -> tuple[RopeSpec, float]:
    """The rotation, and the factor of the scores.

    With YaRN and a multiplier m of its logarithm, which files hold times 0.1, cosines and sines keep their
    magnitude and the scores grow by (1 + 0.1 m ln(factor))^2.
    Source: llama.cpp, [TAG_DEEPSEEK2_YARN_LOG_MUL_FIX].
    """
    latent, rope = required_latent(spec), spec.rope
    scale = 1.0 / math.sqrt(latent.key_length or spec.key_length)
    if rope.scaling != "yarn":
        return rope, scale
    growth = math.log(rope.factor)
    multiplier = latent.yarn_log_multiplier
    if multiplier:
        # read_rope divides by 1 + 0.1 * (the key) * growth, which is right for all others.
        factor = rope.attention_factor * (1.0 + 0.1 * multiplier * growth) / (1.0 + 0.1 * growth)
        rope = replace(rope, attention_factor=factor)
    return rope, scale * (rope.magnitude * (1.0 + multiplier * growth)) ** 2
