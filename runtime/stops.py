"""Finds stop strings in text that arrives piece by piece.

Decoded text comes in as it is generated; text that is certain not to belong to a stop string goes out. It
never emits any part of a stop string, and holds back no more than the longest stop string less one character.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import UsageError

__all__ = ["StopMatcher"]


class StopMatcher:
    """Watches one stream of text for the first occurrence of any of ``stop_strings``.

    The stop string that is complete first wins; of two that end together, the longer one. The outcome does
    not depend on how the text was cut into pieces. ``stopped`` is the matched stop string, or None so far.

    Raises: UsageError if a stop string is empty or not a string.
    """

    def __init__(self, stop_strings: Iterable[str] = ()) -> None:
        if isinstance(stop_strings, str):
            stop_strings = (stop_strings,)
        self._stops = tuple(dict.fromkeys(stop_strings))
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise UsageError(f"a stop string is {stop!r}, expected a text that is not empty")
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return what may be shown now, and whether a stop string was completed.

        After a stop nothing more is emitted.
        """
        if self.stopped is not None:
            return "", True
        self._held += text
        match = self._first_match()
        if match is not None:
            start, self.stopped = match
            emitted, self._held = self._held[:start], ""
            return emitted, True
        keep = self._undecided()
        emitted, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return emitted, False

    def flush(self) -> str:
        """The text still held back, when the stream ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        """Start and text of the stop string that ends first (on a tie, begins first) in the held text."""
        found = [
            (start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0
        ]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _undecided(self) -> int:
        """Length in characters of the longest tail that may still become a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
