"""Fuses the norm behind a block with the addition to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import Add, NormAdd, RMSNorm
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseNormAdd"]


def _norm_add(match: Match) -> NormAdd:
    return NormAdd(cast(RMSNorm, match.op("norm")))


_TABLE = (
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
    """One kernel norms and adds.

    before::

        x -> RMSNorm -> Add -> y
        residual -------^

    after::

        residual, x -> NormAdd -> y

    Not where the normed value has another use.
    """

    name: str = "fuse-norm-add"
    table: tuple[Fusion, ...] = _TABLE
