"""A folder of candidate kernels: which kernel of a package each could replace, and how it is launched.

Written where the compiler is, read where the device is; needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from forgec.errors import PackageError
from forgec.plan.tuning import Tuning

__all__ = ["Candidate", "Group", "read_candidates", "write_file", "write_groups"]

FILE = "candidates.json"


@dataclass(frozen=True)
class Candidate:
    """A geometry of one kernel: the row of the table that it would be, its symbol, file and launch."""

    tuning: Tuning
    symbol: str
    file: str
    block: int
    grid: int


@dataclass(frozen=True)
class Group:
    """A kernel of the package and what could take its place; the first candidate is what the table has now.

    ``kernel`` indexes the manifest's kernels, ``launches`` the launches of its decode sequence.
    ``weight_bytes``: of all of them together.
    """

    kernel: int
    launches: tuple[int, ...]
    weight_bytes: int
    candidates: tuple[Candidate, ...]


def write_groups(folder: Path, groups: Sequence[Group]) -> None:
    """Write what ``read_candidates`` reads."""
    text = json.dumps([asdict(group) for group in groups], indent=1) + "\n"
    write_file(folder / FILE, text.encode())


def write_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def read_candidates(folder: Path) -> tuple[Group, ...]:
    """What ``prepare`` wrote. Raises PackageError."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Group(
                group["kernel"],
                tuple(group["launches"]),
                group["weight_bytes"],
                tuple(
                    Candidate(**{**entry, "tuning": Tuning(**entry["tuning"])})
                    for entry in group["candidates"]
                ),
            )
            for group in data
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(
            f"'{folder}' holds no candidates: {error}", "Make them with 'forgec tune PACKAGE --prepare'."
        ) from error
