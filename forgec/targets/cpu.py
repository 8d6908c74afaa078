"""CPU targets: the portable x86-64-v3 level, and ``native``, which is whatever this machine has.

x86-64-v3 is fixed data, like every GPU. ``native`` is made from a description of the machine
(``/proc/cpuinfo`` text, core count, sizes), which ``read_machine`` takes from Linux; nothing here runs a
compiler. The compiler resolves ``-march=native`` itself, and the toolchain puts what it resolved to into the
cache key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from forgec.targets.base import Target

__all__ = ["X86_64_V3", "Machine", "native_target", "read_machine"]

_MIB = 1 << 20
_GIB = 1 << 30

# The x86-64 psABI's level v3, in the names of /proc/cpuinfo (pni is SSE3, abm is LZCNT).
_V3_FLAGS = (
    *("abm", "avx", "avx2", "bmi1", "bmi2", "cx16", "f16c", "fma", "lahf_lm", "movbe", "pni", "popcnt"),
    *("sse4_1", "sse4_2", "ssse3", "xsave"),
)
# What clang may use beyond that for arithmetic once -march=native allows it.
_OPTIONAL_FLAGS = (
    *(
        "adx",
        "avx512_bf16",
        "avx512_bitalg",
        "avx512_fp16",
        "avx512_vbmi2",
        "avx512_vnni",
        "avx512_vpopcntdq",
    ),
    *("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma", "avx512vbmi", "avx512vl", "avx_ifma"),
    *("avx_ne_convert", "avx_vnni", "avx_vnni_int16", "avx_vnni_int8", "gfni", "vaes", "vpclmulqdq"),
)
# Either one gives a four-way int8 dot product on 256-bit vectors.
_VNNI = (frozenset({"avx_vnni"}), frozenset({"avx512_vnni", "avx512vl"}))

_STAGES = "wave, simds_per_cu, max_threads, block_size: by definition, one lane is one thread"
_LDS = "lds_bytes: chosen equal to the GPUs', a stack array of the thread that runs the block"
_REGISTERS = "vgprs: 16 vector registers of 8 lanes, Intel SDM volume 1, section 14.1"
_NODE = "launch_seconds: assumed, one barrier of a few threads, unmeasured"

X86_64_V3 = Target(
    name="x86-64-v3",
    family="cpu",
    title="any x86-64 CPU with AVX2, FMA and F16C (psABI level v3)",
    wave=1,
    compute_units=8,
    simds_per_cu=1,
    clock_hz=3.5e9,
    lds_bytes=65536,
    vgprs=16,
    max_threads=1,
    block_size=1,
    dot="avx2",
    matrix="",
    bandwidth=51.2e9,
    memory_bytes=16 * _GIB,
    l2_bytes=16 * _MIB,
    launch_seconds=1e-6,
    sources=(
        _STAGES,
        _LDS,
        _REGISTERS,
        _NODE,
        "compute_units, clock_hz, memory_bytes, l2_bytes: a nominal desktop of 2020, chosen by this project",
        "bandwidth: two channels of DDR4-3200, 2 x 25.6 GB/s (JEDEC JESD79-4)",
    ),
    code_suffix=".so",
    cpu_flags=("-march=x86-64-v3",),
    requires=_V3_FLAGS,
)


@dataclass(frozen=True)
class Machine:
    """What ``native_target`` needs to know of a machine; ``flags`` are those of ``/proc/cpuinfo``."""

    model: str
    flags: frozenset[str]
    cores: int
    memory_bytes: int
    last_level_cache_bytes: int


def native_target(machine: Machine) -> Target:
    """The CPU target of one machine: x86-64-v3's nominal numbers, with its own cores, sizes and dot product.

    A machine without AVX2 still gets a target, with ``dot=""``.
    """
    if any(flags <= machine.flags for flags in _VNNI):
        dot = "vnni"
    else:
        dot = "avx2" if "avx2" in machine.flags else ""
    return replace(
        X86_64_V3,
        name="native",
        title=f"this machine's CPU ({machine.model})",
        compute_units=machine.cores,
        dot=dot,
        memory_bytes=machine.memory_bytes,
        l2_bytes=machine.last_level_cache_bytes,
        sources=(
            _STAGES,
            _LDS,
            _REGISTERS,
            _NODE,
            "compute_units, memory_bytes, l2_bytes: read from this machine",
            "clock_hz: nominal, as for x86-64-v3",
            "bandwidth: nominal, as for x86-64-v3",
        ),
        cpu_flags=("-march=native",),
        requires=tuple(flag for flag in sorted((*_V3_FLAGS, *_OPTIONAL_FLAGS)) if flag in machine.flags),
    )


def read_machine(root: Path = Path("/")) -> Machine:
    """Describe this machine from ``proc/cpuinfo`` and ``sys`` under ``root``; the unreadable is nominal."""
    model, flags = "unknown model", frozenset[str]()
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        if name.strip() == "flags":
            flags = frozenset(value.split())
            break
    return Machine(
        model=model,
        flags=flags,
        cores=_cores(),
        memory_bytes=_memory_bytes(_read(root / "proc/meminfo")) or X86_64_V3.memory_bytes,
        last_level_cache_bytes=_last_level_cache(root) or X86_64_V3.l2_bytes,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdigit():
            return int(words[1]) * 1024
    return 0


def _last_level_cache(root: Path) -> int:
    sizes = []
    for path in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        text = _read(path).strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
