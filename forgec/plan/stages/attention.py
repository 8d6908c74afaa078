"""Parameters of the attention stages, fused and unfused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from forgec.plan.stages.base import STATE, Arg, StageParams
from forgec.plan.stages.cache import KVCache

__all__ = [
    "AttentionDecodeParams",
    "AttentionParams",
    "AttentionPrefillParams",
    "MaskParams",
    "QKParams",
    "ScaleParams",
    "SoftmaxParams",
    "WeightedVParams",
]

LOG2_E = math.log2(math.e)


def _slope_heads(heads: int) -> int:
    """The largest power of two of heads: those whose ALiBi slopes are regular."""
    return 1 << (heads.bit_length() - 1)


@dataclass(frozen=True)
class CacheReaderParams(StageParams):
    """Shared by all stages that read the KV cache with a number of query heads."""

    heads: int
    cache: KVCache

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.cache.kv_heads

    @property
    def k_arg(self) -> Arg:
        return Arg("k_cache", f"const {self.cache.ctype}*")

    @property
    def v_arg(self) -> Arg:
        return Arg("v_cache", f"const {self.cache.ctype}*")


@dataclass(frozen=True)
class AttentionParams(CacheReaderParams):
    """Shared by the fused stages: softmax(mask(softcap(scale q·k))) v, fields as in ``ops.Attention``."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    @property
    def query_factor(self) -> float:
        """What q is multiplied by: scores come out in base 2, or with a soft-cap c as 2 log2(e) s / c."""
        return self.scale * LOG2_E * (2.0 / self.softcap if self.softcap else 1.0)

    @property
    def cap_factor(self) -> float:
        """The soft-cap in base 2."""
        return self.softcap * LOG2_E

    @property
    def slope_heads(self) -> int:
        return _slope_heads(self.heads)

    @property
    def slope_step(self) -> float:
        """Exponent of 2 between the slopes of neighbouring heads."""
        return self.alibi / self.slope_heads

    @property
    def kv_args(self) -> tuple[Arg, ...]:
        """The caches, and the sinks where there are some."""
        caches = (self.k_arg,) if self.cache.v_from_k else (self.k_arg, self.v_arg)
        return (*caches, Arg("sinks", "const float*")) if self.sinks else caches

    @property
    def value_cache(self) -> str:
        """C expression of where values are."""
        return "k_cache" if self.cache.v_from_k else "v_cache"

    @property
    def sink_logits(self) -> str:
        """C expression of the sinks, null without any."""
        return "sinks" if self.sinks else "nullptr"


@dataclass(frozen=True)
class AttentionDecodeParams(AttentionParams):
    """One query row; the keys are split up to ``splits`` ways, the last block of a KV head combines.

    ``lanes_per_key`` lanes share one key: each holds ``key_length / lanes_per_key`` elements.
    ``partial`` is f32 [heads][splits][value_length] (weighted sums) followed by [heads][splits][2] (maximum,
    sum of weights), and ``counters`` u32 [kv_heads], zero between launches; other blocks write both. With
    ``fresh`` the step's own rows come as f32 [kv_heads][length] in ``k_new`` and ``v_new``, and this stage
    appends them to the cache. ``matrix``: on matrix units of 16 x 8 x 16, an f16 cache of rows of 64 or 128.
    """

    splits: int = 1
    lanes_per_key: int = 1
    fresh: bool = False
    matrix: bool = False

    @property
    def stage(self) -> str:
        return "attention_decode_matrix" if self.matrix else "attention_decode"

    @property
    def k_arg(self) -> Arg:
        return Arg("k_cache", f"{self.cache.ctype}*") if self.fresh else super().k_arg

    @property
    def v_arg(self) -> Arg:
        return Arg("v_cache", f"{self.cache.ctype}*") if self.fresh else super().v_arg

    @property
    def partial_floats(self) -> int:
        """Elements of ``partial``."""
        return self.heads * self.splits * (self.cache.value_length + 2)

    @property
    def args(self) -> tuple[Arg, ...]:
        new = (Arg("k_new", "const float*"), Arg("v_new", "const float*")) if self.fresh else ()
        work = (Arg("partial", "float*", restrict=False), Arg("counters", "u32*", restrict=False))
        return (STATE, Arg("q", "const float*"), *self.kv_args, *new, *work, Arg("out", "float*"))


@dataclass(frozen=True, kw_only=True)
class AttentionPrefillParams(AttentionParams):
    """``state.rows`` query rows against all cached keys, online softmax over key tiles."""

    causal: bool
    tile_queries: int
    tile_keys: int

    @property
    def stage(self) -> str:
        return "attention_prefill"

    @property
    def title(self) -> str:
        return f"attention_prefill_{'causal' if self.causal else 'full'}"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("q", "const float*"), *self.kv_args, Arg("out", "float*"))


@dataclass(frozen=True)
class QKParams(CacheReaderParams):
    """scores[h, r, c] = q[r, h, :] · k[h / group, c, :], c < position + rows; row length cache.positions."""

    @property
    def stage(self) -> str:
        return "qk"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("q", "const float*"), self.k_arg, Arg("scores", "float*"))


@dataclass(frozen=True)
class WeightedVParams(CacheReaderParams):
    """out[r, h, :] = sum over c of p[h, r, c] * v[h / group, c, :]."""

    @property
    def stage(self) -> str:
        return "weighted_v"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("p", "const float*"), self.v_arg, Arg("out", "float*"))


@dataclass(frozen=True)
class MaskParams(StageParams):
    """scores[h, r, c] plus ALiBi's bias, or -inf where c may not be seen; row length ``context``."""

    heads: int
    context: int
    causal: bool
    window: int = 0
    alibi: float = 0.0

    @property
    def slope_heads(self) -> int:
        return _slope_heads(self.heads)

    @property
    def slope_step(self) -> float:
        """Exponent of 2 between the slopes of neighbouring heads."""
        return self.alibi / self.slope_heads

    @property
    def stage(self) -> str:
        return "mask"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class ScaleParams(StageParams):
    """factor * s, or if ``capped`` factor * tanh(s / factor), of s = scores[h, r, c], c < position + rows."""

    heads: int
    context: int
    factor: float
    capped: bool = False

    @property
    def stage(self) -> str:
        return "scale"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class SoftmaxParams(StageParams):
    """Softmax over c < position + rows of scores [heads][rows][context]; a fully masked row gives zeros.

    With ``sinks`` a logit per head takes part in maximum and sum.
    """

    heads: int
    context: int
    sinks: bool = False

    @property
    def stage(self) -> str:
        return "softmax"

    @property
    def sink_logits(self) -> str:
        """C expression of the sinks, null without any."""
        return "sinks" if self.sinks else "nullptr"

    @property
    def args(self) -> tuple[Arg, ...]:
        sinks = (Arg("sinks", "const float*"),) if self.sinks else ()
        return (STATE, Arg("scores", "const float*"), *sinks, Arg("y", "float*"))
