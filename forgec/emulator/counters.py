"""What a launch did: dynamic instruction counts and bytes, from segment executions times static instruction
lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from forgec.emulator.isa.memory import DS, SMEM, SMEM_SMALL, VECTOR
from forgec.emulator.operands import Instruction
from forgec.emulator.translate import Translation

__all__ = ["LINE_BYTES", "Counters", "LineCounter", "SiteCounter", "StaticCounts", "collect", "static_counts"]

LINE_BYTES = 128


@dataclass(frozen=True)
class SiteCounter:
    """Memory behaviour of one instruction (only with profiling): 128-byte lines touched against lines
    needed."""

    address: int
    text: str
    accesses: int
    lines_touched: int
    lines_needed: int
    conflict_cycles: int

    @property
    def line_efficiency(self) -> float:
        return self.lines_needed / self.lines_touched if self.lines_touched else 1.0


@dataclass(frozen=True)
class LineCounter:
    """What a launch loaded of one allocation (only with profiling), in cache lines of 128 bytes.

    ``fetched`` counts a line again when a wave loads it that did not just do so: each wave is taken to keep
    its last 32 lines. ``lines`` and ``loaded`` are the different lines and bytes among them.
    """

    address: int
    size: int
    fetched: int
    lines: int
    loaded: int

    @property
    def used(self) -> float:
        """Share of the bytes of the fetched lines that somebody loaded."""
        return self.loaded / (LINE_BYTES * self.lines)

    @property
    def repeated(self) -> float:
        """Share of the fetches that bring a line which was fetched before."""
        return 1 - self.lines / self.fetched


@dataclass(frozen=True)
class Counters:
    """Totals of one launch. Instructions are issues of a wave; lane instructions count active lanes; bytes
    are bytes."""

    kernel: str
    instructions: int = 0
    valu: int = 0
    salu: int = 0
    lane_instructions: int = 0
    mix: dict[str, int] = field(default_factory=dict)
    global_loaded: int = 0
    global_stored: int = 0
    lds_loaded: int = 0
    lds_stored: int = 0
    scratch_loaded: int = 0
    scratch_stored: int = 0
    scalar_loaded: int = 0
    atomics: int = 0
    barriers: int = 0
    seconds: float = 0.0
    sites: tuple[SiteCounter, ...] = ()
    lines: tuple[LineCounter, ...] = ()


def _space(ins: Instruction) -> str:
    head = ins.mnemonic.split("_")[0]
    return {"global": "global", "flat": "global", "buffer": "global", "scratch": "scratch", "ds": "lds"}.get(
        head, ""
    )


@dataclass(frozen=True)
class StaticCounts:
    """What one execution of each segment adds, [segments, columns]: by execution, by active lane, by
    mnemonic.

    Sums are formed in float64, which is exact up to 2**53.
    """

    executed: npt.NDArray[np.float64]
    lanes: npt.NDArray[np.float64]
    mix: npt.NDArray[np.float64]
    mnemonics: tuple[str, ...]


_EXECUTED = ("instructions", "valu", "salu", "scalar_loaded", "barriers")
_LANES = (
    "lane_instructions",
    "atomics",
    "global_loaded",
    "global_stored",
    "lds_loaded",
    "lds_stored",
    "scratch_loaded",
    "scratch_stored",
)


def static_counts(translation: Translation) -> StaticCounts:
    """Counted once per kernel, so that a launch costs three small products."""
    rows: list[tuple[Counter[str], Counter[str], Counter[str]]] = []
    for segment in translation.segments:
        executed, lanes, mix = Counter[str](), Counter[str](), Counter[str]()
        for site in segment.sites:
            ins = translation.sites[site]
            mix[ins.mnemonic] += 1
            _count(ins, executed, lanes)
        rows.append((executed, lanes, mix))
    mnemonics = tuple(sorted({name for _, _, mix in rows for name in mix}))

    def matrix(of: int, columns: tuple[str, ...]) -> npt.NDArray[np.float64]:
        values = [[row[of][name] for name in columns] for row in rows]
        return np.array(values, np.float64).reshape(len(rows), len(columns))

    return StaticCounts(matrix(0, _EXECUTED), matrix(1, _LANES), matrix(2, mnemonics), mnemonics)


def _count(ins: Instruction, executed: Counter[str], lanes: Counter[str]) -> None:
    executed["instructions"] += 1
    if ins.mnemonic.startswith("v_"):
        executed["valu"] += 1
        lanes["lane_instructions"] += 1
    elif ins.mnemonic.startswith("s_"):
        executed["salu"] += 1
    access = DS.get(ins.mnemonic) or VECTOR.get(ins.mnemonic)
    if access is not None:
        size = access.size * (2 if access.kind.endswith("2") else 1)
        stored = access.kind == "atomic" or not access.kind.startswith("load")
        lanes["atomics"] += access.kind == "atomic"
        lanes[f"{_space(ins)}_{'stored' if stored else 'loaded'}"] += size
    executed["scalar_loaded"] += SMEM.get(ins.mnemonic) or SMEM_SMALL.get(ins.mnemonic, (0, 0))[0]
    executed["barriers"] += ins.mnemonic in ("s_barrier", "s_barrier_wait")


def collect(
    name: str,
    static: StaticCounts,
    instructions: tuple[Instruction, ...],
    counts: npt.NDArray[np.uint64],
    sites: npt.NDArray[np.uint64] | None,
    lines: tuple[LineCounter, ...],
    seconds: float,
) -> Counters:
    """Join ``counts`` [threads, segments, 2] (executions, active lanes) with what a segment holds."""
    executions, lanes = counts.sum(axis=0).astype(np.float64).T
    sums = dict(zip(_EXECUTED, (executions @ static.executed).astype(int).tolist(), strict=True))
    sums |= dict(zip(_LANES, (lanes @ static.lanes).astype(int).tolist(), strict=True))
    issued = (executions @ static.mix).astype(int)
    mix = {static.mnemonics[i]: int(issued[i]) for i in np.argsort(-issued, kind="stable") if issued[i]}
    found: tuple[SiteCounter, ...] = ()
    if sites is not None:
        per_site = sites.sum(axis=0)
        found = tuple(
            SiteCounter(ins.address, ins.text, int(row[0]), int(row[1]), int(row[2]), int(row[3]))
            for ins, row in zip(instructions, per_site, strict=True)
            if row[0]
        )
    return Counters(name, mix=mix, seconds=seconds, sites=found, lines=lines, **sums)
