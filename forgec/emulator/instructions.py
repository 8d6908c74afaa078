"""The instructions of a code object, read once and kept.

In come a code object and, where it lies in a package, its file; out go its instructions by address. A package
holds no assembly, so the compiler's listing is made again from the package's own source (``src/NAME.hip``
beside ``kernels/NAME.hsaco``). Nothing is believed that does not match the code object's bytes; see
``disassembly.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path

from forgec.config import load_config
from forgec.emulator.cache import cache_directory, touch
from forgec.emulator.codeobject import CodeObject, parse_code_object
from forgec.emulator.disassembly import disassemble
from forgec.emulator.translate import RawInstruction
from forgec.errors import DeviceError, ForgeError
from forgec.targets import get_target
from forgec.toolchain import Unit, compile_units, open_cache

__all__ = ["read_instructions", "remember_package"]

_HINT = "install llvm-objdump (Debian: apt-get install llvm-19), or the compiler that made the package"


def read_instructions(code: CodeObject, path: Path | None = None) -> dict[int, RawInstruction]:
    """The instructions of ``code``, from the cache, the package's source, or llvm-objdump.

    ``path`` is the code object's file in its package. The listing goes before llvm-objdump, which does not
    know all instructions of a compiler newer than itself.

    Raises: DeviceError when no way works, with what each of them said.
    """
    kept = _load(code)
    if kept is not None:
        return kept
    found = None
    reason = "it comes without a package"
    if path is not None:
        try:
            found = disassemble(code, _compile_again(code, path.parent.parent / "src" / (path.stem + ".hip")))
        except ForgeError as error:
            reason = error.message
    if found is None:
        try:
            found = disassemble(code)
        except DeviceError as error:
            raise DeviceError(f"{error.message}; its listing cannot be made here: {reason}", _HINT) from error
    _keep(code, found)
    return found


def remember_package(package: Path) -> int:
    """Read all code objects of a package, so that programs can load them alone, through HIP. Returns how
    many.

    Raises: as ``read_instructions``.
    """
    paths = sorted((package / "kernels").glob("*.hsaco"))
    for path in paths:
        read_instructions(parse_code_object(path.read_bytes()), path)
    return len(paths)


def _compile_again(code: CodeObject, source: Path) -> str:
    """The listing of ``code``. Raises: ForgeError without a source or when the compiler here makes other
    code.
    """
    if not source.is_file():
        raise DeviceError(f"the package has no 'src/{source.name}'")
    unit = Unit(source.stem, source.read_text(encoding="utf-8"), tuple(code.kernels))
    made = compile_units((unit,), get_target(code.arch), cache=open_cache(load_config())[0])[0]
    if made.data != code.image:
        raise DeviceError(f"{made.compiler} makes other code of '{source.name}'")
    return made.assembly


def _path(code: CodeObject) -> Path:
    return cache_directory() / f"instructions-{hashlib.sha256(code.image).hexdigest()[:40]}.json"


def _load(code: CodeObject) -> dict[int, RawInstruction] | None:
    """What was kept for ``code``, unless it is damaged: every byte is compared again."""
    try:
        rows = json.loads(_path(code).read_text(encoding="utf-8"))
        kept = {int(at): RawInstruction(int(at), bytes.fromhex(data), str(text)) for at, data, text in rows}
    except (OSError, ValueError, TypeError):
        return None
    for address, raw in kept.items():
        start = address - code.text_address
        if start < 0 or not raw.data or code.text[start : start + len(raw.data)] != raw.data:
            return None
    touch(_path(code))
    return kept or None


def _keep(code: CodeObject, found: dict[int, RawInstruction]) -> None:
    """A cache that cannot be written costs time and nothing else."""
    rows = [(raw.address, raw.data.hex(), raw.text) for raw in found.values()]
    final = _path(code)
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=final.parent) as folder:
        temporary = Path(folder, final.name)
        temporary.write_text(json.dumps(rows), encoding="utf-8")
        temporary.replace(final)
