"""Drawings as SVG, and two of them side by side as one HTML page.

A graph goes in, self-contained markup comes out: no script, no font or style from elsewhere, light and dark.
Tooltips give parameters, shapes and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from forgec.ir.draw_layout import Layout, Size, lay_out
from forgec.ir.draw_model import Box, Drawing, drawing
from forgec.ir.graph import Graph
from forgec.ir.printer import bytes_text

__all__ = ["to_html", "to_svg"]

PART_HEIGHT = 24.0
DETAIL_HEIGHT = 15.0
PADDING = 7.0
MARGIN = 28.0
# Generous widths of a character: the viewer's font is not known here.
PART_CHARACTER = 8.4
DETAIL_CHARACTER = 6.7

#: Colour of each kind of work: light fill, dark fill.
COLOURS = {
    "lookup": ("#dbeafe", "#1e3a5f"),
    "norm": ("#fef3c7", "#5c4813"),
    "linear": ("#ffe0d3", "#6b3320"),
    "rope": ("#e0e7ff", "#34347a"),
    "cache": ("#cffafe", "#134e5a"),
    "attention": ("#ede9fe", "#4c2f7a"),
    "elementwise": ("#dcfce7", "#1d4d2f"),
    "sample": ("#fce7f3", "#6b1f45"),
    "io": ("#f4f4f5", "#33333a"),
}

_STYLE = """
.fg {font-family: ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif}
.fg .part {font-size: 13px; font-weight: 600; fill: #18181b; text-anchor: middle}
.fg .name {font-size: 11px; fill: #3f3f46; text-anchor: middle}
.fg .detail {font-size: 10.5px; fill: #71717a; text-anchor: middle}
.fg .title {font-size: 12px; font-weight: 600; fill: #52525b}
.fg .box {fill: #ffffff; stroke: #a1a1aa; stroke-width: 1.1}
.fg .group {fill: #fafafa; stroke: #d4d4d8; stroke-width: 1.2; stroke-dasharray: 5 4}
.fg .edge {fill: none; stroke: #8b8b94; stroke-width: 1.4}
.fg .head {fill: #8b8b94}
.fg .node:hover .box {stroke: #ea580c; stroke-width: 2}
.fg .link:hover .edge {stroke: #ea580c; stroke-width: 2.4}
"""

_DARK = """
.fg .part {fill: #fafafa}
.fg .name {fill: #d4d4d8}
.fg .detail, .fg .title {fill: #a1a1aa}
.fg .box {fill: #27272a; stroke: #52525b}
.fg .group {fill: #1c1c1f; stroke: #3f3f46}
.fg .edge {stroke: #84848c}
.fg .head {fill: #84848c}
"""


def to_svg(graph: Graph) -> str:
    """One SVG document; alike layers are drawn once, in a frame that says how many they are."""
    picture = drawing(graph)
    sizes = [_size(box) for box in picture.boxes]
    layout = lay_out(sizes, [(edge.source, edge.target) for edge in picture.edges])
    frames = [_frame(picture, layout, sizes, index) for index in range(len(picture.groups))]
    left = min([0.0, *(x for x, _, _, _ in frames)]) - MARGIN
    right = max([layout.width, *(x + width for x, _, width, _ in frames)]) + MARGIN
    width, height = right - left, layout.height + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{left:.1f} {-MARGIN:.1f} {width:.1f} {height:.1f}" role="img">',
        f"<title>{escape(graph.spec.name)}</title>",
        f"<style>{_style()}</style>",
        *(_frame_svg(frame, group.title) for frame, group in zip(frames, picture.groups, strict=True)),
        *(_edge_svg(path, edge.tooltip) for path, edge in zip(layout.paths, picture.edges, strict=True)),
        *(
            _box_svg(box, centre, size)
            for box, centre, size in zip(picture.boxes, layout.centres, sizes, strict=True)
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _style() -> str:
    light = "".join(f".fg .{kind} {{fill: {colours[0]}}}\n" for kind, colours in COLOURS.items())
    dark = "".join(f".fg .{kind} {{fill: {colours[1]}}}\n" for kind, colours in COLOURS.items())
    return f"{_STYLE}{light}@media (prefers-color-scheme: dark) {{{_DARK}{dark}}}\n"


def _size(box: Box) -> Size:
    width = max(len(part.text) * PART_CHARACTER for part in box.parts)
    width = max([width, *(len(text) * DETAIL_CHARACTER for text in box.details)])
    height = PART_HEIGHT * len(box.parts) + DETAIL_HEIGHT * len(box.details) + PADDING
    return Size(width + 4 * PADDING, height)


Frame = tuple[float, float, float, float]


def _frame(picture: Drawing, layout: Layout, sizes: list[Size], group: int) -> Frame:
    """x, y, width and height around the boxes of a group and the edges between them."""
    members = [index for index, box in enumerate(picture.boxes) if box.group == group]
    top = min(layout.centres[v][1] - sizes[v].height / 2 for v in members)
    bottom = max(layout.centres[v][1] + sizes[v].height / 2 for v in members)
    xs = [layout.centres[v][0] + side * sizes[v].width / 2 for v in members for side in (-1, 1)]
    xs += [x for path in layout.paths for x, y in path if top <= y <= bottom]
    left, right = min(xs) - 18, max(xs) + 18
    return left, top - 26, right - left, bottom - top + 38


def _frame_svg(frame: Frame, title: str) -> str:
    x, y, width, height = frame
    return (
        f'<rect class="group" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="14"/>\n'
        f'<text class="title" x="{x + 14:.1f}" y="{y + 18:.1f}">{escape(title)}</text>'
    )


def _edge_svg(path: tuple[tuple[float, float], ...], tooltip: str) -> str:
    (x, y), rest = path[0], path[1:]
    commands = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in rest:
        # Vertical at both ends; a straight piece where nothing turns.
        middle = (y + to_y) / 2
        commands.append(
            f"V{to_y:.1f}"
            if abs(to_x - x) < 0.05
            else f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
        )
        x, y = to_x, to_y
    head = f"M{x:.1f} {y:.1f}l-4 -7h8z"
    return (
        f'<g class="link"><title>{escape(tooltip)}</title><path class="edge" d="{"".join(commands)}"/>'
        f'<path class="head" d="{head}"/></g>'
    )


def _box_svg(box: Box, centre: tuple[float, float], size: Size) -> str:
    x, y = centre[0] - size.width / 2, centre[1] - size.height / 2
    radius = size.height / 2 if box.kind == "io" else 8
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{size.width:.1f}" height="{size.height:.1f}" rx="{radius:.1f}"'
    lines = [f'<g class="node"><title>{escape(box.tooltip)}</title>', f'<rect class="box" {shape}/>']
    if box.kind == "io":
        lines.append(f'<rect class="io" {shape} fill-opacity="0.6"/>')
    else:
        lines += [_strip(box, index, x, y, size) for index in range(len(box.parts))]
    text_y = y + 17
    for part in box.parts:
        lines.append(f'<text class="part" x="{centre[0]:.1f}" y="{text_y:.1f}">{escape(part.text)}</text>')
        text_y += PART_HEIGHT
    text_y -= 4
    for index, detail in enumerate(box.details):
        style = "name" if index == 0 else "detail"
        lines.append(f'<text class="{style}" x="{centre[0]:.1f}" y="{text_y:.1f}">{escape(detail)}</text>')
        text_y += DETAIL_HEIGHT
    return "\n".join([*lines, "</g>"])


def _strip(box: Box, index: int, x: float, y: float, size: Size) -> str:
    """The coloured strip of one part, inside the box's outline; the first has the box's round corners."""
    inset = 0.6
    top, left, width = y + PART_HEIGHT * index + inset, x + inset, size.width - 2 * inset
    height = PART_HEIGHT - (inset if index == 0 else 0)
    kind = box.parts[index].kind
    if index > 0:
        top -= inset
        place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
        return f'<rect class="{kind}" {place}/>'
    round_ = 7.4
    return (
        f'<path class="{kind}" d="M{left:.1f} {top + height:.1f}V{top + round_:.1f}'
        f"q0 {-round_} {round_} {-round_}H{left + width - round_:.1f}"
        f'q{round_} 0 {round_} {round_}V{top + height:.1f}z"/>'
    )


_PAGE_STYLE = """
body {margin: 2rem auto; max-width: 1500px; padding: 0 1.5rem; background: #ffffff; color: #18181b;
  font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif}
h1 {font-size: 1.5rem; margin: 0}
h2 {font-size: 1.05rem; margin: 0 0 .6rem}
p.facts {color: #52525b; margin: .3rem 0 1.2rem}
table {border-collapse: collapse; margin-bottom: 1.6rem}
th, td {text-align: right; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid #e4e4e7}
th:first-child, td:first-child {text-align: left}
th {font-weight: 600; color: #52525b}
.sides {display: flex; gap: 1.5rem; align-items: flex-start; flex-wrap: wrap}
.side {flex: 1 1 420px; overflow-x: auto; border: 1px solid #e4e4e7; border-radius: 12px; padding: 1rem}
.side svg {display: block; margin: 0 auto; max-width: 100%; height: auto}
@media (prefers-color-scheme: dark) {
  body {background: #18181b; color: #fafafa}
  p.facts, th {color: #a1a1aa}
  th, td, .side {border-color: #3f3f46}
}
"""


def to_html(before: Graph, after: Graph) -> str:
    """One page: what the model is, how the two graphs compare in numbers, and both drawings."""
    spec = after.spec
    facts = (
        f"{spec.architecture} · {spec.block_count} layers · embedding {spec.embedding_length} · "
        f"feed-forward {spec.feed_forward_length} · {spec.head_count} heads ({spec.head_count_kv} KV) of "
        f"{spec.key_length} · vocabulary {spec.vocab_size} · context {spec.context_length}"
    )
    rows = "\n".join(
        f"<tr><td>{label}</td><td>{old}</td><td>{new}</td></tr>"
        for label, old, new in _comparison(before, after)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(spec.name)} · forgec</title>
<style>{_PAGE_STYLE}</style>
</head>
<body>
<h1>{escape(spec.name)}</h1>
<p class="facts">{escape(facts)}</p>
<table>
<tr><th></th><th>before</th><th>after</th></tr>
{rows}
</table>
<div class="sides">
<section class="side"><h2>Before the passes</h2>
{to_svg(before)}</section>
<section class="side"><h2>After the passes</h2>
{to_svg(after)}</section>
</div>
</body>
</html>
"""


def _comparison(before: Graph, after: Graph) -> list[tuple[str, str, str]]:
    """Rows of (what, before, after)."""
    measures: tuple[tuple[str, Callable[[Graph], str]], ...] = (
        ("nodes", lambda g: f"{len(g.nodes)}"),
        ("nodes in layer 0", lambda g: f"{sum(node.layer == 0 for node in g.nodes.values())}"),
        ("intermediate values per token", lambda g: bytes_text(_temporary_bytes(g))),
        ("weights", lambda g: bytes_text(sum(value.nbytes() for value in g.of_kind("weight")))),
    )
    return [(label, measure(before), measure(after)) for label, measure in measures]


def _temporary_bytes(graph: Graph) -> int:
    """Bytes of all values made within a step of one token on an empty cache."""
    return sum(value.nbytes() for value in graph.of_kind("temp"))
