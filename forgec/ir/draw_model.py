"""What is drawn, before how: boxes, edges and groups of a graph in which alike layers are folded.

A graph goes in, a ``Drawing`` of plain strings and indices comes out. Positions and colours are not its
business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Value
from forgec.ir.printer import bytes_text, op_text
from forgec.ir.repeats import Section, sections

__all__ = ["Box", "Drawing", "Edge", "Group", "Part", "drawing"]


@dataclass(frozen=True)
class Part:
    """A strip of a box: what it does, and the ``kind`` of work that decides its colour."""

    text: str
    kind: str


@dataclass(frozen=True)
class Box:
    """``parts`` from top to bottom, then ``details`` in small print; ``group`` is an index or None.

    ``kind`` is "op" or "io" (what goes into and out of the graph).
    """

    parts: tuple[Part, ...]
    details: tuple[str, ...]
    tooltip: str
    group: int | None
    kind: str = "op"


@dataclass(frozen=True)
class Edge:
    """From one box to another, by index; ``tooltip`` names the values that it carries."""

    source: int
    target: int
    tooltip: str


@dataclass(frozen=True)
class Group:
    """A run of alike layers, drawn once: "layers 0–29 · ×30"."""

    title: str
    count: int


@dataclass(frozen=True)
class Drawing:
    """Boxes in topological order."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...]


_KINDS: dict[type[ops.Op], str] = {
    ops.Embedding: "lookup",
    ops.RMSNorm: "norm",
    ops.LayerNorm: "norm",
    ops.HeadNorm: "norm",
    ops.NormAdd: "norm",
    ops.Linear: "linear",
    ops.Rope: "rope",
    ops.KVAppend: "cache",
    ops.QK: "attention",
    ops.Scale: "attention",
    ops.SoftCap: "attention",
    ops.Mask: "attention",
    ops.Softmax: "attention",
    ops.WeightedV: "attention",
    ops.Attention: "attention",
    ops.SelectRow: "lookup",
    ops.Sample: "sample",
}

_TITLES: dict[type[ops.Op], str] = {
    ops.HeadNorm: "Norm of heads",
    ops.KVAppend: "KV append",
    ops.NormAdd: "Norm + residual",
    ops.SoftCap: "Soft cap",
    ops.WeightedV: "Weighted V",
}

_PROLOGUES: dict[type[ops.Prologue], Part] = {
    ops.RMSNormPrologue: Part("RMSNorm", "norm"),
    ops.LayerNormPrologue: Part("LayerNorm", "norm"),
}
_GATES: dict[type[ops.Op], str] = {ops.SiLU: "SwiGLU", ops.GELU: "GeGLU"}


def drawing(graph: Graph) -> Drawing:
    """The folded picture of a graph."""
    folded = sections(graph)
    groups = [section for section in folded if section.layers is not None]
    # Every node of a folded layer is drawn by the box of its place in the first layer of the run.
    box_of: dict[str, int] = {}
    boxes: list[Box] = []
    for value in graph.inputs:
        box_of[value.name] = len(boxes)
        boxes.append(_io_box(value, "input"))
    first_op = len(boxes)
    shown: list[Node] = []
    for section in folded:
        group = groups.index(section) if section in groups else None
        for position, node in enumerate(section.nodes):
            for block in section.blocks:
                box_of.update((name, len(boxes)) for name in block[position].outputs)
            boxes.append(_op_box(graph, node, group))
            shown.append(node)
    edges: dict[tuple[int, int], list[str]] = {}
    for index, node in enumerate(shown, start=first_op):
        for name in dict.fromkeys(node.inputs):
            if name in box_of:
                edges.setdefault((box_of[name], index), []).append(graph.values[name].type_text)
    for name in graph.outputs:
        if name in box_of:
            edges[box_of[name], len(boxes)] = [graph.values[name].type_text]
            boxes.append(_io_box(graph.values[name], "output"))
    return Drawing(
        tuple(boxes),
        tuple(Edge(source, target, ", ".join(types)) for (source, target), types in edges.items()),
        tuple(_group(section) for section in groups),
    )


def _group(section: Section) -> Group:
    layers = section.layers or ()
    if len(layers) == 1:
        return Group(f"layer {layers[0]}", 1)
    return Group(f"layers {layers[0]}–{layers[-1]} · ×{len(layers)}", len(layers))


def _io_box(value: Value, role: str) -> Box:
    return Box(
        (Part(value.name, "io"),), (value.type_text,), f"{role} {value.name}: {value.type_text}", None, "io"
    )


def _op_box(graph: Graph, node: Node, group: int | None) -> Box:
    weights = [graph.values[name] for name in node.inputs if graph.values[name].kind == "weight"]
    name = re.sub(r"^layer\d+\.", "", node.name)
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    details = [name, *(_weight_text(weight, named=len(matrices) > 1) for weight in matrices)]
    return Box(_parts(node.op), tuple(details), _tooltip(graph, node), group)


def _weight_text(weight: Value, named: bool) -> str:
    shape = "×".join(str(extent) for extent in weight.shape)
    name = re.sub(r"^blk\.\d+\.|\.weight$", "", weight.name) + " · " if named else ""
    return f"{name}{weight.dtype} · {shape} · {bytes_text(weight.nbytes())}"


def _parts(op: ops.Op) -> tuple[Part, ...]:
    if not isinstance(op, ops.FusedLinear):
        return (Part(_TITLES.get(type(op), type(op).__name__), _KINDS.get(type(op), "elementwise")),)
    parts = [Part("Linear" if op.segments == 1 else f"Linear ×{op.segments}", "linear")]
    if type(op.prologue) in _PROLOGUES:
        parts.insert(0, _PROLOGUES[type(op.prologue)])
    return (*parts, *_epilogue(op.epilogue))


def _epilogue(epilogue: ops.Epilogue) -> tuple[Part, ...]:
    if isinstance(epilogue, ops.RopeKV):
        steps = ("QK-norm" if epilogue.norm else "", "RoPE" if epilogue.dims else "", "KV append")
        return (Part(", ".join(filter(None, steps)), "rope"),)
    if isinstance(epilogue, ops.Gated):
        activation = type(epilogue.activation)
        return (Part(_GATES.get(activation, f"{activation.__name__} gate"), "elementwise"),)
    if isinstance(epilogue, ops.NormResidual):
        return Part("RMSNorm", "norm"), Part("+ residual", "elementwise")
    assert isinstance(epilogue, (ops.Store, ops.Residual))
    then = (Part(type(epilogue.then).__name__, "elementwise"),) if epilogue.then else ()
    return (*then, Part("+ residual", "elementwise")) if isinstance(epilogue, ops.Residual) else then


def _tooltip(graph: Graph, node: Node) -> str:
    """Name, op with parameters, and every input and output with role, type and size."""
    lines = [node.name, op_text(node.op)]
    for roles, names, arrow in (
        (node.op.input_names, node.inputs, "<-"),
        (node.op.output_names, node.outputs, "->"),
    ):
        for role, name in zip(roles, names, strict=False):
            value = graph.values[name]
            lines.append(f"{arrow} {role.rstrip('?')}: {name} {value.type_text}, {_size_text(value)}")
    return "\n".join(lines)


def _size_text(value: Value) -> str:
    symbols = [extent for extent in value.shape if isinstance(extent, str)]
    per = {"rows": "token", "context": "cached position"}
    suffix = f" per {' and '.join(per[symbol] for symbol in symbols)}" if symbols else ""
    layout = f", {value.layout}" if value.layout else ""
    return f"{bytes_text(value.nbytes())}{suffix}{layout}"
