"""Decides how every weight will lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forgec.ir.expert_ops import Experts, HeadLinear, LatentQK
from forgec.ir.graph import Graph, Node, Value
from forgec.ir.ops import Embedding, FusedLinear, Linear
from forgec.passes.manager import Pass
from forgec.targets.base import Target

__all__ = ["ROWS8_TYPES", "ChooseLayout"]

#: Weight types that the CPU's own products read, eight rows interleaved; the others go row by row there too.
ROWS8_TYPES = (
    *("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"),
)
#: Operations whose stages find rows one by one: looked up, or of one matrix of a stack for each head.
BY_ROW = (Embedding, HeadLinear, LatentQK)
#: Rows that "rows8" interleaves: every matrix of a stack must begin with a whole group.
GROUP = 8


@dataclass(frozen=True)
class ChooseLayout(Pass):
    """Vectors and tables of positions stay "plain"; matrices become "rows", or "rows8" on the CPU.

    before::

        weight q4_1[576, 576]              weight f32[576]

    after::

        weight q4_1[576, 576] rows         weight f32[576] plain

    "rows" keeps quants and scales of a row apart, so that a lane loads 16 contiguous bytes. On the CPU a
    vector lane is a row: "rows8" interleaves eight rows, which needs no sum across lanes (rows are padded to
    8). There a matrix that is only looked up by row, as an embedding that is not the output matrix too, stays
    in "rows", and so do a product in which any matrix has a type without kernels for "rows8", experts
    that would begin within eight rows, and the matrices of heads.
    """

    name: str = "choose-layout"

    def run(self, graph: Graph, target: Target) -> Graph:
        interleaved = _interleaved(graph) if target.family == "cpu" else frozenset()
        weights = [replace(v, layout=_layout(graph, v, interleaved)) for v in graph.of_kind("weight")]
        return graph.replace(values=weights)


def _layout(graph: Graph, weight: Value, interleaved: frozenset[str]) -> str:
    if not any(weight.name in _matrices(user) for user in graph.users(weight.name)):
        return "plain"
    return "rows8" if weight.name in interleaved else "rows"


def _interleaved(graph: Graph) -> frozenset[str]:
    """Matrices whose products have kernels for "rows8"; the matrices of one product share a layout."""
    products = [frozenset(_matrices(node)) for node in graph.topo() if not isinstance(node.op, BY_ROW)]
    excluded: frozenset[str] = frozenset()
    found = frozenset(name for p in products for name in p if not _in_groups(graph.values[name]))
    while found != excluded:
        excluded = found
        found = excluded.union(*(p for p in products if p & excluded))
    return frozenset().union(*products) - excluded


def _in_groups(weight: Value) -> bool:
    """Whether there are kernels that read eight rows of a weight at a time."""
    stack = len(weight.shape) > 2
    rows = weight.shape[-2]
    return weight.dtype in ROWS8_TYPES and not (stack and isinstance(rows, int) and rows % GROUP)


def _matrices(node: Node) -> tuple[str, ...]:
    """The inputs of a node that it reads in the layout of a matrix; all other weights it reads as floats."""
    if isinstance(node.op, FusedLinear):
        return node.op.by_role(node.inputs).weights
    if isinstance(node.op, Experts):
        roles = node.op.by_role(node.inputs)
        return (*roles.weights, *roles.shared)
    return node.inputs[1:2] if isinstance(node.op, (Embedding, Linear, HeadLinear, LatentQK)) else ()
