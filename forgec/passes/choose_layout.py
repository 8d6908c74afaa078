"""Decides how every weight will lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forgec.ir.graph import Graph, Value
from forgec.ir.ops import Embedding
from forgec.passes.manager import Pass
from forgec.targets.base import Target

__all__ = ["ChooseLayout"]


@dataclass(frozen=True)
class ChooseLayout(Pass):
    """Vectors stay "plain"; matrices become "planes", or "rows8" on the CPU.

    before::

        weight q4_1[576, 576]              weight f32[576]

    after::

        weight q4_1[576, 576] planes       weight f32[576] plain

    "planes" keeps quants and scales apart, so that a lane loads 16 contiguous bytes. On the CPU a vector lane
    is a row: "rows8" interleaves eight rows, which needs no sum across lanes (rows are padded to 8). A matrix
    that is only looked up by row, as an embedding that is not the output matrix too, stays in planes there.
    """

    name: str = "choose-layout"

    def run(self, graph: Graph, target: Target) -> Graph:
        weights = [replace(v, layout=_layout(graph, v, target)) for v in graph.of_kind("weight")]
        return graph.replace(values=weights)


def _layout(graph: Graph, weight: Value, target: Target) -> str:
    if len(weight.shape) == 1:
        return "plain"
    multiplied = any(not isinstance(user.op, Embedding) for user in graph.users(weight.name))
    return "rows8" if target.family == "cpu" and multiplied else "planes"
