"""Where every weight lies in weights.bin: offsets of tensors, and the compile-time constants.

Graph values come in; packed tensors with absolute offsets go out. The bytes themselves are written by
``package.weights``.
"""

from __future__ import annotations

from forgec.errors import VerifyError
from forgec.ir.graph import Graph, Value
from forgec.plan.layouts import matrix_bytes
from forgec.plan.memory import align
from forgec.plan.program import PackedTensor

__all__ = ["TENSOR_ALIGNMENT", "place_weights"]

#: Every tensor starts on a page, so that it can be mapped or uploaded on its own.
TENSOR_ALIGNMENT = 4096


def place_weights(graph: Graph, context: int) -> tuple[dict[str, PackedTensor], int]:
    """Packed tensor of every weight and constant that the graph uses, in graph order, and the size in bytes.

    ``context`` stands for the symbolic dimension of that name (the RoPE table has a row per position).
    """
    placed: dict[str, PackedTensor] = {}
    at = 0
    for value in graph.values.values():
        if value.kind not in ("weight", "constant") or not graph.users(value.name):
            continue
        tensor = _place(value, at, context)
        placed[value.name] = tensor
        at = align(tensor.offset + tensor.bytes, TENSOR_ALIGNMENT)
    return placed, at


def _place(value: Value, at: int, context: int) -> PackedTensor:
    """One value from byte ``at`` on."""
    rows, cols = _matrix_shape(value, context)
    layout = "plain" if value.kind == "constant" else value.layout
    size = 4 * rows * cols if layout == "plain" else matrix_bytes(value.dtype, layout, rows, cols)
    source = "" if value.kind == "constant" else value.tensor or ""
    return PackedTensor(
        value.name, source, value.dtype, layout, rows, cols, at, size, value.first_row, value.rope
    )


def _matrix_shape(value: Value, context: int) -> tuple[int, int]:
    """(rows, cols) of a weight; vectors are one row, higher ranks fold into the rows."""
    sizes = []
    for size in value.shape:
        size = context if size == "context" else size
        if not isinstance(size, int):
            raise VerifyError(f"weight '{value.name}' has the symbolic dimension '{size}'")
        sizes.append(size)
    cols = sizes[-1]
    rows = 1
    for size in sizes[:-1]:
        rows *= size
    return rows, cols
