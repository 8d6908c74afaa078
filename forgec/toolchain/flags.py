"""The compiler flags that both toolchains share, as data, each with its reason.

Nothing here depends on a machine or a path: these tuples are part of the cache key as they stand.
"""

from __future__ import annotations

__all__ = [
    "AMD_ASSEMBLE",
    "AMD_COMPILE",
    "AMD_LINK",
    "COMMON",
    "CPLUSPLUS",
    "CPU_COMPILE",
    "CPU_LINK",
    "PTX_COMPILE",
    "C",
]

COMMON = (
    "-O3",
    # Contraction and no errno, but no -ffast-math: attention masks need infinities and NaN must stay visible.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-ident",
    # A crash is reported as an error; clang's reproducer files would only be left behind.
    "-fno-crash-diagnostics",
    "-Wno-unused-command-line-argument",
)

CPLUSPLUS = ("-std=c++17", "-fno-exceptions", "-fno-rtti")
C = ("-std=c17",)

# Version 5 is the newest code object that ROCm 6 loads; clang 22 would write version 6.
_CODE_OBJECT = "-mcode-object-version=5"

AMD_COMPILE = (
    "-x",
    "hip",
    "--cuda-device-only",
    "-nogpuinc",
    "-nogpulib",
    _CODE_OBJECT,
    # The unit id would be a hash of path and command line, and would end up in a symbol name.
    "-fuse-cuid=none",
    "-fhip-kernel-arg-name",
)
AMD_ASSEMBLE = ("-target", "amdgcn-amd-amdhsa", _CODE_OBJECT)
AMD_LINK = ("-shared", "--no-undefined", "--build-id=none")

# PTX ISA 8.0 (CUDA 12.0, driver 525) is the oldest with bulk copies to LDS; drivers accept any older version
# than their own, so the same text runs on everything since. clang 22 would ask for 8.8: driver 575.
PTX_COMPILE = (
    "-x",
    "cuda",
    "--cuda-device-only",
    "-nocudainc",
    "-nocudalib",
    "--cuda-feature=+ptx80",
    "-Wno-unknown-cuda-version",
)

CPU_COMPILE = (
    "-fPIC",
    "-ffreestanding",
    "-fno-threadsafe-statics",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
)
CPU_LINK = (
    "-shared",
    "-Bsymbolic",
    "--build-id=none",
    "--hash-style=gnu",
    "-z",
    "noexecstack",
    "--strip-all",
)
