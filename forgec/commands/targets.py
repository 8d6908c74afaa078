"""``forgec targets``: the table of chips, or everything known about one, with its sources."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from forgec.targets import Target, all_targets, get_target

__all__ = ["command"]


@click.command("targets")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the chips that forgec compiles for, or show one with the source of every number.

    \b
    Example:
      forgec targets
      forgec targets gfx1100
    """
    click.echo(_details(get_target(name)) if name else "", nl=bool(name))
    if name is None:
        _table(all_targets())


def _table(targets: tuple[Target, ...]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "family", "wave", "CUs", "dot4", "matrix", "GB/s", "GiB", "chip"):
        table.add_column(heading, justify="right" if heading in ("wave", "CUs", "GB/s", "GiB") else "left")
    for t in targets:
        table.add_row(
            t.name,
            t.family,
            str(t.wave),
            str(t.compute_units),
            t.dot or "-",
            t.matrix or "-",
            f"{t.bandwidth / 1e9:,.0f}",
            f"{t.memory_bytes / 2**30:.0f}",
            t.title,
        )
    Console(width=140).print(table)


def _details(target: Target) -> str:
    lines = [f"{target.name}: {target.title}"]
    for field in ("family", "wave", "compute_units", "simds_per_cu", "clock_hz", "lds_bytes", "vgprs",
                  "max_threads", "block_size", "dot", "matrix", "bandwidth", "memory_bytes", "l2_bytes",
                  "launch_seconds"):  # fmt: skip
        lines.append(f"  {field} = {getattr(target, field)}")
    lines += [f"  source: {source}" for source in target.sources]
    return "\n".join(lines)
