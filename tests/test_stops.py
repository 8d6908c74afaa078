"""Stop strings in streamed text: the outcome depends neither on the cut nor on anything held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.stops import StopMatcher

SHORT = st.text(alphabet="ab\n", min_size=1, max_size=4)
PIECES = st.lists(st.text(alphabet="ab\nc", max_size=5), max_size=8)


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Character by character: the first position where any stop string is complete, the longest of those."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        assert stopped == (matcher.stopped is not None)
        if stopped:
            break
    shown.append(matcher.flush())
    return "".join(shown), matcher.stopped, shown


@settings(deadline=None)
@given(stops=st.lists(SHORT, max_size=4), pieces=PIECES)
def test_outcome_is_that_of_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    shown, stopped, _ = run(stops, pieces)
    assert (shown, stopped) == expected(stops, "".join(pieces))


@settings(deadline=None)
@given(stops=st.lists(SHORT, min_size=1, max_size=4), pieces=PIECES)
def test_no_more_is_held_back_than_necessary(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    whole = shown = ""
    for piece in pieces:
        whole += piece
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            break
        held = whole[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_stop_string_across_pieces_is_never_shown() -> None:
    assert run(["</answer>"], ["42</", "ans", "wer> more"]) == ("42", "</answer>", ["42", "", "", ""])


def test_text_that_only_looked_like_a_stop_is_shown_later() -> None:
    assert run(["</answer>"], ["42</", "b>"]) == ("42</b>", None, ["42", "</b>", ""])


def test_held_text_is_shown_at_the_end() -> None:
    assert run(["\n\n"], ["line\n"]) == ("line\n", None, ["line", "\n"])


def test_nothing_is_emitted_after_a_stop() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == ("a", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_through() -> None:
    matcher = StopMatcher()
    assert matcher.push("any") == ("any", False)
    assert matcher.flush() == ""


def test_one_string_is_one_stop_string() -> None:
    assert StopMatcher("ab").push("xaby") == ("x", True)


@pytest.mark.parametrize("stop", ["", 3, None])
def test_empty_and_other_values_are_refused(stop: object) -> None:
    with pytest.raises(UsageError, match=r"expected a text that is not empty"):
        StopMatcher([stop])  # type: ignore[list-item]
