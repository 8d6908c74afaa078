"""``forgec tune``: time launch geometries of a package's kernels on the device and keep the best."""

from __future__ import annotations

import datetime
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from forgec.config import load_config
from forgec.package.loader import loaded, read_manifest
from forgec.plan.tuning import tuning_file
from forgec.toolchain import open_cache
from forgec.tune.candidates import prepare
from forgec.tune.groups import read_candidates
from forgec.tune.measure import time_groups
from forgec.tune.table import result_text, write_table

__all__ = ["command"]


@click.command("tune")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--prepare", "prepared", type=click.Path(path_type=Path), metavar="D",
              help="Only compile the candidates into D, for a machine without a compiler.")  # fmt: skip
@click.option("--candidates", type=click.Path(path_type=Path), metavar="D",
              help="Time what --prepare compiled into D; needs no compiler.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Table to write; without it the one that compilations read.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Repetitions.")
@click.option("--device", help="Device, as for the package.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--toolchain", type=click.Choice(["auto", "hipcc", "zig"]), default="auto", show_default=True,
              help="As for compile.")  # fmt: skip
def command(
    package: Path,
    prepared: Path | None,
    candidates: Path | None,
    output: Path | None,
    repeat: int,
    device: str | None,
    threads: int | None,
    toolchain: str,
) -> None:
    """Find the launch geometry of PACKAGE's matrix-vector kernels by measurement.

    Every candidate runs through all layers on weights that are not in the cache. The best of each kernel goes
    into the tuning table with device and date; later compilations for the target use it.

    \b
    Example:
      forgec tune build/model-gfx1100
    """
    manifest = read_manifest(package)
    target = manifest["target"]["name"]
    with ExitStack() as stack:
        if candidates is None:
            cache, _ = open_cache(load_config())
            folder = prepared or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgec-tune-")))
            groups = prepare(manifest, folder, toolchain=toolchain, cache=cache)
        else:
            folder, groups = candidates, read_candidates(candidates)
        count = sum(len(group.candidates) for group in groups)
        if prepared is not None:
            click.echo(f"{prepared}: {count} candidates of {len(groups)} kernels for {target}")
            return
        with loaded(package, device, threads) as model:
            timed = time_groups(model, groups, folder, repeat=repeat)
            name = model.engine.driver.describe().name
    click.echo(result_text(timed))
    path = output or tuning_file(target)
    write_table(path, timed, target, name, datetime.date.today().isoformat(), manifest["model"]["name"])
    click.echo(f"{path}: {len(timed)} rows measured on {name}")
