"""The code object behind a bare pointer, as hipModuleLoadData gets it: ELF, or clang's offload bundle.

The length is read from the file's own headers, for HIP passes none. Compressed bundles are not read.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from forgec.emulator.codeobject import EM_AMDGPU
from forgec.emulator.hip.constants import Error
from forgec.errors import DeviceError

__all__ = ["ImageError", "image_at", "select_image"]

_ELF = b"\x7fELF"
_BUNDLE = b"__CLANG_OFFLOAD_BUNDLE__"
_COMPRESSED = b"CCOB"
_NOBITS = 8


class ImageError(DeviceError):
    """An image that does not load; ``code`` is what HIP returns for it."""

    def __init__(self, code: Error, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


Read = Callable[[int, int], bytes]


def image_at(address: int, arch: str) -> bytes:
    """The ELF file for ``arch`` at a host address. Raises: ImageError."""
    return _select(lambda offset, size: ctypes.string_at(address + offset, size), arch)


def select_image(data: bytes, arch: str) -> bytes:
    """The same, of a file's bytes, which may end too early."""

    def read(offset: int, size: int) -> bytes:
        if offset + size > len(data):
            raise ImageError(Error.hipErrorInvalidImage, f"the image is cut off: it has {len(data)} bytes")
        return data[offset : offset + size]

    return _select(read, arch)


def _select(read: Read, arch: str) -> bytes:
    magic = read(0, 4)
    if magic == _ELF:
        return read(0, _elf_size(read))
    if magic == _BUNDLE[:4] and read(0, len(_BUNDLE)) == _BUNDLE:
        return read(*_entry(read, arch))
    if magic == _COMPRESSED:
        raise ImageError(
            Error.hipErrorInvalidImage,
            "the offload bundle is compressed",
            "compile with --no-offload-compress",
        )
    raise ImageError(
        Error.hipErrorInvalidImage,
        f"the image starts with {magic!r}, and is no ELF file and no offload bundle",
    )


def _elf_size(read: Read) -> int:
    """Bytes up to the end of the last header, section or segment.

    Source: System V ABI, "ELF Header", "Section Header", "Program Header" (64 bits).
    """
    header = read(0, 64)
    phoff, shoff = struct.unpack_from("<QQ", header, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", header, 54)
    machine = struct.unpack_from("<H", header, 18)[0]
    # Without a length, a wrong header would send the next reads anywhere.
    if machine != EM_AMDGPU or header[4] != 2 or phentsize != 56 or shentsize not in (0, 64):
        raise ImageError(
            Error.hipErrorInvalidImage, f"the ELF file is for machine {machine}, not an AMD GPU ({EM_AMDGPU})"
        )
    end = max(len(header), phoff + phentsize * phnum, shoff + shentsize * shnum)
    for i in range(phnum):
        offset, _, _, size = struct.unpack_from("<QQQQ", read(phoff + i * phentsize, phentsize), 8)
        end = max(end, offset + size)
    for i in range(shnum):
        section = read(shoff + i * shentsize, shentsize)
        offset, size = struct.unpack_from("<QQ", section, 24)
        if struct.unpack_from("<I", section, 4)[0] != _NOBITS:
            end = max(end, offset + size)
    return int(end)


def _entry(read: Read, arch: str) -> tuple[int, int]:
    """(offset, bytes) of the bundle's code object for ``arch``.

    Source: Clang documentation, "Clang Offload Bundler", "Bundled Code Object Layout".
    """
    at = len(_BUNDLE)
    count = struct.unpack("<Q", read(at, 8))[0]
    at += 8
    found = []
    for _ in range(min(count, 256)):
        offset, size, length = struct.unpack("<QQQ", read(at, 24))
        name = read(at + 24, min(length, 256)).decode("ascii", "replace")
        at += 24 + length
        chip = name.rpartition("--")[2].split(":")[0]
        if name.startswith("hip") and chip == arch:
            return offset, size
        if name.startswith("hip"):
            found.append(chip)
    raise ImageError(
        Error.hipErrorNoBinaryForGpu,
        f"the offload bundle has no code for {arch}, only for {', '.join(found) or 'no AMD GPU'}",
        f"compile with --offload-arch={arch}",
    )
