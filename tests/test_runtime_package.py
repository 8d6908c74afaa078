"""Loading packages that are damaged, incomplete or meant for something else: one clear error each."""

from __future__ import annotations

import ast
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import driver as driver_module
from runtime.driver import DriverOptions, device_of_family, format_bytes, open_driver
from runtime.errors import DeviceError, PackageError, UsageError
from runtime.manifest import load_manifest
from runtime.weights import Weights
from tests.toy_package import WEIGHTS_BYTES, expected_tokens, write_package


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(original, tmp_path / "package")


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = package / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_sound_package(package: Path) -> None:
    with runtime.load(package, threads=1) as model:
        assert list(model.generate("hi", max_tokens=3).tokens) == expected_tokens(b"hi", 3)


def test_a_changed_weight_byte_anywhere(package: Path) -> None:
    positions = [0, WEIGHTS_BYTES - 1, random.randrange(WEIGHTS_BYTES)]
    for position in positions:
        flip(package / "weights.bin", position)
        with pytest.raises(PackageError) as caught:
            runtime.load(package, threads=1)
        start = position // 4096 * 4096
        place = f"between byte {start} and {min(start + 4096, WEIGHTS_BYTES)}"
        assert caught.value.message == f"'weights.bin' does not match its digest {place}"
        flip(package / "weights.bin", position)
    runtime.load(package, threads=1).close()


@pytest.mark.parametrize("file", ["kernels/toy.so", "kernels/pool.so", "tokenizer.json", "src/toy.hip"])
def test_a_changed_file(package: Path, file: str) -> None:
    flip(package / file, 100)
    with pytest.raises(PackageError) as caught:
        runtime.load(package, threads=1)
    assert caught.value.message.startswith(f"'{file}' does not match its digest: expected ")
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("file", ["kernels/toy.so", "kernels/pool.so", "tokenizer.json", "weights.bin"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file(package: Path, file: str, verify: bool) -> None:
    (package / file).unlink()
    with pytest.raises(PackageError) as caught:
        runtime.load(package, threads=1, verify=verify)
    assert caught.value.message == f"the package 'package' lacks the file '{file}'"
    assert caught.value.hint == "copy the whole folder again, or compile the model again"


def test_a_truncated_weight_file(package: Path) -> None:
    data = (package / "weights.bin").read_bytes()
    (package / "weights.bin").write_bytes(data[:-1])
    for verify in (True, False):
        with pytest.raises(PackageError) as caught:
            runtime.load(package, threads=1, verify=verify)
        assert (
            caught.value.message == f"'weights.bin' has {WEIGHTS_BYTES - 1} bytes, expected {WEIGHTS_BYTES}"
        )


def test_verification_can_be_left_out(package: Path) -> None:
    flip(package / "weights.bin", WEIGHTS_BYTES - 1)
    flip(package / "src/toy.hip", 0)
    with runtime.load(package, threads=1, verify=False) as model:
        assert list(model.generate("hi", max_tokens=3).tokens) == expected_tokens(b"hi", 3)


def test_an_unreadable_file(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    (package / "tokenizer.json").mkdir()
    with pytest.raises(PackageError, match=r"'tokenizer\.json' of the package cannot be read"):
        runtime.load(package, threads=1)


@pytest.mark.parametrize(
    ("family", "target", "device", "message"),
    [
        (
            "gfx11",
            "gfx1100",
            "cpu",
            "device 'cpu' cannot run a package for target 'gfx1100' of family 'gfx11'",
        ),
        (
            "cpu",
            "x86-64-v3",
            "hip",
            "device 'hip' cannot run a package for target 'x86-64-v3' of family 'cpu'",
        ),
        ("nvptx", "sm_90", "hip:1", "device 'hip' cannot run a package for target 'sm_90' of family 'nvptx'"),
    ],
)
def test_a_package_for_another_chip(
    package: Path, family: str, target: str, device: str, message: str
) -> None:
    edit(package, lambda raw: raw["target"].update(family=family, name=target))
    with pytest.raises(DeviceError) as caught:
        runtime.load(package, device=device)
    assert caught.value.message == message
    assert f"--device {device_of_family(family)}" in caught.value.hint


def test_unknown_families_and_devices(package: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'tpu'") as caught:
        runtime.load(package, device="tpu")
    assert caught.value.hint.startswith("available here: cpu, cuda, ")
    with pytest.raises(UsageError, match="device 'cpu:x' does not read NAME or NAME:INDEX"):
        runtime.load(package, device="cpu:x")
    edit(package, lambda raw: raw["target"].update(family="npu"))
    with pytest.raises(UsageError, match="for the unknown target family 'npu'"):
        runtime.load(package)


class FakeEntryPoint:
    name = "emulated"

    def __init__(self, opened: list[Any]) -> None:
        self._opened = opened

    def load(self) -> Any:
        def factory(manifest: Any, options: Any) -> str:
            self._opened.append((manifest["target"]["name"], options))
            return "the driver"

        return factory


def test_drivers_come_from_entry_points(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    entry_points: list[FakeEntryPoint] = []

    def find(group: str) -> list[FakeEntryPoint]:
        assert group == "forgec.drivers"
        return entry_points

    monkeypatch.setattr(driver_module.importlib.metadata, "entry_points", find)
    raw = load_manifest(package).raw
    options = DriverOptions(package, "x86-64-v2", 1, (), 3)
    with pytest.raises(DeviceError) as caught:
        open_driver("emulated", raw, options)
    assert caught.value.message == (
        "device 'emulated' needs forgec, whose emulator is not installed in this Python"
    )
    assert caught.value.hint == "run: pip install forgec"
    entry_points.append(FakeEntryPoint(opened))
    assert open_driver("emulated:2", raw, options) == "the driver"
    assert opened == [("x86-64-v2", {"package": package, "threads": 3, "index": 2})]


def test_weights_can_be_closed_while_they_are_checked(original: Path) -> None:
    for _ in range(20):
        weights = Weights(load_manifest(original))
        weights.start_verify()
        weights.close()
        with pytest.raises(ValueError):
            bytes(weights.view)


def test_empty_weights(package: Path) -> None:
    (package / "weights.bin").write_bytes(b"")

    def empty(raw: dict[str, Any]) -> None:
        raw["weights"].update(bytes=0, chunks=[])
        raw["buffers"][0]["bytes"] = 0
        for sequence in ("prefill", "decode"):
            raw["sequences"][sequence][1]["args"][1] = ["kv", 0]

    edit(package, empty)
    with runtime.load(package, threads=1) as model:
        assert len(model.generate("hi", max_tokens=3, ignore_eos=True).tokens) == 3


def test_bytes_for_people() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 98 << 20, 5 << 30)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "98.0 MiB", "5.00 GiB",
    ]  # fmt: skip


IMPORTS = """
import sys, time
begin = time.process_time()
import runtime
seconds = time.process_time() - begin
heavy = ("forgec", "torch", "ziglang", "gguf", "click", "hip", "jinja2")
print(seconds, *[name for name in heavy if name in sys.modules])
"""


def test_the_runtime_imports_nothing_heavy() -> None:
    root = Path(runtime.__file__).parent.parent
    best = 9.0
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, "-c", IMPORTS], cwd=root, check=True, capture_output=True, text=True, timeout=60
        ).stdout.split()
        assert output[1:] == []
        best = min(best, float(output[0]))
    assert best < 1.0


def test_runtime_sources_import_only_what_is_allowed() -> None:
    """No import of forgec or a compiler in any runtime module, whether it is reached here or not."""
    allowed = {"numpy", "tokenizers", "jinja2", "hip", "readline"}
    for path in sorted(Path(runtime.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_loading_is_quick(original: Path) -> None:
    runtime.load(original, threads=1).close()
    begin = time.process_time()  # of this process alone: other work on the machine does not count
    with runtime.load(original, threads=1) as model:
        next(model.stream("hello"))
        seconds = time.process_time() - begin
    assert seconds < 0.5
