"""What all stage parameters share: the target's family and width, and the kernel's argument layout.

A planner fills frozen parameter objects; codegen renders ``templates/stages/<stage>.hip.j2`` with one as the
only name ``k``. Equal parameters give one kernel for all layers, so nothing here names a layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from forgec.errors import VerifyError
from forgec.frontend.codebooks import codebook
from forgec.plan.layouts import FORMATS

__all__ = [
    "STATE",
    "Arg",
    "Codebook",
    "StageParams",
    "codebooks_of",
    "matrix_of",
]

#: Size in bytes of each argument type; every pointer is 8.
VALUE_SIZES = {"i32": 4, "u32": 4, "float": 4}


@dataclass(frozen=True)
class Arg:
    """One kernel argument: ``ctype`` is a pointer type of the device vocabulary or a 32-bit value."""

    name: str
    ctype: str
    restrict: bool = True  # False where two pointers of one kernel may be the same buffer

    @property
    def is_pointer(self) -> bool:
        return self.ctype.endswith("*")

    @property
    def size(self) -> int:
        """Bytes in the argument buffer; alignment equals size."""
        return 8 if self.is_pointer else VALUE_SIZES[self.ctype]


STATE = Arg("state", "const State*")


def matrix_of(name: str) -> Arg:
    """The pointer to a packed weight matrix, whatever its layout."""
    return Arg(name, "const u8*")


@dataclass(frozen=True)
class Codebook:
    """A table of ``frontend.codebooks`` as a template writes it: ``words`` are C words of four values."""

    name: str
    words: tuple[str, ...]

    @property
    def storage(self) -> str:
        """Tables of a few words are constants of the compiler, the others lie in memory."""
        return "constexpr" if len(self.words) <= 4 else "TABLE"


def codebooks_of(formats: Iterable[str]) -> tuple[Codebook, ...]:
    """The tables that formats look codes up in, each once, by name."""
    names = sorted({FORMATS[f].codebook for f in formats} - {""})
    tables = [(name, codebook(name).reshape(-1).view(np.uint32)) for name in names]
    return tuple(Codebook(name, tuple(f"0x{word:08x}u" for word in table)) for name, table in tables)


@dataclass(frozen=True)
class StageParams:
    """What every stage knows: the target's family and wave width, and the threads of a block."""

    family: str
    wave: int
    block: int

    def __post_init__(self) -> None:
        if self.wave not in (1, 32, 64) or self.block % self.wave:
            raise VerifyError(f"stage '{self.stage}': block {self.block} is no multiple of wave {self.wave}")

    @property
    def stage(self) -> str:
        """Name of the template: ``templates/stages/<stage>[.<family>].hip.j2``."""
        raise NotImplementedError

    @property
    def threads(self) -> int:
        """Threads that a launch starts: those of a block, and helpers of its own where a stage has any."""
        return self.block

    @property
    def cooperative(self) -> bool:
        """Whether the blocks of a launch wait for each other."""
        return False

    @property
    def launch_lds(self) -> int:
        """Bytes of LDS that a launch gives on top of what the kernel declares."""
        return 0

    @property
    def title(self) -> str:
        """Readable part of the kernel symbol."""
        return self.stage

    @property
    def args(self) -> tuple[Arg, ...]:
        """Kernel arguments in order."""
        raise NotImplementedError

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the weight matrices that the stage reads, each once."""
        return ()

    @property
    def codebooks(self) -> tuple[Codebook, ...]:
        """The tables that these formats look codes up in."""
        return codebooks_of(self.formats)

    @property
    def symbol(self) -> str:
        """Kernel symbol: readable title plus a digest of all parameters, so equal parameters share it."""
        text = repr(tuple((f.name, getattr(self, f.name)) for f in fields(self)))
        return f"{self.title}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def signature(self) -> str:
        """C parameter list of the device function."""
        return ", ".join(
            f"{a.ctype} __restrict__ {a.name}" if a.is_pointer and a.restrict else f"{a.ctype} {a.name}"
            for a in self.args
        )

    @property
    def call(self) -> str:
        """The arguments as passed on by the entry point."""
        return ", ".join(a.name for a in self.args)

    @property
    def arg_offsets(self) -> tuple[int, ...]:
        """Byte offset of each argument in the kernel argument buffer (natural C alignment)."""
        offsets, at = [], 0
        for arg in self.args:
            at = -(-at // arg.size) * arg.size
            offsets.append(at)
            at += arg.size
        return tuple(offsets)

    @property
    def unpack(self) -> tuple[tuple[Arg, int], ...]:
        """(argument, offset) pairs, for entries that unpack the argument buffer themselves."""
        return tuple(zip(self.args, self.arg_offsets, strict=True))

    @property
    def kernarg_bytes(self) -> int:
        """Size of the explicit kernel arguments, padded to 8 bytes."""
        end = self.arg_offsets[-1] + self.args[-1].size
        return -(-end // 8) * 8
