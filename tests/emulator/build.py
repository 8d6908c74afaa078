"""HIP text in, code objects out: compiled with the ziglang clang exactly as packages are, once per
process."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from forgec.emulator.native import clang_command, lld_command, run_tool

PRELUDE = """
#define KERNEL extern "C" __attribute__((global))
#define DEVICE static __attribute__((device))
#define SHARED __attribute__((shared))
#define BLOCK(n) __attribute__((amdgpu_flat_work_group_size(1, n)))
typedef unsigned u32;
typedef unsigned long u64;
DEVICE u32 lane_id() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE u32 block_id() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
"""


@cache
def build(text: str, arch: str, *flags: str) -> tuple[bytes, str]:
    """(linked code object, assembly listing) of HIP text behind PRELUDE."""
    with tempfile.TemporaryDirectory() as folder:
        source, listing = Path(folder) / "k.hip", Path(folder) / "k.s"
        source.write_text(PRELUDE + text)
        common = ["--cuda-device-only", "-O3", "-nogpuinc", "-nogpulib", "-mcode-object-version=5"]
        clang = clang_command()
        run_tool(
            [
                *clang,
                "-x",
                "hip",
                f"--offload-arch={arch}",
                *common,
                *flags,
                "-S",
                str(source),
                "-o",
                str(listing),
            ],
            "compile a test kernel",
        )
        text = listing.read_text()
    return assemble(text, arch), text


@cache
def assemble(listing: str, arch: str) -> bytes:
    """The linked code object of an assembly listing (possibly mutated by a test)."""
    with tempfile.TemporaryDirectory() as folder:
        source, obj, out = Path(folder) / "k.s", Path(folder) / "k.o", Path(folder) / "k.hsaco"
        source.write_text(listing)
        run_tool(
            [
                *clang_command(),
                "-target",
                "amdgcn-amd-amdhsa",
                f"-mcpu={arch}",
                "-c",
                str(source),
                "-o",
                str(obj),
            ],
            "assemble",
        )
        run_tool([*lld_command(), "-shared", str(obj), "-o", str(out)], "link")
        return out.read_bytes()
