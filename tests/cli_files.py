"""What the tests of the command line share: small models, their packages, and a way to call forgec.

In-process calls are quick and show what a user sees; subprocesses are for signals, pipes and closed streams.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import forgec.cli
from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.gguf_files import TinyModel

ROOT = Path(__file__).resolve().parent.parent
CPU = "x86-64-v3"
#: A chat template as small as one can be.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>"
)


@dataclass(frozen=True)
class Said:
    """What one call of the command line gave."""

    code: int
    out: str
    err: str


class Forgec:
    """Calls the command line in this process, with the compile cache of the test session."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Said:
        self._capsys.readouterr()
        code = forgec.cli.run([str(a) for a in arguments])
        captured = self._capsys.readouterr()
        return Said(code, captured.out, captured.err)

    def refused(self, *arguments: str | Path) -> tuple[int, str, str]:
        """(exit code, message, hint) of a call that must fail with exactly one error."""
        said = self(*arguments)
        assert said.out == ""
        return said.code, *one_error(said.err)


def one_error(text: str) -> tuple[str, str]:
    """(message, hint) of standard error, which holds one error and nothing else."""
    first, _, rest = text.partition("\n")
    assert first.startswith("error: "), text
    assert "Traceback" not in text and "\nerror:" not in text, text
    assert rest == "" or (rest.startswith("hint: ") and rest.endswith("\n")), text
    return first.removeprefix("error: "), rest.removeprefix("hint: ").removesuffix("\n")


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def start(arguments: list[str | Path], **options: Any) -> subprocess.Popen[str]:
    """``python arguments`` as a user would start it, its streams piped unless ``options`` say otherwise."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=environment, text=True, **{**pipes, **options}
    )


def finish(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out or "", err or "")


def tiny_model(path: Path, **changes: Any) -> Path:
    """A llama of two layers with a chat template, 128 tokens of context and Q8_0 weights."""
    changes = {"quant": "Q8_0", "metadata": {"tokenizer.chat_template": TEMPLATE}} | changes
    return TinyModel(**changes).write(path)


def compiled(model: Path, arch: str, output: Path, math: str = "fast", kv: str = "f16") -> Path:
    """A package of a model, its code from the user's compile cache."""
    options = CompileOptions(math=math, context=None, kv_dtype=kv)
    compile_model(model, arch, output, options, cache=open_cache(load_config())[0])
    return output
