"""What every device driver does, and how one is found by name.

In comes a device name (``cpu``, ``hip``, ``cuda:1``, ``recording``, or the name of an entry point such as
``emulated``), out goes an object of the ``Driver`` protocol. Nothing here talks to a device, and no driver
module is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .errors import DeviceError, UsageError

__all__ = [
    "DRIVER_GROUP",
    "Buffer",
    "DeviceInfo",
    "Driver",
    "DriverOptions",
    "device_of_family",
    "format_bytes",
    "open_driver",
]

DRIVER_GROUP = "forgec.drivers"

Buffer = bytes | bytearray | memoryview

_BUILT_IN = {
    "cpu": ("driver_cpu", "CpuDriver"),
    "cuda": ("driver_cuda", "CudaDriver"),
    "hip": ("driver_hip", "HipDriver"),
    "recording": ("driver_recording", "RecordingDriver"),
}


@dataclass(frozen=True)
class DeviceInfo:
    """A device as it describes itself; memory in bytes."""

    name: str
    arch: str  # gfx1100, sm_90, x86-64
    memory_total: int
    memory_free: int
    compute_units: int
    wave: int


@dataclass(frozen=True)
class DriverOptions:
    """What opening a driver depends on besides its name.

    ``threads`` is for the CPU (None: one per physical core this process may use), ``index`` chooses among
    several GPUs, ``package`` is the folder that holds the kernels.
    """

    package: Path
    target: str
    wave: int
    requires: tuple[str, ...] = ()
    threads: int | None = None
    index: int = 0


class Driver(Protocol):
    """One in-order queue of work on one device. Addresses are integers in the device's address space.

    ``launch``, ``graph_launch``, ``upload`` and ``memset`` happen in the order of the calls; ``download`` and
    ``synchronize`` wait for everything before them. ``upload`` may return before the bytes have arrived, but
    has read ``data`` by then. ``launch`` copies ``kernarg``. Between ``graph_begin`` and ``graph_end``
    launches are recorded instead of run.

    A driver from an entry point may leave out the members below ``close``; see ``engine.py`` for what happens
    then.
    """

    name: str

    def describe(self) -> DeviceInfo: ...
    def malloc(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def memset(self, address: int, byte: int, size: int) -> None: ...
    def upload(self, address: int, data: Buffer) -> None: ...
    def download(self, address: int, into: bytearray | memoryview) -> None: ...
    def load_module(self, data: bytes, name: str, path: Path | None = None) -> Any: ...
    def module_unload(self, module: Any) -> None: ...
    def get_function(self, module: Any, symbol: str) -> Any: ...
    def launch(self, function: Any, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None: ...
    def synchronize(self) -> None: ...
    def graph_begin(self) -> None: ...
    def graph_end(self) -> Any: ...
    def graph_launch(self, graph: Any) -> None: ...
    def graph_destroy(self, graph: Any) -> None: ...
    def timestamp(self) -> Any: ...
    def elapsed(self, start: Any, stop: Any) -> float: ...
    def close(self) -> None: ...

    queue_depth: int
    """Decode steps worth queueing ahead of the host; 1 where a launch returns only when it is done."""

    def adopt(self, view: memoryview) -> int | None:
        """The device address of host memory that the device can use in place; None where it cannot."""
        ...

    def upload_file(self, address: int, path: Path, size: int) -> None:
        """``upload`` of the first ``size`` bytes of a file; PackageError when they cannot be read."""
        ...

    def resident_blocks(self, function: Any, block: int, lds: int = 0) -> int:
        """Blocks of ``block`` threads held at once: the most that may wait for each other."""
        ...

    def launch_cooperative(self, function: Any, grid: int, block: int, kernarg: bytes, lds: int = 0) -> None:
        """``launch`` of blocks that wait for each other; DeviceError when they are not all resident."""
        ...

    def copy(self, to: int, source: int, size: int) -> None:
        """Queue a copy within the device's memory."""
        ...

    def fetch(self, address: int, size: int) -> Any:
        """Queue a read of at most 64 bytes behind the work so far; returns a ticket for ``wait``."""
        ...

    def wait(self, ticket: Any) -> bytes:
        """The bytes of a ``fetch``, as soon as they have arrived; each ticket is waited for once."""
        ...


def device_of_family(family: str) -> str:
    """The driver that runs a target family's code, as in ``gfx11`` -> ``hip``."""
    if family == "cpu":
        return "cpu"
    if family == "nvptx":
        return "cuda"
    if family.startswith("gfx"):
        return "hip"
    raise UsageError(
        f"the package is for the unknown target family '{family}'",
        "this runtime knows cpu, nvptx and gfx*: compile the model again with this version of forgec",
    )


def format_bytes(count: int) -> str:
    """``format_bytes(98_000_000)`` is ``"93.5 MiB"``."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def open_driver(device: str, manifest: Mapping[str, Any], options: DriverOptions) -> Driver:
    """Open the driver called ``device`` (``NAME`` or ``NAME:INDEX``).

    Raises: UsageError for a name that is unknown or no match for the package's target family, DeviceError
    where the device or what it needs is missing.
    """
    name, index = _split_device(device, options.index)
    options = DriverOptions(
        options.package, options.target, options.wave, options.requires, options.threads, index
    )
    if name not in _BUILT_IN:
        return _open_entry_point(name, manifest, options)
    family = manifest["target"]["family"]
    native = device_of_family(family)
    if name not in (native, "recording"):
        raise DeviceError(
            f"device '{name}' cannot run a package for target '{options.target}' of family '{family}'",
            f"leave out --device, use --device {native}, or compile the model for another target",
        )
    module_name, class_name = _BUILT_IN[name]
    module = importlib.import_module("." + module_name, __package__)
    driver: Driver = getattr(module, class_name)(options)
    return driver


def _split_device(device: str, default_index: int) -> tuple[str, int]:
    name, separator, digits = device.partition(":")
    if not separator:
        return name, default_index
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(
            f"device '{device}' does not read NAME or NAME:INDEX", "for example: --device cuda:1"
        )
    return name, int(digits)


def _open_entry_point(name: str, manifest: Mapping[str, Any], options: DriverOptions) -> Driver:
    from importlib.metadata import entry_points  # a quarter of this package's import time, and seldom needed

    found = {entry_point.name: entry_point for entry_point in entry_points(group=DRIVER_GROUP)}
    if name in found:
        factory = found[name].load()
        driver: Driver = factory(
            manifest, {"package": options.package, "threads": options.threads, "index": options.index}
        )
        return driver
    known = ", ".join(sorted({*_BUILT_IN, *found}))
    if name == "emulated":
        raise DeviceError(
            "device 'emulated' needs forgec, whose emulator is not installed in this Python",
            "run: pip install forgec",
        )
    raise UsageError(f"unknown device '{name}'", f"available here: {known}")
