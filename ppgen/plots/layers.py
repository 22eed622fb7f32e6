"""Layered layouts of directed graphs (Sugiyama, Tagawa & Toda 1981).

Nodes stand on lines so that edges point down; an edge that passes lines has a bend on each, which takes
part in the layout as a thin node, so that it goes around the nodes there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

Edge = tuple[Hashable, Hashable]
Point = tuple[float, float]

_SWEEPS = 24
_ROUNDS = 12


@dataclass
class Layout:
    """Where nodes and the bends of edges are.

    Attributes:
        nodes: centre of each node; y is 0 on the first line and -1 on the next.
        bends: for each edge, its points between its ends, in order.
    """

    nodes: dict[Hashable, Point]
    bends: dict[Edge, list[Point]]


@dataclass
class _Lines:
    """Nodes and bends by line, and what each is joined to on the lines above and below."""

    lines: list[list[Hashable]]
    above: dict[Hashable, list[Hashable]] = field(default_factory=lambda: defaultdict(list))
    below: dict[Hashable, list[Hashable]] = field(default_factory=lambda: defaultdict(list))


def layered(
    nodes: Sequence[Hashable],
    edges: Sequence[Edge],
    widths: Mapping[Hashable, float],
    *,
    gap: float = 0.2,
    late: Sequence[Hashable] = (),
) -> Layout:
    """Lay out a directed graph without cycles.

    Args:
        nodes: all nodes.
        edges: between them, without cycles.
        widths: of the nodes, in the unit of x.
        gap: least space between nodes on a line, and half of it around bends.
        late: nodes without parents that do not push others down: they stand one line above the first of
            their children.

    Returns:
        Positions, x centred about 0.
    """
    level = _levels(nodes, edges, set(late))
    lines, chains = _with_bends(nodes, edges, level)
    _order(lines)
    x = _abscissas(lines, widths, gap)
    y = {node: -float(k) for k, line in enumerate(lines.lines) for node in line}
    return Layout(
        {node: (x[node], y[node]) for node in nodes},
        {edge: [(x[bend], y[bend]) for bend in chain] for edge, chain in chains.items()},
    )


def _levels(nodes: Sequence[Hashable], edges: Sequence[Edge], late: set[Hashable]) -> dict[Hashable, int]:
    """The line of each node: below all its parents, and roots as low as their children allow."""
    parents: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    children: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    for i, j in edges:
        parents[j].append(i)
        children[i].append(j)
    level: dict[Hashable, int] = {}
    left = [node for node in nodes if node not in late]
    while left:
        ready = [v for v in left if all(p in level for p in parents[v] if p not in late)]
        for v in ready:
            level[v] = max((level[p] + 1 for p in parents[v] if p in level), default=0)
        left = [v for v in left if v not in level]
    alone = [v for v in nodes if not parents[v] and not children[v]]
    for v in nodes:
        if not parents[v] and children[v]:
            level[v] = min(level[c] for c in children[v] if c in level) - 1
    joined = [level[v] for v in nodes if v not in alone]
    first, last = min(joined, default=0), max(joined, default=-1)
    # Nodes without edges are set in rows about as wide as the rest, below it.
    row = max(6, math.ceil(len(nodes) / max(1, last - first + 1)))
    for place, v in enumerate(alone):
        level[v] = last + 1 + place // row
    return {v: k - first for v, k in level.items()}


def _with_bends(
    nodes: Sequence[Hashable], edges: Sequence[Edge], level: Mapping[Hashable, int]
) -> tuple[_Lines, dict[Edge, list[Hashable]]]:
    lines = _Lines([[] for _ in range(max(level.values(), default=-1) + 1)])
    for node in nodes:
        lines.lines[level[node]].append(node)
    chains: dict[Edge, list[Hashable]] = {}
    for edge in edges:
        i, j = edge
        chains[edge] = [("bend", i, j, k) for k in range(level[i] + 1, level[j])]
        for k, bend in enumerate(chains[edge], level[i] + 1):
            lines.lines[k].append(bend)
        chain = [i, *chains[edge], j]
        for upper, lower in zip(chain, chain[1:], strict=False):
            lines.below[upper].append(lower)
            lines.above[lower].append(upper)
    return lines, chains


def _order(lines: _Lines) -> None:
    """Order each line to have few crossings: sweeps by barycentre, the best of all kept."""
    best = [list(line) for line in lines.lines]
    fewest = _crossings(lines)
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = lines.above if downwards else lines.below
        numbers = range(1, len(lines.lines)) if downwards else range(len(lines.lines) - 2, -1, -1)
        for k in numbers:
            fixed = lines.lines[k - 1 if downwards else k + 1]
            place = {node: i for i, node in enumerate(fixed)}
            now = {node: i * len(fixed) / len(lines.lines[k]) for i, node in enumerate(lines.lines[k])}
            centre = {v: _mean([place[u] for u in neighbours[v]], now[v]) for v in lines.lines[k]}
            lines.lines[k].sort(key=centre.__getitem__)
        crossings = _crossings(lines)
        if crossings < fewest:
            fewest, best = crossings, [list(line) for line in lines.lines]
    lines.lines = best


def _crossings(lines: _Lines) -> int:
    total = 0
    for upper, lower in zip(lines.lines, lines.lines[1:], strict=False):
        place = {node: i for i, node in enumerate(lower)}
        ends = [p for node in upper for p in sorted(place[v] for v in lines.below[node])]
        total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


def _abscissas(lines: _Lines, widths: Mapping[Hashable, float], gap: float) -> dict[Hashable, float]:
    """Near the mean of what each is joined to, in the order of the line, with room for all."""
    x: dict[Hashable, float] = {}
    steps: list[list[float]] = []
    for line in lines.lines:
        half = [widths.get(v, 0.0) / 2 + (gap if v in widths else gap / 2) / 2 for v in line]
        steps.append([a + b for a, b in zip(half, half[1:], strict=False)])
        total = sum(steps[-1])
        for number, v in enumerate(line):
            x[v] = sum(steps[-1][:number]) - total / 2
    for sweep in range(_ROUNDS):
        downwards = sweep % 2 == 0
        numbers = range(len(lines.lines)) if downwards else reversed(range(len(lines.lines)))
        for k in numbers:
            line = lines.lines[k]
            both = [lines.above[v] + lines.below[v] for v in line]
            wanted = [_mean([x[u] for u in near], x[v]) for v, near in zip(line, both, strict=True)]
            # Bends pull harder: an edge over many lines is to be straight.
            weights = [1.0 if v in widths else 2.0 for v in line]
            for v, place in zip(line, _spaced(wanted, steps[k], weights), strict=True):
                x[v] = place
    middle = (min(x.values(), default=0.0) + max(x.values(), default=0.0)) / 2
    return {v: place - middle for v, place in x.items()}


def _spaced(wanted: Sequence[float], steps: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (weighted least squares) with at least these steps between.

    Pools adjacent violators, as in isotonic regression, after taking the steps out.
    """
    offset = [0.0]
    for step in steps:
        offset.append(offset[-1] + step)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number
    for target, shift, weight in zip(wanted, offset, weights, strict=False):
        blocks.append((target - shift, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    places = [mean for mean, _, num in blocks for _ in range(num)]
    return [place + shift for place, shift in zip(places, offset, strict=False)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
