"""Fuses the five ops of attention into one, so that the scores never exist in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import QK, Attention, Mask, Scale, Softmax, WeightedV
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseAttention"]


def _attention(match: Match) -> Attention:
    qk, scale, mask = cast(QK, match.op("qk")), cast(Scale, match.op("scale")), cast(Mask, match.op("mask"))
    return Attention(qk.heads, qk.kv_heads, qk.head_length, scale.factor, mask.causal)


def _same_heads_no_window(match: Match) -> bool:
    # No kernel skips the keys before a window, so windowed layers stay unfused.
    qk, out, mask = cast(QK, match.op("qk")), cast(WeightedV, match.op("out")), cast(Mask, match.op("mask"))
    same = (qk.heads, qk.kv_heads, qk.head_length) == (out.heads, out.kv_heads, out.head_length)
    return same and mask.window is None


_TABLE = (
    Fusion(
        pattern=(
            Step("qk", QK, ("q", "k_cache")),
            Step("scale", Scale, ("qk",)),
            Step("mask", Mask, ("scale",)),
            Step("softmax", Softmax, ("mask",)),
            Step("out", WeightedV, ("softmax", "v_cache")),
        ),
        inputs=("q", "k_cache", "v_cache"),
        results=("out",),
        op=_attention,
        guard=_same_heads_no_window,
        node="attention",
    ),
)


@dataclass(frozen=True)
class FuseAttention(FusionPass):
    """Scores stay in registers and LDS.

    before::

        q -------> QK -> Scale -> Mask -> Softmax -> WeightedV -> y
        k_cache ---^                                    ^
        v_cache ----------------------------------------+

    after::

        q, k_cache, v_cache -> Attention -> y

    Not where the mask has a window, or any of the values in between has another use.
    """

    name: str = "fuse-attention"
    table: tuple[Fusion, ...] = _TABLE
