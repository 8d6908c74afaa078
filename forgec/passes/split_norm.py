"""Gives every product that reads a normed value a norm of its own, so that each can be fused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forgec.ir.expert_ops import Experts
from forgec.ir.graph import Graph, Node, Rewrite
from forgec.ir.ops import FusedLinear, LayerNorm, Linear, NoPrologue, RMSNorm
from forgec.passes.manager import Pass
from forgec.targets.base import Target

__all__ = ["SplitNorm"]


@dataclass(frozen=True)
class SplitNorm(Pass):
    """A norm is cheap beside a launch: where two products read it, as in parallel blocks, it doubles.

    before::

        x -> RMSNorm -> FusedLinear[none, rope_kv]
                   \\-> FusedLinear[none, gated]

    after::

        x -> RMSNorm -> FusedLinear[none, rope_kv]
        x -> RMSNorm -> FusedLinear[none, gated]

    Only where all users are products without a prologue that read the normed value once, as their x.
    """

    name: str = "split-norm"

    def run(self, graph: Graph, target: Target) -> Graph:
        rewrites: list[Rewrite] = []
        for node in graph.topo():
            if isinstance(node.op, (RMSNorm, LayerNorm)):
                users = graph.users(node.outputs[0])
                outside = node.outputs[0] in graph.outputs
                if len(users) > 1 and not outside and all(_takes_norm(user, node) for user in users):
                    rewrites += _split(graph, node, users)
        return graph.replace(rewrites)


def _takes_norm(user: Node, norm: Node) -> bool:
    plain = isinstance(user.op, Linear) or (
        isinstance(user.op, (FusedLinear, Experts)) and user.op.prologue == NoPrologue()
    )
    return plain and [i for i, name in enumerate(user.inputs) if name == norm.outputs[0]] == [0]


def _split(graph: Graph, norm: Node, users: tuple[Node, ...]) -> list[Rewrite]:
    """The first user keeps the norm, each of the others gets a copy just before it."""
    rewrites: list[Rewrite] = []
    for index, user in enumerate(users[1:], start=2):
        value = replace(graph.values[norm.outputs[0]], name=f"{norm.outputs[0]}.{index}")
        copy = replace(norm, name=f"{norm.name}.{index}", outputs=(value.name,))
        own = replace(user, inputs=(value.name, *user.inputs[1:]))
        rewrites.append(Rewrite((user.name,), (copy, own), (value,)))
    return rewrites
