"""Removes what nobody needs: nodes without effect, and values without users."""

from __future__ import annotations

from dataclasses import dataclass

from forgec.ir.graph import Graph
from forgec.passes.manager import Pass
from forgec.targets.base import Target

__all__ = ["DeadCode"]


@dataclass(frozen=True)
class DeadCode(Pass):
    """Keeps what the outputs need and what updates a state.

    before::

        x -> Linear -> y (output)
        x -> SiLU -> z (no user), weight w (no user)

    after::

        x -> Linear -> y (output)
    """

    name: str = "dead-code"

    def run(self, graph: Graph, target: Target) -> Graph:
        nodes: set[str] = set()
        values: set[str] = set(graph.outputs)
        for node in reversed(graph.topo()):
            updates = any(graph.values[name].kind == "state" for name in node.outputs)
            if updates or not values.isdisjoint(node.outputs):
                nodes.add(node.name)
                values.update(node.inputs, node.outputs)
        if len(nodes) == len(graph.nodes) and len(values) == len(graph.values):
            return graph
        return graph.restrict(nodes, values)
