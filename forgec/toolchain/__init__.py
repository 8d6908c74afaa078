"""Source text to code objects: compilers, the compile cache, and the inspection of what came out.

``compile_units`` is the way in; ``analyse_listing`` counts a listing for reports. Nothing here decides what a
kernel does or how it is launched.
"""

from __future__ import annotations

from forgec.toolchain.build import compile_units
from forgec.toolchain.cache import Cache, CacheWarning, PruneReport, cache_key, open_cache
from forgec.toolchain.disassembly import FunctionListing, InstructionMix, Loop, analyse_listing
from forgec.toolchain.inspection import ExpectedKernel, check_inspection, inspect_code
from forgec.toolchain.objects import ArgInfo, CodeObject, Compiled, KernelInfo, Toolchain, Unit
from forgec.toolchain.process import Runner
from forgec.toolchain.select import select_toolchain

__all__ = [
    "ArgInfo",
    "Cache",
    "CacheWarning",
    "CodeObject",
    "Compiled",
    "ExpectedKernel",
    "FunctionListing",
    "InstructionMix",
    "KernelInfo",
    "Loop",
    "PruneReport",
    "Runner",
    "Toolchain",
    "Unit",
    "analyse_listing",
    "cache_key",
    "check_inspection",
    "compile_units",
    "inspect_code",
    "open_cache",
    "select_toolchain",
]
