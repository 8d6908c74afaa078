"""The HIP driver through the real hip-python, against a stand-in for libamdhip64.so chosen by ROCM_PATH.

hip-python opens its library once per process, so every case is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.libhip import find_library
from tests import fake_gpu
from tests.toy_package import ROOT, compiled, expected_tokens, use_other_kernels, write_package

hip = pytest.importorskip("hip", reason="the extra [hip] is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hip")
    for name in ("rocm/lib/libamdhip64.so", "runtime-only/lib/libamdhip64.so.7"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(fake_gpu.library("hip"))
    (folder / "toy.so").write_bytes(compiled("cpu"))
    package = folder / "package"
    package.mkdir()
    write_package(package, with_runtime=True)
    use_other_kernels(package, "gfx11", str(folder / "toy.so").encode() + b"\0")
    return folder


def warp_attribute() -> int:
    from hip import hip

    return int(hip.hipDeviceAttribute_t.hipDeviceAttributeWarpSize.value)


def run(
    folder: Path, *arguments: str, script: str = "", rocm: str = "rocm", **fake: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("ROCM", "HIP", "FAKE"))
    }
    environment |= {"ROCM_PATH": str(folder / rocm), "FAKE_WARP_ATTRIBUTE": str(warp_attribute())}
    environment |= {f"FAKE_{key.upper()}": value for key, value in fake.items()}
    command = ["-c", script] if script else [str(folder / "package"), *arguments]
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("rocm", ["rocm", "runtime-only"])
def test_a_generation(folder: Path, tmp_path: Path, rocm: str) -> None:
    """Also where ROCm has the versioned name of its library only, which hip-python does not look for."""
    prompt = "a prompt of several chunks"
    done = run(folder, prompt, "--max-tokens", "9", "--json", rocm=rocm, log=str(tmp_path / "log"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tokens"] == expected_tokens(prompt.encode(), 9)
    calls = (tmp_path / "log").read_text().split()
    for made, ended in (
        ("hipMalloc", "hipFree"),
        ("hipHostMalloc", "hipHostFree"),
        ("hipEventCreateWithFlags", "hipEventDestroy"),
        ("hipStreamBeginCapture", "hipGraphDestroy"),
        ("hipGraphInstantiateWithFlags", "hipGraphExecDestroy"),
        ("hipModuleLoadData", "hipModuleUnload"),
        ("hipStreamCreateWithFlags", "hipStreamDestroy"),
    ):
        assert calls.count(made) == calls.count(ended) > 0, (made, ended)
    assert calls.count("hipModuleLaunchKernel") == 8  # captured once, replayed for every step


DRIVER = """
import random
import tempfile
from pathlib import Path
from runtime.driver import DriverOptions
from runtime.driver_hip import HipDriver
from runtime.errors import DeviceError
from runtime.staging import BULK_BYTES
import runtime

driver = HipDriver(DriverOptions(Path("."), "gfx1100", 32))
info = driver.describe()
assert (info.name, info.arch, info.wave, info.compute_units) == ("Fake RX", "gfx1100", 32, 9), info
assert info.memory_total == info.memory_free == 1 << 30
data = random.randbytes(9_000_001)
address = driver.malloc(len(data))
driver.upload(address, data)
driver.memset(address + 5, 9, 3)
back = bytearray(len(data))
driver.download(address, back)
assert bytes(back) == data[:5] + bytes([9] * 3) + data[8:]
assert driver.wait(driver.fetch(address + 100, 64)) == data[100:164]
assert driver.elapsed(driver.timestamp(), driver.timestamp()) == 0.0025
for call, part in (
    (lambda: driver.load_module(b"/absent.so\\0", "x.hsaco"), "hipErrorNoBinaryForGpu; module 'x.hsaco'"),
    (lambda: driver.malloc(2 << 30), "OutOfMemory; 2.00 GiB were asked for, 1015.4 MiB of 1.00 GiB are free"),
):
    try:
        call()
    except DeviceError as error:
        assert part in error.message, error.message
    else:
        raise AssertionError(part)
driver.copy(address, address + 100, 50)
driver.download(address, back)
assert bytes(back[:50]) == data[100:150]
driver.free(address)
data = random.randbytes(BULK_BYTES + 12_345)
address = driver.malloc(len(data))
with tempfile.NamedTemporaryFile() as file:
    file.write(data)
    file.flush()
    driver.upload_file(address, Path(file.name), len(data))
back = bytearray(len(data))
driver.download(address, back)
assert back == data
driver.free(address)
driver.close()
driver.close()
print("fine")
"""


def test_driver_calls(folder: Path) -> None:
    done = run(folder, script=DRIVER)
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.parametrize(
    ("fake", "code", "error", "hint"),
    [
        (
            {"arch": "gfx1101"},
            9,
            "the package is for target 'gfx1100', and the GPU is 'gfx1101'",
            "--arch gfx1101",
        ),
        ({"wave": "64"}, 9, "for waves of 32 lanes, and the GPU runs waves of 64", "--arch gfx1100"),
        (
            {"version": "50221153"},
            9,
            "HIP runtime is version 5.2, and this package needs ROCm 6",
            "update ROCm",
        ),
        ({"count": "0"}, 9, "hipGetDeviceCount failed: hipErrorNoDevice", "/dev/kfd"),
        (
            {"memory": "9000"},
            9,
            "the model needs 13.7 KiB on 'Fake RX', where 8.8 KiB of 8.8 KiB are",
            "--ctx",
        ),
        (
            {"fail": "hipGraphLaunch", "code": "719"},
            9,
            "hipGraphLaunch failed: hipErrorLaunchFailure",
            "rocminfo",
        ),
    ],
)
def test_refusals(folder: Path, fake: dict[str, str], code: int, error: str, hint: str) -> None:
    done = run(folder, "hello", **fake)
    assert (done.returncode, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ") and error in lines[0]
    assert lines[1].startswith("hint: ") and hint in lines[1]


def test_a_feature_suffix_of_the_arch_does_not_matter(folder: Path) -> None:
    done = run(folder, "hello", "--max-tokens", "3", arch="gfx1100:sramecc-:xnack-")
    assert (done.returncode, done.stdout) == (0, bytes(expected_tokens(b"hello", 3)).decode() + "\n")


def test_an_index_that_is_not_there(folder: Path) -> None:
    done = run(folder, "hello", "--device", "hip:2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no device 'hip:2': ROCm lists 1\n")


def test_a_library_that_is_broken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libamdhip64.so.6").write_bytes(b"not a library")
    done = run(folder, "hello", rocm=str(tmp_path))
    assert done.returncode == 9
    assert "libamdhip64.so.6' cannot be loaded" in done.stderr
    assert "hint: install ROCm 6 or newer" in done.stderr


MISSING = """
import rocm.bindings.util.paths as paths
import runtime.libhip as libhip
from runtime.errors import DeviceError
paths.get_library_path = lambda name: b"libamdhip64-absent.so"  # whatever this machine has installed
libhip.find_library = lambda environ: None
try:
    libhip.load_hip()
except DeviceError as error:
    print(error.message, "|", error.hint)
"""


def test_no_rocm(folder: Path, tmp_path: Path) -> None:
    done = run(folder, script=MISSING, rocm=str(tmp_path))
    assert done.stdout == (
        "there is no HIP runtime: 'libamdhip64.so' was not found | "
        "install ROCm 6 or newer (https://rocm.docs.amd.com); if it is not in /opt/rocm, set ROCM_PATH\n"
    )


NO_HIP_PYTHON = """
import sys
sys.modules["hip"] = None
from runtime.libhip import load_hip
from runtime.errors import DeviceError
try:
    load_hip()
except DeviceError as error:
    print(error.message.split(":")[0], "|", error.hint)
"""


def test_no_hip_python(folder: Path) -> None:
    done = run(folder, script=NO_HIP_PYTHON)
    assert done.stdout == "the Python package 'hip-python' cannot be imported | run: pip install hip-python\n"


def test_which_library_is_chosen(tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "libamdhip64.so.6").touch()
    (lib / "libamdhip64.so.10.1").touch()
    (lib / "libamdhip64.so.7").touch()
    assert find_library({"ROCM_PATH": str(tmp_path)}) == lib / "libamdhip64.so.10.1"
    (lib / "libamdhip64.so").touch()
    assert find_library({"ROCM_PATH": str(tmp_path)}) == lib / "libamdhip64.so"
    other = tmp_path / "other/lib"
    other.mkdir(parents=True)
    (other / "libamdhip64.so.6").touch()
    assert (
        find_library({"ROCM_PATH": str(other.parent), "HIP_PATH": str(tmp_path)})
        == other / "libamdhip64.so.6"
    )
