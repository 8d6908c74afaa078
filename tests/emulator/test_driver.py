"""The driver suite: what the runtime asks of a device, through the emulator's own driver and through HIP."""

from __future__ import annotations

import contextlib
import importlib.metadata
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec import errors
from forgec.emulator import EmulatorTrap
from forgec.emulator.driver import EmulatedDriver, open_checked, open_emulated
from runtime.errors import DeviceError
from tests.emulator.devices import MEMORY, WAYS, arguments, code, open_way

ERRORS = (errors.DeviceError, DeviceError)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def driver(way: str) -> Iterator[Any]:
    driver = open_way(way)
    yield driver
    driver.close()
    driver.close()  # harmless


def put(driver: Any, array: np.ndarray) -> int:
    address = driver.malloc(array.nbytes)
    driver.upload(address, array.tobytes())
    return int(address)


def get(driver: Any, address: int, like: np.ndarray) -> np.ndarray:
    into = bytearray(like.nbytes)
    driver.download(address, into)
    return np.frombuffer(into, like.dtype)


def function(driver: Any, symbol: str) -> Any:
    return driver.get_function(driver.load_module(code(), "test.hsaco"), symbol)


def test_description(driver: Any) -> None:
    info = driver.describe()
    assert (info.arch, info.wave, info.compute_units) == ("gfx1100", 32, 96)
    assert "Radeon RX 7900 XTX" in info.name and "emulat" in info.name
    assert info.memory_total == info.memory_free == MEMORY


def test_a_device_of_wave_64(way: str) -> None:
    driver = open_way(way, "gfx942")
    assert (driver.describe().arch, driver.describe().wave) == ("gfx942", 64)
    x = np.arange(100, dtype=np.float32)
    address = put(driver, x)
    kernel = driver.get_function(driver.load_module(code("gfx942"), "test.hsaco"), "scale")
    driver.launch(kernel, 4, 64, arguments(address, 100, 3.0))
    assert np.array_equal(get(driver, address, x), x * 3)
    driver.close()


# ---- memory ----


def test_memory(driver: Any) -> None:
    data = random.randbytes(9_000_001)
    address = driver.malloc(len(data))
    assert driver.describe().memory_free == MEMORY - len(data)
    driver.upload(address, memoryview(data))
    driver.memset(address + 5, 9, 3)
    back = bytearray(len(data))
    driver.download(address, memoryview(back))
    assert bytes(back) == data[:5] + bytes([9] * 3) + data[8:]
    fetched = bytearray(64)
    driver.download(address + 100, fetched)
    assert bytes(fetched) == data[100:164]
    driver.free(address)
    assert driver.describe().memory_free == MEMORY


def test_an_upload_has_read_its_bytes(driver: Any) -> None:
    address = driver.malloc(8)
    data = bytearray(b"original")
    driver.upload(address, data)
    data[:] = b"modified"
    back = bytearray(8)
    driver.download(address, back)
    assert bytes(back) == b"original"


def test_out_of_memory_says_the_numbers(driver: Any, way: str) -> None:
    first = driver.malloc(48 << 20)
    with pytest.raises(ERRORS) as caught:
        driver.malloc(32 << 20)
    numbers = ("33554432", "16777216 of 67108864")
    if way == "hip":
        numbers = ("32.0 MiB", "16.0 MiB of 64.0 MiB")
    assert all(number in caught.value.message for number in numbers), caught.value.message
    driver.free(first)
    driver.free(driver.malloc(60 << 20))  # the failure cost nothing


@pytest.mark.parametrize("call", ["upload", "download", "memset", "free"])
def test_addresses_outside_of_allocations(driver: Any, call: str) -> None:
    address = driver.malloc(100)
    with pytest.raises(ERRORS):
        if call == "upload":
            driver.upload(address + 98, b"1234")
        elif call == "download":
            driver.download(address + 98, bytearray(4))
        elif call == "memset":
            driver.memset(address, 0, 101)
        else:
            driver.free(address + 4)
    driver.upload(address, bytes(100))  # a refused call is no harm to the device


def test_freed_memory_is_gone(driver: Any) -> None:
    address = driver.malloc(100)
    driver.free(address)
    with pytest.raises(ERRORS):
        driver.upload(address, b"1234")


# ---- modules and launches ----


def test_launches_run_in_order(driver: Any) -> None:
    x = np.random.default_rng().standard_normal(1000).astype(np.float32)
    address = put(driver, x)
    scale = function(driver, "scale")
    driver.launch(scale, 4, 64, arguments(address, 1000, 0.5))
    driver.launch(scale, 2, 64, arguments(address, 100, -4.0))  # other blocks than threads: a stride of 4
    driver.synchronize()
    back = get(driver, address, x)
    touched = np.arange(100) % 256 < 128
    assert np.array_equal(back[100:], x[100:] / 2)
    assert np.array_equal(back[:100], np.where(touched, x[:100] * -2, x[:100] / 2))


def test_kernel_arguments_are_copied(driver: Any) -> None:
    count, words = put(driver, np.zeros(1, np.uint32)), put(driver, np.zeros(8, np.uint32))
    append = function(driver, "append")
    for value in range(5):
        packed = bytearray(arguments(count, words, value * value))
        driver.launch(append, 1, 64, bytes(packed))
        packed[:] = bytes(len(packed))
    assert get(driver, words, np.zeros(8, np.uint32)).tolist() == [0, 1, 4, 9, 16, 0, 0, 0]


def test_dynamic_lds(driver: Any) -> None:
    out = driver.malloc(256)
    driver.launch(function(driver, "reverse"), 1, 64, arguments(out), 256)
    assert get(driver, out, np.zeros(64, np.uint32)).tolist() == list(range(63, -1, -1))


def test_images_that_do_not_load(driver: Any) -> None:
    text = b"not a code object at all, and longer than a header" * 3
    for data, name, sentence in (
        (text, "hipErrorInvalidImage", "starts with"),
        (code("gfx942"), "hipErrorNoBinaryForGpu", "for gfx942, the device is gfx1100"),
    ):
        with pytest.raises(ERRORS) as caught:
            driver.load_module(data, "broken.hsaco")
        assert "broken.hsaco" in caught.value.message
        assert (sentence if isinstance(driver, EmulatedDriver) else name) in caught.value.message
    assert driver.load_module(code(), "good.hsaco")


def test_a_kernel_that_is_not_there(driver: Any) -> None:
    with pytest.raises(ERRORS, match="absent"):
        function(driver, "absent")


def test_unloading(driver: Any) -> None:
    before = driver.describe().memory_free
    module = driver.load_module(code(), "test.hsaco")
    driver.module_unload(module)
    assert driver.describe().memory_free == before


@pytest.mark.parametrize(("grid", "block"), [(0, 64), (1, 0), (1, 257), (1, 2048)])
def test_shapes_that_no_kernel_has(driver: Any, grid: int, block: int) -> None:
    address = put(driver, np.zeros(4, np.float32))
    scale = function(driver, "scale")
    with pytest.raises(ERRORS):
        driver.launch(scale, grid, block, arguments(address, 4, 1.0))
    driver.launch(scale, 1, 256, arguments(address, 4, 1.0))
    driver.synchronize()


def test_too_few_arguments(driver: Any) -> None:
    scale = function(driver, "scale")
    with pytest.raises(ERRORS):
        driver.launch(scale, 1, 64, bytes(8))


# ---- graphs and time ----


def test_a_graph_runs_when_it_is_launched(driver: Any) -> None:
    count, words = put(driver, np.zeros(1, np.uint32)), put(driver, np.zeros(8, np.uint32))
    append = function(driver, "append")
    driver.graph_begin()
    for value in (7, 8):
        driver.launch(append, 1, 64, arguments(count, words, value))
    graph = driver.graph_end()
    assert get(driver, count, np.zeros(1, np.uint32)).tolist() == [0]
    for _ in range(3):
        driver.graph_launch(graph)
    driver.launch(append, 1, 64, arguments(count, words, 9))
    assert get(driver, words, np.zeros(8, np.uint32)).tolist() == [7, 8, 7, 8, 7, 8, 9, 0]
    driver.graph_destroy(graph)


def test_a_broken_capture_leaves_the_device_usable(driver: Any) -> None:
    scale = function(driver, "scale")
    address = put(driver, np.ones(4, np.float32))
    driver.graph_begin()
    with pytest.raises(ERRORS):
        driver.launch(scale, 1, 4096, arguments(address, 4, 2.0))
    driver.graph_destroy(driver.graph_end())
    driver.launch(scale, 1, 64, arguments(address, 4, 2.0))
    assert get(driver, address, np.zeros(4, np.float32)).tolist() == [2, 2, 2, 2]


def test_elapsed_time(driver: Any) -> None:
    address = put(driver, np.ones(4000, np.float32))
    scale = function(driver, "scale")
    driver.launch(scale, 4, 64, arguments(address, 4000, 1.5))
    driver.synchronize()
    start = driver.timestamp()
    for _ in range(5):
        driver.launch(scale, 4, 64, arguments(address, 4000, 1.5))
    stop = driver.timestamp()
    assert 0 < driver.elapsed(start, stop) < 60


# ---- faults ----


@pytest.mark.parametrize(
    ("symbol", "code_name"), [("beyond", "IllegalAddress"), ("trapping", "LaunchFailure")]
)
def test_a_fault_loses_the_device(
    driver: Any, way: str, symbol: str, code_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = put(driver, np.zeros(4, np.uint32))
    faulty, scale = function(driver, symbol), function(driver, "scale")
    with pytest.raises(ERRORS) as caught:
        driver.launch(faulty, 1, 64, arguments(address))
        driver.synchronize()
    said = caught.value.message if way == "emulated" else caplog.text
    assert f"kernel '{symbol}'" in said
    assert way == "emulated" or f"hipError{code_name}" in caught.value.message
    for call in (
        lambda: driver.upload(address, bytes(4)),
        lambda: driver.download(address, bytearray(4)),
        lambda: driver.malloc(4),
        lambda: driver.launch(scale, 1, 64, arguments(address, 4, 1.0)),
        driver.synchronize,
        driver.graph_begin,
    ):
        with pytest.raises(ERRORS) as later:
            call()
        assert "lost" in later.value.message or f"hipError{code_name}" in later.value.message


# ---- the emulator's own driver ----


def manifest(name: str, family: str) -> dict[str, Any]:
    return {"target": {"name": name, "family": family}}


def test_entry_points() -> None:
    """The group that the runtime looks in; a checkout that is not installed has none to look at."""
    found = {e.name: e.value for e in importlib.metadata.entry_points(group="forgec.drivers")}
    project = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    for name, factory in (("emulated", open_emulated), ("emulated-checked", open_checked)):
        value = f"{factory.__module__}:{factory.__name__}"
        assert f'{name} = "{value}"' in project
        assert found.get(name, value) == value


def test_opening_by_the_manifest() -> None:
    options = {"package": Path(), "threads": 1, "index": 0}
    driver = open_emulated(manifest("gfx90a", "gfx9"), options)
    assert (driver.describe().arch, driver.describe().memory_total) == ("gfx90a", 48 << 30)
    driver.close()
    with pytest.raises(errors.DeviceError, match="for target 'sm_90'"):
        open_emulated(manifest("sm_90", "nvptx"), options)
    with pytest.raises(errors.UsageError, match="no device 1"):
        open_checked(manifest("gfx1100", "gfx11"), {**options, "index": 1})


def test_checks_find_what_bounds_do_not() -> None:
    for opened, traps in ((open_emulated, False), (open_checked, True)):
        driver = opened(manifest("gfx1100", "gfx11"), {"package": Path(), "threads": 1, "index": 0})
        append, nothing = function(driver, "append"), np.zeros(9, np.uint32)
        unwritten = driver.malloc(64)
        driver.launch(append, 1, 64, arguments(put(driver, nothing), unwritten, 5))
        assert get(driver, unwritten, nothing[:1]).tolist() == [5]
        # The count, from which an address is computed, was never written now.
        with pytest.raises(EmulatorTrap) if traps else contextlib.nullcontext():
            driver.launch(append, 1, 64, arguments(unwritten + 32, put(driver, nothing), 5))
        driver.close()


def test_the_observer_sees_every_launch() -> None:
    driver = open_way("emulated")
    seen: list[tuple[str, int]] = []
    driver.observer = lambda counters: seen.append((counters.kernel, counters.global_stored))
    address = put(driver, np.ones(100, np.float32))
    driver.launch(function(driver, "scale"), 2, 64, arguments(address, 100, 2.0))
    assert seen == [("scale", 400)]
    driver.close()
