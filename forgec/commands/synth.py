"""``forgec synth``: a GGUF file of a real model's shape with random weights, for benchmarks and tests."""

from __future__ import annotations

import time
from pathlib import Path

import click

from forgec.package.output import check_file
from forgec.synth.mixes import MIXES
from forgec.synth.shapes import SHAPES, find_shape
from forgec.synth.write import write_model

__all__ = ["command"]


@click.command("synth", epilog=f"Shapes: {', '.join(SHAPES)}.")
@click.argument("shape")
@click.option("--quant", type=click.Choice(list(MIXES), case_sensitive=False), default="Q4_K_M",
              show_default=True, help="Quantisation mix, as llama.cpp makes it.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.")
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Only N layers.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds, equal files."
)
@click.option("--sparse", is_flag=True,
              help="Leave a hole for the matrices: enough for compile --no-weights and inspect.")  # fmt: skip
def command(shape: str, quant: str, output: Path | None, layers: int | None, seed: int, sparse: bool) -> None:
    """Write a valid GGUF file with the shape of a published model and random weights.

    \b
    Example:
      forgec synth Llama-3.2-1B --quant Q4_K_M -o build/llama-1b.gguf
    """
    found = find_shape(shape)
    path = output or Path("build") / f"{found.name}-{quant}{'-sparse' if sparse else ''}.gguf"
    check_file(path)
    start = time.perf_counter()
    size = write_model(path, found, quant, layers=layers, seed=seed, sparse=sparse)
    seconds = time.perf_counter() - start
    rate = "" if sparse else f", {size / seconds / 1e6:,.0f} MB/s"
    click.echo(f"{path}: {found.name} {quant}, {size / 2**20:,.1f} MiB in {seconds:.1f} s{rate}")
