"""What a launch did: dynamic instruction counts and bytes, from segment executions times static instruction lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from forgec.emulator.isa.memory import DS, SMEM, SMEM_SMALL, VECTOR
from forgec.emulator.operands import Instruction
from forgec.emulator.translate import Translation

__all__ = ["Counters", "SiteCounter", "collect"]


@dataclass(frozen=True)
class SiteCounter:
    """Memory behaviour of one instruction (only with profiling): 128-byte lines touched against lines needed."""

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
class Counters:
    """Totals of one launch. Instructions are issues of a wave; lane instructions count active lanes; bytes are bytes."""

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


def _space(ins: Instruction) -> str:
    head = ins.mnemonic.split("_")[0]
    return {"global": "global", "flat": "global", "buffer": "global", "scratch": "scratch", "ds": "lds"}.get(head, "")


def collect(
    name: str,
    translation: Translation,
    counts: npt.NDArray[np.uint64],
    sites: npt.NDArray[np.uint64] | None,
    seconds: float,
) -> Counters:
    """Join ``counts`` [threads, segments, 2] (executions, active lanes) with the translation."""
    totals = counts.sum(axis=0)
    mix: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for segment, (executions, lanes) in zip(translation.segments, totals.tolist(), strict=True):
        if not executions:
            continue
        for site in segment.sites:
            ins = translation.sites[site]
            mix[ins.mnemonic] += executions
            sums["instructions"] += executions
            if ins.mnemonic.startswith("v_"):
                sums["valu"] += executions
                sums["lane_instructions"] += lanes
            elif ins.mnemonic.startswith("s_"):
                sums["salu"] += executions
            access = DS.get(ins.mnemonic) or VECTOR.get(ins.mnemonic)
            if access is not None:
                size = access.size * (2 if access.kind.endswith("2") else 1)
                space = _space(ins)
                if access.kind == "atomic":
                    sums["atomics"] += lanes
                    sums[f"{space}_stored"] += lanes * size
                else:
                    sums[f"{space}_{'loaded' if access.kind.startswith('load') else 'stored'}"] += lanes * size
            scalar = SMEM.get(ins.mnemonic) or SMEM_SMALL.get(ins.mnemonic, (0, 0))[0]
            sums["scalar_loaded"] += scalar * executions
            sums["barriers"] += executions if ins.mnemonic in ("s_barrier", "s_barrier_wait") else 0
    found: tuple[SiteCounter, ...] = ()
    if sites is not None:
        per_site = sites.sum(axis=0)
        found = tuple(
            SiteCounter(ins.address, ins.text, int(row[0]), int(row[1]), int(row[2]), int(row[3]))
            for ins, row in zip(translation.sites, per_site, strict=True)
            if row[0]
        )
    return Counters(name, mix=dict(mix.most_common()), seconds=seconds, sites=found, **sums)
