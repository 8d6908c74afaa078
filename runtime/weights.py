"""The files of a package: are they all there, and are they what the compiler wrote?

In comes a checked manifest, out come the memory-mapped weights and a verdict on every digest. The weights are
checked in chunks on several threads (hashlib releases the GIL), so that a GPU can be filled meanwhile.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .driver import format_bytes
from .errors import PackageError
from .manifest import Manifest

__all__ = ["Weights", "check_files", "read_file"]

_HINT = "the file was changed after the package was written: copy the package again, or recompile it"
#: SHA-256 runs at 1 to 2 GB/s a core, and a fast bus brings 20 GB/s and more.
_MAX_HASH_THREADS = 16


def read_file(manifest: Manifest, relative: str, *, verify: bool = True) -> bytes:
    """The bytes of one file of the package, checked against its digest if ``verify``.

    Raises: PackageError.
    """
    path = manifest.package / relative
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _missing(path, relative, error) from error
    if verify and relative in manifest.files:
        found = hashlib.sha256(data).hexdigest()
        expected = manifest.files[relative]
        if found != expected:
            raise PackageError(
                f"'{relative}' does not match its digest: expected {expected[:12]}…, found {found[:12]}…",
                _HINT,
            )
    return data


def check_files(manifest: Manifest, *, verify: bool = True) -> None:
    """Every file the manifest lists is there and, if ``verify``, unchanged.

    Kernels and weights.bin are only looked for here: their bytes are checked as they are loaded.

    Raises: PackageError for the first that is not.
    """
    later = {manifest.weights.file, *(kernel.file for kernel in manifest.kernels)}
    for relative in sorted({*manifest.files, manifest.weights.file}):
        if verify and relative not in later:
            read_file(manifest, relative)
        elif not (manifest.package / relative).is_file():
            raise _missing(manifest.package / relative, relative, None)


def _missing(path: Path, relative: str, error: OSError | None) -> PackageError:
    if error is not None and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return PackageError(f"'{relative}' of the package cannot be read: {error}", "check its permissions")
    return PackageError(
        f"the package '{path.parents[relative.count('/')].name}' lacks the file '{relative}'",
        "copy the whole folder again, or compile the model again",
    )


class Weights:
    """weights.bin at ``path``, memory-mapped read-only. ``view`` is its bytes; valid until ``close``."""

    def __init__(self, manifest: Manifest) -> None:
        """Map the file. Raises: PackageError when it is missing or its size is wrong."""
        self._spec = manifest.weights
        self.path = manifest.package / self._spec.file
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _missing(self.path, self._spec.file, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != self._spec.bytes:
                raise PackageError(
                    f"'{self._spec.file}' has {size} bytes, expected {self._spec.bytes}",
                    "the file is incomplete: copy the package again, or compile the model again",
                )
            self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else None
        except (OSError, ValueError) as error:
            raise PackageError(
                f"'{self._spec.file}' ({format_bytes(self._spec.bytes)}) cannot be mapped: {error}",
                "free some memory or address space",
            ) from error
        finally:
            os.close(descriptor)
        self.view = memoryview(self._map) if self._map is not None else memoryview(b"")
        self._checks: list[Future[bool]] | None = None

    @property
    def verifying(self) -> bool:
        return self._checks is not None

    def start_verify(self) -> None:
        """Begin to compare every chunk with its digest, on other threads; ``finish_verify`` tells."""
        count = len(self._spec.chunks)
        pool = ThreadPoolExecutor(max(1, min(_MAX_HASH_THREADS, len(os.sched_getaffinity(0)), count)))
        self._checks = [pool.submit(self._chunk_matches, index) for index in range(count)]
        pool.shutdown(wait=False)

    def finish_verify(self) -> None:
        """Wait for what ``start_verify`` began, if it did.

        Raises: PackageError that names the first chunk that differs.
        """
        chunk = self._spec.chunk_bytes
        for index, check in enumerate(self._checks or ()):
            if not check.result():
                raise PackageError(
                    f"'{self._spec.file}' does not match its digest between byte {index * chunk} and "
                    f"{min((index + 1) * chunk, self._spec.bytes)}",
                    _HINT,
                )

    def _chunk_matches(self, index: int) -> bool:
        start = index * self._spec.chunk_bytes
        with self.view[start : start + self._spec.chunk_bytes] as chunk:
            return hashlib.sha256(chunk).hexdigest() == self._spec.chunks[index]

    def close(self) -> None:
        """Unmap; a later use of ``view`` raises ValueError. Left to Python where a slice is still in use."""
        for check in self._checks or ():
            # Nobody may be reading the mapping when it goes: take back what has not begun, wait for the rest.
            if not check.cancel():
                check.exception()
        self._checks = None
        try:
            self.view.release()
            if self._map is not None:
                self._map.close()
        except BufferError:
            return
