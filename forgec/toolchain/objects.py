"""The values of the toolchain: what goes into a compiler, what comes out, and what a compiler is.

A ``Unit`` (source text) goes in, a ``CodeObject`` (bytes, listing, inspection) comes out of a ``Toolchain``.
Nothing here runs a program or touches a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.process import Runner

__all__ = ["ArgInfo", "CodeObject", "Compiled", "KernelInfo", "Toolchain", "Unit", "source_suffix"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Unit:
    """One source text that becomes one code object.

    ``name`` is also the file name in dumps, so it is letters, digits and ``_.+-``; ``entries`` are the
    symbols that must come out. ``libc`` (CPU only) allows the functions of the C library that a thread pool
    needs; without it only ``memcpy``, ``memmove``, ``memset`` and ``memcmp`` may stay undefined. ``flags``
    are added to the compiler's, after all others. ``language`` is ``"c"`` for a CPU unit in C and empty
    otherwise.

    Raises: ToolchainError when the name is no plain file name, an entry is missing or repeated, or the
    language is unknown.
    """

    name: str
    source: str
    entries: tuple[str, ...]
    libc: bool = False
    flags: tuple[str, ...] = ()
    language: str = ""

    def __post_init__(self) -> None:
        if not _SAFE_NAME.fullmatch(self.name):
            raise ToolchainError(f"unit name '{self.name}' is not a plain file name")
        if not self.entries or len(set(self.entries)) != len(self.entries):
            raise ToolchainError(f"unit '{self.name}' must name its kernels once each, found {self.entries}")
        if self.language not in {"", "c"}:
            raise ToolchainError(f"unit '{self.name}' has the unknown language '{self.language}'")


@dataclass(frozen=True)
class ArgInfo:
    """One kernel argument: byte ``offset`` and ``size`` in the kernarg segment.

    ``kind`` is ``"pointer"``, ``"value"`` or ``"hidden"`` (added by the compiler, filled by the HIP runtime).
    """

    name: str
    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class KernelInfo:
    """What the compiler made of one kernel, read from the code object itself.

    Sizes are bytes; ``lds_bytes`` is per block, ``scratch_bytes`` per lane. ``vgprs`` counts 32-bit registers
    per lane, AGPRs included; it is 0 for PTX, whose registers are virtual, and for the CPU, where only
    ``symbol`` and ``wave`` are known.
    """

    symbol: str
    wave: int
    vgprs: int
    sgprs: int
    agprs: int
    lds_bytes: int
    scratch_bytes: int
    vgpr_spills: int
    sgpr_spills: int
    kernarg_bytes: int
    args: tuple[ArgInfo, ...]
    max_threads: int


@dataclass(frozen=True)
class CodeObject:
    """The code of one unit for one target.

    ``data`` is an AMD code object (ELF), PTX text without a closing NUL, or a shared object; ``assembly`` is
    the compiler's listing, from which ``data`` was assembled; ``log`` holds its warnings.
    """

    name: str
    target: str
    data: bytes
    assembly: str
    inspection: tuple[KernelInfo, ...]
    compiler: str
    log: str
    cached: bool

    def kernel(self, symbol: str) -> KernelInfo:
        """The inspection of one kernel. Raises: ToolchainError when this code object has no such kernel."""
        for info in self.inspection:
            if info.symbol == symbol:
                return info
        names = ", ".join(f"'{info.symbol}'" for info in self.inspection)
        raise ToolchainError(f"code object '{self.name}' has no kernel '{symbol}', only {names}")


@dataclass(frozen=True)
class Compiled:
    """A compiler's raw product, before it is inspected: code, listing and warnings."""

    data: bytes
    assembly: str
    log: str


class Toolchain(Protocol):
    """A compiler that was found on this machine."""

    @property
    def name(self) -> str:
        """``"zig"`` or ``"hipcc"``."""
        ...

    @property
    def version(self) -> str:
        """One line that identifies the compiler's build; part of every cache key."""
        ...

    def recipe(self, unit: Unit, target: Target) -> tuple[str, ...]:
        """Every flag that decides the output, free of paths; part of the cache key."""
        ...

    def compile(self, unit: Unit, target: Target, runner: Runner) -> Compiled:
        """Compile, assemble and link one unit in a temporary directory of its own.

        Raises: ToolchainError with the compiler's first errors.
        """
        ...


def source_suffix(unit: Unit, target: Target) -> str:
    """The file ending that names the language of a unit's source: ``.hip``, ``.cu``, ``.cpp`` or ``.c``.

    Raises: ToolchainError when a unit in C is meant for a GPU.
    """
    if unit.language == "c":
        if target.driver != "cpu":
            raise ToolchainError(f"unit '{unit.name}' is C, which does not compile for {target.name}")
        return ".c"
    return {"hip": ".hip", "cuda": ".cu", "cpu": ".cpp"}[target.driver]
