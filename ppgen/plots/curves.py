"""Training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ppgen.errors import DataError
from ppgen.plots.canvas import LIGHT, Theme, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

_LINES = ("solid", (0, (5, 2)), (0, (1, 1.5)), "dashdot")
# Lines share axes unless the gap between their ranges is more than this many times the ranges.
_FAR_APART = 4.0


def curves(
    series: Mapping[str, Points],
    *,
    x_label: str = "epoch",
    y_label: str = "loss",
    apart: bool = False,
    theme: Theme = LIGHT,
    width: float = 4.6,
    height: float = 3.4,
) -> Figure:
    """Lines of y over x, one a series, told apart by colour and by dash.

    The y axis reaches as high as each line does after its first twentieth (of five points or more),
    so that the fall from a poor start does not flatten the rest. Lines whose ranges are so far apart
    that common axes would flatten them stand in panels of their own, one over the other.

    Args:
        series: name to points ``(x, y)``; points with a y that is not finite are left out.
        x_label: what x is; its ticks are whole numbers.
        y_label: what y is, with its unit.
        apart: a panel of its own for each line, for those that measure different things.
        theme: the colours.
        width: in inches.
        height: in inches.

    Raises:
        DataError: no series has a finite point.
    """
    from matplotlib.ticker import MaxNLocator

    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        raise DataError("series: expected at least one finite point, got none; nothing to draw")
    colours = (theme.first, theme.second, theme.ink, theme.muted)
    styles = {name: (colours[i % 4], _LINES[i % 4]) for i, name in enumerate(finite)}
    panels = [[name] for name in finite] if apart else _panels(finite)
    figure = new_figure(width, height, theme=theme)
    for axes, panel in zip(
        figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        plain_axes(axes, theme)
        for name in panel:
            xs, ys = zip(*finite[name], strict=True)
            colour, dash = styles[name]
            marker = "o" if len(xs) == 1 else None
            axes.plot(xs, ys, label=name, color=colour, linestyle=dash, linewidth=1.8, marker=marker)
        axes.set_ylim(*_window([finite[name] for name in panel]))
        axes.set_ylabel(y_label, fontsize=9.5)
        axes.grid(axis="y", color=theme.muted, alpha=0.25, linewidth=0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Above the axes, where no line can run through it.
        axes.legend(
            frameon=False,
            fontsize=9,
            labelcolor=theme.ink,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(panel),
            borderaxespad=0.2,
        )
    axes.set_xlabel(x_label, fontsize=9.5)
    return figure


def loss_series(history: Sequence[Mapping[str, float | None]]) -> dict[str, list[tuple[float, float]]]:
    """The losses of a training history by epoch, finite ones only.

    ``training`` and ``validation``; where there are several players and so no one loss that
    falls, the loss of each (``generator``, ``critic``, from ``generator_loss``, ...) in their place.
    """
    last = history[-1] if history else {}
    players = [key for key in last if key.endswith("_loss") and key != "validation_loss"]
    wanted = {key.removesuffix("_loss"): key for key in players}
    wanted = wanted or {"training": "loss", "validation": "validation_loss"}
    found: dict[str, list[tuple[float, float]]] = {}
    for name, key in wanted.items():
        for number, row in enumerate(history, start=1):
            value, epoch = row.get(key), row.get("epoch")
            if value is not None and math.isfinite(value):
                found.setdefault(name, []).append((float(number if epoch is None else epoch), float(value)))
    return found


def _panels(series: Mapping[str, Points]) -> list[list[str]]:
    """Names of the series that share axes: neighbours in range, in the order of the first of each."""
    panels: list[list[str]] = []
    for name, points in series.items():
        low, high = _range([points])
        for panel in panels:
            others = [series[other] for other in panel]
            bottom, top = _range(others)
            gap = max(low - top, bottom - high)
            if gap <= _FAR_APART * (high - low + top - bottom):
                panel.append(name)
                break
        else:
            panels.append([name])
    return panels


def _range(lines: Sequence[Points]) -> tuple[float, float]:
    """Smallest y of the lines, and the largest from the first twentieth of each on."""
    late = [y for points in lines for _, y in points[math.ceil(len(points) / 20) if len(points) > 4 else 0 :]]
    return min(y for points in lines for _, y in points), max(late)


def _window(lines: Sequence[Points]) -> tuple[float, float]:
    """Limits of y: the range with a margin of 6%."""
    low, high = _range(lines)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - margin, high + margin
