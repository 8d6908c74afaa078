"""Launch geometry as data: how many lanes share a row, how many rows a group takes, how many blocks.

Rows are keyed by (stage, formats, shape class, target) and carry the device and date of their measurement, or
``unmeasured``. What ``forgec tune`` measured lies beside this file, one JSON file a target, and comes before
the rows below; the first that matches wins. Nothing here renders or launches.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgec.errors import VerifyError
from forgec.targets import Target

__all__ = [
    "TUNING",
    "Tuning",
    "attention_splits",
    "grid_blocks",
    "lookup",
    "measured_rows",
    "shape_class",
    "tuning_file",
]

#: Blocks of a launch for every compute unit, at most, unless a measurement says otherwise.
BLOCKS_PER_UNIT = 4


@dataclass(frozen=True)
class Tuning:
    """One row of the table; "*" matches everything. ``measured`` is "device, date" or "unmeasured".

    ``format``: the formats of a product's matrices, sorted, joined by "+". ``shape``: see ``shape_class``.
    """

    stage: str
    format: str
    target: str
    block: int  # threads of a block, 0: the target's default
    rows_per_group: int
    slices_per_lane: int  # aim: slices of a row that one lane takes before lanes are added
    tile_rows: int = 0
    tile_cols: int = 0
    shape: str = "*"
    blocks_per_unit: int = BLOCKS_PER_UNIT
    measured: str = "unmeasured"

    def matches(self, stage: str, format: str, shape: str, target: Target) -> bool:
        """Whether this row is for such a launch, on the target by name, by family, or on any."""
        return (
            self.stage in (stage, "*")
            and self.format in (format, "*")
            and self.shape in (shape, "*")
            and self.target in (target.name, target.family, "*")
        )


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
    Tuning("expert_down", "*", "*", 0, 2, 1),
    Tuning("head_matvec", "*", "*", 0, 2, 2),
    Tuning("attention", "*", "cpu", 1, 1, 1, tile_rows=32, tile_cols=64, measured="EPYC 9005, 2026-11-22"),
    Tuning("attention", "*", "nvptx", 0, 1, 1, tile_rows=32, tile_cols=128, measured="H100, 2026-11-22"),
    Tuning("attention", "*", "*", 0, 1, 1, tile_rows=32, tile_cols=128),
    Tuning("*", "*", "*", 0, 1, 1),
)


def tuning_file(target: str) -> Path:
    """Where the measured rows of a target lie."""
    return Path(__file__).with_name(f"{target}.json")


@functools.cache
def measured_rows(target: str) -> tuple[Tuning, ...]:
    """What was measured for a target; nothing where there is no file. Raises VerifyError for a broken one."""
    path = tuning_file(target)
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Tuning(**row["tuning"]) for row in data["rows"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(f"'{path}' is no tuning table: {error}") from error


def lookup(stage: str, format: str, target: Target, shape: str = "*") -> Tuning:
    """The first row for a launch, measured rows first."""
    rows = (*measured_rows(target.name), *TUNING)
    return next(row for row in rows if row.matches(stage, format, shape, target))


def shape_class(epilogue: str, rows: int, cols: int) -> str:
    """The class of a product: its epilogue, and rows and columns rounded up to powers of two."""
    return f"{epilogue}_{1 << (rows - 1).bit_length()}x{1 << (cols - 1).bit_length()}"


def grid_blocks(work: int, target: Target, blocks_per_unit: int = BLOCKS_PER_UNIT) -> int:
    """Blocks for ``work`` independent items: one each, up to ``blocks_per_unit`` per compute unit.

    The CPU driver runs every launch with as many blocks as it has threads, so its grid is 1.
    """
    if target.wave == 1:
        return 1
    return max(1, min(work, target.compute_units * blocks_per_unit))


#: Most parts of the keys of one decode step: the last block of a KV head reads them all.
MOST_SPLITS = 128


def attention_splits(kv_heads: int, keys: int, target: Target) -> int:
    """Most ways to split up to ``keys`` keys of one decode step; how many are used is decided on the device.

    Two blocks for every compute unit, at least 64 keys each.
    """
    if target.wave == 1:
        return 4 if kv_heads % 2 else 2
    wanted = max(1, 2 * target.compute_units // kv_heads)
    return max(1, min(wanted, -(-keys // 64), MOST_SPLITS))
