"""The file of measured geometries: what was there and what has just been measured, together.

Timed groups go in, one JSON file a target comes out, which ``plan.tuning`` reads at the next compilation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from forgec.errors import UsageError
from forgec.package.output import write_text
from forgec.tune.measure import Timed

__all__ = ["result_text", "write_table"]


def write_table(
    path: Path, timed: Sequence[Timed], target: str, device: str, date: str, package: str
) -> None:
    """Put the best geometry of every group into the table at ``path``; rows of other keys stay."""
    rows = {_key(row): row for row in _existing(path)}
    for entry in timed:
        row = _row(entry, target, f"{device}, {date}", package)
        rows[_key(row)] = row
    data = {"target": target, "rows": [rows[key] for key in sorted(rows)]}
    write_text(path, json.dumps(data, indent=1) + "\n")


def _existing(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{path}' is no tuning table: {error}", "Choose another file with -o.") from error


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    tuning = row["tuning"]
    return tuning["stage"], tuning["format"], tuning["shape"]


def _row(timed: Timed, target: str, measured: str, package: str) -> dict[str, Any]:
    """A row of the table with what it was compared with; microseconds of one launch."""
    best = timed.group.candidates[timed.best].tuning
    tuning = replace(best, target=target, measured=measured)
    return {
        "tuning": asdict(tuning),
        "microseconds": round(1e6 * timed.seconds[timed.best], 2),
        "before": round(1e6 * timed.seconds[0], 2),
        "candidates": len(timed.seconds),
        "package": package,
    }


def result_text(timed: Sequence[Timed]) -> str:
    """One line a group: seconds now and at best, and the geometry of the best."""
    lines = []
    for entry in timed:
        before, after = entry.seconds[0], entry.seconds[entry.best]
        rate = entry.group.weight_bytes / len(entry.group.launches) / after / 1e9
        best = entry.group.candidates[entry.best]
        lines.append(
            f"{entry.group.candidates[0].symbol}: {1e6 * before:.1f} us -> {1e6 * after:.1f} us "
            f"({before / after:.2f} x, {rate:,.0f} GB/s) with block {best.block}, grid {best.grid}, "
            f"{best.tuning.rows_per_group} rows a group, {best.tuning.slices_per_lane} slices a lane"
        )
    return "\n".join(lines)
