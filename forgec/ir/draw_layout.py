"""Layered layout: sizes of boxes and edges in, positions and edge paths out.

The method is Sugiyama's: ranks from the topological generations, long edges through invisible points, few
crossings by barycentres, then x positions that bring connected boxes in line without changing the order
within a rank. Deterministic; it knows nothing of graphs of models or of SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

__all__ = ["Layout", "Size", "lay_out"]

H_GAP = 26.0  # between neighbours of a rank
V_GAP = 34.0  # between ranks, room for the curves of the edges
POINT_WIDTH = 6.0  # of a long edge where it passes a rank
POINT_WEIGHT = 0.0005  # a long edge makes way for boxes
SWEEPS = 12
RELAXATIONS = 200  # a shift travels one rank a sweep, so many more than there are ranks


@dataclass(frozen=True)
class Size:
    """Of a box, in pixels."""

    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """``centres``: (x, y) of the middle of each box. ``paths``: per edge its points, from the lower side of
    the source to the upper side of the target. ``width`` and ``height`` enclose the boxes."""

    centres: tuple[tuple[float, float], ...]
    paths: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def lay_out(sizes: Sequence[Size], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of ``sizes``, connected by ``edges`` (source, target), in ranks from top to bottom."""
    ranks = _ranks(len(sizes), edges)
    chains = _chains(len(sizes), edges, ranks)
    widths = [size.width for size in sizes] + [POINT_WIDTH] * (len(chains.ranks) - len(sizes))
    rows = _ordered(chains)
    x = _positions(chains, rows, widths, len(sizes))
    heights = [max((sizes[v].height for v in row if v < len(sizes)), default=0.0) for row in rows]
    tops = [sum(heights[:rank]) + V_GAP * rank for rank in range(len(rows))]
    left = min((x[v] - widths[v] / 2 for v in range(len(widths))), default=0.0)
    x = [value - left for value in x]
    middle = [tops[chains.ranks[v]] + heights[chains.ranks[v]] / 2 for v in range(len(widths))]
    ports = _ports(chains, x, sizes)
    paths = tuple(_path(chain, x, middle, tops, heights, ports, sizes, chains) for chain in chains.vertices)
    return Layout(
        tuple((x[v], middle[v]) for v in range(len(sizes))),
        paths,
        max((x[v] + widths[v] / 2 for v in range(len(widths))), default=0.0),
        (tops[-1] + heights[-1]) if rows else 0.0,
    )


@dataclass(frozen=True)
class _Chains:
    """Per edge the vertices that it runs through (boxes first and last, points between), the rank of every
    vertex, and the neighbours above and below it."""

    vertices: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    above: tuple[tuple[int, ...], ...]
    below: tuple[tuple[int, ...], ...]


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges)
    ranks = [0] * count
    for rank, generation in enumerate(nx.topological_generations(graph)):
        for vertex in generation:
            ranks[vertex] = rank
    return ranks


def _chains(count: int, edges: Sequence[tuple[int, int]], ranks: Sequence[int]) -> _Chains:
    all_ranks = list(ranks)
    vertices = []
    for source, target in edges:
        between = range(ranks[source] + 1, ranks[target])
        points = range(len(all_ranks), len(all_ranks) + len(between))
        all_ranks.extend(between)
        vertices.append((source, *points, target))
    above: list[list[int]] = [[] for _ in all_ranks]
    below: list[list[int]] = [[] for _ in all_ranks]
    for chain in vertices:
        for upper, lower in pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    return _Chains(tuple(vertices), tuple(all_ranks), tuple(map(tuple, above)), tuple(map(tuple, below)))


def _ordered(chains: _Chains) -> list[list[int]]:
    """The vertices of each rank from left to right: of all sweeps the order with the fewest crossings."""
    rows: list[list[int]] = [[] for _ in range(max(chains.ranks, default=-1) + 1)]
    for vertex, rank in enumerate(chains.ranks):
        rows[rank].append(vertex)
    best, fewest = [list(row) for row in rows], _crossings(chains, rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = chains.above if down else chains.below
        for row in rows if down else rows[::-1]:
            place = {vertex: float(index) for other in rows for index, vertex in enumerate(other)}
            centre = {v: _mean([place[n] for n in neighbours[v]], place[v]) for v in row}
            row.sort(key=centre.__getitem__)
        crossings = _crossings(chains, rows)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _crossings(chains: _Chains, rows: Sequence[Sequence[int]]) -> int:
    place = {vertex: index for row in rows for index, vertex in enumerate(row)}
    total = 0
    for row in rows:
        segments = [(place[upper], place[lower]) for upper in row for lower in chains.below[upper]]
        total += sum(a < c and b > d for a, b in segments for c, d in segments)
    return total


def _positions(
    chains: _Chains, rows: Sequence[Sequence[int]], widths: Sequence[float], boxes: int
) -> list[float]:
    """x of every vertex: boxes go towards the boxes that they are connected to, long edges stand upright."""
    x = [0.0] * len(widths)
    for row in rows:
        span = sum(widths[v] + H_GAP for v in row)
        _place(x, row, [-span / 2] * len(row), [1.0] * len(row), widths)
    for sweep in range(RELAXATIONS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted: list[float] = []
            weights: list[float] = []
            for v in row:
                near = chains.above[v] + chains.below[v]
                # Boxes line up with boxes; the points of a long edge only matter where there is nothing else.
                solid = [n for n in near if n < boxes] if v < boxes else []
                wanted.append(_mean([x[n] for n in solid or near], x[v]))
                weights.append(max(len(solid), 1) if v < boxes else POINT_WEIGHT)
            _place(x, row, wanted, weights, widths)
        _straighten(x, chains, rows, widths)
    return x


def _straighten(
    x: list[float], chains: _Chains, rows: Sequence[Sequence[int]], widths: Sequence[float]
) -> None:
    """Give all points of a long edge one x, as near to their mean as their neighbours in all ranks allow."""
    beside = {vertex: (row, index) for row in rows for index, vertex in enumerate(row)}
    for chain in chains.vertices:
        points = chain[1:-1]
        low, high = float("-inf"), float("inf")
        for point in points:
            row, index = beside[point]
            if index > 0:
                left = row[index - 1]
                low = max(low, x[left] + (widths[left] + widths[point]) / 2 + H_GAP)
            if index + 1 < len(row):
                right = row[index + 1]
                high = min(high, x[right] - (widths[right] + widths[point]) / 2 - H_GAP)
        if points and low <= high:
            upright = min(max(_mean([x[point] for point in points], 0.0), low), high)
            for point in points:
                x[point] = upright


def _place(
    x: list[float], row: Sequence[int], wanted: list[float], weights: list[float], widths: Sequence[float]
) -> None:
    """Set ``x`` of a rank: least squares to ``wanted`` with the gaps kept (pool adjacent violators)."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + H_GAP)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, total, members = value - offset, weight, 1
        while pools and pools[-1][0] >= mean:
            before, weight_before, members_before = pools.pop()
            mean = (before * weight_before + mean * total) / (weight_before + total)
            total, members = total + weight_before, members + members_before
        pools.append((mean, total, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    for vertex, mean, offset in zip(row, means, offsets, strict=True):
        x[vertex] = mean + offset


def _ports(chains: _Chains, x: Sequence[float], sizes: Sequence[Size]) -> dict[tuple[int, int, str], float]:
    """Where on a box an edge ends, as x: (box, the other end, "in" or "out"), in order of the other ends."""
    ports = {}
    for box, size in enumerate(sizes):
        for side, others in (("in", chains.above[box]), ("out", chains.below[box])):
            step = min(22.0, size.width / (len(others) + 1))
            first = x[box] - step * (len(others) - 1) / 2
            for index, other in enumerate(sorted(others, key=lambda v: (x[v], v))):
                ports[box, other, side] = first + step * index
    return ports


def _path(
    chain: tuple[int, ...],
    x: Sequence[float],
    middle: Sequence[float],
    tops: Sequence[float],
    heights: Sequence[float],
    ports: dict[tuple[int, int, str], float],
    sizes: Sequence[Size],
    chains: _Chains,
) -> tuple[tuple[float, float], ...]:
    """From the source's lower side, straight through the ranks between, to the target's upper side."""
    source, target = chain[0], chain[-1]
    points = [(ports[source, chain[1], "out"], middle[source] + sizes[source].height / 2)]
    for vertex in chain[1:-1]:
        top = tops[chains.ranks[vertex]]
        points += [(x[vertex], top), (x[vertex], top + heights[chains.ranks[vertex]])]
    points.append((ports[target, chain[-2], "in"], middle[target] - sizes[target].height / 2))
    return tuple(points)
