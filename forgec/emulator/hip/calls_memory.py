"""Served HIP calls that allocate, copy and fill memory.

Host memory from hipHostMalloc lies in the emulator's own range, so kernels can use it and copies from it wait
in the queue; copies from other host memory take their bytes at once, and copies to it wait, as HIP's do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_int, c_size_t, c_ubyte, c_uint, c_void_p
from typing import Any, ClassVar

from forgec.emulator.hip.constants import CopyKind, Error
from forgec.emulator.hip.state import Allocation, HipError, State, store
from forgec.emulator.hip.streams import Action, Stream

__all__ = ["MemoryCalls"]

_COPY = (c_void_p, c_void_p, c_size_t)


class MemoryCalls:
    """``SIGNATURES``: argument types by call, in the order of calls.h."""

    SIGNATURES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hipMalloc": (c_void_p, c_size_t),
        "hipFree": (c_void_p,),
        "hipHostMalloc": (c_void_p, c_size_t, c_uint),
        "hipHostFree": (c_void_p,),
        "hipHostGetDevicePointer": (c_void_p, c_void_p, c_uint),
        "hipMemGetInfo": (c_void_p, c_void_p),
        "hipMemcpy": (*_COPY, c_int),
        "hipMemcpyAsync": (*_COPY, c_int, c_void_p),
        "hipMemcpyHtoD": _COPY,
        "hipMemcpyDtoH": _COPY,
        "hipMemcpyDtoD": _COPY,
        "hipMemcpyHtoDAsync": (*_COPY, c_void_p),
        "hipMemcpyDtoHAsync": (*_COPY, c_void_p),
        "hipMemcpyDtoDAsync": (*_COPY, c_void_p),
        "hipMemset": (c_void_p, c_int, c_size_t),
        "hipMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
        "hipMemsetD8": (c_void_p, c_ubyte, c_size_t),
        "hipMemsetD8Async": (c_void_p, c_ubyte, c_size_t, c_void_p),
        "hipMemsetD32": (c_void_p, c_int, c_size_t),
        "hipMemsetD32Async": (c_void_p, c_int, c_size_t, c_void_p),
    }

    def __init__(self, state: State) -> None:
        self._state = state

    # ---- allocations ----

    def hipMalloc(self, pointer: int | None, size: int) -> None:
        self._state.forbid_while_capturing()
        if size > self._state.total - self._state.used():
            raise HipError(Error.hipErrorOutOfMemory)
        store(pointer, c_void_p, self._allocate(size, pinned=False))

    def hipHostMalloc(self, pointer: int | None, size: int, flags: int) -> None:
        self._state.forbid_while_capturing()
        address = self._allocate(size, pinned=True)
        store(pointer, c_void_p, address)
        if size:
            # The host writes where nobody sees it.
            self._state.device.arena.mark(address, size)

    def _allocate(self, size: int, pinned: bool) -> int:
        if not size:
            return 0
        address = self._state.device.malloc(size)
        self._state.allocations[address] = Allocation(size, pinned)
        return address

    def hipFree(self, pointer: int | None) -> None:
        self._release(pointer, pinned=False)

    def hipHostFree(self, pointer: int | None) -> None:
        self._release(pointer, pinned=True)

    def _release(self, pointer: int | None, pinned: bool) -> None:
        if not pointer:
            return
        found = self._state.allocations.get(pointer)
        if found is None or found.pinned != pinned:
            raise HipError(Error.hipErrorInvalidValue)
        self._state.forbid_while_capturing()
        self._state.wait_all()
        del self._state.allocations[pointer]
        self._state.device.free(pointer)

    def hipHostGetDevicePointer(self, device: int | None, host: int | None, flags: int) -> None:
        if not host or flags or not self._state.is_pinned(host):
            raise HipError(Error.hipErrorInvalidValue)
        store(device, c_void_p, host)

    def hipMemGetInfo(self, free: int | None, total: int | None) -> None:
        store(free, c_size_t, self._state.total - self._state.used())
        store(total, c_size_t, self._state.total)

    # ---- copies ----

    def hipMemcpy(self, to: int | None, source: int | None, size: int, kind: int) -> None:
        self._copy_and_wait(to, source, size, kind)

    def hipMemcpyAsync(
        self, to: int | None, source: int | None, size: int, kind: int, stream: int | None
    ) -> None:
        self._copy(to, source, size, kind, self._state.stream(stream))

    def hipMemcpyHtoD(self, to: int | None, source: int | None, size: int) -> None:
        self._copy_and_wait(to, source, size, CopyKind.hipMemcpyHostToDevice)

    def hipMemcpyDtoH(self, to: int | None, source: int | None, size: int) -> None:
        self._copy_and_wait(to, source, size, CopyKind.hipMemcpyDeviceToHost)

    def hipMemcpyDtoD(self, to: int | None, source: int | None, size: int) -> None:
        self._copy_and_wait(to, source, size, CopyKind.hipMemcpyDeviceToDevice)

    def hipMemcpyHtoDAsync(self, to: int | None, source: int | None, size: int, stream: int | None) -> None:
        self._copy(to, source, size, CopyKind.hipMemcpyHostToDevice, self._state.stream(stream))

    def hipMemcpyDtoHAsync(self, to: int | None, source: int | None, size: int, stream: int | None) -> None:
        self._copy(to, source, size, CopyKind.hipMemcpyDeviceToHost, self._state.stream(stream))

    def hipMemcpyDtoDAsync(self, to: int | None, source: int | None, size: int, stream: int | None) -> None:
        self._copy(to, source, size, CopyKind.hipMemcpyDeviceToDevice, self._state.stream(stream))

    def _copy_and_wait(self, to: int | None, source: int | None, size: int, kind: int) -> None:
        self._state.forbid_while_capturing()
        stream = self._state.null_stream
        self._copy(to, source, size, kind, stream)
        self._state.wait(stream)

    def _copy(self, to: int | None, source: int | None, size: int, kind: int, stream: Stream) -> None:
        if not size:
            return
        if not to or not source:
            raise HipError(Error.hipErrorInvalidValue)
        state = self._state
        if kind not in {known.value for known in CopyKind}:
            raise HipError(Error.hipErrorInvalidMemcpyDirection)
        self._check_end(to, size, kind, device_kinds=(1, 3))
        self._check_end(source, size, kind, device_kinds=(2, 3))
        capturing = stream.capture is not None
        if not capturing and not state.in_arena(source):
            kept = ctypes.create_string_buffer(ctypes.string_at(source, size), size)
            state.enqueue(stream, self._copy_action(to, kept, size))
            return
        state.enqueue(stream, self._copy_action(to, source, size))
        if not capturing and not state.in_arena(to):
            state.wait(stream)

    def _check_end(self, address: int, size: int, kind: int, device_kinds: tuple[int, int]) -> None:
        """One end of a copy must be what ``kind`` says, and lie in one allocation if it is the emulator's
        memory.
        """
        state = self._state
        if state.in_arena(address):
            state.check_range(address, size)
            fits = kind in (*device_kinds, CopyKind.hipMemcpyDefault) or state.is_pinned(address)
        else:
            fits = kind not in device_kinds
        if not fits:
            raise HipError(Error.hipErrorInvalidMemcpyDirection)

    def _copy_action(self, to: int, source: int | ctypes.Array[ctypes.c_char], size: int) -> Action:
        arena = self._state.device.arena
        in_arena = self._state.in_arena

        def copy() -> None:
            start = source if isinstance(source, int) else ctypes.addressof(source)
            # Again when it runs: a graph may outlive the memory that it copies.
            for address in (to, start):
                if in_arena(address):
                    arena.check(address, size)
            ctypes.memmove(to, start, size)
            if in_arena(to):
                arena.mark(to, size)

        return copy

    # ---- fills ----

    def hipMemset(self, to: int | None, value: int, size: int) -> None:
        self._fill(to, bytes([value & 255]), size, None)

    def hipMemsetAsync(self, to: int | None, value: int, size: int, stream: int | None) -> None:
        self._fill(to, bytes([value & 255]), size, stream)

    def hipMemsetD8(self, to: int | None, value: int, size: int) -> None:
        self._fill(to, bytes([value]), size, None)

    def hipMemsetD8Async(self, to: int | None, value: int, size: int, stream: int | None) -> None:
        self._fill(to, bytes([value]), size, stream)

    def hipMemsetD32(self, to: int | None, value: int, count: int) -> None:
        self._fill(to, (value & 0xFFFF_FFFF).to_bytes(4, "little"), count, None)

    def hipMemsetD32Async(self, to: int | None, value: int, count: int, stream: int | None) -> None:
        self._fill(to, (value & 0xFFFF_FFFF).to_bytes(4, "little"), count, stream)

    def _fill(self, to: int | None, unit: bytes, count: int, stream: int | None) -> None:
        """Filling does not wait, not even without a stream: HIP's is asynchronous to the host for device
        memory.
        """
        queue = self._state.stream(stream)
        if not count:
            return
        if not to:
            raise HipError(Error.hipErrorInvalidValue)
        size = count * len(unit)
        self._state.check_range(to, size)
        device = self._state.device

        def fill() -> None:
            if len(unit) == 1:
                device.fill(to, unit[0], size)
            else:
                device.write(to, unit * count)

        self._state.enqueue(queue, fill)
