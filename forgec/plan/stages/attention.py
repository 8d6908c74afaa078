"""Parameters of the attention stages, fused and unfused.

The cache is [kv_heads][context][head_length], one for K and one for V in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.plan.stages.base import KV_CTYPES, STATE, Arg, StageParams

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


@dataclass(frozen=True)
class AttentionParams(StageParams):
    """Shared by the attention stages; the cache is [kv_heads][context][head_length] for K and for V."""

    heads: int
    kv_heads: int
    head_length: int
    context: int
    kv_dtype: str
    scale: float

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_args(self) -> tuple[Arg, ...]:
        return (Arg("k_cache", f"const {self.kv_ctype}*"), Arg("v_cache", f"const {self.kv_ctype}*"))


@dataclass(frozen=True)
class AttentionDecodeParams(AttentionParams):
    """One query row; the keys are split ``splits`` ways, the last block of a KV head combines.

    ``lanes_per_key`` lanes share one key: each holds ``head_length / lanes_per_key`` elements.
    ``partial`` is f32 [heads][splits][head_length + 2] (weighted sum, maximum, sum of weights) and
    ``counters`` u32 [kv_heads], zero between launches.
    """

    splits: int
    lanes_per_key: int

    @property
    def stage(self) -> str:
        return "attention_decode"

    @property
    def dims_per_lane(self) -> int:
        return self.head_length // self.lanes_per_key

    @property
    def args(self) -> tuple[Arg, ...]:
        work = (Arg("partial", "float*"), Arg("counters", "u32*"))
        return (STATE, Arg("q", "const float*"), *self.kv_args, *work, Arg("out", "float*"))


@dataclass(frozen=True)
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
class QKParams(AttentionParams):
    """scores[h, r, c] = q[r, h, :] · k[h / group, c, :] for c < position + rows; row length ``context``."""

    @property
    def stage(self) -> str:
        return "qk"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("q", "const float*"), self.kv_args[0], Arg("scores", "float*"))


@dataclass(frozen=True)
class WeightedVParams(AttentionParams):
    """out[r, h, :] = sum over c of p[h, r, c] * v[h / group, c, :]."""

    @property
    def stage(self) -> str:
        return "weighted_v"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("p", "const float*"), self.kv_args[1], Arg("out", "float*"))


@dataclass(frozen=True)
class MaskParams(StageParams):
    """scores[h, r, c] = -inf where c > position + r (causal); row length ``context``."""

    heads: int
    context: int
    causal: bool

    @property
    def stage(self) -> str:
        return "mask"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class ScaleParams(StageParams):
    """scores[h, r, c] *= factor for c < position + rows; row length ``context``."""

    heads: int
    context: int
    factor: float

    @property
    def stage(self) -> str:
        return "scale"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class SoftmaxParams(StageParams):
    """Softmax over c < position + rows of scores [heads][rows][context]; a fully masked row gives zeros."""

    heads: int
    context: int

    @property
    def stage(self) -> str:
        return "softmax"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))
