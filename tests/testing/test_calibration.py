"""Simulation-based calibration passes what is exact, and sees what is biased, too wide or too narrow."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.testing.calibration import PosteriorDraws, one_by_one, sbc


def simulate(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Theta ~ Normal(0, 1), x ~ Normal(theta, 1), in two coordinates."""
    theta = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return theta, theta + torch.randn(num, 2, generator=generator, dtype=torch.float64)


def exact(x: Tensor, generator: torch.Generator, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    """The posterior Normal(x / 2, 1/2), shifted and widened by parts of its sd."""
    noise = torch.randn(len(x), 15, x.shape[1], generator=generator, dtype=torch.float64)
    return x[:, None] / 2 + 0.5**0.5 * (shift + spread * noise)


def test_exact_posteriors_are_calibrated() -> None:
    calibration = sbc(simulate, exact, names=("a", "b"))
    calibration.check()
    assert calibration.ranks.shape == (1024, 2)
    assert calibration.num_draws == 15
    assert "1024 simulations" in calibration.report()
    assert "\na " in calibration.report()


@pytest.mark.parametrize(
    ("draws", "sign"),
    [
        pytest.param(partial(exact, shift=0.25), -1, id="too large"),
        pytest.param(partial(exact, shift=-0.25), 1, id="too small"),
    ],
)
def test_bias_is_seen(draws: PosteriorDraws, sign: int) -> None:
    calibration = sbc(simulate, draws)
    assert bool((calibration.bias * sign > 0).all())
    with pytest.raises(AssertionError, match="not calibrated"):
        calibration.check()


@pytest.mark.parametrize(
    ("draws", "sign"),
    [
        pytest.param(partial(exact, spread=1.25), -1, id="too wide"),
        pytest.param(partial(exact, spread=0.8), 1, id="too narrow"),
    ],
)
def test_wrong_spread_is_seen(draws: PosteriorDraws, sign: int) -> None:
    calibration = sbc(simulate, draws)
    assert bool((calibration.spread * sign > 0).all())
    with pytest.raises(AssertionError, match="not calibrated"):
        calibration.check()


def test_discrete_parameters_have_uniform_ranks() -> None:
    def coins(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randint(2, (num, 1), generator=generator), torch.zeros(num)

    def posterior(data: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (len(data), 9, 1), generator=generator)

    sbc(coins, posterior).check()


def test_the_z_scores_have_unit_variance() -> None:
    scores = [sbc(simulate, exact, num_simulations=200, seed=seed) for seed in range(200)]
    z = torch.cat([torch.stack([c.bias, c.spread]) for c in scores], 1)
    # The variance of 400 squared standard normals has a standard error of sqrt(2 / 400).
    assert float((z.var(1) - 1).abs().max()) < 5 * (2 / 400) ** 0.5


def test_a_method_for_one_data_set_at_a_time() -> None:
    def infer(x: Tensor, seed: int) -> Tensor:
        return exact(x[None], torch.Generator().manual_seed(seed))[0]

    sbc(simulate, one_by_one(infer), num_simulations=200).check()


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_simulations"):
        sbc(simulate, exact, num_simulations=10)
    with pytest.raises(DataError, match="posterior_draws: expected"):
        sbc(simulate, lambda x, generator: exact(x, generator)[:, 0])
    with pytest.raises(DataError, match="not finite"):
        sbc(simulate, lambda x, generator: exact(x, generator) * torch.nan)
