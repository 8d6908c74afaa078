"""The code object behind a bare pointer, as hipModuleLoadData gets it: ELF, or clang's offload bundle.

The length is read from the file's own headers, for HIP passes none. Compressed bundles are not read.
"""

from __future__ import annotations

import ctypes
import struct

from forgec.emulator.hip.constants import Error
from forgec.errors import DeviceError

__all__ = ["ImageError", "image_at", "select_image"]

_ELF = b"\x7fELF"
_BUNDLE = b"__CLANG_OFFLOAD_BUNDLE__"
_COMPRESSED = b"CCOB"
_HEADER = 64
_NOBITS = 8


class ImageError(DeviceError):
    """An image that does not load; ``code`` is what HIP returns for it."""

    def __init__(self, code: Error, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


def image_at(address: int, arch: str) -> bytes:
    """The ELF file for ``arch`` at a host address. Raises: ImageError."""
    magic = ctypes.string_at(address, 4)
    if magic == _ELF:
        return ctypes.string_at(address, _elf_size(address))
    if magic == _BUNDLE[:4] and ctypes.string_at(address, len(_BUNDLE)) == _BUNDLE:
        start, size = _entry(address, arch)
        return ctypes.string_at(address + start, size)
    raise _not_an_image(magic)


def select_image(data: bytes, arch: str) -> bytes:
    """The same, of a file's bytes."""
    if len(data) < _HEADER:
        raise _not_an_image(data[:4])
    buffer = ctypes.create_string_buffer(data, len(data))
    return image_at(ctypes.addressof(buffer), arch)


def _not_an_image(magic: bytes) -> ImageError:
    if magic == _COMPRESSED:
        return ImageError(
            Error.hipErrorInvalidImage,
            "the offload bundle is compressed",
            "compile with --no-offload-compress",
        )
    return ImageError(
        Error.hipErrorInvalidImage,
        f"the image begins with {magic!r}, and is no ELF file and no offload bundle",
    )


def _elf_size(address: int) -> int:
    """Bytes up to the end of the last header, section or segment.

    Source: System V ABI, "ELF Header", "Section Header", "Program Header" (64 bits).
    """
    header = ctypes.string_at(address, _HEADER)
    phoff, shoff = struct.unpack_from("<QQ", header, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", header, 54)
    end = max(_HEADER, phoff + phentsize * phnum, shoff + shentsize * shnum)
    for i in range(phnum):
        entry = ctypes.string_at(address + phoff + i * phentsize, 56)
        offset, filesize = struct.unpack_from("<Q", entry, 8)[0], struct.unpack_from("<Q", entry, 32)[0]
        end = max(end, offset + filesize)
    for i in range(shnum):
        entry = ctypes.string_at(address + shoff + i * shentsize, 64)
        kind = struct.unpack_from("<I", entry, 4)[0]
        offset, size = struct.unpack_from("<QQ", entry, 24)
        end = max(end, offset + (0 if kind == _NOBITS else size))
    return int(end)


def _entry(address: int, arch: str) -> tuple[int, int]:
    """(offset, bytes) of the bundle's code object for ``arch``.

    Source: Clang documentation, "Clang Offload Bundler", "Bundled Code Object Layout".
    """
    at = address + len(_BUNDLE)
    count = struct.unpack("<Q", ctypes.string_at(at, 8))[0]
    at += 8
    found = []
    for _ in range(min(count, 256)):
        offset, size, length = struct.unpack("<QQQ", ctypes.string_at(at, 24))
        name = ctypes.string_at(at + 24, min(length, 256)).decode("ascii", "replace")
        at += 24 + length
        chip = name.rpartition("--")[2].split(":")[0]
        if name.startswith("hip") and chip == arch:
            return offset, size
        found.append(chip or name)
    raise ImageError(
        Error.hipErrorNoBinaryForGpu,
        f"the offload bundle has no code for {arch}, only for {', '.join(found) or 'nothing'}",
        f"compile with --offload-arch={arch}",
    )
