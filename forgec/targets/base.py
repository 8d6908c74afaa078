"""What a chip is, as data: the frozen ``Target`` and the checks that every one of them must pass.

In come numbers with their sources, out goes a value that the planner, the templates and the toolchain read.
Nothing here asks a device, a driver or the operating system for anything.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from forgec.errors import TargetError

__all__ = ["FAMILIES", "Family", "Target"]


@dataclass(frozen=True)
class Family:
    """What all chips of one instruction-set family share and a ``Target`` may choose from."""

    wave: int
    dots: frozenset[str]
    matrices: frozenset[str]
    code_suffix: str
    driver: str
    clock: bool = False  # whether its prelude reads clocks in a kernel


FAMILIES: dict[str, Family] = {
    "gfx9": Family(64, frozenset({"sdot4"}), frozenset({"mfma"}), ".hsaco", "hip"),
    "gfx10": Family(32, frozenset({"sdot4"}), frozenset({""}), ".hsaco", "hip"),
    "gfx11": Family(32, frozenset({"sudot4"}), frozenset({"wmma"}), ".hsaco", "hip"),
    "gfx12": Family(32, frozenset({"sudot4"}), frozenset({"wmma12"}), ".hsaco", "hip"),
    "nvptx": Family(32, frozenset({"dp4a"}), frozenset({"mma.sync"}), ".ptx", "cuda", clock=True),
    "cpu": Family(1, frozenset({"avx2", "vnni", ""}), frozenset({""}), ".so", "cpu"),
}


@dataclass(frozen=True)
class Target:
    """One chip, or the smallest chip of a group that shares its code.

    ``sources`` holds one line per origin, ``"field, field: where the numbers come from"``; every number must
    be covered by one of them. ``requires`` (CPU only) are the ``/proc/cpuinfo`` flags without which the code
    would die of an illegal instruction, so that a loader can refuse first.
    """

    name: str
    family: str
    title: str
    wave: int  # lanes that execute together
    compute_units: int  # CUs, SMs or cores
    simds_per_cu: int  # SIMD units (sub-partitions on NVIDIA) of one compute unit
    clock_hz: float  # sustained boost clock
    lds_bytes: int  # on-chip memory one block may declare
    vgprs: int  # 32-bit vector registers per lane that one SIMD shares among its waves
    max_threads: int  # threads of one block
    block_size: int  # default threads of one block
    dot: str  # four int8 products accumulated into an int32
    matrix: str  # matrix instructions
    bandwidth: float  # peak memory bandwidth, bytes/s
    memory_bytes: int
    l2_bytes: int  # last-level cache in front of the memory
    launch_seconds: float  # what one more node of a captured graph costs
    sources: tuple[str, ...]
    code_suffix: str
    cpu_flags: tuple[str, ...] = ()
    # On-chip memory a launch may ask for, where copies into it run by themselves; None: there are none such.
    dynamic_lds: int | None = None
    schedule: str = "graph"  # which schedule "auto" means: the faster one, as measured
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        family = FAMILIES.get(self.family)
        if family is None:
            raise TargetError(f"target '{self.name}' has the unknown family '{self.family}'")
        self._check_choice("wave", self.wave, {family.wave})
        self._check_choice("dot", self.dot, family.dots)
        self._check_choice("matrix", self.matrix, family.matrices)
        self._check_choice("code_suffix", self.code_suffix, {family.code_suffix})
        for name in _numeric_fields():
            if getattr(self, name) <= 0:
                raise TargetError(
                    f"target '{self.name}': {name} is {getattr(self, name)}, expected more than 0"
                )
        if self.block_size % self.wave or self.block_size > self.max_threads:
            raise TargetError(
                f"target '{self.name}': block_size {self.block_size} is not a multiple of wave {self.wave} "
                f"within max_threads {self.max_threads}"
            )
        if bool(self.cpu_flags) != (self.family == "cpu"):
            raise TargetError(f"target '{self.name}': cpu_flags are for CPU targets, and those need them")
        self._check_sources()

    def _check_choice(self, field: str, value: object, allowed: frozenset[str] | set[int] | set[str]) -> None:
        if value not in allowed:
            names = ", ".join(repr(choice) for choice in sorted(allowed, key=str))
            raise TargetError(
                f"target '{self.name}': {field} is {value!r}, expected {names} in family '{self.family}'"
            )

    def _check_sources(self) -> None:
        covered: set[str] = set()
        for line in self.sources:
            names, separator, origin = line.partition(": ")
            if not separator or not origin.strip():
                raise TargetError(
                    f"target '{self.name}': source '{line}' does not read 'field, field: origin'"
                )
            covered.update(name.strip() for name in names.split(","))
        missing = [name for name in _numeric_fields() if name not in covered]
        unknown = sorted(covered - set(_numeric_fields()))
        if missing or unknown:
            wrong = (
                f"no source for {', '.join(missing)}"
                if missing
                else f"a source for unknown {', '.join(unknown)}"
            )
            raise TargetError(f"target '{self.name}': {wrong}")

    @property
    def driver(self) -> str:
        """Which runtime loads the code: ``"hip"``, ``"cuda"`` or ``"cpu"``."""
        return FAMILIES[self.family].driver

    @property
    def clock(self) -> bool:
        """Whether a kernel can stamp the times at which its blocks are where."""
        return FAMILIES[self.family].clock

    @property
    def waves_per_block(self) -> int:
        """Waves of one block of the default size."""
        return self.block_size // self.wave


def _numeric_fields() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Target) if field.type in ("int", "float"))
