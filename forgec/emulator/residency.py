"""How many blocks of a kernel a chip holds at once: what a cooperative launch may ask for."""

from __future__ import annotations

from forgec.emulator.codeobject import Kernel
from forgec.errors import TargetError
from forgec.targets import Target, occupancy

__all__ = ["resident_blocks"]


def resident_blocks(target: Target, kernel: Kernel, threads: int, dynamic_lds: int) -> int:
    """Blocks of ``threads`` that all compute units hold together; 0 when not even one fits.

    A block's waves spread over the SIMDs of a compute unit, of a pair of them on RDNA, which share the LDS of
    both.
    """
    lds = kernel.lds_size + dynamic_lds
    try:
        waves = occupancy(target, kernel.vgprs + kernel.agprs, lds, threads)
    except TargetError:
        return 0
    pair = 1 if target.family == "gfx9" else 2
    groups = target.compute_units // pair
    by_waves = waves * target.simds_per_cu * pair // -(-threads // target.wave)
    by_lds = target.lds_bytes * pair // lds if lds else by_waves
    return groups * min(by_waves, by_lds)
