"""Fuses the gate and up projections with the activation between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from forgec.ir.ops import GELU, FusedLinear, Gated, Linear, Mul, NoPrologue, Pointwise, SiLU
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseGated"]


def _gate_up(match: Match) -> FusedLinear:
    epilogue = Gated(cast(Pointwise, match.op("activation")))
    return FusedLinear(NoPrologue(), epilogue, segments=2, bias=match.has("?gate_bias"))


def _both_or_no_bias(match: Match) -> bool:
    return match.has("?gate_bias") == match.has("?up_bias")


def _row(activation: type[Pointwise]) -> Fusion:
    return Fusion(
        pattern=(
            Step("activation", activation, ("gate",)),
            Step("gate", Linear, ("x", "gate_weight", "?gate_bias")),
            Step("mul", Mul, ("activation", "up")),
            Step("up", Linear, ("x", "up_weight", "?up_bias")),
        ),
        inputs=("x", "gate_weight", "up_weight", "?gate_bias", "?up_bias"),
        results=("mul",),
        op=_gate_up,
        guard=_both_or_no_bias,
        node="ffn_gate_up",
    )


@dataclass(frozen=True)
class FuseGated(FusionPass):
    """One kernel reads x once for both matrices and writes their gated product.

    before::

        x -> Linear -> SiLU -> Mul -> y
        x -> Linear -----------^

    after::

        x -> FusedLinear[none, gated] -> y

    and the same with GELU. Not where gate and up read different values, or the ungated product has another
    use.
    """

    name: str = "fuse-gated"
    table: tuple[Fusion, ...] = tuple(map(_row, (SiLU, GELU)))
