"""The emulator's folder is bounded: the least recently used goes, and what was removed is made again."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.cache import cache_directory, prune
from forgec.emulator.shapes import ShapeLibrary
from tests.emulator.build import build


def write(path: Path, size: int, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    old = write(tmp_path / "kernel-a.so", 1000, 900)
    index = write(tmp_path / "shapes-32-x" / "s.names", 10, 800)
    shapes = write(tmp_path / "shapes-32-x" / "s.o", 1000, 700)
    recent = write(tmp_path / "instructions-b.json", 1000, 10)
    report = prune(tmp_path, 2010)
    assert (report.entries, report.removed, report.removed_bytes) == (3, 1, 1000)
    assert not old.exists() and index.exists() and shapes.exists() and recent.exists()
    prune(tmp_path, 1500)
    assert not index.exists() and not shapes.exists() and recent.exists()


def test_what_stopped_processes_left(tmp_path: Path) -> None:
    for name, age in (("tmpold", 7200), ("tmpnew", 60), ("machine-1", 30 * 86400), ("machine-2", 3600)):
        write(tmp_path / name / "file", 10, age)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["machine-2", "tmpnew"]


def test_folders_that_vanish_meanwhile(tmp_path: Path) -> None:
    """Other processes make and remove temporary folders all the time."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
                write(Path(folder) / "kernel.c", 10, 0)

    others = [threading.Thread(target=come_and_go) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(100):
            prune(tmp_path)
    finally:
        stop.set()
        for other in others:
            other.join()


def test_shapes_that_another_process_pruned_are_compiled_again(tmp_path: Path) -> None:
    compiled = []

    def compile_text(text: str, out: Path) -> None:
        compiled.append(text)
        out.write_text(text)

    library = ShapeLibrary(tmp_path, compile_text)
    functions = {"o_1": "void o_1(void) {}", "o_2": "void o_2(void) {}"}
    (first,) = library.objects(functions)
    assert library.objects(functions) == [first] and len(compiled) == 1
    prune(tmp_path.parent, 0)  # the folder is not called shapes-…: nothing to prune here
    assert first.exists()
    first.unlink()
    assert library.objects(functions) == [first] and len(compiled) == 2
    first.unlink()
    assert ShapeLibrary(tmp_path, compile_text).objects({"o_1": functions["o_1"]}) and len(compiled) == 3


def test_a_device_works_on_after_everything_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGEC_CACHE_DIR", str(tmp_path))
    text = "KERNEL BLOCK(64) void %s(u32* x) { x[lane_id()] += %d; }"
    device = Device("gfx1100")
    x = device.upload(np.zeros(64, np.uint32))
    for name, step in (("first", 1), ("second", 2)):
        code, listing = build(text % (name, step), "gfx1100")
        device.launch(device.load(code, listing), name, 1, 64, struct.pack("<Q", x))
        assert prune(cache_directory(), 0).removed >= 3
    assert (device.read(x, np.uint32, 64) == 3).all()
    assert not list(tmp_path.glob("emulator/kernel-*"))
