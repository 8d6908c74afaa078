"""Where every temporary of a step lives: one arena, offsets by liveness, decided before anything runs.

Requests come in with first and last use on a timeline of launches; offsets go out. The allocator knows
nothing of kernels or targets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Request", "align", "plan_arena"]

#: Every temporary and every weight plane starts on a 256-byte boundary: a whole number of cache lines.
ALIGNMENT = 256


def align(size: int, to: int = ALIGNMENT) -> int:
    """``size`` rounded up to a multiple of ``to``, both in bytes."""
    return -(-size // to) * to


@dataclass(frozen=True)
class Request:
    """A temporary of ``bytes`` bytes, alive on launches ``first`` to ``last`` inclusive."""

    name: str
    bytes: int
    first: int
    last: int

    def overlaps(self, other: Request) -> bool:
        return self.first <= other.last and other.first <= self.last


def plan_arena(requests: Iterable[Request]) -> tuple[dict[str, int], int]:
    """Byte offset of every request and the arena's size.

    Greedy by size (largest first, then name): each request takes the lowest aligned gap among the placed
    requests it overlaps in time. Deterministic; within a few per cent of optimal on layered graphs.
    """
    placed: list[tuple[Request, int]] = []
    offsets: dict[str, int] = {}
    total = 0
    for request in sorted(requests, key=lambda r: (-r.bytes, r.first, r.name)):
        busy = sorted((at, at + r.bytes) for r, at in placed if r.overlaps(request))
        at = 0
        for start, end in busy:
            if at + request.bytes <= start:
                break
            at = max(at, align(end))
        placed.append((request, at))
        offsets[request.name] = at
        total = max(total, at + request.bytes)
    return offsets, align(total)
