"""The command line: one group, one module of ``forgec.commands`` per command, one way to report an error.

Every error is one sentence and a hint on standard error and an exit code; ``--debug`` shows the traceback.
Commands are imported only when they are called, so ``forgec --help`` stays quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType

import click

import forgec
from forgec.config import configure_logging, load_config
from forgec.errors import ForgeError, GGUFError, UnsupportedModelError, UsageError, VerifyError

__all__ = ["cli", "main", "print_error", "run"]

#: Command name -> (module of forgec.commands, one-line help for the overview).
COMMANDS: Mapping[str, tuple[str, str]] = {
    "compile": ("compile", "Compile a GGUF file into a package for one chip."),
    "run": ("run", "Generate text with a compiled package."),
    "inspect": ("inspect", "Say what a GGUF file is, whether it compiles, and what memory it needs."),
    "graph": ("graph", "Draw the layer graph before and after fusion."),
    "targets": ("targets", "List the chips that forgec compiles for."),
    "doctor": ("doctor", "Check compilers, drivers and caches on this machine."),
    "report": ("report", "Registers, occupancy, instruction mix and roofline time of every kernel."),
    "bench": ("bench", "Measure prompt and generation speed of a package."),
    "tune": ("tune", "Find launch geometries by measurement on the device."),
    "synth": ("synth", "Write a GGUF file of a real model's shape with random weights."),
    "golden": ("golden", "Record and check greedy tokens and logits."),
}

#: What to do about errors that come without advice of their own.
DEFAULT_HINTS: Mapping[type[ForgeError], str] = {
    GGUFError: "The file is damaged or incomplete: fetch or convert it again.",
    UnsupportedModelError: "'forgec inspect' shows everything that stands in the way.",
    VerifyError: "This is a defect of forgec; run again with --debug and report the traceback.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"forgec.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise UsageError(
                f"no command '{args[0]}'" if args else error.message, f"commands: {', '.join(COMMANDS)}"
            ) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(forgec.__version__, prog_name="forgec")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile language models ahead of time: one GGUF file in, one package for one chip out.

    \b
    Example:
      forgec compile model.gguf --arch gfx1100 -o build/model-gfx1100
      python build/model-gfx1100 "Once upon a time"
    """


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script ``forgec``."""
    # Ending politely lets every temporary folder be removed, as on Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has the hang-up ignored, and means it
            signal.signal(number, _terminate)
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        # A terminal that cannot show a character shows a stand-in; it is no reason to fail.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(argv: list[str]) -> int:
    """Run the command line and return its exit code; nothing but ``--debug`` shows a traceback."""
    debug = "--debug" in argv
    try:
        config = load_config()
        debug = debug or config.debug > 0
        configure_logging(config.debug)
        # Not click's main(): it would end a closed pipe and Ctrl-C in its own way.
        with cli.make_context("forgec", list(argv)) as context:
            cli.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except Exception as error:
        if debug and not isinstance(error, click.ClickException):
            raise
        return _report(error)


def print_error(message: str, hint: str = "") -> None:
    """The one form in which every error of forgec appears: on standard error, its hint below it."""
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def _report(error: Exception) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, ForgeError):
        print_error(error.message, error.hint or DEFAULT_HINTS.get(type(error), ""))
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError):
        place = error.ctx.command_path if error.ctx is not None else "forgec"
        print_error(error.format_message(), f"'{place} --help' lists arguments and options")
        return error.exit_code
    if isinstance(error, click.ClickException):
        print_error(error.format_message())
        return error.exit_code
    if isinstance(error, MemoryError):
        print_error("this machine ran out of memory")
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        # Commands name their own files; what is left is standard output on a full disk and its like.
        place = f"'{error.filename}'" if error.filename else "the output"
        print_error(f"{place} cannot be read or written: {error.strerror}")
        _discard_output()
        return 1
    print_error(
        f"internal error: {type(error).__name__}: {error}",
        "this is a defect of forgec; run again with --debug and report the traceback",
    )
    return 70


def _discard_output() -> None:
    """Python flushes standard output once more at exit: give it somewhere to go."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
