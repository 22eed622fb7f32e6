"""Probabilities of edges as a matrix and as a graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.ops.dags import find_cycle
from ppgen.plots.canvas import LIGHT, Theme, new_figure
from ppgen.plots.layers import Edge, Layout, layered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

_MOST_WITH_NUMBERS = 16  # variables for which each number of the matrix is written
_LINE_HEIGHT = 0.66  # inches between lines of the graph
_BOX_HEIGHT = 0.25
_WIDEST = 12.0  # inches of a graph, if smaller letters can make it fit
_FONT, _SMALLEST_FONT = 9.0, 6.0
_CORNER = "from \\ to"
_POINTS = 72.0  # an inch


@dataclass(frozen=True)
class _Network:
    """What the graph shows.

    Attributes:
        names: of the variables, then of the agents.
        num_variables: how many of the names are variables.
        shown: edges and their probabilities.
        extra: edges that the reference lacks.
        missed: edges that only the reference has.
    """

    names: list[str]
    num_variables: int
    shown: dict[tuple[int, int], float]
    extra: set[tuple[int, int]]
    missed: set[tuple[int, int]]


def edge_posterior(
    probabilities: Tensor | NDArray[Any],
    names: Sequence[str],
    *,
    reference: Tensor | NDArray[Any] | None = None,
    threshold: float = 0.5,
    agents: Tensor | NDArray[Any] | None = None,
    agent_names: Sequence[str] = (),
    theme: Theme = LIGHT,
) -> Figure:
    """Probabilities of edges: the matrix on the left, the likely edges as a graph on the right.

    In the matrix rows are from and columns to, darker where more probable, with numbers where there is
    room, and frames around edges of the reference. In the graph edges are wider where more probable;
    edges that the reference lacks have another colour, edges that it alone has are dashed; agents and
    what they act on have a colour of their own.

    Args:
        probabilities: p(i -> j), shape (n, n).
        names: of the variables.
        reference: adjacency of a graph to compare with, (n, n).
        threshold: edges more probable than this are in the graph.
        agents: p(agent acts on variable), (A, n).
        agent_names: of the agents.
        theme: the colours.

    Raises:
        ShapeError: arguments that do not fit each other.
        DataError: probabilities that are NaN or outside [0, 1].
        ConfigError: a threshold outside [0, 1).
    """
    p, truth, acting = _checked(probabilities, names, reference, threshold, agents, agent_names)
    network = _network(p, names, truth, threshold, acting, agent_names)
    drawing = _Drawing(network, theme)
    rows, columns = len(p) + len(acting), len(p)
    cell = 0.33 if columns <= _MOST_WITH_NUMBERS else 0.21
    margin = 0.35 + max(drawing.text_width(name, 8) for name in [_CORNER, *network.names])
    left = columns * cell + margin
    height = max(rows * cell + margin + 0.15, drawing.height + 0.55)
    figure = new_figure(left + drawing.width + 0.5, height + 0.1, theme=theme)
    figure.set_layout_engine("none")
    whole_width, whole_height = figure.get_size_inches()
    size = columns * cell, rows * cell
    top = (height + size[1] - margin + 0.15) / 2 + 0.05
    matrix = figure.add_axes(
        (
            (margin - 0.1) / whole_width,
            (top - size[1]) / whole_height,
            size[0] / whole_width,
            size[1] / whole_height,
        )
    )
    _draw_matrix(matrix, p, acting, network.names, truth, theme, numbers=columns <= _MOST_WITH_NUMBERS)
    graph = figure.add_axes((1 - (drawing.width + 0.2) / whole_width, 0, drawing.width / whole_width, 1))
    drawing.draw(graph, whole_height)
    return figure


def graph(
    adjacency: Tensor | NDArray[Any],
    names: Sequence[str],
    *,
    reference: Tensor | NDArray[Any] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """One graph in layers, without a matrix; compared with a reference as in :func:`edge_posterior`.

    Args:
        adjacency: [i, j] for i -> j, (n, n); or probabilities, which then make the widths of the edges.
        names: of the nodes.
        reference: adjacency of a graph to compare with.
        theme: the colours.

    Raises:
        ShapeError, DataError: as for :func:`edge_posterior`.
    """
    p, truth, acting = _checked(adjacency, names, reference, 0.0, None, ())
    drawing = _Drawing(_network(p, names, truth, 0.0, acting, ()), theme)
    figure = new_figure(drawing.width + 0.2, drawing.height + 0.6, theme=theme)
    figure.set_layout_engine("none")
    drawing.draw(figure.add_axes((0, 0, 1, 1)), float(figure.get_size_inches()[1]))
    return figure


def _checked(
    probabilities: Any, names: Sequence[str], reference: Any, threshold: float, agents: Any, agent_names: Any
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]]:
    p = _numbers(probabilities)
    n = len(names)
    if n == 0 or p.shape != (n, n):
        raise ShapeError(f"probabilities: expected shape {(n, n)} for {n} names (1 or more), got {p.shape}")
    truth = None if reference is None else _numbers(reference) != 0
    if truth is not None and truth.shape != (n, n):
        raise ShapeError(f"reference: expected shape {(n, n)}, got {truth.shape}")
    acting = np.zeros((0, n)) if agents is None else _numbers(agents)
    if acting.shape != (len(agent_names) if agents is not None else 0, n):
        raise ShapeError(
            f"agents: expected shape {(len(agent_names), n)}, a row for each name of an agent, got "
            f"{acting.shape}"
        )
    for argument, values in (("probabilities", p), ("agents", acting)):
        if not bool(((values >= 0) & (values <= 1 + 1e-9)).all()):
            raise DataError(f"{argument}: expected numbers from 0 to 1, got others or NaN")
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold: expected a number from 0 to below 1, got {threshold}")
    return p, truth, acting


def _numbers(values: Any) -> NDArray[Any]:
    return np.array(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype=np.float64)


def _network(
    p: NDArray[Any],
    names: Sequence[str],
    truth: NDArray[Any] | None,
    threshold: float,
    acting: NDArray[Any],
    agent_names: Sequence[str],
) -> _Network:
    n = len(p)
    likely = {(int(i), int(j)) for i, j in np.argwhere(p > threshold) if i != j}
    known = likely if truth is None else {(int(i), int(j)) for i, j in np.argwhere(truth)}
    shown = {edge: float(p[edge]) for edge in sorted(likely)}
    shown |= {(n + int(a), int(j)): float(acting[a, j]) for a, j in np.argwhere(acting > threshold)}
    return _Network(
        [*map(str, names), *(map(str, agent_names) if len(acting) else ())],
        n,
        shown,
        likely - known,
        known - likely,
    )


# -- the matrix ---------------------------------------------------------------------------


def _draw_matrix(
    axes: Axes,
    p: NDArray[Any],
    acting: NDArray[Any],
    names: Sequence[str],
    truth: NDArray[Any] | None,
    theme: Theme,
    *,
    numbers: bool,
) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    n = len(p)
    values = np.concatenate([np.where(np.eye(n, dtype=bool), np.nan, p), acting])
    shades = LinearSegmentedColormap.from_list("", [theme.background, theme.first])
    colours = shades.with_extremes(bad=_mix(theme.muted, theme.background, 0.25))
    axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor(theme.background)
    size = 8.0 if numbers else 6.5
    axes.set_xticks(range(n), names[:n], rotation=90, fontsize=size, color=theme.ink)
    axes.set_yticks(range(len(values)), names, fontsize=size, color=theme.ink)
    for label in axes.get_yticklabels()[n:]:
        label.set_color(theme.first)
    axes.text(-0.75, -0.75, _CORNER, ha="right", va="bottom", fontsize=size - 1, color=theme.muted)
    axes.set_xticks(np.arange(0.5, n - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(values) - 1), minor=True)
    axes.grid(which="minor", color=theme.background, linewidth=1.0)
    axes.tick_params(which="both", length=0, pad=3, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_color(theme.muted)
        spine.set_linewidth(0.6)
    if len(acting):
        axes.axhline(n - 0.5, color=theme.ink, linewidth=0.9)
    if truth is not None:
        for i, j in np.argwhere(truth):
            axes.add_patch(
                Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, edgecolor=theme.ink, linewidth=1.5)
            )
    if numbers:
        for i, j in np.argwhere(np.nan_to_num(values) >= 0.005):
            text = "1" if values[i, j] >= 0.995 else f"{values[i, j]:.2f}".removeprefix("0")
            ink = theme.background if values[i, j] > 0.55 else theme.ink
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=ink)


def _mix(first: str, second: str, share: float) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    a, b = np.array(to_rgb(first)), np.array(to_rgb(second))
    red, green, blue = share * a + (1 - share) * b
    return float(red), float(green), float(blue)


# -- the graph ----------------------------------------------------------------------------


class _Drawing:
    """A graph laid out in inches; ``width`` and ``height`` are known before it is drawn."""

    def __init__(self, network: _Network, theme: Theme) -> None:
        self.network = network
        self.theme = theme
        self.font = _FONT
        while True:
            self.boxes: dict[Hashable, float] = {
                i: max(0.36, self.text_width(name, self.font) + 0.16) for i, name in enumerate(network.names)
            }
            self.layout = self._lay_out()
            self.width = max(2.4, self._legend_width() + 0.2, 2 * self._reach() + 0.2)
            if self.width <= _WIDEST or self.font <= _SMALLEST_FONT:
                break
            self.font -= 0.5
        lines = 1 - min((y for _, y in self.layout.nodes.values()), default=0.0)
        self.height = lines * _LINE_HEIGHT

    def text_width(self, text: str, size: float) -> float:
        """Width of a text in inches."""
        from matplotlib.textpath import TextPath

        return float(TextPath((0, 0), text or " ", size=size).get_extents().width) / _POINTS

    def draw(self, axes: Axes, height: float) -> None:
        """Draw into axes of the own width and a ``height``, in inches."""
        middle = -(self.height - _LINE_HEIGHT) / 2
        axes.set_xlim(-self.width / 2, self.width / 2)
        # The legend has the lowest half inch.
        axes.set_ylim(middle - height / 2 - 0.2, middle + height / 2 - 0.2)
        axes.set_axis_off()
        network, theme = self.network, self.theme
        for edge in sorted(network.missed):
            self._draw_edge(axes, edge, 1.0, theme.muted, dashed=True)
        for edge, probability in network.shown.items():
            colour = theme.ink
            if edge[0] >= network.num_variables:
                colour = theme.first
            elif edge in network.extra:
                colour = theme.second
            self._draw_edge(axes, edge, probability, colour, dashed=False)
        for node in range(len(network.names)):
            self._draw_node(axes, node)
        self._draw_legend(axes, middle - height / 2 - 0.02)

    def _lay_out(self) -> Layout:
        nodes: list[Hashable] = list(range(len(self.network.names)))
        late = nodes[self.network.num_variables :]
        adjacency = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for edge in self.network.shown:
            adjacency[edge] = True
        while (cycle := find_cycle(adjacency)) is not None:  # of edges at a low threshold
            around = zip(cycle, [*cycle[1:], cycle[0]], strict=True)
            adjacency[min(around, key=self.network.shown.__getitem__)] = False
        edges: list[Edge] = [(i, j) for i, j in adjacency.nonzero().tolist()]
        # Missed edges take part where they can, so that they too go around nodes.
        for i, j in sorted(self.network.missed):
            adjacency[i, j] = True
            if find_cycle(adjacency) is None:
                edges.append((i, j))
            else:
                adjacency[i, j] = False
        return layered(nodes, edges, self.boxes, gap=0.22, late=late)

    def _reach(self) -> float:
        ends = [abs(x) + self.boxes[v] / 2 for v, (x, _) in self.layout.nodes.items()]
        ends += [abs(x) for bends in self.layout.bends.values() for x, _ in bends]
        return max(ends)

    def _place(self, node: int) -> tuple[float, float]:
        x, y = self.layout.nodes[node]
        return x, y * _LINE_HEIGHT

    def _draw_node(self, axes: Axes, node: int) -> None:
        from matplotlib.patches import FancyBboxPatch

        x, y = self._place(node)
        width = self.boxes[node]
        is_agent = node >= self.network.num_variables
        colour = self.theme.first if is_agent else self.theme.ink
        rounding = 0.02 if is_agent else _BOX_HEIGHT / 2
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - _BOX_HEIGHT / 2),
                width,
                _BOX_HEIGHT,
                boxstyle=f"round,pad=0,rounding_size={rounding}",
                facecolor=self.theme.background,
                edgecolor=colour,
                linewidth=1.0,
                zorder=4,
            )
        )
        axes.text(
            x,
            y,
            self.network.names[node],
            ha="center",
            va="center_baseline",
            fontsize=self.font,
            color=colour,
            zorder=5,
        )

    def _draw_edge(
        self, axes: Axes, edge: tuple[int, int], probability: float, colour: str, *, dashed: bool
    ) -> None:
        from matplotlib.patches import FancyArrowPatch

        path = self._path(edge)
        width = 1.0 if dashed else 0.5 + 1.7 * probability
        head = FancyArrowPatch(
            path=path,
            arrowstyle=f"-|>,head_length={2.6 + width},head_width={1.2 + 0.6 * width}",
            mutation_scale=1.0,
            linewidth=width,
            linestyle=(0, (4, 2.5)) if dashed else "solid",
            color=colour,
            capstyle="butt",
            zorder=2 if dashed else 3,
        )
        axes.add_patch(head)

    def _path(self, edge: tuple[int, int]) -> Path:
        from matplotlib.path import Path

        i, j = edge
        start, end = np.array(self._place(i)), np.array(self._place(j))
        if edge in self.layout.bends:
            bends = [np.array([x, y * _LINE_HEIGHT]) for x, y in self.layout.bends[edge]]
        else:  # against the layers: a bow to the side
            away = end - start
            side = np.array([away[1], -away[0]]) / max(float(np.hypot(*away)), 1e-9)
            bends = [(start + end) / 2 + side * 0.3]
        inner_start = bends[0] if bends else end
        inner_end = bends[-1] if bends else start
        points = [
            _on_border(start, inner_start, self.boxes[i]),
            *bends,
            _on_border(end, inner_end, self.boxes[j]),
        ]
        vertices, codes = [points[0]], [Path.MOVETO]
        # Catmull-Rom through the points, as cubic Bezier pieces.
        for k in range(len(points) - 1):
            before, after = points[max(k - 1, 0)], points[min(k + 2, len(points) - 1)]
            vertices += [
                points[k] + (points[k + 1] - before) / 6,
                points[k + 1] - (after - points[k]) / 6,
                points[k + 1],
            ]
            codes += [Path.CURVE4] * 3
        return Path(np.array(vertices), codes)

    def _legend(self) -> list[tuple[str, str, str, float]]:
        """Text, colour, style and width in inches of each entry."""
        network, theme = self.network, self.theme
        entries = []
        if network.extra or network.missed:
            entries.append(("in both", theme.ink, "solid"))
        if network.extra:
            entries.append(("not in the reference", theme.second, "solid"))
        if network.missed:
            entries.append(("missed", theme.muted, "dashed"))
        if len(network.names) > network.num_variables:
            entries.append(("agent", theme.first, "solid"))
        return [(*entry, 0.34 + self.text_width(entry[0], 8)) for entry in entries]

    def _legend_width(self) -> float:
        widths = [width for _, _, _, width in self._legend()]
        return sum(widths) + 0.2 * max(0, len(widths) - 1)

    def _draw_legend(self, axes: Axes, y: float) -> None:
        x = -self._legend_width() / 2
        for text, colour, style, width in self._legend():
            axes.plot([x, x + 0.26], [y + 0.12] * 2, color=colour, linewidth=1.6, linestyle=style)
            axes.text(x + 0.32, y + 0.12, text, fontsize=8, va="center", color=self.theme.ink)
            x += width + 0.2


def _on_border(centre: NDArray[Any], towards: NDArray[Any], width: float) -> NDArray[Any]:
    """Where the line from a box's centre to a point leaves the box, a little outside."""
    away = towards - centre
    half = np.array([width, _BOX_HEIGHT]) / 2 + 0.02
    with np.errstate(divide="ignore"):
        scale = float(np.min(half / np.maximum(np.abs(away), 1e-12)))
    return centre + away * min(scale, 1.0)
