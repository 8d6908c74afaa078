"""The command line: one group, one module of ``forgec.commands`` per command, one way to report an error.

Errors of forgec print one sentence and a hint and exit with their own code; ``--debug`` shows the traceback.
Commands are imported only when they are called, so ``forgec --help`` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping

import click

import forgec
from forgec.config import configure_logging, load_config
from forgec.errors import ForgeError

__all__ = ["cli", "main"]

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
    "golden": ("golden", "Record and check greedy tokens and logits."),
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
            raise click.UsageError(f"{error.message} Commands: {', '.join(COMMANDS)}.", ctx) from error


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
    sys.exit(_run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    """Run the command line and return its exit code; nothing but ``--debug`` shows a traceback."""
    debug = "--debug" in argv
    try:
        config = load_config()
        debug = debug or config.debug > 0
        configure_logging(config.debug)
        result = cli.main(args=argv, prog_name="forgec", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ForgeError as error:
        if debug:
            raise
        click.echo(f"forgec: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("forgec: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        if debug:
            raise
        click.echo("forgec: this machine ran out of memory", err=True)
        return 1
    except Exception as error:
        if debug:
            raise
        click.echo(f"forgec: internal error: {type(error).__name__}: {error}", err=True)
        click.echo("  This is a defect of forgec; run again with --debug and report the traceback.", err=True)
        return 70
