"""Fusion as data: rows of (pattern, fused op, guard), and the one matcher that applies them all.

A graph and rows go in, a graph in which every match has become one node comes out. A match is refused where
a value that would disappear has a use outside of it, where the fused node would depend on itself, or where
the row's guard says no; the matcher knows nothing of any particular op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from forgec.ir.graph import Graph, Node, Rewrite, Value
from forgec.ir.ops import Op
from forgec.passes.manager import Pass
from forgec.targets.base import Target

__all__ = ["Fusion", "FusionPass", "Match", "Step", "find", "fuse"]


@dataclass(frozen=True)
class Step:
    """One node of a pattern: the type of its op and a variable per input and output.

    A variable stands for one value wherever it occurs in the pattern. An input "?b" may be absent, a last
    input or output "*rest" stands for all that are left. ``outputs`` defaults to the label. A step to
    ``keep`` must be there, but stays as it is: it reads what the fused node makes.
    """

    label: str
    op: type[Op]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    keep: bool = False

    @property
    def results(self) -> tuple[str, ...]:
        return self.outputs or (self.label,)


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: the node of each label, the names of the values of each variable.

    An absent optional variable has no entry in ``names``.
    """

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    kept: frozenset[str] = frozenset()

    def op(self, label: str) -> Op:
        """The op matched by a label."""
        return self.nodes[label].op

    @property
    def fused(self) -> list[Node]:
        """The nodes that become one."""
        return [node for label, node in self.nodes.items() if label not in self.kept]

    def has(self, variable: str) -> bool:
        """Whether an optional variable is bound."""
        return bool(self.names.get(variable))

    def value(self, variable: str) -> Value:
        """The value of a variable that stands for exactly one."""
        (name,) = self.names[variable]
        return self.graph.values[name]


@dataclass(frozen=True)
class Fusion:
    """A row of a fusion table.

    ``pattern``: steps; each after the first must share a variable with those before it.
    ``inputs``, ``results``: the variables that become inputs and outputs of the fused node, in order; inputs
    that are absent are left out, and every other value made inside the match disappears.
    ``op``: the fused op of a match. ``guard``: whether the match is allowed.
    ``node``: the name of the fused node, without its layer's prefix; or "=label" to keep that node's name.
    """

    pattern: tuple[Step, ...]
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    op: Callable[[Match], Op]
    node: str
    guard: Callable[[Match], bool] = lambda match: True


@dataclass(frozen=True)
class FusionPass(Pass):
    """A pass that applies the rows of ``table`` in order, each to everything that it matches."""

    name: str
    table: tuple[Fusion, ...]

    def run(self, graph: Graph, target: Target) -> Graph:
        return fuse(graph, self.table)


def fuse(graph: Graph, table: tuple[Fusion, ...]) -> Graph:
    """Apply rows in order, each to everything that it matches."""
    for row in table:
        rewrites = [_rewrite(row, match) for match in find(graph, row)]
        graph = graph.replace(rewrites) if rewrites else graph
    return graph


def find(graph: Graph, row: Fusion) -> list[Match]:
    """All matches of a row that may be fused, none sharing a node with another, in topological order."""
    taken: set[str] = set()
    matches: list[Match] = []
    for node in graph.topo():
        candidates = _extend(Match(graph), row.pattern, [node], taken)
        match = next((found for found in candidates if _allowed(row, found)), None)
        if match is not None:
            matches.append(match)
            taken.update(found.name for found in match.fused)
    return matches


def _extend(match: Match, steps: tuple[Step, ...], nodes: list[Node], taken: set[str]) -> Iterator[Match]:
    """All ways to match the first of ``steps`` with one of ``nodes``, and then the others."""
    step, rest = steps[0], steps[1:]
    used = taken | {node.name for node in match.nodes.values()}
    for node in nodes:
        if node.name in used:
            continue
        for longer in _bind(match, step, node):
            if not rest:
                yield longer
            else:
                yield from _extend(longer, rest, _candidates(longer, rest[0]), taken)


def _candidates(match: Match, step: Step) -> list[Node]:
    """The nodes next to what is matched already that could be ``step``."""
    found: dict[str, Node] = {}
    for variable in step.results:
        for name in match.names.get(variable, ()):
            producer = match.graph.producer(name)
            if producer is not None:
                found[producer.name] = producer
    for variable in step.inputs:
        for name in match.names.get(variable, ()):
            found.update((user.name, user) for user in match.graph.users(name))
    return list(found.values())


def _bind(match: Match, step: Step, node: Node) -> Iterator[Match]:
    """``match`` with ``node`` as ``step``, in each order that a commutative op allows."""
    if type(node.op) is not step.op:
        return
    orders = [node.inputs]
    if node.op.commutative and node.inputs[0] != node.inputs[1]:
        orders.append(node.inputs[::-1])
    for inputs in orders:
        read, made = _pair(step.inputs, inputs), _pair(step.results, node.outputs)
        if read is None or made is None:
            continue
        names = dict(match.names)
        if all(names.setdefault(variable, values) == values for variable, values in read + made):
            kept = match.kept | {step.label} if step.keep else match.kept
            yield Match(match.graph, {**match.nodes, step.label: node}, names, kept)


def _pair(variables: tuple[str, ...], inputs: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]] | None:
    """The variables of a step with the values that they stand for; None when the numbers do not fit."""
    bound: list[tuple[str, tuple[str, ...]]] = []
    left = inputs
    for variable in variables:
        if variable.startswith("*"):
            bound.append((variable, left))
            left = ()
        elif left:
            bound.append((variable, left[:1]))
            left = left[1:]
        elif not variable.startswith("?"):
            return None
    return None if left else bound


def _allowed(row: Fusion, match: Match) -> bool:
    """The conditions of every fusion, then those of this row."""
    graph = match.graph
    members = {node.name for node in match.fused}
    results = {name for variable in row.results for name in match.names[variable]}
    made = {name for node in match.fused for name in node.outputs}
    inputs = {name for variable in row.inputs for name in match.names.get(variable, ())}
    for name in made - results:
        if name in inputs or name in graph.outputs:
            return False
        if any(user.name not in members for user in graph.users(name)):
            return False
    # The fused node needs all inputs before it makes any result, so no result may lead to an input.
    if graph.reaches(results, inputs, without=members):
        return False
    return row.guard(match)


def _rewrite(row: Fusion, match: Match) -> Rewrite:
    members = match.fused
    layer = members[0].layer
    if row.node.startswith("="):
        name = match.nodes[row.node[1:]].name
    else:
        name = row.node if layer is None else f"layer{layer}.{row.node}"
    inputs = tuple(name for variable in row.inputs for name in match.names.get(variable, ()))
    outputs = tuple(name for variable in row.results for name in match.names[variable])
    node = Node(name, row.op(match), inputs, outputs, layer)
    return Rewrite(tuple(member.name for member in members), (node,))
