"""Pinned host memory between Python and a GPU: chunks on their way to the device, and small reads on the way
back.

The GPU drivers share the bookkeeping here and supply the calls. A copy from pageable memory would make the
driver stop and stage it itself; here the next chunk is filled while one is under way, that of a large file by
several threads.
"""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .driver import Buffer
from .errors import PackageError

__all__ = ["BULK_BYTES", "FETCH_BYTES", "FETCH_SLOTS", "StagedTransfers", "Staging", "StagingCalls"]

CHUNK_BYTES = 4 << 20
CHUNKS = 2
FETCH_BYTES = 64
FETCH_SLOTS = 64
_FETCH_OFFSET = CHUNKS * CHUNK_BYTES
_TOTAL = _FETCH_OFFSET + FETCH_SLOTS * FETCH_BYTES
#: From this size on a file gets a ring of its own, which several threads fill: one thread copies from the
#: page cache at a few GB/s, and the bus takes ten times that. They read the file: a machine with an H100
#: takes 27 GB/s so, and 12 where they copy from a mapping, whose page faults stand in each other's way.
BULK_BYTES = 32 << 20
BULK_CHUNKS = 16
BULK_THREADS = 8


class StagingCalls(Protocol):
    """What a GPU driver supplies: pinned memory, copies on its stream, and events on it.

    ``copy_aside`` copies to the host what the stream has made so far, on a stream beside it, and records
    ``done`` there: what is queued next need not wait for the bus, which costs an H100 10 us a token.
    """

    def pinned_alloc(self, size: int) -> int: ...
    def pinned_free(self, address: int) -> None: ...
    def copy_to_device(self, device: int, host: int, size: int) -> None: ...
    def copy_aside(self, host: int, device: int, size: int, done: Any) -> None: ...
    def event_create(self) -> Any: ...
    def event_record(self, event: Any) -> None: ...
    def event_synchronize(self, event: Any) -> None: ...
    def event_destroy(self, event: Any) -> None: ...


class Staging:
    """A ring of upload chunks and a ring of read-back slots in one pinned allocation."""

    def __init__(self, calls: StagingCalls) -> None:
        self._calls = calls
        self._base = calls.pinned_alloc(_TOTAL)
        self._events = [calls.event_create() for _ in range(CHUNKS + FETCH_SLOTS)]
        self._used = [False] * CHUNKS
        self._next_chunk = 0
        self._next_slot = 0

    def upload(self, device: int, data: Buffer) -> None:
        """Copy ``data`` to the device address; returns when ``data`` has been read."""
        view = np.frombuffer(data, dtype=np.uint8)
        for start in range(0, view.size, CHUNK_BYTES):
            piece = view[start : start + CHUNK_BYTES]
            index = self._next_chunk
            self._next_chunk = (index + 1) % CHUNKS
            if self._used[index]:
                self._calls.event_synchronize(self._events[index])
            host = self._base + index * CHUNK_BYTES
            ctypes.memmove(host, piece.ctypes.data, piece.size)
            self._calls.copy_to_device(device + start, host, piece.size)
            self._calls.event_record(self._events[index])
            self._used[index] = True

    def upload_file(self, device: int, path: Path, size: int) -> None:
        """Copy the first ``size`` bytes of a file to the device address.

        Raises: PackageError when they cannot be read.
        """
        try:
            with path.open("rb", buffering=0) as file:
                if size >= BULK_BYTES:
                    _Bulk(self._calls, file.fileno()).upload(device, size)
                else:
                    data = bytearray(size)
                    _read(file.fileno(), memoryview(data), 0)
                    self.upload(device, data)
        except OSError as error:
            raise PackageError(f"'{path.name}' cannot be read: {error}", "check the disk it is on") from error

    def fetch(self, device: int, size: int) -> tuple[int, int]:
        """Queue a read of at most FETCH_BYTES; the ticket stays valid for FETCH_SLOTS further reads."""
        assert size <= FETCH_BYTES
        slot = self._next_slot
        self._next_slot = (slot + 1) % FETCH_SLOTS
        host = self._base + _FETCH_OFFSET + slot * FETCH_BYTES
        self._calls.copy_aside(host, device, size, self._events[CHUNKS + slot])
        return slot, size

    def wait(self, ticket: tuple[int, int]) -> bytes:
        slot, size = ticket
        self._calls.event_synchronize(self._events[CHUNKS + slot])
        return ctypes.string_at(self._base + _FETCH_OFFSET + slot * FETCH_BYTES, size)

    def close(self) -> None:
        for event in self._events:
            self._calls.event_destroy(event)
        self._calls.pinned_free(self._base)


def _read(file: int, into: memoryview, offset: int) -> None:
    """Fill ``into`` from an offset on; OSError where the file ends before."""
    while len(into):
        count = os.preadv(file, [into], offset)
        if not count:
            raise OSError(f"it ends at byte {offset}")
        into, offset = into[count:], offset + count


class _Bulk:
    """One large upload: threads fill half of the ring's chunks while the bus empties the other half.

    Only the calling thread talks to the driver; the others read, which releases the interpreter lock.
    """

    def __init__(self, calls: StagingCalls, file: int) -> None:
        self._calls = calls
        self._file = file
        self._events: list[Any] = []
        self._sent = 0
        self._base = calls.pinned_alloc(BULK_CHUNKS * CHUNK_BYTES)

    def upload(self, device: int, size: int) -> None:
        """Copy the file's first ``size`` bytes; returns when they have arrived."""
        threads = min(BULK_THREADS, len(os.sched_getaffinity(0)))
        pool = ThreadPoolExecutor(threads)
        filling: deque[tuple[int, int, int, Future[None]]] = deque()
        try:
            self._events = [self._calls.event_create() for _ in range(BULK_CHUNKS)]
            for index, start in enumerate(range(0, size, CHUNK_BYTES)):
                slot = index % BULK_CHUNKS
                if index >= BULK_CHUNKS:
                    self._calls.event_synchronize(self._events[slot])
                count = min(CHUNK_BYTES, size - start)
                filling.append((slot, device + start, count, pool.submit(self._fill, slot, start, count)))
                if len(filling) > BULK_CHUNKS // 2:
                    self._send(*filling.popleft())
            while filling:
                self._send(*filling.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._release()

    def _fill(self, slot: int, start: int, count: int) -> None:
        chunk = (ctypes.c_ubyte * count).from_address(self._host(slot))
        _read(self._file, memoryview(chunk).cast("B"), start)

    def _host(self, slot: int) -> int:
        return self._base + slot * CHUNK_BYTES

    def _send(self, slot: int, device: int, size: int, filled: Future[None]) -> None:
        """Queue the copy of a chunk as soon as it is filled."""
        filled.result()
        self._calls.copy_to_device(device, self._host(slot), size)
        self._calls.event_record(self._events[slot])
        self._sent += 1

    def _release(self) -> None:
        """Wait for the last copy, which may still be reading its chunk, then give everything back."""
        if self._sent:
            self._calls.event_synchronize(self._events[(self._sent - 1) % BULK_CHUNKS])
        for event in self._events:
            self._calls.event_destroy(event)
        self._calls.pinned_free(self._base)


class StagedTransfers(ABC):
    """The transfers of the Driver protocol, the same on every GPU once it has a ``Staging`` and its calls."""

    _staging: Staging

    @abstractmethod
    def copy_to_host(self, host: int, device: int, size: int) -> None:
        """Queue a copy of ``size`` bytes to host memory."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued is done."""

    def upload(self, address: int, data: Buffer) -> None:
        self._staging.upload(address, data)

    def upload_file(self, address: int, path: Path, size: int) -> None:
        self._staging.upload_file(address, path, size)

    def download(self, address: int, into: bytearray | memoryview) -> None:
        host = (ctypes.c_ubyte * memoryview(into).nbytes).from_buffer(into)
        self.copy_to_host(ctypes.addressof(host), address, len(host))
        self.synchronize()

    def adopt(self, view: memoryview) -> int | None:
        """A GPU reads host memory over the bus: weights are better copied once."""
        return None

    def fetch(self, address: int, size: int) -> tuple[int, int]:
        return self._staging.fetch(address, size)

    def wait(self, ticket: tuple[int, int]) -> bytes:
        return self._staging.wait(ticket)
