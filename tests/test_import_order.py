"""The house rule: imports go leftwards in the order data flows, and the runtime stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Rooms in the order data flows; a room may import itself and those before it.
ORDER = ("frontend", "ir", "passes", "plan", "codegen", "toolchain", "package")
#: Importable from every room.
SHARED = {"errors", "config", "targets", "__version__"}
#: Rooms beside the line, and what they may import beyond SHARED.
BESIDE = {
    "targets": {"targets"},
    "errors": set[str](),
    "config": set[str](),
    "reference": {"frontend", "ir", "reference"},
    "golden": {"frontend", "golden"},
    "tune": {"plan", "codegen", "toolchain", "package", "tune"},
    "synth": {"frontend", "synth"},
    "emulator": {"emulator", "toolchain"},
    "quantise": {"frontend", "quantise"},
}
#: The graph is imported from files: the architectures of the frontend build IR.
EXCEPTIONS = {("frontend", "ir")}
#: The top of the house may use every room.
TOP = {"cli", "commands", "compiler", "inspection", "__main__", "__init__"}


def imported_rooms(path: Path) -> Iterator[str]:
    """First part below ``forgec`` of every absolute import of a module (also inside functions)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "forgec":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("forgec."))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "forgec").parts
    return parts[0] if len(parts) > 1 else path.stem


def allowed(room: str) -> set[str]:
    if room in BESIDE:
        return BESIDE[room] | SHARED
    return {*ORDER[: ORDER.index(room) + 1], *SHARED, *(to for of, to in EXCEPTIONS if of == room)}


def test_imports_go_leftwards() -> None:
    problems = [
        f"{path.relative_to(ROOT)} imports forgec.{found}"
        for path in sorted((ROOT / "forgec").rglob("*.py"))
        if (room := room_of(path)) not in TOP
        for found in imported_rooms(path)
        if found not in allowed(room)
    ]
    assert problems == []


def test_every_room_has_a_place() -> None:
    rooms = {room_of(p) for p in (ROOT / "forgec").rglob("*.py")}
    assert rooms - TOP - set(BESIDE) - set(ORDER) == set()


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    lines = ("from forgec.package.writer import x", "import forgec.plan.lower", "from forgec import cli")
    module.write_text("\n".join(lines))
    assert list(imported_rooms(module)) == ["package", "plan", "cli"]
    assert "package" not in allowed("plan")


def test_runtime_imports_nothing_of_forgec() -> None:
    for path in sorted((ROOT / "runtime").glob("*.py")):
        assert list(imported_rooms(path)) == [], path.name


@pytest.mark.parametrize("forbidden", ["forgec", "ziglang", "torch", "gguf", "click", "networkx", "jinja2"])
def test_importing_the_runtime_brings_no_compiler(forbidden: str) -> None:
    code = f"import sys, runtime; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
