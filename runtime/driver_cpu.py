"""The CPU as a device: kernels are functions of shared objects, run by a thread pool written in C.

Addresses are ordinary addresses of this process, so memory-mapped weights are used in place. A captured graph
is an array of launches that one C call runs from end to end with the GIL released. Never interprets a kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .driver import Buffer, DeviceInfo, DriverOptions
from .errors import DeviceError, UsageError

__all__ = ["LEVELS", "POOL_FILE", "CpuDriver", "cpu_features", "default_threads", "missing_features"]

POOL_FILE = "kernels/pool.so"
MAX_THREADS = 1024

# Flags of /proc/cpuinfo that a micro-architecture level adds (x86-64 psABI, table 3.1); "abm" is LZCNT there.
_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
LEVELS = {
    "x86-64-v2": _V2,
    "x86-64-v3": _V3,
    "x86-64-v4": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


class Launch(ctypes.Structure):
    """``struct Launch`` of the pool: one kernel and its packed arguments."""

    _fields_ = (("function", ctypes.c_void_p), ("kernarg", ctypes.c_void_p))


@dataclass(frozen=True)
class Graph:
    """A captured list; ``kernargs`` only keeps the memory alive that ``launches`` points to."""

    launches: Any
    count: int
    kernargs: tuple[Any, ...]


class CpuDriver:
    """Runs every launch as one block per thread, and returns when it is done."""

    name = "cpu"
    queue_depth = 1

    def __init__(self, options: DriverOptions) -> None:
        _check_features(options)
        self._threads = _check_threads(options.threads)
        self._options = options
        self._memory: dict[int, mmap.mmap] = {}
        self._adopted: list[Any] = []
        self._modules: list[Any] = []
        self._capture: list[tuple[int, Any]] | None = None
        self._pool: int | None = None
        library = _open_library(options.package / POOL_FILE)
        self._create, self._run, self._destroy = _pool_functions(library)
        self._modules.append(library)
        self._pool = self._create(self._threads)
        if not self._pool:
            raise DeviceError(
                f"the system refused to start {self._threads} threads", "choose fewer with --threads"
            )

    @property
    def threads(self) -> int:
        return self._threads

    def describe(self) -> DeviceInfo:
        total, free = _memory()
        return DeviceInfo(_cpu_name(), os.uname().machine, total, free, self._threads, 1)

    def malloc(self, size: int) -> int:
        """Zeroed, page-aligned memory. Raises: DeviceError when the system has none left."""
        try:
            region = mmap.mmap(-1, max(size, 1))
        except (OSError, ValueError, OverflowError) as error:
            raise DeviceError(
                f"the system refused {size} bytes of memory", "close other programs, or use a smaller context"
            ) from error
        if size >= 2 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
            # A hint only: kernels without transparent huge pages refuse it.
            _ignoring_os_error(region.madvise, mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        self._memory[address] = region
        return address

    def free(self, address: int) -> None:
        self._memory.pop(address).close()

    def memset(self, address: int, byte: int, size: int) -> None:
        ctypes.memset(address, byte, size)

    def upload(self, address: int, data: Buffer) -> None:
        ctypes.memmove(address, _address_of(data), memoryview(data).nbytes)

    def download(self, address: int, into: bytearray | memoryview) -> None:
        ctypes.memmove(_address_of(into), address, memoryview(into).nbytes)

    def adopt(self, view: memoryview) -> int | None:
        """Host memory is device memory. The view is kept until ``close``."""
        self._adopted.append(view)
        return _address_of(view)

    def fetch(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def wait(self, ticket: bytes) -> bytes:
        return ticket

    def load_module(self, data: bytes, name: str, path: Path | None = None) -> Any:
        """Open the shared object at ``path``; ``data``, its bytes, serve only where there is no such file."""
        library = _open_library(path) if path is not None else _open_bytes(data, name)
        self._modules.append(library)
        return library

    def module_unload(self, module: Any) -> None:
        """Forget a module. Its code stays mapped: a graph may still point into it."""
        self._modules.remove(module)

    def get_function(self, module: Any, symbol: str) -> int:
        try:
            function = getattr(module, symbol)
        except AttributeError:
            raise DeviceError(
                f"'{module._name}' has no kernel '{symbol}'",
                "the package is damaged: compile the model again",
            ) from None
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        return address

    def launch(self, function: int, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """Queue or run one kernel. ``grid`` and ``block`` are a GPU's: here each thread is one block."""
        arguments = _aligned_copy(kernarg)
        if self._capture is not None:
            self._capture.append((function, arguments))
            return
        self._run(self._pool, ctypes.byref(Launch(function, ctypes.addressof(arguments))), 1)

    def synchronize(self) -> None:
        """Nothing to wait for: launches return when they are done."""

    def graph_begin(self) -> None:
        self._capture = []

    def graph_end(self) -> Graph:
        captured, self._capture = self._capture or [], None
        launches = (Launch * len(captured))()
        for entry, (function, arguments) in zip(launches, captured, strict=True):
            entry.function = function
            entry.kernarg = ctypes.addressof(arguments)
        return Graph(launches, len(captured), tuple(arguments for _, arguments in captured))

    def graph_launch(self, graph: Graph) -> None:
        self._run(self._pool, graph.launches, graph.count)

    def graph_destroy(self, graph: Graph) -> None:
        """Nothing to release besides Python's own memory."""

    def timestamp(self) -> float:
        return time.perf_counter()

    def elapsed(self, start: float, stop: float) -> float:
        return stop - start

    def close(self) -> None:
        """End the threads and release all memory; the driver is unusable afterwards."""
        if self._pool is not None:
            self._destroy(self._pool)
            self._pool = None
        self._adopted.clear()
        self._memory.clear()


def cpu_features(cpuinfo: str | None = None) -> frozenset[str]:
    """The ``flags`` of the first processor in ``/proc/cpuinfo``; empty where there is no such file."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return frozenset()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def missing_features(target: str, requires: tuple[str, ...], present: frozenset[str]) -> list[str]:
    """What ``present`` lacks of a target's own list, or else of its micro-architecture level."""
    wanted = requires or LEVELS.get(target, ())
    return [feature for feature in wanted if feature not in present]


def default_threads() -> int:
    """Physical cores that this process may use, within its control group's quota.

    Decoding is bound by memory bandwidth and barriers: the second hardware thread of a core only adds to the
    wait.
    """
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota(), MAX_THREADS))


def _quota() -> int:
    """Whole processors of the version 2 control group's ``cpu.max``; MAX_THREADS where it sets none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return MAX_THREADS if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return MAX_THREADS


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads are not possible", f"give a number from 1 to {MAX_THREADS}")
    return threads


def _check_features(options: DriverOptions) -> None:
    if os.uname().sysname != "Linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise DeviceError(
            f"CPU packages run on 64-bit Linux only, and this is {os.uname().sysname}",
            "use a Linux machine or WSL",
        )
    machine = os.uname().machine
    if machine != "x86_64" and (options.target.startswith("x86-64") or options.requires):
        raise DeviceError(
            f"the package is for target '{options.target}', and this is a machine of type '{machine}'",
            "compile the model on this machine with --arch native",
        )
    missing = missing_features(options.target, options.requires, cpu_features())
    if missing:
        raise DeviceError(
            f"this processor lacks {', '.join(missing)}, which a package for '{options.target}' needs",
            "run it on a newer processor, or compile the model on this machine with --arch native",
        )


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DeviceError(
            f"'{path.name}' cannot be loaded: {error}",
            "check that the folder is not mounted noexec; compile the model again if the file is damaged",
        ) from error


def _open_bytes(data: bytes, name: str) -> ctypes.CDLL:
    """Load by way of a file: paths of /proc/self/fd recur, and the loader would give an older library."""
    with tempfile.NamedTemporaryFile(suffix="-" + Path(name).name) as file:
        file.write(data)
        file.flush()
        return _open_library(Path(file.name))


def _pool_functions(library: ctypes.CDLL) -> tuple[Any, Any, Any]:
    try:
        create, run, destroy = (
            library.forgec_pool_create,
            library.forgec_pool_run,
            library.forgec_pool_destroy,
        )
    except AttributeError as error:
        raise DeviceError(
            f"'{POOL_FILE}' is no thread pool: {error}", "the package is damaged: compile the model again"
        ) from error
    create.argtypes, create.restype = (ctypes.c_int,), ctypes.c_void_p
    run.argtypes, run.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int), None
    destroy.argtypes, destroy.restype = (ctypes.c_void_p,), None
    return create, run, destroy


def _aligned_copy(kernarg: bytes) -> Any:
    """A copy that starts 8-byte aligned, as the arguments of the kernel expect."""
    words = max(1, (len(kernarg) + 7) // 8)
    return (ctypes.c_uint64 * words).from_buffer_copy(bytes(kernarg).ljust(8 * words, b"\0"))


def _address_of(data: Buffer) -> int:
    """Address of a contiguous buffer, read-only ones included (which ctypes' ``from_buffer`` refuses)."""
    import numpy  # kept out of the import of the drivers that do not need it

    return int(numpy.frombuffer(data, dtype=numpy.uint8).ctypes.data)


def _memory() -> tuple[int, int]:
    """Total and available memory in bytes; 0 where the system does not say."""
    values = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, rest = line.partition(":")
            values[key] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return os.uname().machine


def _ignoring_os_error(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except OSError:
        return
