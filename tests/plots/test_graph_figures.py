"""Layered layouts and figures of graphs: nothing overlaps, and what is drawn is what was given."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.ops import dags
from ppgen.plots import layers
from ppgen.plots.canvas import DARK, LIGHT, to_png
from ppgen.plots.graphs import edge_posterior, graph
from ppgen.plots.layers import layered

_GAP = 0.2


def _random_layout(seed: int, num_nodes: int = 25) -> tuple[list[tuple[int, int]], dict[Hashable, float]]:
    generator = torch.Generator().manual_seed(seed)
    adjacency = dags.random_dag(num_nodes, 2 / num_nodes, generator)
    widths = (0.3 + torch.rand(num_nodes, generator=generator)).tolist()
    return [(i, j) for i, j in adjacency.nonzero().tolist()], dict(enumerate(widths))


@pytest.mark.parametrize("seed", range(5))
def test_layers_point_down_and_nothing_overlaps(seed: int) -> None:
    edges, widths = _random_layout(seed)
    layout = layered(list(widths), edges, widths, gap=_GAP)
    assert set(layout.nodes) == set(widths)
    assert set(layout.bends) == set(edges)
    for (i, j), bends in layout.bends.items():
        heights = [layout.nodes[i][1], *(y for _, y in bends), layout.nodes[j][1]]
        assert all(a - b == 1 for a, b in itertools.pairwise(heights))
    things = [(x, y, widths[int(str(v))], _GAP) for v, (x, y) in layout.nodes.items()]
    things += [(x, y, 0.0, _GAP / 2) for bends in layout.bends.values() for x, y in bends]
    for (x, y, width, gap), (other, line, breadth, space) in itertools.combinations(things, 2):
        if y == line:
            assert abs(x - other) >= (width + breadth + gap + space) / 2 - 1e-9


def test_a_tree_is_drawn_without_crossings() -> None:
    # Children given in an order that crosses at first.
    edges = [(0, 1), (0, 2), (0, 3), (3, 4), (1, 5), (2, 6), (3, 7), (1, 8)]
    layout = layered(range(9), edges, dict.fromkeys(range(9), 0.5))
    ends = sorted((layout.nodes[i][0], layout.nodes[j][0]) for i, j in edges if i)
    assert [e for _, e in ends] == sorted(e for _, e in ends)


def test_sweeps_reduce_crossings(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def recorded(lines: layers._Lines) -> int:
        counted.append(original(lines))
        return counted[-1]

    original = layers._crossings
    monkeypatch.setattr(layers, "_crossings", recorded)
    edges, widths = _random_layout(7, 40)
    layered(list(widths), edges, widths)
    assert min(counted) < 0.7 * counted[0]


def test_crossings_are_counted() -> None:
    lines = layers._Lines([["a", "b", "c"], ["x", "y", "z"]])
    for upper, lower in [("a", "z"), ("b", "x"), ("c", "y"), ("a", "x")]:
        lines.below[upper].append(lower)
    assert layers._crossings(lines) == 2


def test_spacing_is_the_nearest_that_fits() -> None:
    places = layers._spaced([0.0, 0.0, 5.0], [1.0, 1.0], [1.0, 1.0, 1.0])
    assert places == pytest.approx([-0.5, 0.5, 5.0])
    assert layers._spaced([0.0, 0.0], [1.0], [3.0, 1.0]) == pytest.approx([-0.25, 0.75])


def test_late_roots_stand_above_their_first_child() -> None:
    layout = layered(["a", "b", "c", "agent"], [("a", "b"), ("b", "c"), ("agent", "c")], {}, late=["agent"])
    assert layout.nodes["agent"][1] == layout.nodes["b"][1]
    top = layered(["a", "agent"], [("agent", "a")], {}, late=["agent"])
    assert top.nodes["agent"][1] == top.nodes["a"][1] + 1


def _posterior() -> tuple[Tensor, Tensor]:
    p = torch.zeros(4, 4, dtype=torch.float64)
    p[0, 1], p[1, 2], p[2, 3], p[3, 0] = 0.9, 0.8, 0.7, 0.2
    reference = torch.zeros(4, 4, dtype=torch.bool)
    reference[0, 1] = reference[1, 2] = reference[3, 2] = True
    return p, reference


def _panels(figure: Figure) -> tuple[Axes, Axes]:
    matrix, network = figure.axes
    return matrix, network


def _arrows(axes: Axes) -> list[FancyArrowPatch]:
    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_edges_are_told_apart(theme: object) -> None:
    p, reference = _posterior()
    chosen = LIGHT if theme is LIGHT else DARK
    figure = edge_posterior(
        p,
        list("abcd"),
        reference=reference,
        agents=torch.tensor([[0.0, 0.95, 0.3, 0.0]]),
        agent_names=["drug"],
        theme=chosen,
    )
    _, network = _panels(figure)
    colours = [patch.get_edgecolor() for patch in _arrows(network)]
    for colour, count in ((chosen.ink, 2), (chosen.second, 1), (chosen.first, 1), (chosen.muted, 1)):
        assert colours.count(to_rgba(colour)) == count
    dashed = [patch for patch in _arrows(network) if patch.get_linestyle() not in ("-", "solid")]
    assert [patch.get_edgecolor() for patch in dashed] == [to_rgba(chosen.muted)]
    solid = {round(patch.get_linewidth(), 3) for patch in _arrows(network) if patch not in dashed}
    assert solid == {round(0.5 + 1.7 * x, 3) for x in (0.9, 0.8, 0.7, 0.95)}
    texts = {text.get_text() for text in network.texts}
    assert texts == {*"abcd", "drug", "in both", "not in the reference", "missed", "agent"}
    assert to_png(figure)[:4] == b"\x89PNG"


def test_the_matrix_shows_numbers_and_frames() -> None:
    p, reference = _posterior()
    matrix, network = _panels(edge_posterior(p, list("abcd"), reference=reference))
    numbers = {t.get_position(): t.get_text() for t in matrix.texts if t.get_text().startswith(".")}
    assert numbers == {(1, 0): ".90", (2, 1): ".80", (3, 2): ".70", (0, 3): ".20"}
    boxes = [patch for patch in matrix.patches if isinstance(patch, Rectangle)]
    frames = sorted((round(r.get_y() + 0.44), round(r.get_x() + 0.44)) for r in boxes)
    assert frames == [(0, 1), (1, 2), (3, 2)]
    assert len(_arrows(network)) == 4
    large = torch.zeros(20, 20)
    large[0, 1] = 0.7
    matrix, _ = _panels(edge_posterior(large, [f"x{i}" for i in range(20)]))
    assert [text.get_text() for text in matrix.texts] == ["from \\ to"]


def test_labels_fit_their_boxes_and_the_figure() -> None:
    generator = torch.Generator().manual_seed(3)
    names = [f"A_LONG_NAME_{i}" for i in range(30)]
    figure = graph(dags.random_dag(30, 0.07, generator), names)
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    extents = [patch.get_window_extent() for patch in boxes]
    labels = {text.get_text(): text.get_window_extent() for text in axes.texts}
    for name, box in zip(names, extents, strict=True):
        assert box.x0 < labels[name].x0
        assert labels[name].x1 < box.x1
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def test_cycles_can_be_drawn() -> None:
    # At a low threshold both directions may pass.
    _, network = _panels(edge_posterior(torch.full((3, 3), 0.4), list("abc"), threshold=0.3))
    assert len(_arrows(network)) == 6


def test_no_edges_and_one_node_can_be_drawn() -> None:
    for num in (1, 3):
        _, network = _panels(edge_posterior(torch.zeros(num, num), list("abc")[:num]))
        assert not _arrows(network)
        assert len(network.texts) == num


def test_equal_figures_of_graphs_give_equal_files() -> None:
    p, reference = _posterior()
    first, second = (to_png(edge_posterior(p, list("abcd"), reference=reference)) for _ in range(2))
    assert first == second


def test_what_cannot_be_drawn_is_refused() -> None:
    p, _ = _posterior()
    names = list("abcd")
    with pytest.raises(ShapeError, match=r"probabilities: expected shape \(3, 3\)"):
        edge_posterior(p, names[:3])
    with pytest.raises(ShapeError, match="reference: expected shape"):
        edge_posterior(p, names, reference=torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="agents: expected shape"):
        edge_posterior(p, names, agents=torch.zeros(2, 4), agent_names=["one"])
    with pytest.raises(DataError, match="probabilities: expected numbers from 0 to 1"):
        edge_posterior(p * torch.nan, names)
    with pytest.raises(ConfigError, match="threshold"):
        edge_posterior(p, names, threshold=1.0)
