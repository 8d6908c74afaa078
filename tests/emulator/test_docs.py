"""The example of docs/emulator.md does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    """The page's fenced blocks of a language."""
    page = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    return found


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
    right = blocks("python")[0]
    wrong = right.replace("1 + 2 * x", "1 + 3 * x")
    assert wrong != right
    done = subprocess.run(
        [sys.executable, "-c", wrong],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"AssertionError" in done.stderr
