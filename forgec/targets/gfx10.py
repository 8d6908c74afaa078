"""RDNA2 chips (gfx1030), one frozen ``Target`` each.

Numbers only: nothing here is computed from a device. RDNA2 has the int8 dot product but no matrix
instructions.
"""

from __future__ import annotations

from forgec.targets.base import Target

__all__ = ["TARGETS"]

_GIB = 1 << 30
_MIB = 1 << 20

GFX1030 = Target(
    name="gfx1030",
    family="gfx10",
    title="Radeon RX 6900 XT (RDNA2)",
    wave=32,
    compute_units=80,
    simds_per_cu=2,
    clock_hz=2.25e9,
    lds_bytes=65536,
    vgprs=1024,
    max_threads=1024,
    block_size=256,
    dot="sdot4",
    matrix="",
    bandwidth=512e9,
    memory_bytes=16 * _GIB,
    l2_bytes=128 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        "wave, simds_per_cu, lds_bytes, max_threads: AMD RDNA2 ISA guide (2020), sections 2 and 3.3",
        "vgprs: LLVM AMDGPUBaseInfo.cpp getTotalNumVGPRs, 1024 registers per lane of a wave32 SIMD",
        "block_size: 8 waves of 32, this project's default for wave32",
        "launch_seconds: assumed equal to gfx1100, unmeasured",
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Radeon RX 6900 XT (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 6900 XT, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

TARGETS = (GFX1030,)
