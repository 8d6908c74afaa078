"""The CPU driver and its thread pool: barriers, oversubscription, memory, refusals."""

from __future__ import annotations

import ctypes
import functools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import driver_cpu
from runtime.driver import DriverOptions
from runtime.driver_cpu import CpuDriver, cpu_features, default_threads, missing_features
from runtime.errors import DeviceError, UsageError
from tests.toy_package import compile_c, compiled

# check: every block looks whether all blocks have finished the stage before, then marks its own; a barrier
# that lets one thread through early is counted in errors[block]. nap: waits some seconds for flag[0], and
# says in flag[1] whether it came.
KERNELS = r"""
struct Check { volatile int* marks; int* errors; int stage; int stride; };
void check(const unsigned char* kernarg, int block, int blocks) {
  const struct Check* k = (const struct Check*)kernarg;
  volatile int* before = k->marks + (k->stage + 1) % 2 * k->stride;
  for (int b = 0; b < blocks; ++b) if (before[b * 16] != k->stage - 1) ++k->errors[block];
  k->marks[k->stage % 2 * k->stride + block * 16] = k->stage;
}
void blocks(const unsigned char* kernarg, int block, int blocks) {
  int* out = *(int* const*)kernarg;
  out[block] = blocks * 100 + block;
}
void nap(const unsigned char* kernarg, int block, int blocks) {
  volatile int* flag = *(volatile int* const*)kernarg;
  for (volatile long i = 0; i < 4000000000 && !flag[0]; ++i) {}
  if (block == 0) flag[1] = flag[0];
}
"""


@functools.cache
def kernels() -> bytes:
    return compile_c(KERNELS)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "kernels").mkdir()
    (folder / "kernels/pool.so").write_bytes(compiled("pool"))
    (folder / "kernels/k.so").write_bytes(kernels())
    return folder


def options(package: Path, threads: int | None = 1, target: str = "x86-64-v2") -> DriverOptions:
    return DriverOptions(package, target, 1, (), threads)


@pytest.fixture
def driver(package: Path) -> Iterator[CpuDriver]:
    driver = CpuDriver(options(package, 2))
    yield driver
    driver.close()


def run_checks(driver: CpuDriver, threads: int, stages: int, runs: int) -> Any:
    """Replay a graph of ``stages`` check kernels and return the error counts."""
    module = driver.load_module(kernels(), "k.so")
    function = driver.get_function(module, "check")
    stride = threads * 16
    marks = driver.malloc(2 * 4 * stride)
    errors = driver.malloc(4 * threads)
    driver.graph_begin()
    for stage in range(stages):
        kernarg = marks.to_bytes(8, "little") + errors.to_bytes(8, "little")
        driver.launch(function, 1, 1, kernarg + stage.to_bytes(4, "little") + stride.to_bytes(4, "little"))
    graph = driver.graph_end()
    for _ in range(runs):
        start = np.zeros((2, threads, 16), np.int32)
        start[1, :, 0] = -1  # what stage 0 finds
        driver.upload(marks, start.data)
        driver.graph_launch(graph)
    counts = np.empty(threads, np.int32)
    driver.download(errors, counts.data.cast("B"))
    last = np.empty((2, threads, 16), np.int32)
    driver.download(marks, last.data.cast("B"))
    assert (last[(stages - 1) % 2, :, 0] == stages - 1).all()
    return counts


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 9])
def test_every_launch_waits_for_all_blocks_of_the_one_before(package: Path, threads: int) -> None:
    driver = CpuDriver(options(package, threads))
    try:
        assert run_checks(driver, threads, 301, 5).tolist() == [0] * threads
    finally:
        driver.close()


def test_more_threads_than_processors_do_not_crawl(package: Path) -> None:
    driver = CpuDriver(options(package, 16))
    try:
        begin = time.perf_counter()
        run_checks(driver, 16, 200, 5)
        seconds = time.perf_counter() - begin
    finally:
        driver.close()
    # Sleeping waits take about 0.1 ms a launch; threads that spin for each other take 10 ms and more.
    assert seconds / 1000 < 0.005


def test_a_broken_barrier_would_be_noticed(package: Path) -> None:
    """The stress test can fail: without waiting, stage 1 finds no mark of stage 0 from the other blocks."""
    driver = CpuDriver(options(package, 1))
    try:
        function = driver.get_function(driver.load_module(kernels(), "k.so"), "check")
        marks, errors = driver.malloc(4096), driver.malloc(64)
        kernarg = marks.to_bytes(8, "little") + errors.to_bytes(8, "little") + (5).to_bytes(8, "little")
        driver.launch(function, 1, 1, kernarg)
        assert int.from_bytes(driver.fetch(errors, 4), "little") == 1
    finally:
        driver.close()


def test_blocks_are_threads_whatever_the_grid(driver: CpuDriver) -> None:
    function = driver.get_function(driver.load_module(kernels(), "k.so"), "blocks")
    out = driver.malloc(64)
    driver.launch(function, 77, 256, out.to_bytes(8, "little"))
    assert np.frombuffer(driver.fetch(out, 16), np.int32).tolist() == [200, 201, 0, 0]


def test_kernarg_is_copied_at_capture(driver: CpuDriver) -> None:
    function = driver.get_function(driver.load_module(kernels(), "k.so"), "blocks")
    out = driver.malloc(64)
    kernarg = bytearray(out.to_bytes(8, "little"))
    driver.graph_begin()
    driver.launch(function, 1, 1, kernarg)
    graph = driver.graph_end()
    assert np.frombuffer(driver.fetch(out, 8), np.int32).tolist() == [0, 0]  # recorded, not run
    kernarg[:] = bytes(8)
    driver.graph_launch(graph)
    assert np.frombuffer(driver.fetch(out, 8), np.int32).tolist() == [200, 201]


def test_python_threads_run_while_a_graph_runs(driver: CpuDriver) -> None:
    function = driver.get_function(driver.load_module(kernels(), "k.so"), "nap")
    flag = driver.malloc(64)
    timer = threading.Timer(0.02, driver.memset, (flag, 1, 4))
    timer.start()
    driver.launch(function, 1, 1, flag.to_bytes(8, "little"))
    timer.join()
    assert driver.fetch(flag, 8) == b"\1" * 8


def test_memory_round_trip_at_odd_sizes(driver: CpuDriver) -> None:
    rng = random.Random()
    for _ in range(10):
        data = rng.randbytes(rng.randrange(1, 100_000))
        address = driver.malloc(len(data))
        assert address % 4096 == 0
        assert driver.fetch(address, min(len(data), 64)) == bytes(min(len(data), 64))
        driver.upload(address, data)
        back = bytearray(len(data))
        driver.download(address, back)
        assert back == data
        driver.memset(address, 7, len(data) // 2)
        half = len(data) // 2
        driver.download(address, back)
        assert back == bytes([7]) * half + data[half:]
        driver.free(address)


def test_adopted_memory_is_used_in_place(driver: CpuDriver) -> None:
    data = bytes(range(100))
    address = driver.adopt(memoryview(data)[10:])
    assert address is not None
    assert ctypes.string_at(address, 3) == b"\x0a\x0b\x0c"


def test_description(driver: CpuDriver) -> None:
    info = driver.describe()
    assert (info.wave, info.compute_units) == (1, 2)
    assert 0 < info.memory_free <= info.memory_total
    start = driver.timestamp()
    assert driver.elapsed(start, driver.timestamp()) >= 0


def test_close_twice(package: Path) -> None:
    driver = CpuDriver(options(package, 3))
    driver.close()
    driver.close()
    assert threading.active_count() >= 1  # and no thread of the pool has crashed the process


def test_default_threads_are_the_cores_it_may_use(package: Path) -> None:
    assert 1 <= default_threads() <= len(driver_cpu.os.sched_getaffinity(0))
    driver = CpuDriver(options(package, None))
    assert driver.threads == default_threads()
    driver.close()


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_impossible_thread_counts(package: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads are not possible") as caught:
        CpuDriver(options(package, threads))
    assert caught.value.hint == "give a number from 1 to 1024"


def test_features_are_read_from_cpuinfo() -> None:
    text = "processor : 0\nmodel name: x\nflags\t\t: fpu avx2  fma\n\nprocessor : 1\nflags : other\n"
    assert cpu_features(text) == {"fpu", "avx2", "fma"}
    assert cpu_features("nothing") == frozenset()
    assert missing_features("x86-64-v2", (), frozenset(driver_cpu.LEVELS["x86-64-v3"])) == []
    assert missing_features("x86-64-v3", (), frozenset(driver_cpu.LEVELS["x86-64-v2"])) == [
        "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave",
    ]  # fmt: skip
    assert missing_features("native", ("avx512f",), frozenset({"avx2"})) == ["avx512f"]


def test_a_processor_without_the_features_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset(driver_cpu.LEVELS["x86-64-v3"]) - {"avx2", "fma"}
    monkeypatch.setattr(driver_cpu, "cpu_features", lambda: flags)
    with pytest.raises(DeviceError) as caught:
        CpuDriver(options(package, 1, "x86-64-v3"))
    assert caught.value.message == ("this processor lacks avx2, fma, which a package for 'x86-64-v3' needs")
    assert "--arch native" in caught.value.hint


def test_module_from_bytes_and_missing_symbol(driver: CpuDriver, package: Path) -> None:
    module = driver.load_module(b"", "k.so", package / "kernels/k.so")
    assert driver.get_function(module, "check") != 0
    with pytest.raises(DeviceError, match="has no kernel 'nope'"):
        driver.get_function(module, "nope")
    with pytest.raises(DeviceError, match="cannot be loaded"):
        driver.load_module(b"not a shared object", "broken.so")


def test_missing_or_wrong_pool(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"'pool\.so' cannot be loaded"):
        CpuDriver(options(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/pool.so").write_bytes(kernels())
    with pytest.raises(DeviceError, match=r"'kernels/pool\.so' is no thread pool"):
        CpuDriver(options(tmp_path))


def test_too_much_memory_is_a_device_error(driver: CpuDriver) -> None:
    with pytest.raises(DeviceError, match="refused 1152921504606846976 bytes"):
        driver.malloc(1 << 60)
