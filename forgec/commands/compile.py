"""``forgec compile``: options in, a package and a short account of it out."""

from __future__ import annotations

import re
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from forgec.compiler import Compiled, compile_model
from forgec.config import load_config
from forgec.errors import UsageError
from forgec.plan.lower import SCHEDULES
from forgec.plan.program import CompileOptions, Program
from forgec.plan.stages.cache import KV_TYPES
from forgec.quantise import QUANTISABLE, WeightOptions, parse_adapter
from forgec.toolchain import open_cache

__all__ = ["command", "default_output"]


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", required=True, metavar="A", help="Target chip, e.g. gfx1100; see 'forgec targets'.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Package folder to write.")
@click.option("--math", type=click.Choice(["fast", "exact"]), default="fast", show_default=True,
              help="fast: int8 activations; exact: float32 activations.")  # fmt: skip
@click.option("--ctx", type=click.IntRange(min=1), metavar="N", help="Context length in tokens.")
@click.option("--kv", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="KV cache.")
@click.option("--quantize", type=click.Choice(QUANTISABLE, case_sensitive=False), metavar="TYPE",
              help=f"Requantise float matrices: {', '.join(QUANTISABLE)}.")  # fmt: skip
@click.option("--requantize", is_flag=True, help="Let --quantize change quantised matrices too.")
@click.option("--lora", multiple=True, metavar="FILE[:SCALE]", help="Merge a LoRA adapter; may be repeated.")
@click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE",
              help="A Jinja file to use instead of the model's own chat template.")  # fmt: skip
@click.option("--schedule", type=click.Choice(SCHEDULES), default="auto", show_default=True,
              help="graph: one launch per stage, replayed; persistent: one kernel per token.")  # fmt: skip
@click.option("--toolchain", type=click.Choice(["auto", "hipcc", "zig"]), default="auto", show_default=True,
              help="auto: hipcc of ROCm 6 or later, else ziglang.")  # fmt: skip
@click.option("--no-fuse", is_flag=True, help="One kernel per operation: slow, to find a wrong fusion.")
@click.option("--no-weights", is_flag=True,
              help="Leave weights.bin out; a benchmark fills it (tests/gpu/random_weights.py).")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing package.")
@click.option("--dump-dir", type=click.Path(path_type=Path), metavar="D",
              help="Write graphs, program, sources and assembly there; kept on failure.")  # fmt: skip
def command(
    model: Path,
    arch: str,
    output: Path | None,
    math: str,
    ctx: int | None,
    kv: str,
    quantize: str | None,
    requantize: bool,
    lora: tuple[str, ...],
    chat_template: Path | None,
    schedule: str,
    toolchain: str,
    no_fuse: bool,
    no_weights: bool,
    force: bool,
    dump_dir: Path | None,
) -> None:
    """Compile MODEL, a GGUF file, into a package for one chip.

    \b
    Example:
      forgec compile model.gguf --arch gfx1100 -o build/model-gfx1100
    """
    destination = output or default_output(model, arch)
    weights = WeightOptions(quantize, requantize, tuple(parse_adapter(text) for text in lora))
    options = CompileOptions(math=math, context=ctx, kv_dtype=kv, fuse=not no_fuse, schedule=schedule)
    console = Console(stderr=True)
    cache, warning = open_cache(load_config())
    if warning is not None:
        click.echo(f"warning: {warning.message}", err=True)
    with _progress(console) as progress:
        tasks = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        compiled = compile_model(
            model,
            arch,
            destination,
            options,
            weights=weights,
            chat_template=None if chat_template is None else _read_text(chat_template),
            toolchain=toolchain,
            force=force,
            with_weights=not no_weights,
            dump=dump_dir,
            cache=cache,
            report=report,
        )
    for warning_text in compiled.warnings:
        click.echo(f"warning: {warning_text}", err=True)
    click.echo(summary(compiled, destination))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot read '{path}': {reason}", "Give a text file with a Jinja template."
        ) from error


def default_output(model: Path, arch: str) -> Path:
    """build/<model name>-<target>; the shard number of a first shard is dropped."""
    stem = re.sub(r"-00001-of-\d{5}$", "", model.name.removesuffix(".gguf"))
    return Path("build") / f"{stem}-{arch}"


def summary(compiled: Compiled, destination: Path) -> str:
    """What was written, where its memory goes, and how long it took."""
    program = compiled.program
    cached = sum(code.cached for code in compiled.objects)
    seconds = sum(compiled.seconds.values())
    changes = (f"  {change}" for change in compiled.changes)
    return "\n".join(
        (
            f"{destination}: {program.spec.name} ({program.spec.architecture}) for {program.target.name}",
            f"  {len(program.kernels)} kernels ({cached} of {len(compiled.objects)} objects from the cache), "
            f"{len(program.sequences['decode'])} launches a token, math {program.math}",
            f"  memory {memory_text(program)}",
            *changes,
            f"  compiled in {seconds:.2f} s ({compiled.objects[0].compiler})",
            f'  try: python {destination} "Once upon a time"',
        )
    )


def memory_text(program: Program) -> str:
    """Bytes of every buffer that matters: "weights 98.1 MiB + kv …"."""
    shown = {
        "weights": "weights",
        "kv": f"KV cache ({program.context} tokens, {program.kv_dtype})",
        "arena": "arena",
    }
    parts = [f"{text} {program.buffer(name).bytes / 2**20:.1f} MiB" for name, text in shown.items()]
    total = f"{program.device_bytes / 2**20:.1f} MiB"
    if program.target.wave == 1:
        return f"{total}: {', '.join(parts)}"
    return f"{total} of the target's {program.target.memory_bytes / 2**30:.0f} GiB: {', '.join(parts)}"


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    return Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    )
