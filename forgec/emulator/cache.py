"""Where the emulator keeps what it made: translated kernels, its compiled parts, listings, instructions.

All of it can be made again. The folder is bounded as the compile cache is: what was used longest ago goes
first, after something new was added.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from forgec.config import load_config
from forgec.toolchain.cache import (
    ABANDONED_SECONDS,
    DEFAULT_LIMIT_BYTES,
    KeptFiles,
    PruneReport,
    prune_files,
    touch,
)

__all__ = ["cache_directory", "prune", "touch"]

_UNUSED_SECONDS = 7 * 86400.0


def cache_directory() -> Path:
    """The emulator's folder beside the compile cache, made if need be."""
    path = load_config().cache_dir / "emulator"
    path.mkdir(parents=True, exist_ok=True)
    return path


def prune(directory: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> PruneReport:
    """Remove what was used longest ago until ``limit_bytes`` are left, and what stopped processes left."""
    _remove_abandoned(directory)
    return prune_files(_kept(directory), limit_bytes)


def _kept(directory: Path) -> Iterator[KeptFiles]:
    """Files one by one; an object file of shapes goes with its index."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            if path.name.startswith("shapes-"):
                for index in path.glob("*.names"):
                    yield _entry((index, index.with_suffix(".o")))
            elif path.is_file():
                yield _entry((path,))


def _entry(paths: tuple[Path, ...]) -> KeptFiles:
    found = [path.stat() for path in paths]
    return KeptFiles(max(s.st_mtime for s in found), sum(s.st_size for s in found), paths)


def _remove_abandoned(directory: Path) -> None:
    """Temporary folders of stopped processes, and the sources of engines that nobody used for a while."""
    now = time.time()
    ages = {"tmp*": ABANDONED_SECONDS, "shapes-*/tmp*": ABANDONED_SECONDS, "machine-*": _UNUSED_SECONDS}
    for pattern, age in ages.items():
        with contextlib.suppress(OSError):  # other processes come and go in this folder
            for path in list(directory.glob(pattern)):
                with contextlib.suppress(OSError):
                    if now - path.stat().st_mtime > age:
                        shutil.rmtree(path)
