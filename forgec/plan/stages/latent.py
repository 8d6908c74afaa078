"""Parameters of the stages of latent attention: a matrix per head, and what is turned and appended."""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import VerifyError
from forgec.plan.layouts import slice_elements
from forgec.plan.stages.base import STATE, Arg, StageParams
from forgec.plan.stages.cache import KVCache
from forgec.plan.stages.experts import activations_of, weight_arg

__all__ = ["HeadMatvecParams", "LatentParams"]


@dataclass(frozen=True)
class HeadMatvecParams(StageParams):
    """Decode: the product of every head's activations with its own matrix of ``rows`` x ``cols``.

    Heads lie ``pitch`` elements apart in x and ``out_pitch`` apart in the output.
    """

    heads: int
    format: str
    rows: int
    inner: int
    pitch: int
    out_pitch: int
    lanes_per_row: int
    rows_per_group: int

    def __post_init__(self) -> None:
        super().__post_init__()
        step = slice_elements(self.format)
        if self.pitch % step:
            raise VerifyError(
                f"stage 'head_matvec': heads of {self.pitch} elements; expected a multiple of {step}, "
                f"which '{self.format}' takes at a time"
            )

    @property
    def stage(self) -> str:
        return "head_matvec"

    @property
    def title(self) -> str:
        return f"head_matvec_{self.format}_{self.heads}x{self.rows}x{self.inner}"

    @property
    def formats(self) -> tuple[str, ...]:
        return (self.format,)

    @property
    def act(self) -> str:
        return "f32"

    @property
    def cols(self) -> int:
        """All activations."""
        return self.heads * self.pitch

    @property
    def activations(self) -> str:
        return activations_of(self.act, self.cols)

    @property
    def items(self) -> int:
        return self.heads * -(-self.rows // self.rows_per_group)

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("x", "const float*"), weight_arg("weight"), Arg("out", "float*"))


@dataclass(frozen=True)
class LatentParams(StageParams):
    """The rotated part of latent attention's queries, and its key: normed, rotated, appended to the cache.

    For ``state.rows`` rows; what the heads' matrices make of the queries is written by others.
    """

    heads: int
    nope_length: int
    rope_dims: int
    interleaved: bool
    eps: float
    cache: KVCache

    @property
    def stage(self) -> str:
        return "latent"

    @property
    def latent(self) -> int:
        """Elements that are normed: those of a value."""
        return self.cache.value_length

    @property
    def low(self) -> str:
        """C expression of the first element of rope pair i."""
        return "2 * i" if self.interleaved else "i"

    @property
    def high(self) -> str:
        """C expression of its second element."""
        return "2 * i + 1" if self.interleaved else "i + kPairs"

    @property
    def args(self) -> tuple[Arg, ...]:
        names = ("q", "kv", "norm_weight", "rope_table")
        outputs = (Arg("q_out", "float*"), Arg("k_cache", f"{self.cache.ctype}*"))
        return (STATE, *(Arg(name, "const float*") for name in names), *outputs)
