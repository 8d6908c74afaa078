"""``forgec run``: hand the command line over to a package's own ``__main__``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from forgec.package.loader import package_path

__all__ = ["command"]


@click.command("run", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("package", type=click.Path(path_type=Path), required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, package: Path | None, arguments: tuple[str, ...]) -> None:
    """Generate text with PACKAGE; everything behind it goes to the package itself.

    \b
    Example:
      forgec run build/model-gfx1100 "Once upon a time" --max-tokens 64
      forgec run build/model-gfx1100 --help
    """
    if package is None:
        raise click.UsageError("Missing argument 'PACKAGE'.", ctx)
    if str(package) in ("-h", "--help"):
        click.echo(ctx.get_help())
        return
    path = package_path(package)
    # In place of this process, not below it: Ctrl-C belongs to the package, which cuts an answer short.
    os.execv(sys.executable, [sys.executable, str(path), *arguments])
