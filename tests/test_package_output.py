"""Folders that appear whole or not at all, whatever happens in between: interrupts, and two at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forgec.errors import PackageError
from forgec.package.output import atomic_directory


def test_an_interrupted_replacement_keeps_the_old_package(tmp_path: Path) -> None:
    output = tmp_path / "package"
    with atomic_directory(output, force=False) as folder:
        (folder / "manifest.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(output, force=True) as folder:
        (folder / "manifest.json").write_text("half")
        raise KeyboardInterrupt
    assert (output / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_an_interrupt_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "package"
    with atomic_directory(output, force=False) as folder:
        (folder / "manifest.json").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.startswith(".package") and not output.exists() and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(output, force=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert (output / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_two_at_once_without_force_the_first_wins(tmp_path: Path) -> None:
    output = tmp_path / "package"
    with pytest.raises(PackageError) as caught, atomic_directory(output, force=False) as second:
        (second / "manifest.json").write_text("second")
        with atomic_directory(output, force=False) as first:
            (first / "manifest.json").write_text("first")
    assert caught.value.message == f"output '{output}' already exists"
    assert (output / "manifest.json").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_two_at_once_with_force_the_last_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "package"
    with atomic_directory(output, force=True) as second:
        (second / "manifest.json").write_text("second")
        with atomic_directory(output, force=True) as first:
            (first / "manifest.json").write_text("first")
    assert (output / "manifest.json").read_text() == "second"
    # The old package vanishes, or another one appears, between two steps of the replacement.
    rename, steps = Path.rename, iter(["vanish", "appear"])

    def raced(self: Path, target: Path) -> Path:
        if self == output and (step := next(steps, "")):
            shutil.rmtree(output)
            if step == "appear":
                moved = rename(folder / "old", target)
                shutil.copytree(moved, output)
                return moved
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    with atomic_directory(output, force=True) as folder:
        (folder / "manifest.json").write_text("third")
        (folder / "old").mkdir()
        (folder / "old" / "manifest.json").write_text("of another")
    assert (output / "manifest.json").read_text() == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["package"]
