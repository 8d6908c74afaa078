"""The example of docs/emulator.md does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def block(language: str) -> str:
    """The fenced block of a language in the page's part about HIP; there is one of each."""
    page = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    part = page.split("\n## Run a program that uses HIP\n")[1].split("\n## ")[0]
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return str(text)


def test_a_code_object_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("hip", reason="the extra [hip] is not installed")
    (tmp_path / "saxpy.hip").write_text(blocks("c")[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [line.replace("python", sys.executable, 1) for line in blocks("sh")[0].splitlines()]
    assert len(commands) == 3
    for i, example in enumerate(blocks("python")):
        (tmp_path / f"example{i}.py").write_text(example)
        commands.append(f"{sys.executable} example{i}.py")
    for command in commands:
        done = subprocess.run(
            command.split(),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
    wrong = block("python").replace("1 + 2 * x", "1 + 3 * x")
    assert wrong != block("python")
    done = subprocess.run(
        [sys.executable, "-c", wrong],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"AssertionError" in done.stderr
