"""Grids, curves and scatter plots: the pixels and points that they hold, and no state behind them."""

import io
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.ops.random import forked_rng
from ppgen.plots.canvas import DARK, LIGHT, to_png
from ppgen.plots.curves import curves, loss_series
from ppgen.plots.images import image_grid, image_rows, is_image, tile
from ppgen.plots.scatter import principal_plane, scatter_pair


def test_tiles_stand_where_they_should_with_clear_gaps() -> None:
    images = torch.stack([torch.full((1, 8, 8), v) for v in (0.25, 0.5, 0.75)])
    tiled = tile(images, columns=2)
    assert tiled.shape == (17, 17, 4)
    assert torch.equal(tiled[:8, :8], torch.tensor([0.25, 0.25, 0.25, 1.0]).expand(8, 8, 4))
    assert torch.equal(tiled[:8, 9:, 0], torch.full((8, 8), 0.5))
    assert torch.equal(tiled[9:, :8, 0], torch.full((8, 8), 0.75))
    assert (tiled[8, :, 3] == 0).all()  # the gap
    assert (tiled[9:, 9:, 3] == 0).all()  # no fourth image


def test_tiles_keep_colour_and_clip() -> None:
    image = torch.tensor([2.0, -1.0, 0.5])[None, :, None, None].expand(1, 3, 4, 4)
    assert tile(image)[0, 0].tolist() == [1.0, 0.0, 0.5, 1.0]


def test_rows_of_images_stand_below_each_other_with_their_names() -> None:
    dark, light = torch.zeros(4, 1, 8, 8), torch.ones(8, 3, 8, 8)
    figure = image_rows({"dark": dark, "light": light}, columns=4)
    above, below = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["dark", "light"]
    assert above.images[0].get_size() == (8, 35)
    assert below.images[0].get_size() == (17, 35)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].y0 > boxes[1].y1
    for box, lines in zip(boxes, (8, 17), strict=True):
        assert box.height / box.width == pytest.approx(lines / 35)
    assert image_rows({"one": light}).axes[0].images[0].get_size() == (8, 71)
    with pytest.raises(ConfigError, match="rows"):
        image_rows({})
    with pytest.raises(ShapeError, match="N > 0"):
        image_rows({"none": dark[:0]})


def test_notebooks_show_figures_without_pyplot() -> None:
    figure: Any = image_grid(torch.zeros(1, 1, 8, 8))
    assert figure._repr_png_() == to_png(figure, dpi=100)


def test_bad_images_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"images: expected shape \(N, 1 or 3, H, W\)"):
        tile(torch.zeros(3, 8, 8))
    with pytest.raises(ShapeError, match="N > 0"):
        tile(torch.zeros(0, 1, 8, 8))
    with pytest.raises(ConfigError, match="columns"):
        tile(torch.zeros(1, 1, 8, 8), columns=0)
    assert is_image((1, 8, 8))
    assert not is_image((2, 8, 8))
    assert not is_image((64,))


def test_every_pixel_becomes_a_sharp_square() -> None:
    with forked_rng(0):
        images = torch.rand(4, 1, 8, 8).round()
    pixels = imread(io.BytesIO(to_png(image_grid(images, columns=2, pixels=170))), format="png")
    assert pixels.shape == (170, 170, 4)
    expected = tile(images, columns=2).repeat_interleave(10, 0).repeat_interleave(10, 1)
    assert torch.equal(torch.as_tensor(pixels.copy())[..., 3], expected[..., 3])
    shown = expected[..., 3] == 1
    assert torch.equal(torch.as_tensor(pixels.copy())[shown], expected[shown])


def test_equal_figures_give_equal_files() -> None:
    series = {"training": [(1.0, 2.0), (2.0, 1.0)]}
    assert to_png(curves(series)) == to_png(curves(series))
    assert to_png(curves(series)) != to_png(curves(series, theme=DARK))


def test_losses_of_a_history() -> None:
    history: list[dict[str, float | None]] = [
        {"epoch": 1.0, "loss": 3.0, "validation_loss": None},
        {"epoch": 2.0, "loss": math.nan, "validation_loss": 2.5},
        {"epoch": 3.0, "loss": 1.0, "validation_loss": 2.0},
    ]
    found = loss_series(history)
    assert found == {"training": [(1.0, 3.0), (3.0, 1.0)], "validation": [(2.0, 2.5), (3.0, 2.0)]}
    assert loss_series([]) == {}


def test_two_players_show_their_own_losses() -> None:
    history = [
        {"epoch": 1.0, "loss": 3.0, "critic_loss": 1.0, "generator_loss": 2.0, "validation_loss": None}
    ]
    assert loss_series(history) == {"critic": [(1.0, 1.0)], "generator": [(1.0, 2.0)]}


def test_a_poor_start_does_not_flatten_the_curve() -> None:
    points = [(float(i), 1e6 if i == 0 else 1.0 + 1.0 / (i + 1)) for i in range(40)]
    (axes,) = curves({"training": points}).axes
    assert axes.get_ylim()[1] < 2.0
    (axes,) = curves({"critic": [(x, -y) for x, y in points]}).axes
    assert axes.get_ylim()[0] < -1e6  # a low start is no fall: it stays in sight


def test_losses_far_apart_stand_in_panels_of_their_own() -> None:
    near = {"training": [(1.0, 3.0), (2.0, 1.0)], "validation": [(1.0, 3.5), (2.0, 2.0)]}
    far = {"training": [(1.0, 3.0), (2.0, 1.0)], "validation": [(1.0, 903.0), (2.0, 901.0)]}
    assert len(curves(near).axes) == 1
    assert len(curves(far).axes) == 2
    assert [axes.lines[0].get_label() for axes in curves(far).axes] == [*far]
    assert len(curves(near, apart=True).axes) == 2


def test_one_epoch_and_a_flat_line_can_be_drawn() -> None:
    assert to_png(curves({"training": [(1.0, 2.0)]})).startswith(b"\x89PNG")
    assert to_png(curves({"training": [(1.0, 0.0), (2.0, 0.0)]})).startswith(b"\x89PNG")


def test_nothing_finite_is_an_error() -> None:
    with pytest.raises(DataError, match="finite"):
        curves({"training": [(1.0, math.nan)]})
    with pytest.raises(DataError, match="finite"):
        curves({})


def test_principal_plane_of_a_line_in_space() -> None:
    with forked_rng(1):
        along = torch.randn(200, 1, dtype=torch.float64)
        x = along * torch.tensor([3.0, 0.0, 4.0]) + 0.01 * torch.randn(200, 3, dtype=torch.float64)
    project, labels = principal_plane(x)
    plane = project(x)
    assert plane.shape == (200, 2)
    # The first axis is (3, 0, 4) / 5 up to its sign.
    expected = 5 * (along[:, 0] - along.mean())
    sign = torch.sign((plane[:, 0] * expected).sum())
    assert torch.allclose(sign * plane[:, 0], expected, atol=0.06)
    assert labels[0] == "first principal axis (100%)"


def test_two_dimensions_are_left_as_they_are_and_one_gets_an_index() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(principal_plane(x)[0](x), x.double())
    project, labels = principal_plane(torch.tensor([[1.0], [5.0]]))
    assert project(torch.tensor([[7.0], [8.0]])).tolist() == [[7.0, 0.0], [8.0, 1.0]]
    assert labels == ("value", "index")


def test_scatter_holds_the_points_and_clips_strays() -> None:
    real = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    figure = scatter_pair(real, torch.tensor([[0.5, 0.5], [100.0, -100.0]]), theme=LIGHT)
    left, right = figure.axes
    assert np.asarray(left.lines[0].get_xydata()).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    stray = np.asarray(right.lines[0].get_xydata())[1]
    assert stray.tolist() == pytest.approx([1.08, -0.08])
    assert left.get_title() == "data"
    with pytest.raises(ShapeError, match="generated"):
        scatter_pair(real, torch.zeros(0, 2))


def test_no_pyplot_behind_the_figures() -> None:
    code = (
        "import sys, torch\n"
        "from ppgen.plots.canvas import to_png\n"
        "from ppgen.plots.images import image_grid\n"
        "assert 'matplotlib' not in sys.modules\n"
        "to_png(image_grid(torch.zeros(1, 1, 8, 8)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
