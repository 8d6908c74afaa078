"""Fuses a norm into the one kernel that reads its result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from forgec.ir.ops import (
    FusedLinear,
    LayerNorm,
    LayerNormPrologue,
    Linear,
    NoPrologue,
    Op,
    Prologue,
    RMSNorm,
    RMSNormPrologue,
    Store,
)
from forgec.passes.expert_fusions import NORM_FUSIONS
from forgec.passes.match import Fusion, FusionPass, Match, Step

__all__ = ["FuseNorm"]


def _prologue(match: Match) -> Prologue:
    norm = match.op("norm")
    if isinstance(norm, LayerNorm):
        return LayerNormPrologue(norm.eps, norm.weight, norm.bias)
    return RMSNormPrologue(cast(RMSNorm, norm).eps)


def _into_linear(match: Match) -> FusedLinear:
    return FusedLinear(_prologue(match), Store(), segments=1, bias=match.has("?bias"))


def _into_fused(match: Match) -> FusedLinear:
    return replace(cast(FusedLinear, match.op("linear")), prologue=_prologue(match))


def _no_prologue_yet(match: Match) -> bool:
    return cast(FusedLinear, match.op("linear")).prologue == NoPrologue()


def _rows(norm: type[Op], *parameters: str) -> tuple[Fusion, Fusion]:
    """A norm into a plain product, and into a fused one."""
    return (
        Fusion(
            pattern=(
                Step("norm", norm, ("x", *parameters)),
                Step("linear", Linear, ("norm", "weight", "?bias")),
            ),
            inputs=("x", *parameters, "weight", "?bias"),
            results=("linear",),
            op=_into_linear,
            node="=linear",
        ),
        Fusion(
            pattern=(
                Step("norm", norm, ("x", *parameters)),
                # RopeKV has three outputs, every other epilogue one.
                Step("linear", FusedLinear, ("norm", "*rest"), ("*results",)),
            ),
            inputs=("x", *parameters, "*rest"),
            results=("*results",),
            op=_into_fused,
            guard=_no_prologue_yet,
            node="=linear",
        ),
    )


_TABLE = (*_rows(RMSNorm, "norm_weight"), *_rows(LayerNorm, "?norm_weight", "?norm_bias"), *NORM_FUSIONS)


@dataclass(frozen=True)
class FuseNorm(FusionPass):
    """Each block of the kernel norms x itself, which is cheaper than one more launch.

    before::

        x -> RMSNorm -> Linear -> y

    after::

        x -> FusedLinear[rmsnorm, store] -> y

    and the same for LayerNorm, and for a FusedLinear that has no prologue yet. Not where the normed value has
    several users, or is also the residual of the one user.
    """

    name: str = "fuse-norm"
    table: tuple[Fusion, ...] = _TABLE
