"""The numbers of mixture-of-experts layers and of latent attention: metadata in, checked dataclasses out.

Whether a key means what it says is for the architecture's module to decide; nothing here looks at tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.metadata import ModelKeys

__all__ = ["ExpertSpec", "LatentSpec", "read_experts", "read_latent"]

# Upper bounds of what is believed: ten times or more above the largest published models.
MAX_EXPERTS = 1 << 13
MAX_LENGTH = 1 << 22

#: "expert_gating_func" as numbered in files. Source: llama.cpp, llama_expert_gating_func_type.
GATINGS = {0: None, 1: "softmax", 2: "sigmoid", 3: "softmax_chosen"}


@dataclass(frozen=True)
class ExpertSpec:
    """``used`` of ``count`` experts take part for a token; lengths are None where the file gives none.

    ``gating`` as in ``ir.expert_ops.Routing``, None where the file leaves it to the architecture. ``scale`` 0
    means 1. The first ``leading_dense`` layers have no experts.
    """

    count: int
    used: int
    feed_forward_length: int | None
    shared_feed_forward_length: int | None
    shared_count: int | None
    gating: str | None
    normalise: bool
    scale: float
    groups: int
    groups_used: int
    leading_dense: int


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: the ranks of the compressed queries (0: not compressed) and keys.

    ``key_length`` and ``value_length`` are those of a head before compression, 0 where the file gives none.
    """

    q_rank: int
    kv_rank: int
    key_length: int
    value_length: int
    yarn_log_multiplier: float


def read_experts(keys: ModelKeys) -> ExpertSpec | None:
    """None for a model without experts. Raises GGUFError and UnsupportedModelError as ``read_spec``."""
    count = _whole(keys, "expert_count", MAX_EXPERTS)
    if not count:
        return None
    used = keys.integer("expert_used_count", count)
    gating = _whole(keys, "expert_gating_func", 255) or 0
    if gating not in GATINGS:
        raise UnsupportedModelError(
            f"metadata key '{keys.key('expert_gating_func')}' is {gating}; supported are "
            f"{', '.join(f'{number} ({name})' for number, name in GATINGS.items() if name)}"
        )
    groups = _whole(keys, "expert_group_count", count) or 1
    groups_used = _whole(keys, "expert_group_used_count", groups) or groups
    if count % groups:
        raise GGUFError(
            f"metadata key '{keys.key('expert_group_count')}' is {groups}, which does not divide "
            f"'{keys.key('expert_count')}', {count}"
        )
    return ExpertSpec(
        count=count,
        used=used,
        feed_forward_length=_whole(keys, "expert_feed_forward_length", MAX_LENGTH),
        shared_feed_forward_length=_whole(keys, "expert_shared_feed_forward_length", MAX_LENGTH),
        shared_count=_whole(keys, "expert_shared_count", MAX_EXPERTS),
        gating=GATINGS[gating],
        normalise=bool(keys.flag("expert_weights_norm")),
        scale=keys.number("expert_weights_scale", 0.0, 1e6, 0.0),
        groups=groups,
        groups_used=groups_used,
        leading_dense=_whole(keys, "leading_dense_block_count", 4096) or 0,
    )


def read_latent(keys: ModelKeys) -> LatentSpec | None:
    """None for a model without a compressed KV cache. Raises GGUFError as ``read_spec``."""
    kv_rank = _whole(keys, "attention.kv_lora_rank", MAX_LENGTH)
    if not kv_rank:
        return None
    return LatentSpec(
        q_rank=_whole(keys, "attention.q_lora_rank", MAX_LENGTH) or 0,
        kv_rank=kv_rank,
        key_length=_whole(keys, "attention.key_length_mla", MAX_LENGTH) or 0,
        value_length=_whole(keys, "attention.value_length_mla", MAX_LENGTH) or 0,
        yarn_log_multiplier=keys.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0),
    )


def _whole(keys: ModelKeys, suffix: str, high: int) -> int | None:
    """An integer from 0, which files also write for "none"; None where there is no such key."""
    if not keys.has(suffix):
        return None
    return 0 if keys.gguf.metadata[keys.key(suffix)] == 0 else keys.integer(suffix, high)
