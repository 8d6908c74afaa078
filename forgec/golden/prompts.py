"""The default prompts of a golden file: short, long, code, non-ASCII, numbers, chat."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROMPTS", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """Raw text to complete, or with ``chat`` a user message for the model's chat template."""

    name: str
    text: str
    chat: bool = False


_STORY = (
    "The lighthouse keeper wrote in her journal every evening. On day {n} the wind came from the {wind}, "
    "the sea was {sea}, and {ships} ships passed before dark. She noted the hour of each, trimmed the lamp, "
    "and went to bed with the window open. "
)
_WINDS = ("north", "east", "south", "west", "north-east", "south-west")
_SEAS = ("calm", "rough", "grey and slow", "bright", "loud against the rocks")


def _journal(days: int) -> str:
    """A long text of repeating form and changing detail; a model has to look far back to continue it."""
    entries = (
        _STORY.format(n=n, wind=_WINDS[n % 6], sea=_SEAS[n % 5], ships=(n * 7) % 11)
        for n in range(1, days + 1)
    )
    return "".join(entries) + f"On day {days + 1} the wind came from the"


PROMPTS: tuple[Prompt, ...] = (
    Prompt("one-word", "Hello"),
    Prompt("short", "The capital of France is"),
    Prompt("story", "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who"),
    Prompt(
        "code",
        'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n'
        "    if n < 2:\n        return n\n",
    ),
    Prompt(
        "non-ascii",
        "Élève: «Où est la bibliothèque?» — 東京は日本の首都です。Привет, мир! 🌍 Das Mädchen läuft über",
    ),
    Prompt("numbers", "1, 2, 4, 8, 16, 32, 64, 128, 256,"),
    Prompt("long", _journal(24)),
    Prompt("chat", "Explain in two sentences why the sky is blue.", chat=True),
    Prompt("chat-code", "Write a Python function that reverses a string.", chat=True),
)
