"""Toy data: the truth is normalised, and the data come from it."""

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from ppgen import datasets
from ppgen.datasets.planar import Banana, Checkerboard, Funnel, Polar
from ppgen.datasets.toys import TOYS
from ppgen.errors import ConfigError
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean

DENSITIES = ["two-moons", "eight-gaussians", "rings", "pinwheel", "checkerboard", "funnel", "banana"]
ENTROPIES = {"checkerboard": Checkerboard, "funnel": Funnel, "banana": Banana}


def truth_of(name: str) -> Distribution:
    """The toy's distribution in float64."""
    return TOYS[name][0](dtype=torch.float64)


def plane(name: str, step: float = 0.02) -> tuple[Tensor, Tensor]:
    """Midpoints (M, 2) that cover a toy, and the area (M,) that each stands for.

    The funnel is covered in the coordinates (v, t) with x = t exp(v / 2), where it is a Gaussian.
    """
    reach = {"funnel": 12.0, "banana": 12.0, "checkerboard": 2.5}.get(name, 5.0)
    width = {"funnel": 0.05, "banana": 0.04}.get(name, step)
    line = torch.arange(-reach + width / 2, reach, width, dtype=torch.float64)
    first, second = torch.meshgrid(line, line, indexing="ij")
    area = torch.full_like(first, width**2)
    if name == "funnel":
        area, second = area * (first / 2).exp(), second * (first / 2).exp()
    if name == "banana":  # bends far upwards: follow it
        second = second + 0.5 * (first.square() - 1.5**2)
    return torch.stack([first, second], -1).flatten(0, 1), area.flatten()


def integral(log_prob: Callable[[Tensor], Tensor], name: str) -> float:
    """The integral of the density by quadrature."""
    points, area = plane(name)
    return float((log_prob(points).exp() * area).sum())


def cells(x: Tensor) -> Tensor:
    """Number of the half-unit square that each point lies in; far squares count together."""
    column, row = ((x + 3) * 2).floor().long().clamp(-1, 12).unbind(-1)
    return (column + 1) * 14 + row + 1


def assert_draws_fit(draws: Tensor, log_prob: Callable[[Tensor], Tensor], name: str) -> None:
    """The share of draws in each square is the density's mass there."""
    points, area = plane(name)
    mass = torch.zeros(196, dtype=torch.float64).index_add_(0, cells(points), log_prob(points).exp() * area)
    share = torch.bincount(cells(draws), minlength=196) / len(draws)
    common = mass > 0.01  # where the normal approximation of a count holds
    assert int(common.sum()) > 10
    std_error = (mass * (1 - mass) / len(draws)).sqrt()
    assert_close_to(share[common], mass[common], std_error[common], name)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_density_integrates_to_one(name: str) -> None:
    """By quadrature over the plane; von Mises' normaliser is a polynomial good to 1e-6."""
    assert integral(truth_of(name).log_prob, name) == pytest.approx(1, abs=2e-6)


def test_a_missing_jacobian_is_caught() -> None:
    """The twin: without the 1 / r of polar coordinates the integral is not one."""
    truth = truth_of("rings")

    def without(x: Tensor) -> Tensor:
        return truth.log_prob(x) + torch.linalg.vector_norm(x, dim=-1).log()

    with pytest.raises(AssertionError):
        assert integral(without, "rings") == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_have_the_density(name: str) -> None:
    """The toy's own sample and the data that load() draws, square by square."""
    truth = truth_of(name)
    with forked_rng(0):
        draws = truth.sample((20_000,))
    assert draws.shape == (20_000, 2)
    assert_draws_fit(draws, truth.log_prob, name)
    data = datasets.load(name, num_train=20_000, seed=1, dtype=torch.float64)
    assert_draws_fit(data.train.x, truth.log_prob, name)
    with pytest.raises(AssertionError):  # the twin: a tenth too wide
        assert_draws_fit(draws * 1.1, truth.log_prob, name)


@pytest.mark.parametrize("name", sorted(ENTROPIES))
def test_entropy_in_closed_form(name: str) -> None:
    """The NLL of the truth on its own draws is its entropy; a tenth of a nat more is caught."""
    data = datasets.load(name, num_test=20_000, dtype=torch.float64)
    truth = data.truth
    assert isinstance(truth, Checkerboard | Funnel | Banana)
    nll = -truth.log_prob(data.test.x)
    if name == "checkerboard":  # every draw has the same density
        assert nll.allclose(truth.entropy().expand_as(nll))
        return
    assert_mean(nll, truth.entropy(), name)
    with pytest.raises(AssertionError):
        assert_mean(nll + 0.1, truth.entropy(), name)


def test_funnel_in_ten_dimensions() -> None:
    """Neal's own funnel: v has standard deviation 3, and given v all others exp(v / 2)."""
    data = datasets.load("funnel", dims=10, scale=3.0, num_train=20_000, dtype=torch.float64)
    v, rest = data.train.x[:, :1], data.train.x[:, 1:]
    assert data.event_shape == (10,)
    assert_mean((v / 3) ** 2, 1.0, "v")
    assert_mean((rest * (-v / 2).exp()) ** 2, 1.0, "x given v")
    assert data.truth is not None
    expected = torch.distributions.Normal(0.0, 3.0).log_prob(v[:, 0])
    expected = expected + torch.distributions.Normal(0.0, (v / 2).exp()).log_prob(rest).sum(-1)
    torch.testing.assert_close(data.truth.log_prob(data.train.x), expected)


def test_labels_name_the_component() -> None:
    """Of eight Gaussians the label is the nearest centre; of rings the radius."""
    data = datasets.load("eight-gaussians", num_train=2000)
    x, y = data.train.x, data.train.y
    assert y is not None
    angle = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) * 8
    assert float((angle.round().long() % 8 == y).double().mean()) > 0.99
    data = datasets.load("rings", num_train=2000)
    assert data.train.y is not None
    assert torch.equal(data.train.x.norm(dim=-1).round().long() - 1, data.train.y)
    assert datasets.load("banana").train.y is None


@pytest.mark.parametrize("name", DENSITIES)
def test_the_seed_alone_decides(name: str) -> None:
    """Same seed, same draws; the global generator is neither read nor moved."""
    before = torch.get_rng_state()
    first, second = (datasets.load(name, seed=5, num_train=n) for n in (100, 300))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.test.x, second.test.x)
    assert torch.equal(first.validation.x, second.validation.x)
    assert not torch.equal(first.test.x, datasets.load(name, seed=6).test.x)
    assert [len(s) for s in (first.train, first.validation, first.test)] == [100, 1000, 5000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DENSITIES)
def test_truth_is_a_pyro_distribution(name: str, dtype: torch.dtype) -> None:
    """It stands in a plate, is sampled and observed there, in both precisions."""
    data = datasets.load(name, num_train=7, dtype=dtype)
    truth = data.truth
    assert isinstance(truth, TorchDistributionMixin)
    assert data.train.x.dtype == dtype

    def model(x: Tensor | None = None) -> Tensor:
        with pyro.plate("data", 7):
            drawn: Tensor = pyro.sample("x", truth, obs=x)
        return drawn

    with forked_rng(0):
        assert model().shape == (7, 2)
    trace = pyro.poutine.trace(model).get_trace(data.train.x)
    expected = truth.log_prob(data.train.x)
    assert expected.dtype == dtype
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum())
    assert truth.log_prob(data.train.x[:6].reshape(2, 3, 2)).shape == (2, 3)


def test_a_ring_is_whole() -> None:
    """The angle pi itself, and the centre, have a density."""
    truth = truth_of("rings")
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    density = truth.log_prob(points)
    torch.testing.assert_close(density[0], density[1])
    assert float(density[2].exp()) == 0
    assert isinstance(truth, pyro.distributions.MixtureSameFamily)
    assert isinstance(truth.component_distribution, Polar)


def test_checkerboard_outside() -> None:
    """White squares and the outside have no mass."""
    white = torch.tensor([[-1.5, -0.5], [3.0, 0.5], [-1.5, -2.5]])
    assert Checkerboard().log_prob(white).tolist() == [-math.inf] * 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("banana", {"num_train": 0}, "num_train: expected a positive integer, got 0"),
        ("banana", {"num_test": 2.5}, "num_test: expected a positive integer, got 2.5"),
        ("banana", {"width": 0.0}, "width: expected a positive number"),
        ("funnel", {"dims": 1}, "dims: a funnel has 2 coordinates or more, got 1"),
        ("funnel", {"scale": -1.0}, "scale: expected a positive number, got -1.0"),
        ("checkerboard", {"squares": 3}, "squares: expected an even number"),
        ("eight-gaussians", {"num_components": 0}, "num_components: expected a positive integer"),
        ("rings", {"colour": "red"}, "colour: no such option of rings; it has num_train"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    """The message names the option and what it may be."""
    with pytest.raises(ConfigError, match=message):
        datasets.load(name, **options)
