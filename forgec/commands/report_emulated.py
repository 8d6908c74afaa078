"""``forgec report --emulate``: what the kernels do when they run, counted by the emulator.

A package is built in a temporary folder and answers a prompt of one chunk and one token on an emulated chip;
every launch is counted. The times are a prediction from those counts and the target's data sheet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forgec.compiler import Compiled, compile_model
from forgec.config import load_config
from forgec.emulator.counters import Counters
from forgec.errors import TargetError
from forgec.package.loader import loaded
from forgec.plan.program import CompileOptions
from forgec.targets import Target
from forgec.toolchain import open_cache

__all__ = ["KernelCounts", "count_kernels", "issue_rate", "print_counts"]


@dataclass(frozen=True)
class KernelCounts:
    """Sums over the launches of one kernel in one sequence; bytes are what the lanes asked for."""

    sequence: str
    symbol: str
    launches: int
    valu: int
    instructions: int
    loaded: int
    stored: int
    lds: int
    scratch: int
    lines_needed: int
    lines_touched: int
    conflict_cycles: int

    @property
    def line_efficiency(self) -> float:
        """Cache lines that the lanes' bytes fill, over the lines they touch, instruction by instruction.

        Lanes that share an address make the quotient exceed one; such accesses waste nothing.
        """
        return min(1.0, self.lines_needed / self.lines_touched) if self.lines_touched else 1.0

    def predicted_seconds(self, target: Target) -> float:
        """Of one launch: the longer of memory and vector instructions, and the cost of a graph node."""
        moved = (self.loaded + self.stored) / self.launches
        issues = self.valu / self.launches
        return max(moved / target.bandwidth, issues / issue_rate(target)) + target.launch_seconds


def issue_rate(target: Target) -> float:
    """Vector instructions of a wave per second on the whole chip: one per SIMD and cycle.

    A wave of 64 occupies CDNA's 16-lane SIMDs for four cycles.
    """
    cycles = 4 if target.wave == 64 else 1
    return target.compute_units * target.simds_per_cu * target.clock_hz / cycles


def count_kernels(
    model: Path, arch: str, options: CompileOptions, position: int
) -> tuple[Compiled, tuple[KernelCounts, ...]]:
    """Compile, run a prompt of ``position`` tokens (at most a chunk) and one decode step, and count.

    Raises TargetError for a target that the emulator does not run.
    """
    with tempfile.TemporaryDirectory(prefix="forgec-report-") as folder:
        package = Path(folder) / "package"
        compiled = compile_model(model, arch, package, options, cache=open_cache(load_config())[0])
        if compiled.program.target.driver != "hip":
            raise TargetError(
                f"the emulator runs AMD code objects, '{arch}' is none", "Use --emulate with a gfx target."
            )
        with loaded(package, "emulated-profiled") as running:
            counted = {
                "prefill": _counted(running, lambda e: _prompt(running, e, position)),
                "decode": _counted(running, lambda e: e.token(e.decode())),
            }
    return compiled, tuple(k for name, counts in counted.items() for k in _summed(name, counts))


def _prompt(model: Any, engine: Any, position: int) -> None:
    import sys

    tokens = [1 + i % (engine.vocab_size - 1) for i in range(max(1, min(position, engine.chunk)))]
    engine.start(sys.modules[type(engine).__module__].Sampling())
    engine.prefill(tokens)
    engine.head()
    engine.token(engine.sample())


def _counted(model: Any, run: Any) -> list[Counters]:
    with _observed(model.engine.driver) as counts:
        run(model.engine)
    return counts


@contextmanager
def _observed(driver: Any) -> Iterator[list[Counters]]:
    counts: list[Counters] = []
    driver.observer = counts.append
    try:
        yield counts
    finally:
        driver.observer = None


def _summed(sequence: str, counts: list[Counters]) -> Iterator[KernelCounts]:
    for symbol in dict.fromkeys(c.kernel for c in counts):
        own = [c for c in counts if c.kernel == symbol]
        sites = [site for c in own for site in c.sites]
        yield KernelCounts(
            sequence,
            symbol,
            len(own),
            sum(c.valu for c in own),
            sum(c.instructions for c in own),
            sum(c.global_loaded + c.scalar_loaded for c in own),
            sum(c.global_stored for c in own),
            sum(c.lds_loaded + c.lds_stored for c in own),
            sum(c.scratch_loaded + c.scratch_stored for c in own),
            sum(site.lines_needed for site in sites),
            sum(site.lines_touched for site in sites),
            sum(site.conflict_cycles for site in sites),
        )


def print_counts(target: Target, counts: tuple[KernelCounts, ...]) -> None:
    """A table per launch, and the predicted time of a token."""
    table = Table(box=None, pad_edge=False)
    headings = ("sequence", "kernel", "launches", "instructions", "VALU", "loaded B", "stored B", "LDS B",
                "scratch B", "cache lines used", "LDS conflicts", "predicted us")  # fmt: skip
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index > 1 else "left", no_wrap=True)
    for k in counts:
        values = (k.instructions, k.valu, k.loaded, k.stored, k.lds, k.scratch)
        table.add_row(
            k.sequence,
            k.symbol,
            str(k.launches),
            *(f"{value // k.launches:,}" for value in values),
            f"{k.line_efficiency:.0%}",
            f"{k.conflict_cycles // k.launches:,}",
            f"{1e6 * k.predicted_seconds(target):.2f}",
        )
    console = Console(width=240)
    console.print("counted by the emulator, per launch")
    console.print(table)
    seconds = sum(k.launches * k.predicted_seconds(target) for k in counts if k.sequence == "decode")
    nodes = sum(k.launches for k in counts if k.sequence == "decode")
    console.print(
        f"PREDICTION for {target.name}, not a measurement: {seconds * 1e3:.3f} ms a token, "
        f"{1 / seconds:,.0f} tok/s, of which {nodes} launches x {target.launch_seconds * 1e6:.1f} us; "
        f"per kernel the longer of bytes over {target.bandwidth / 1e9:,.0f} GB/s "
        f"and vector instructions over {issue_rate(target) / 1e9:,.0f} G/s"
    )
