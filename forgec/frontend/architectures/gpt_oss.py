"""gpt-oss: sinks in the attention, a sliding window in every other layer, experts with biases.

Source: llama.cpp, src/models/openai-moe.cpp; gpt-oss model card, 2025.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.architectures.experts import ExpertForm, experts, required_experts
from forgec.frontend.spec import ModelSpec
from forgec.ir.graph import Graph

__all__ = ["build"]

#: Every so many layers have no window, where the file says nothing.
WINDOW_PERIOD = 2


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    inner = model.required("expert_feed_forward_length", required_experts(spec).feed_forward_length)
    form = ExpertForm(inner, gating="softmax_chosen", activation="clamped")
    window = model.required("attention.sliding_window", spec.sliding_window or None)
    local = spec.rope if spec.rope_local_base is None else spec.rope.local(spec.rope_local_base)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        windowed = spec.windowed(layer, WINDOW_PERIOD)
        attention = AttentionForm(local, window=window) if windowed else AttentionForm(spec.rope)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), attention))
        x = block.add("ffn_residual", x, experts(block, block.norm("post_attention_norm", x), form))
    return model.head(x)
