"""An AMD GPU code object (ELF bytes) in, its kernels, memory image and symbols out.

Reads the ELF, the kernel descriptors and the msgpack metadata (code object versions 4 to 6). It never
decodes an instruction and never allocates device memory.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import msgpack
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from forgec.errors import DeviceError

__all__ = ["CodeObject", "Kernel", "KernelArgument", "Relocation", "Segment", "parse_code_object"]

EM_AMDGPU = 224
NT_AMDGPU_METADATA = 32
R_AMDGPU_ABS64 = 3
R_AMDGPU_RELATIVE64 = 13
_SCRATCH_ALIGNMENT = 16

_MACHINES = {
    0x036: "gfx1030",
    0x037: "gfx1031",
    0x03F: "gfx90a",
    0x040: "gfx942",
    0x041: "gfx1100",
    0x046: "gfx1101",
    0x047: "gfx1102",
    0x044: "gfx1103",
    0x043: "gfx1150",
    0x04A: "gfx1151",
    0x048: "gfx1200",
    0x04E: "gfx1201",
    0x04C: "gfx942",
    0x04F: "gfx950",
}


@dataclass(frozen=True)
class Segment:
    """A loadable piece of the image: ``data`` at virtual address ``address``, ``size`` bytes in memory."""

    address: int
    data: bytes
    size: int
    writable: bool


@dataclass(frozen=True)
class Relocation:
    """A 64-bit word at ``offset`` that receives ``addend`` plus the address of ``symbol`` (or the load
    base)."""

    offset: int
    addend: int


@dataclass(frozen=True)
class KernelArgument:
    """One entry of the metadata's ``.args``: byte offset and size in the kernarg segment, and its value
    kind."""

    name: str
    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class Kernel:
    """A kernel: its entry, its resources (bytes, registers) and the state its waves start with."""

    name: str
    entry: int
    size: int
    wave: int
    lds_size: int
    private_size: int
    kernarg_size: int
    arguments: tuple[KernelArgument, ...]
    vgprs: int
    agprs: int
    accum_offset: int
    rsrc1: int
    rsrc2: int
    properties: int
    preload: int
    max_threads: int
    uses_dynamic_stack: bool

    @property
    def explicit_size(self) -> int:
        """Bytes of the kernarg segment that the caller fills; hidden arguments follow."""
        visible = [a.offset + a.size for a in self.arguments if not a.kind.startswith("hidden_")]
        return max(visible, default=0)


@dataclass(frozen=True)
class CodeObject:
    """Everything the emulator needs of one code object."""

    arch: str
    image: bytes
    segments: tuple[Segment, ...]
    relocations: tuple[Relocation, ...]
    kernels: dict[str, Kernel]
    functions: dict[str, tuple[int, int]]
    symbols: dict[str, tuple[int, int]]
    text: bytes
    text_address: int


def _metadata(elf: ELFFile) -> dict[str, object]:
    for segment in elf.iter_segments("PT_NOTE"):
        for note in segment.iter_notes():  # type: ignore[attr-defined,unused-ignore]
            if note["n_type"] in (NT_AMDGPU_METADATA, "NT_AMDGPU_METADATA") or note["n_name"] == "AMDGPU":
                desc = note["n_descdata"]
                raw = desc if isinstance(desc, bytes) else bytes(desc)
                unpacked = msgpack.unpackb(raw, strict_map_key=False)
                if isinstance(unpacked, dict):
                    return unpacked
    raise DeviceError("the code object has no AMDGPU metadata note", "compile with -mcode-object-version=5")


def _arch(elf: ELFFile, metadata: dict[str, object]) -> str:
    target = str(metadata.get("amdhsa.target", ""))
    name = target.rsplit("-", 1)[-1].split(":")[0]
    if name.startswith("gfx"):
        return name
    machine = elf["e_flags"] & 0xFF
    if machine not in _MACHINES:
        raise DeviceError(f"the code object's machine {machine:#x} is not a GPU the emulator knows")
    return _MACHINES[machine]


def _segments(elf: ELFFile) -> tuple[Segment, ...]:
    return tuple(
        Segment(s["p_vaddr"], s.data(), s["p_memsz"], bool(s["p_flags"] & 2))
        for s in elf.iter_segments("PT_LOAD")
        if s["p_memsz"]
    )


def _relocations(elf: ELFFile) -> tuple[Relocation, ...]:
    found = []
    for name in (".rela.dyn", ".rela.plt"):
        section = elf.get_section_by_name(name)
        if section is None:
            continue
        symbols = elf.get_section(section["sh_link"])
        for r in section.iter_relocations():  # type: ignore[attr-defined,unused-ignore]
            kind = r["r_info_type"]
            if kind == R_AMDGPU_RELATIVE64:
                found.append(Relocation(r["r_offset"], r["r_addend"]))
            elif kind == R_AMDGPU_ABS64:
                symbol = symbols.get_symbol(r["r_info_sym"])  # type: ignore[attr-defined,unused-ignore]
                if symbol["st_shndx"] == "SHN_UNDEF":
                    raise DeviceError(f"the code object leaves symbol '{symbol.name}' undefined")
                found.append(Relocation(r["r_offset"], r["r_addend"] + symbol["st_value"]))
            else:
                raise DeviceError(f"the code object has a relocation of type {kind}, which is not supported")
    return tuple(found)


def _kernel(
    elf_symbols: dict[str, tuple[int, int]],
    read: object,
    entry: dict[str, object],
    functions: dict[str, tuple[int, int]],
) -> Kernel:
    name = str(entry[".name"])
    symbol = str(entry[".symbol"])
    address = elf_symbols[symbol][0]
    descriptor = read(address, 64)  # type: ignore[operator]
    lds, private, kernarg, _, offset = struct.unpack_from("<IIIIq", descriptor)
    rsrc3, rsrc1, rsrc2, properties, preload = struct.unpack_from("<IIIHH", descriptor, 44)
    arguments = tuple(
        KernelArgument(str(a.get(".name", "")), a[".offset"], a[".size"], str(a[".value_kind"]))
        for a in entry.get(".args", ())  # type: ignore[attr-defined]
    )
    wave = int(str(entry.get(".wavefront_size", 32)))
    begin = address + offset
    return Kernel(
        name=name,
        entry=begin,
        size=functions.get(name, (begin, 0))[1],
        wave=wave,
        lds_size=lds,
        private_size=-(-private // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT,
        kernarg_size=kernarg,
        arguments=arguments,
        vgprs=int(str(entry.get(".vgpr_count", 0))),
        agprs=int(str(entry.get(".agpr_count", 0))),
        accum_offset=((rsrc3 & 63) + 1) * 4,
        rsrc1=rsrc1,
        rsrc2=rsrc2,
        properties=properties,
        preload=preload,
        max_threads=int(str(entry.get(".max_flat_workgroup_size", 1024))),
        uses_dynamic_stack=bool(properties >> 11 & 1),
    )


def parse_code_object(image: bytes) -> CodeObject:
    """Parse the bytes of a linked code object.

    Raises:
        DeviceError: not an ELF file, not for an AMD GPU, or without metadata.

    Source: LLVM "User Guide for AMDGPU Backend", sections "Code Object" and "Kernel Descriptor".
    """
    if image[:4] != b"\x7fELF":
        raise DeviceError(
            f"a code object starts with '\\x7fELF', found {image[:4]!r}", "pass the linked .hsaco file"
        )
    try:
        elf = ELFFile(io.BytesIO(image))
        if elf["e_machine"] not in ("EM_AMDGPU", EM_AMDGPU):
            raise DeviceError(
                f"the ELF file is for machine {elf['e_machine']!r}, expected an AMD GPU code object"
            )
        metadata = _metadata(elf)
        segments = _segments(elf)
        table = elf.get_section_by_name(".symtab") or elf.get_section_by_name(".dynsym")
        symbols: dict[str, tuple[int, int]] = {}
        functions: dict[str, tuple[int, int]] = {}
        for s in table.iter_symbols() if table else ():  # type: ignore[attr-defined,unused-ignore]
            if s["st_shndx"] == "SHN_UNDEF" or not s.name:
                continue
            symbols[s.name] = (s["st_value"], s["st_size"])
            if s["st_info"]["type"] == "STT_FUNC":
                functions[s.name] = (s["st_value"], s["st_size"])
        text = elf.get_section_by_name(".text")
        if text is None:
            raise DeviceError("the code object has no .text section")

        def read(address: int, count: int) -> bytes:
            for segment in segments:
                start = address - segment.address
                if start >= 0 and start + count <= len(segment.data):
                    return segment.data[start : start + count]
            raise DeviceError(f"the code object has no bytes at virtual address {address:#x}")

        entries = metadata.get("amdhsa.kernels", [])
        kernels = [_kernel(symbols, read, e, functions) for e in entries]  # type: ignore[attr-defined]
        return CodeObject(
            arch=_arch(elf, metadata),
            image=image,
            segments=segments,
            relocations=_relocations(elf),
            kernels={k.name: k for k in kernels},
            functions=functions,
            symbols=symbols,
            text=text.data(),
            text_address=text["sh_addr"],
        )
    except (ELFError, KeyError, struct.error, msgpack.UnpackException) as error:
        raise DeviceError(f"the code object is damaged: {type(error).__name__}: {error}") from error
