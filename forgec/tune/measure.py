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
#: A candidate this much slower than the best so far after one replay is not timed again.
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
    total = sum(len(group.candidates) for group in groups)
    done = 0
    results = []
    with _Timer(engine, folder, repeat) as timer:
        for group in groups:
            seconds: list[float] = []
            for candidate in group.candidates:
                seconds.append(timer.time(group, candidate, min(seconds, default=None)))
                done += 1
                progress(done, total)
            timer.unload()
            results.append(Timed(group, tuple(seconds)))
    return tuple(results)


class _Timer:
    """What all timings share: the memory that flushes the cache, and the modules of the present group."""

    def __init__(self, engine: Any, folder: Path, repeat: int) -> None:
        self._engine = engine
        self._driver = engine.driver
        self._folder = folder
        self._repeat = repeat
        self._modules: dict[str, Any] = {}
        self._flush_bytes = min(FLUSH_BYTES, max(4096, self._driver.describe().memory_free // 4))
        self._scratch = 0

    def __enter__(self) -> _Timer:
        self._scratch = self._driver.malloc(self._flush_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()
        self._driver.free(self._scratch)

    def unload(self) -> None:
        for module in self._modules.values():
            self._driver.module_unload(module)
        self._modules.clear()

    def time(self, group: Group, candidate: Candidate, best: float | None) -> float:
        """Median device seconds of one launch of a candidate, over the layers of a token."""
        driver, packed = self._driver, self._engine.packed("decode")
        function = driver.get_function(self._module(candidate), candidate.symbol)
        driver.graph_begin()
        for index in group.launches:
            driver.launch(function, candidate.grid, candidate.block, packed[index].kernarg)
        graph = driver.graph_end()
        try:
            driver.graph_launch(graph)
            found: list[float] = []
            for _ in range(self._repeat):
                # The device is still writing while the host sends the rest: no gap of the host's is timed.
                driver.memset(self._scratch, 1, self._flush_bytes)
                start = driver.timestamp()
                driver.graph_launch(graph)
                found.append(driver.elapsed(start, driver.timestamp()) / len(group.launches))
                if best is not None and found[0] > HOPELESS * best:
                    break
            return statistics.median(found)
        finally:
            driver.synchronize()
            driver.graph_destroy(graph)

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
