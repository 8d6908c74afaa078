"""HIP without a GPU: a stub ``libamdhip64.so`` whose calls the emulator serves, inside any Python process.

``build_stub`` makes the library, ``ROCM_PATH`` selects it, and programs that use hip-python run unchanged;
``attach`` puts a fresh device behind a stub that is loaded already. Unserved HIP functions are not exported.
"""

from __future__ import annotations

from forgec.emulator.hip.build import build_stub
from forgec.emulator.hip.configuration import Configuration
from forgec.emulator.hip.front import Front, attach

__all__ = ["Configuration", "Front", "attach", "build_stub"]
