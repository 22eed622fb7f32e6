"""Starting points are where they should be, finite, and the same for the same seed."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, EFFECTS, ERRORS, X, Y, eight_schools, linear_regression
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch import Tensor

from ppgen.errors import ConfigError, SamplingError, ShapeError
from ppgen.inference.mcmc.potential import Potential, potential_from_function
from ppgen.inference.mcmc.starts import RADIUS, Strategy, starting_points
from ppgen.testing.statistics import assert_close_to, assert_mean

SCHOOLS = Potential(eight_schools, (EFFECTS, ERRORS), dtype=torch.float64)
STRATEGIES: dict[str, Strategy] = {
    "overdispersed": "overdispersed",
    "uniform": init_to_uniform(radius=1.0),
    "plain": init_to_uniform,
    "median": init_to_median(num_samples=5),
    "mean": init_to_mean,
    "sample": init_to_sample,
    "feasible": init_to_feasible,
    "generated": init_to_generated(generate=lambda: init_to_value(values={"mu": torch.tensor(1.5)})),
    "pathfinder": "pathfinder",
    "advi": "advi",
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_points_are_finite_and_follow_the_seed(name: str) -> None:
    state = torch.get_rng_state()
    points = starting_points(SCHOOLS, 5, STRATEGIES[name], seed=3)
    assert points.shape == (5, 10)
    assert points.dtype == torch.float64
    assert bool(SCHOOLS.density().batched(points)[0].isfinite().all())
    assert torch.equal(points, starting_points(SCHOOLS, 5, STRATEGIES[name], seed=3))
    assert torch.equal(state, torch.get_rng_state())
    if name != "feasible":
        assert not torch.equal(points, starting_points(SCHOOLS, 5, STRATEGIES[name], seed=4))
        assert len(points.unique(dim=0)) == 5


def test_overdispersed_is_uniform() -> None:
    points = starting_points(SCHOOLS, 1000, seed=0).flatten()
    assert float(points.abs().max()) < RADIUS
    assert_mean(points, 0.0)
    assert_mean(points**2, RADIUS**2 / 3)


def test_pyros_strategies_mean_what_they_mean_in_pyro() -> None:
    values = {"mu": torch.tensor(2.0), "tau": torch.tensor(3.0), "effect": torch.arange(8.0)}
    at_values = starting_points(SCHOOLS, 2, init_to_value(values=values), seed=0)
    found = SCHOOLS.constrain(at_values)
    for name, value in values.items():
        torch.testing.assert_close(found[name], value.double().expand(2, *value.shape))
    feasible = SCHOOLS.constrain(starting_points(SCHOOLS, 1, init_to_feasible, seed=0))
    assert float(feasible["tau"]) == 1.0
    generated = SCHOOLS.constrain(starting_points(SCHOOLS, 3, STRATEGIES["generated"], seed=0))
    assert generated["mu"].tolist() == [1.5] * 3
    within = starting_points(SCHOOLS, 50, init_to_uniform(radius=0.5), seed=0)
    assert float(within.abs().max()) < 0.5
    samples = SCHOOLS.constrain(starting_points(SCHOOLS, 400, init_to_sample, seed=1))
    assert_mean(samples["mu"], 0.0)
    assert_mean(samples["effect"] ** 2, torch.ones(8))


@pytest.mark.parametrize(
    "strategy", [init_to_uniform, init_to_uniform(radius=0.5), init_to_median, init_to_sample]
)
def test_improper_priors(strategy: Strategy) -> None:
    def model(y: Tensor) -> None:
        ordered = dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,))
        mean = pyro.sample("mean", ordered)
        pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y.sum())

    potential = Potential(model, (Y,), dtype=torch.float64)
    points = starting_points(potential, 20, strategy, seed=0)
    assert len(points.unique(dim=0)) == 20
    assert float(points.abs().max()) < RADIUS


def test_values_before_reparameterisation() -> None:
    entry = next(entry for entry in CATALOGUE if entry.name == "eight-schools-reparam")
    potential = Potential(entry.model, entry.args, dtype=torch.float64)
    theta = torch.arange(8.0)
    points = starting_points(potential, 2, init_to_value(values={"theta": theta}), seed=0)
    torch.testing.assert_close(potential.deterministic(points)["theta"], theta.double().expand(2, 8))


def test_unconstrained_values_with_and_without_chains() -> None:
    one = {"mu": torch.tensor(1.0), "tau": torch.tensor(-1.0), "effect": torch.zeros(8)}
    points = starting_points(SCHOOLS, 3, one, seed=0)
    assert points[:, :2].tolist() == [[1.0, -1.0]] * 3
    torch.testing.assert_close(SCHOOLS.constrain(points)["tau"], torch.full((3,), math.exp(-1.0)).double())
    many = {name: torch.stack([value, value + 1]) for name, value in one.items()}
    assert starting_points(SCHOOLS, 2, many, seed=0)[1, :2].tolist() == [2.0, 0.0]
    with pytest.raises(ShapeError, match="'mu' needs the unconstrained shape"):
        starting_points(SCHOOLS, 3, many, seed=0)
    with pytest.raises(ConfigError, match="'tau' has no value"):
        starting_points(SCHOOLS, 3, {"mu": torch.tensor(1.0)}, seed=0)
    with pytest.raises(ConfigError, match=r"\['nu'\] are no latent sites"):
        starting_points(SCHOOLS, 3, {**one, "nu": torch.tensor(0.0)}, seed=0)


def test_unknown_strategies_and_counts() -> None:
    with pytest.raises(ConfigError, match="init_strategy: expected 'overdispersed'"):
        starting_points(SCHOOLS, 2, "best", seed=0)
    with pytest.raises(ConfigError, match="num_chains: expected 1 or more, got 0"):
        starting_points(SCHOOLS, 0, seed=0)


def half_forbidden(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    pyro.factor("wall", torch.where(z > 0, 0.0, -math.inf))


def all_forbidden(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0, 1))
    pyro.factor("wall", torch.tensor(-math.inf))


def test_bad_points_are_drawn_again() -> None:
    points = starting_points(Potential(half_forbidden, (Y,)), 64, seed=0)
    assert bool((points > 0).all())


def test_no_finite_start_names_the_site() -> None:
    potential = Potential(all_forbidden, (Y,))
    with pytest.raises(SamplingError, match="4 chains .*'wall' has the log density -inf"):
        starting_points(potential, 4, seed=0, max_tries=3)
    with pytest.raises(SamplingError, match="initial_params of 4 chains"):
        starting_points(potential, 4, {"z": torch.tensor(0.0)}, seed=0)


@pytest.mark.parametrize("name", ["pathfinder", "advi"])
def test_fitted_starts_are_near_the_posterior(name: str) -> None:
    """Conjugate regression: draws of the fit have nearly the posterior's mean, in its own scale."""

    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1).to_event(1))
        pyro.sample("y", dist.Normal(x @ weight, 0.3).to_event(1), obs=y)

    potential = Potential(model, (X, Y), dtype=torch.float64)
    precision = torch.eye(3, dtype=torch.float64) + X.T @ X / 0.09
    covariance = precision.inverse()
    mean = covariance @ (X.T @ Y) / 0.09
    points = starting_points(potential, 300, name, seed=0)
    scale = covariance.diagonal().sqrt()
    # The fits are of finite length: their own error of up to half a scale is added to that of the draws.
    gap = (points.mean(0) - mean) / scale
    assert_close_to(gap, 0.0, torch.full((3,), 0.1))
    spread = points.std(0) / scale
    assert bool(((spread > 0.5) & (spread < 1.5)).all())
    default = starting_points(potential, 300, seed=0)
    energy = potential.density().batched
    assert float(energy(points)[0].median()) < float(energy(default)[0].median())


def test_functions_of_values_start_too() -> None:
    potential = potential_from_function(lambda v: (v["a"] ** 2).sum(), {"a": torch.zeros(3)})
    assert starting_points(potential, 4, seed=0).shape == (4, 3)
    assert starting_points(potential, 4, init_to_uniform, seed=0).shape == (4, 3)
    with pytest.raises(ConfigError, match="potential_fn has no sites"):
        starting_points(potential, 4, init_to_median, seed=0)


def test_regression_starts_for_many_chains() -> None:
    potential = Potential(linear_regression, (X, Y))
    assert starting_points(potential, 64, init_to_median, seed=0).shape == (64, 5)
