"""Llama layers whose feed-forward network is a mixture of experts.

Mixtral (GGUF calls it "llama"), Qwen 2 MoE, Qwen 3 MoE, OLMoE and Granite MoE differ in the norms of q and k,
in what routing makes of the scores, in a shared expert, and in Granite's factors. Source: llama.cpp,
src/models/{llama,qwen2moe,qwen3moe,olmoe,granite}.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.architectures.experts import ExpertForm, experts, required_experts
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["granitemoe", "mixtral", "olmoe", "qwen2moe", "qwen3moe"]


def mixtral(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Mixtral, weights of the chosen experts add up to 1; raises as ``build_graph``."""
    form = AttentionForm(spec.rope, scale=spec.attention_scale or None)
    return _build(gguf, spec, form, ExpertForm(spec.feed_forward_length, normalise=True))


def qwen2moe(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Qwen 2 MoE, with a shared expert behind a switch; raises as ``build_graph``."""
    numbers = required_experts(spec)
    inner = numbers.feed_forward_length or spec.feed_forward_length // numbers.used
    shared = numbers.shared_feed_forward_length or spec.feed_forward_length
    return _build(gguf, spec, AttentionForm(spec.rope), ExpertForm(inner, shared=shared))


def qwen3moe(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Qwen 3 MoE, with a norm of every head of q and k; raises as ``build_graph``."""
    numbers = required_experts(spec)
    inner = numbers.feed_forward_length or spec.feed_forward_length // numbers.used
    return _build(gguf, spec, AttentionForm(spec.rope, qk_norm="head"), ExpertForm(inner, normalise=True))


def olmoe(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """OLMoE, with norms of all of q and all of k; raises as ``build_graph``."""
    return _build(gguf, spec, AttentionForm(spec.rope, qk_norm="row"), ExpertForm(spec.feed_forward_length))


def granitemoe(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Granite 3 and 4 MoE, some with a shared expert; raises as ``build_graph``."""
    numbers = required_experts(spec)
    rope = None if spec.rope_finetuned is False else spec.rope
    attention = AttentionForm(rope, scale=spec.attention_scale or None)
    shared = numbers.shared_feed_forward_length or 0
    form = ExpertForm(spec.feed_forward_length, normalise=True, shared=shared)
    return _build(gguf, spec, attention, form)


def _build(gguf: TensorTable, spec: ModelSpec, attention: AttentionForm, form: ExpertForm) -> Graph:
    model = ModelBuilder(gguf, spec)
    factor = spec.residual_scale or None
    x = model.embedding(spec.embedding_scale or 1.0)
    for number in range(spec.block_count):
        block = model.layer(number)
        mixed = block.attention(block.norm("attn_norm", x), attention)
        x = block.add("attn_residual", x, block.scaled("attn_scaled", mixed, factor))
        made = experts(block, block.norm("ffn_norm", x), form)
        x = block.add("ffn_residual", x, block.scaled("ffn_scaled", made, factor))
    return model.head(x, ops.Scale(1.0 / spec.logit_scale) if spec.logit_scale else None)
