"""NVIDIA chips (sm_80, sm_90), one frozen ``Target`` each; their code is PTX text that the driver finishes.

Numbers only: nothing here is computed from a device.
"""

from __future__ import annotations

from forgec.targets.base import Target

__all__ = ["TARGETS"]

_GUIDE = "wave, simds_per_cu, max_threads: CUDA C++ programming guide 12, compute capabilities table"
_LDS = "lds_bytes: CUDA C++ programming guide 12, 48 KiB of statically declared shared memory per block"
_VGPRS = "vgprs: CUDA C++ programming guide 12, 65536 registers per SM over 4 sub-partitions of 32 lanes"
_BLOCK = "block_size: 8 waves of 32, this project's default for wave32"
_MIB = 1 << 20

SM_80 = Target(
    name="sm_80",
    family="nvptx",
    title="A100 SXM4 80 GB (Ampere)",
    wave=32,
    compute_units=108,
    simds_per_cu=4,
    clock_hz=1.41e9,
    lds_bytes=49152,
    vgprs=512,
    max_threads=1024,
    block_size=256,
    dot="dp4a",
    matrix="mma.sync",
    bandwidth=2039e9,
    memory_bytes=81920 * _MIB,
    l2_bytes=40 * _MIB,
    launch_seconds=1.1e-6,
    sources=(
        _GUIDE,
        _LDS,
        _VGPRS,
        _BLOCK,
        "compute_units, clock_hz, bandwidth, memory_bytes, l2_bytes: A100 80GB data sheet, GA100 paper",
        "launch_seconds: assumed equal to sm_90, unmeasured",
    ),
    code_suffix=".ptx",
)

SM_90 = Target(
    name="sm_90",
    family="nvptx",
    title="H100 SXM5 80 GB (Hopper)",
    wave=32,
    compute_units=132,
    simds_per_cu=4,
    clock_hz=1.98e9,
    lds_bytes=49152,
    vgprs=512,
    max_threads=1024,
    block_size=256,
    dot="dp4a",
    matrix="mma.sync",
    bandwidth=3352e9,
    memory_bytes=81559 * _MIB,
    l2_bytes=50 * _MIB,
    launch_seconds=1.1e-6,
    sources=(
        _GUIDE,
        _LDS,
        _VGPRS,
        _BLOCK,
        "compute_units, bandwidth, l2_bytes: NVIDIA H100 data sheet and GH100 white paper, SXM5",
        "clock_hz, memory_bytes: nvidia-smi -q on an H100 SXM5 (maximum SM clock, total memory)",
        "launch_seconds: about 1.1 us per CUDA graph node, measured on an H100 in 2026",
    ),
    code_suffix=".ptx",
    dynamic_lds=232448,  # CUDA C++ programming guide 12: 227 KiB of shared memory per block on 9.0
    schedule="persistent",
)

TARGETS = (SM_80, SM_90)
