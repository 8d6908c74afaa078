"""The passes of every compilation, in order.

An imported graph and a target go in, the graph that the planner reads comes out: per layer one FusedLinear
with norm and RoPE, attention, one with the residual, one with norm and the gate, one with the residual.
"""

from __future__ import annotations

from collections.abc import Callable

from forgec.ir.graph import Graph
from forgec.passes.choose_layout import ChooseLayout
from forgec.passes.dead_code import DeadCode
from forgec.passes.fuse_attention import FuseAttention
from forgec.passes.fuse_gated import FuseGated
from forgec.passes.fuse_norm import FuseNorm
from forgec.passes.fuse_norm_add import FuseNormAdd
from forgec.passes.fuse_pointwise import FuseLogits, FusePointwise
from forgec.passes.fuse_qkv import FuseQKV
from forgec.passes.fuse_residual import FuseResidual
from forgec.passes.manager import Pass, PassResult, run_passes
from forgec.passes.split_norm import SplitNorm
from forgec.targets.base import Target

__all__ = ["PIPELINE", "UNFUSED", "optimise"]

PIPELINE: tuple[Pass, ...] = (
    FuseAttention(),
    FuseQKV(),
    FuseGated(),
    FuseLogits(),
    FusePointwise(),
    FuseResidual(),
    FuseNormAdd(),
    SplitNorm(),
    FuseNorm(),  # last of the fusions: only then has the norm before q, k and v a single user
    DeadCode(),
    ChooseLayout(),  # after all that removes users of weights
)

#: Every operation its own kernel, but for those of the head, which reads one row: to find a wrong fusion.
UNFUSED: tuple[Pass, ...] = (FuseLogits(), FuseNorm(), DeadCode(), ChooseLayout())


def optimise(
    graph: Graph, target: Target, after: Callable[[PassResult], None] | None = None, *, fuse: bool = True
) -> Graph:
    """Run the whole pipeline, or without ``fuse`` the least that can be planned; see ``run_passes``."""
    return run_passes(graph, target, PIPELINE if fuse else UNFUSED, after)
