"""What all served calls share: the emulated GPU, the handles given out, and the error that lost the device.

The calls themselves are in ``calls_*.py``. Every access happens under ``lock``.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from forgec.emulator.device import Device
from forgec.emulator.hip.configuration import Configuration
from forgec.emulator.hip.constants import CaptureMode, Error
from forgec.emulator.hip.streams import Action, Capture, Stream
from forgec.emulator.traps import EmulatorTrap
from forgec.errors import DeviceError
from forgec.targets import get_target

__all__ = ["Allocation", "HipError", "State", "store"]

log = logging.getLogger("forgec.emulator.hip")

T = TypeVar("T")

# The emulator's own capacity: the chip's is counted here, because pinned host memory lies in the same range.
_ADDRESS_SPACE = 60 << 30
_TRAP_CODES = {
    "out-of-bounds": Error.hipErrorIllegalAddress,
    "freed": Error.hipErrorIllegalAddress,
    "misaligned": Error.hipErrorIllegalAddress,
    "read-only": Error.hipErrorIllegalAddress,
    "hang": Error.hipErrorLaunchTimeOut,
}


class HipError(Exception):
    """Ends a call with ``code``."""

    def __init__(self, code: Error) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(frozen=True)
class Allocation:
    """``pinned``: host memory, which does not count against the device's."""

    size: int
    pinned: bool


def store(address: int | None, kind: Any, value: Any) -> None:
    """Write a result through a pointer of the caller's. Raises: HipError for a null pointer."""
    if not address:
        raise HipError(Error.hipErrorInvalidValue)
    kind.from_address(address).value = value


class State:
    """One process's view of one emulated GPU."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.target = get_target(configuration.arch)
        self.total = configuration.memory or self.target.memory_bytes
        self.lock = threading.RLock()
        self.last_failure = ""
        self._local = threading.local()
        self._next_handle = 0x10000
        self._begin()

    def _begin(self) -> None:
        config = self.configuration
        self.device = Device(
            config.arch, config.threads, config.seed, checks=config.checks, memory=_ADDRESS_SPACE
        )
        self.translators = ThreadPoolExecutor(self.device.options.threads, "emulator-translate")
        self.allocations: dict[int, Allocation] = {}
        self.null_stream = Stream(blocking=True)
        self.lost: Error | None = None
        self._handles: dict[int, object] = {}

    def reset(self) -> None:
        """Forget all memory, modules and streams; a lost device works again."""
        self.close()
        self._begin()

    def close(self) -> None:
        self.translators.shutdown(cancel_futures=True)
        self.device.close()

    # ---- handles ----

    def give(self, thing: object) -> int:
        """A new handle; no handle is ever used twice."""
        self._next_handle += 16
        self._handles[self._next_handle] = thing
        return self._next_handle

    def find(self, handle: int | None, kind: type[T]) -> T:
        """Raises: HipError when ``handle`` is no live handle of that kind."""
        thing = self._handles.get(handle or 0)
        if not isinstance(thing, kind):
            raise HipError(Error.hipErrorInvalidHandle)
        return thing

    def take(self, handle: int | None, kind: type[T]) -> T:
        """``find``, after which the handle is dead."""
        thing = self.find(handle, kind)
        del self._handles[handle or 0]
        return thing

    def things(self, kind: type[T]) -> list[T]:
        """Everything of a kind that has a live handle."""
        return [thing for thing in self._handles.values() if isinstance(thing, kind)]

    def forget(self, things: Sequence[object]) -> None:
        """Kill the handles of ``things``."""
        self._handles = {h: t for h, t in self._handles.items() if not any(t is thing for thing in things)}

    # ---- streams ----

    def stream(self, handle: int | None) -> Stream:
        return self.find(handle, Stream) if handle else self.null_stream

    def streams(self) -> list[Stream]:
        return [self.null_stream, *self.things(Stream)]

    def enqueue(self, stream: Stream, action: Action) -> int:
        """Queue or capture an action; returns its position. Raises: HipError (captures)."""
        if stream.capture is not None:
            self._check_valid(stream.capture)
            stream.capture.actions.append(action)
            return 0
        after: tuple[tuple[Stream, int], ...] = ()
        if stream is self.null_stream:
            others = [s for s in self.streams() if s.blocking and s is not stream]
            for other in others:
                if (
                    other.capture is not None
                    and other.capture.mode != CaptureMode.hipStreamCaptureModeRelaxed
                ):
                    other.capture.invalid.append("the null stream was used")
                    raise HipError(Error.hipErrorStreamCaptureImplicit)
            after = tuple((other, other.queued) for other in others)
        elif stream.blocking:
            after = ((self.null_stream, self.null_stream.queued),)
        return stream.push(action, after)

    def _check_valid(self, capture: Capture) -> None:
        if capture.invalid:
            raise HipError(Error.hipErrorStreamCaptureInvalidated)

    def wait(self, stream: Stream) -> None:
        """Run a stream's work. Raises: HipError on a capturing stream, and what the work raises."""
        if stream.capture is not None:
            stream.capture.invalid.append("the stream was waited for")
            raise HipError(Error.hipErrorStreamCaptureUnsupported)
        if stream is self.null_stream:
            self.enqueue(stream, lambda: None)  # which waits for the blocking streams
        stream.run()

    def wait_all(self) -> None:
        """Run everything that is queued."""
        for stream in self.streams():
            stream.run()

    def forbid_while_capturing(self) -> None:
        """Raises: HipError while this thread, or any in global mode, captures. The capture is broken then."""
        thread = threading.get_ident()
        for stream in self.streams():
            capture = stream.capture
            if capture is None or capture.mode == CaptureMode.hipStreamCaptureModeRelaxed:
                continue
            if capture.mode == CaptureMode.hipStreamCaptureModeGlobal or capture.thread == thread:
                capture.invalid.append("a call that may not be captured")
                raise HipError(Error.hipErrorStreamCaptureUnsupported)

    # ---- memory ----

    def used(self) -> int:
        """Device bytes that are allocated."""
        return sum(a.size for a in self.allocations.values() if not a.pinned)

    def in_arena(self, address: int) -> bool:
        return self.device.arena.base <= address < self.device.arena.limit

    def is_pinned(self, address: int) -> bool:
        return any(a.pinned and start <= address < start + a.size for start, a in self.allocations.items())

    def check_range(self, address: int, size: int) -> None:
        """Raises: HipError unless the bytes lie inside one allocation."""
        try:
            self.device.arena.check(address, size)
        except DeviceError as error:
            self.note(error)
            raise HipError(Error.hipErrorInvalidValue) from error

    # ---- errors ----

    @property
    def last_error(self) -> Error:
        return getattr(self._local, "error", Error.hipSuccess)

    @last_error.setter
    def last_error(self, code: Error) -> None:
        self._local.error = code

    def note(self, error: DeviceError) -> None:
        """Say on standard error what a bare code cannot."""
        self.last_failure = error.message
        log.error("%s", error.message)

    def lose(self, error: DeviceError) -> Error:
        """The device is lost: nothing that is queued will run, and every call returns the same code."""
        self.note(error)
        kind = error.kind if isinstance(error, EmulatorTrap) else ""
        self.lost = _TRAP_CODES.get(kind, Error.hipErrorLaunchFailure)
        for stream in self.streams():
            stream.drop()
        return self.lost


def read_pointer(address: int) -> int:
    """The pointer that lies at a host address; 0 for null."""
    return ctypes.c_void_p.from_address(address).value or 0
