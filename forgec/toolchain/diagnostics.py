"""Turns a failed compiler command into one ``ToolchainError`` that a reader can act on.

In comes a ``Finished`` command, out goes nothing when it succeeded and an exception otherwise: what failed,
where in the rendered source, and the compiler's own first lines. The compiler is never run again here.
"""

from __future__ import annotations

import re
import signal

from forgec.errors import ToolchainError
from forgec.toolchain.process import Finished

__all__ = ["check_finished"]

_LOCATED = re.compile(
    r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?P<column>\d+): (?:fatal )?error: (?P<text>.*)$"
)
_UNDEFINED = re.compile(r"error: undefined (?:hidden |protected )?symbol: (?P<symbol>.*)$", re.MULTILINE)
_SUMMARY = re.compile(r"^\d+ (?:errors?|warnings?)\b.* generated")
_CRASH = re.compile(
    r"PLEASE submit a bug report|^Stack dump:|LLVM ERROR:|fatal error: error in backend", re.MULTILINE
)
_CRASH_STEP = re.compile(r"\d+\.\s|LLVM ERROR:|fatal error:")
_SHOWN_ERRORS = 3
_SHOWN_LINES = 12


def check_finished(finished: Finished, what: str) -> None:
    """Raise unless ``finished`` ended well; ``what`` names the step, as in ``"compiling 'norm' for
    gfx1100"``.

    Raises: ToolchainError.
    """
    if finished.timed_out:
        raise ToolchainError(
            f"{what} did not finish within {finished.seconds:.0f} s", "raise the time limit or split the unit"
        )
    if finished.returncode == 0:
        return
    crash = _crash_reason(finished)
    if crash:
        raise ToolchainError(f"{what} failed: {crash}", _crash_excerpt(finished.stderr))
    undefined = _UNDEFINED.search(finished.stderr)
    if undefined:
        raise ToolchainError(
            f"{what} failed: '{undefined['symbol'].strip()}' is used but nowhere defined",
            "device code is freestanding: define the function in the unit or use a compiler builtin",
        )
    errors = [match for line in finished.stderr.splitlines() if (match := _LOCATED.match(line))]
    if errors:
        first = errors[0]
        raise ToolchainError(
            f"{what} failed at {first['file']}:{first['line']}:{first['column']}: {first['text']}",
            _first_errors(finished.stderr),
        )
    raise ToolchainError(
        f"{what} failed with exit code {finished.returncode}",
        _excerpt(finished.stderr or finished.stdout, _SHOWN_LINES) or "the compiler printed nothing",
    )


def _crash_reason(finished: Finished) -> str:
    """Why the compiler died, when it did not simply reject the source; ``""`` otherwise."""
    code = finished.returncode
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if number == signal.SIGKILL:
            return "the compiler was killed (SIGKILL), most often because memory ran out"
        return f"the compiler crashed ({name})"
    if _CRASH.search(finished.stderr):
        return f"the compiler crashed (exit code {code})"
    return ""


def _first_errors(stderr: str) -> str:
    """The first errors with the source lines that clang prints below each."""
    kept: list[str] = []
    seen = 0
    for line in stderr.splitlines():
        if _LOCATED.match(line):
            seen += 1
            if seen > _SHOWN_ERRORS:
                break
        if seen and not _SUMMARY.match(line):
            kept.append(line.rstrip())
    return "\n".join(kept[: _SHOWN_ERRORS * 4])


def _crash_excerpt(stderr: str) -> str:
    """What LLVM was doing: its fatal error and the numbered steps, without command line and addresses."""
    lines = [line.strip() for line in stderr.splitlines()]
    steps = [line for line in lines if _CRASH_STEP.match(line) and "Program arguments:" not in line]
    return "\n".join(steps[:_SHOWN_LINES])


def _excerpt(text: str, lines: int) -> str:
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][:lines])
