"""Fuses the three projections of attention with the norms, the rotation and the append to the cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import cast

from forgec.ir.ops import (
    Attention,
    Clamp,
    FusedLinear,
    HeadNorm,
    KVAppend,
    Linear,
    NoPrologue,
    Op,
    QKNorm,
    RMSNorm,
    Rope,
    RopeKV,
)
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseQKV"]

_BIASES = ("?q_bias", "?k_bias", "?v_bias")
_NORMS = ("q_norm_weight", "k_norm_weight")


def _qkv(match: Match) -> FusedLinear:
    heads, kv_heads, length = _shape(match)
    append = cast(KVAppend, match.op("append"))
    dims, interleaved = 0, True  # neighbours: the simplest pairs, as nothing turns
    if "q_rope" in match.nodes:
        rope = cast(Rope, match.op("q_rope"))
        dims, interleaved = rope.dims, rope.interleaved
    clamp = cast(Clamp, match.op("q_clamp")) if "q_clamp" in match.nodes else None
    epilogue = RopeKV(heads, kv_heads, length, dims, interleaved, append.value_length, _norm(match), clamp)
    return FusedLinear(NoPrologue(), epilogue, segments=3, bias=match.has(_BIASES[0]))


def _shape(match: Match) -> tuple[int, int, int]:
    """Query heads, KV heads and head length, from the cache and the query's width."""
    append = cast(KVAppend, match.op("append"))
    width = match.graph.values[match.nodes["q"].outputs[0]].shape[-1]
    return int(width) // append.head_length, append.kv_heads, append.head_length


def _norm(match: Match) -> QKNorm | None:
    if "q_norm" not in match.nodes:
        return None
    norm = match.op("q_norm")
    if isinstance(norm, RMSNorm):
        return QKNorm("row", norm.eps, centred=False)
    shared = len(match.value("q_norm_weight").shape) == 1
    head = cast(HeadNorm, norm)
    return QKNorm("head" if shared else "heads", head.eps, head.centred)


def _alike(match: Match) -> bool:
    """q and k are normed and turned alike, in the heads of the cache, and all or none have a bias.

    No kernel writes keys and values of different lengths.
    """
    heads, kv_heads, length = _shape(match)
    if cast(KVAppend, match.op("append")).v_length != length:
        return False
    if heads % kv_heads or len({match.has(bias) for bias in _BIASES}) != 1:
        return False
    if "attention" in match.nodes and cast(Attention, match.op("attention")).heads != heads:
        return False
    if "q_clamp" in match.nodes and len({match.op(f"{which}_clamp") for which in "qkv"}) != 1:
        return False
    return _norms_alike(match, heads, kv_heads) and _ropes_alike(match, (heads, kv_heads), length)


def _norms_alike(match: Match, heads: int, kv_heads: int) -> bool:
    if "q_norm" not in match.nodes:
        return True
    q, k = match.op("q_norm"), match.op("k_norm")
    if isinstance(q, HeadNorm) and isinstance(k, HeadNorm):
        ranks = {len(match.value(weight).shape) for weight in _NORMS}
        return (q.heads, k.heads) == (heads, kv_heads) and _kind(q) == _kind(k) and len(ranks) == 1
    return q == k


def _kind(norm: HeadNorm) -> tuple[float, bool]:
    return norm.eps, norm.centred


def _ropes_alike(match: Match, heads: tuple[int, int], length: int) -> bool:
    if "q_rope" not in match.nodes:
        return True
    q, k = cast(Rope, match.op("q_rope")), cast(Rope, match.op("k_rope"))
    alike = (q.head_length, q.dims, q.interleaved) == (k.head_length, k.dims, k.interleaved)
    return alike and (q.heads, k.heads) == heads and q.head_length == length


def _row(clamped: bool, norm: type[Op] | None, rotated: bool) -> Fusion:
    """The pattern with or without clamps, norms and rotations between the projections and what reads them.

    An unrotated q is known by the attention that reads it beside the caches, which is not fused here.
    """
    q, k = _chain("q", clamped, norm, rotated), _chain("k", clamped, norm, rotated)
    v = _chain("v", clamped, None, rotated=False)
    appended = (k[-1].label, v[-1].label, "k_cache", "v_cache")
    steps = [Step("append", KVAppend, appended, ("k_cache'", "v_cache'")), *k[::-1], *v[::-1], *q]
    if not rotated:
        reader = (q[-1].label, "k_cache'", "v_cache'", "?sinks")
        steps.append(Step("attention", Attention, reader, keep=True))
    norms = _NORMS if norm else ()
    table = ("rope_table",) if rotated else ()
    weights = ("x", "q_weight", "k_weight", "v_weight", *_BIASES)
    return Fusion(
        pattern=tuple(steps),
        inputs=(*weights, *norms, *table, "k_cache", "v_cache"),
        results=(q[-1].label, "k_cache'", "v_cache'"),
        op=_qkv,
        guard=_alike,
        node="attn_qkv",
    )


def _chain(which: str, clamped: bool, norm: type[Op] | None, rotated: bool) -> list[Step]:
    """Projection, clamp, norm and rotation of q, k or v, in this order."""
    steps = [Step(which, Linear, ("x", f"{which}_weight", f"?{which}_bias"))]
    if clamped:
        steps.append(Step(f"{which}_clamp", Clamp, (which,)))
    if norm:
        steps.append(Step(f"{which}_norm", norm, (steps[-1].label, f"{which}_norm_weight")))
    if rotated:
        steps.append(Step(f"{which}_rope", Rope, (steps[-1].label, "rope_table")))
    return steps


@dataclass(frozen=True)
class FuseQKV(FusionPass):
    """One matrix-vector kernel reads x once and writes q and both caches.

    before::

        x -> Linear [-> Clamp] [-> norm] [-> Rope] -> q
        x -> Linear [-> Clamp] [-> norm] [-> Rope] -> KVAppend -> k_cache', v_cache'
        x -> Linear [-> Clamp] ------------------------^   (k_cache, v_cache)

    after::

        x -> FusedLinear[none, rope_kv] -> q, k_cache', v_cache'

    Not where q and k are normed or rotated differently or with two tables, or only some of the three have a
    bias.
    """

    name: str = "fuse-qkv"
    table: tuple[Fusion, ...] = tuple(
        _row(clamped, norm, rotated)
        for clamped, norm, rotated in product((False, True), (None, HeadNorm, RMSNorm), (True, False))
    )
