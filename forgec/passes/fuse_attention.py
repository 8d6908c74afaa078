"""Fuses the ops of attention into one, so that the scores never exist in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import cast

from forgec.ir.graph import Graph
from forgec.ir.ops import QK, Attention, Mask, Scale, SoftCap, Softmax, WeightedV
from forgec.passes.match import Fusion, FusionPass, Match, Step, fuse

__all__ = ["FuseAttention", "fuse_attention"]


def _attention(match: Match) -> Attention:
    qk, scale, mask = cast(QK, match.op("qk")), cast(Scale, match.op("scale")), cast(Mask, match.op("mask"))
    out = cast(WeightedV, match.op("out"))
    return Attention(
        qk.heads,
        qk.kv_heads,
        qk.head_length,
        scale.factor,
        mask.causal,
        value_length=out.value_length if out.value_length != qk.head_length else 0,
        window=mask.window,
        softcap=cast(SoftCap, match.op("cap")).cap if "cap" in match.nodes else 0.0,
        alibi=mask.alibi,
        sinks=match.has("?sinks"),
        v_from_k=not match.has("v_cache"),
    )


def _same_heads(match: Match) -> bool:
    qk, out = cast(QK, match.op("qk")), cast(WeightedV, match.op("out"))
    own_rows = out.row_length in (0, out.value_length)
    return (qk.heads, qk.kv_heads) == (out.heads, out.kv_heads) and own_rows == match.has("v_cache")


def _row(capped: bool, v_from_k: bool) -> Fusion:
    values = "k_cache" if v_from_k else "v_cache"
    cap = (Step("cap", SoftCap, ("scale",)),) if capped else ()
    return Fusion(
        pattern=(
            Step("qk", QK, ("q", "k_cache")),
            Step("scale", Scale, ("qk",)),
            *cap,
            Step("mask", Mask, ("cap" if capped else "scale",)),
            Step("softmax", Softmax, ("mask", "?sinks")),
            Step("out", WeightedV, ("softmax", values)),
        ),
        inputs=("q", "k_cache", "?sinks") if v_from_k else ("q", "k_cache", "v_cache", "?sinks"),
        results=("out",),
        op=_attention,
        guard=_same_heads,
        node="attention",
    )


_TABLE = tuple(_row(capped, v_from_k) for capped, v_from_k in product((False, True), (True, False)))


@dataclass(frozen=True)
class FuseAttention(FusionPass):
    """Scores stay in registers and LDS.

    before::

        q -------> QK -> Scale [-> SoftCap] -> Mask -> Softmax -> WeightedV -> y
        k_cache ---^                          sinks? ---^           ^
        v_cache (or k_cache again) ---------------------------------+

    after::

        q, k_cache, v_cache?, sinks? -> Attention -> y

    Not where any of the values in between has another use.
    """

    name: str = "fuse-attention"
    table: tuple[Fusion, ...] = _TABLE


def fuse_attention(graph: Graph) -> Graph:
    """The pass alone, for those who ask what a layer's attention reads."""
    return fuse(graph, _TABLE)
