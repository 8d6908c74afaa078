"""Runs passes one after the other, verifies after each, and tells one callback about it.

A graph, a target and a tuple of passes go in, the last graph comes out. Printing, timing and dumping belong
to the callback; nothing here knows any particular pass.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forgec.errors import VerifyError
from forgec.ir.graph import Graph
from forgec.ir.verify import verify
from forgec.targets.base import Target

__all__ = ["Pass", "PassResult", "run_passes"]


class Pass(ABC):
    """A step from graph to graph: a frozen dataclass with a ``name``, whose docstring draws before and after.

    ``run`` may assume a verified graph, must leave one, and never changes its argument.
    """

    name: str

    @abstractmethod
    def run(self, graph: Graph, target: Target) -> Graph:
        """The graph after the pass; the same object where there was nothing to do is allowed."""


@dataclass(frozen=True)
class PassResult:
    """What the callback sees: ``index`` 0 is the imported graph (name "import"), 1 the first pass, ..."""

    index: int
    name: str
    graph: Graph
    seconds: float


def run_passes(
    graph: Graph,
    target: Target,
    passes: Sequence[Pass],
    after: Callable[[PassResult], None] | None = None,
) -> Graph:
    """Run ``passes`` in order; ``after`` is called with the import and after every verified pass.

    Raises VerifyError, naming the pass, when one leaves an invalid graph.
    """
    report = after or (lambda result: None)
    verify(graph)
    report(PassResult(0, "import", graph, 0.0))
    for index, step in enumerate(passes, start=1):
        start = time.perf_counter()
        try:
            result = step.run(graph, target)
            graph = result if result is graph else verify(result)
        except VerifyError as error:
            raise VerifyError(
                f"after pass '{step.name}': {error.message}",
                error.hint or "This is a defect of forgec; please report it.",
            ) from error
        report(PassResult(index, step.name, graph, time.perf_counter() - start))
    return graph
