"""NVIDIA GPUs through the CUDA driver API: a stream and one beside it, PTX modules, captured graphs.

In come the calls of the Driver protocol, out go calls of ``libcuda.so.1``. Needs the NVIDIA driver and
nothing else; the driver itself compiles the PTX when a module is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from .driver import DeviceInfo, DriverOptions, format_bytes
from .errors import DeviceError, UsageError
from .libcuda import CUDA_SUCCESS, ERROR_NO_BINARY, ERROR_OUT_OF_MEMORY, CudaLibrary
from .staging import StagedTransfers, Staging

__all__ = ["CudaDriver"]

# Values of cuda.h.
_ATTRIBUTE_WARP_SIZE = 10
_ATTRIBUTE_MULTIPROCESSORS = 16
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76
_CAPTURE_THREAD_LOCAL = 1
_FUNC_MAX_DYNAMIC_SHARED = 8
_EVENT_DISABLE_TIMING = 2
_STREAM_NON_BLOCKING = 1
_JIT_INFO_LOG, _JIT_INFO_LOG_BYTES, _JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES = 3, 4, 5, 6
_EXTRA_END, _EXTRA_POINTER, _EXTRA_SIZE = 0, 1, 2
_LOG_BYTES = 8192
_STATIC_SHARED_BYTES = 48 << 10


class CudaDriver(StagedTransfers):
    """One GPU's primary context, the stream for everything, and one beside it for what goes to the host."""

    name = "cuda"
    queue_depth = 4

    def __init__(self, options: DriverOptions) -> None:
        """Raises: DeviceError without a driver or a GPU, or when the GPU cannot run the package's target."""
        self._cuda = CudaLibrary()
        self._thread = 0  # the last thread that made the context current
        self._context: c_void_p | None = None
        self._device = self._open_device(options.index)
        self._check_target(options)
        self._context = self._handle("cuDevicePrimaryCtxRetain", self._device)
        try:
            self._stream = self._handle("cuStreamCreate", _STREAM_NON_BLOCKING)
            self._beside = self._handle("cuStreamCreate", _STREAM_NON_BLOCKING)
            self._made = self.event_create()
            self._staging = Staging(self)
        except BaseException:
            self._try("cuDevicePrimaryCtxRelease_v2", self._device)
            raise

    def _open_device(self, index: int) -> int:
        self._cuda.call("cuInit", 0)
        count, device = c_int(), c_int()
        self._cuda.call("cuDeviceGetCount", byref(count))
        if index >= count.value:
            raise UsageError(
                f"there is no device 'cuda:{index}': the NVIDIA driver lists {count.value}",
                "nvidia-smi lists the GPUs; CUDA_VISIBLE_DEVICES may hide some",
            )
        self._cuda.call("cuDeviceGet", byref(device), index)
        return device.value

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self._cuda.call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value

    def _check_target(self, options: DriverOptions) -> None:
        """PTX for sm_NN runs on that compute capability and later ones, sm_NNa only on that one."""
        found = 10 * self._attribute(_ATTRIBUTE_MAJOR) + self._attribute(_ATTRIBUTE_MINOR)
        digits = options.target.removeprefix("sm_")
        exact = digits.endswith("a")
        wanted = int(digits.rstrip("a")) if digits.rstrip("a").isdigit() else 0
        if found < wanted or (exact and found != wanted):
            raise DeviceError(
                f"the package is for target '{options.target}', and '{self._device_name()}' is sm_{found}",
                f"compile the model with --arch sm_{found}, or use a newer GPU",
            )

    def _device_name(self) -> str:
        name = ctypes.create_string_buffer(256)
        self._cuda.call("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode("utf-8", "replace")

    def _try(self, symbol: str, *arguments: Any) -> int:
        """A call in this driver's context, from whichever thread; returns the result code."""
        thread = threading.get_ident()
        if thread != self._thread and self._context is not None:
            self._cuda.call("cuCtxSetCurrent", self._context)
            self._thread = thread
        return self._cuda.try_call(symbol, *arguments)

    def _call(self, symbol: str, *arguments: Any) -> None:
        code = self._try(symbol, *arguments)
        if code != CUDA_SUCCESS:
            raise self._cuda.error(symbol, code)

    def _handle(self, symbol: str, *arguments: Any) -> c_void_p:
        """Call a function whose first argument is where it puts a handle; returns the handle."""
        handle = c_void_p()
        self._call(symbol, byref(handle), *arguments)
        return handle

    def describe(self) -> DeviceInfo:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return DeviceInfo(
            name=self._device_name(),
            arch=f"sm_{self._attribute(_ATTRIBUTE_MAJOR)}{self._attribute(_ATTRIBUTE_MINOR)}",
            memory_total=total.value,
            memory_free=free.value,
            compute_units=self._attribute(_ATTRIBUTE_MULTIPROCESSORS),
            wave=self._attribute(_ATTRIBUTE_WARP_SIZE),
        )

    def malloc(self, size: int) -> int:
        """Raises: DeviceError with the numbers when the memory is not there."""
        address = c_uint64()
        code = self._try("cuMemAlloc_v2", byref(address), size)
        if code == ERROR_OUT_OF_MEMORY:
            info = self.describe()
            raise self._cuda.error(
                "cuMemAlloc",
                code,
                f"{format_bytes(size)} were asked for, {format_bytes(info.memory_free)} of "
                f"{format_bytes(info.memory_total)} are free",
            )
        if code != CUDA_SUCCESS:
            raise self._cuda.error("cuMemAlloc", code)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def memset(self, address: int, byte: int, size: int) -> None:
        self._call("cuMemsetD8Async", address, byte, size, self._stream)

    def copy(self, to: int, source: int, size: int) -> None:
        self._call("cuMemcpyDtoDAsync_v2", to, source, size, self._stream)

    def load_module(self, data: bytes, name: str, path: Path | None = None) -> c_void_p:
        """Load PTX text (or a cubin). Raises: DeviceError with the driver's compiler log."""
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        module = c_void_p()
        # PTX is a C string: ctypes' bytes end with the zero that it needs.
        code = self._try("cuModuleLoadDataEx", byref(module), c_char_p(data), 2, options, values)
        if code != CUDA_SUCCESS:
            lines = " ".join(log.value.decode("utf-8", "replace").split())
            detail = f"module '{name}'" + (f": {lines[:500]}" if lines and code != ERROR_NO_BINARY else "")
            raise self._cuda.error("cuModuleLoadDataEx", code, detail)
        return module

    def module_unload(self, module: c_void_p) -> None:
        self._call("cuModuleUnload", module)

    def get_function(self, module: c_void_p, symbol: str) -> c_void_p:
        function = c_void_p()
        code = self._try("cuModuleGetFunction", byref(function), module, symbol.encode())
        if code != CUDA_SUCCESS:
            raise self._cuda.error("cuModuleGetFunction", code, f"kernel '{symbol}'")
        return function

    def launch(self, function: c_void_p, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """``lds``: bytes of dynamic shared memory on top of the kernel's own."""
        self._allow_lds(function, lds)
        segment = ctypes.create_string_buffer(kernarg, len(kernarg))
        size = c_size_t(len(kernarg))
        extra = (c_void_p * 5)(
            _EXTRA_POINTER, ctypes.addressof(segment), _EXTRA_SIZE, ctypes.addressof(size), _EXTRA_END
        )
        self._call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, lds, self._stream, None, extra)

    def resident_blocks(self, function: c_void_p, block: int, lds: int = 0) -> int:
        """Blocks of ``block`` threads that the GPU holds at once."""
        self._allow_lds(function, lds)
        count = c_int()
        self._call("cuOccupancyMaxActiveBlocksPerMultiprocessor", byref(count), function, block, lds)
        return count.value * self._attribute(_ATTRIBUTE_MULTIPROCESSORS)

    def launch_cooperative(
        self, function: c_void_p, grid: int, block: int, kernarg: bytes, lds: int = 0
    ) -> None:
        """``launch`` of blocks that wait for each other; every argument of the kernel is a pointer.

        Raises: DeviceError when the GPU does not hold them all at once.
        """
        self._allow_lds(function, lds)
        segment = ctypes.create_string_buffer(kernarg, len(kernarg))
        # One address per argument: this call does not take a packed segment.
        first = ctypes.addressof(segment)
        arguments = (c_void_p * (len(kernarg) // 8))(*range(first, first + len(kernarg), 8))
        self._call(
            "cuLaunchCooperativeKernel", function, grid, 1, 1, block, 1, 1, lds, self._stream, arguments
        )

    def _allow_lds(self, function: c_void_p, lds: int) -> None:
        """More shared memory than a kernel may declare has to be asked for first."""
        if lds > _STATIC_SHARED_BYTES:
            self._call("cuFuncSetAttribute", function, _FUNC_MAX_DYNAMIC_SHARED, lds)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def graph_begin(self) -> None:
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)

    def graph_end(self) -> c_void_p:
        graph = c_void_p()
        self._call("cuStreamEndCapture", self._stream, byref(graph))
        try:
            return self._handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._try("cuGraphDestroy", graph)

    def graph_launch(self, graph: c_void_p) -> None:
        self._call("cuGraphLaunch", graph, self._stream)

    def graph_destroy(self, graph: c_void_p) -> None:
        self._call("cuGraphExecDestroy", graph)

    def timestamp(self) -> c_void_p:
        event = self._handle("cuEventCreate", 0)
        self.event_record(event)
        return event

    def elapsed(self, start: c_void_p, stop: c_void_p) -> float:
        """Seconds between two timestamps, both of which are used up."""
        milliseconds = c_float()
        self.event_synchronize(stop)
        self._call("cuEventElapsedTime", byref(milliseconds), start, stop)
        self.event_destroy(start)
        if stop is not start:
            self.event_destroy(stop)
        return milliseconds.value / 1e3

    def close(self) -> None:
        if self._context is None:
            return
        try:
            for stream in (self._stream, self._beside):
                self._try("cuStreamSynchronize", stream)
            # After a fault every call fails, and the fault has been reported by the call that met it.
            with contextlib.suppress(DeviceError):
                self._staging.close()
            self._try("cuEventDestroy_v2", self._made)
            for stream in (self._stream, self._beside):
                self._try("cuStreamDestroy_v2", stream)
        finally:
            self._try("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = None

    # What Staging asks for.

    def pinned_alloc(self, size: int) -> int:
        return self._handle("cuMemHostAlloc", size, 0).value or 0

    def pinned_free(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy_to_device(self, device: int, host: int, size: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, self._stream)

    def copy_to_host(self, host: int, device: int, size: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, self._stream)

    def copy_aside(self, host: int, device: int, size: int, done: c_void_p) -> None:
        self.event_record(self._made)
        self._call("cuStreamWaitEvent", self._beside, self._made, 0)
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, self._beside)
        self._call("cuEventRecord", done, self._beside)

    def event_create(self) -> c_void_p:
        return self._handle("cuEventCreate", _EVENT_DISABLE_TIMING)

    def event_record(self, event: c_void_p) -> None:
        self._call("cuEventRecord", event, self._stream)

    def event_synchronize(self, event: c_void_p) -> None:
        self._call("cuEventSynchronize", event)

    def event_destroy(self, event: c_void_p) -> None:
        self._call("cuEventDestroy_v2", event)
