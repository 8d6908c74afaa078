"""One kernel launch: the initial state of its waves in, worker threads running the engine, counters or a
trap out."""

from __future__ import annotations

import ctypes
import struct
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgec.emulator.arena import Arena, StoreRecords
from forgec.emulator.codeobject import Kernel
from forgec.emulator.counters import Counters, LineCounter, StaticCounts, collect
from forgec.emulator.translate import Translation
from forgec.emulator.traps import trap_error
from forgec.errors import DeviceError

__all__ = ["CompiledKernel", "LaunchShape", "kernarg_bytes", "run_launch"]

_TRAP_HANG = 13


class _Trap(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint32),
        ("site", ctypes.c_uint32),
        ("lane", ctypes.c_uint32),
        ("wave", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("extra", ctypes.c_uint64),
        ("group", ctypes.c_uint32 * 3),
        ("size", ctypes.c_uint32),
    ]


class _Launch(ctypes.Structure):
    """Mirror of ``Launch`` in machine/wave.h."""

    _fields_ = [
        ("run", ctypes.c_void_p),
        ("allocs", ctypes.c_void_p),
        ("n_allocs", ctypes.c_uint64),
        ("arena_lo", ctypes.c_uint64),
        ("arena_hi", ctypes.c_uint64),
        ("shadow", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("sites", ctypes.c_void_p),
        ("lines", ctypes.c_void_p),
        ("line_map", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("n_counts", ctypes.c_uint32),
        ("n_sites", ctypes.c_uint32),
        ("lds_size", ctypes.c_uint32),
        ("scratch_size", ctypes.c_uint32),
        ("n_vgprs", ctypes.c_uint32),
        ("waves", ctypes.c_uint32),
        ("checks", ctypes.c_uint32),
        ("strict_alignment", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
        ("sgpr_group", ctypes.c_int32 * 3),
        ("sgpr_scratch_offset", ctypes.c_int32),
        ("packed_ids", ctypes.c_uint32),
        ("id_dims", ctypes.c_uint32),
        ("ttmp_ids", ctypes.c_uint32),
        ("sgprs", ctypes.c_uint32 * 32),
        ("n_init_sgprs", ctypes.c_uint32),
        ("quantum", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("code_base", ctypes.c_uint64),
        ("records", ctypes.c_void_p),
        ("record_pages", ctypes.c_void_p),
        ("record_group", ctypes.c_void_p),
        ("record_released", ctypes.c_void_p),
        ("record_base", ctypes.c_uint32),
        ("record_limit", ctypes.c_uint32),
        ("shared_cache", ctypes.c_uint32),
        ("writes_back", ctypes.c_uint32),
        ("next", ctypes.c_uint64),
        ("total", ctypes.c_uint64),
        ("lock", ctypes.c_uint32),
        ("stop", ctypes.c_uint32),
        ("record_next", ctypes.c_uint32),
        ("clock", ctypes.c_uint32),
        ("residents", ctypes.c_uint32),
        ("parked_head", ctypes.c_void_p),
        ("parked_tail", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("trap", _Trap),
    ]


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel ready to run: its description, its translation and the loaded library."""

    arch: str
    kernel: Kernel
    translation: Translation
    library: ctypes.CDLL
    code_base: int
    static: StaticCounts


@dataclass(frozen=True)
class LaunchShape:
    """Blocks of the grid, threads of a block, bytes of dynamic LDS."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_lds: int = 0


def _hidden(kind: str, size: int, shape: LaunchShape, kernel: Kernel) -> bytes:
    """Value of one hidden argument (LLVM AMDGPU guide, "Hidden Kernel Arguments"); unsupported services are
    zero."""
    axis = {"x": 0, "y": 1, "z": 2}.get(kind[-1], 0)
    value = 0
    if kind.startswith("hidden_block_count"):
        value = shape.grid[axis]
    elif kind.startswith("hidden_group_size"):
        value = shape.block[axis]
    elif kind == "hidden_grid_dims":
        value = 3 if shape.grid[2] * shape.block[2] > 1 else 2 if shape.grid[1] * shape.block[1] > 1 else 1
    elif kind == "hidden_dynamic_lds_size":
        value = shape.dynamic_lds
    elif kind == "hidden_shared_base":
        value = 0x00010000
    elif kind == "hidden_private_base":
        value = 0x00020000
    del kernel
    return value.to_bytes(size, "little")


def kernarg_bytes(kernel: Kernel, explicit: bytes, shape: LaunchShape) -> bytes:
    """The kernarg segment: the caller's explicit arguments followed by the hidden ones.

    Raises:
        DeviceError: fewer explicit bytes than the kernel declares.
    """
    if len(explicit) < kernel.explicit_size:
        raise DeviceError(
            f"kernel '{kernel.name}' takes {kernel.explicit_size} bytes of arguments, found {len(explicit)}",
            "pack the arguments at the offsets of the code object's .args",
        )
    segment = bytearray(max(kernel.kernarg_size, len(explicit)))
    segment[: len(explicit)] = explicit
    for argument in kernel.arguments:
        if argument.kind.startswith("hidden_"):
            value = _hidden(argument.kind, argument.size, shape, kernel)
            segment[argument.offset : argument.offset + argument.size] = value
    return bytes(segment)


def dispatch_packet(shape: LaunchShape, kernel: Kernel, kernarg: int, lds: int) -> bytes:
    """The AQL packet that a kernel may read through its dispatch pointer (HSA 2.9.6)."""
    dims = 3 if shape.grid[2] * shape.block[2] > 1 else 2 if shape.grid[1] * shape.block[1] > 1 else 1
    total = [g * b for g, b in zip(shape.grid, shape.block, strict=True)]
    return struct.pack(
        "<HHHHHHIIIIIQQQQ", 2, dims, *shape.block, 0, *total, kernel.private_size, lds, 0, kernarg, 0, 0
    )


def _initial_sgprs(launch: _Launch, ck: CompiledKernel, kernarg: int, packet: int, arena: Arena) -> None:
    """User SGPRs in the order of the kernel descriptor, then the system SGPRs (LLVM AMDGPU guide, "Initial
    Kernel
    Execution State")."""
    kernel, words = ck.kernel, []
    p = kernel.properties
    if p & 1:
        words += [0, 0x80000000, 0xFFFFFFFF, 0x00A00000]
    if p >> 1 & 1:
        words += [packet & 0xFFFFFFFF, packet >> 32]
    if p >> 2 & 1:
        words += [0, 0]
    if p >> 3 & 1:
        words += [kernarg & 0xFFFFFFFF, kernarg >> 32]
    if p >> 4 & 1:
        words += [1, 0]
    if p >> 5 & 1:
        words += [0, 0]
    if p >> 6 & 1:
        words += [kernel.private_size]
    count, skip = kernel.preload & 127, kernel.preload >> 7
    if count:
        preloaded = arena.view(kernarg + 4 * skip, 4 * count)
        words += list(struct.unpack(f"<{count}I", preloaded))
    users = kernel.rsrc2 >> 1 & 31
    for i, word in enumerate(words[:32]):
        launch.sgprs[i] = word
    launch.n_init_sgprs = len(words)
    at = max(users, len(words)) if not ck.arch.startswith("gfx12") else users
    for axis in range(3):
        enabled = kernel.rsrc2 >> (7 + axis) & 1
        launch.sgpr_group[axis] = at if enabled and not ck.arch.startswith("gfx12") else -1
        at += 1 if enabled else 0
    if kernel.rsrc2 >> 10 & 1:
        at += 1
    launch.sgpr_scratch_offset = -1
    if kernel.rsrc2 & 1 and (
        ck.arch.startswith("gfx10") or ck.arch in ("gfx90a", "gfx908", "gfx906", "gfx900")
    ):
        launch.sgpr_scratch_offset = at
    launch.ttmp_ids = 1 if ck.arch.startswith("gfx12") else 0
    launch.packed_ids = 0 if ck.arch.startswith("gfx10") or ck.arch in ("gfx900", "gfx906", "gfx908") else 1
    launch.id_dims = kernel.rsrc2 >> 11 & 3


def _follow_stores(launch: _Launch, ck: CompiledKernel, records: StoreRecords) -> None:
    """What fences.c needs: the records of this launch, and how the chip's caches are shared.

    Waves of a workgroup share a cache on gfx9, and elsewhere in CU mode (bit 29 of rsrc1 is WGP mode).
    """
    gfx9 = ck.arch.startswith("gfx9")
    launch.records, launch.record_pages = records.bytes.base, records.pages.base
    launch.record_group, launch.record_released = records.groups.base, records.released.base
    launch.record_base = launch.record_next = records.begin()
    launch.record_limit = records.limit
    launch.shared_cache = gfx9 or not ck.kernel.rsrc1 >> 29 & 1
    launch.writes_back = ck.arch.startswith(("gfx94", "gfx95"))


@dataclass
class RunOptions:
    """How a launch runs: worker threads, traps, interleaving and the time it may take (seconds)."""

    threads: int
    checks: bool
    seed: int | None
    strict_alignment: int
    profile: bool
    timeout: float


def _address(array: npt.NDArray[np.generic] | None) -> int:
    return 0 if array is None else array.ctypes.data


def _lines(table: npt.NDArray[np.void], lines: npt.NDArray[np.uint64] | None) -> tuple[LineCounter, ...]:
    """Sums over the workers, for the allocations that were loaded from."""
    if lines is None:
        return ()
    rows = zip(table.tolist(), lines.sum(axis=0).tolist(), strict=True)
    return tuple(LineCounter(lo, hi - lo, *counted) for (lo, hi, _, _), counted in rows if counted[0])


def run_launch(
    ck: CompiledKernel,
    shape: LaunchShape,
    arena: Arena,
    kernarg: int,
    packet: int,
    options: RunOptions,
    pool: ThreadPoolExecutor,
) -> Counters:
    """Run the whole grid and wait for it.

    Raises:
        EmulatorTrap: a kernel trapped, or did not finish within the timeout.
    """
    kernel, translation = ck.kernel, ck.translation
    threads = shape.block[0] * shape.block[1] * shape.block[2]
    total = shape.grid[0] * shape.grid[1] * shape.grid[2]
    workers = max(1, min(options.threads, total))
    launch = _Launch()
    launch.run = ctypes.cast(ck.library.kernel_run, ctypes.c_void_p).value
    table = arena.table()
    launch.allocs, launch.n_allocs = table.ctypes.data, len(table)
    launch.arena_lo, launch.arena_hi = arena.base, arena.limit
    launch.shadow = arena.shadow_base if options.checks else 0
    counts = np.zeros((workers, len(translation.segments), 2), np.uint64)
    sites = np.zeros((workers, len(translation.sites), 4), np.uint64) if options.profile else None
    launch.counts, launch.sites = counts.ctypes.data, _address(sites)
    lines = np.zeros((workers, len(table), 3), np.uint64) if options.profile else None
    launch.lines, launch.line_map = _address(lines), arena.begin_lines() if options.profile else 0
    launch.n_counts, launch.n_sites = len(translation.segments), len(translation.sites)
    launch.grid[:] = shape.grid
    launch.block[:] = shape.block
    launch.lds_size = kernel.lds_size + shape.dynamic_lds
    launch.scratch_size = max(kernel.private_size, 16384 if kernel.uses_dynamic_stack else 0)
    launch.n_vgprs = translation.vgprs
    launch.waves = -(-threads // kernel.wave)
    launch.checks = options.checks
    launch.strict_alignment = options.strict_alignment
    launch.mode = kernel.rsrc1 >> 12 & 0xFF
    launch.quantum = 1 << 16 if options.seed is None else 24
    launch.seed = 0 if options.seed is None else options.seed * 2 + 1
    launch.code_base = ck.code_base
    launch.total = total
    _initial_sgprs(launch, ck, kernarg, packet, arena)
    if arena.records is not None:
        _follow_stores(launch, ck, arena.records)
    reference = ctypes.byref(launch)
    start = time.perf_counter()
    futures = [pool.submit(ck.library.emu_worker, reference, i) for i in range(workers)]
    _, late = wait(futures, timeout=options.timeout)
    hung = bool(late)
    if hung:
        launch.stop = 1
        wait(futures)
    seconds = time.perf_counter() - start
    ck.library.emu_finish(reference)
    if arena.records is not None:
        arena.records.next = launch.record_next
    if hung:
        launch.trap.code = _TRAP_HANG
        launch.trap.site = len(translation.sites)
    if launch.trap.code:
        t = launch.trap
        raise trap_error(
            kernel.name,
            translation.sites,
            t.code,
            t.site,
            t.lane,
            t.wave,
            t.address,
            t.extra,
            (t.group[0], t.group[1], t.group[2]),
        )
    return collect(kernel.name, ck.static, translation.sites, counts, sites, _lines(table, lines), seconds)
