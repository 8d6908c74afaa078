"""Device memory: allocations inside one reserved range of host addresses, with gaps between them and a
shadow.

A device address is a host address, so translated kernels dereference it after a bounds check against the
table of allocations. The shadow has one byte per byte of memory: 1 once written. It never runs anything.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right, insort
from collections import deque

import numpy as np
import numpy.typing as npt

from forgec.errors import DeviceError

__all__ = ["Arena", "StoreRecords"]

_RESERVED = 1 << 36
_GAP = 4096
_ALIGNMENT = 256
_PAGE = 4096
_KEPT_FREED = 4096
_NORESERVE = 0x4000
_ENTRY = np.dtype([("lo", "<u8"), ("hi", "<u8"), ("flags", "<u4"), ("pad", "<u4")])
FREED, READ_ONLY = 1, 2


def _reserve(size: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


class _Words:
    """``count`` words of 32 bits, zero until written; only what is written takes memory."""

    def __init__(self, count: int) -> None:
        self._memory, self.base = _reserve(4 * count)

    def clear(self) -> None:
        self._memory.madvise(mmap.MADV_DONTNEED)


class StoreRecords:
    """Where machine/fences.c notes who wrote each byte: a record number per byte and, by record, its writer.

    Numbers grow from launch to launch, so that older ones are told apart by being smaller.
    """

    limit = 1 << 26

    def __init__(self) -> None:
        self.bytes, self.pages = _Words(_RESERVED), _Words(_RESERVED // _PAGE)
        self.groups, self.released = _Words(self.limit), _Words(self.limit)
        self.next = 1

    def begin(self) -> int:
        """The first record of a new launch."""
        if self.next > self.limit // 2:
            for words in (self.bytes, self.pages, self.groups, self.released):
                words.clear()
            self.next = 1
        return self.next


class Arena:
    """The memory of one emulated device; ``capacity`` bytes may be allocated at a time."""

    def __init__(self, capacity: int, shadow: bool) -> None:
        self.capacity = capacity
        self.used = 0
        self._memory, self.base = _reserve(_RESERVED)
        self._shadow: mmap.mmap | None = None
        self.shadow_base = 0
        self._lines: _Words | None = None
        self.records: StoreRecords | None = None
        if shadow:
            self._shadow, self.shadow_base = _reserve(_RESERVED)
            self.records = StoreRecords()
        self.limit = self.base + _RESERVED
        self._next = self.base + (1 << 20)
        self._live: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []
        self._freed: deque[int] = deque()
        self._dead: dict[int, int] = {}
        self._table: npt.NDArray[np.void] | None = None

    def allocate(self, size: int, read_only: bool = False) -> int:
        """Reserve ``size`` bytes (0 counts as 1), aligned to 256.

        Raises:
            DeviceError: the device's capacity is exceeded.
        """
        if size < 0:
            raise DeviceError(f"an allocation cannot have {size} bytes")
        size = max(size, 1)
        if self.used + size > self.capacity:
            raise DeviceError(
                f"out of device memory: {size} bytes asked,"
                f" {self.capacity - self.used} of {self.capacity} left",
                "free buffers, or create the device with more memory",
            )
        address = self._next
        if address + size + _GAP > self.limit:
            raise DeviceError(
                "the emulated device has handed out its whole address range", "create a new device"
            )
        end = address + size
        self._next = (end + _GAP + _PAGE - 1) // _PAGE * _PAGE
        self._live[address] = (size, READ_ONLY if read_only else 0)
        insort(self._starts, address)
        self.used += size
        self._table = None
        return address

    def free(self, address: int) -> None:
        """Return an allocation; its addresses are remembered, so that a later use is told apart from a stray
        one.

        Raises:
            DeviceError: not the start of a live allocation.
        """
        if address not in self._live:
            raise DeviceError(f"{address:#x} is not a live allocation", "free what malloc returned, once")
        size, _ = self._live.pop(address)
        self.used -= size
        self._dead[address] = size
        self._freed.append(address)
        if len(self._freed) > _KEPT_FREED:
            gone = self._freed.popleft()
            del self._dead[gone]
            self._starts.remove(gone)
        first = (address + _PAGE - 1) // _PAGE * _PAGE - self.base
        last = (address + size) // _PAGE * _PAGE - self.base
        if last > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
            if self._shadow is not None:
                self._shadow.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._table = None

    def protect(self, address: int) -> None:
        """Make an allocation read-only for kernels."""
        size, _ = self._live[address]
        self._live[address] = (size, READ_ONLY)
        self._table = None

    def begin_lines(self) -> int:
        """The address of one zero bit per byte of the arena, for the loads of a launch."""
        if self._lines is None:
            self._lines = _Words(_RESERVED // 32)
        else:
            self._lines.clear()
        return self._lines.base

    def table(self) -> npt.NDArray[np.void]:
        """All known allocations, sorted by address, as the engine reads them."""
        if self._table is None:
            rows = np.zeros(len(self._starts), _ENTRY)
            for i, start in enumerate(self._starts):
                live = self._live.get(start)
                size, flags = live if live is not None else (self._dead[start], FREED)
                rows[i] = (start, start + size, flags, 0)
            self._table = rows
        return self._table

    def size_of(self, address: int) -> int:
        """Bytes of the live allocation that starts at ``address``."""
        if address not in self._live:
            raise DeviceError(f"{address:#x} is not a live allocation")
        return self._live[address][0]

    def check(self, address: int, size: int) -> None:
        """Raises DeviceError unless the range lies inside one live allocation."""
        at = bisect_right(self._starts, address) - 1
        start = self._starts[at] if at >= 0 else -1
        if start in self._dead and address < start + self._dead[start]:
            raise DeviceError(f"{size} bytes at {address:#x} belong to a freed allocation")
        if start not in self._live or address + size > start + self._live[start][0]:
            raise DeviceError(f"{size} bytes at {address:#x} are not inside one device allocation")

    def view(self, address: int, size: int) -> memoryview:
        """The host's view of device bytes, unchecked."""
        at = address - self.base
        return memoryview(self._memory)[at : at + size]

    def mark(self, address: int, size: int, written: bool = True) -> None:
        """Note that the host wrote (or poisoned) a range."""
        if self._shadow is not None:
            at = address - self.base
            np.frombuffer(self._shadow, np.uint8, size, at)[:] = 1 if written else 0

    def first_unwritten(self, address: int, size: int) -> int | None:
        """Offset of the first byte of the range that nobody ever wrote, None if all were (or nothing is
        known)."""
        if self._shadow is None or size == 0:
            return None
        shadow = np.frombuffer(self._shadow, np.uint8, size, address - self.base)
        at = int(np.argmin(shadow))
        return at if not shadow[at] else None
