"""Rows of fusion tables: what comes before and after a mixture of experts becomes part of its kernels.

The norm of its input goes into the first kernel of a token, a factor and the residual sum into the last. The
rows belong to the passes that do the same for linear products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from forgec.ir.expert_ops import Experts
from forgec.ir.ops import Add, NoPrologue, RMSNorm, RMSNormPrologue, Scale
from forgec.passes.match import Fusion, Match, Step

__all__ = ["NORM_FUSIONS", "RESIDUAL_FUSIONS"]


def _experts(match: Match) -> Experts:
    return cast(Experts, match.op("experts"))


def _scaled(match: Match) -> Experts:
    op = _experts(match)
    return replace(op, scale=op.scale * cast(Scale, match.op("scaled")).factor)


def _added(match: Match) -> Experts:
    return replace(_experts(match), residual=True)


def _normed(match: Match) -> Experts:
    return replace(_experts(match), prologue=RMSNormPrologue(cast(RMSNorm, match.op("norm")).eps))


def _no_prologue_yet(match: Match) -> bool:
    return _experts(match).prologue == NoPrologue()


def _without_residual(match: Match) -> bool:
    return not _experts(match).residual


#: Rows for the pass that fuses the addition to the residual stream: a factor first, then the sum.
#:
#: x, logits -> Experts -> Scale -> Add -> y  becomes  x, logits, residual -> Experts[scale, residual] -> y.
RESIDUAL_FUSIONS = (
    Fusion(
        pattern=(
            Step("experts", Experts, ("*inputs",)),
            Step("scaled", Scale, ("experts",)),
        ),
        inputs=("*inputs",),
        results=("scaled",),
        op=_scaled,
        guard=_without_residual,
        node="=experts",
    ),
    Fusion(
        pattern=(
            Step("experts", Experts, ("*inputs",)),
            Step("add", Add, ("residual", "experts")),
        ),
        inputs=("*inputs", "residual"),
        results=("add",),
        op=_added,
        guard=_without_residual,
        node="=experts",
    ),
)

#: Rows for the pass that fuses norms into what reads them.
NORM_FUSIONS = (
    Fusion(
        pattern=(
            Step("norm", RMSNorm, ("x", "norm_weight")),
            Step("experts", Experts, ("norm", "*rest")),
        ),
        inputs=("x", "norm_weight", "*rest"),
        results=("experts",),
        op=_normed,
        guard=_no_prologue_yet,
        node="=experts",
    ),
)
