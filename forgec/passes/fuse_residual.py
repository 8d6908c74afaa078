"""Fuses the addition to the residual stream into the projection before it."""

from __future__ import annotations

from dataclasses import dataclass

from forgec.ir.ops import Add, FusedLinear, Linear, NoPrologue, Residual
from forgec.passes.expert_fusions import RESIDUAL_FUSIONS
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseResidual"]


def _residual(match: Match) -> FusedLinear:
    return FusedLinear(NoPrologue(), Residual(), segments=1, bias=match.has("?bias"))


_TABLE = (
    Fusion(
        pattern=(
            Step("linear", Linear, ("x", "weight", "?bias")),
            Step("add", Add, ("residual", "linear")),
        ),
        inputs=("x", "weight", "?bias", "residual"),
        results=("add",),
        op=_residual,
        node="=linear",
    ),
    *RESIDUAL_FUSIONS,
)


@dataclass(frozen=True)
class FuseResidual(FusionPass):
    """The kernel that makes the sum's right side also adds the left one.

    before::

        x -> Linear -> Add -> y
        residual ------^

    after::

        x, residual -> FusedLinear[none, residual] -> y

    Not where the product has another use, or is added to itself.
    """

    name: str = "fuse-residual"
    table: tuple[Fusion, ...] = _TABLE
