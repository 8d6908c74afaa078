"""Damaged packages, and wrong uses of sound ones: one clear error with its exit code each."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forgec.package.loader import import_package
from tests.cli_files import CPU, Forgec, Said, compiled, finish, flip, one_error, start, tiny_model

DAMAGED = "the file was changed after the package was written: copy the package again, or recompile it"
COPY = "copy the whole folder again, or compile the model again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def original(model: Path) -> Path:
    return compiled(model, CPU, model.parent / "original")


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Forgec:
    return Forgec(capsys)


def a_kernel(package: Path) -> Path:
    return min((package / "kernels").glob("matvec*.so"))


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (lambda p: flip(p / "weights.bin", 5000),
         "'weights.bin' does not match its digest between byte 0 and SIZE",
         DAMAGED),
        (lambda p: os.truncate(p / "weights.bin", 100), "'weights.bin' has 100 bytes, expected SIZE",
         "the file is incomplete: copy the package again, or compile the model again"),
        (lambda p: (p / "weights.bin").unlink(), "the package 'tiny' lacks the file 'weights.bin'", COPY),
        (lambda p: (p / "tokenizer.json").unlink(),
         "the package 'tiny' lacks the file 'tokenizer.json'", COPY),
        (lambda p: a_kernel(p).unlink(), "the package 'tiny' lacks the file 'KERNEL'", COPY),
        (lambda p: (p / "engine.py").unlink(), "the package 'tiny' lacks 'engine.py'", COPY),
        (lambda p: (p / "manifest.json").unlink(), "'tiny' is no forgec package: it has no manifest.json",
         "give the folder that forgec compile wrote"),
    ],
)  # fmt: skip
def test_a_damaged_package(package: Path, damage: Damage, message: str, hint: str) -> None:
    message = message.replace("SIZE", str((package / "weights.bin").stat().st_size))
    message = message.replace("KERNEL", f"kernels/{a_kernel(package).name}")
    damage(package)
    said = finish(start([package, "hello", "--threads", "1"]))
    found, advice = one_error(said.err)
    assert (said.code, said.out) == (8, "")
    assert (found.replace(f"{package.parent}/", ""), advice) == (message, hint)


def test_a_changed_kernel(run: Forgec, package: Path) -> None:
    name = f"kernels/{a_kernel(package).name}"
    flip(package / name, 4000)
    said = finish(start([package, "hello", "--threads", "1"]))
    found, advice = one_error(said.err)
    assert (said.code, said.out, advice) == (8, "", DAMAGED)
    assert found.startswith(f"'{name}' does not match its digest: expected ")
    assert run.refused("bench", package, "--prompt", "1", "--tokens", "1") == (8, found, advice)


def test_a_module_that_does_not_parse(package: Path) -> None:
    with (package / "engine.py").open("a") as file:
        file.write("\nx = (\n")
    said = finish(start([package, "hello"]))
    found, advice = one_error(said.err)
    assert (said.code, said.out, advice) == (8, "", COPY)
    assert found.startswith("the package 'tiny' is damaged: '(' was never closed")


def test_a_package_without_a_main(run: Forgec, package: Path) -> None:
    (package / "__main__.py").unlink()
    assert run.refused("run", package, "hello") == (
        8, f"'{package}' is not a package: it has no __main__.py", "Make one with 'forgec compile'.",
    )  # fmt: skip


@pytest.fixture(scope="module")
def for_a_gpu(model: Path) -> Path:
    return compiled(model, "gfx1100", model.parent / "tiny-gfx1100")


def test_a_package_for_another_chip(for_a_gpu: Path) -> None:
    said = finish(start([for_a_gpu, "hello", "--device", "cpu"]))
    assert (said.code, said.out) == (9, "")
    assert one_error(said.err) == (
        "device 'cpu' cannot run a package for target 'gfx1100' of family 'gfx11'",
        "leave out --device, use --device hip, or compile the model for another target",
    )


def test_no_device(run: Forgec, for_a_gpu: Path) -> None:
    """No gfx1100 is visible to the process: the reason depends on what is installed, the form does not."""
    said = finish(start([for_a_gpu, "hello"], env={"ROCM_PATH": "/nowhere", "HIP_VISIBLE_DEVICES": "-1"}))
    assert (said.code, said.out) == (9, "")
    message, hint = one_error(said.err)
    assert message and hint


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ([""], 2, "the prompt is empty", 'give a text, as in: "Once upon a time" or --chat "Hello"'),
        ([], 2, "the prompt is empty", 'give a text, as in: "Once upon a time" or --chat "Hello"'),
        (["--chat"], 2, "the prompt is empty", 'give a text, as in: "Once upon a time" or --chat "Hello"'),
        (["x" * 129], 10, "the prompt has 129 tokens, and the package was compiled for a context of 128",
         "shorten the prompt, or compile the model with --ctx 129 or more"),
        (["x", "y"], 2, "unrecognized arguments: y", "'python original --help' lists all options"),
        (["x", "--temperature", "warm"], 2, "argument --temperature: invalid float value: 'warm'",
         "'python original --help' lists all options"),
        (["x", "--temperature", "nan"], 2, "temperature is nan, expected a number from 0 (greedy) to 1000",
         ""),
        (["x", "--top-p", "0"], 2, "top_p is 0.0, expected a probability above 0 and up to 1 (1: off)", ""),
        (["x", "--top-k", "-1"], 2, "top_k is -1, expected a whole number of tokens, or 0 for all", ""),
        (["x", "--seed", "-1"], 2, "seed is -1, expected a whole number from 0 to 2^64 - 1", ""),
        (["x", "--stop", ""], 2, "a stop string is '', expected a text that is not empty", ""),
        (["x", "--threads", "0"], 2, "0 threads are not possible", "give a number from 1 to 1024"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_a_package(
    original: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, message: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    cli = importlib.import_module(f"{import_package(original).__name__}.cli")
    assert cli.main(arguments, original) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert one_error(captured.err) == (message, hint)


def closed(package: Path, redirection: str) -> Said:
    command = f'exec "$0" "$@" --threads 1 --max-tokens 3 {redirection}'
    words = [sys.executable, str(package), *([] if "0<" in redirection else ["hello"])]
    done = subprocess.run(
        ["sh", "-c", command, *words], capture_output=True, text=True, timeout=60, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


def test_closed_streams(original: Path) -> None:
    nothing = closed(original, "0<&-")
    assert (nothing.code, one_error(nothing.err)[0]) == (2, "the prompt is empty")
    assert closed(original, "1>&-") == Said(0, "", "")
    full = closed(original, ">/dev/full")
    assert (full.code, full.out) == (2, "")
    assert one_error(full.err) == ("the output cannot be written: No space left on device", "free some space")


def test_bytes_that_are_no_utf8(original: Path) -> None:
    """Arguments and standard input are read as UTF-8 in any locale; what is none becomes U+FFFD."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    counts = []
    for text in (b"h\xc3\xa9", b"h\xff"):
        for options in ({"args": [text]}, {"input": text}):
            done = subprocess.run(
                [sys.executable, str(original), "--json", "--max-tokens", "1", *options.get("args", [])],
                input=options.get("input"), stdin=None if "input" in options else subprocess.DEVNULL,
                env={**os.environ, **(plain if "args" in options else {})}, capture_output=True,
                timeout=60, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, b"")
            counts.append(json.loads(done.stdout)["prompt_tokens"])
    assert counts == [3, 3, 4, 4]
