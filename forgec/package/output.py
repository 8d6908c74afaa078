"""Folders that appear whole or not at all: written beside their destination, then renamed.

Used by everything that leaves a directory behind. Nothing here knows what is in it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forgec.errors import PackageError

__all__ = ["atomic_directory", "check_destination", "check_space"]

#: The file that marks a folder as one of ours, so that --force may replace it.
MARKER = "manifest.json"


def check_destination(destination: Path, *, force: bool) -> None:
    """Refuse an output path that cannot or must not be written, before any work is done.

    Raises PackageError when it exists (without ``force``), is no package of forgec's (with ``force``), or
    lies in a folder that is missing or not writable.
    """
    parent = destination.absolute().parent
    if destination.is_symlink() or destination.exists():
        ours = destination.is_dir() and ((destination / MARKER).is_file() or not any(destination.iterdir()))
        if not ours:
            raise PackageError(
                f"output '{destination}' exists and is not a package made by forgec",
                "Choose another path with -o.",
            )
        if not force:
            raise PackageError(
                f"output '{destination}' already exists", "Add --force to replace it, or choose -o."
            )
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise PackageError(f"output folder '{existing}' is not writable", "Choose a writable path with -o.")


def check_space(destination: Path, needed: int) -> None:
    """Raise PackageError when the file system at ``destination`` has less than ``needed`` bytes free."""
    parent = destination.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise PackageError(
            f"the package needs {needed / 2**20:,.0f} MiB, '{existing}' has {free / 2**20:,.0f} MiB free",
            "Free some space or choose another path with -o.",
        )


@contextmanager
def atomic_directory(destination: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside ``destination`` that takes its name when the block ends well.

    An existing package is replaced only with ``force`` and only once the new one is complete. Whatever goes
    wrong, nothing of the temporary folder stays. Raises PackageError for a full disk or refused writes.
    """
    check_destination(destination, force=force)
    destination = destination.absolute()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise _write_error(destination, error) from error
    try:
        yield temporary
        # mkdtemp makes the folder private; a package is as readable as its files.
        temporary.chmod(0o755)
        _swap(temporary, destination)
    except OSError as error:
        raise _write_error(destination, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, destination: Path) -> None:
    """Rename into place; an old package steps aside first and is removed last."""
    if not destination.exists():
        temporary.rename(destination)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=destination.parent))
    old.rmdir()
    destination.rename(old)
    try:
        temporary.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_error(destination: Path, error: OSError) -> PackageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space or choose another path with -o."
        return PackageError(f"the disk is full: '{destination}' was not written", hint)
    reason = error.strerror or type(error).__name__
    return PackageError(f"cannot write '{destination}': {reason}", "Choose a writable path with -o.")
