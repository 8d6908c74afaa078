"""``forgec bench``: prompt and generation speed of a package, beside its memory-bandwidth limit.

The measuring is done by the package's own runtime (``python PACKAGE --bench`` works where forgec is not
installed); this command adds options and an account.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from forgec.errors import UsageError
from forgec.package.loader import loaded

__all__ = ["command"]


def _contexts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """``0,4096`` as numbers."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise UsageError(f"--contexts is '{value}', expected numbers such as 0,4096", "Separate by commas.")
    return numbers


@click.command("bench")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--contexts", default="0,4096,16384", show_default=True, callback=_contexts,
              help="Tokens in the cache before generation is timed; what fits is measured.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens to generate.")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Prompt in tokens.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Repetitions.")
@click.option("--stages/--no-stages", default=True, show_default=True, help="Device time of every stage.")
@click.option("--device", help="Device, as for the package.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    package: Path,
    contexts: tuple[int, ...],
    tokens: int,
    prompt: int,
    repeat: int,
    stages: bool,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure prompt and generation speed of PACKAGE.

    Greedy sampling, medians over repetitions. The bandwidth is what this machine reaches in a copy (a CPU: in
    a read). The time of a stage comes from timestamps around each launch, without the graph; that of a step
    of a persistent kernel from clocks that a second kernel stamps, on NVIDIA.

    \b
    Example:
      forgec bench build/model-gfx1100 --contexts 0,4096
    """
    with loaded(package, device, threads) as model:
        # The package's own modules: whatever version of the runtime it was written with.
        measure = importlib.import_module(f"{sys.modules[type(model).__module__].__package__}.measure")
        report = measure.measure(
            model, contexts=contexts, tokens=tokens, prompt=prompt, repeat=repeat, stages=stages
        )
    click.echo(report.to_json() if as_json else measure.report_text(report))
