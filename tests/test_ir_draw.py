"""Listings and drawings: pinned text forms, and pictures in which nothing overlaps or gets lost."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgec.ir.draw import to_dot, to_html, to_mermaid, to_svg, to_text
from forgec.ir.draw_layout import H_GAP, Layout, Size, lay_out
from forgec.ir.draw_model import drawing
from forgec.ir.printer import bytes_text, format_graph
from forgec.ir.repeats import sections
from forgec.passes.pipeline import optimise
from forgec.targets import get_target
from tests.gguf_files import TinyModel
from tests.ir_models import imported

BEFORE = imported(TinyModel(block_count=5, quant="Q4_1", feed_forward_length=128)).graph
AFTER = optimise(BEFORE, get_target("gfx1100"))
MIXED = imported(
    TinyModel(block_count=5, quant="Q4_0", quants={"blk.2.ffn_up.weight": "Q8_0"}, feed_forward_length=128)
).graph
SVG = "{http://www.w3.org/2000/svg}"

# -- repeated layers and listings


def test_alike_layers_share_a_section() -> None:
    assert [section.layers for section in sections(BEFORE)] == [None, (0, 1, 2, 3, 4), None]
    assert [section.layers for section in sections(MIXED)] == [None, (0, 1), (2,), (3, 4), None]
    assert [len(section.blocks) for section in sections(AFTER)] == [1, 5, 1]
    assert {len(block) for block in sections(AFTER)[1].blocks} == {5}


@pytest.mark.parametrize("quantised", ["attn_q", "ffn_down"])
def test_layers_of_other_weights_are_not_alike(quantised: str) -> None:
    model = TinyModel(block_count=2, quants={f"blk.1.{quantised}.weight": "F16"})
    assert [section.layers for section in sections(imported(model).graph)] == [None, (0,), (1,), None]


def test_listing_without_folding_has_every_node() -> None:
    lines = format_graph(BEFORE).splitlines()
    assert sum(" = " in line for line in lines) == len(BEFORE.nodes)
    assert [line for line in lines if line.startswith("#")] == [f"# layer {n}" for n in range(5)]
    folded = to_text(MIXED).splitlines()
    assert [line for line in folded if line.startswith("#")] == [
        "# layer 0, and alike up to layer 1: x2",
        "# layer 2",
        "# layer 3, and alike up to layer 4: x2",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (2304, "2.3 kB"),
        (69_120, "69.1 kB"),
        (999_600, "1 MB"),
        (30_081_024, "30.1 MB"),
        (5_000_000_000_000, "5000 GB"),
    ],
)
def test_bytes_text(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(("suffix", "write"), [("dot", to_dot), ("mmd", to_mermaid), ("svg", to_svg)])
def test_drawing_is_pinned(suffix: str, write, golden) -> None:
    golden(f"draw/before.{suffix}", write(BEFORE))
    golden(f"draw/after.{suffix}", write(AFTER))


# -- the folded picture


def test_folded_edges_connect_what_the_graph_connects() -> None:
    picture = drawing(AFTER)
    names = [box.details[0] if box.kind == "op" else box.parts[0].text for box in picture.boxes]
    edges = {(names[edge.source], names[edge.target]) for edge in picture.edges}
    assert edges == {
        ("tokens", "embedding"),
        ("embedding", "attn_qkv"),
        ("embedding", "attn_output"),
        ("attn_qkv", "attention"),
        ("attention", "attn_output"),
        ("attn_output", "ffn_gate_up"),
        ("attn_output", "ffn_down"),
        ("ffn_gate_up", "ffn_down"),
        ("ffn_down", "select_row"),
        ("select_row", "output"),
        ("output", "sample"),
        ("output", "logits"),
        ("sample", "token"),
    }
    assert [(group.title, group.count) for group in picture.groups] == [("layers 0–4 · ×5", 5)]


def test_tooltips_tell_types_and_bytes() -> None:
    (box,) = (box for box in drawing(AFTER).boxes if box.details[0] == "ffn_gate_up")
    assert box.tooltip == "\n".join(
        [
            "layer0.ffn_gate_up",
            "FusedLinear[rmsnorm(eps=1e-05) | 2 x Linear | gated(activation=SiLU)]",
            "<- x: layer0.attn_residual f32[rows, 64], 256 B per token",
            "<- norm_weight: blk.0.ffn_norm.weight f32[64], 256 B, plain",
            "<- weight0: blk.0.ffn_gate.weight q4_1[128, 64], 5.12 kB, rows",
            "<- weight1: blk.0.ffn_up.weight q4_1[128, 64], 5.12 kB, rows",
            "-> y: layer0.ffn_mul f32[rows, 128], 512 B per token",
        ]
    )


# -- layout and SVG


def check_layout(layout: Layout, sizes: list[Size], edges: list[tuple[int, int]]) -> None:
    boxes = [
        (x - s.width / 2, y - s.height / 2, x + s.width / 2, y + s.height / 2)
        for (x, y), s in zip(layout.centres, sizes, strict=True)
    ]
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= -1e-6 and top >= -1e-6
        assert right <= layout.width + 1e-6 and bottom <= layout.height + 1e-6
        for other in boxes[:index]:
            apart = other[2] + H_GAP - 1e-6 <= left or right + H_GAP - 1e-6 <= other[0]
            assert apart or other[3] <= top or bottom <= other[1]
    for (source, target), path in zip(edges, layout.paths, strict=True):
        ys = [y for _, y in path]
        assert ys == sorted(ys)
        assert path[0][1] == pytest.approx(boxes[source][3]) and path[-1][1] == pytest.approx(
            boxes[target][1]
        )
        assert boxes[source][0] <= path[0][0] <= boxes[source][2]
        assert boxes[target][0] <= path[-1][0] <= boxes[target][2]
        for x, y in path[1:-1]:
            inside = [b for b in boxes if b[0] < x < b[2] and b[1] < y < b[3]]
            assert not inside, "an edge runs through a box"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 25))
def test_no_box_overlaps_and_no_edge_crosses_one(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [Size(float(w), float(h)) for w, h in rng.integers(20, 200, size=(count, 2))]
    pairs = {tuple(sorted(pair)) for pair in rng.integers(0, count, size=(2 * count, 2)).tolist()}
    edges = sorted((a, b) for a, b in pairs if a != b)
    check_layout(lay_out(sizes, edges), sizes, edges)


def test_the_layout_of_nothing() -> None:
    assert lay_out([], []) == Layout((), (), 0.0, 0.0)


@pytest.mark.parametrize("graph", [BEFORE, AFTER, MIXED], ids=["before", "after", "mixed"])
def test_svg_shows_every_box_edge_and_group_within_its_frame(graph) -> None:
    root = ElementTree.fromstring(to_svg(graph))
    picture = drawing(graph)
    nodes, links = (root.findall(f"{SVG}g[@class='{name}']") for name in ("node", "link"))
    assert len(nodes) == len(picture.boxes) and len(links) == len(picture.edges)
    assert [node.find(f"{SVG}title").text for node in nodes] == [box.tooltip for box in picture.boxes]
    assert len(root.findall(f"{SVG}rect[@class='group']")) == len(picture.groups)
    left, top, width, height = (float(number) for number in root.get("viewBox").split())
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert left <= x and x + w <= left + width and top <= y and y + h <= top + height


def test_a_name_cannot_break_the_markup() -> None:
    model = TinyModel(block_count=1, metadata={"general.name": 'a <b> & "c" ]]> \\'})
    graph = imported(model).graph
    assert ElementTree.fromstring(to_svg(graph)).find(f"{SVG}title").text == 'a <b> & "c" ]]> \\'
    assert "<b>" not in to_html(graph, graph)


def test_html_is_one_page_that_compares() -> None:
    page = to_html(BEFORE, AFTER)
    assert page.count("<svg") == 2 and "<script" not in page and "http://" not in page.replace(SVG[1:-1], "")
    assert f"<td>nodes</td><td>{len(BEFORE.nodes)}</td><td>{len(AFTER.nodes)}</td>" in page
    assert "<td>nodes in layer 0</td><td>21</td><td>5</td>" in page
    # The text between the tags is well formed: every opened element is closed.
    body = page.partition("<body>")[2].partition("</body>")[0]
    ElementTree.fromstring(f"<body>{re.sub('&middot;', '', body)}</body>")


def test_drawings_are_deterministic() -> None:
    again = imported(TinyModel(block_count=5, quant="Q4_1", feed_forward_length=128)).graph
    assert to_html(again, optimise(again, get_target("gfx1100"))) == to_html(BEFORE, AFTER)
