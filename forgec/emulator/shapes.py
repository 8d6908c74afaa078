"""The library of instruction shapes: every out-of-line function of every kernel, compiled once per machine.

A shape's name is the digest of its text, so kernels of one model, and of the next one, share most of them. A
kernel brings the shapes it needs; the ones that no object on disk has are compiled together into one more
object.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from forgec.emulator.cache import touch

__all__ = ["ShapeLibrary"]

HEADER = '#include "wave.h"\n#include "division.h"\n'


class ShapeLibrary:
    """The objects in ``folder``: ``<digest>.o`` with its symbols in ``<digest>.names``, one a line."""

    def __init__(self, folder: Path, compile_text: Callable[[str, Path], None]) -> None:
        self._folder = folder
        self._compile = compile_text
        self._lock = threading.Lock()
        self._known: dict[str, Path] = {}
        self._read: set[str] = set()

    def _rescan(self) -> None:
        for index in sorted(self._folder.glob("*.names")):
            if index.name not in self._read:
                self._read.add(index.name)
                if not index.with_suffix(".o").exists():
                    continue
                for name in index.read_text().split():
                    self._known.setdefault(name, index.with_suffix(".o"))

    def objects(self, functions: Mapping[str, str]) -> list[Path]:
        """Object files that together define ``functions`` (name to C text), compiling those that are
        missing."""
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._forget_removed(functions)
            if any(name not in self._known for name in functions):
                self._rescan()
            missing = sorted(name for name in functions if name not in self._known)
        if missing:
            self._add({name: functions[name] for name in missing})
        found = sorted({self._known[name] for name in functions})
        for path in found:
            touch(path)
        return found

    def _forget_removed(self, functions: Mapping[str, str]) -> None:
        """Objects that were pruned since they were found; the caller holds the lock."""
        paths = {self._known[name] for name in functions if name in self._known}
        gone = {path for path in paths if not path.exists()}
        if gone:
            self._known = {name: path for name, path in self._known.items() if path not in gone}
            self._read -= {path.with_suffix(".names").name for path in gone}

    def _add(self, functions: Mapping[str, str]) -> None:
        digest = hashlib.sha256("".join(functions).encode()).hexdigest()[:24]
        final = self._folder / f"{digest}.o"
        with tempfile.TemporaryDirectory(dir=self._folder) as work:
            out, names = Path(work) / "shapes.o", Path(work) / "shapes.names"
            self._compile(HEADER + "\n".join(functions.values()), out)
            names.write_text("\n".join(functions) + "\n")
            out.replace(final)
            names.replace(final.with_suffix(".names"))
        with self._lock:
            for name in functions:
                self._known.setdefault(name, final)
