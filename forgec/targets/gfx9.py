"""CDNA chips (gfx90a, gfx942, gfx950): waves of 64 lanes, MFMA, one frozen ``Target`` each.

Numbers only: nothing here is computed from a device. No measurement on CDNA has been made by this project.
"""

from __future__ import annotations

from forgec.targets.base import Target

__all__ = ["TARGETS"]

_VGPRS = (
    "vgprs: LLVM AMDGPUBaseInfo.cpp getTotalNumVGPRs (GFX90AInsts), 512 registers per lane, shared by "
    "VGPRs and AGPRs"
)
_BLOCK = "block_size: 8 waves of 64, this project's default for wave64"
_NODE = "launch_seconds: assumed equal to gfx1100, unmeasured"
_GIB = 1 << 30
_MIB = 1 << 20

GFX90A = Target(
    name="gfx90a",
    family="gfx9",
    title="Instinct MI210 (CDNA2; one die of an MI250X runs the same code)",
    wave=64,
    compute_units=104,
    simds_per_cu=4,
    clock_hz=1.7e9,
    lds_bytes=65536,
    vgprs=512,
    max_threads=1024,
    block_size=512,
    dot="sdot4",
    matrix="mfma",
    bandwidth=1638.4e9,
    memory_bytes=64 * _GIB,
    l2_bytes=8 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        "wave, simds_per_cu, lds_bytes, max_threads: AMD Instinct MI200 ISA guide (2022), sections 1 and 3",
        _VGPRS,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Instinct MI210 (peak clock)",
        "l2_bytes: AMD CDNA2 white paper, L2 of one die (there is no Infinity Cache)",
    ),
    code_suffix=".hsaco",
)

GFX942 = Target(
    name="gfx942",
    family="gfx9",
    title="Instinct MI300X (CDNA3)",
    wave=64,
    compute_units=304,
    simds_per_cu=4,
    clock_hz=2.1e9,
    lds_bytes=65536,
    vgprs=512,
    max_threads=1024,
    block_size=512,
    dot="sdot4",
    matrix="mfma",
    bandwidth=5300e9,
    memory_bytes=192 * _GIB,
    l2_bytes=256 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        "wave, simds_per_cu, lds_bytes, max_threads: AMD Instinct MI300 ISA guide (2023), sections 1 and 3",
        _VGPRS,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Instinct MI300X (peak clock)",
        "l2_bytes: AMD CDNA3 white paper, Infinity Cache (behind 4 MiB of L2 per XCD)",
    ),
    code_suffix=".hsaco",
)

GFX950 = Target(
    name="gfx950",
    family="gfx9",
    title="Instinct MI355X (CDNA4)",
    wave=64,
    compute_units=256,
    simds_per_cu=4,
    clock_hz=2.4e9,
    lds_bytes=163840,
    vgprs=512,
    max_threads=1024,
    block_size=512,
    dot="sdot4",
    matrix="mfma",
    bandwidth=8000e9,
    memory_bytes=288 * _GIB,
    l2_bytes=256 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        "wave, simds_per_cu, lds_bytes, max_threads: AMD CDNA4 ISA guide (2025), sections 1 and 3",
        _VGPRS,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Instinct MI355X (peak clock)",
        "l2_bytes: AMD CDNA4 white paper, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

TARGETS = (GFX90A, GFX942, GFX950)
