"""RDNA4 chips (gfx1200, gfx1201), one frozen ``Target`` each.

Numbers only: nothing here is computed from a device. No measurement on RDNA4 has been made by this project.
"""

from __future__ import annotations

from forgec.targets.base import Target

__all__ = ["TARGETS"]

_ISA = "wave, simds_per_cu, lds_bytes, max_threads: AMD RDNA4 ISA guide (2025), sections 2 and 3.3"
_VGPRS = "vgprs: LLVM AMDGPU.td Feature1_5xVGPRs, 1536 registers per lane of a wave32 SIMD"
_BLOCK = "block_size: 8 waves of 32, this project's default for wave32"
_NODE = "launch_seconds: assumed equal to gfx1100, unmeasured"
_GIB = 1 << 30
_MIB = 1 << 20

GFX1200 = Target(
    name="gfx1200",
    family="gfx12",
    title="Radeon RX 9060 XT 16 GB (RDNA4)",
    wave=32,
    compute_units=32,
    simds_per_cu=2,
    clock_hz=3.13e9,
    lds_bytes=65536,
    vgprs=1536,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma12",
    bandwidth=320e9,
    memory_bytes=16 * _GIB,
    l2_bytes=32 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        _ISA,
        _VGPRS,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Radeon RX 9060 XT (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 9060 XT, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

GFX1201 = Target(
    name="gfx1201",
    family="gfx12",
    title="Radeon RX 9070 XT (RDNA4)",
    wave=32,
    compute_units=64,
    simds_per_cu=2,
    clock_hz=2.97e9,
    lds_bytes=65536,
    vgprs=1536,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma12",
    bandwidth=640e9,
    memory_bytes=16 * _GIB,
    l2_bytes=64 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        _ISA,
        _VGPRS,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Radeon RX 9070 XT (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 9070 XT, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

TARGETS = (GFX1200, GFX1201)
