"""Times candidate kernels on the device of a loaded package.

A candidate takes the place of its kernel in every layer of one token, as a graph; before each replay the
last-level cache is overwritten, so every layer's weights come from memory. Results are data; nothing here
writes files.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgec.errors import DeviceError
from forgec.tune.groups import Candidate, Group

__all__ = ["Timed", "time_groups"]

#: Bytes written to push everything else out of the last-level cache: several times the largest there is.
FLUSH_BYTES = 512 << 20
#: A candidate that takes this many times as long as the best in the first round is not timed again.
HOPELESS = 1.5


@dataclass(frozen=True)
class Timed:
    """A group with the median seconds of one launch of each candidate, in their order."""

    group: Group
    seconds: tuple[float, ...]

    @property
    def best(self) -> int:
        """The quickest candidate; the present one unless another is at least 2 % quicker."""
        index = min(range(len(self.seconds)), key=self.seconds.__getitem__)
        return index if self.seconds[index] < 0.98 * self.seconds[0] else 0


def time_groups(
    model: Any,
    groups: Sequence[Group],
    folder: Path,
    *,
    repeat: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Timed, ...]:
    """Time all candidates with the model that their package loaded; ``folder`` holds their code."""
    engine = model.engine
    engine.start(sys.modules[type(engine).__module__].Sampling())
    engine.seek(0)
    results = []
    with _Timer(engine, folder) as timer:
        for done, group in enumerate(groups):
            progress(done, len(groups))
            results.append(Timed(group, timer.time(group, repeat)))
    return tuple(results)


class _Timer:
    """What all timings share: the memory that flushes the cache, and the modules of the present group."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._driver = engine.driver
        self._folder = folder
        self._modules: dict[str, Any] = {}
        self._flush_bytes = min(FLUSH_BYTES, max(4096, self._driver.describe().memory_free // 4))
        self._scratch = 0

    def __enter__(self) -> _Timer:
        self._scratch = self._driver.malloc(self._flush_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.free(self._scratch)

    def time(self, group: Group, repeat: int) -> tuple[float, ...]:
        """Median device seconds of one launch of every candidate, over the layers of a token.

        The candidates take turns, so that a device that grows warm or busy is unfair to none.
        """
        driver = self._driver
        graphs: list[Any] = []
        try:
            for candidate in group.candidates:
                graphs.append(self._capture(group, candidate))
                driver.graph_launch(graphs[-1])
            found = [[self._replay(graph)] for graph in graphs]
            limit = HOPELESS * min(times[0] for times in found)
            for _ in range(repeat - 1):
                for graph, times in zip(graphs, found, strict=True):
                    if times[0] <= limit:
                        times.append(self._replay(graph))
            return tuple(statistics.median(times) / len(group.launches) for times in found)
        finally:
            driver.synchronize()
            for graph in graphs:
                driver.graph_destroy(graph)
            self._unload()

    def _capture(self, group: Group, candidate: Candidate) -> Any:
        driver, packed = self._driver, self._engine.packed("decode")
        function = driver.get_function(self._module(candidate), candidate.symbol)
        driver.graph_begin()
        for index in group.launches:
            driver.launch(function, candidate.grid, candidate.block, packed[index].kernarg)
        return driver.graph_end()

    def _replay(self, graph: Any) -> float:
        """Device seconds of a replay on a cold cache."""
        driver = self._driver
        # The device is still writing while the host sends the rest: no gap of the host's is timed.
        driver.memset(self._scratch, 1, self._flush_bytes)
        start = driver.timestamp()
        driver.graph_launch(graph)
        return float(driver.elapsed(start, driver.timestamp()))

    def _unload(self) -> None:
        for module in self._modules.values():
            self._driver.module_unload(module)
        self._modules.clear()

    def _module(self, candidate: Candidate) -> Any:
        """The candidate's code, loaded once: several grids share it."""
        if candidate.file not in self._modules:
            path = self._folder / candidate.file
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DeviceError(
                    f"'{path}' cannot be read: {error.strerror}", "Prepare the candidates again."
                ) from error
            self._modules[candidate.file] = self._driver.load_module(data, candidate.file, path)
        return self._modules[candidate.file]
