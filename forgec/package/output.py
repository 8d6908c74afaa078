"""Folders and files that appear whole or not at all: written beside their destination, then renamed.

Used by everything that leaves something behind. Nothing here knows what is in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forgec.errors import PackageError, UsageError

__all__ = ["atomic_directory", "check_destination", "check_file", "check_space", "write_text"]

#: The file that marks a folder as one of ours, so that --force may replace it.
MARKER = "manifest.json"
#: Times that a package replaced by other processes at the same moment is replaced again.
SWAP_ATTEMPTS = 10


def check_destination(destination: Path, *, force: bool) -> None:
    """Refuse an output path that cannot or must not be written, before any work is done.

    Raises PackageError when it exists (without ``force``), is no package of forgec's (with ``force``), or
    lies in a folder that is missing or not writable.
    """
    try:
        _check_free(destination, force)
        existing = _existing_parent(destination)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise _write_error(destination, error) from error
    if not existing.is_dir():
        raise PackageError(
            f"'{existing}' is a file, not a folder to write to", "Choose another path with -o."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PackageError(f"output folder '{existing}' is not writable", "Choose a writable path with -o.")


def _check_free(destination: Path, force: bool) -> None:
    if not destination.is_symlink() and not destination.exists():
        return
    ours = destination.is_dir() and ((destination / MARKER).is_file() or not any(destination.iterdir()))
    if not ours:
        raise PackageError(
            f"output '{destination}' exists and is not a package made by forgec",
            "Choose another path with -o.",
        )
    if not force:
        raise PackageError(
            f"output '{destination}' already exists",
            "Add --force to replace it, or choose another path with -o.",
        )


def _existing_parent(destination: Path) -> Path:
    """The nearest folder above ``destination`` that exists (or a file that is in the way)."""
    parent = destination.absolute().parent
    return next(p for p in (parent, *parent.parents) if p.exists())


def check_space(destination: Path, needed: int) -> None:
    """Raise PackageError when the file system at ``destination`` has less than ``needed`` bytes free."""
    existing = _existing_parent(destination)
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
    shown, destination = destination, destination.absolute()
    kept = _existing_parent(destination)
    temporary: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name[:100]}.", dir=destination.parent))
        yield temporary
        # mkdtemp makes the folder private; a package is as readable as its files.
        temporary.chmod(0o755)
        _swap(temporary, destination, shown, force)
    except OSError as error:
        raise _write_error(shown, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(destination.parent, kept)


def _remove_empty(folder: Path, kept: Path) -> None:
    """Remove the empty folders from ``folder`` up to ``kept``, which was there before."""
    with contextlib.suppress(OSError):
        while folder != kept:
            folder.rmdir()
            folder = folder.parent


def _swap(temporary: Path, destination: Path, shown: Path, force: bool) -> None:
    """Rename into place; an old package steps aside first and is removed last.

    Another process may write the same destination meanwhile: without ``force`` the first one wins, with it
    the last one.
    """
    for _ in range(SWAP_ATTEMPTS):
        _check_free(shown, force)
        if _moved(temporary, destination) or _replaced(temporary, destination):
            return
    raise PackageError(
        f"output '{shown}' keeps being replaced by another process", "Choose another path with -o."
    )


def _moved(temporary: Path, destination: Path) -> bool:
    """Rename to a destination that is not there (or an empty folder); False when something is."""
    if destination.is_symlink():
        return False
    try:
        temporary.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _replaced(temporary: Path, destination: Path) -> bool:
    """Move an old package aside, the new one in, the old one away; False when another process was faster."""
    old = temporary.with_name(temporary.name + ".old")
    try:
        destination.rename(old)
    except FileNotFoundError:
        return False
    moved = False
    try:
        moved = _moved(temporary, destination)
    finally:
        # Ctrl-C included: without the new package the old one comes back.
        if not moved and not destination.exists():
            old.rename(destination)
        if old.is_symlink():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)
    return moved


def check_file(path: Path) -> None:
    """Refuse a file to write whose folder is missing or not writable, before any work is done.

    Raises: UsageError.
    """
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    elif not path.absolute().parent.is_dir():
        reason = f"there is no folder '{path.parent}'"
    elif not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        reason = f"folder '{path.parent}' is not writable"
    if reason:
        raise UsageError(f"cannot write '{path}': {reason}", "Choose a writable path with -o.")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises: UsageError."""
    check_file(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        hint = "Choose a writable path with -o."
        raise UsageError(f"cannot write '{path}': {error.strerror}", hint) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_error(destination: Path, error: OSError) -> PackageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space or choose another path with -o."
        return PackageError(f"the disk is full: '{destination}' was not written", hint)
    reason = error.strerror or type(error).__name__
    return PackageError(f"cannot write '{destination}': {reason}", "Choose a writable path with -o.")
