"""The part of the CUDA driver API that the runtime uses, bound with ctypes.

Opens ``libcuda.so.1`` and gives each function its argument types; every call that fails becomes a DeviceError
with CUDA's own name for the failure. Knows nothing of models or packages.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

from .errors import DeviceError

__all__ = ["CUDA_SUCCESS", "ERROR_NO_BINARY", "ERROR_OUT_OF_MEMORY", "CudaLibrary"]

CUDA_SUCCESS = 0
ERROR_OUT_OF_MEMORY = 2
ERROR_NO_DEVICE = 100
ERROR_NO_BINARY = 209

_Device, _Pointer = c_int, c_uint64
_Handle, _HandleOut = c_void_p, POINTER(c_void_p)

# Symbol -> argument types; memory functions in their 64-bit (_v2) form.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(_Device), c_int),
    "cuDeviceGetName": (c_char_p, c_int, _Device),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, _Device),
    "cuDevicePrimaryCtxRetain": (_HandleOut, _Device),
    "cuDevicePrimaryCtxRelease_v2": (_Device,),
    "cuCtxSetCurrent": (_Handle,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_Pointer), c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemHostAlloc": (_HandleOut, c_size_t, c_uint),
    "cuMemFreeHost": (_Handle,),
    "cuMemsetD8Async": (_Pointer, c_ubyte, c_size_t, _Handle),
    "cuMemcpyHtoDAsync_v2": (_Pointer, c_void_p, c_size_t, _Handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _Pointer, c_size_t, _Handle),
    "cuMemcpyDtoDAsync_v2": (_Pointer, _Pointer, c_size_t, _Handle),
    "cuModuleLoadDataEx": (_HandleOut, c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (_Handle,),
    "cuModuleGetFunction": (_HandleOut, _Handle, c_char_p),
    "cuFuncSetAttribute": (_Handle, c_int, c_int),
    "cuLaunchKernel": (_Handle, *(c_uint,) * 7, _Handle, POINTER(c_void_p), POINTER(c_void_p)),
    "cuLaunchCooperativeKernel": (_Handle, *(c_uint,) * 7, _Handle, POINTER(c_void_p)),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": (POINTER(c_int), _Handle, c_int, c_size_t),
    "cuStreamCreate": (_HandleOut, c_uint),
    "cuStreamDestroy_v2": (_Handle,),
    "cuStreamSynchronize": (_Handle,),
    "cuStreamWaitEvent": (_Handle, _Handle, c_uint),
    "cuStreamBeginCapture_v2": (_Handle, c_int),
    "cuStreamEndCapture": (_Handle, _HandleOut),
    "cuGraphInstantiateWithFlags": (_HandleOut, _Handle, c_uint64),
    "cuGraphLaunch": (_Handle, _Handle),
    "cuGraphExecDestroy": (_Handle,),
    "cuGraphDestroy": (_Handle,),
    "cuEventCreate": (_HandleOut, c_uint),
    "cuEventRecord": (_Handle, _Handle),
    "cuEventSynchronize": (_Handle,),
    "cuEventElapsedTime": (POINTER(c_float), _Handle, _Handle),
    "cuEventDestroy_v2": (_Handle,),
}

_HINTS = {
    ERROR_OUT_OF_MEMORY: "free memory on the GPU (see nvidia-smi), or compile with a smaller --ctx",
    ERROR_NO_DEVICE: "check that nvidia-smi lists a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
    ERROR_NO_BINARY: "compile the model for this GPU: --arch sm_NN",
    222: "the driver is older than the package's PTX: update the NVIDIA driver",  # UNSUPPORTED_PTX_VERSION
    218: "update the NVIDIA driver; if that does not help, compile the model again",  # INVALID_PTX
    803: "update the NVIDIA driver, or reboot if it was just updated",  # SYSTEM_DRIVER_MISMATCH
}


class CudaLibrary:
    """``libcuda.so.1`` with checked calls: ``library.call("cuInit", 0)``."""

    def __init__(self, path: str = "libcuda.so.1") -> None:
        """Raises: DeviceError without an NVIDIA driver, or with one older than CUDA 11.4."""
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise DeviceError(
                f"there is no NVIDIA driver: {error}",
                "install the NVIDIA driver (it brings libcuda.so.1), or choose another --device",
            ) from error
        self._functions: dict[str, Any] = {}
        for symbol, types in _FUNCTIONS.items():
            try:
                function = getattr(self._library, symbol)
            except AttributeError as error:
                raise DeviceError(
                    f"the NVIDIA driver lacks '{symbol}'", "update the driver to 470 (CUDA 11.4) or newer"
                ) from error
            function.argtypes, function.restype = types, c_int
            self._functions[symbol] = function

    def try_call(self, symbol: str, *arguments: Any) -> int:
        """Call and return CUDA's result code."""
        code: int = self._functions[symbol](*arguments)
        return code

    def call(self, symbol: str, *arguments: Any) -> None:
        """Call. Raises: DeviceError unless it succeeds."""
        code = self._functions[symbol](*arguments)
        if code != CUDA_SUCCESS:
            raise self.error(symbol, code)

    def error(self, symbol: str, code: int, detail: str = "") -> DeviceError:
        """The error of a failed call, with CUDA's name and text for it."""
        name, text = self._text("cuGetErrorName", code), self._text("cuGetErrorString", code)
        message = f"{symbol} failed: {name or code} ({text or 'unknown'})" + (f"; {detail}" if detail else "")
        hint = _HINTS.get(code, "check nvidia-smi and the system log for GPU errors")
        return DeviceError(message, hint)

    def _text(self, symbol: str, code: int) -> str:
        text = c_char_p()
        self._functions[symbol](code, ctypes.byref(text))
        return text.value.decode("utf-8", "replace") if text.value else ""
