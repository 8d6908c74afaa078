"""Reads out of the code itself what the compiler made of each kernel, and compares it with what was asked
for.

Compiled bytes go in, frozen ``KernelInfo`` values come out: from the metadata note of an AMD code object,
from the text of PTX, from the symbol table of a shared object. Nothing is believed that only the compiler's
listing says.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.objects import ArgInfo, KernelInfo, Unit

__all__ = ["ExpectedKernel", "check_inspection", "inspect_code"]

_NT_AMDGPU_METADATA = 32
_POINTER_KINDS = frozenset({"global_buffer", "dynamic_shared_pointer"})
# What clang may emit calls to on its own, even for freestanding code.
_FREESTANDING_SYMBOLS = frozenset({"memcpy", "memmove", "memset", "memcmp"})
# What the thread-pool unit may use besides: everything here is in glibc and musl alike.
_LIBC_SYMBOLS = frozenset(
    {
        *("abort", "aligned_alloc", "calloc", "clock_gettime", "free", "getenv", "malloc", "mmap", "munmap"),
        *(
            "nanosleep",
            "posix_memalign",
            "pthread_attr_destroy",
            "pthread_attr_init",
            "pthread_attr_setstacksize",
        ),
        *(
            "pthread_barrier_destroy",
            "pthread_barrier_init",
            "pthread_barrier_wait",
            "pthread_cond_broadcast",
        ),
        *("pthread_cond_destroy", "pthread_cond_init", "pthread_cond_signal", "pthread_cond_wait"),
        *("pthread_create", "pthread_detach", "pthread_join", "pthread_mutex_destroy", "pthread_mutex_init"),
        *("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_self", "sched_getaffinity"),
        *("sched_setaffinity", "sched_yield", "syscall", "sysconf", "__errno_location"),
    }
)


@dataclass(frozen=True)
class ExpectedKernel:
    """What the plan asked for.

    ``args`` are ``(name, byte offset, bytes, is a pointer)`` without the compiler's hidden ones; names are
    only for messages. ``threads`` (the block size the kernel declares) and ``lds_bytes`` must be met exactly
    where they are given; LDS, scratch and spills must stay within their limits.
    """

    symbol: str
    wave: int
    args: tuple[tuple[str, int, int, bool], ...]
    threads: int | None = None
    lds_bytes: int | None = None
    lds_limit: int | None = None
    scratch_limit: int = 0
    spill_limit: int = 0


def inspect_code(unit: Unit, target: Target, data: bytes) -> tuple[KernelInfo, ...]:
    """One ``KernelInfo`` per entry of ``unit``, in the order of ``unit.entries``.

    Raises: ToolchainError when ``data`` is not code for ``target``, lacks an entry, or needs an undefined
    symbol.
    """
    if target.driver == "cuda":
        found = {info.symbol: info for info in _inspect_ptx(unit, target, data.decode("utf-8", "replace"))}
    else:
        try:
            elf = ELFFile(io.BytesIO(data))
            found = _inspect_amd(unit, target, elf) if target.driver == "hip" else _inspect_cpu(unit, elf)
        except ELFError as error:
            raise ToolchainError(f"the code object of '{unit.name}' is not an ELF file: {error}") from error
    missing = [entry for entry in unit.entries if entry not in found]
    if missing:
        raise ToolchainError(
            f"'{unit.name}' for {target.name} has no kernel '{missing[0]}'",
            f'it holds {", ".join(sorted(found)) or "none"}; entries must be extern "C"',
        )
    return tuple(found[entry] for entry in unit.entries)


def check_inspection(info: KernelInfo, expected: ExpectedKernel) -> None:
    """Compare one kernel with what the plan asked for.

    On the CPU (wave 1) only the symbol is known, so only that is compared.

    Raises: ToolchainError that names the kernel and every number that differs.
    """
    problems: list[str] = []
    if info.symbol != expected.symbol:
        problems.append(f"symbol '{info.symbol}', expected '{expected.symbol}'")
    if info.wave != expected.wave:
        problems.append(f"waves of {info.wave} lanes, expected {expected.wave}")
    if expected.wave > 1:
        problems.extend(_resource_problems(info, expected))
        problems.extend(_argument_problems(info, expected))
    if problems:
        raise ToolchainError(f"kernel '{expected.symbol}' was compiled with " + "; ".join(problems))


def _resource_problems(info: KernelInfo, expected: ExpectedKernel) -> Iterator[str]:
    if expected.lds_bytes is not None and info.lds_bytes != expected.lds_bytes:
        yield f"{info.lds_bytes} bytes of LDS, expected {expected.lds_bytes}"
    if expected.lds_limit is not None and info.lds_bytes > expected.lds_limit:
        yield f"{info.lds_bytes} bytes of LDS, expected at most {expected.lds_limit}"
    if expected.threads is not None and info.max_threads != expected.threads:
        yield f"blocks of up to {info.max_threads} threads, expected {expected.threads}"
    if info.scratch_bytes > expected.scratch_limit:
        yield f"{info.scratch_bytes} bytes of scratch per lane, expected at most {expected.scratch_limit}"
    if info.vgpr_spills > expected.spill_limit:
        yield f"{info.vgpr_spills} spilled VGPRs, expected at most {expected.spill_limit}"
    if info.sgpr_spills > expected.spill_limit:
        yield f"{info.sgpr_spills} spilled SGPRs, expected at most {expected.spill_limit}"


def _argument_problems(info: KernelInfo, expected: ExpectedKernel) -> Iterator[str]:
    args = [arg for arg in info.args if arg.kind != "hidden"]
    if len(args) != len(expected.args):
        yield f"{len(args)} arguments, expected {len(expected.args)}"
        return
    for index, (arg, wanted) in enumerate(zip(args, expected.args, strict=True)):
        name, offset, size, is_pointer = wanted
        kind = "pointer" if is_pointer else "value"
        if (arg.offset, arg.size, arg.kind) != (offset, size, kind):
            yield (
                f"argument {index} '{name}' a {arg.kind} of {arg.size} bytes at {arg.offset}, "
                f"expected a {kind} of {size} bytes at {offset}"
            )


def _inspect_amd(unit: Unit, target: Target, elf: Any) -> dict[str, KernelInfo]:
    metadata = next(_amd_metadata(elf), None)
    if metadata is None:
        raise ToolchainError(f"the code object of '{unit.name}' has no AMDGPU metadata")
    # "amdgcn-amd-amdhsa--gfx90a:xnack-": the chip may be followed by its features.
    chip = str(metadata["amdhsa.target"]).rpartition("--")[2].partition(":")[0]
    if chip != target.name:
        raise ToolchainError(f"the code object of '{unit.name}' is for {chip}, expected {target.name}")
    return {kernel[".name"]: _amd_kernel(kernel) for kernel in metadata["amdhsa.kernels"]}


def _amd_metadata(elf: Any) -> Iterator[dict[str, Any]]:
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_NOTE":
            continue
        raw: bytes = section.data()
        position = 0
        while position + 12 <= len(raw):
            name_size, size, kind = struct.unpack_from("<III", raw, position)
            start = position + 12 + -(-name_size // 4) * 4
            if kind == _NT_AMDGPU_METADATA:
                yield msgpack.unpackb(raw[start : start + size])
            position = start + -(-size // 4) * 4


def _amd_kernel(kernel: dict[str, Any]) -> KernelInfo:
    args = tuple(
        ArgInfo(arg.get(".name", f"arg{index}"), arg[".offset"], arg[".size"], _amd_kind(arg[".value_kind"]))
        for index, arg in enumerate(kernel.get(".args", ()))
    )
    return KernelInfo(
        symbol=kernel[".name"],
        wave=kernel[".wavefront_size"],
        vgprs=kernel[".vgpr_count"],
        sgprs=kernel[".sgpr_count"],
        agprs=kernel.get(".agpr_count", 0),
        lds_bytes=kernel[".group_segment_fixed_size"],
        scratch_bytes=kernel[".private_segment_fixed_size"],
        vgpr_spills=kernel.get(".vgpr_spill_count", 0),
        sgpr_spills=kernel.get(".sgpr_spill_count", 0),
        kernarg_bytes=kernel[".kernarg_segment_size"],
        args=args,
        max_threads=kernel[".max_flat_workgroup_size"],
    )


def _amd_kind(value_kind: str) -> str:
    if value_kind.startswith("hidden_"):
        return "hidden"
    return "pointer" if value_kind in _POINTER_KINDS else "value"


_PTX_ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<params>[^)]*)\)(?P<directives>[^{]*)\{")
_PTX_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[a-z]+)(?P<bits>\d+)\s+"
    r"(?P<pointer>\.ptr\b)?[^,\[]*(?:\[(?P<count>\d+)\])?"
)
_PTX_VARIABLE = re.compile(
    r"\.(?P<space>shared|local)\s+(?:\.align\s+\d+\s+)?\.[a-z](?P<bits>\d+)\s+(?P<name>[\w$]+)(?P<dims>(?:\[\d+\])*)"
)
_PTX_MAX_THREADS = re.compile(r"\.maxntid\s+([\d, ]+)")


def _inspect_ptx(unit: Unit, target: Target, text: str) -> Iterator[KernelInfo]:
    if not re.search(rf"^\.target\s+{re.escape(target.name)}\b", text, re.MULTILINE):
        raise ToolchainError(f"the PTX of '{unit.name}' is not for {target.name}")
    entries = list(_PTX_ENTRY.finditer(text))
    bodies = {match["name"]: _braced(text, match.end() - 1) for match in entries}
    outside = text
    for body in bodies.values():
        outside = outside.replace(body, "")
    module_shared = {name: size for space, name, size in _ptx_variables(outside) if space == "shared"}
    for match in entries:
        body = bodies[match["name"]]
        own = list(_ptx_variables(body))
        shared = sum(size for space, _, size in own if space == "shared")
        # A module variable counts for each kernel whose text, or any device function's, names it.
        uses = body + "".join(line for line in outside.splitlines() if ".shared" not in line)
        shared += sum(
            size for name, size in module_shared.items() if re.search(rf"\b{re.escape(name)}\b", uses)
        )
        args, kernarg_bytes = _ptx_args(match["params"])
        threads = _PTX_MAX_THREADS.search(match["directives"])
        yield KernelInfo(
            symbol=match["name"],
            wave=target.wave,
            vgprs=0,
            sgprs=0,
            agprs=0,
            lds_bytes=shared,
            scratch_bytes=sum(size for space, _, size in own if space == "local"),
            vgpr_spills=0,
            sgpr_spills=0,
            kernarg_bytes=kernarg_bytes,
            args=args,
            max_threads=math.prod(int(n) for n in threads[1].split(",")) if threads else target.max_threads,
        )


def _braced(text: str, start: int) -> str:
    """The text from the brace at ``start`` to the one that closes it; PTX nests them for calls."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start : position + 1]
    raise ToolchainError("the PTX text ends inside a kernel")


def _ptx_variables(text: str) -> Iterator[tuple[str, str, int]]:
    for match in _PTX_VARIABLE.finditer(text):
        count = math.prod(int(n) for n in re.findall(r"\d+", match["dims"]))
        yield match["space"], match["name"], int(match["bits"]) // 8 * count


def _ptx_args(params: str) -> tuple[tuple[ArgInfo, ...], int]:
    """Arguments with the offsets that the launch buffer needs: each at its natural alignment."""
    args: list[ArgInfo] = []
    offset = 0
    for index, match in enumerate(_PTX_PARAM.finditer(params)):
        element = int(match["bits"]) // 8
        size = element * int(match["count"] or 1)
        align = element if match["pointer"] else int(match["align"] or element)
        offset = -(-offset // align) * align
        args.append(ArgInfo(f"arg{index}", offset, size, "pointer" if match["pointer"] else "value"))
        offset += size
    return tuple(args), offset


def _inspect_cpu(unit: Unit, elf: Any) -> dict[str, KernelInfo]:
    table = elf.get_section_by_name(".dynsym")
    if table is None:
        raise ToolchainError(f"the shared object of '{unit.name}' has no dynamic symbols")
    found: dict[str, KernelInfo] = {}
    allowed = _FREESTANDING_SYMBOLS | _LIBC_SYMBOLS if unit.libc else _FREESTANDING_SYMBOLS
    for symbol in table.iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF":
            if symbol.name and symbol.name not in allowed:
                hint = "" if unit.libc else "only a unit with libc=True may use the C library"
                raise ToolchainError(f"'{unit.name}' uses '{symbol.name}', which no package provides", hint)
        elif symbol["st_info"]["type"] == "STT_FUNC":
            found[symbol.name] = KernelInfo(symbol.name, 1, 0, 0, 0, 0, 0, 0, 0, 0, (), 1)
    return found
