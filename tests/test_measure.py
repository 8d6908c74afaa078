"""What a package measures of itself: the toy package on a recorded device, the CPU and a stand-in GPU."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import driver_cuda, measure, stages
from runtime.driver import DriverOptions
from runtime.driver_recording import RecordingDriver
from runtime.engine import Sampling
from runtime.errors import UsageError
from runtime.libcuda import CudaLibrary
from tests import fake_gpu
from tests.toy_package import CONTEXT, compiled, expected_tokens, use_other_kernels, write_package

TRAFFIC = {"weight_bytes_per_token": 1_000_000, "kv_bytes_per_position": 100}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The toy package with what the compiler says of its bytes."""
    folder = tmp_path / "toy"
    folder.mkdir()
    write_package(folder)
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    raw["traffic"] = TRAFFIC
    for launch in raw["sequences"]["decode"]:
        launch["weight_bytes"] = 500
    path.write_text(json.dumps(raw))
    return folder


def test_going_on_at_a_position(package: Path) -> None:
    """``seek`` sets what decoding depends on: the cache is found again behind another generation."""
    expected = expected_tokens(b"hello", 12)
    with runtime.load(package, threads=1) as model:
        model.generate(list(b"hello"), max_tokens=8, ignore_eos=True)
        engine = model.engine
        engine.start(Sampling())
        # Five tokens of the prompt and three sampled ones are in the cache; the fourth comes next.
        engine.seek(8, expected[3])
        assert [engine.token(engine.decode()) for _ in range(5)] == expected[4:9]
        assert engine.position == 13


def test_a_report_of_a_recorded_device(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is filled, positions are set, launches are timed behind queued copies."""
    monkeypatch.setattr(measure, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(stages, "COPY_BYTES", 1 << 16)
    with runtime.load(package, device="recording") as model:
        driver = model.engine.driver
        assert isinstance(driver, RecordingDriver)
        report = measure.measure(model, contexts=(0, 20, 100), tokens=4, prompt=99, repeat=2)
        calls = driver.calls
    names = [call.name for call in calls]
    kv = next(c for c in calls if c.name == "memset" and c.arguments[1] == measure.CACHE_BYTE
              and c.arguments[2] == 4 * CONTEXT)  # fmt: skip
    assert names.index("graph_launch") > calls.index(kv)
    # The clock of the recorded device ticks once a timestamp: four copies of 64 KiB in one tick.
    assert report.bandwidth == pytest.approx(2 * (1 << 16) * 4)
    states = [c.arguments[1] for c in calls if c.name == "upload" and isinstance(c.arguments[1], bytes)
              and len(c.arguments[1]) == 64]  # fmt: skip
    positions = {int.from_bytes(state[4:8], "little") for state in states}
    assert {0, 20} <= positions
    # Three rounds of four launches (one is a warm-up), each round behind its copies.
    copies = [i for i, name in enumerate(names) if name == "copy"]
    launches = [i for i, name in enumerate(names) if name == "launch"]
    assert len(launches) == 3 * 4 and len(copies) == 5 * 4 + 2 * 3 * stages.COPIES_AHEAD
    assert names[launches[0] - stages.COPIES_AHEAD : launches[0]] == ["copy"] * stages.COPIES_AHEAD
    assert [row.context for row in report.decode] == [0, 20] and report.skipped_contexts == (100,)
    assert report.decode[1].bytes_per_token == 1_000_000 + 23 * 100
    assert report.prompt_tokens == CONTEXT - 1
    assert report.stages is not None
    assert {stage.kernel for stage in report.stages.table} == {
        "toy_append",
        "toy_checksum",
        "toy_head",
        "toy_sample",
    }
    assert all((s.launches, s.seconds, s.weight_bytes) == (1, 1.0, 500) for s in report.stages.table)
    assert json.loads(report.to_json())["stages"]["context"] == 0
    text = measure.report_text(report)
    assert "not measured: context 100" in text and "an empty pair of timestamps: 1000000.0 us" in text


def test_a_resident_kernel_is_not_launched_apart(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COPY_BYTES", 1 << 20)
    path = package / "manifest.json"
    raw = json.loads(path.read_text())
    raw["kernels"][0]["cooperative"] = True
    path.write_text(json.dumps(raw))
    with runtime.load(package, device="recording") as model:
        report = measure.measure(model, contexts=(0,), tokens=4, prompt=9, repeat=1)
        assert "launch" not in [call.name for call in model.engine.driver.calls]
    assert report.stages is not None and report.stages.table == ()
    lines = measure.report_text(report).splitlines()
    reason = "one kernel makes a whole token, and on 'x86-64-v2' it has no clock to stamp"
    assert f"  stages      not timed: {reason}" in lines


def test_contexts_that_do_not_fit(package: Path) -> None:
    with runtime.load(package, threads=1) as model, pytest.raises(UsageError, match="52 tokens do not fit"):
        measure.measure(model, contexts=(CONTEXT,), tokens=4)


def test_a_report_of_a_gpu(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the CUDA driver: what was allocated to measure is given back."""
    (tmp_path / "libcuda.so.1").write_bytes(fake_gpu.library("cuda"))
    (tmp_path / "toy.so").write_bytes(compiled("cpu"))
    use_other_kernels(package, "nvptx", str(tmp_path / "toy.so").encode())
    library = functools.partial(CudaLibrary, str(tmp_path / "libcuda.so.1"))
    monkeypatch.setattr(driver_cuda, "CudaLibrary", library)
    monkeypatch.setenv("FAKE_MEMORY", str(32 << 20))
    with runtime.load(package) as model:
        free = model.engine.driver.describe().memory_free
        report = measure.measure(model, contexts=(0,), tokens=4, prompt=9, repeat=1)
        assert model.engine.driver.describe().memory_free == free
    size = free // 4 >> 20 << 20
    assert report.bandwidth == pytest.approx(2 * size / (0.0025 / 4))
    assert report.bandwidth_source == f"copy of {size >> 20} MiB on the device, read and written"
    assert report.stages is not None and report.stages.table
    assert all(stage.seconds == pytest.approx(0.0025) for stage in report.stages.table)
    assert list(report.load_seconds) == ["memory", "upload", "kernels", "digests", "device", "tokenizer"]


def test_a_device_without_copies(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RecordingDriver, "copy")
    with runtime.load(package, device="recording") as model:
        report = measure.measure(model, contexts=(0,), tokens=4, prompt=9, repeat=1)
    assert (report.bandwidth, report.decode[0].fraction) == (None, None)
    assert "bandwidth   unknown (the device has no copy of its own)" in measure.report_text(report)


def test_too_little_memory_to_copy(package: Path) -> None:
    driver: Any = RecordingDriver(DriverOptions(package, "x86-64-v2", 1), memory=100)
    assert measure.stream_bandwidth(driver) == (None, "too little memory is free")
