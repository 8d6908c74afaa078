"""Runs a graph node by node with the NumPy ops, before or after any pass.

A graph, a function from tensor name to array, and tokens go in; the outputs and the new state come out. It
knows nothing of layouts, buffers or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import UsageError
from forgec.ir.graph import Graph, Value
from forgec.reference.ops import Array, Step, evaluate
from forgec.reference.sampling import SamplerSettings

__all__ = ["run"]


def run(
    graph: Graph,
    weights: Callable[[str], npt.NDArray[Any]],
    tokens: Sequence[int] | npt.NDArray[np.integer],
    position: int = 0,
    state: Mapping[str, Array] | None = None,
    dtype: npt.DTypeLike = np.float64,
    *,
    row: int | None = None,
    sampler: SamplerSettings | None = None,
    index: int = 0,
    keep: Collection[str] = (),
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Compute one step of ``tokens`` (i32[rows]) at ``position`` and after.

    ``weights`` gives the decoded array of a GGUF tensor (as ``GGUFFile.array``). ``state`` is what an earlier
    call returned, None before the first token. ``row`` is the row whose logits are wanted (default: the
    last), ``index`` how many tokens were sampled before. Returns (outputs, new state): the graph's outputs
    and the values named in ``keep`` by name; the caches by storage name ("kv.k.0"),
    [kv_heads, position + rows, head_length].
    Raises UsageError for tokens, a row or a state that cannot be meant.
    """
    dtype = np.dtype(dtype)
    ids = np.asarray(tokens, np.int32)
    row = len(ids) - 1 if row is None and ids.ndim == 1 else row
    _check(graph, ids, position, row)
    step = Step(position, int(row or 0), sampler or SamplerSettings(), index)
    table_rows = position + len(ids)
    found: dict[str, Array] = {value.name: ids for value in graph.inputs}
    for value in graph.of_kind("constant"):
        found[value.name] = _constant(graph, value, weights, table_rows).astype(dtype)
    for value in graph.of_kind("state"):
        if value.version == 0:
            found[value.name] = _cache(value, state, position, dtype)
    wanted = {*graph.outputs, *keep}
    uses = {name: len(graph.users(name)) for name in graph.values}
    for node in graph.topo():
        inputs = [
            _weight(graph.values[name], weights, dtype) if name not in found else found[name]
            for name in node.inputs
        ]
        found.update(zip(node.outputs, evaluate(node.op, inputs, step), strict=True))
        for name in set(node.inputs):  # let go of what nobody reads any more
            uses[name] -= 1
            if uses[name] == 0 and graph.values[name].kind == "temp" and name not in wanted:
                del found[name]
    last = {value.root: value for value in sorted(graph.of_kind("state"), key=lambda value: value.version)}
    return {name: found[name] for name in sorted(wanted)}, {root: found[v.name] for root, v in last.items()}


def _check(graph: Graph, ids: npt.NDArray[np.int32], position: int, row: int | None) -> None:
    if ids.ndim != 1 or len(ids) == 0:
        raise UsageError(f"tokens have shape {list(ids.shape)}; expected one row of at least one id")
    if ids.min() < 0 or ids.max() >= graph.spec.vocab_size:
        raise UsageError(
            f"token ids must lie from 0 to {graph.spec.vocab_size - 1}, found {ids.min()} to {ids.max()}"
        )
    if position < 0:
        raise UsageError(f"position is {position}; expected 0 or more")
    if row is None or not 0 <= row < len(ids):
        raise UsageError(f"row is {row}; expected 0 to {len(ids) - 1}")


def _constant(
    graph: Graph, value: Value, weights: Callable[[str], npt.NDArray[Any]], rows: int
) -> npt.NDArray[np.float32]:
    if value.rope is None:
        raise UsageError(f"constant '{value.name}' is not known to the reference")
    factors = value.rope.factors_tensor(graph.spec.context_length)
    return value.rope.table(rows, None if factors is None else weights(factors))


def _cache(value: Value, state: Mapping[str, Array] | None, position: int, dtype: np.dtype[Any]) -> Array:
    heads, _, length = (int(extent) if isinstance(extent, int) else 0 for extent in value.shape)
    shape = (heads, position, length)
    if state is None and position == 0:
        return np.zeros(shape, dtype)
    cache = None if state is None else state.get(value.name)
    if cache is None:
        raise UsageError(f"state '{value.name}' is missing, but the step begins at position {position}")
    if (cache.shape[0], cache.shape[2]) != (heads, length) or cache.shape[1] < position:
        raise UsageError(f"state '{value.name}' has shape {list(cache.shape)}; expected {list(shape)}")
    return cache[:, :position].astype(dtype)


def _weight(value: Value, weights: Callable[[str], npt.NDArray[Any]], dtype: np.dtype[Any]) -> Array:
    array = weights(value.tensor or value.name)
    if isinstance(value.shape[0], int):
        array = array[value.first_row : value.first_row + value.shape[0]]
    if array.shape != value.shape:
        raise UsageError(f"weight '{value.name}' has shape {list(array.shape)}; expected {list(value.shape)}")
    return array.astype(dtype)
