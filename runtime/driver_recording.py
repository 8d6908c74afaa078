"""A device that runs nothing and writes down every call, for tests and for looking at a package's launches.

Memory is real, so that what was uploaded can be downloaded again; kernels, however, never write to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .driver import Buffer, DeviceInfo, DriverOptions
from .errors import DeviceError

__all__ = ["Call", "RecordingDriver"]

_BASE = 0x1000_0000
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Call:
    """One call of the protocol; ``arguments`` in the protocol's order, buffers as bytes, handles as names."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class RecordedGraph:
    """A captured graph: its name in the record and the launches in it."""

    name: str
    launches: tuple[Call, ...]


class RecordingDriver:
    """Records into ``calls``. ``memory_total`` and ``memory_free`` are what it claims to have, in bytes."""

    name = "recording"
    queue_depth = 4

    def __init__(self, options: DriverOptions, *, memory: int = 64 << 30, resident: int = 1024) -> None:
        self.calls: list[Call] = []
        self._options = options
        self._total = memory
        self._memory: dict[int, bytearray] = {}
        self._next = _BASE
        self._capture: list[Call] | None = None
        self._graphs = 0
        self._clock = 0
        self._resident = resident

    def _record(self, name: str, *arguments: Any) -> None:
        self.calls.append(Call(name, arguments))

    def describe(self) -> DeviceInfo:
        used = sum(map(len, self._memory.values()))
        return DeviceInfo(
            "recording", self._options.target, self._total, self._total - used, 1, self._options.wave
        )

    def malloc(self, size: int) -> int:
        address = self._next
        # A page between allocations, so that an address past an end belongs to nothing.
        self._next += (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT + _ALIGNMENT
        self._memory[address] = bytearray(size)
        self._record("malloc", size, address)
        return address

    def free(self, address: int) -> None:
        if self._memory.pop(address, None) is None:
            raise DeviceError(f"free of 0x{address:x}, which is not allocated")
        self._record("free", address)

    def _view(self, address: int, size: int) -> memoryview:
        for start, data in self._memory.items():
            if start <= address and address + size <= start + len(data):
                return memoryview(data)[address - start : address - start + size]
        raise DeviceError(f"bytes 0x{address:x} to 0x{address + size:x} are in no allocation")

    def memset(self, address: int, byte: int, size: int) -> None:
        self._view(address, size)[:] = bytes([byte]) * size
        self._record("memset", address, byte, size)

    def copy(self, to: int, source: int, size: int) -> None:
        self._view(to, size)[:] = self._view(source, size)
        self._record("copy", to, source, size)

    def upload(self, address: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._view(address, len(view))[:] = view
        # Weights would fill the record: of a large upload only the size is kept.
        self._record("upload", address, bytes(view) if len(view) <= _ALIGNMENT else len(view))

    def download(self, address: int, into: bytearray | memoryview) -> None:
        target = memoryview(into).cast("B")
        target[:] = self._view(address, len(target))
        self._record("download", address, len(target))

    def adopt(self, view: memoryview) -> int | None:
        return None

    def fetch(self, address: int, size: int) -> bytes:
        self._record("fetch", address, size)
        return bytes(self._view(address, size))

    def wait(self, ticket: bytes) -> bytes:
        self._record("wait")
        return ticket

    def load_module(self, data: bytes, name: str, path: Path | None = None) -> str:
        self._record("load_module", name, len(data))
        return name

    def module_unload(self, module: str) -> None:
        self._record("module_unload", module)

    def get_function(self, module: str, symbol: str) -> str:
        self._record("get_function", module, symbol)
        return symbol

    def launch(self, function: str, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        call = Call("launch", (function, grid, block, bytes(kernarg), lds))
        (self.calls if self._capture is None else self._capture).append(call)

    def resident_blocks(self, function: str, block: int, lds: int = 0) -> int:
        return self._resident

    def launch_cooperative(self, function: str, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        call = Call("launch_cooperative", (function, grid, block, bytes(kernarg), lds))
        (self.calls if self._capture is None else self._capture).append(call)

    def synchronize(self) -> None:
        self._record("synchronize")

    def graph_begin(self) -> None:
        self._capture = []

    def graph_end(self) -> RecordedGraph:
        launches, self._capture = tuple(self._capture or ()), None
        graph = RecordedGraph(f"graph{self._graphs}", launches)
        self._graphs += 1
        self._record("graph", graph.name, launches)
        return graph

    def graph_launch(self, graph: RecordedGraph) -> None:
        self._record("graph_launch", graph.name)

    def graph_destroy(self, graph: RecordedGraph) -> None:
        self._record("graph_destroy", graph.name)

    def timestamp(self) -> int:
        self._clock += 1
        return self._clock

    def elapsed(self, start: int, stop: int) -> float:
        return float(stop - start)

    def close(self) -> None:
        self._record("close")
        self._memory.clear()
