"""Launch geometry as data: how many lanes share a row, how many rows a group takes, how many blocks.

Rows are keyed by (stage, format, target) and carry the device and date of their measurement, or
``unmeasured``; the first row that matches wins. Nothing here renders or launches.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.targets import Target

__all__ = ["TUNING", "Tuning", "attention_splits", "grid_blocks", "lookup"]


@dataclass(frozen=True)
class Tuning:
    """One row of the table; "*" matches everything. ``measured`` is "device, date" or "unmeasured"."""

    stage: str
    format: str
    target: str
    block: int  # threads of a block, 0: the target's default
    rows_per_group: int
    slices_per_lane: int  # aim: slices of a row that one lane takes before lanes are added
    tile_rows: int = 0
    tile_cols: int = 0
    measured: str = "unmeasured"


TUNING: tuple[Tuning, ...] = (
    Tuning("matvec", "*", "cpu", 1, 8, 1),
    Tuning("matvec", "f32", "*", 0, 2, 4),
    Tuning("matvec", "*", "*", 0, 2, 2),
    Tuning("matmul", "*", "cpu", 1, 1, 1, tile_rows=128, tile_cols=64),
    Tuning("matmul", "*", "*", 256, 1, 1, tile_rows=64, tile_cols=64),
    Tuning("expert_matmul", "*", "cpu", 1, 1, 1, tile_rows=16, tile_cols=64),
    Tuning("expert_matmul", "*", "*", 256, 1, 1, tile_rows=64, tile_cols=64),
    Tuning("expert_up", "*", "cpu", 1, 4, 1),
    Tuning("expert_up", "*", "*", 0, 2, 2),
    Tuning("expert_down", "*", "cpu", 1, 4, 1),
    Tuning("expert_down", "*", "*", 0, 2, 2),
    Tuning("head_matvec", "*", "*", 0, 2, 2),
    Tuning("attention", "*", "cpu", 1, 1, 1, tile_rows=32, tile_cols=64, measured="EPYC 9005, 2026-11-22"),
    Tuning("attention", "*", "nvptx", 0, 1, 1, tile_rows=32, tile_cols=128, measured="H100, 2026-11-22"),
    Tuning("attention", "*", "*", 0, 1, 1, tile_rows=32, tile_cols=128),
    Tuning("*", "*", "*", 0, 1, 1),
)


def lookup(stage: str, format: str, target: Target) -> Tuning:
    """The first row for this stage, format and target (by name, by family, or any)."""
    return next(
        row
        for row in TUNING
        if row.stage in (stage, "*")
        and row.format in (format, "*")
        and row.target in (target.name, target.family, "*")
    )


def grid_blocks(work: int, target: Target, blocks_per_unit: int = 4) -> int:
    """Blocks for ``work`` independent items: one each, up to ``blocks_per_unit`` per compute unit.

    The CPU driver runs every launch with as many blocks as it has threads, so its grid is 1.
    """
    if target.wave == 1:
        return 1
    return max(1, min(work, target.compute_units * blocks_per_unit))


def attention_splits(kv_heads: int, context: int, target: Target) -> int:
    """Ways to split the keys of one decode step: enough blocks to fill the chip, at least 64 keys each."""
    if target.wave == 1:
        return 4 if kv_heads % 2 else 2
    wanted = max(1, target.compute_units // kv_heads)
    return max(1, min(wanted, context // 64, 64))
