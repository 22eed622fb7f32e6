"""Grids of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.plots.canvas import DPI, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def is_image(event_shape: torch.Size | tuple[int, ...]) -> bool:
    """Whether a datum of this shape is a picture: ``(1 or 3, H, W)``."""
    return len(event_shape) == 3 and event_shape[0] in (1, 3)


def tile(images: Tensor, *, columns: int = 8) -> Tensor:
    """Put images side by side, row by row, on a transparent ground.

    Args:
        images: shape ``(N, C, H, W)`` with C 1 (grey) or 3 (colour), values in [0, 1];
            what lies outside is clipped.
        columns: images in a row.

    Returns:
        RGBA values in [0, 1], shape ``(rows, width, 4)``, float32 on the CPU; the gaps, an
        eighth of an image wide, and the places after the last image have alpha 0.

    Raises:
        ShapeError: ``images`` has another shape, or is empty.
        ConfigError: ``columns`` is not positive.
    """
    if images.ndim != 4 or not is_image(images.shape[1:]) or len(images) == 0:
        raise ShapeError(f"images: expected shape (N, 1 or 3, H, W) with N > 0, got {tuple(images.shape)}")
    if columns < 1:
        raise ConfigError(f"columns: expected a positive integer, got {columns}")
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    gap = max(1, round(max(height, width) / 8))
    ground = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap, 4)
    pixels = images.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(0, 1)
    pixels = pixels.expand(count, 3, height, width).permute(0, 2, 3, 1)
    for index in range(count):
        top = index // columns * (height + gap)
        left = index % columns * (width + gap)
        ground[top : top + height, left : left + width, :3] = pixels[index]
        ground[top : top + height, left : left + width, 3] = 1.0
    return ground


def image_grid(images: Tensor, *, columns: int = 8, pixels: int = 560) -> Figure:
    """A figure with nothing but the tiled images on a transparent ground.

    Args:
        images: shape ``(N, C, H, W)``, values in [0, 1]; see :func:`tile`.
        columns: images in a row.
        pixels: width of the PNG that :func:`~ppgen.plots.canvas.to_png` makes, about: each pixel of
            an image becomes a square of a whole number of pixels, so that none is blurred.
    """
    tiled = tile(images, columns=columns)
    rows, across = tiled.shape[:2]
    scale = max(1, round(pixels / across)) / DPI
    figure = new_figure(across * scale, rows * scale)
    figure.set_facecolor("none")
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(tiled.numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure


def image_rows(
    rows: Mapping[str, Tensor], *, columns: int | None = None, width: float = 5.6, label_width: float = 1.25
) -> Figure:
    """A figure of rows of images, one below the other, each with its name on the left.

    Args:
        rows: by name, images of shape ``(N, C, H, W)``, values in [0, 1]; see :func:`tile`.
        columns: images in a line, of which a row may have several; by default a row is one line.
        width: of the figure, inches.
        label_width: of the part of it that is for the names, inches.

    Raises:
        ConfigError: no rows.
        ShapeError: images of another shape, or none.
    """
    if not rows:
        raise ConfigError("rows: expected one row or more, got none")
    tiles = {name: tile(images, columns=columns or max(1, len(images))) for name, images in rows.items()}
    across, gap = width - label_width, 0.05
    heights = [across * len(tiled) / tiled.shape[1] for tiled in tiles.values()]
    total = sum(heights) + gap * (len(heights) - 1)
    figure = new_figure(width, total)
    figure.set_layout_engine("none")
    top = total
    for height, (name, tiled) in zip(heights, tiles.items(), strict=True):
        axes = figure.add_axes((label_width / width, (top - height) / total, across / width, height / total))
        axes.imshow(tiled.numpy(), interpolation="nearest", aspect="auto")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        top -= height + gap
    return figure
