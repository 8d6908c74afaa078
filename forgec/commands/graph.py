"""``forgec graph``: the layer graph of a model, before and after fusion, as a picture or text."""

from __future__ import annotations

from pathlib import Path

import click

from forgec.frontend.architectures import build_graph, supported_spec
from forgec.frontend.gguf import open_gguf
from forgec.ir.draw import to_dot, to_mermaid, to_text
from forgec.ir.draw_svg import to_html, to_svg
from forgec.ir.graph import Graph
from forgec.package.output import check_file, write_text
from forgec.passes.pipeline import optimise
from forgec.targets import get_target

__all__ = ["command"]

WRITERS = {"svg": to_svg, "dot": to_dot, "mermaid": to_mermaid, "text": to_text}
SUFFIXES = {
    ".svg": "svg",
    ".html": "html",
    ".htm": "html",
    ".dot": "dot",
    ".gv": "dot",
    ".mmd": "mermaid",
    ".txt": "text",
}


@click.command("graph")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", default="gfx1100", show_default=True, metavar="A", help="Target of the passes.")
@click.option("--format", "form", type=click.Choice([*WRITERS, "html"]),
              help="Default: by the ending of -o, else text.")  # fmt: skip
@click.option("--stage", type=click.Choice(["before", "after"]), default="after", show_default=True,
              help="Before or after fusion (html shows both).")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; default: standard output."
)
def command(model: Path, arch: str, form: str | None, stage: str, output: Path | None) -> None:
    """Draw the layer graph of MODEL; equal layers are drawn once, with their number.

    \b
    Example:
      forgec graph model.gguf -o graph.html
      forgec graph model.gguf --stage before --format mermaid
    """
    form = form or (SUFFIXES.get(output.suffix.lower(), "text") if output else "text")
    target = get_target(arch)
    if output is not None:
        check_file(output)
    with open_gguf(model) as gguf:
        before = build_graph(gguf, supported_spec(gguf))
        text = _render(form, stage, before, optimise(before, target))
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    write_text(output, text)
    click.echo(f"{output}: {form}, {len(text) / 1024:.0f} KiB")


def _render(form: str, stage: str, before: Graph, after: Graph) -> str:
    if form == "html":
        return to_html(before, after)
    return WRITERS[form](before if stage == "before" else after)
