"""The pictures of a report, as PNG files: samples, data beside them, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppgen.contract import GenerativeModel, HasDefaultObjective
from ppgen.plots.canvas import DARK, LIGHT, to_png
from ppgen.plots.curves import curves, loss_series
from ppgen.plots.images import image_grid, is_image
from ppgen.plots.scatter import principal_plane, scatter_pair
from ppgen.report.table import write_atomically

_SHOWN_IMAGES = 64
_SHOWN_POINTS = 1500


def draw_samples(place: Path, real: Tensor, samples: Tensor) -> None:
    """Write ``samples.png`` and, for images, ``data.png``; for other data both stand in one figure.

    Args:
        place: directory.
        real: test data, shape ``(N, *event_shape)``.
        samples: draws in the values of the data, shape ``(M, *event_shape)``.
    """
    if is_image(real.shape[1:]):
        for name, images in (("samples", samples), ("data", real)):
            write_atomically(place / f"{name}.png", to_png(image_grid(images[:_SHOWN_IMAGES])))
        return
    project, labels = principal_plane(real)
    points = [project(x[:_SHOWN_POINTS]) for x in (real, samples)]
    finite = points[1][torch.isfinite(points[1]).all(-1)]
    drawn = finite if len(finite) else points[0][:0]
    for suffix, theme in (("", LIGHT), ("-dark", DARK)):
        figure = scatter_pair(points[0], drawn, titles=("test data", "samples"), labels=labels, theme=theme)
        write_atomically(place / f"samples{suffix}.png", to_png(figure))


def draw_curves(place: Path, history: Sequence[Mapping[str, float | None]], model: GenerativeModel) -> None:
    """Write ``curves.png`` and ``curves-dark.png`` where the history has a loss to draw."""
    series = loss_series(history)
    if not series:
        return
    objective = model.default_objective() if isinstance(model, HasDefaultObjective) else None
    name = getattr(objective, "loss_name", "loss")
    apart = name != "loss" and "training" in series
    if apart:
        series = {f"training ({name})" if key == "training" else key: line for key, line in series.items()}
    label = "loss" if model.density is None else "loss (nats a datum)"
    for suffix, theme in (("", LIGHT), ("-dark", DARK)):
        write_atomically(
            place / f"curves{suffix}.png", to_png(curves(series, y_label=label, apart=apart, theme=theme))
        )
