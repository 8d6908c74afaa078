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
from forgec.tune.candidates import Candidate, Group

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
    driver = engine.driver
    engine.start(sys.modules[type(engine).__module__].Sampling())
    engine.seek(0)
    flush_bytes = min(FLUSH_BYTES, max(4096, driver.describe().memory_free // 4))
    scratch = driver.malloc(flush_bytes)
    total = sum(len(group.candidates) for group in groups)
    done = 0
    results = []
    try:
        for group in groups:
            seconds: list[float] = []
            for candidate in group.candidates:
                flush = _Flush(driver, scratch, flush_bytes)
                seconds.append(
                    _time(engine, group, candidate, folder, flush, repeat, min(seconds, default=None))
                )
                done += 1
                progress(done, total)
            results.append(Timed(group, tuple(seconds)))
    finally:
        driver.free(scratch)
    return tuple(results)


@dataclass(frozen=True)
class _Flush:
    driver: Any
    address: int
    size: int

    def __call__(self) -> None:
        self.driver.memset(self.address, 1, self.size)


def _time(
    engine: Any,
    group: Group,
    candidate: Candidate,
    folder: Path,
    flush: Callable[[], None],
    repeat: int,
    best: float | None,
) -> float:
    """Median device seconds of one launch of a candidate, over the layers of a token."""
    driver = engine.driver
    path = folder / candidate.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DeviceError(
            f"'{path}' cannot be read: {error.strerror}", "Prepare the candidates again."
        ) from error
    module = driver.load_module(data, candidate.file, path)
    try:
        function = driver.get_function(module, candidate.symbol)
        packed = engine.packed("decode")
        driver.graph_begin()
        for index in group.launches:
            driver.launch(function, candidate.grid, candidate.block, packed[index].kernarg)
        graph = driver.graph_end()
        try:
            driver.graph_launch(graph)
            found: list[float] = []
            for _ in range(repeat):
                flush()
                start = driver.timestamp()
                driver.graph_launch(graph)
                found.append(driver.elapsed(start, driver.timestamp()) / len(group.launches))
                if best is not None and found[0] > HOPELESS * best:
                    break
            return statistics.median(found)
        finally:
            driver.synchronize()
            driver.graph_destroy(graph)
    finally:
        driver.module_unload(module)
