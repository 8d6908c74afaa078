"""A compiled model on the emulator, through its own driver and through HIP: the tokens of its CPU package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.emulator import instructions
from forgec.emulator.codeobject import parse_code_object
from forgec.emulator.hip import build_stub
from forgec.emulator.instructions import read_instructions, remember_package
from forgec.errors import DeviceError
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.emulator.devices import front, install_entry_points, stub
from tests.gguf_files import TinyModel

PROMPT = "the rain in the tin"
TOKENS = 8


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model, compiled for each target."""
    folder = tmp_path_factory.mktemp("packages")
    model = TinyModel(block_count=1, quant="Q4_1").write(folder / "tiny.gguf", np.random.default_rng(20))
    options = CompileOptions(math="exact", context=64, kv_dtype="f32", chunk=16)
    cache = open_cache(load_config())[0]
    made = {}
    for target in ("x86-64-v3", "gfx1100", "gfx942"):
        made[target] = folder / target
        compile_model(model, target, made[target], options, cache=cache)
    return made


def generate(package: Path, device: str | None = None) -> tuple[int, ...]:
    with import_package(package).load(device=device, threads=2) as model:
        return tuple(model.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True).tokens)


@pytest.fixture(scope="module")
def expected(packages: dict[str, Path]) -> tuple[int, ...]:
    tokens = generate(packages["x86-64-v3"])
    assert len(set(tokens)) > 2, "a model that repeats one token tests little"
    return tokens


@pytest.mark.parametrize(
    ("target", "device"),
    [("gfx1100", "emulated"), ("gfx942", "emulated-checked")],
)
def test_tokens_on_the_emulator(
    packages: dict[str, Path],
    expected: tuple[int, ...],
    target: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_entry_points(monkeypatch)
    assert generate(packages[target], device) == expected


def test_tokens_through_hip(packages: dict[str, Path], expected: tuple[int, ...]) -> None:
    stub()
    remember_package(packages["gfx1100"])
    gpu = front()
    assert generate(packages["gfx1100"], "hip") == expected
    gpu.close()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("emulated", "outside every allocation"),
        ("hip", "hipStreamSynchronize failed: hipErrorIllegalAddress"),
    ],
)
def test_the_fault_is_the_error_that_is_seen(
    packages: dict[str, Path], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of the calls that fail afterwards, while the model is closed on a lost device."""
    install_entry_points(monkeypatch)
    if device == "hip":
        front()
        remember_package(packages["gfx1100"])
    with (
        pytest.raises(Exception, match=message) as caught,
        import_package(packages["gfx1100"]).load(device=device) as model,
    ):
        engine = model.engine
        engine._set("position", "<i", 1 << 28)  # far behind the end of the KV cache
        engine._upload_state()
        engine.run("decode")
        engine.synchronize()
    assert type(caught.value).__name__ in ("DeviceError", "EmulatorTrap")
    assert caught.value.exit_code == 9  # type: ignore[attr-defined]


def run(package: Path, rocm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, str(package), PROMPT, *arguments],
        env={**os.environ, "ROCM_PATH": str(rocm), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_line_of_a_package_on_the_stub(
    packages: dict[str, Path], expected: tuple[int, ...], tmp_path: Path
) -> None:
    """Unchanged: a process that has never heard of the emulator."""
    stub()
    remember_package(packages["gfx1100"])
    done = run(packages["gfx1100"], stub(), "--max-tokens", str(TOKENS), "--ignore-eos", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(json.loads(done.stdout)["tokens"]) == expected
    small = run(packages["gfx1100"], build_stub(tmp_path, "gfx1100", memory=9000))
    assert (small.returncode, small.stdout) == (9, "")
    assert (
        "on 'forgec emulator: Radeon RX 7900 XTX" in small.stderr
        and "where 8.8 KiB of 8.8 KiB" in small.stderr
    )
    other = run(packages["gfx1100"], build_stub(tmp_path, "gfx942"))
    assert other.returncode == 9
    assert "the package is for target 'gfx1100', and the GPU is 'gfx942'" in other.stderr


def test_instructions_without_a_disassembler(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pip's compiler alone: from the package's source, and only if it gives the same bytes."""
    monkeypatch.setenv("FORGEC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("forgec.emulator.disassembly._objdump", lambda: None)
    path = min((packages["gfx1100"] / "kernels").glob("*.hsaco"), key=lambda p: p.stat().st_size)
    code = parse_code_object(path.read_bytes())
    with pytest.raises(DeviceError, match="listing cannot be made here: it comes without a package"):
        read_instructions(code)
    found = read_instructions(code, path)
    assert found[code.kernels[path.stem].entry].text
    monkeypatch.setattr(instructions, "disassemble", None)  # from now on only the cache answers
    assert read_instructions(code) == found
    (kept,) = (tmp_path / "emulator").glob("instructions-*.json")
    kept.write_text(kept.read_text().replace(found[code.kernels[path.stem].entry].data.hex(), "00000000", 1))
    with pytest.raises(TypeError):  # a damaged entry is not believed
        read_instructions(code)


def test_a_source_that_makes_other_code(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("forgec.emulator.disassembly._objdump", lambda: None)
    original = min((packages["gfx1100"] / "kernels").glob("*.hsaco"), key=lambda p: p.stat().st_size)
    image = original.read_bytes()
    path = tmp_path / "kernels" / original.name
    source = tmp_path / "src" / (original.stem + ".hip")
    source.parent.mkdir()
    with pytest.raises(DeviceError, match=f"the package has no 'src/{source.name}'"):
        read_instructions(parse_code_object(image), path)
    text = (packages["gfx1100"] / "src" / source.name).read_text()
    source.write_text("#pragma clang optimize off\n" + text)
    with pytest.raises(DeviceError, match="makes other code of"):
        read_instructions(parse_code_object(image), path)
