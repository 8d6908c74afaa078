"""Served HIP calls about streams, events, stream capture and graphs.

A capture records one stream; forking it to others through events is refused, which HIP would allow.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from ctypes import c_float, c_int, c_size_t, c_uint, c_ulong, c_void_p
from typing import Any, ClassVar

from forgec.emulator.hip.constants import CaptureMode, CaptureStatus, Error
from forgec.emulator.hip.state import HipError, State, store
from forgec.emulator.hip.streams import Capture, Event, Graph, GraphExec, Record, Stream

__all__ = ["StreamCalls"]

_STREAM_NON_BLOCKING = 1
_EVENT_DISABLE_TIMING = 2


class StreamCalls:
    """``SIGNATURES``: argument types by call, in the order of calls.h."""

    SIGNATURES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hipStreamCreate": (c_void_p,),
        "hipStreamCreateWithFlags": (c_void_p, c_uint),
        "hipStreamCreateWithPriority": (c_void_p, c_uint, c_int),
        "hipStreamDestroy": (c_void_p,),
        "hipStreamSynchronize": (c_void_p,),
        "hipStreamQuery": (c_void_p,),
        "hipStreamWaitEvent": (c_void_p, c_void_p, c_uint),
        "hipEventCreate": (c_void_p,),
        "hipEventCreateWithFlags": (c_void_p, c_uint),
        "hipEventDestroy": (c_void_p,),
        "hipEventRecord": (c_void_p, c_void_p),
        "hipEventSynchronize": (c_void_p,),
        "hipEventQuery": (c_void_p,),
        "hipEventElapsedTime": (c_void_p, c_void_p, c_void_p),
        "hipStreamBeginCapture": (c_void_p, c_int),
        "hipStreamEndCapture": (c_void_p, c_void_p),
        "hipStreamIsCapturing": (c_void_p, c_void_p),
        "hipGraphInstantiate": (c_void_p, c_void_p, c_void_p, c_void_p, c_size_t),
        "hipGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulong),
        "hipGraphLaunch": (c_void_p, c_void_p),
        "hipGraphExecDestroy": (c_void_p,),
        "hipGraphDestroy": (c_void_p,),
    }

    def __init__(self, state: State) -> None:
        self._state = state

    # ---- streams ----

    def hipStreamCreate(self, stream: int | None) -> None:
        self.hipStreamCreateWithFlags(stream, 0)

    def hipStreamCreateWithFlags(self, stream: int | None, flags: int) -> None:
        if flags & ~_STREAM_NON_BLOCKING:
            raise HipError(Error.hipErrorInvalidValue)
        store(stream, c_void_p, self._state.give(Stream(blocking=not flags)))

    def hipStreamCreateWithPriority(self, stream: int | None, flags: int, priority: int) -> None:
        """There is one priority."""
        self.hipStreamCreateWithFlags(stream, flags)

    def hipStreamDestroy(self, stream: int | None) -> None:
        found = self._state.find(stream, Stream)
        if found.capture is None:
            found.run()  # what is queued still happens
        self._state.take(stream, Stream)

    def hipStreamSynchronize(self, stream: int | None) -> None:
        self._state.wait(self._state.stream(stream))

    def hipStreamQuery(self, stream: int | None) -> Error:
        """Each query is a moment in which the GPU does one more piece of work."""
        found = self._state.stream(stream)
        if found.capture is not None:
            self._state.wait(found)
        found.run_until(found.done + 1)
        return Error.hipSuccess if found.done == found.queued else Error.hipErrorNotReady

    def hipStreamWaitEvent(self, stream: int | None, event: int | None, flags: int) -> None:
        found, awaited = self._state.stream(stream), self._state.find(event, Event)
        if flags:
            raise HipError(Error.hipErrorInvalidValue)
        if awaited.capture is not found.capture:
            raise HipError(Error.hipErrorStreamCaptureIsolation)
        if awaited.record is not None and found.capture is None:
            found.push(lambda: None, ((awaited.record.stream, awaited.record.position),))

    # ---- events ----

    def hipEventCreate(self, event: int | None) -> None:
        self.hipEventCreateWithFlags(event, 0)

    def hipEventCreateWithFlags(self, event: int | None, flags: int) -> None:
        """Flags other than the one for timing say how to wait, which makes no difference here."""
        store(event, c_void_p, self._state.give(Event(timing=not flags & _EVENT_DISABLE_TIMING)))

    def hipEventDestroy(self, event: int | None) -> None:
        self._state.take(event, Event)

    def hipEventRecord(self, event: int | None, stream: int | None) -> None:
        found, on = self._state.find(event, Event), self._state.stream(stream)
        if on.capture is not None:
            self._state.enqueue(on, lambda: None)
            found.capture, found.record = on.capture, None
            return
        record = Record(on)
        record.position = self._state.enqueue(on, record.reach)
        found.capture, found.record = None, record

    def _recorded(self, event: int | None) -> Record | None:
        found = self._state.find(event, Event)
        if found.capture is not None:
            raise HipError(Error.hipErrorCapturedEvent)
        return found.record

    def hipEventSynchronize(self, event: int | None) -> None:
        record = self._recorded(event)
        if record is not None:
            record.stream.run_until(record.position)

    def hipEventQuery(self, event: int | None) -> Error:
        record = self._recorded(event)
        if record is None:
            return Error.hipSuccess
        record.stream.run_until(min(record.position, record.stream.done + 1))
        return Error.hipSuccess if record.stream.done >= record.position else Error.hipErrorNotReady

    def hipEventElapsedTime(
        self, milliseconds: int | None, start: int | None, stop: int | None
    ) -> Error | None:
        """Time of this machine, not of the chip."""
        records = [self._recorded(start), self._recorded(stop)]
        timed = all(self._state.find(event, Event).timing for event in (start, stop))
        first, last = records
        if first is None or last is None or not timed:
            raise HipError(Error.hipErrorInvalidHandle)
        if first.time is None or last.time is None:
            return Error.hipErrorNotReady
        store(milliseconds, c_float, (last.time - first.time) * 1e3)
        return None

    # ---- capture and graphs ----

    def hipStreamBeginCapture(self, stream: int | None, mode: int) -> None:
        if mode not in {known.value for known in CaptureMode}:
            raise HipError(Error.hipErrorInvalidValue)
        found = self._state.stream(stream)
        if found is self._state.null_stream:
            raise HipError(Error.hipErrorStreamCaptureUnsupported)
        if found.capture is not None:
            raise HipError(Error.hipErrorInvalidValue)
        found.capture = Capture(CaptureMode(mode), threading.get_ident())

    def hipStreamEndCapture(self, stream: int | None, graph: int | None) -> None:
        found = self._state.stream(stream)
        capture = found.capture
        if capture is None:
            raise HipError(Error.hipErrorStreamCaptureUnmatched)
        relaxed = capture.mode == CaptureMode.hipStreamCaptureModeRelaxed
        if not relaxed and capture.thread != threading.get_ident():
            raise HipError(Error.hipErrorStreamCaptureWrongThread)
        found.capture = None
        if capture.invalid:
            store(graph, c_void_p, 0)
            raise HipError(Error.hipErrorStreamCaptureInvalidated)
        store(graph, c_void_p, self._state.give(Graph(tuple(capture.actions))))

    def hipStreamIsCapturing(self, stream: int | None, status: int | None) -> None:
        capture = self._state.stream(stream).capture
        value = CaptureStatus.hipStreamCaptureStatusNone
        if capture is not None:
            value = CaptureStatus.hipStreamCaptureStatusActive
            if capture.invalid:
                value = CaptureStatus.hipStreamCaptureStatusInvalidated
        store(status, c_int, value)

    def hipGraphInstantiate(
        self, executable: int | None, graph: int | None, node: int | None, log: int | None, size: int
    ) -> None:
        self.hipGraphInstantiateWithFlags(executable, graph, 0)

    def hipGraphInstantiateWithFlags(self, executable: int | None, graph: int | None, flags: int) -> None:
        found = self._state.find(graph, Graph)
        store(executable, c_void_p, self._state.give(GraphExec(found.actions)))

    def hipGraphLaunch(self, executable: int | None, stream: int | None) -> None:
        found, on = self._state.find(executable, GraphExec), self._state.stream(stream)
        for action in found.actions:
            self._state.enqueue(on, action)

    def hipGraphExecDestroy(self, executable: int | None) -> None:
        self._state.take(executable, GraphExec)

    def hipGraphDestroy(self, graph: int | None) -> None:
        self._state.take(graph, Graph)
