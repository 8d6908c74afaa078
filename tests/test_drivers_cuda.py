"""The CUDA driver against a stand-in for libcuda: generations, errors with their numbers, clean ends."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime import driver_cuda
from runtime.driver import DriverOptions
from runtime.driver_cuda import CudaDriver
from runtime.errors import DeviceError, PackageError, UsageError
from runtime.libcuda import CudaLibrary
from runtime.staging import BULK_BYTES, BULK_CHUNKS, CHUNK_BYTES
from tests import fake_gpu
from tests.toy_package import compiled, expected_tokens, use_other_kernels, write_package


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "libcuda.so.1").write_bytes(fake_gpu.library("cuda"))
    (folder / "toy.so").write_bytes(compiled("cpu"))
    package = folder / "package"
    package.mkdir()
    write_package(package)
    use_other_kernels(package, "nvptx", str(folder / "toy.so").encode())
    return folder


@pytest.fixture(autouse=True)
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        driver_cuda, "CudaLibrary", functools.partial(CudaLibrary, str(folder / "libcuda.so.1"))
    )


@pytest.fixture
def driver(folder: Path) -> Iterator[CudaDriver]:
    driver = CudaDriver(DriverOptions(folder / "package", "sm_90", 32))
    yield driver
    driver.close()


def test_generations(folder: Path) -> None:
    with runtime.load(folder / "package") as model:
        assert model.engine.driver.name == "cuda"
        for prompt in (b"hello", b"a prompt of several chunks"):
            result = model.generate(list(prompt), max_tokens=20)
            assert list(result.tokens) == expected_tokens(prompt, 20)
        other: list[tuple[int, ...]] = []
        thread = threading.Thread(target=lambda: other.append(model.generate("x", max_tokens=9).tokens))
        thread.start()
        thread.join()
        assert list(other[0]) == expected_tokens(b"x", 9)
        stream = model.stream("hello")
        next(stream)
        stream.close()
        assert model.logits("hello")[-1].argmax() == expected_tokens(b"hello", 1)[0]


def test_everything_is_given_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    with runtime.load(folder / "package") as model:
        model.generate("hello", max_tokens=9)
    calls = (tmp_path / "log").read_text().split()
    for made, ended in (
        ("cuMemAlloc_v2", "cuMemFree_v2"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuEventCreate", "cuEventDestroy_v2"),
        ("cuStreamBeginCapture_v2", "cuGraphDestroy"),
        ("cuGraphInstantiateWithFlags", "cuGraphExecDestroy"),
        ("cuModuleLoadDataEx", "cuModuleUnload"),
        ("cuStreamCreate", "cuStreamDestroy_v2"),
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2"),
    ):
        assert calls.count(made) == calls.count(ended) > 0, (made, ended)
    assert calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_uploads_larger_than_the_staging_chunks(driver: CudaDriver) -> None:
    rng = random.Random()
    data = rng.randbytes(3 * CHUNK_BYTES + rng.randrange(1, 1000))
    address = driver.malloc(len(data))
    driver.upload(address, data)
    driver.memset(address + 5, 9, 3)
    back = bytearray(len(data))
    driver.download(address, back)
    assert back[:5] == data[:5] and back[5:8] == b"\x09" * 3 and back[8:] == data[8:]
    tickets = [driver.fetch(address + 64 * i, 64) for i in range(10)]
    assert [driver.wait(ticket) for ticket in tickets][1:] == [
        data[64 * i : 64 * i + 64] for i in range(1, 10)
    ]
    driver.free(address)


@pytest.mark.parametrize("size", [12_345, BULK_BYTES, BULK_CHUNKS * CHUNK_BYTES + 3 * CHUNK_BYTES + 12_345])
def test_large_files_go_through_a_ring_of_their_own(
    driver: CudaDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The fake device copies nothing before somebody waits: a chunk filled too early would show."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    data = np.random.default_rng().integers(0, 256, size, np.uint8)
    (tmp_path / "weights.bin").write_bytes(data.tobytes() + b"more")
    address = driver.malloc(size + 1)
    driver.memset(address + size, 7, 1)
    driver.upload_file(address, tmp_path / "weights.bin", size)
    driver.memset(address + 9, 3, 1)  # behind the upload
    back = bytearray(size + 1)
    driver.download(address, back)
    data[9] = 3
    assert back[-1] == 7
    assert np.array_equal(np.frombuffer(back, np.uint8)[:-1], data)
    calls = (tmp_path / "log").read_text().split()
    large = size >= BULK_BYTES
    assert calls.count("cuMemHostAlloc") == calls.count("cuMemFreeHost") == large
    assert calls.count("cuEventCreate") == calls.count("cuEventDestroy_v2") == large * BULK_CHUNKS
    assert calls.count("cuMemcpyHtoDAsync_v2") == -(-size // CHUNK_BYTES)
    driver.free(address)


def test_a_large_file_that_fails(driver: CudaDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(BULK_BYTES))
    address = driver.malloc(BULK_BYTES)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_FAIL", "cuMemcpyHtoDAsync_v2")
    with pytest.raises(DeviceError, match="cuMemcpyHtoDAsync_v2 failed: 999"):
        driver.upload_file(address, weights, BULK_BYTES)
    calls = (tmp_path / "log").read_text().split()
    assert calls.count("cuMemHostAlloc") == calls.count("cuMemFreeHost") == 1
    monkeypatch.delenv("FAKE_FAIL")
    driver.upload_file(address, weights, BULK_BYTES)
    driver.free(address)


@pytest.mark.parametrize("size", [1000, BULK_BYTES])
def test_a_file_that_ends_early(driver: CudaDriver, tmp_path: Path, size: int) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(size - 1))
    address = driver.malloc(size)
    with pytest.raises(PackageError, match=f"'weights.bin' cannot be read: it ends at byte {size - 1}"):
        driver.upload_file(address, weights, size)
    with pytest.raises(PackageError, match=r"'absent.bin' cannot be read: .*No such file"):
        driver.upload_file(address, tmp_path / "absent.bin", size)
    driver.free(address)


def test_copies_within_the_device(driver: CudaDriver) -> None:
    address = driver.malloc(100)
    driver.upload(address, bytes(range(100)))
    driver.copy(address + 50, address, 50)
    back = bytearray(100)
    driver.download(address, back)
    assert bytes(back) == bytes(range(50)) * 2
    driver.free(address)


def test_description_and_clock(driver: CudaDriver) -> None:
    info = driver.describe()
    assert (info.name, info.arch, info.compute_units, info.wave) == ("Fake 100", "sm_90", 7, 32)
    assert (info.memory_total, info.memory_free) == (1 << 30, 1 << 30)
    assert driver.elapsed(driver.timestamp(), driver.timestamp()) == pytest.approx(0.0025)


def test_no_driver() -> None:
    with pytest.raises(DeviceError, match="there is no NVIDIA driver: libcuda-absent") as caught:
        CudaLibrary("libcuda-absent.so.1")
    assert "install the NVIDIA driver" in caught.value.hint


def test_an_old_driver(folder: Path) -> None:
    with pytest.raises(DeviceError, match="the NVIDIA driver lacks 'cuInit'") as caught:
        CudaLibrary(str(folder / "toy.so"))
    assert "470" in caught.value.hint


def test_no_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_COUNT", "0")
    with pytest.raises(DeviceError, match="cuInit failed: CUDA_ERROR_NO_DEVICE") as caught:
        runtime.load(folder / "package")
    assert "nvidia-smi" in caught.value.hint


def test_an_index_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no device 'cuda:3': the NVIDIA driver lists 1"):
        runtime.load(folder / "package", device="cuda:3")


@pytest.mark.parametrize(
    ("found", "target", "runs"),
    [
        (80, "sm_90", False),
        (90, "sm_90", True),
        (100, "sm_90", True),
        (100, "sm_90a", False),
        (90, "sm_90a", True),
    ],
)
def test_which_gpus_run_a_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, found: int, target: str, runs: bool
) -> None:
    monkeypatch.setenv("FAKE_ARCH", str(found))
    options = DriverOptions(folder / "package", target, 32)
    if runs:
        CudaDriver(options).close()
        return
    with pytest.raises(DeviceError) as caught:
        CudaDriver(options)
    assert caught.value.message == f"the package is for target '{target}', and 'Fake 100' is sm_{found}"
    assert f"--arch sm_{found}" in caught.value.hint


def test_out_of_memory_has_numbers(folder: Path, driver: CudaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MEMORY", str(100 << 20))
    with pytest.raises(DeviceError) as caught:
        driver.malloc(150 << 20)
    assert caught.value.message == (
        "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory); "
        "150.0 MiB were asked for, 100.0 MiB of 100.0 MiB are free"
    )
    monkeypatch.setenv("FAKE_MEMORY", "9000")
    with pytest.raises(
        DeviceError, match=r"the model needs 13\.7 KiB on 'Fake 100', where 8\.8 KiB of 8\.8 KiB"
    ):
        runtime.load(folder / "package")


def test_failures_name_the_call_and_the_kernel(driver: CudaDriver, folder: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        driver.load_module(b"/absent.so", "kernels/x.ptx")
    assert caught.value.message == (
        "cuModuleLoadDataEx failed: CUDA_ERROR_NO_BINARY_FOR_GPU (unknown); module 'kernels/x.ptx'"
    )
    module = driver.load_module(str(folder / "toy.so").encode(), "toy.ptx")
    with pytest.raises(
        DeviceError, match=r"cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND.*; kernel 'nope'"
    ):
        driver.get_function(module, "nope")


def test_the_compiler_log_of_a_bad_module(driver: CudaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "cuModuleLoadDataEx")
    monkeypatch.setenv("FAKE_CODE", "218")
    with pytest.raises(DeviceError, match="cuModuleLoadDataEx failed: 218") as caught:
        driver.load_module(b"junk", "x.ptx")
    assert "update the NVIDIA driver" in caught.value.hint


@pytest.mark.parametrize(
    "symbol", ["cuGraphLaunch", "cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuEventSynchronize"]
)
def test_a_failing_call_is_an_error_and_the_device_is_released(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbol: str
) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_FAIL", symbol)
    with pytest.raises(DeviceError, match=f"{symbol} failed: 999"), runtime.load(folder / "package") as model:
        model.generate("hello, this is long enough", max_tokens=9)
    assert (tmp_path / "log").read_text().split()[-1] == "cuDevicePrimaryCtxRelease_v2"
