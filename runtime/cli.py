"""The command line of a package: arguments in, streamed text or one JSON object out.

Every failure is one line and a hint on standard error and an exit code; a traceback only with ``--debug``.
All the work is done by the Python API of the package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import load
from .errors import ForgeRuntimeError, UsageError
from .generate import DEFAULT_MAX_TOKENS, Model, Result, Stream

__all__ = ["build_parser", "main"]

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

_EXAMPLES = """examples:
  {prog} "Once upon a time"
  {prog} --chat "Why is the sky blue?" --temperature 0.7 --top-p 0.9 --seed 1
  {prog} --chat
  {prog} "The capital of France is" --max-tokens 8 --json
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other error: one line and a hint."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"'{self.prog} --help' lists all options")


def _text(argument: str) -> str:
    """An argument's bytes as UTF-8, whatever the locale; what is none becomes U+FFFD."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _numbers(argument: str) -> tuple[int, ...]:
    """``0,4096`` as numbers. Raises: ArgumentTypeError."""
    parts = argument.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"'{argument}' is no list of numbers such as 0,4096")
    return tuple(int(part) for part in parts)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser; ``prog`` is how the user calls the package."""
    parser = _Parser(
        prog=prog,
        description="Run the language model in this folder.",
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompt", nargs="?", type=_text, help="text to complete; '-' reads standard input")
    parser.add_argument(
        "--chat", nargs="?", const="", type=_text, metavar="MESSAGE",
        help="answer MESSAGE through the model's chat template; without a message, talk interactively",
    )  # fmt: skip
    parser.add_argument("--system", type=_text, metavar="TEXT", help="system message of a chat")
    parser.add_argument(
        "--suffix", type=_text, metavar="TEXT", help="write what belongs between the prompt and TEXT"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): greedy")
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="the K likeliest tokens; 0: all")
    sampling.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="the likeliest of mass P; 1: all"
    )
    sampling.add_argument(
        "--seed", type=int, default=0, metavar="N", help="equal seeds, equal text (default 0)"
    )
    ending = parser.add_argument_group("ending")
    ending.add_argument(
        "--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, metavar="N",
        help="at most N tokens (default %(default)s); 0: until the context is full",
    )  # fmt: skip
    ending.add_argument("--ignore-eos", action="store_true", help="go on after the model's end token")
    ending.add_argument(
        "--stop", action="append", default=[], type=_text, metavar="TEXT",
        help="end before TEXT (repeat for more)",
    )  # fmt: skip
    device = parser.add_argument_group("device")
    device.add_argument("--device", metavar="NAME", help="cpu, hip, cuda:1, emulated…")
    device.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    device.add_argument("--no-verify", action="store_true", help="do not check the files' digests")
    bench = parser.add_argument_group("measuring")
    bench.add_argument("--bench", action="store_true", help="measure speed instead of making text")
    bench.add_argument(
        "--contexts", type=_numbers, metavar="N,N", help="lengths of context to measure at (0,4096,16384)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None, package: Path | None = None) -> int:
    """Run the command line and return the exit code. ``package``: the folder to load (None: this one)."""
    folder = Path(__file__).resolve().parent if package is None else package
    debug = False
    try:
        arguments = build_parser(f"python {folder.name}").parse_args(argv)
        debug = arguments.debug
        for stream in (sys.stdin, sys.stdout):
            with contextlib.suppress(AttributeError, ValueError):  # closed, or replaced, as by a test
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        _run(arguments, folder)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _EXIT_BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)
    return 0


def _discard_output() -> None:
    """Python flushes standard output once more at exit: give it somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _emit(text: str, end: str = "") -> None:
    """Write to standard output at once. Raises: UsageError when nobody can take it, BrokenPipeError."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise UsageError(f"the output cannot be written: {error.strerror}", "free some space") from error


def _report(error: Exception) -> int:
    """Print an error as one line and a hint; returns its exit code."""
    message, hint = getattr(error, "message", None), getattr(error, "hint", "")
    if message is None:
        # Not one of ours (a driver of forgec's may have classes of its own, with the same attributes).
        text = " ".join(str(error).split())
        message = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {text}"
        hint = "" if isinstance(error, MemoryError) else "this is a defect: --debug shows where it happened"
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return int(getattr(error, "exit_code", 1))


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    if arguments.bench:
        _bench(arguments, folder)
        return
    text, chat = _what_to_do(arguments)
    with load(folder, arguments.device, arguments.threads, not arguments.no_verify) as model:
        options = _options(arguments)
        if text is None:
            _converse(model, arguments.system, options)
            return
        if chat:
            stream = model.chat_stream(_conversation(arguments.system, text), **options)
        else:
            stream = model.stream(text, suffix=arguments.suffix, **options)
        if arguments.json:
            for _ in stream:
                pass
            _emit(json.dumps(stream.result.to_dict()), "\n")
        else:
            _show(stream)


def _bench(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure the package. Raises: UsageError beside a prompt."""
    from .measure import CONTEXTS, measure, report_text

    if arguments.prompt is not None or arguments.chat is not None:
        raise UsageError("--bench makes its own prompts", "leave the text out")
    with load(folder, arguments.device, arguments.threads, not arguments.no_verify) as model:
        report = measure(model, contexts=arguments.contexts or CONTEXTS)
    _emit(report.to_json() if arguments.json else report_text(report), "\n")


def _what_to_do(arguments: argparse.Namespace) -> tuple[str | None, bool]:
    """The text (None: an interactive chat), and whether it is a chat message. Raises: UsageError."""
    chat = arguments.chat is not None
    if arguments.system is not None and not chat:
        raise UsageError("--system is for a chat", "add --chat, or put the text into the prompt")
    if arguments.suffix is not None and chat:
        raise UsageError("--suffix is for completion, not for a chat", "leave out --chat or --suffix")
    if arguments.chat and arguments.prompt is not None:
        raise UsageError(
            "there is both a prompt and a message for --chat", "give one of them; quote a text with spaces"
        )
    text = arguments.chat or arguments.prompt
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if text is None and chat and terminal:
        if arguments.json:
            raise UsageError("--json prints one answer, not an interactive chat", "give --chat a message")
        return None, True
    if text == "-" or (text is None and not terminal):
        text = sys.stdin.read() if sys.stdin is not None else ""
    if not text:
        raise UsageError("the prompt is empty", 'give a text, as in: "Once upon a time" or --chat "Hello"')
    return text, chat


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.max_tokens < 0:
        raise UsageError(f"--max-tokens is {arguments.max_tokens}, expected 1 or more, or 0 for no limit")
    return {
        "max_tokens": arguments.max_tokens or None,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "stop": arguments.stop,
        "ignore_eos": arguments.ignore_eos,
    }


def _conversation(system: str | None, message: str) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": message}]


def _show(stream: Stream) -> Result:
    for piece in stream:
        _emit(piece)
    _emit("", "\n")
    return stream.result


def _converse(model: Model, system: str | None, options: dict[str, Any]) -> None:
    """Read messages and answer them until the input ends; Ctrl-C cuts an answer short."""
    print("An empty line or Ctrl-D ends the chat, /reset begins a new one.", file=sys.stderr)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing for input())
    messages = _conversation(system, "")[:-1]
    beginning = len(messages)
    while True:
        try:
            message = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        if not message:
            return
        if message == "/reset":
            del messages[beginning:]
            continue
        messages.append({"role": "user", "content": message})
        try:
            stream = model.chat_stream(messages, **options)
        except ForgeRuntimeError as error:
            messages.pop()
            _report(error)
            print("hint: /reset begins a new conversation", file=sys.stderr)
            continue
        messages.append({"role": "assistant", "content": _answer(stream)})


def _answer(stream: Stream) -> str:
    """Show one answer; Ctrl-C cuts it short."""
    try:
        return _show(stream).text
    except KeyboardInterrupt:
        stream.close()
        _emit("", "\n")
        return stream.result.text
