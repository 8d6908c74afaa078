"""One launch of each kernel of a program on an emulated chip, counted.

In come a program and its code objects, out go the counters of a kernel's first launch in a sequence. Matrices
get random valid weights, a few rows over and over; of a large model only what these launches read is ever in
memory. It never needs the model's weights, and never says what the counts mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgec.emulator.counters import Counters
from forgec.emulator.device import Device
from forgec.errors import TargetError
from forgec.plan.layouts import pack
from forgec.plan.program import STATE_BYTES, STATE_FIELDS, Launch, PackedTensor, Program, Ref
from forgec.plan.stages import EmbeddingParams
from forgec.synth.blocks import random_rows
from forgec.toolchain import CodeObject

__all__ = ["KernelRun", "run_kernels"]

#: Rows of a matrix that are made; the others repeat them, which changes nothing that is counted.
_ROWS = 64
_MEMORY = 60 << 30


@dataclass(frozen=True)
class KernelRun:
    """The first launch of a kernel in a sequence, and the device addresses of its weights."""

    sequence: str
    launch: Launch
    launches: int
    counters: Counters
    weights: frozenset[int]


def run_kernels(
    program: Program, objects: tuple[CodeObject, ...], position: int, sequences: tuple[str, ...]
) -> Iterator[KernelRun]:
    """Run each kernel of ``sequences`` once: decoding at ``position``, prefill with a whole chunk at 0.

    Raises: TargetError for a target that the emulator does not run, EmulatorTrap, DeviceError.
    """
    if program.target.driver != "hip":
        raise TargetError(
            f"the emulator runs AMD code objects, '{program.target.name}' is none",
            "Use --emulate with a gfx target.",
        )
    codes = {info.symbol: code for code in objects for info in code.inspection}
    bench = _Bench(program, codes)
    try:
        for name in sequences:
            launches = program.sequences[name]
            first = {launch.kernel.symbol: launch for launch in reversed(launches)}
            rows, at = (program.chunk, 0) if name == "prefill" else (1, position)
            for launch in launches:
                if launch is first[launch.kernel.symbol]:
                    count = sum(other.kernel.symbol == launch.kernel.symbol for other in launches)
                    bench.set_state(rows, at)
                    yield KernelRun(name, launch, count, *bench.run(launch))
    finally:
        bench.close()


class _Bench:
    """The buffers of a program without its weights, and a device to launch on."""

    def __init__(self, program: Program, codes: dict[str, CodeObject]) -> None:
        self._program, self._codes = program, codes
        self._device = Device(program.target.name, checks=False, profile=True, memory=_MEMORY)
        self._rng = np.random.default_rng(0)
        self._buffers = {
            buffer.name: self._device.malloc(max(buffer.bytes, 256))
            for buffer in program.buffers
            if buffer.name != "weights"
        }

    def close(self) -> None:
        self._device.close()

    def set_state(self, rows: int, position: int) -> None:
        """The device's state before a launch: a greedy sampler, token 1."""
        state = bytearray(STATE_BYTES)
        values = {"rows": rows, "position": position, "row": rows - 1, "token": 1}
        for field, value in {**values, "ring_mask": self._program.ring - 1}.items():
            struct.pack_into("<i", state, STATE_FIELDS[field], value)
        self._device.write(self._buffers["state"], state)

    def run(self, launch: Launch) -> tuple[Counters, frozenset[int]]:
        """Counters of a launch and the addresses of the weights made for it, which are freed again."""
        kernel, code = launch.kernel, self._codes[launch.kernel.symbol]
        segment = bytearray(kernel.kernarg_bytes)
        made: dict[int, int] = {}
        for argument, (_, offset) in zip(launch.args, kernel.unpack, strict=True):
            if isinstance(argument, Ref):
                if argument.buffer == "weights" and argument.offset not in made:
                    made[argument.offset] = self._weights(argument.offset, launch)
                elsewhere = self._buffers.get(argument.buffer, 0) + argument.offset
                address = made[argument.offset] if argument.buffer == "weights" else elsewhere
                struct.pack_into("<Q", segment, offset, address)
            else:
                struct.pack_into("<f" if isinstance(argument, float) else "<i", segment, offset, argument)
        module = self._device.load(code.data, code.assembly)
        counters = self._device.launch(module, kernel.symbol, launch.grid, kernel.block, bytes(segment))
        self._device.unload(module)
        for address in made.values():
            self._device.free(address)
        return counters, frozenset(made.values())

    def _weights(self, offset: int, launch: Launch) -> int:
        """A new allocation with random contents for the tensor at ``offset`` of weights.bin."""
        tensor = self._program.tensor_at[offset]
        address = self._device.malloc(tensor.bytes)
        if not isinstance(launch.kernel, EmbeddingParams):  # one row of it is read; zeros will do
            self._device.write(address, np.resize(self._piece(tensor), tensor.bytes))
        return address

    def _piece(self, tensor: PackedTensor) -> npt.NDArray[np.uint8]:
        """The beginning of a tensor: whole rows."""
        rows, kind = min(tensor.rows, _ROWS), tensor.format.upper()
        raw = random_rows(kind, rows, tensor.cols, tensor.cols**-0.5, self._rng).reshape(-1)
        if tensor.layout == "plain":
            return raw
        return pack(raw, tensor.format, tensor.layout, rows, tensor.cols)
