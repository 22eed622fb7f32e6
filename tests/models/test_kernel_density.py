"""Kernel density estimates: quadrature, scikit-learn, brute-force cross-validation, conditioning, digits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

import ppgen
from ppgen import datasets
from ppgen.distributions.kernel_mixture import KERNELS, KernelMixture
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError, TrainingWarning
from ppgen.inference.checkpoint import load_model, save_model
from ppgen.metrics import bits_per_dim
from ppgen.models.kernel_density import KernelDensity
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, assert_same_distribution


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):  # new models have centres at random
        yield


def data(num: int, num_dims: int) -> Tensor:
    with forked_rng(0):
        return torch.randn(num, num_dims, dtype=torch.float64) * torch.arange(1, num_dims + 1)


def fitted(x: Tensor, **options: Any) -> KernelDensity:
    with forked_rng(1):
        model = KernelDensity(tuple(x.shape[1:]), **options).to(x.dtype)
        model.initialise(x)
    return model


@pytest.mark.parametrize("num_dims", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_densities_integrate_to_one(kernel: Any, num_dims: int) -> None:
    model = fitted(data(5, num_dims), kernel=kernel, bandwidth=[0.7, 1.1][:num_dims])
    num = {1: 200_001, 2: 2401}[num_dims]
    axis = torch.linspace(-12, 12, num, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * num_dims).view(-1, num_dims)
    with torch.no_grad():
        density = model.log_likelihood(points).value.exp()
    total = float(density.sum() * (axis[1] - axis[0]) ** num_dims)
    # A uniform kernel jumps at its edge: the midpoint rule counts cells, to one in its circumference.
    jump = {1: 2e-5, 2: 2e-3}[num_dims]
    kink = {1: 1e-8, 2: 1e-5}[num_dims]
    assert total == pytest.approx(1, abs={"gaussian": 1e-9, "epanechnikov": kink, "uniform": jump}[kernel])


@pytest.mark.parametrize("num_dims", [1, 3, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_volumes_of_radial_shells_sum_to_one(kernel: Any, num_dims: int) -> None:
    # One centre at 0: the integral over shells of area S r^(D-1), by the trapezoidal rule inside the ball.
    zero = torch.zeros(1, num_dims, dtype=torch.float64)
    kde = KernelMixture(zero, torch.full((num_dims,), 1.0, dtype=torch.float64), kernel)
    radius = torch.linspace(0, 1 if kernel != "gaussian" else 15, 20_001, dtype=torch.float64)
    points = torch.zeros(len(radius), num_dims, dtype=torch.float64)
    points[:, 0] = radius
    log_area = math.log(2) + num_dims / 2 * math.log(math.pi) - math.lgamma(num_dims / 2)
    shells = kde.log_prob(points).exp() * math.exp(log_area) * radius ** (num_dims - 1)
    assert float(torch.trapezoid(shells, radius)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("kernel", "peer"), [(k, k.replace("uniform", "tophat")) for k in KERNELS])
def test_densities_are_those_of_scikit_learn(kernel: Any, peer: str) -> None:
    from sklearn.neighbors import KernelDensity as Peer

    x, new = data(80, 3), data(100, 3).flip(0)
    ours = fitted(x, kernel=kernel, bandwidth=2.5).double()
    ours.log_bandwidth.data.fill_(math.log(2.5))
    # A leaf that holds all data makes the peer sum directly; its trees lose digits in many dimensions.
    theirs = torch.tensor(Peer(kernel=peer, bandwidth=2.5, leaf_size=1000).fit(x).score_samples(new))
    torch.testing.assert_close(ours.log_likelihood(new).value.detach(), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_story_with_centres_has_the_same_density(kernel: Any) -> None:
    model = fitted(data(7, 2), kernel=kernel, bandwidth=3.0)
    x = data(7, 2) + 0.1
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model.centre_model, lambda x: None, x)
    assert loss == pytest.approx(-float(model.log_likelihood(x).value.sum().detach()))
    with forked_rng(2), torch.no_grad():
        drawn = model.centre_model(num=4000)
    assert_same_distribution(model.sample(4000, seed=3), drawn)


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_have_the_radii_of_the_kernel(kernel: Any) -> None:
    model = fitted(torch.zeros(1, 3, dtype=torch.float64), kernel=kernel, bandwidth=2.0)
    squares = (model.sample(20_000, seed=4) / 2).square().sum(-1)
    # D for a Gaussian; Beta(D / 2, b) for the others.
    expected = {"gaussian": 3.0, "epanechnikov": 1.5 / 3.5, "uniform": 1.5 / 2.5}[kernel]
    assert_mean(squares, expected)
    with pytest.raises(AssertionError):
        assert_mean(squares * 1.05, expected)


def brute_force(x: Tensor, fold: list[int], log_kernel: Any, h: float) -> float:
    """The cross-validated log-likelihood, pair by pair."""
    total = 0.0
    for n in range(len(x)):
        others = [j for j in range(len(x)) if fold[j] != fold[n] and not torch.equal(x[j], x[n])]
        terms = [math.exp(log_kernel(float((x[n] - x[j]).norm()) / h)) / h ** x.shape[1] for j in others]
        total += math.log(max(sum(terms), 1e-300) / len(others))
    return total / len(x)


def log_gauss(r: float) -> float:
    return -0.5 * r * r - math.log(2 * math.pi)


def log_epanechnikov(r: float) -> float:
    return math.log(2 / math.pi * (1 - r * r)) if r < 1 else -1e9


@pytest.mark.parametrize(
    ("kernel", "log_kernel"), [("gaussian", log_gauss), ("epanechnikov", log_epanechnikov)]
)
def test_the_bandwidth_is_the_best_of_leave_one_out(kernel: Any, log_kernel: Any) -> None:
    x = data(40, 2)
    x[3] = x[17]  # an exact copy, which is left out with the datum
    model = fitted(x, kernel=kernel)
    h = float(model.bandwidth[0].detach())
    best = brute_force(x, list(range(40)), log_kernel, h)
    assert float(model.cross_validated) == pytest.approx(best, abs=1e-9)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert brute_force(x, list(range(40)), log_kernel, factor * h) < best


def test_folds_are_left_out_as_a_whole() -> None:
    x = data(40, 2)
    with forked_rng(5):
        model = KernelDensity((2,), folds=4).double()
        state = torch.get_rng_state()
        model.initialise(x)
        torch.set_rng_state(state)
        fold = (torch.randperm(40) % 4).tolist()
    h = float(model.bandwidth[0].detach())
    assert float(model.cross_validated) == pytest.approx(brute_force(x, fold, log_gauss, h), abs=1e-9)
    assert brute_force(x, fold, log_gauss, 1.1 * h) < float(model.cross_validated)
    assert brute_force(x, fold, log_gauss, 0.9 * h) < float(model.cross_validated)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_search_that_begins_with_a_part_ends_with_all(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth row, which the first search sees, has a near copy: with these alone it ends too narrow."""
    x = data(300, 2)
    x[1::5] = x[::5] + 1e-3
    monkeypatch.setattr("ppgen.models.kernel_density._FEW", 60)
    model = fitted(x, kernel=kernel)

    def cross_validated(factor: float) -> float:
        other = fitted(x, kernel=kernel, bandwidth=factor * float(model.bandwidth[0].detach()))
        return float(other.cross_validated)

    assert cross_validated(1.0) == pytest.approx(float(model.cross_validated), abs=1e-6)
    for factor in (0.3, 0.9, 1.1, 3.0):
        assert cross_validated(factor) < float(model.cross_validated)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("unit", [1e-25, 1e15])
def test_units_whose_squares_do_not_fit_the_type(unit: float, scaled: bool) -> None:
    x = data(60, 2).float()
    plain, other = fitted(x, scaled=scaled), fitted(x * unit, scaled=scaled)
    torch.testing.assert_close(other.bandwidth / unit, plain.bandwidth, rtol=1e-4, atol=0)


def test_scaled_bandwidths_do_not_care_for_units() -> None:
    x, units = data(60, 2), torch.tensor([1.0, 1000.0], dtype=torch.float64)
    plain, rescaled = fitted(x, scaled=True), fitted(x * units, scaled=True)
    torch.testing.assert_close(rescaled.bandwidth, plain.bandwidth * units)
    torch.testing.assert_close(
        rescaled.log_likelihood(x * units).value, plain.log_likelihood(x).value - math.log(1000)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_coordinates_follow_the_conditional(kernel: Any) -> None:
    centres = torch.tensor([[0.0, 0.0, 0.0], [1.5, 3.0, -2.0], [0.4, -3.0, 1.0]], dtype=torch.float64)
    model = fitted(centres, kernel=kernel, bandwidth=1.5)
    x = torch.tensor([[-0.6, math.nan, math.nan]], dtype=torch.float64)
    drawn = model.condition(x, ~x.isnan(), 20_000, seed=6)[:, 0]
    assert bool((drawn[:, 0] == -0.6).all())
    # By quadrature over the two that are missing.
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    free = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = model.log_likelihood(torch.cat([torch.full_like(free[:, :1], -0.6), free], 1)).value.exp()
    weight = density / density.sum()
    moments = torch.cat([free, free.square(), (free[:, 0] * free[:, 1])[:, None]], 1)
    seen = drawn[:, 1:]
    found = torch.cat([seen, seen.square(), (seen[:, 0] * seen[:, 1])[:, None]], 1)
    assert_mean(found, weight @ moments)
    unconditional = model.sample(20_000, seed=6)[:, 1:]
    wrong = torch.cat([unconditional, unconditional.square(), unconditional.prod(1, keepdim=True)], 1)
    with pytest.raises(AssertionError):
        assert_mean(wrong, weight @ moments)


def test_gradients_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = fitted(data(50, 2)), data(40, 2)

    def gradients() -> tuple[Tensor, ...]:
        value = model.log_likelihood(x).value.sum()
        return value.detach(), *torch.autograd.grad(value, [model.log_bandwidth]), model.score(x)

    whole = gradients()
    monkeypatch.setattr("ppgen.distributions.kernel_mixture.rows_per_chunk", lambda *_: 7)
    for ours, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(ours, expected)
    # The score in closed form: responsibilities times differences.
    h = model.bandwidth.detach()
    differences = (model.centres - x[:, None]) / h**2
    shares = (-0.5 * (differences * h).square().sum(-1)).softmax(-1)
    torch.testing.assert_close(whole[2], (shares[..., None] * differences).sum(1))


def test_fit_is_one_computation_and_each_starts_afresh() -> None:
    model = KernelDensity((2,))
    for num in (30, 50):
        x = data(num, 2).float()
        result = ppgen.fit(model, x, progress=False, device="cpu")
        assert (result.ok, result.epochs, model.centres.shape) == (True, 1, (num, 2))
        assert result.history[0]["loss"] == pytest.approx(-float(model.cross_validated))


def test_without_centres_there_is_no_density() -> None:
    model = KernelDensity((2,))
    x = torch.zeros(3, 2)
    uses: tuple[Callable[[], Any], ...] = (
        lambda: model.log_likelihood(x),
        lambda: model.score(x),
        lambda: model.sample(2, seed=0),
        lambda: model.condition(x, x == 0),
        lambda: model.centre_model(x),
    )
    for use in uses:
        with pytest.raises(CapabilityError, match=r"no centres yet.*fit it first"):
            use()


def test_a_model_of_other_size_takes_up_a_state(tmp_path: Path) -> None:
    model = fitted(data(20, 2).float())
    save_model(model, tmp_path / "kde")
    loaded = load_model(tmp_path / "kde")
    assert isinstance(loaded, KernelDensity)
    assert torch.equal(loaded.centres, model.centres)


def test_digits() -> None:
    digits = datasets.load("digits")
    train = digits.train.joined(digits.validation)
    found = {}
    for scaled in (False, True):
        model = KernelDensity(digits.event_shape, scaled=scaled)
        ppgen.fit(model, train, progress=False, device="cpu")
        found[scaled] = float(bits_per_dim(model, digits.test, num_dequantisations=2).value)
    # The best single bandwidth on the test data, .15, has 3.478.
    assert 3.47 < found[False] < 3.51
    assert found[True] < 3.09


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, [1.0, 0.0], "scott"])
def test_impossible_bandwidths(bandwidth: Any) -> None:
    with pytest.raises(ConfigError, match="bandwidth"):
        KernelDensity((2,), bandwidth=bandwidth)


def test_other_bad_input() -> None:
    for options in ({"kernel": "cosine"}, {"folds": 1}, {"num_centres": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            KernelDensity((2,), **options)
    with pytest.raises(ShapeError, match="bandwidth"):
        KernelDensity((2,), bandwidth=[1.0, 2.0, 3.0])
    same = torch.ones(10, 2)
    for scaled in (False, True):
        with pytest.raises(DataError, match="all the same"):
            KernelDensity((2,), scaled=scaled).initialise(same)
    with pytest.raises(DataError, match="NaN"):
        KernelDensity((2,)).initialise(torch.tensor([[0.0, math.nan], [1.0, 2.0]]))
    with pytest.raises(ConfigError, match="folds"):
        KernelDensity((2,), folds=5).initialise(torch.randn(3, 2, generator=torch.Generator()))
    far = fitted(data(5, 2), kernel="uniform", bandwidth=0.1)
    assert far.log_likelihood(torch.full((1, 2), 50.0, dtype=torch.float64)).value.isneginf().all()
    with pytest.raises(DataError, match="no kernel reaches"):
        far.condition(torch.tensor([[50.0, 0.0]], dtype=torch.float64), torch.tensor([[True, False]]))


def test_a_kernel_that_reaches_no_other_datum_is_told() -> None:
    model = KernelDensity((1,), kernel="uniform", bandwidth=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        result = ppgen.fit(model, torch.tensor([[0.0], [0.05], [9.0]]), progress=False, device="cpu")
    assert not result.ok
    assert "unreached" in " ".join(result.warnings)
