"""Streams, events, captures and graphs: work is queued, and runs only when somebody waits for it.

A GPU may run queued work at any time after the call; running it as late as possible shows a host that reads a
result, or reuses a buffer, without waiting. Nothing here knows what an action does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from forgec.emulator.hip.constants import CaptureMode

__all__ = ["Action", "Capture", "Event", "Graph", "GraphExec", "Record", "Stream"]

Action = Callable[[], None]

# More waiting work than this is begun, so that a program that never waits does not fill the memory.
_LONGEST_QUEUE = 4096


@dataclass(frozen=True)
class Capture:
    """What a capturing stream has recorded; ``thread`` began it. ``invalid`` is not empty once a call
    broke it.
    """

    mode: CaptureMode
    thread: int
    actions: list[Action] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)


class Stream:
    """An in-order queue. ``blocking`` streams wait for the null stream, and it for them."""

    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking
        self.capture: Capture | None = None
        self.queued = 0
        self.done = 0
        self._waiting: deque[tuple[Action, tuple[tuple[Stream, int], ...]]] = deque()

    def push(self, action: Action, after: tuple[tuple[Stream, int], ...] = ()) -> int:
        """Queue ``action`` behind the ``after`` positions of other streams; returns its own position."""
        self._waiting.append((action, after))
        self.queued += 1
        if len(self._waiting) > _LONGEST_QUEUE:
            self.run_until(self.queued - _LONGEST_QUEUE // 2)
        return self.queued

    def run_until(self, position: int) -> None:
        """Run everything up to ``position``; an action's exception ends it there."""
        while self.done < min(position, self.queued):
            action, after = self._waiting.popleft()
            self.done += 1
            for stream, at in after:
                stream.run_until(at)
            action()

    def run(self) -> None:
        self.run_until(self.queued)

    def drop(self) -> None:
        """Forget what has not run, as a lost device does."""
        self._waiting.clear()
        self.done = self.queued


@dataclass
class Record:
    """One recording of an event: a position of a stream, and the time at which it was reached (seconds)."""

    stream: Stream
    position: int = 0
    time: float | None = None

    def reach(self) -> None:
        self.time = time.perf_counter()


@dataclass
class Event:
    """``record`` is the last recording, ``capture`` the capture it lies in instead."""

    timing: bool
    record: Record | None = None
    capture: Capture | None = None


@dataclass(frozen=True)
class Graph:
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class GraphExec:
    actions: tuple[Action, ...]
