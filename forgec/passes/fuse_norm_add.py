"""Fuses the norm behind a block with the projection before it and the addition to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import Add, FusedLinear, Linear, NoPrologue, NormAdd, NormResidual, RMSNorm
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseNormAdd"]


def _into_linear(match: Match) -> FusedLinear:
    epilogue = NormResidual(cast(RMSNorm, match.op("norm")).eps)
    return FusedLinear(NoPrologue(), epilogue, segments=1, bias=match.has("?bias"))


def _norm_add(match: Match) -> NormAdd:
    return NormAdd(cast(RMSNorm, match.op("norm")))


_TABLE = (
    Fusion(
        pattern=(
            Step("linear", Linear, ("x", "weight", "?bias")),
            Step("norm", RMSNorm, ("linear", "norm_weight")),
            Step("add", Add, ("residual", "norm")),
        ),
        inputs=("x", "weight", "?bias", "residual", "norm_weight"),
        results=("add",),
        op=_into_linear,
        node="=linear",
    ),
    Fusion(
        pattern=(
            Step("norm", RMSNorm, ("x", "weight")),
            Step("add", Add, ("residual", "norm")),
        ),
        inputs=("residual", "x", "weight"),
        results=("add",),
        op=_norm_add,
        node="=norm",
    ),
)


@dataclass(frozen=True)
class FuseNormAdd(FusionPass):
    """The kernel of a projection norms its product and adds it, or else one kernel does both.

    before::

        x -> Linear -> RMSNorm -> Add -> y          x -> RMSNorm -> Add -> y
        residual -----------------^                 residual -------^

    after::

        x, residual -> FusedLinear[none, norm_residual] -> y          residual, x -> NormAdd -> y

    Not where the product or the normed value has another use.
    """

    name: str = "fuse-norm-add"
    table: tuple[Fusion, ...] = _TABLE
