"""How many waves one SIMD holds at once, from what a kernel uses.

In come a ``Target`` and the registers, LDS and block size of a kernel, out goes a number of waves. The rules
are those of LLVM's AMDGPU back end (checked against its own listing by a test) and of NVIDIA's occupancy
calculator; no clock, latency or speed is predicted here.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import TargetError
from forgec.targets.base import Target

__all__ = ["occupancy"]


@dataclass(frozen=True)
class _Limits:
    """Of one group of SIMDs that runs whole blocks: a work-group processor (RDNA), a CU (CDNA) or an SM."""

    waves_per_simd: int
    compute_units: int  # compute units that share one block's LDS and barriers
    lds_bytes: int  # LDS of the group; 0 means the target's own lds_bytes
    lds_granule: int  # bytes
    lds_reserved: int  # bytes per block
    blocks: int  # blocks that may wait at a barrier


# Source: LLVM AMDGPUBaseInfo.cpp (getMaxWavesPerEU, getMaxWorkGroupsPerCU, getEUsPerCU; a WGP is two CUs and
# 128 KiB) and AMD's ISA guides for the LDS granule (1 KiB since RDNA2, 512 bytes on CDNA, 1280 on CDNA4); for
# NVIDIA the CUDA programming guide's table of compute capabilities (164 KiB an SM on 8.0, 228 KiB on 9.0, 1
# KiB reserved per block).
_RDNA = _Limits(
    waves_per_simd=16, compute_units=2, lds_bytes=131072, lds_granule=1024, lds_reserved=0, blocks=32
)
_CDNA = _Limits(waves_per_simd=8, compute_units=1, lds_bytes=0, lds_granule=512, lds_reserved=0, blocks=16)
_BY_NAME = {
    "gfx950": _Limits(8, 1, lds_bytes=0, lds_granule=1280, lds_reserved=0, blocks=16),
    "sm_80": _Limits(16, 1, lds_bytes=164 * 1024, lds_granule=128, lds_reserved=1024, blocks=32),
    "sm_90": _Limits(16, 1, lds_bytes=228 * 1024, lds_granule=128, lds_reserved=1024, blocks=32),
}
_BY_FAMILY = {"gfx9": _CDNA, "gfx10": _RDNA, "gfx11": _RDNA, "gfx12": _RDNA}


def occupancy(target: Target, vgprs: int, lds_bytes: int, threads: int) -> int:
    """Waves that one SIMD of ``target`` can hold of a kernel.

    ``vgprs`` counts registers per lane (on CDNA VGPRs and AGPRs together; 0 where unknown, as in PTX, means
    that registers do not limit), ``lds_bytes`` is per block, ``threads`` is the block size. A CPU thread runs
    one block at a time, so its answer is always 1.

    Raises: TargetError when one block of such a kernel cannot run at all.
    """
    if not 0 < threads <= target.max_threads:
        raise TargetError(
            f"a block of {threads} threads does not run on {target.name}, which allows {target.max_threads}"
        )
    if vgprs < 0 or vgprs > target.vgprs:
        raise TargetError(
            f"a kernel with {vgprs} vector registers does not run on {target.name} ({target.vgprs})"
        )
    if target.family == "cpu":
        return 1
    limits = _BY_NAME.get(target.name) or _BY_FAMILY[target.family]
    lds_total = limits.lds_bytes or target.lds_bytes
    lds_block = _round_up(lds_bytes, limits.lds_granule) + limits.lds_reserved
    if lds_bytes < 0 or lds_bytes > target.lds_bytes:
        raise TargetError(
            f"a block with {lds_bytes} bytes of LDS does not run on {target.name} ({target.lds_bytes})"
        )
    simds = limits.compute_units * target.simds_per_cu
    block_waves = -(-threads // target.wave)
    # A block of one wave needs no barrier and is not counted against the barrier limit (AMD only).
    wave_slots = limits.waves_per_simd * simds
    blocks = wave_slots // block_waves
    if block_waves > 1 or target.family == "nvptx":
        blocks = min(blocks, limits.blocks)
    if lds_block:
        blocks = min(blocks, lds_total // lds_block)
    by_block = -(-blocks * block_waves // simds)
    by_registers = limits.waves_per_simd
    if vgprs:
        # 1536, 1024 and 512 registers are handed out in units of 24, 16 and 8: always a 64th of the file.
        by_registers = target.vgprs // _round_up(vgprs, target.vgprs // 64)
    return max(1, min(limits.waves_per_simd, by_block, by_registers))


def _round_up(value: int, granule: int) -> int:
    return -(-value // granule) * granule
