"""Graphs for the tests of IR, passes and reference: tiny models, imported from real GGUF files, and edits."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir.graph import Graph, Node, Rewrite, Value
from forgec.ir.ops import Op
from forgec.ir.shapes import infer
from tests.gguf_files import TinyModel


@dataclass(frozen=True)
class Imported:
    """A model's graph and its decoded tensors."""

    graph: Graph
    weights: Callable[[str], np.ndarray]


def imported(model: TinyModel, seed: int = 0) -> Imported:
    """Write the model with random weights, read it back and import it."""
    with tempfile.TemporaryDirectory() as folder:
        path = model.write(Path(folder) / "tiny.gguf", np.random.default_rng(seed))
        with open_gguf(path) as gguf:
            graph = build_graph(gguf, read_spec(gguf))
            arrays = {name: gguf.array(name) for name in gguf.tensors}
    return Imported(graph, arrays.__getitem__)


def random_model(rng: np.random.Generator, **changes: Any) -> TinyModel:
    """A llama of fresh odd shapes: grouped queries, partial rotation, tied or not."""
    kv_heads = int(rng.integers(1, 4))
    key_length = 2 * int(rng.integers(2, 8))
    rotated = 2 * int(rng.integers(1, key_length // 2 + 1))
    model = TinyModel(
        block_count=int(rng.integers(1, 4)),
        embedding_length=int(rng.integers(5, 60)),
        feed_forward_length=int(rng.integers(5, 90)),
        head_count=kv_heads * int(rng.integers(1, 5)),
        head_count_kv=kv_heads,
        key_length=key_length,
        vocab_size=int(rng.integers(259, 300)),
        tied=bool(rng.integers(2)),
        metadata={"llama.rope.dimension_count": rotated},
    )
    return dataclasses.replace(model, **changes)


@functools.cache
def _one_layer(tied: bool) -> Graph:
    return imported(TinyModel(block_count=1, tied=tied)).graph


def one_layer(tied: bool = False) -> Graph:
    """The smallest llama; a graph of its own for every call, so that tests may add to it."""
    return _one_layer(tied).replace()


def with_node(graph: Graph, name: str, op: Op, *inputs: str, layer: int | None = 0) -> Graph:
    """The graph with one more op, whose only output bears the node's name."""
    ((shape, dtype),) = infer(name, op, [graph.values[value] for value in inputs])
    new = graph.replace()
    new.add(Node(name, op, inputs, (name,), layer), Value(name, shape, dtype, layer=layer))
    return new


def with_inputs(graph: Graph, node: str, **changes: str) -> Graph:
    """The graph with other inputs, given by role, for one node."""
    old = graph.nodes[node]
    roles = dict(zip((role.rstrip("?") for role in old.op.input_names), old.inputs, strict=False))
    return edited(graph, dataclasses.replace(old, inputs=tuple((roles | changes).values())))


def with_op(graph: Graph, node: str, op: Op) -> Graph:
    """The graph with another op in one node."""
    return edited(graph, dataclasses.replace(graph.nodes[node], op=op))


def edited(graph: Graph, node: Node, *values: Value) -> Graph:
    """The graph with ``node`` in place of the one of its name."""
    return graph.replace([Rewrite((node.name,), (node,), values)])
