"""AMD GPUs through hip-python: a stream and one beside it, code objects, captured graphs.

In come the calls of the Driver protocol, out go calls of ROCm's ``libamdhip64``. Kernel arguments travel as
one packed buffer; nothing here packs a Python value.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .driver import DeviceInfo, DriverOptions, format_bytes
from .errors import DeviceError, UsageError
from .libhip import HINT, load_hip
from .staging import StagedTransfers, Staging

__all__ = ["HipDriver"]

_MIN_VERSION = 6_00_00000  # hipRuntimeGetVersion: major * 10^7 + minor * 10^5 + patch
_EVENT_DISABLE_TIMING = 2
_STREAM_NON_BLOCKING = 1
_EXTRA_POINTER, _EXTRA_SIZE, _EXTRA_END = 1, 2, 3  # CUDA ends the list with 0, HIP with 3


@dataclass(frozen=True)
class Graph:
    """An instantiated graph, and the argument segments its nodes were captured with."""

    executable: Any
    segments: tuple[Any, ...]


class HipDriver(StagedTransfers):
    """One AMD GPU, the stream for everything, and one beside it for what goes to the host."""

    name = "hip"
    queue_depth = 4

    def __init__(self, options: DriverOptions) -> None:
        """Raises: DeviceError without hip-python, ROCm >= 6 or a GPU, or with a GPU of another kind."""
        self._hip = load_hip()
        self._thread = 0  # the last thread that chose the device
        self._index = options.index
        self._segments: list[Any] | None = None
        self._closed = False
        self._check_version()
        self._check_index()
        self._arch = self._read_arch()
        self._check_target(options)
        self._stream = self._call("hipStreamCreateWithFlags", _STREAM_NON_BLOCKING)
        self._beside = self._call("hipStreamCreateWithFlags", _STREAM_NON_BLOCKING)
        self._made = self.event_create()
        self._staging = Staging(self)

    def _call(self, symbol: str, *arguments: Any) -> Any:
        """Call on this driver's device. Returns what follows the result code (one value, a tuple, or None).

        Raises: DeviceError with HIP's name for the failure.
        """
        thread = threading.get_ident()
        if thread != self._thread:
            self._thread = thread
            self._call("hipSetDevice", self._index)
        try:
            code, *rest = getattr(self._hip, symbol)(*arguments)
        except (AttributeError, RuntimeError) as error:
            # hip-python opens the library, and looks each function up, at its first call.
            raise DeviceError(f"{symbol} cannot be called: {error}", HINT) from error
        if code != self._hip.hipError_t.hipSuccess:
            raise self._error(symbol, code)
        return rest[0] if len(rest) == 1 else tuple(rest) or None

    def _error(self, symbol: str, code: Any, detail: str = "") -> DeviceError:
        name = getattr(code, "name", str(code))
        hints = {
            "hipErrorOutOfMemory": "free memory on the GPU (rocm-smi shows it), or use a smaller --ctx",
            "hipErrorNoBinaryForGpu": "compile the model for this GPU; rocminfo tells its gfx number",
            "hipErrorNoDevice": "check that rocminfo lists a GPU, and that this user may open /dev/kfd",
        }
        message = f"{symbol} failed: {name}" + (f"; {detail}" if detail else "")
        return DeviceError(message, hints.get(name, "check rocminfo and the system log for GPU errors"))

    def _check_version(self) -> None:
        self._thread = threading.get_ident()  # no device is chosen yet: that needs one to exist
        version = self._call("hipRuntimeGetVersion")
        if version < _MIN_VERSION:
            raise DeviceError(
                f"the installed HIP runtime is version {version // 10**7}.{version // 10**5 % 100}, "
                "and this package needs ROCm 6 or newer",
                "update ROCm: https://rocm.docs.amd.com",
            )

    def _check_index(self) -> None:
        count = self._call("hipGetDeviceCount")
        if self._index >= count:
            raise UsageError(
                f"there is no device 'hip:{self._index}': ROCm lists {count}",
                "rocminfo lists the GPUs; HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES may hide some",
            )
        self._thread = 0

    def _read_arch(self) -> str:
        """``gfx90a`` of ``gfx90a:sramecc+:xnack-``. Only the property structure has it."""
        properties = self._call("hipGetDeviceProperties", self._index)
        text = properties.gcnArchName
        name = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
        return name.split("\0")[0].split(":")[0]

    def _check_target(self, options: DriverOptions) -> None:
        """A code object runs on exactly the chip it names, not on others of the family."""
        if self._arch != options.target:
            raise DeviceError(
                f"the package is for target '{options.target}', and the GPU is '{self._arch}'",
                f"compile the model with --arch {self._arch}",
            )
        wave = self._attribute("hipDeviceAttributeWarpSize")
        if wave != options.wave:
            raise DeviceError(
                f"the package is for waves of {options.wave} lanes, and the GPU runs waves of {wave}",
                f"compile the model with --arch {self._arch}",
            )

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._hip.hipDeviceAttribute_t, name)
        return int(self._call("hipDeviceGetAttribute", attribute, self._index))

    def describe(self) -> DeviceInfo:
        free, total = self._call("hipMemGetInfo")
        name = self._call("hipGetDeviceProperties", self._index).name
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        return DeviceInfo(
            name=text.split("\0")[0],
            arch=self._arch,
            memory_total=int(total),
            memory_free=int(free),
            compute_units=self._attribute("hipDeviceAttributeMultiprocessorCount"),
            wave=self._attribute("hipDeviceAttributeWarpSize"),
        )

    def malloc(self, size: int) -> int:
        """Raises: DeviceError with the numbers when the memory is not there."""
        try:
            return int(self._call("hipMalloc", size))
        except DeviceError as error:
            if "hipErrorOutOfMemory" not in error.message:
                raise
            info = self.describe()
            raise self._error(
                "hipMalloc",
                self._hip.hipError_t.hipErrorOutOfMemory,
                f"{format_bytes(size)} were asked for, {format_bytes(info.memory_free)} of "
                f"{format_bytes(info.memory_total)} are free",
            ) from error

    def free(self, address: int) -> None:
        self._call("hipFree", address)

    def memset(self, address: int, byte: int, size: int) -> None:
        self._call("hipMemsetAsync", address, byte, size, self._stream)

    def copy(self, to: int, source: int, size: int) -> None:
        self._call("hipMemcpyDtoDAsync", to, source, size, self._stream)

    def load_module(self, data: bytes, name: str, path: Path | None = None) -> Any:
        try:
            return self._call("hipModuleLoadData", data)
        except DeviceError as error:
            raise DeviceError(f"{error.message}; module '{name}'", error.hint) from error

    def module_unload(self, module: Any) -> None:
        self._call("hipModuleUnload", module)

    def get_function(self, module: Any, symbol: str) -> Any:
        try:
            return self._call("hipModuleGetFunction", module, symbol.encode())
        except DeviceError as error:
            raise DeviceError(f"{error.message}; kernel '{symbol}'", error.hint) from error

    def launch(self, function: Any, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """``lds``: bytes of dynamic LDS on top of the kernel's own."""
        segment = ctypes.create_string_buffer(kernarg, len(kernarg))
        size = c_size_t(len(kernarg))
        extra = (c_void_p * 5)(
            _EXTRA_POINTER, ctypes.addressof(segment), _EXTRA_SIZE, ctypes.addressof(size), _EXTRA_END
        )
        # As an address: hip-python would pack a tuple, value by value, in 64 microseconds.
        pointer = ctypes.addressof(extra)
        self._call(
            "hipModuleLaunchKernel", function, grid, 1, 1, block, 1, 1, lds, self._stream, None, pointer
        )
        if self._segments is not None:
            self._segments.append((segment, size, extra))

    def resident_blocks(self, function: Any, block: int, lds: int = 0) -> int:
        """Blocks of ``block`` threads that the GPU holds at once."""
        count = self._call("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", function, block, lds)
        return int(count) * int(self._attribute("hipDeviceAttributeMultiprocessorCount"))

    def launch_cooperative(self, function: Any, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """``launch`` of blocks that wait for each other; every argument of the kernel is a pointer.

        Raises: DeviceError when the GPU does not hold them all at once.
        """
        segment = ctypes.create_string_buffer(kernarg, len(kernarg))
        # One address per argument: this call does not take a packed segment.
        first = ctypes.addressof(segment)
        arguments = (c_void_p * (len(kernarg) // 8))(*range(first, first + len(kernarg), 8))
        pointer = ctypes.addressof(arguments)
        self._call(
            "hipModuleLaunchCooperativeKernel", function, grid, 1, 1, block, 1, 1, lds, self._stream, pointer
        )
        if self._segments is not None:
            self._segments.append((segment, arguments))

    def synchronize(self) -> None:
        self._call("hipStreamSynchronize", self._stream)

    def graph_begin(self) -> None:
        mode = self._hip.hipStreamCaptureMode.hipStreamCaptureModeThreadLocal
        self._call("hipStreamBeginCapture", self._stream, mode)
        self._segments = []

    def graph_end(self) -> Graph:
        segments, self._segments = self._segments or [], None
        graph = self._call("hipStreamEndCapture", self._stream)
        try:
            executable = self._call("hipGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("hipGraphDestroy", graph)
        return Graph(executable, tuple(segments))

    def graph_launch(self, graph: Graph) -> None:
        self._call("hipGraphLaunch", graph.executable, self._stream)

    def graph_destroy(self, graph: Graph) -> None:
        self._call("hipGraphExecDestroy", graph.executable)

    def timestamp(self) -> Any:
        event = self._call("hipEventCreateWithFlags", 0)
        self.event_record(event)
        return event

    def elapsed(self, start: Any, stop: Any) -> float:
        """Seconds between two timestamps, both of which are used up."""
        self.event_synchronize(stop)
        milliseconds = float(self._call("hipEventElapsedTime", start, stop))
        self.event_destroy(start)
        if stop is not start:
            self.event_destroy(stop)
        return milliseconds / 1e3

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # After a fault every call fails, and the fault has been reported by the call that met it.
        with contextlib.suppress(DeviceError):
            for stream in (self._stream, self._beside):
                self._call("hipStreamSynchronize", stream)
        with contextlib.suppress(DeviceError):
            self._staging.close()
        with contextlib.suppress(DeviceError):
            self.event_destroy(self._made)
            for stream in (self._stream, self._beside):
                self._call("hipStreamDestroy", stream)

    # What Staging asks for.

    def pinned_alloc(self, size: int) -> int:
        return int(self._call("hipHostMalloc", size, 0))

    def pinned_free(self, address: int) -> None:
        self._call("hipHostFree", address)

    def copy_to_device(self, device: int, host: int, size: int) -> None:
        self._call("hipMemcpyHtoDAsync", device, host, size, self._stream)

    def copy_to_host(self, host: int, device: int, size: int) -> None:
        self._call("hipMemcpyDtoHAsync", host, device, size, self._stream)

    def copy_aside(self, host: int, device: int, size: int, done: Any) -> None:
        self.event_record(self._made)
        self._call("hipStreamWaitEvent", self._beside, self._made, 0)
        self._call("hipMemcpyDtoHAsync", host, device, size, self._beside)
        self._call("hipEventRecord", done, self._beside)

    def event_create(self) -> Any:
        return self._call("hipEventCreateWithFlags", _EVENT_DISABLE_TIMING)

    def event_record(self, event: Any) -> None:
        self._call("hipEventRecord", event, self._stream)

    def event_synchronize(self, event: Any) -> None:
        self._call("hipEventSynchronize", event)

    def event_destroy(self, event: Any) -> None:
        self._call("hipEventDestroy", event)
