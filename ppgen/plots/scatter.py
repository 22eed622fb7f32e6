"""Data beside samples for tables and points: two dimensions, or the two that matter most."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppgen.errors import ShapeError
from ppgen.plots.canvas import LIGHT, Theme, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def principal_plane(x: Tensor) -> tuple[Callable[[Tensor], Tensor], tuple[str, str]]:
    """The map of data to the plane in which ``x`` varies most, and the names of its axes.

    Data of two dimensions are left as they are; one dimension is set against its index.

    Args:
        x: shape ``(N, *event_shape)``; decides the plane.

    Returns:
        A map from ``(M, *event_shape)`` to ``(M, 2)``, and two axis labels.
    """
    flat = x.detach().to("cpu", torch.float64).flatten(1)
    if flat.shape[1] == 1:
        return _with_index, ("value", "index")
    if flat.shape[1] == 2:
        return lambda y: y.detach().to("cpu", torch.float64).flatten(1), ("x₁", "x₂")
    centre = flat.mean(0)
    _, values, axes = torch.linalg.svd(flat - centre, full_matrices=False)
    plane = axes[:2].T
    share = values[:2] ** 2 / (values**2).sum()

    def project(y: Tensor) -> Tensor:
        return (y.detach().to("cpu", torch.float64).flatten(1) - centre) @ plane

    names = (f"first principal axis ({share[0]:.0%})", f"second principal axis ({share[1]:.0%})")
    return project, names


def scatter_pair(
    real: Tensor,
    generated: Tensor,
    *,
    titles: tuple[str, str] = ("data", "samples"),
    labels: tuple[str, str] = ("x₁", "x₂"),
    theme: Theme = LIGHT,
) -> Figure:
    """Two scatter plots side by side on the same axes, whose range is set by ``real``.

    Args:
        real: shape ``(N, 2)``.
        generated: shape ``(M, 2)``; draws outside the range are clipped to its edge.
        titles: over the two plots.
        labels: of the two axes.
        theme: the colours.

    Raises:
        ShapeError: one of them is not a set of points in the plane.
    """
    for name, points in (("real", real), ("generated", generated)):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ShapeError(f"{name}: expected shape (N, 2) with N > 0, got {tuple(points.shape)}")
    low, high = real.min(0).values, real.max(0).values
    margin = 0.08 * (high - low).clamp_min(1e-9)
    low, high = low - margin, high + margin
    figure = new_figure(6.4, 3.3, theme=theme)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, points, title, colour in zip(
        panels, (real, generated), titles, (theme.ink, theme.first), strict=True
    ):
        plain_axes(axes, theme)
        shown = torch.minimum(torch.maximum(points, low), high)
        axes.plot(
            shown[:, 0].tolist(),
            shown[:, 1].tolist(),
            linestyle="none",
            marker="o",
            markersize=2.4,
            markeredgewidth=0,
            alpha=0.6,
            color=colour,
        )
        axes.set_title(title, fontsize=10, color=theme.ink)
        axes.set_xlabel(labels[0], fontsize=9.5)
    panels[0].set_ylabel(labels[1], fontsize=9.5)
    panels[0].set_xlim(float(low[0]), float(high[0]))
    panels[0].set_ylim(float(low[1]), float(high[1]))
    return figure


def _with_index(y: Tensor) -> Tensor:
    flat = y.detach().to("cpu", torch.float64).flatten()
    return torch.stack([flat, torch.linspace(0, 1, len(flat), dtype=torch.float64)], dim=-1)
