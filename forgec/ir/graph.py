"""The graph: values, nodes and the edges between them.

Nodes and values go in by name, checked for clashes; users, producers and a deterministic topological order
come out. networkx holds the edges behind it. Passes never change a graph in place: ``replace`` and
``restrict`` build new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import networkx as nx

from forgec.errors import VerifyError
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.frontend.rope import RopeSpec
from forgec.ir.ops import Op

if TYPE_CHECKING:
    from forgec.frontend.spec import ModelSpec

__all__ = ["Graph", "Node", "Rewrite", "Shape", "Value"]

Shape = tuple[int | str, ...]

VALUE_KINDS = ("input", "weight", "constant", "state", "temp")


@dataclass(frozen=True)
class Value:
    """One tensor of the graph, assigned once.

    ``shape`` mixes numbers with "rows" (tokens of the step) and "context" (cached positions). ``dtype`` is
    "f32", "i32" or, for weights, the GGUF type in lower case ("q4_1"). ``kind``:

    - "input": what the host writes for a step (the tokens),
    - "weight": a GGUF tensor, named by ``tensor``, or the rows from ``first_row`` on that the shape says,
    - "constant": made at compile time: the table of angles of ``rope`` (``tensor`` names its factors where
      the file has some),
    - "state": outlives the step (the KV cache). Version 0 is "kv.k.0"; an op that updates it makes
      "kv.k.0@1" in the same storage. "f32" is its mathematical type; how it is stored is the plan's choice,
    - "temp": computed and used within the step.

    ``layout`` is how a weight will lie in memory: "" until chosen, then "rows", "rows8" or "plain".
    """

    name: str
    shape: Shape
    dtype: str
    kind: str = "temp"
    tensor: str | None = None
    layer: int | None = None
    layout: str = ""
    first_row: int = 0
    rope: RopeSpec | None = None

    @property
    def root(self) -> str:
        """The name of the storage: that of a state without its version, any other name as it is."""
        return self.name.partition("@")[0] if self.kind == "state" else self.name

    @property
    def version(self) -> int:
        """How often a state has been updated before this value; 0 for everything else."""
        version = self.name.partition("@")[2]
        return int(version) if self.kind == "state" and version else 0

    def next_version(self) -> Value:
        """The value that an op makes when it updates this state."""
        return dataclasses.replace(self, name=f"{self.root}@{self.version + 1}")

    @property
    def type_text(self) -> str:
        """As in listings: "f32[rows, 576]"."""
        return f"{self.dtype}[{', '.join(str(extent) for extent in self.shape)}]"

    def nbytes(self, rows: int = 1, context: int = 1) -> int:
        """Bytes of the encoded tensor, without padding, for the given extents of the symbolic dimensions."""
        elements = 1
        for extent in self.shape:
            elements *= {"rows": rows, "context": context}[extent] if isinstance(extent, str) else extent
        return QUANT_BY_NAME[self.dtype.upper()].nbytes(elements)


@dataclass(frozen=True)
class Node:
    """One application of an op; ``inputs`` and ``outputs`` are names of values, in the op's order."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: int | None = None


@dataclass(frozen=True)
class Rewrite:
    """Nodes to take out, and what to put in at the place of the last of them.

    Values of the added nodes that already exist keep their name and users; only new ones are in ``values``.
    """

    remove: tuple[str, ...]
    add: tuple[Node, ...] = ()
    values: tuple[Value, ...] = ()


class Graph:
    """A model as one step computes it: ``spec``, values, nodes, and the names of the ``outputs``.

    Built with ``declare`` and ``add``; from then on read-only by convention.
    """

    def __init__(self, spec: ModelSpec, outputs: Sequence[str] = ()) -> None:
        self.spec = spec
        self.outputs: tuple[str, ...] = tuple(outputs)
        self._values: dict[str, Value] = {}
        self._nodes: dict[str, Node] = {}
        self._producer: dict[str, str] = {}
        # Vertices are ("value", name) and ("node", name): the two name spaces are separate.
        self._edges = nx.DiGraph()
        # Asked for once per node by passes and plan, and 17 ms for a model of 30 layers: kept until a change.
        self._order: tuple[Node, ...] | None = None
        self._positions: dict[str, int] = {}  # of the nodes in that order
        self._added: dict[str, int] = {}  # node -> how many were added before it

    # -- building

    def declare(self, value: Value) -> Value:
        """Add a value that no node produces yet (inputs, weights, constants, version 0 of a state).

        Raises VerifyError when the name is taken.
        """
        if value.name in self._values:
            raise VerifyError(f"value '{value.name}' is declared twice")
        self._values[value.name] = value
        self._edges.add_node(("value", value.name))
        return value

    def add(self, node: Node, *outputs: Value) -> Node:
        """Add a node; ``outputs`` declares those of its output values that do not exist yet.

        Raises VerifyError for a taken name, an unknown input, or an output that has a producer already.
        """
        if node.name in self._nodes:
            raise VerifyError(f"node '{node.name}' is added twice")
        for value in outputs:
            self.declare(value)
        for name in (*node.inputs, *node.outputs):
            if name not in self._values:
                raise VerifyError(f"node '{node.name}' refers to the unknown value '{name}'")
        for name in node.outputs:
            if name in self._producer:
                raise VerifyError(
                    f"value '{name}' is produced by node '{self._producer[name]}' and again by '{node.name}'"
                )
        vertex = ("node", node.name)
        self._order = None
        self._added[node.name] = len(self._nodes)
        self._nodes[node.name] = node
        self._edges.add_node(vertex)
        self._edges.add_edges_from((("value", name), vertex) for name in node.inputs)
        for name in node.outputs:
            self._producer[name] = node.name
            self._edges.add_edge(vertex, ("value", name))
        return node

    # -- reading

    @property
    def values(self) -> Mapping[str, Value]:
        """All values by name, in order of declaration."""
        return MappingProxyType(self._values)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """All nodes by name, in order of addition."""
        return MappingProxyType(self._nodes)

    def of_kind(self, kind: str) -> tuple[Value, ...]:
        """All values of one kind, in order of declaration."""
        return tuple(value for value in self._values.values() if value.kind == kind)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the host writes for a step."""
        return self.of_kind("input")

    def producer(self, value: str) -> Node | None:
        """The node that makes a value; None for inputs, weights, constants and version 0 of a state."""
        name = self._producer.get(value)
        return None if name is None else self._nodes[name]

    def users(self, value: str) -> tuple[Node, ...]:
        """The nodes that read a value, each once, in order of addition."""
        names = {name for _, name in self._edges.successors(("value", value))}
        return tuple(self._nodes[name] for name in sorted(names, key=self._added.__getitem__))

    def topo(self) -> tuple[Node, ...]:
        """All nodes, producers first; among the nodes that are ready, the one added first.

        Raises VerifyError when the graph has a cycle.
        """
        if self._order is None:
            self._order = self._sorted()
            self._positions = {node.name: index for index, node in enumerate(self._order)}
        return self._order

    def _sorted(self) -> tuple[Node, ...]:
        rank = {("node", name): index for index, name in enumerate(self._nodes)}
        # Values carry no order of their own: ready at once, they never hold up a node.
        order = nx.lexicographical_topological_sort(self._edges, key=lambda vertex: rank.get(vertex, -1))
        try:
            return tuple(self._nodes[name] for kind, name in order if kind == "node")
        except nx.NetworkXUnfeasible as error:
            cycle = [name for (kind, name), _ in nx.find_cycle(self._edges) if kind == "node"]
            raise VerifyError(f"nodes {_quoted(cycle)} form a cycle") from error

    def __iter__(self) -> Iterator[Node]:
        """The nodes in topological order."""
        return iter(self.topo())

    def reaches(
        self, sources: Iterable[str], targets: Collection[str], without: Collection[str] = ()
    ) -> bool:
        """Whether a path leads from one of the values ``sources`` to one of ``targets`` (itself included),
        not counting paths through the nodes ``without``."""
        self.topo()
        # No path to a target leads through a node behind its producer.
        last = max(
            (self._positions[self._producer[name]] for name in targets if name in self._producer), default=-1
        )
        blocked = {("node", name) for name in without}
        stack = [("value", name) for name in sources]
        seen = blocked.union(stack)
        while stack:
            kind, name = vertex = stack.pop()
            if kind == "value" and name in targets:
                return True
            if kind == "node" and self._positions[name] > last:
                continue
            fresh = [after for after in self._edges.successors(vertex) if after not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return False

    # -- new graphs from old ones

    def replace(self, rewrites: Sequence[Rewrite] = (), values: Sequence[Value] = ()) -> Graph:
        """A new graph with all ``rewrites`` done and each of ``values`` put in place of the one of its name.

        Produced values that lose their producer disappear; raises VerifyError when one is still used, when a
        rewrite names an unknown node, or when two rewrites take the same node.
        """
        place: dict[str, tuple[Node, ...]] = {}
        removed: set[str] = set()
        order = {name: index for index, name in enumerate(self._nodes)}
        for rewrite in rewrites:
            for name in rewrite.remove:
                if name not in self._nodes:
                    raise VerifyError(f"a rewrite removes the unknown node '{name}'")
                if name in removed:
                    raise VerifyError(f"two rewrites remove node '{name}'")
                removed.add(name)
            place[max(rewrite.remove, key=order.__getitem__)] = rewrite.add
        nodes: list[Node] = []
        for name, node in self._nodes.items():
            nodes.extend(place.get(name, ()) if name in removed else (node,))
        table = dict(self._values)
        for value in (*(value for rewrite in rewrites for value in rewrite.values), *values):
            table[value.name] = value
        produced = {name for node in nodes for name in node.outputs}
        lost = self._producer.keys() - produced
        return self._rebuild(nodes, [value for name, value in table.items() if name not in lost])

    def restrict(self, nodes: Collection[str], values: Collection[str]) -> Graph:
        """A new graph of only these nodes and values. Raises VerifyError when a node loses a value."""
        kept_nodes = [node for name, node in self._nodes.items() if name in nodes]
        return self._rebuild(kept_nodes, [value for name, value in self._values.items() if name in values])

    def _rebuild(self, nodes: Iterable[Node], values: Iterable[Value]) -> Graph:
        graph = Graph(self.spec, self.outputs)
        for value in values:
            graph.declare(value)
        for node in nodes:
            graph.add(node)
        return graph


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
