"""Targets: the table of known chips, the checks on it, and occupancy against LLVM's own listing."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from pathlib import Path

import pytest

from forgec.errors import TargetError
from forgec.targets import Machine, Target, all_targets, get_target, native_target, occupancy, read_machine
from forgec.toolchain import Unit, compile_units

KNOWN = (
    *(
        "gfx1100",
        "gfx1101",
        "gfx1102",
        "gfx1151",
        "gfx1200",
        "gfx1201",
        "gfx1030",
        "gfx90a",
        "gfx942",
        "gfx950",
    ),
    *("sm_80", "sm_90", "x86-64-v3", "native"),
)


def test_the_known_targets() -> None:
    targets = all_targets()
    assert sorted(target.name for target in targets) == sorted(KNOWN)
    assert len({target.title for target in targets}) == len(targets)
    for target in targets:
        assert get_target(target.name) == target
        assert target.waves_per_block * target.wave == target.block_size


@pytest.mark.parametrize(
    ("name", "wave", "block", "dot", "matrix", "suffix", "driver"),
    [
        ("gfx1100", 32, 256, "sudot4", "wmma", ".hsaco", "hip"),
        ("gfx1201", 32, 256, "sudot4", "wmma12", ".hsaco", "hip"),
        ("gfx1030", 32, 256, "sdot4", "", ".hsaco", "hip"),
        ("gfx942", 64, 512, "sdot4", "mfma", ".hsaco", "hip"),
        ("sm_90", 32, 256, "dp4a", "mma.sync", ".ptx", "cuda"),
        ("x86-64-v3", 1, 1, "avx2", "", ".so", "cpu"),
    ],
)
def test_what_each_family_has(
    name: str, wave: int, block: int, dot: str, matrix: str, suffix: str, driver: str
) -> None:
    target = get_target(name)
    assert (target.wave, target.block_size, target.dot, target.matrix) == (wave, block, dot, matrix)
    assert (target.code_suffix, target.driver) == (suffix, driver)


def test_the_numbers_of_the_first_target() -> None:
    target = get_target("gfx1100")
    assert (target.compute_units, target.simds_per_cu, target.vgprs, target.lds_bytes) == (96, 2, 1536, 65536)
    assert (target.bandwidth, target.memory_bytes, target.l2_bytes) == (960e9, 24 << 30, 96 << 20)
    # 32 lanes x 2 SIMDs x 96 CUs x fused multiply-add x dual issue at the boost clock: AMD's 61.4 TFLOP/s.
    assert target.compute_units * target.simds_per_cu * 32 * 2 * 2 * target.clock_hz == pytest.approx(
        61.4e12, rel=0.01
    )


@pytest.mark.parametrize("name", ["gfx1110", "", "GFX1100", "gfx1100 ", "cuda"])
def test_an_unknown_name_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(TargetError) as caught:
        get_target(name)
    assert caught.value.message == f"unknown target '{name}'"
    assert all(known in caught.value.hint for known in KNOWN)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(TargetError) as caught:
        get_target("sm90")
    assert caught.value.hint.startswith("did you mean 'sm_90'? known targets: gfx1100, ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gfx13"}, "target 'gfx1100' has the unknown family 'gfx13'"),
        ({"wave": 64}, "target 'gfx1100': wave is 64, expected 32 in family 'gfx11'"),
        ({"dot": "sdot4"}, "target 'gfx1100': dot is 'sdot4', expected 'sudot4' in family 'gfx11'"),
        ({"matrix": "mfma"}, "target 'gfx1100': matrix is 'mfma', expected 'wmma' in family 'gfx11'"),
        (
            {"code_suffix": ".so"},
            "target 'gfx1100': code_suffix is '.so', expected '.hsaco' in family 'gfx11'",
        ),
        ({"memory_bytes": 0}, "target 'gfx1100': memory_bytes is 0, expected more than 0"),
        (
            {"block_size": 100},
            "target 'gfx1100': block_size 100 is not a multiple of wave 32 within max_threads 1024",
        ),
        (
            {"block_size": 2048},
            "target 'gfx1100': block_size 2048 is not a multiple of wave 32 within max_threads 1024",
        ),
        ({"cpu_flags": ("-mavx2",)}, "target 'gfx1100': cpu_flags are for CPU targets, and those need them"),
    ],
)
def test_an_inconsistent_target_cannot_exist(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError) as caught:
        dataclasses.replace(get_target("gfx1100"), **changes)  # type: ignore[arg-type]
    assert caught.value.message == message


def test_every_number_needs_a_source() -> None:
    target = get_target("gfx942")
    with pytest.raises(TargetError, match="no source for bandwidth"):
        dataclasses.replace(target, sources=tuple(line.replace(" bandwidth,", "") for line in target.sources))
    with pytest.raises(TargetError, match="a source for unknown tflops"):
        dataclasses.replace(target, sources=(*target.sources, "tflops: a data sheet"))
    with pytest.raises(TargetError, match="does not read 'field, field: origin'"):
        dataclasses.replace(target, sources=(*target.sources, "a data sheet"))


def test_a_target_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_target("gfx1100").wave = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "dot"),
    [
        ({"avx2", "avx_vnni"}, "vnni"),
        ({"avx2", "avx512_vnni", "avx512vl"}, "vnni"),
        ({"avx2", "avx512_vnni"}, "avx2"),
        ({"avx2", "fma"}, "avx2"),
        ({"sse4_2"}, ""),
    ],
)
def test_native_is_made_from_the_machine(flags: set[str], dot: str) -> None:
    machine = Machine("Some CPU", frozenset(flags | {"unrelated"}), 13, 7 << 30, 5 << 20)
    target = native_target(machine)
    assert (target.dot, target.compute_units, target.memory_bytes, target.l2_bytes) == (
        dot,
        13,
        7 << 30,
        5 << 20,
    )
    assert set(target.requires) == flags
    assert target.cpu_flags == ("-march=native",)
    assert "Some CPU" in target.title


def test_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache"
    for index, size in enumerate(("48K", "32K", "2048K", "32768K")):
        (cache / f"index{index}").mkdir(parents=True)
        (cache / f"index{index}" / "size").write_text(size + "\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "model name\t: An EPYC\nflags\t\t: avx2 fma\n\nmodel name: other\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal:        1000 kB\nMemFree: 5 kB\n")
    machine = read_machine(tmp_path)
    assert (machine.model, machine.flags) == ("An EPYC", {"avx2", "fma"})
    assert (machine.memory_bytes, machine.last_level_cache_bytes) == (1000 * 1024, 32 << 20)


def test_a_machine_without_files_is_nominal(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    nominal = get_target("x86-64-v3")
    assert machine.flags == frozenset()
    assert (machine.memory_bytes, machine.last_level_cache_bytes) == (nominal.memory_bytes, nominal.l2_bytes)


def _occupancy_kernels(target: Target, rng: random.Random) -> tuple[Unit, dict[str, tuple[int, int]]]:
    """Kernels with a drawn number of registers (forced by a clobber), LDS and block size.

    LDS is drawn in whole granules: LLVM's listing ignores the hardware's rounding, ``occupancy`` does not.
    """
    granule = 1280 if target.name == "gfx950" else 1024
    source, wanted = "", {}
    for index in range(8):
        threads = rng.choice([target.wave, 96, 128, 192, 256, 320, 512, 768, 1024])
        lds = rng.choice([0, granule * rng.randrange(1, target.lds_bytes // granule + 1)])
        waves_per_simd = math.ceil(math.ceil(threads / target.wave) / 4)
        vgprs = min(rng.randrange(8, 250), target.vgprs // waves_per_simd - 8)
        use_lds = (
            f"__attribute__((shared)) static float s[{lds // 4}];\n"
            "s[__builtin_amdgcn_workitem_id_x()] = x[1]; __builtin_amdgcn_s_barrier(); x[2] = s[5];\n"
        )
        source += (
            f'extern "C" __attribute__((global, amdgpu_flat_work_group_size({threads}, {threads})))\n'
            f"void k{index}(float* x) {{ {use_lds if lds else ''}\n"
            f'asm volatile("v_mov_b32 v{vgprs - 1}, 0" ::: "v{vgprs - 1}"); x[0] = 1.0f; }}\n'
        )
        wanted[f"k{index}"] = (lds, threads)
    return Unit("occupancy", source, tuple(wanted)), wanted


@pytest.mark.parametrize("name", ["gfx1100", "gfx1102", "gfx1201", "gfx1030", "gfx90a", "gfx942", "gfx950"])
def test_occupancy_is_what_llvm_says(name: str) -> None:
    seed = random.randrange(1 << 30)
    target = get_target(name)
    unit, wanted = _occupancy_kernels(target, random.Random(seed))
    (code,) = compile_units([unit], target, toolchain="zig")
    said = [int(number) for number in re.findall(r"^; Occupancy: (\d+)", code.assembly, re.MULTILINE)]
    ours = []
    for symbol, (lds, threads) in wanted.items():
        info = code.kernel(symbol)
        assert (info.lds_bytes, info.max_threads) == (lds, threads)
        ours.append(occupancy(target, info.vgprs, info.lds_bytes, threads))
    assert ours == said, f"seed {seed}, {code.inspection}"


@pytest.mark.parametrize(
    ("name", "vgprs", "lds_bytes", "threads", "waves"),
    [
        # 64 registers: 65536 / (64 * 32) = 32 warps of 64; per sub-partition 8.
        ("sm_90", 64, 0, 256, 8),
        # 48 KiB + 1 KiB reserved: 4 blocks of 8 warps in 228 KiB, 3 in 164 KiB.
        ("sm_90", 32, 49152, 256, 8),
        ("sm_80", 32, 49152, 256, 6),
        # At most 32 blocks an SM: 32 single-warp blocks over 4 sub-partitions.
        ("sm_90", 0, 0, 32, 8),
        ("sm_80", 255, 0, 256, 2),
        # LDS is handed out in 1 KiB: 33 KiB + 1 byte is 34 KiB, 3 blocks of 8 waves over 4 SIMDs.
        ("gfx1100", 32, 33 * 1024 + 1, 256, 6),
        # 12.5 KiB are 13 KiB: 9 blocks of 4 waves in 128 KiB, not 10.
        ("gfx1100", 32, 12800, 128, 9),
        ("x86-64-v3", 0, 1000, 1, 1),
    ],
)
def test_occupancy_by_hand(name: str, vgprs: int, lds_bytes: int, threads: int, waves: int) -> None:
    assert occupancy(get_target(name), vgprs, lds_bytes, threads) == waves


@pytest.mark.parametrize(
    ("vgprs", "lds_bytes", "threads"),
    [(32, 0, 1025), (32, 0, 0), (2000, 0, 256), (-1, 0, 64), (32, 65537, 64)],
)
def test_occupancy_of_what_cannot_run(vgprs: int, lds_bytes: int, threads: int) -> None:
    with pytest.raises(TargetError, match="does not run on gfx1100"):
        occupancy(get_target("gfx1100"), vgprs, lds_bytes, threads)
