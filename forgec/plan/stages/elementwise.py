"""Parameters of the sampler and of the unfused stages that work element by element or row by row."""

from __future__ import annotations

from dataclasses import dataclass

from forgec.plan.stages.base import STATE, Arg, StageParams
from forgec.plan.stages.cache import KVCache

__all__ = [
    "ElementwiseParams",
    "KVAppendParams",
    "RopeParams",
    "SampleParams",
]


@dataclass(frozen=True)
class SampleParams(StageParams):
    """Draw the next token from ``logits`` and advance ``state``; one block."""

    vocab: int

    @property
    def stage(self) -> str:
        return "sample"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (Arg("state", "State*"), Arg("logits", "const float*"), Arg("ring", "i32*"))


@dataclass(frozen=True)
class ElementwiseParams(StageParams):
    """y = op(a[, b]) over ``state.rows * width`` elements; op is "add", "mul" or a function of POINTWISE.

    ``factor`` is the parameter of such a function, if it has one.
    """

    op: str
    width: int
    factor: float = 0.0

    @property
    def stage(self) -> str:
        return "elementwise"

    @property
    def title(self) -> str:
        return self.op

    @property
    def binary(self) -> bool:
        return self.op in ("add", "mul")

    @property
    def args(self) -> tuple[Arg, ...]:
        second = (Arg("b", "const float*"),) if self.binary else ()
        return (STATE, Arg("a", "const float*"), *second, Arg("y", "float*"))


@dataclass(frozen=True)
class RopeParams(StageParams):
    """Rotate [rows, heads * head_length] at positions ``state.position + row``."""

    heads: int
    head_length: int
    rope_dims: int
    interleaved: bool

    @property
    def stage(self) -> str:
        return "rope"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("x", "const float*"), Arg("rope_table", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class KVAppendParams(StageParams):
    """Write rows of k and v into the cache at positions ``state.position + row``.

    k and v are f32 [rows][kv_heads][length], or with ``from_cache`` n caches of n positions themselves,
    [kv_heads][n][length] with position p in row p % n.
    """

    cache: KVCache
    from_cache: int = 0

    @property
    def stage(self) -> str:
        return "kv_append"

    @property
    def value_rows(self) -> str:
        """C statement that writes the values of a row; empty where there are none."""
        if self.cache.v_from_k:
            return ""
        return "put_row<kValueLength>(v_cache, h, row_of(position), v + from * kValueLength);"

    @property
    def args(self) -> tuple[Arg, ...]:
        rows = (Arg("k", "const float*"), Arg("v", "const float*"))
        caches = (Arg("k_cache", f"{self.cache.ctype}*"), Arg("v_cache", f"{self.cache.ctype}*"))
        if self.cache.v_from_k:
            return (STATE, rows[0], caches[0])
        return (STATE, *rows, *caches)
