"""Finds ROCm's HIP runtime and makes hip-python use it.

hip-python opens the unversioned ``libamdhip64.so`` at its first call, which only development packages
install; a runtime-only ROCm has ``libamdhip64.so.6`` or ``.7``. Out goes the imported ``hip`` module, or a
DeviceError that says what to install.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DeviceError

__all__ = ["HINT", "find_library", "load_hip"]

HINT = "install ROCm 6 or newer (https://rocm.docs.amd.com); if it is not in /opt/rocm, set ROCM_PATH"
_NAME = "libamdhip64.so"
_SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def load_hip() -> Any:
    """The module ``hip.hip`` with its library open. Raises: DeviceError."""
    try:
        from hip import hip
    except ImportError as error:
        raise DeviceError(
            f"the Python package 'hip-python' cannot be imported: {error}", "run: pip install hip-python"
        ) from error
    # ROCm's own Python packages bring the library; hip-python asks them first.
    library = None if importlib.util.find_spec("rocm_sdk") is not None else find_library(os.environ)
    with _preferred(library) if library is not None else contextlib.nullcontext():
        _open(hip)
    return hip


def find_library(environ: Mapping[str, str]) -> Path | None:
    """The HIP runtime of ``ROCM_PATH``, else the newest of /opt, else any; None where there is none."""
    named = [Path(environ[key], "lib") for key in ("ROCM_PATH", "ROCM_HOME", "HIP_PATH") if environ.get(key)]
    versions = sorted(Path("/opt").glob("rocm-*/lib"), key=_version, reverse=True)
    listed = [Path(entry) for entry in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    for folder in [*named, Path("/opt/rocm/lib"), *versions, *listed, *map(Path, _SYSTEM)]:
        if (folder / _NAME).exists():
            return folder / _NAME
        numbered = sorted(folder.glob(_NAME + ".*"), key=_version, reverse=True)
        if numbered:
            return numbered[0]
    return None


def _version(path: Path) -> tuple[int, ...]:
    """The numbers in a path's last two parts, for sorting ``rocm-6.10`` after ``rocm-6.9``."""
    digits = "".join(
        char if char.isdigit() else " " for char in f"{path.parent.name} {path.name}".replace("64.so", "")
    )
    return tuple(int(number) for number in digits.split())


@contextlib.contextmanager
def _preferred(library: Path) -> Iterator[None]:
    """While this lasts, hip-python finds ``library``: under its unversioned name, in a folder of ROCM_PATH.

    The library is opened first under its own path, so that it finds the libraries beside it; the second
    opening through the link gives the same one, because the loader compares files.
    """
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(f"'{library}' cannot be loaded: {error}", HINT) from error
    before = os.environ.get("ROCM_PATH")
    with tempfile.TemporaryDirectory(prefix="forgec-hip-") as folder:
        link = Path(folder, "lib", _NAME)
        link.parent.mkdir()
        link.symlink_to(library.resolve())
        os.environ["ROCM_PATH"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["ROCM_PATH"]
            else:
                os.environ["ROCM_PATH"] = before


def _open(hip: Any) -> None:
    """Make hip-python open the library. Raises: DeviceError when there is none."""
    try:
        opened = hip.has_symbol("hipInit") if hasattr(hip, "has_symbol") else bool(hip.hipRuntimeGetVersion())
    except RuntimeError as error:
        raise DeviceError(f"the HIP runtime cannot be loaded: {error}", HINT) from error
    if not opened:
        raise DeviceError(f"there is no HIP runtime: '{_NAME}' was not found", HINT)
