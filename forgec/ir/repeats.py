"""Finds layers that are alike, so that listings and drawings show one of them.

A graph goes in, its nodes in topological order come out in sections: those outside of any layer, and runs of
consecutive layers that differ in nothing but names. The graph is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from forgec.ir.graph import Graph, Node
from forgec.ir.ops import Op

__all__ = ["Section", "sections"]

_Signature = tuple[tuple[str, Op, tuple[object, ...], int], ...]


@dataclass(frozen=True)
class Section:
    """``blocks``: one tuple of nodes per layer, equal but for names, in the same order.

    ``layers`` are the numbers of these layers, None for nodes outside of layers (then there is one block).
    """

    blocks: tuple[tuple[Node, ...], ...]
    layers: tuple[int, ...] | None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The first block, which stands for all."""
        return self.blocks[0]


def sections(graph: Graph) -> tuple[Section, ...]:
    """All nodes in topological order; neighbouring layers that are alike share a section."""
    found: list[Section] = []
    last: _Signature | None = None
    for layer, block in _blocks(graph):
        signature = None if layer is None else _signature(graph, layer, block)
        before = found[-1] if found else None
        if before is not None and before.layers is not None and layer is not None and signature == last:
            found[-1] = Section((*before.blocks, block), (*before.layers, layer))
        else:
            found.append(Section((block,), None if layer is None else (layer,)))
        last = signature
    return tuple(found)


def _blocks(graph: Graph) -> Iterator[tuple[int | None, tuple[Node, ...]]]:
    for layer, nodes in groupby(graph.topo(), key=lambda node: node.layer):
        yield layer, tuple(nodes)


def _signature(graph: Graph, layer: int, block: tuple[Node, ...]) -> _Signature:
    """What must be equal for two layers to be alike: names without the layer, ops, and how they connect.

    Values made in the layer count by where they are made, values from before by their first use.
    """
    known: dict[str, object] = {}
    rows = []
    for node in block:
        for name in node.inputs:
            value = graph.values[name]
            if name in known:
                continue
            if value.kind == "temp":
                known[name] = ("from before", len(known), value.type_text)
            elif value.layer == layer:
                known[name] = (value.kind, value.version, value.type_text, value.layout)
            else:
                known[name] = (name, value.type_text, value.layout)
        short = node.name.removeprefix(f"layer{layer}.")
        rows.append((short, node.op, tuple(known[name] for name in node.inputs), len(node.outputs)))
        known.update((name, (short, position)) for position, name in enumerate(node.outputs))
    return tuple(rows)
