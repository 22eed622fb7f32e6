"""Sequential Monte Carlo against the evidence in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.contract import Kind
from ppgen.errors import ConfigError
from ppgen.inference.annealing.path_ends import PathEnds
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.inference.smc import SMC
from ppgen.ops.weights import log_mean_weight
from ppgen.testing.statistics import assert_close_to, assert_mean

_X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
_Y = _X @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(12, generator=torch.Generator().manual_seed(1))


def regression(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def evidence() -> Tensor:
    covariance = 4 * _X.double() @ _X.double().T + 0.25 * torch.eye(12, dtype=torch.float64)
    return dist.MultivariateNormal(torch.zeros(12, dtype=torch.float64), covariance).log_prob(_Y.double())


def test_evidence_and_posterior() -> None:
    found = SMC(regression, num_particles=1600, num_islands=40, seed=0, compile=False).run(_X, _Y)
    assert found.ok, found.warnings
    assert found.log_evidence.kind is Kind.LOWER_BOUND
    assert_close_to(found.log_evidence.value, evidence(), found.log_evidence.std_error)
    assert_close_to(found.thermodynamic.value, evidence(), found.thermodynamic.std_error)
    # The weights of all particles are those of all islands together.
    torch.testing.assert_close(log_mean_weight(found.log_weights)[0], found.log_evidence.value)
    precision = _X.T @ _X / 0.25 + torch.eye(2) / 4
    weights = found.log_weights.softmax(0)[:, None]
    islands = (weights * found.samples["w"].double()).view(40, 40, 2).sum(0) / weights.view(40, 40, 1).sum(0)
    mean = (weights * found.samples["w"].double()).sum(0)
    shares = weights.view(40, 40, 1).sum(0)
    error = ((shares * (islands - mean)) ** 2).sum(0).sqrt()
    assert_close_to(mean, torch.linalg.solve(precision, _X.T @ _Y / 0.25), error)


def unbiased(defect: bool = False) -> None:
    """The evidence of each of many small islands, on average."""
    ends = PathEnds(regression, None, (_X, _Y), {}, dtype=torch.float64)
    plan = Plan(2000, num_temperatures=12, num_transitions=2, num_pilot=200, seed=0, compile=False)
    tempering = Tempering(ends.potential.density(path=True), ends.draw, plan)
    walk = tempering.up(resample_below=0.9, num_islands=200)
    log_z = log_mean_weight(walk.log_weights)[0]
    log_z = log_z if defect else log_z + walk.log_resampled
    assert_mean((log_z - evidence()).exp(), 1.0)


def test_islands_are_unbiased() -> None:
    unbiased()


def test_forgotten_weights_are_caught() -> None:
    with pytest.raises(AssertionError, match="off by"):
        unbiased(defect=True)


def test_the_same_seed_gives_the_same_figures() -> None:
    first, again = (
        SMC(regression, num_particles=64, num_islands=4, num_temperatures=5, seed=1, compile=False).run(
            _X, _Y
        )
        for _ in range(2)
    )
    assert torch.equal(first.log_weights, again.log_weights)
    assert torch.equal(first.samples["w"], again.samples["w"])


@pytest.mark.parametrize(
    ("particles", "islands"), [(64, 1), (64, 5), (6, 4)], ids=["one", "ragged", "too many"]
)
def test_islands_divide_the_particles(particles: int, islands: int) -> None:
    with pytest.raises(ConfigError, match="num_islands"):
        SMC(regression, num_particles=particles, num_islands=islands)
    with pytest.raises(ConfigError, match="resample_below"):
        SMC(regression, resample_below=0.0)
