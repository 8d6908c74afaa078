"""Fuses a function of single elements into the projection before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import (
    GELU,
    Add,
    FusedLinear,
    Linear,
    NoPrologue,
    Op,
    Pointwise,
    Residual,
    Sample,
    Scale,
    SiLU,
    SoftCap,
    SquaredReLU,
    Store,
)
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseLogits", "FusePointwise"]


def _store(match: Match) -> FusedLinear:
    epilogue = Store(cast(Pointwise, match.op("then")))
    return FusedLinear(NoPrologue(), epilogue, segments=1, bias=match.has("?bias"))


def _residual(match: Match) -> FusedLinear:
    epilogue = Residual(cast(Pointwise, match.op("then")))
    return FusedLinear(NoPrologue(), epilogue, segments=1, bias=match.has("?bias"))


def _stored(then: type[Op], *behind: Step) -> Fusion:
    return Fusion(
        pattern=(
            Step("linear", Linear, ("x", "weight", "?bias")),
            Step("then", then, ("linear",)),
            *behind,
        ),
        inputs=("x", "weight", "?bias"),
        results=("then",),
        op=_store,
        node="=linear",
    )


_ADDED = Fusion(
    pattern=(
        Step("linear", Linear, ("x", "weight", "?bias")),
        Step("then", Scale, ("linear",)),
        Step("add", Add, ("residual", "then")),
    ),
    inputs=("x", "weight", "?bias", "residual"),
    results=("add",),
    op=_residual,
    node="=linear",
)

_TOKEN = Step("sample", Sample, ("then",), keep=True)


@dataclass(frozen=True)
class FusePointwise(FusionPass):
    """The kernel of the product applies the function before it writes.

    before::

        x -> Linear -> GELU -> y                x -> Linear -> Scale -> Add -> y
                                                residual --------------^

    after::

        x -> FusedLinear[none, store(GELU)] -> y      x, residual -> FusedLinear[none, residual(Scale)] -> y

    Not where the product has another use.
    """

    name: str = "fuse-pointwise"
    table: tuple[Fusion, ...] = (_ADDED, *map(_stored, (GELU, SiLU, SquaredReLU)))


@dataclass(frozen=True)
class FuseLogits(FusionPass):
    """What scales or caps the logits happens in the head's product, which computes one row only.

    before::

        x -> Linear -> SoftCap -> Sample

    after::

        x -> FusedLinear[none, store(SoftCap)] -> Sample
    """

    name: str = "fuse-logits"
    table: tuple[Fusion, ...] = tuple(_stored(then, _TOKEN) for then in (Scale, SoftCap))
