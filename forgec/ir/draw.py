"""Graphs as pictures: DOT, Mermaid, plain text, SVG and a before-and-after HTML page.

A graph goes in, text in one of these forms comes out, the same for the same graph. Alike layers are drawn
once and marked with their number; weights are lines of the box that reads them and not vertices. The layout
of the SVG lives in ``draw_layout``, its appearance in ``draw_svg``.
"""

from __future__ import annotations

from forgec.ir.draw_model import Box, Drawing, drawing
from forgec.ir.draw_svg import to_html, to_svg
from forgec.ir.graph import Graph
from forgec.ir.printer import format_graph

__all__ = ["to_dot", "to_html", "to_mermaid", "to_svg", "to_text"]


def to_text(graph: Graph) -> str:
    """The listing of ``printer.format_graph``, alike layers once."""
    return format_graph(graph, collapse=True)


def to_dot(graph: Graph) -> str:
    """For Graphviz: ``dot -Tsvg``. One cluster per run of alike layers."""
    picture = drawing(graph)
    lines = [
        "digraph forgec {",
        '  graph [rankdir=TB, fontname="Helvetica", nodesep=0.3, ranksep=0.35];',
        '  node [shape=box, style="rounded,filled", fillcolor="#f4f4f5", fontname="Helvetica", fontsize=10];',
        '  edge [color="#71717a", arrowsize=0.6];',
    ]
    for index, group in enumerate(picture.groups):
        lines += [f"  subgraph cluster_{index} {{", f"    label={_dot_quoted(group.title)}; style=rounded;"]
        lines += [f"    {_dot_box(n, box)}" for n, box in _members(picture, index)]
        lines.append("  }")
    lines += [f"  {_dot_box(n, box)}" for n, box in _members(picture, None)]
    for edge in picture.edges:
        lines.append(f"  n{edge.source} -> n{edge.target} [tooltip={_dot_quoted(edge.tooltip)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_box(number: int, box: Box) -> str:
    shape = ", shape=oval" if box.kind == "io" else ""
    label = "\\n".join(_escaped(line) for line in _lines(box))
    return f'n{number} [label="{label}", tooltip={_dot_quoted(box.tooltip)}{shape}];'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _dot_quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def to_mermaid(graph: Graph) -> str:
    """For Markdown: a Mermaid flowchart. One subgraph per run of alike layers."""
    picture = drawing(graph)
    lines = ["flowchart TD"]
    for index, group in enumerate(picture.groups):
        lines.append(f'  subgraph g{index}["{_mermaid_escaped(group.title)}"]')
        lines += [f"    {_mermaid_box(n, box)}" for n, box in _members(picture, index)]
        lines.append("  end")
    lines += [f"  {_mermaid_box(n, box)}" for n, box in _members(picture, None)]
    lines += [f"  n{edge.source} --> n{edge.target}" for edge in picture.edges]
    return "\n".join(lines) + "\n"


def _mermaid_box(number: int, box: Box) -> str:
    label = "<br/>".join(_mermaid_escaped(line) for line in _lines(box))
    left, right = ("([", "])") if box.kind == "io" else ("[", "]")
    return f'n{number}{left}"{label}"{right}'


def _mermaid_escaped(text: str) -> str:
    """Mermaid takes HTML entities, spelled with # instead of &."""
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text


def _members(picture: Drawing, group: int | None) -> list[tuple[int, Box]]:
    """The boxes of a group, or those of none, with their numbers."""
    return [(number, box) for number, box in enumerate(picture.boxes) if box.group == group]


def _lines(box: Box) -> list[str]:
    return [" | ".join(part.text for part in box.parts), *box.details]
