"""Legal, divided numbers for stage parameters: lanes, groups and blocks from shapes, target and tuning.

Small pure functions over integers; the choices behind them are rows of ``plan.tuning``.
"""

from __future__ import annotations

from forgec.plan.layouts import slice_elements
from forgec.plan.stages import MatmulParams, MatvecParams, Segment
from forgec.plan.tuning import Tuning, grid_blocks
from forgec.targets import Target

__all__ = ["lanes_per_key", "lanes_per_row", "matmul_grid", "matvec_grid", "power_of_two_below"]


def power_of_two_below(limit: int) -> int:
    """Largest power of two that is at most ``limit`` (at least 1)."""
    return 1 << max(0, limit.bit_length() - 1) if limit > 0 else 1


def lanes_per_row(segments: tuple[Segment, ...], cols: int, tuning: Tuning, target: Target) -> int:
    """Lanes that share a row: enough that each takes about ``slices_per_lane`` slices, at most a wave."""
    slices = min(cols // slice_elements(s.format) for s in segments)
    return min(target.wave, power_of_two_below(max(1, slices // tuning.slices_per_lane)))


def lanes_per_key(head_length: int, target: Target) -> int:
    """Lanes that share a cached key: 8 elements (16 bytes of f16) each where the head length allows."""
    lanes = 1
    while lanes * 2 <= target.wave and head_length % (16 * lanes) == 0:
        lanes *= 2
    return lanes


def matvec_grid(params: MatvecParams, target: Target) -> int:
    """Blocks of a matvec launch."""
    groups_per_block = max(1, params.block // params.lanes_per_row)
    groups = -(-params.out_rows // params.rows_per_group)
    return grid_blocks(-(-groups // groups_per_block), target)


def matmul_grid(params: MatmulParams, chunk: int, target: Target) -> int:
    """Blocks of a prefill product of up to ``chunk`` rows."""
    tiles = -(-chunk // params.tile_rows) * -(-params.out_rows // params.tile_cols)
    return grid_blocks(tiles, target, blocks_per_unit=8)
