"""What the stages cannot do, asked of a graph before any of it is lowered.

A graph goes in and nothing comes out, or one error that names the tensor or the number at fault. Limits of a
target's memory are not checked here.
"""

from __future__ import annotations

from forgec.errors import UnsupportedModelError
from forgec.ir.graph import Graph
from forgec.plan.layouts import block_elements

__all__ = ["HEAD_LENGTH_MULTIPLE", "check_limits"]

#: Elements of a head that attention reads at a time from the KV cache: 8 bytes of f16, 16 of f32.
HEAD_LENGTH_MULTIPLE = 4


def check_limits(graph: Graph) -> None:
    """Raise UnsupportedModelError for a matrix or a head whose length no stage can read."""
    for value in graph.of_kind("weight"):
        if len(value.shape) < 2 or not isinstance(value.shape[-1], int):
            continue
        cols, step = value.shape[-1], block_elements(value.dtype)
        if cols % step:
            raise UnsupportedModelError(
                f"tensor '{value.name}' has {cols} columns; expected a multiple of {step}",
                "The kernels read that many weights at a time; the model cannot be compiled.",
            )
    lengths = {value.shape[-1] for value in graph.of_kind("state")}
    for length in sorted(n for n in lengths if isinstance(n, int)):
        if length % HEAD_LENGTH_MULTIPLE:
            raise UnsupportedModelError(
                f"the attention heads have a length of {length}; expected a multiple of "
                f"{HEAD_LENGTH_MULTIPLE}",
                "The kernels read that many elements at a time; the model cannot be compiled.",
            )
