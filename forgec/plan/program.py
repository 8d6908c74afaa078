"""The product of planning: buffers, kernels, packed tensors and launch sequences, all with fixed addresses.

A ``Program`` is plain data. Codegen renders its kernels, the toolchain compiles them, the package writer
stores the rest as the manifest; nothing is decided after this point.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from forgec.frontend.rope import RopeSpec
from forgec.frontend.spec import ModelSpec
from forgec.plan.stages import StageParams
from forgec.targets import Target

__all__ = ["Argument", "Buffer", "CompileOptions", "Launch", "PackedTensor", "Program", "Ref", "program_text"]

#: Byte offsets of the fields of the ``state`` buffer (struct State of the preludes).
STATE_FIELDS: Mapping[str, int] = {
    "rows": 0,
    "position": 4,
    "row": 8,
    "token": 12,
    "step": 16,
    "seed_lo": 20,
    "seed_hi": 24,
    "temperature": 28,
    "top_k": 32,
    "top_p": 36,
    "ring_mask": 40,
}
STATE_BYTES = 64


@dataclass(frozen=True)
class CompileOptions:
    """What the user chose; context length, prompt chunk and ring are in tokens."""

    math: str = "fast"  # "fast" | "exact"
    context: int | None = None
    kv_dtype: str = "f16"
    chunk: int = 128
    schedule: str = "auto"  # "auto" | "graph" | "persistent"
    ring: int = 1024
    fuse: bool = True


@dataclass(frozen=True)
class Buffer:
    """One device allocation of ``bytes`` bytes; ``init`` is "file" (weights), "zero" or "none", or "demand":
    made when a sequence that measures is run for the first time, never otherwise."""

    name: str
    bytes: int
    init: str

    @property
    def resident(self) -> bool:
        """Whether every loaded package has it."""
        return self.init != "demand"


@dataclass(frozen=True)
class Ref:
    """An address: a buffer's name and a byte offset in it."""

    buffer: str
    offset: int


Argument = Ref | int | float


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``grid`` blocks; ``note`` is the graph node it came from.

    ``steps``: what a kernel of many steps does in each, where the launch is there to time them.
    """

    kernel: StageParams
    grid: int
    args: tuple[Argument, ...]
    note: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedTensor:
    """A tensor in weights.bin: byte ``offset`` and the (absolute offset, bytes) of each plane;
    the layout "rows" has one.

    ``source`` is the GGUF tensor's name, of which this is ``rows`` rows from ``first_row`` on (of a vector,
    ``cols`` elements), or "" for the table of angles of ``rope`` and for
    ``literal`` bytes.
    ``layout`` is "rows", "rows8" or "plain" (float32 vectors and tables).
    """

    name: str
    source: str
    format: str
    layout: str
    rows: int
    cols: int
    offset: int
    bytes: int
    first_row: int = 0
    rope: RopeSpec | None = None
    literal: builtins.bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Program:
    """Everything that the package needs, in the order it is written."""

    spec: ModelSpec
    target: Target
    math: str
    kv_dtype: str
    context: int
    chunk: int
    ring: int
    rollback: int | None  # positions by which a sequence may be shortened; None: any, no layer is a ring
    buffers: tuple[Buffer, ...]
    tensors: tuple[PackedTensor, ...]
    kernels: tuple[StageParams, ...]
    sequences: Mapping[str, tuple[Launch, ...]]
    symbols: Mapping[str, Ref]
    steps: tuple[Launch, ...]  # the decode sequence launch by launch, whatever the schedule

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    @cached_property
    def tensor_at(self) -> Mapping[int, PackedTensor]:
        """The tensor that starts at each offset of weights.bin."""
        return {tensor.offset: tensor for tensor in self.tensors}

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that a loaded package takes."""
        return sum(b.bytes for b in self.buffers if b.resident)


def program_text(program: Program) -> str:
    """Readable dump: buffers, kernels and launches, one a line."""
    lines = [
        f"program {program.spec.architecture} for {program.target.name}: math {program.math}, "
        f"kv {program.kv_dtype}, context {program.context}, chunk {program.chunk}"
    ]
    lines += [f"buffer {b.name}: {b.bytes} bytes, {b.init}" for b in program.buffers]
    lines += [
        f"tensor {t.name}: {t.format} [{t.rows}, {t.cols}] {t.layout} at {t.offset}, {t.bytes} bytes"
        for t in program.tensors
    ]
    for kernel in program.kernels:
        lines.append(f"kernel {kernel.symbol}: block {kernel.block}, {kernel.kernarg_bytes} argument bytes")
    for name, launches in program.sequences.items():
        lines.append(f"sequence {name}: {len(launches)} launches")
        lines += [_launch_text(launch) for launch in launches]
    return "\n".join(lines) + "\n"


def _launch_text(launch: Launch) -> str:
    shown = (f"{a.buffer}+{a.offset}" if isinstance(a, Ref) else str(a) for a in launch.args)
    return f"  {launch.note}: {launch.kernel.symbol}<{launch.grid}>({', '.join(shown)})"
