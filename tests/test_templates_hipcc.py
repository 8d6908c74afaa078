"""The kernel sources through the hipcc driver itself, where one is installed (CI installs Debian's 5.2).

Debian's clang 15 emits one gfx1100 instruction with overlapping registers, in kernels with 64-bit
multiply-adds; assembling the listing refuses it, so those units must fail with that message and no other.
"""

from __future__ import annotations

import pytest

from forgec.errors import ToolchainError
from forgec.plan.stages import StageParams
from forgec.targets import get_target
from forgec.toolchain import ExpectedKernel, Unit, check_inspection, compile_units
from forgec.toolchain.hipcc import find_hipcc
from tests.kernels.harness import source_of
from tests.stage_examples import examples

CLANG_15_DEFECT = "destination must be different than all sources"

pytestmark = pytest.mark.skipif(find_hipcc() is None, reason="no hipcc on this machine")


def cases() -> list[StageParams]:
    """One example of each stage."""
    return list({params.stage: params for params in examples("gfx1100")}.values())


@pytest.mark.parametrize("params", cases(), ids=lambda p: p.stage)
def test_hipcc_compiles_the_gfx1100_source(params: StageParams) -> None:
    unit = Unit(params.symbol, source_of(params), (params.symbol,))
    try:
        (code,) = compile_units([unit], get_target("gfx1100"), toolchain="hipcc", jobs=1)
    except ToolchainError as error:
        assert CLANG_15_DEFECT in error.hint
        # Known of the sampler (64-bit masses), which a token has too, and of some products; else it is new.
        assert params.stage in ("sample", "token", "matmul", "matvec")
        return
    expected = ExpectedKernel(
        params.symbol,
        params.wave,
        tuple((a.name, offset, a.size, a.is_pointer) for a, offset in params.unpack),
        threads=params.block,
        scratch_limit=1 << 20,
        spill_limit=1 << 20,
    )
    check_inspection(code.kernel(params.symbol), expected)
