"""``forgec report --emulate``: what the kernels do when they run, counted, and a prediction from it.

In come the counters of one launch of each kernel, out go a table and the time of a token on a card: per
kernel the longer of its bytes over the memory's bandwidth and its vector instructions over the issue rate,
plus the cost of a graph node. All parts are shown, and it is called a prediction. It never runs a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from forgec.commands.report_launch import KernelRun, run_kernels
from forgec.emulator.counters import LINE_BYTES
from forgec.plan.program import Program
from forgec.targets import Target
from forgec.toolchain import CodeObject

__all__ = ["KernelCounts", "TokenPrediction", "count_kernels", "issue_rate", "predict", "print_counts"]

#: Shares of the bandwidth for which a token's time is shown.
SHARES = (1.0, 0.9, 0.8)


def issue_rate(card: Target) -> float:
    """Vector instructions of a wave per second on the whole chip: one per SIMD and cycle.

    A wave of 64 occupies CDNA's 16-lane SIMDs for four cycles.
    """
    cycles = 4 if card.wave == 64 else 1
    return card.compute_units * card.simds_per_cu * card.clock_hz / cycles


@dataclass(frozen=True)
class KernelCounts:
    """One launch of a kernel, and how many a sequence has.

    ``loaded`` counts every lane's bytes. Of the cache lines: ``lines`` different ones, ``fetched`` with
    repetitions by a small cache model (``LineCounter``), ``used`` different bytes; the ``weight_`` ones are
    of weights alone.
    """

    sequence: str
    symbol: str
    launches: int
    wave: int
    valu: int
    instructions: int
    loaded: int
    stored: int
    lds: int
    scratch: int
    conflict_cycles: int
    lines: int
    fetched: int
    used: int
    weight_lines: int
    weight_fetched: int
    weight_used: int

    @property
    def bytes(self) -> int:
        """What memory has to deliver and take at least: every line once, and what is stored."""
        return LINE_BYTES * self.lines + self.stored

    @property
    def line_use(self) -> float:
        """Share of the bytes in fetched lines that some lane loaded; of the weights where there are any."""
        lines, used = (self.weight_lines, self.weight_used) if self.weight_lines else (self.lines, self.used)
        return used / (LINE_BYTES * lines) if lines else 1.0

    @property
    def repeats(self) -> float:
        """Share of fetches that bring a line again; of the weights where there are any."""
        lines, fetched = (
            (self.weight_lines, self.weight_fetched) if self.weight_lines else (self.lines, self.fetched)
        )
        return 1 - lines / fetched if fetched else 0.0

    @property
    def valu_per_byte(self) -> float:
        """Vector instructions, times the lanes that each of them serves, over ``bytes``."""
        return self.valu * self.wave / self.bytes

    def memory_seconds(self, card: Target) -> float:
        return self.bytes / card.bandwidth

    def issue_seconds(self, card: Target) -> float:
        return self.valu / issue_rate(card)

    def seconds(self, card: Target) -> float:
        """Predicted for one launch."""
        return max(self.memory_seconds(card), self.issue_seconds(card)) + card.launch_seconds


@dataclass(frozen=True)
class TokenPrediction:
    """The parts of a sequence's predicted time: bytes and seconds over all of its launches.

    ``issue_seconds`` is what vector instructions add where they take longer than memory.
    """

    launches: int
    bytes: int
    memory_seconds: float
    issue_seconds: float
    node_seconds: float

    @property
    def seconds(self) -> float:
        return self.memory_seconds + self.issue_seconds + self.node_seconds


def predict(counts: Iterable[KernelCounts], card: Target) -> TokenPrediction:
    """Sum over the kernels of one sequence."""
    counts = tuple(counts)
    memory = sum(k.launches * k.memory_seconds(card) for k in counts)
    busy = sum(k.launches * max(k.memory_seconds(card), k.issue_seconds(card)) for k in counts)
    launches = sum(k.launches for k in counts)
    moved = sum(k.launches * k.bytes for k in counts)
    return TokenPrediction(launches, moved, memory, busy - memory, launches * card.launch_seconds)


def count_kernels(
    program: Program,
    objects: tuple[CodeObject, ...],
    position: int,
    sequences: tuple[str, ...] = ("decode",),
) -> tuple[KernelCounts, ...]:
    """One launch of each kernel on random weights, in order of first launch; raises as ``run_kernels``."""
    return tuple(_counts(run, program) for run in run_kernels(program, objects, position, sequences))


def _counts(run: KernelRun, program: Program) -> KernelCounts:
    counters = run.counters
    matrices = [line for line in counters.lines if line.address in run.weights]
    return KernelCounts(
        run.sequence,
        run.launch.kernel.symbol,
        run.launches,
        program.target.wave,
        counters.valu,
        counters.instructions,
        counters.global_loaded + counters.scalar_loaded,
        counters.global_stored,
        counters.lds_loaded + counters.lds_stored,
        counters.scratch_loaded + counters.scratch_stored,
        sum(site.conflict_cycles for site in counters.sites),
        sum(line.lines for line in counters.lines),
        sum(line.fetched for line in counters.lines),
        sum(line.loaded for line in counters.lines),
        sum(line.lines for line in matrices),
        sum(line.fetched for line in matrices),
        sum(line.loaded for line in matrices),
    )


_NOTES = """\
lines used: different bytes that were loaded, over 128 for each different cache line. refetched: share of the
line fetches that bring a line again, when a wave keeps its last 32 lines; a prefetch is a fetch. Both are of
the weights where a kernel has weights. memory us: every line once and what is stored, over the bandwidth.
VALU us: vector instructions over the issue rate. A launch takes the longer of the two, and a graph node."""


def print_counts(counts: tuple[KernelCounts, ...], card: Target) -> None:
    """A row per kernel and launch, and the predicted time of a token with its parts."""
    table = Table(box=None, pad_edge=False)
    headings = ("sequence", "kernel", "launches", "instructions", "VALU", "VALU/byte", "bytes", "lines used",
                "refetched", "LDS B", "scratch B", "LDS conflicts", "memory us", "VALU us",
                "predicted us")  # fmt: skip
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index > 1 else "left", no_wrap=True)
    for k in counts:
        table.add_row(
            k.sequence,
            k.symbol,
            str(k.launches),
            *(f"{value:,}" for value in (k.instructions, k.valu)),
            f"{k.valu_per_byte:.2f}",
            f"{k.bytes:,}",
            f"{k.line_use:.1%}",
            f"{k.repeats:.1%}",
            *(f"{value:,}" for value in (k.lds, k.scratch, k.conflict_cycles)),
            *(f"{1e6 * t:.2f}" for t in (k.memory_seconds(card), k.issue_seconds(card), k.seconds(card))),
        )
    console = Console(width=240)
    console.print("counted by the emulator, for one launch of each kernel on random weights")
    console.print(table)
    console.print(_NOTES)
    for sequence, what in (("prefill", "a chunk of a prompt"), ("decode", "a token")):
        own = [k for k in counts if k.sequence == sequence]
        if own:
            console.print(_prediction_text(predict(own, card), card, what))
    for share in SHARES:
        slower = replace(card, bandwidth=share * card.bandwidth)
        seconds = predict((k for k in counts if k.sequence == "decode"), slower).seconds
        console.print(f"  at {share:.0%} of the bandwidth: {1e3 * seconds:.3f} ms, {1 / seconds:,.1f} tok/s")


def _prediction_text(p: TokenPrediction, card: Target, what: str) -> str:
    return (
        f"PREDICTION for {card.name}, not a measurement: {what} takes {1e3 * p.seconds:.3f} ms = "
        f"{1e3 * p.memory_seconds:.3f} ms for {p.bytes / 1e6:,.1f} MB at {card.bandwidth / 1e9:,.0f} GB/s "
        f"+ {1e3 * p.issue_seconds:.3f} ms where vector instructions take longer "
        f"(at {issue_rate(card) / 1e9:,.0f} G/s) "
        f"+ {1e3 * p.node_seconds:.3f} ms for {p.launches} launches of {1e6 * card.launch_seconds:.1f} us"
    )
