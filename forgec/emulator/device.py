"""The emulated device: memory, modules, launches. Code objects in, results and counters out.

This is the surface that kernel tests and the runtime driver use. Everything is synchronous: a launch returns
when its last workgroup ended, with its counters, or raises the trap that stopped it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from forgec.emulator.arena import Arena
from forgec.emulator.codeobject import CodeObject, Kernel, parse_code_object
from forgec.emulator.counters import Counters, static_counts
from forgec.emulator.disassembly import disassemble
from forgec.emulator.launch import (
    CompiledKernel,
    LaunchShape,
    RunOptions,
    dispatch_packet,
    kernarg_bytes,
    run_launch,
)
from forgec.emulator.native import compile_kernel
from forgec.emulator.translate import RawInstruction, translate
from forgec.errors import DeviceError

__all__ = ["Device", "Module"]

_LDS_LIMIT = {"gfx950": 160 * 1024}
_MAX_THREADS = 1024


@dataclass
class Module:
    """A loaded code object: its image lies in device memory at ``base`` plus each virtual address."""

    code: CodeObject
    base: int
    allocations: list[int]
    assembly: str | None
    raw: dict[int, RawInstruction] | None = None
    compiled: dict[tuple[str, bool], CompiledKernel] = field(default_factory=dict)

    @property
    def kernels(self) -> dict[str, Kernel]:
        return self.code.kernels

    def symbol_address(self, name: str) -> tuple[int, int]:
        """(device address, bytes) of a variable such as ``__device__ int counter``.

        Raises:
            DeviceError: no such symbol.
        """
        if name not in self.code.symbols:
            raise DeviceError(
                f"the code object has no symbol '{name}'", f"it has {', '.join(sorted(self.code.symbols))}"
            )
        address, size = self.code.symbols[name]
        return self.base + address, size


class Device:
    """One emulated GPU.

    ``arch`` names the chip (``gfx1100``, ``gfx942`` …), ``threads`` the CPU threads that share a launch.
    ``seed`` makes waves and workgroups interleave at random, reproducibly. ``checks`` turns on the traps
    that need shadow state (uninitialised values, missing waits and fences, LDS races) and costs about seven
    times the time; bounds are always checked. ``strict_alignment`` 1 traps on dword accesses below 4-byte
    alignment, 2 on every access below its own size. ``memory`` is the capacity in bytes; ``timeout`` the
    seconds a launch may take.
    """

    def __init__(
        self,
        arch: str = "gfx1100",
        threads: int | None = None,
        seed: int | None = None,
        *,
        checks: bool = True,
        memory: int = 16 << 30,
        profile: bool = False,
        strict_alignment: int = 0,
        timeout: float = 300.0,
    ) -> None:
        if not arch.startswith("gfx"):
            raise DeviceError(f"'{arch}' is not an AMD GPU", "use a name such as gfx1100 or gfx942")
        self.arch = arch
        self.options = RunOptions(
            threads or min(os.cpu_count() or 1, 8), checks, seed, strict_alignment, profile, timeout
        )
        self.arena = Arena(memory, shadow=checks)
        self._pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="emulator")
        self._argument_buffers: dict[tuple[str, int], int] = {}

    # ---- memory ----

    def malloc(self, size: int) -> int:
        """Allocate ``size`` bytes, uninitialised. Raises DeviceError when the device is full."""
        return self.arena.allocate(size)

    def free(self, pointer: int) -> None:
        """Free what ``malloc`` returned. Raises DeviceError for any other address."""
        self.arena.free(pointer)

    def write(self, pointer: int, data: bytes | bytearray | memoryview | npt.NDArray[np.generic]) -> None:
        """Copy host bytes (an array of any dtype, C order) to the device."""
        raw = (
            np.ascontiguousarray(data).view(np.uint8).reshape(-1)
            if isinstance(data, np.ndarray)
            else np.frombuffer(data, np.uint8)
        )
        if not raw.size:
            return
        self.arena.check(pointer, raw.size)
        self.arena.view(pointer, raw.size)[:] = raw.data
        self.arena.mark(pointer, raw.size)

    def read_bytes(self, pointer: int, size: int, *, allow_unwritten: bool = False) -> bytes:
        """Copy ``size`` bytes from the device; raises as ``read`` does."""
        self.arena.check(pointer, size)
        hole = None if allow_unwritten else self.arena.first_unwritten(pointer, size)
        if hole is not None:
            raise DeviceError(
                f"byte {hole} of the {size} read at {pointer:#x} holds no defined value:"
                " it was never written, or computed from something that was never written"
            )
        return bytes(self.arena.view(pointer, size))

    def read(
        self, pointer: int, dtype: npt.DTypeLike, count: int, *, allow_unwritten: bool = False
    ) -> npt.NDArray[np.generic]:
        """Copy ``count`` elements of ``dtype`` from the device.

        Raises:
            DeviceError: outside an allocation, or (with checks) bytes that neither host nor kernel ever
            wrote.
        """
        kind = np.dtype(dtype)
        raw = self.read_bytes(pointer, kind.itemsize * count, allow_unwritten=allow_unwritten)
        return np.frombuffer(raw, kind)

    def upload(self, array: npt.NDArray[np.generic]) -> int:
        """Allocate and write in one step; returns the pointer."""
        pointer = self.malloc(array.nbytes)
        self.write(pointer, array)
        return pointer

    def fill(self, pointer: int, value: int, size: int) -> None:
        """Set ``size`` bytes to ``value``."""
        self.arena.check(pointer, size)
        np.frombuffer(self.arena.view(pointer, size), np.uint8)[:] = value & 255
        self.arena.mark(pointer, size)

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy device bytes to device bytes."""
        self.arena.check(source, size)
        data = bytes(self.arena.view(source, size))
        self.write(destination, data)

    # ---- modules ----

    def load(self, code_object: bytes, assembly: str | None = None) -> Module:
        """Load a linked code object; ``assembly`` is the compiler's listing of the same code (see
        disassembly.py).

        Raises:
            DeviceError: not a code object, for another architecture, or with unresolved symbols.
        """
        code = parse_code_object(bytes(code_object))
        if code.arch != self.arch:
            raise DeviceError(
                f"the code object is for {code.arch}, the device is {self.arch}", "compile for this device"
            )
        size = max(s.address + s.size for s in code.segments)
        base = self.arena.allocate(size)
        self.arena.mark(base, size)
        for segment in code.segments:
            at = base + segment.address
            self.arena.view(at, len(segment.data))[:] = segment.data
        for relocation in code.relocations:
            value = (base + relocation.addend).to_bytes(8, "little")
            self.arena.view(base + relocation.offset, 8)[:] = value
        return Module(code, base, [base], assembly)

    def unload(self, module: Module) -> None:
        """Free a module's image."""
        for allocation in module.allocations:
            self.arena.free(allocation)
        module.allocations.clear()

    def compiled(self, module: Module, symbol: str) -> CompiledKernel:
        """Translate and compile a kernel, once per module.

        Raises:
            DeviceError: no such kernel, or an instruction that is not covered.
        """
        key = (symbol, self.options.checks)
        if key not in module.compiled:
            kernel = module.kernels.get(symbol)
            if kernel is None:
                names = ", ".join(sorted(module.kernels)) or "none"
                raise DeviceError(f"the code object has no kernel '{symbol}'", f"its kernels are: {names}")
            if module.raw is None:
                module.raw = disassemble(module.code, module.assembly)
            translation = translate(module.code, kernel, module.raw, self.options.checks)
            # a checked kernel is little more than calls, which -O0 compiles five times faster
            optimise = "-O0" if self.options.checks else "-O1"
            library = compile_kernel(translation.source, translation.functions, kernel.wave, optimise)
            module.compiled[key] = CompiledKernel(
                self.arch, kernel, translation, library, module.base, static_counts(translation)
            )
        return module.compiled[key]

    # ---- launches ----

    def launch(
        self,
        module: Module,
        symbol: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        kernarg: bytes,
        dynamic_lds: int = 0,
    ) -> Counters:
        """Run ``symbol`` over ``grid`` blocks of ``block`` threads with the explicit argument bytes; wait
        for the end.

        Raises:
            DeviceError: no such kernel, an illegal shape, too few argument bytes.
            EmulatorTrap: the kernel did something undefined, or did not finish.
        """
        ck = self.compiled(module, symbol)
        shape = LaunchShape(_three(grid), _three(block), dynamic_lds)
        self._check_shape(ck.kernel, shape)
        segment = kernarg_bytes(ck.kernel, kernarg, shape)
        at = self._buffer("kernarg", max(len(segment), 16))
        self.write(at, segment)
        packet = self._buffer("packet", 64)
        self.write(packet, dispatch_packet(shape, ck.kernel, at, ck.kernel.lds_size + dynamic_lds))
        return run_launch(ck, shape, self.arena, at, packet, self.options, self._pool)

    def _buffer(self, use: str, size: int) -> int:
        key = (use, size)
        if key not in self._argument_buffers:
            self._argument_buffers[key] = self.arena.allocate(size)
        return self._argument_buffers[key]

    def _check_shape(self, kernel: Kernel, shape: LaunchShape) -> None:
        threads = shape.block[0] * shape.block[1] * shape.block[2]
        if min(shape.grid) < 1 or threads < 1:
            raise DeviceError(
                f"kernel '{kernel.name}' cannot run over grid {shape.grid} and block {shape.block}"
            )
        if threads > min(kernel.max_threads, _MAX_THREADS):
            raise DeviceError(
                f"kernel '{kernel.name}' was compiled for at most {kernel.max_threads} threads a block,"
                f" found {threads}"
            )
        limit = _LDS_LIMIT.get(self.arch, 64 * 1024)
        lds = kernel.lds_size + shape.dynamic_lds
        if lds > limit:
            raise DeviceError(f"kernel '{kernel.name}' needs {lds} bytes of LDS, {self.arch} has {limit}")

    def close(self) -> None:
        """Stop the worker threads; the device cannot launch any more."""
        self._pool.shutdown()


def _three(value: int | Sequence[int]) -> tuple[int, int, int]:
    padded = [*([value] if isinstance(value, int) else value), 1, 1, 1][:3]
    return int(padded[0]), int(padded[1]), int(padded[2])
