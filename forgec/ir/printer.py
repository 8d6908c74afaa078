"""Graphs and ops as text: one line per node, stable enough to compare two of them with ``diff``.

A graph goes in, text comes out; alike layers can be shown once. Nothing is read back from it.
"""

from __future__ import annotations

import dataclasses

from forgec.ir.graph import Graph, Node, Value
from forgec.ir.ops import FusedLinear
from forgec.ir.repeats import sections

__all__ = ["bytes_text", "format_graph", "format_node", "op_text"]


def format_graph(graph: Graph, collapse: bool = False) -> str:
    """The whole graph; with ``collapse`` only the first of neighbouring layers that are alike."""
    spec = graph.spec
    lines = [
        f"graph {spec.architecture} '{spec.name}'",
        f"  {spec.block_count} layers, embedding {spec.embedding_length}, "
        f"feed-forward {spec.feed_forward_length}, heads {spec.head_count} ({spec.head_count_kv} KV) of "
        f"{spec.key_length}, vocabulary {spec.vocab_size}, context {spec.context_length}",
        *(
            f"  {value.kind} {_declaration(value)}"
            for kind in ("input", "constant")
            for value in graph.of_kind(kind)
        ),
        f"  output {', '.join(graph.outputs)}",
    ]
    for section in sections(graph):
        shown = section.blocks[:1] if collapse else section.blocks
        for block, layer in zip(shown, section.layers or (None,), strict=False):
            lines += ["", *_heading(layer, section.layers if collapse else None)]
            lines += [format_node(graph, node) for node in block]
    return "\n".join(lines) + "\n"


def _heading(layer: int | None, alike: tuple[int, ...] | None) -> list[str]:
    if layer is None:
        return []
    if alike is None or len(alike) == 1:
        return [f"# layer {layer}"]
    return [f"# layer {layer}, and alike up to layer {alike[-1]}: x{len(alike)}"]


def format_node(graph: Graph, node: Node) -> str:
    """``outputs: types = name Op(parameters)(inputs)``; the name only where it is not that of the output.

    Weights are followed by type, shape and layout, states and temps stand alone.
    """
    outputs = ", ".join(_declaration(graph.values[name]) for name in node.outputs)
    name = "" if node.outputs == (node.name,) else f"{node.name} "
    inputs = ", ".join(
        _declaration(graph.values[name]) if graph.values[name].kind == "weight" else name
        for name in node.inputs
    )
    return f"{outputs} = {name}{op_text(node.op)}({inputs})"


def _declaration(value: Value) -> str:
    made_of = f" from {value.tensor}" if value.kind == "constant" and value.tensor else ""
    return f"{value.name}: {value.type_text}{' ' if value.layout else ''}{value.layout}{made_of}"


def op_text(op: object) -> str:
    """ "RMSNorm(eps=1e-05)": the class and its parameters; a FusedLinear as what it fuses."""
    if isinstance(op, FusedLinear):
        bias = " + bias" if op.bias else ""
        parts = (_part(op.prologue), f"{op.segments} x Linear{bias}", _part(op.epilogue))
        return f"FusedLinear[{' | '.join(parts)}]"
    return _with_fields(type(op).__name__, op)


def _part(part: object) -> str:
    """A prologue or epilogue: "rmsnorm(eps=1e-05)", "store"; without parameters no parentheses."""
    name = {
        "NoPrologue": "none",
        "RMSNormPrologue": "rmsnorm",
        "LayerNormPrologue": "layernorm",
        "NormResidual": "norm_residual",
        "RopeKV": "rope_kv",
    }
    return _with_fields(name.get(type(part).__name__, type(part).__name__.lower()), part)


def _with_fields(label: str, part: object) -> str:
    if not dataclasses.is_dataclass(part):
        return label
    fields = (
        (field.name, getattr(part, field.name))
        for field in dataclasses.fields(part)
        if getattr(part, field.name) or field.default is dataclasses.MISSING  # what is not there says nothing
    )
    shown = [f"{name}={_text(value)}" for name, value in fields]
    return f"{label}({', '.join(shown)})" if shown else label


def _text(value: object) -> str:
    if dataclasses.is_dataclass(value):
        return _with_fields(type(value).__name__, value)
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def bytes_text(count: int) -> str:
    """Bytes in decimal units with three digits: "30.1 MB"."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":
            break
        amount /= 1000.0
    return f"{amount:.3g} {unit}" if amount < 999.5 else f"{amount:.0f} {unit}"
