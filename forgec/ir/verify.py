"""What every pass may assume and must leave: the invariants of a graph.

A graph goes in and comes back unchanged, or a ``VerifyError`` names the node or value, what was expected and
what was found. It never repairs anything.
"""

from __future__ import annotations

from forgec.errors import VerifyError
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.ir.graph import VALUE_KINDS, Graph, Node, Value
from forgec.ir.shapes import infer

__all__ = ["LAYOUTS", "verify"]

LAYOUTS = ("", "rows", "rows8", "plain")
SYMBOLS = ("rows", "context")


def verify(graph: Graph) -> Graph:
    """Check all invariants and return ``graph``.

    - Values: known kind, dtype, extents and layout; weights name their tensor; temps and updated states
      have a producer, everything else has none.
    - Nodes: no cycle, right number of inputs and outputs, inferred shapes and dtypes equal the declared ones.
    - States: versions follow each other without gap or fork, and only the updating node reads an old version,
      because all versions share their storage.
    - Outputs exist and are listed once.

    Raises VerifyError.
    """
    for value in graph.values.values():
        _verify_value(graph, value)
    for node in graph.topo():
        _verify_node(graph, node)
    for value in graph.of_kind("state"):
        _verify_state(graph, value)
    _verify_outputs(graph)
    return graph


def _verify_value(graph: Graph, value: Value) -> None:
    where = f"value '{value.name}'"
    if value.kind not in VALUE_KINDS:
        raise VerifyError(f"{where}: expected a kind of {'/'.join(VALUE_KINDS)}, found '{value.kind}'")
    if value.dtype.upper() not in QUANT_BY_NAME:
        raise VerifyError(f"{where}: unknown dtype '{value.dtype}'")
    if not value.shape:
        raise VerifyError(f"{where}: expected at least one dimension, found none")
    for extent in value.shape:
        if extent not in SYMBOLS and not (isinstance(extent, int) and extent > 0):
            raise VerifyError(f"{where}: expected extents above 0 or {'/'.join(SYMBOLS)}, found '{extent}'")
    if value.kind == "weight" and not value.tensor:
        raise VerifyError(f"{where}: a weight must name its GGUF tensor")
    if value.layout not in LAYOUTS or (value.layout and value.kind != "weight"):
        raise VerifyError(f"{where}: layout '{value.layout}' is not one for a value of kind '{value.kind}'")
    _verify_layer(graph, where, value.layer)
    made = value.kind == "temp" or (value.kind == "state" and value.version > 0)
    producer = graph.producer(value.name)
    if made and producer is None:
        raise VerifyError(f"{where}: no node produces it")
    if not made and producer is not None:
        raise VerifyError(f"{where}: node '{producer.name}' produces a value of kind '{value.kind}'")


def _verify_layer(graph: Graph, where: str, layer: int | None) -> None:
    count = graph.spec.block_count
    if layer is not None and not 0 <= layer < count:
        raise VerifyError(f"{where}: expected a layer from 0 to {count - 1}, found {layer}")


def _verify_node(graph: Graph, node: Node) -> None:
    where = f"node '{node.name}'"
    _verify_layer(graph, where, node.layer)
    types = infer(node.name, node.op, [graph.values[name] for name in node.inputs])
    names = node.op.output_names
    if len(node.outputs) != len(names):
        raise VerifyError(
            f"{where}: {type(node.op).__name__} makes {len(names)} outputs ({', '.join(names)}), "
            f"found {len(node.outputs)}"
        )
    for name, (shape, dtype) in zip(node.outputs, types, strict=True):
        value = graph.values[name]
        if (value.shape, value.dtype) != (shape, dtype):
            expected = f"{dtype}[{', '.join(str(extent) for extent in shape)}]"
            raise VerifyError(f"{where}: expected output '{name}' of {expected}, found {value.type_text}")
    _verify_update(graph, node)


def _verify_update(graph: Graph, node: Node) -> None:
    """The states that a node makes must be the next versions of states that it reads."""
    read = {
        graph.values[name].next_version().name for name in node.inputs if graph.values[name].kind == "state"
    }
    for name in node.outputs:
        if graph.values[name].kind == "state" and name not in read:
            raise VerifyError(
                f"node '{node.name}': makes state '{name}' without reading the version before it"
            )


def _verify_state(graph: Graph, value: Value) -> None:
    successor = value.next_version().name
    updater = graph.producer(successor) if successor in graph.values else None
    if updater is None:
        return
    for user in graph.users(value.name):
        if user.name != updater.name:
            raise VerifyError(
                f"node '{user.name}': reads state '{value.name}', which node '{updater.name}' overwrites; "
                f"expected '{successor}' or later"
            )


def _verify_outputs(graph: Graph) -> None:
    for index, name in enumerate(graph.outputs):
        if name not in graph.values:
            raise VerifyError(f"output '{name}' is not a value of the graph")
        if name in graph.outputs[:index]:
            raise VerifyError(f"output '{name}' is listed twice")
