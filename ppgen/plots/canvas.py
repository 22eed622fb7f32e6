"""Figures without global state: matplotlib's object interface, two themes, PNG bytes out."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 144  # pixels an inch: two a CSS pixel at the size that pages show


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: text, axes, and two series that differ in lightness as well as in hue."""

    ink: str
    muted: str
    background: str
    first: str
    second: str


LIGHT = Theme(ink="#1c2430", muted="#8a94a3", background="#ffffff", first="#1f5fa8", second="#c2571a")
DARK = Theme(ink="#e4e8ee", muted="#7d8794", background="#171c23", first="#78b4f5", second="#f2a267")


def new_figure(width: float, height: float, *, theme: Theme = LIGHT) -> Figure:
    """An empty figure of ``width`` by ``height`` inches that no global registry holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    # So that notebooks show it before pyplot, which else teaches them to, has been imported.
    vars(figure)["_repr_png_"] = functools.partial(to_png, figure, dpi=100)
    return figure


def plain_axes(axes: Axes, theme: Theme) -> None:
    """Two thin spines, quiet ticks, and the theme's colours."""
    axes.set_facecolor(theme.background)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(theme.muted)
    axes.tick_params(colors=theme.ink, labelsize=9, color=theme.muted)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)


def to_png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a PNG file, on its own background."""
    buffer = io.BytesIO()
    # The software tag would carry matplotlib's version and make equal figures differ.
    figure.savefig(
        buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()
