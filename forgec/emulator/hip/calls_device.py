"""Served HIP calls about the device itself, versions and errors."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_int, c_size_t, c_uint, c_void_p
from typing import Any, ClassVar

from forgec.emulator.hip.constants import Error
from forgec.emulator.hip.properties import attributes, capability, properties
from forgec.emulator.hip.state import HipError, State, store

__all__ = ["DeviceCalls"]

_VERSION = 7_00_00000


class DeviceCalls:
    """``SIGNATURES``: argument types by call, in the order of calls.h."""

    SIGNATURES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hipInit": (c_uint,),
        "hipRuntimeGetVersion": (c_void_p,),
        "hipDriverGetVersion": (c_void_p,),
        "hipGetLastError": (),
        "hipPeekAtLastError": (),
        "hipDrvGetErrorName": (c_int, c_void_p),
        "hipDrvGetErrorString": (c_int, c_void_p),
        "hipGetDeviceCount": (c_void_p,),
        "hipGetDevice": (c_void_p,),
        "hipSetDevice": (c_int,),
        "hipDeviceGet": (c_void_p, c_int),
        "hipDeviceGetName": (c_void_p, c_int, c_int),
        "hipDeviceGetAttribute": (c_void_p, c_int, c_int),
        "hipDeviceComputeCapability": (c_void_p, c_void_p, c_int),
        "hipDeviceTotalMem": (c_void_p, c_int),
        "hipGetDevicePropertiesR0600": (c_void_p, c_int),
        "hipDeviceSynchronize": (),
        "hipDeviceReset": (),
    }

    def __init__(self, state: State) -> None:
        self._state = state
        # Strings that callers keep pointers to.
        self._names = {e.value: ctypes.create_string_buffer(e.name.encode()) for e in Error}
        self._texts = {e.value: ctypes.create_string_buffer(e.text.encode()) for e in Error}

    def hipInit(self, flags: int) -> None:
        if flags:
            raise HipError(Error.hipErrorInvalidValue)

    def hipRuntimeGetVersion(self, version: int | None) -> None:
        store(version, c_int, _VERSION)

    def hipDriverGetVersion(self, version: int | None) -> None:
        store(version, c_int, _VERSION)

    def hipGetLastError(self) -> Error:
        last, self._state.last_error = self._state.last_error, Error.hipSuccess
        return last

    def hipPeekAtLastError(self) -> Error:
        return self._state.last_error

    def text_address(self, code: int, name: bool) -> int:
        """Address of an error's name or sentence, valid for as long as the front is."""
        table = self._names if name else self._texts
        return ctypes.addressof(table.get(code, table[Error.hipErrorUnknown]))

    def hipDrvGetErrorName(self, code: int, text: int | None) -> None:
        self._store_text(code, text, name=True)

    def hipDrvGetErrorString(self, code: int, text: int | None) -> None:
        self._store_text(code, text, name=False)

    def _store_text(self, code: int, text: int | None, name: bool) -> None:
        if code not in self._names:
            raise HipError(Error.hipErrorInvalidValue)
        store(text, c_void_p, self.text_address(code, name))

    def _check_device(self, device: int) -> None:
        if device != 0:
            raise HipError(Error.hipErrorInvalidDevice)

    def hipGetDeviceCount(self, count: int | None) -> None:
        store(count, c_int, 1)

    def hipGetDevice(self, device: int | None) -> None:
        store(device, c_int, 0)

    def hipSetDevice(self, device: int) -> None:
        self._check_device(device)

    def hipDeviceGet(self, device: int | None, index: int) -> None:
        self._check_device(index)
        store(device, c_int, index)

    def hipDeviceGetName(self, text: int | None, size: int, device: int) -> None:
        self._check_device(device)
        if not text or size < 1:
            raise HipError(Error.hipErrorInvalidValue)
        name = properties(self._state.target, self._state.total).name[: size - 1] + b"\0"
        ctypes.memmove(text, name, len(name))

    def hipDeviceGetAttribute(self, value: int | None, attribute: int, device: int) -> None:
        self._check_device(device)
        table = attributes(self._state.target, self._state.total)
        if attribute not in table:
            raise HipError(Error.hipErrorInvalidValue)
        store(value, c_int, table[attribute])

    def hipDeviceComputeCapability(self, major: int | None, minor: int | None, device: int) -> None:
        self._check_device(device)
        numbers = capability(self._state.target.name)
        store(major, c_int, numbers[0])
        store(minor, c_int, numbers[1])

    def hipDeviceTotalMem(self, size: int | None, device: int) -> None:
        self._check_device(device)
        store(size, c_size_t, self._state.total)

    def hipGetDevicePropertiesR0600(self, into: int | None, device: int) -> None:
        self._check_device(device)
        if not into:
            raise HipError(Error.hipErrorInvalidValue)
        filled = properties(self._state.target, self._state.total)
        ctypes.memmove(into, ctypes.byref(filled), ctypes.sizeof(filled))

    def hipDeviceSynchronize(self) -> None:
        self._state.forbid_while_capturing()
        self._state.wait_all()

    def hipDeviceReset(self) -> None:
        self._state.reset()
