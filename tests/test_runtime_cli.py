"""The command line of a package: what it prints, how it fails, how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli import build_parser, main
from tests.toy_package import CONTEXT, expected_tokens, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "toy-model-1.5.cpu"
    folder.mkdir()
    return write_package(folder, with_runtime=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.driver_cpu.default_threads", lambda: 1)


def text_of(prompt: bytes, count: int) -> str:
    return bytes(expected_tokens(prompt, count)).decode()


def run(package: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(package), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_folder_with_dashes_and_dots_runs_from_anywhere(package: Path, tmp_path: Path) -> None:
    done = run(package, "hello", "--max-tokens", "8", "--threads", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, text_of(b"hello", 8) + "\n", "")


def test_the_folder_may_be_read_only_and_holds_no_path(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "moved")
    shutil.rmtree(copy / "__pycache__", ignore_errors=True)
    copy.chmod(0o500)
    try:
        done = run(copy, "hello", "--max-tokens", "3", "--threads", "1")
    finally:
        copy.chmod(0o700)
    assert (done.returncode, done.stdout) == (0, text_of(b"hello", 3) + "\n")


def test_json(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hello", "--max-tokens", "5", "--json"], package) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["prompt_tokens", "tokens", "text", "finish_reason", "timings"]
    assert result["prompt_tokens"] == 5
    assert result["tokens"] == expected_tokens(b"hello", 5)
    assert (result["text"], result["finish_reason"]) == (text_of(b"hello", 5), "length")
    assert result["timings"]["prompt_seconds"] > 0
    assert result["timings"]["generated_tokens_per_second"] > 0


def test_sampling_stop_and_no_limit(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hello", "--json", "--max-tokens", "0", "--ignore-eos"]
    assert (
        main([*arguments, "--temperature", "1", "--seed", "3", "--top-k", "2", "--top-p", "0.9"], package)
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == "".join(chr(65 + (5 + 5 * i) % 26) for i in range(CONTEXT - 5 + 1))
    assert result["finish_reason"] == "context"
    text = text_of(b"hello", 9)
    assert main(["hello", "--stop", "~~", "--stop", text[4:6], "--json"], package) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["finish_reason"]) == (text[:4], "stop")


@pytest.mark.parametrize("arguments", [["--chat", "hi"], ["hi", "--chat"]])
def test_chat_answers_through_the_template(
    package: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*arguments, "--system", "be", "--max-tokens", "4", "--json"], package) == 0
    result = json.loads(capsys.readouterr().out)
    prompt = [258, *b"system\nbe\n", 258, *b"user\nhi\n", 258, *b"assistant\n"]
    assert result["prompt_tokens"] == len(prompt)
    assert result["tokens"] == expected_tokens(prompt, 4)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_prompt_from_standard_input(
    package: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    assert main([*arguments, "--max-tokens", "5"], package) == 0
    assert capsys.readouterr().out == text_of(b"hello", 5) + "\n"


def check_error(
    package: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    error: str,
    hint: str = "",
) -> None:
    assert main(arguments, package) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == f"error: {error}"
    assert lines[1:] == ([f"hint: {hint}"] if hint else [])


def test_an_empty_prompt(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hint = 'give a text, as in: "Once upon a time" or --chat "Hello"'
    check_error(package, capsys, [""], 2, "the prompt is empty", hint)


def test_errors_are_one_line_and_a_hint(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_error(
        package, capsys, ["x" * (CONTEXT + 2)], 10,
        f"the prompt has {CONTEXT + 2} tokens, and the package was compiled for a context of {CONTEXT}",
        f"shorten the prompt, or compile the model with --ctx {CONTEXT + 2} or more",
    )  # fmt: skip
    check_error(
        package, capsys, ["x", "--system", "y"], 2, "--system is for a chat",
        "add --chat, or put the text into the prompt",
    )  # fmt: skip
    check_error(
        package, capsys, ["x", "--chat", "y"], 2, "there is both a prompt and a message for --chat",
        "give one of them; quote a text with spaces",
    )  # fmt: skip
    check_error(
        package, capsys, ["x", "--device", "hip"], 9,
        "device 'hip' cannot run a package for target 'x86-64-v2' of family 'cpu'",
        "leave out --device, use --device cpu, or compile the model for another target",
    )  # fmt: skip
    check_error(
        package, capsys, ["x", "--temperature", "-1"], 2,
        "temperature is -1.0, expected a number from 0 (greedy) to 1000",
    )  # fmt: skip
    check_error(
        package, capsys, ["x", "--max-tokens", "-1"], 2,
        "--max-tokens is -1, expected 1 or more, or 0 for no limit",
    )  # fmt: skip


def test_a_changed_weight_byte_on_the_command_line(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "changed")
    data = bytearray((copy / "weights.bin").read_bytes())
    data[5000] ^= 4
    (copy / "weights.bin").write_bytes(data)
    done = run(copy, "hello", "--threads", "1")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr == (
        "error: 'weights.bin' does not match its digest between byte 4096 and 8192\n"
        "hint: the file was changed after the package was written: copy the package again, or recompile it\n"
    )
    # The multiplier is outside byte 5000, so the answer is the same.
    assert run(copy, "hello", "--threads", "1", "--no-verify", "--max-tokens", "2").returncode == 0


def test_debug_shows_the_traceback(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x", "--device", "tpu", "--debug"], package) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "error: unknown device 'tpu'" in error


def test_unexpected_errors_are_one_line_too(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("runtime.cli.load", fail)
    hint = "this is a defect: --debug shows where it happened"
    check_error(package, capsys, ["x"], 1, "ZeroDivisionError: by zero", hint)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert 'python runtime "Once upon a time"' in text
    for flag in (
        "--seed", "--temperature", "--top-k", "--top-p", "--max-tokens", "--ignore-eos", "--system", "--stop",
        "--device", "--threads", "--json", "--chat", "--suffix",
    ):  # fmt: skip
        assert flag in text
    assert all(len(line) <= 100 for line in build_parser("python x").format_help().splitlines())


def test_a_missing_python_package_is_named(package: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['tokenizers'] = None; "
        f"sys.argv[0] = {str(package)!r}; runpy.run_path({str(package)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "x"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: the Python package 'tokenizers' is missing\nhint: run: pip install numpy tokenizers jinja2\n"
    )


def test_a_closed_pipe_is_no_error(package: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(package), "hello", "--threads", "1"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_ends_quietly(package: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(package), "--chat", "--threads", "1"],
        stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(terminal)
    assert process.stderr is not None
    assert "ends the chat" in process.stderr.readline()  # from here on it waits for a message
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    os.close(controller)
    assert (process.returncode, err) == (130, "\n")


def test_an_interactive_chat(package: Path) -> None:
    """Two turns, a message that is too long, /reset, and the end of input, on a terminal."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(package), "--chat", "--threads", "1", "--max-tokens", "3"],
        stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(terminal)
    os.write(controller, b"hi\n" + b"y" * (CONTEXT + 1) + b"\n/reset\nhi\n\n")
    out, err = process.communicate(timeout=60)
    os.close(controller)
    answer = bytes(expected_tokens([258, *b"user\nhi\n", 258, *b"assistant\n"], 3)).decode()
    assert process.returncode == 0
    assert out.count(answer) == 2
    assert "error: the prompt has" in err and "/reset begins a new conversation" in err
    assert "Traceback" not in err
