"""The two ways from the runtime to the emulator: its own driver, and the HIP driver on the stub library."""

from __future__ import annotations

import functools
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from forgec.emulator.codeobject import parse_code_object
from forgec.emulator.disassembly import remember_listing
from forgec.emulator.driver import EmulatedDriver, open_checked, open_emulated
from forgec.emulator.hip import Configuration, Front, attach, build_stub
from runtime.driver import DRIVER_GROUP, DriverOptions
from runtime.driver_hip import HipDriver
from tests.emulator.build import build

WAYS = ("emulated", "hip")
MEMORY = 64 << 20

KERNELS = """
__attribute__((device, used)) int table[4] = {3, 1, 4, 1};
KERNEL BLOCK(256) void scale(float* x, int n, float factor) {
  for (int i = block_id() * 64 + lane_id(); i < n; i += 64 * 4) x[i] *= factor;
}
KERNEL BLOCK(64) void append(u32* count, u32* list, u32 value) {
  if (lane_id() == 0) list[(*count)++] = value;
}
KERNEL BLOCK(64) void reverse(u32* out) {
  extern SHARED u32 words[];
  words[lane_id()] = lane_id();
  barrier();
  out[lane_id()] = words[63 - lane_id()];
}
KERNEL BLOCK(64) void beyond(u32* x) { x[1 << 22] = 1; }
KERNEL BLOCK(64) void trapping(u32* x) { *x = 1; __builtin_trap(); }
"""


@functools.cache
def stub() -> Path:
    """One stub for the process, as hip-python loads its library once."""
    pytest.importorskip("hip", reason="the extra [hip] is not installed")
    folder = Path(tempfile.mkdtemp(prefix="forgec-stub-"))
    os.environ["ROCM_PATH"] = str(build_stub(folder))
    return folder


def code(arch: str = "gfx1100", text: str = KERNELS) -> bytes:
    """A code object that loads without a package, with pip's compiler alone."""
    image, listing = build(text, arch)
    assert parse_code_object(image).arch == arch
    remember_listing(image, listing)
    return image


def front(**options: Any) -> Front:
    """A fresh emulated GPU behind hip-python."""
    return attach(stub(), Configuration(**{"memory": MEMORY, **options}))


def open_way(way: str, arch: str = "gfx1100", memory: int = MEMORY) -> Any:
    if way == "emulated":
        return EmulatedDriver(arch, memory=memory)
    front(arch=arch, memory=memory)
    return HipDriver(DriverOptions(Path(), arch, 64 if arch.startswith("gfx9") else 32))


def install_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """What installing forgec would register, for a checkout that is not installed."""

    class EntryPoint:
        def __init__(self, name: str, factory: Any) -> None:
            self.name = name
            self._factory = factory

        def load(self) -> Any:
            return self._factory

    def entry_points(group: str) -> list[EntryPoint]:
        assert group == DRIVER_GROUP
        return [EntryPoint("emulated", open_emulated), EntryPoint("emulated-checked", open_checked)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def arguments(*values: int | float) -> bytes:
    """Packed kernel arguments: pointers above 32 bits, ints and floats."""
    packed = bytearray()
    for value in values:
        form = "<f" if isinstance(value, float) else "<Q" if value >> 32 else "<I"
        packed += bytes(-len(packed) % struct.calcsize(form)) + struct.pack(form, value)
    return bytes(packed)
