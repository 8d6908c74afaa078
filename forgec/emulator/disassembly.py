"""Machine code of a code object to instruction text, from a verified compiler listing or from llvm-objdump.

A listing is believed only when assembling it again gives the code object's own bytes; every instruction is
then compared with the bytes at its address once more. It never decodes bits itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from forgec.emulator.cache import cache_directory, touch
from forgec.emulator.codeobject import CodeObject, parse_code_object
from forgec.emulator.native import clang_command, lld_command, run_tool
from forgec.emulator.translate import RawInstruction
from forgec.errors import DeviceError, ToolchainError

__all__ = ["disassemble", "remember_listing"]

_ENCODING = re.compile(r"^(.*?)\s*;\s*encoding: \[([^\]]*)\]\s*$")
_LABEL = re.compile(r"^([A-Za-z_.$][\w.$]*):")
_OBJDUMP = re.compile(r"^\s+(.*?)\s*// ([0-9A-Fa-f]+): ((?:[0-9A-Fa-f]{8} ?)+)")
# LLVM before 21 reads the upper half of a register in a 16-bit operand as a register that does not exist.
_HIGH_HALF = re.compile(r"\bv(\d+)/\*Invalid register[^/]*\*/")
_NOP = 0xBF800000


def disassemble(code: CodeObject, assembly: str | None = None) -> dict[int, RawInstruction]:
    """Every instruction of ``code``, by virtual address.

    ``assembly`` is the compiler's listing (``-S``); without it a remembered listing is used, else
    llvm-objdump.

    Raises:
        DeviceError: the listing is not the code object's, or no source of a disassembly exists.
    """
    if assembly is None:
        remembered = _listing_path(code.image)
        if remembered.exists():
            assembly = remembered.read_text()
            touch(remembered)
    if assembly is not None:
        return _from_listing(code, assembly)
    tool = _objdump()
    if tool is None:
        raise DeviceError(
            "the code object came without an assembly listing, and no llvm-objdump of LLVM 17 or newer"
            " was found",
            "pass the compiler's -S output beside it, or install llvm-objdump"
            " (Debian: apt-get install llvm-19)",
        )
    return _from_objdump(code, tool)


def _listing_path(image: bytes) -> Path:
    return cache_directory() / f"listing-{hashlib.sha256(image).hexdigest()[:40]}.s"


def remember_listing(image: bytes, assembly: str) -> None:
    """Keep ``assembly`` for later loads of the same code object on this machine."""
    final = _listing_path(image)
    with tempfile.TemporaryDirectory(dir=final.parent) as folder:
        temporary = Path(folder) / "listing.s"
        temporary.write_text(assembly)
        temporary.replace(final)


# ---- the compiler's listing ----


def _assemble(assembly: str, arch: str) -> tuple[bytes, str]:
    """(linked code object, the same listing with the encoding of every instruction)."""
    with tempfile.TemporaryDirectory() as folder:
        text, obj, linked, encoded = (Path(folder) / n for n in ("k.s", "k.o", "k.hsaco", "k.enc"))
        text.write_text(assembly)
        clang = clang_command()
        run_tool(
            [*clang, "-target", "amdgcn-amd-amdhsa", f"-mcpu={arch}", "-c", str(text), "-o", str(obj)],
            "assemble a listing",
        )
        run_tool([*lld_command(), "-shared", str(obj), "-o", str(linked)], "link a listing")
        run_tool(
            [
                *clang,
                "-cc1as",
                "-triple",
                "amdgcn-amd-amdhsa",
                "-target-cpu",
                arch,
                "-filetype",
                "asm",
                "-show-encoding",
                str(text),
                "-o",
                str(encoded),
            ],
            "list encodings",
        )
        return linked.read_bytes(), encoded.read_text()


def _from_listing(code: CodeObject, assembly: str) -> dict[int, RawInstruction]:
    try:
        linked, encoded = _assemble(assembly, code.arch)
    except ToolchainError as error:
        raise DeviceError(
            f"the assembly listing does not assemble for {code.arch}: {error.message}", error.hint
        ) from error
    if linked != code.image:
        again = parse_code_object(linked)
        if again.text != code.text or again.text_address != code.text_address:
            raise DeviceError(
                "assembling the listing again does not give the bytes of the code object",
                "pass the listing that this very code object was assembled from",
            )
    return _place(code, encoded)


def _place(code: CodeObject, encoded: str) -> dict[int, RawInstruction]:
    """Give every listed instruction its address, by symbols and by matching bytes."""
    found: dict[int, RawInstruction] = {}
    address, in_text = code.text_address, True
    end = code.text_address + len(code.text)
    for line in encoded.splitlines():
        stripped = line.strip()
        if stripped.startswith((".section", ".text")):
            in_text = stripped.startswith(".text") or ".text" in stripped.split(",")[0]
            continue
        if not in_text:
            continue
        named = _LABEL.match(line)
        if named:
            symbol = code.symbols.get(named.group(1))
            if symbol is not None and code.text_address <= symbol[0] < end:
                address = symbol[0]
            continue
        if stripped.startswith(".p2align"):
            power = int(re.split(r"[\s,]+", stripped)[1])
            address = _pad(code, found, address, -(-address >> power) << power)
            continue
        match = _ENCODING.match(line)
        if match:
            data = _checked_bytes(code, address, match.group(2), stripped)
            found[address] = RawInstruction(address, data, match.group(1).split(";")[0].strip())
            address += len(data)
    return found


def _pad(code: CodeObject, found: dict[int, RawInstruction], address: int, aligned: int) -> int:
    """Alignment inside a function is filled with s_nop, which waves execute."""
    for at in range(address, aligned, 4):
        word = code.text[at - code.text_address : at - code.text_address + 4]
        if len(word) == 4 and int.from_bytes(word, "little") == _NOP:
            found[at] = RawInstruction(at, word, "s_nop 0")
    return aligned


def _checked_bytes(code: CodeObject, address: int, encoding: str, line: str) -> bytes:
    """The code object's bytes at ``address``; bytes that the linker fills in are listed as letters or
    expressions."""
    listed = encoding.split(",")
    start = address - code.text_address
    data = code.text[start : start + len(listed)]
    for byte, text in zip(data, listed, strict=False):
        text = text.strip()
        if text.startswith("0x") and "'" not in text and int(text, 16) != byte:
            raise DeviceError(
                f"the listing and the code object differ at {address:#x}: '{line}' against {data.hex()}"
            )
    if len(data) != len(listed):
        raise DeviceError(f"the listing is longer than the code object at {address:#x}: '{line}'")
    return data


# ---- llvm-objdump ----


@lru_cache(maxsize=1)
def _objdump() -> str | None:
    rocm = os.environ.get("ROCM_PATH", "/opt/rocm")
    candidates = [f"{rocm}/llvm/bin/llvm-objdump"]
    candidates += [f"llvm-objdump-{v}" for v in range(30, 16, -1)]
    candidates.append("llvm-objdump")
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        version = re.search(r"version (\d+)", run_tool([path, "--version"], "tell its version"))
        if version and int(version.group(1)) >= 17:
            return path
    return None


def _from_objdump(code: CodeObject, tool: str) -> dict[int, RawInstruction]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.hsaco"
        path.write_bytes(code.image)
        text = run_tool([tool, "-d", str(path)], "disassemble a code object")
    found: dict[int, RawInstruction] = {}
    for line in text.splitlines():
        match = _OBJDUMP.match(line)
        if not match:
            continue
        address = int(match.group(2), 16)
        data = b"".join(int(word, 16).to_bytes(4, "little") for word in match.group(3).split())
        text_of = _HIGH_HALF.sub(lambda m: f"v{int(m.group(1)) - 128}.h", match.group(1).strip())
        found[address] = RawInstruction(address, data, text_of)
    if not found:
        raise DeviceError(
            f"'{tool}' printed no instruction of the code object", "install a newer llvm-objdump"
        )
    return found
