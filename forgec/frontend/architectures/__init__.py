"""From an open GGUF file and its specification to a graph, one module per model family.

The tensor table and the spec go in, a verified graph of unfused ops comes out. A family is a function in a
module of this folder and a row of ``ARCHITECTURES``; nothing here reads weight data or knows a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from forgec.errors import UnsupportedModelError
from forgec.frontend.architectures import llama
from forgec.frontend.architectures.builders import TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir.graph import Graph

__all__ = ["ARCHITECTURES", "build_graph"]

ARCHITECTURES: Mapping[str, Callable[[TensorTable, ModelSpec], Graph]] = MappingProxyType(
    {
        "llama": llama.build,
    }
)


def build_graph(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of the model, of unfused ops only; the head is for one row.

    Raises UnsupportedModelError for an architecture, tensor or type that forgec cannot run, GGUFError for a
    missing tensor or a shape that contradicts the metadata.
    """
    build = ARCHITECTURES.get(spec.architecture)
    if build is None:
        raise UnsupportedModelError(
            f"architecture '{spec.architecture}' is not supported",
            f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    return build(gguf, spec)
