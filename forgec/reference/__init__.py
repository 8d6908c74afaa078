"""What every op means, in NumPy, and an interpreter that runs a whole graph with it.

A graph and weights go in, numbers come out, in float64 unless asked otherwise. It is the yardstick of passes
and kernels: clear, slow, and never part of a package.
"""

from __future__ import annotations

from forgec.reference.interpreter import run
from forgec.reference.ops import Step, evaluate
from forgec.reference.sampling import SamplerSettings, philox_uniform, sample

__all__ = ["SamplerSettings", "Step", "evaluate", "philox_uniform", "run", "sample"]
