"""The emulator as a device of a package's runtime: ``python build/model-gfx1100 --device emulated "…"``.

In come the calls of the runtime's Driver protocol (matched by shape: a package's runtime is its own copy),
out go launches of the package's code objects on an emulated GPU. Every call is done when it returns; a
captured graph is the list of its launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgec.emulator.counters import Counters
from forgec.emulator.device import Device, Module
from forgec.emulator.instructions import read_instructions
from forgec.emulator.launch import CompiledKernel
from forgec.emulator.residency import resident_blocks
from forgec.emulator.traps import EmulatorTrap
from forgec.errors import DeviceError, UsageError
from forgec.targets import get_target

__all__ = [
    "DeviceInfo",
    "EmulatedDriver",
    "Function",
    "Graph",
    "open_checked",
    "open_emulated",
]

# A large GPU's memory would not fit the emulator's address range, nor any machine that runs it.
_LARGEST_MEMORY = 48 << 30


@dataclass(frozen=True)
class DeviceInfo:
    """The device as the runtime describes devices; memory in bytes."""

    name: str
    arch: str
    memory_total: int
    memory_free: int
    compute_units: int
    wave: int


@dataclass(frozen=True)
class Function:
    """A kernel of a module; ``ready`` is its translation, begun when the function was looked up."""

    module: Module
    symbol: str
    ready: Future[CompiledKernel]


@dataclass(frozen=True)
class Launch:
    """One recorded launch: blocks, threads a block, argument bytes, bytes of dynamic LDS."""

    function: Function
    grid: int
    block: int
    kernarg: bytes
    lds: int


@dataclass(frozen=True)
class Graph:
    """A captured graph."""

    launches: tuple[Launch, ...]


class EmulatedDriver:
    """One emulated GPU with one queue.

    ``checks`` turns on all traps (uninitialised values, missing waits, LDS races) at a third of the speed;
    accesses outside of allocations always trap. ``memory`` is the capacity in bytes (None: the chip's). After
    a trap the device is lost, as a GPU would be: releasing things still works, everything else raises.
    ``observer`` is called with the counters of every launch; with ``profile`` they hold the cache lines and
    LDS conflicts of every memory instruction.
    """

    name = "emulated"
    queue_depth = 1  # a launch returns when it is done

    def __init__(
        self,
        arch: str,
        *,
        threads: int | None = None,
        checks: bool = False,
        memory: int | None = None,
        seed: int | None = None,
        profile: bool = False,
    ) -> None:
        """Raises: TargetError for an unknown chip, DeviceError for one that is no AMD GPU."""
        self._target = get_target(arch)
        total = min(self._target.memory_bytes, _LARGEST_MEMORY) if memory is None else memory
        self._device = Device(arch, threads, seed, checks=checks, memory=total, profile=profile)
        self._translators = ThreadPoolExecutor(self._device.options.threads, "emulator-translate")
        self._capture: list[Launch] | None = None
        self._lost: EmulatorTrap | None = None
        self._closed = False
        self.observer: Callable[[Counters], None] | None = None

    def describe(self) -> DeviceInfo:
        arena = self._device.arena
        return DeviceInfo(
            name=f"emulated {self._target.title}",
            arch=self._target.name,
            memory_total=arena.capacity,
            memory_free=arena.capacity - arena.used,
            compute_units=self._target.compute_units,
            wave=self._target.wave,
        )

    # ---- memory ----

    def malloc(self, size: int) -> int:
        """Raises: DeviceError with the numbers when the memory is not there."""
        self._check_alive()
        return self._device.malloc(size)

    def free(self, address: int) -> None:
        self._device.free(address)

    def memset(self, address: int, byte: int, size: int) -> None:
        self._check_alive()
        self._device.fill(address, byte, size)

    def upload(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._check_alive()
        self._device.write(address, data)

    def download(self, address: int, into: bytearray | memoryview) -> None:
        """Raises: DeviceError outside an allocation and, with checks, for bytes that nobody ever wrote."""
        self._check_alive()
        target = memoryview(into).cast("B")
        target[:] = self._device.read_bytes(address, len(target))

    # ---- kernels ----

    def load_module(self, data: bytes, name: str, path: Path | None = None) -> Module:
        """``path`` is the code object's file in its package, beside whose source it can be read.

        Raises: DeviceError for a damaged code object or another chip's.
        """
        self._check_alive()
        try:
            module = self._device.load(data)
            module.raw = read_instructions(module.code, path)
        except DeviceError as error:
            raise DeviceError(f"module '{name}': {error.message}", error.hint) from error
        return module

    def module_unload(self, module: Module) -> None:
        self._device.unload(module)

    def get_function(self, module: Module, symbol: str) -> Function:
        """Look a kernel up and begin to translate it in the background.

        Raises: DeviceError when the module has no such kernel.
        """
        self._check_alive()
        if symbol not in module.kernels:
            names = ", ".join(sorted(module.kernels)) or "none"
            raise DeviceError(f"the code object has no kernel '{symbol}'", f"its kernels are: {names}")
        ready = self._translators.submit(self._device.compiled, module, symbol)
        return Function(module, symbol, ready)

    def launch(self, function: Function, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """Run a kernel to its end, or record it while a graph is captured.

        Raises: DeviceError (an instruction that is not covered, an illegal shape), EmulatorTrap.
        """
        self._check_alive()
        launch = Launch(function, grid, block, bytes(kernarg), lds)
        self._check_launch(launch)
        if self._capture is None:
            self._run(launch)
        else:
            self._capture.append(launch)

    def resident_blocks(self, function: Function, block: int, lds: int = 0) -> int:
        """Blocks of ``block`` threads that the chip holds at once: the most that may wait for each other."""
        return resident_blocks(self._target, function.ready.result().kernel, block, lds)

    def launch_cooperative(
        self, function: Function, grid: int, block: int, kernarg: bytes, lds: int = 0
    ) -> None:
        """``launch`` of blocks that wait for each other.

        Raises: DeviceError when they do not all fit the chip at once, else as ``launch``.
        """
        self._check_alive()
        most = self.resident_blocks(function, block, lds)
        if grid > most:
            raise DeviceError(
                f"kernel '{function.symbol}' cannot run {grid} blocks of {block} threads that wait"
                " for each other",
                f"{self._target.name} holds {most} of them at once",
            )
        self.launch(function, grid, block, kernarg, lds)

    def _check_launch(self, launch: Launch) -> None:
        """Refuse what can never run, before a graph holds it."""
        kernel = launch.function.ready.result().kernel
        limit = min(kernel.max_threads, self._target.max_threads)
        if launch.grid < 1 or not 0 < launch.block <= limit:
            raise DeviceError(
                f"kernel '{kernel.name}' cannot run {launch.grid} blocks of {launch.block} threads",
                f"it was compiled for 1 to {limit} threads a block",
            )
        if kernel.lds_size + launch.lds > self._target.lds_bytes:
            raise DeviceError(
                f"kernel '{kernel.name}' needs {kernel.lds_size + launch.lds} bytes of LDS, "
                f"{self._target.name} has {self._target.lds_bytes}"
            )
        if len(launch.kernarg) < kernel.explicit_size:
            raise DeviceError(
                f"kernel '{kernel.name}' takes {kernel.explicit_size} bytes of arguments, "
                f"found {len(launch.kernarg)}"
            )

    def _run(self, launch: Launch) -> None:
        function = launch.function
        try:
            counters = self._device.launch(
                function.module, function.symbol, launch.grid, launch.block, launch.kernarg, launch.lds
            )
        except EmulatorTrap as trap:
            self._lost = trap
            raise
        if self.observer is not None:
            self.observer(counters)

    def synchronize(self) -> None:
        self._check_alive()

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise DeviceError(f"the emulated device is lost since {self._lost.message}", self._lost.hint)

    # ---- graphs and time ----

    def graph_begin(self) -> None:
        """Raises: DeviceError when a graph is being captured already."""
        self._check_alive()
        if self._capture is not None:
            raise DeviceError("a graph is being captured already")
        self._capture = []

    def graph_end(self) -> Graph:
        """Raises: DeviceError when no graph was begun."""
        if self._capture is None:
            raise DeviceError("no graph is being captured")
        launches, self._capture = tuple(self._capture), None
        return Graph(launches)

    def graph_launch(self, graph: Graph) -> None:
        """Raises: EmulatorTrap."""
        self._check_alive()
        for launch in graph.launches:
            self._run(launch)

    def graph_destroy(self, graph: Graph) -> None:
        """A graph owns nothing but its recorded bytes."""

    def timestamp(self) -> float:
        self._check_alive()
        return time.perf_counter()

    def elapsed(self, start: float, stop: float) -> float:
        """Seconds of this machine, not of the chip."""
        return stop - start

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._translators.shutdown(cancel_futures=True)
        self._device.close()


def open_emulated(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> EmulatedDriver:
    """What ``--device emulated`` opens: the package's chip, fast, with bounds checked.

    ``manifest`` is the package's manifest.json, ``options`` has the keys ``package``, ``threads`` and
    ``index``.

    Raises: UsageError for a device number other than 0, DeviceError for a package that is not for an AMD GPU.
    """
    return _open(manifest, options)


def open_checked(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> EmulatedDriver:
    """What ``--device emulated-checked`` opens: as ``open_emulated``, with every trap on."""
    return _open(manifest, options, checks=True)


def _open(manifest: Mapping[str, Any], options: Mapping[str, Any], *, checks: bool = False) -> EmulatedDriver:
    target = manifest["target"]
    if not str(target["family"]).startswith("gfx"):
        raise DeviceError(
            f"the emulator runs AMD code objects, and the package is for target '{target['name']}'",
            "leave out --device, or compile the model with --arch gfx1100",
        )
    if options.get("index"):
        raise UsageError(
            f"there is no device {options['index']}: the emulator has one", "use --device emulated"
        )
    return EmulatedDriver(target["name"], threads=options.get("threads"), checks=checks)
