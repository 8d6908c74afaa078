"""The compile cache: compiler products under the digest of everything that decides them.

In go a key and a ``Compiled``, out comes the same bytes later, on this machine or on another one to which the
directory was copied. A damaged entry is a miss, never an error; what the cache cannot do it says as a warning
value. It never holds anything that cannot be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack

from forgec.config import Config
from forgec.targets import Target
from forgec.toolchain.objects import Compiled, Toolchain, Unit

__all__ = [
    "ABANDONED_SECONDS",
    "DEFAULT_LIMIT_BYTES",
    "Cache",
    "CacheWarning",
    "KeptFiles",
    "PruneReport",
    "cache_key",
    "open_cache",
    "prune_files",
    "touch",
]

DEFAULT_LIMIT_BYTES = 1 << 30
#: A temporary file that is older belongs to a process that was stopped.
ABANDONED_SECONDS = 3600.0
_MAGIC = b"forgec compile cache 1\n"
_DIGEST_BYTES = 32
_SUFFIX = ".entry"
_TEMPORARY_SUFFIX = ".partial"


@dataclass(frozen=True)
class CacheWarning:
    """Why compiled code is not kept; compilation itself is not affected."""

    message: str


@dataclass(frozen=True)
class PruneReport:
    """What pruning found and removed: entries and bytes."""

    entries: int
    entry_bytes: int
    removed: int
    removed_bytes: int


@dataclass(frozen=True)
class KeptFiles:
    """Files that are kept and removed together; ``used`` is the time of last use, ``size`` in bytes."""

    used: float
    size: int
    paths: tuple[Path, ...]


def touch(path: Path) -> None:
    """Note that a file was used: its modification time, as access times are often switched off."""
    with contextlib.suppress(OSError):
        os.utime(path)


def prune_files(kept: Iterable[KeptFiles], limit_bytes: int) -> PruneReport:
    """Remove the least recently used until ``limit_bytes`` are left."""
    entries = sorted(kept, key=lambda entry: entry.used)
    total = sum(entry.size for entry in entries)
    left, removed = total, 0
    for entry in entries:
        if left <= limit_bytes:
            break
        # Another process may have removed it already, which is just as well.
        for path in entry.paths:
            with contextlib.suppress(OSError):
                path.unlink()
        left -= entry.size
        removed += 1
    return PruneReport(len(entries), total, removed, total - left)


def cache_key(unit: Unit, target: Target, toolchain: Toolchain) -> str:
    """The hexadecimal SHA-256 of source, flags, compiler version and target; paths have no part in it."""
    parts = {
        "name": unit.name,
        "entries": unit.entries,
        "libc": unit.libc,
        "language": unit.language,
        "target": target.name,
        "toolchain": toolchain.name,
        "version": toolchain.version,
        "recipe": toolchain.recipe(unit, target),
        "source": hashlib.sha256(unit.source.encode("utf-8")).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def open_cache(
    config: Config, limit_bytes: int = DEFAULT_LIMIT_BYTES
) -> tuple[Cache | None, CacheWarning | None]:
    """The cache in ``config.cache_dir``, made if need be, or None and why it cannot be written."""
    directory = config.cache_dir / "objects"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The only sure test on read-only mounts, full disks and for root: write something.
        with tempfile.NamedTemporaryFile(dir=directory, suffix=_TEMPORARY_SUFFIX) as probe:
            probe.write(b"x")
    except OSError as error:
        reason = error.strerror or str(error)
        return None, CacheWarning(
            f"compiled code is not cached: '{directory}' cannot be written ({reason}); set FORGEC_CACHE_DIR"
        )
    return Cache(directory, limit_bytes), None


@dataclass(frozen=True)
class Cache:
    """A directory of entries, one file each, safe to share between processes.

    ``limit_bytes`` bounds what ``prune`` leaves, least recently used first to go.
    """

    directory: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def load(self, key: str) -> Compiled | None:
        """The entry of ``key``, or None when there is none or it is damaged."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        compiled = _decode(raw, key)
        if compiled is not None:
            touch(path)
        return compiled

    def store(self, key: str, compiled: Compiled) -> CacheWarning | None:
        """Write the entry of ``key``, whole or not at all; a warning when that is impossible."""
        path = self._path(key)
        temporary: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, suffix=_TEMPORARY_SUFFIX, delete=False
            ) as handle:
                temporary = Path(handle.name)
                handle.write(_encode(compiled, key))
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            return CacheWarning(f"compiled code is not cached: '{path}': {error.strerror or error}")
        return None

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """Remove least recently used entries until ``limit_bytes`` are left, and abandoned partial files."""
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        now = time.time()
        entries: list[KeptFiles] = []
        for path in self.directory.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == _SUFFIX:
                    entries.append(KeptFiles(status.st_mtime, status.st_size, (path,)))
                elif path.suffix == _TEMPORARY_SUFFIX and now - status.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        return prune_files(entries, limit)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / (key + _SUFFIX)


def _encode(compiled: Compiled, key: str) -> bytes:
    body: bytes = msgpack.packb(
        {
            "key": key,
            "data": compiled.data,
            "assembly": zlib.compress(compiled.assembly.encode("utf-8"), 6),
            "log": compiled.log,
        }
    )
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(raw: bytes, key: str) -> Compiled | None:
    start = len(_MAGIC) + _DIGEST_BYTES
    if not raw.startswith(_MAGIC) or len(raw) <= start:
        return None
    body = raw[start:]
    if hashlib.sha256(body).digest() != raw[len(_MAGIC) : start]:
        return None
    fields = msgpack.unpackb(body)
    # A file renamed to another key is whole, but it is the answer to another question.
    if fields["key"] != key:
        return None
    return Compiled(fields["data"], zlib.decompress(fields["assembly"]).decode("utf-8"), fields["log"])
