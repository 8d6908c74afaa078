"""Fuses the three projections of attention with the rotation and the append to the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import FusedLinear, KVAppend, Linear, NoPrologue, Rope, RopeKV
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseQKV"]

_BIASES = ("?q_bias", "?k_bias", "?v_bias")


def _qkv(match: Match) -> FusedLinear:
    q, k = cast(Rope, match.op("q_rope")), cast(Rope, match.op("k_rope"))
    append = cast(KVAppend, match.op("append"))
    epilogue = RopeKV(q.heads, k.heads, q.head_length, q.dims, q.interleaved, append.value_length)
    return FusedLinear(NoPrologue(), epilogue, segments=3, bias=match.has(_BIASES[0]))


def _one_rotation(match: Match) -> bool:
    """q and k are turned alike, k's heads are those of the cache, and all or none have a bias."""
    q, k = cast(Rope, match.op("q_rope")), cast(Rope, match.op("k_rope"))
    append = cast(KVAppend, match.op("append"))
    alike = (q.head_length, q.dims, q.interleaved) == (k.head_length, k.dims, k.interleaved)
    heads = (k.heads, k.head_length) == (append.kv_heads, append.head_length) and q.heads % k.heads == 0
    return alike and heads and len({match.has(bias) for bias in _BIASES}) == 1


_TABLE = (
    Fusion(
        pattern=(
            Step("append", KVAppend, ("k_rope", "v", "k_cache", "v_cache"), ("k_cache'", "v_cache'")),
            Step("k_rope", Rope, ("k", "rope_table")),
            Step("k", Linear, ("x", "k_weight", "?k_bias")),
            Step("v", Linear, ("x", "v_weight", "?v_bias")),
            Step("q", Linear, ("x", "q_weight", "?q_bias")),
            Step("q_rope", Rope, ("q", "rope_table")),
        ),
        inputs=("x", "q_weight", "k_weight", "v_weight", *_BIASES, "rope_table", "k_cache", "v_cache"),
        results=("q_rope", "k_cache'", "v_cache'"),
        op=_qkv,
        guard=_one_rotation,
        node="attn_qkv",
    ),
)


@dataclass(frozen=True)
class FuseQKV(FusionPass):
    """One matrix-vector kernel reads x once and writes q and both caches.

    before::

        x -> Linear -> Rope -> q
        x -> Linear -> Rope -> KVAppend -> k_cache', v_cache'
        x -> Linear -----------^   (k_cache, v_cache)

    after::

        x -> FusedLinear[none, rope_kv] -> q, k_cache', v_cache'

    Not where q and k are rotated differently or with two tables, or only some of the three have a bias.
    """

    name: str = "fuse-qkv"
    table: tuple[Fusion, ...] = _TABLE
