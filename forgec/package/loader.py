"""Load a compiled package into this process, through the package's own runtime.

forgec has no runtime of its own: ``bench``, ``golden`` and the tests use the code that users run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from forgec.errors import ForgeError, PackageError

__all__ = ["import_package", "loaded", "package_path", "read_manifest"]


def package_path(path: Path) -> Path:
    """``path`` if it is a package's folder; PackageError otherwise."""
    if not path.exists():
        raise PackageError(f"package '{path}' does not exist", "Make one with 'forgec compile'.")
    for name in ("manifest.json", "__init__.py", "__main__.py"):
        if not (path / name).is_file():
            raise PackageError(
                f"'{path}' is not a package: it has no {name}", "Make one with 'forgec compile'."
            )
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The package's manifest as JSON data; PackageError when it is not JSON."""
    file = package_path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"'{file}' cannot be read: {error}", "Compile the package again.") from error
    if not isinstance(manifest, dict):
        raise PackageError(f"'{file}' is no manifest", "Compile the package again.")
    return manifest


def import_package(path: Path) -> ModuleType:
    """The package as a Python module, whatever characters its folder's name has."""
    return import_folder(package_path(path))


def import_folder(path: Path) -> ModuleType:
    """A folder with an ``__init__.py`` as a module of its own, once per process. Raises PackageError."""
    folder = path.resolve()
    name = f"forgec_package_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise PackageError(f"package '{path}' has no __init__.py", "Compile the package again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (OSError, ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise PackageError(f"package '{path}' cannot be imported: {error}", "Compile it again.") from error
    return module


@contextmanager
def loaded(path: Path, device: str | None = None, threads: int | None = None) -> Iterator[Any]:
    """The loaded model of a package; an error of its runtime becomes a ForgeError with its exit code."""
    module = import_package(path)
    try:
        with module.load(device=device, threads=threads) as model:
            yield model
    except module.ForgeRuntimeError as error:
        forged = ForgeError(error.message, error.hint)
        forged.exit_code = error.exit_code
        raise forged from error
