"""Runs compiled AMD code objects without a GPU: code object bytes in, memory effects, traps and counters out.

Each kernel is disassembled by LLVM, translated once to C over explicit 32- or 64-lane vectors, compiled
natively and cached. It never approximates an instruction: one that no table covers is an error that names
it.
"""

from __future__ import annotations

from forgec.emulator.counters import Counters
from forgec.emulator.device import Device, Module
from forgec.emulator.traps import EmulatorTrap

__all__ = ["Counters", "Device", "EmulatorTrap", "Module"]
