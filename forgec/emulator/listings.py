"""Assembly listings for the code objects of a package, where no LLVM disassembler is installed.

In come a code object and where its package keeps it; out goes the compiler's listing, made again from the package's
own source (``src/NAME.hip`` beside ``kernels/NAME.hsaco``) through the compile cache. Whether a listing is believed
is decided by ``disassembly.py``: it has to assemble to the code object's own bytes.
"""

from __future__ import annotations

from pathlib import Path

from forgec.config import load_config
from forgec.emulator.codeobject import parse_code_object
from forgec.emulator.disassembly import can_disassemble, remember_listing
from forgec.errors import DeviceError, ForgeError
from forgec.targets import get_target
from forgec.toolchain import Unit, compile_units, open_cache

__all__ = ["package_listing", "remember_package"]

_HINT = "install llvm-objdump (Debian: apt-get install llvm-19), or the compiler that made the package"


def package_listing(image: bytes, path: Path) -> str | None:
    """The listing of the code object in the package's file ``path``; None where only an llvm-objdump can read it.

    The listing goes first: an llvm-objdump older than the compiler does not know all of its instructions.

    Raises: DeviceError when there is no disassembler, and no source or a compiler that makes other code of it.
    """
    source = path.parent.parent / "src" / (path.stem + ".hip")
    try:
        return _compile_again(image, source)
    except ForgeError as error:
        if can_disassemble(image):
            return None
        raise DeviceError(
            f"there is no llvm-objdump to read '{path.name}', and its listing cannot be made: {error.message}", _HINT
        ) from error


def _compile_again(image: bytes, source: Path) -> str:
    if not source.is_file():
        raise DeviceError(f"the package has no 'src/{source.name}'")
    code = parse_code_object(image)
    unit = Unit(source.stem, source.read_text(encoding="utf-8"), tuple(code.kernels))
    made = compile_units((unit,), get_target(code.arch), cache=open_cache(load_config())[0])[0]
    if made.data != image:
        raise DeviceError(f"{made.compiler} makes other code of '{source.name}'")
    return made.assembly


def remember_package(package: Path) -> int:
    """Keep the listings of a package's kernels in the cache, for programs that load the code objects alone.

    Returns the number of listings kept; the other kernels are left to llvm-objdump.

    Raises: as ``package_listing``.
    """
    kept = 0
    for path in sorted((package / "kernels").glob("*.hsaco")):
        image = path.read_bytes()
        listing = package_listing(image, path)
        if listing is not None:
            remember_listing(image, listing)
            kept += 1
    return kept
