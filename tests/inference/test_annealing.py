"""The engine of annealing, on densities written by hand: ladders, weights, resampling, interrupts."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.annealing.ladders import make_ladder, next_rung, refine_ladder
from ppgen.inference.annealing.walk import Path, Stretch, anneal
from ppgen.inference.mcmc.kernel import State
from ppgen.ops.weights import (
    conditional_ess,
    effective_sample_size,
    log_mean_weight,
    systematic_resample,
)
from ppgen.testing.statistics import assert_close_to, assert_mean


class Shrinking(Path):
    """From exp(-z^2 / 2) to exp(-(z - 1)^2 / (2 0.5^2)), with moves that are an autoregression.

    Log Z_1 / Z_0 is log 0.5. ``fault`` plants a defect.
    """

    log_ratio_of_normalisers = math.log(0.5)

    def __init__(self, seed: int, fault: str = "") -> None:
        self._generator, self._fault = torch.Generator().manual_seed(seed), fault

    def draw(self, num: int) -> State:
        return {"z": torch.randn(num, 1, generator=self._generator, dtype=torch.float64)}

    def target(self, num: int) -> State:
        return {"z": 1 + 0.5 * self.draw(num)["z"]}

    def log_ratio(self, state: State, before: float, after: float) -> Tensor:
        if self._fault == "weights after the move":
            state, _ = self._autoregression(state, after)
        return (after - before) * self.slope(state, before)

    def slope(self, state: State, beta: float) -> Tensor:
        z = state["z"][:, 0]
        return z**2 / 2 - (z - 1) ** 2 / 0.5

    def move(self, state: State, beta: float) -> tuple[State, Tensor]:
        return self._autoregression(state, 1 - beta if self._fault == "reversed ladder" else beta)

    def _autoregression(self, state: State, beta: float) -> tuple[State, Tensor]:
        precision = 1 + 3 * beta
        mean, sd = 4 * beta / precision, precision**-0.5
        if self._fault == "wrong scale":
            sd *= 1.1
        noise = torch.randn(state["z"].shape, generator=self._generator, dtype=torch.float64)
        z = mean + 0.7 * (state["z"] - mean) + math.sqrt(1 - 0.49) * sd * noise
        return {"z": z}, torch.tensor(1.0, dtype=torch.float64)


def unbiased(fault: str = "") -> None:
    """The mean weight is the ratio of normalisers."""
    path = Shrinking(0, fault)
    walk = anneal(path, path.draw(100_000), make_ladder("linear", 6))
    assert_mean((walk.log_weights[:, 0] - path.log_ratio_of_normalisers).exp(), 1.0)


def test_weights_are_unbiased_for_the_ratio_of_normalisers() -> None:
    unbiased()


@pytest.mark.parametrize("fault", ["wrong scale", "weights after the move", "reversed ladder"])
def test_a_planted_defect_biases_the_weights(fault: str) -> None:
    with pytest.raises(AssertionError, match="off by"):
        unbiased(fault)


def unbiased_backwards(fault: str = "") -> None:
    path = Shrinking(1, fault)
    walk = anneal(path, path.target(100_000), make_ladder("linear", 6).flip(0))
    assert_mean((walk.log_weights[:, 0] + path.log_ratio_of_normalisers).exp(), 1.0)


def test_backwards_weights_are_unbiased_for_the_inverse() -> None:
    unbiased_backwards()
    with pytest.raises(AssertionError, match="off by"):
        unbiased_backwards("wrong scale")


@pytest.mark.parametrize("resample_below", [0.0, 0.5, 1.0])
def test_groups_are_independent_and_unbiased(resample_below: float) -> None:
    path, groups = Shrinking(2), 400
    walk = anneal(
        path,
        path.draw(10 * groups),
        make_ladder("linear", 8),
        num_groups=groups,
        resample_below=resample_below,
        generator=torch.Generator().manual_seed(0),
    )
    assert bool((walk.log_resampled != 0).any()) == (resample_below > 0)
    log_z = walk.log_resampled + log_mean_weight(walk.log_weights)[0]
    assert_mean((log_z - path.log_ratio_of_normalisers).exp(), 1.0)
    assert walk.ess.shape == walk.slope_means.shape == (9, groups)


def test_resampling_that_forgets_the_mean_weight_is_caught() -> None:
    path, groups = Shrinking(3), 400
    walk = anneal(
        path,
        path.draw(10 * groups),
        make_ladder("linear", 8),
        num_groups=groups,
        resample_below=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    log_z = log_mean_weight(walk.log_weights)[0]
    with pytest.raises(AssertionError, match="off by"):
        assert_mean((log_z - path.log_ratio_of_normalisers).exp(), 1.0)


def test_an_interrupt_leaps_to_the_end_and_stays_unbiased() -> None:
    class Interrupted(Shrinking):
        def up(self, state: State, betas: Tensor) -> Stretch:
            os.kill(os.getpid(), signal.SIGINT)
            return super().up(state, betas)

    path = Interrupted(4)
    walk = anneal(path, path.draw(20_000), make_ladder("linear", 100))
    assert walk.interrupted
    assert 1 < len(walk.betas) < 101
    assert float(walk.betas[-1]) == 1
    assert_mean((walk.log_weights[:, 0] - path.log_ratio_of_normalisers).exp(), 1.0)


# -- ladders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "salakhutdinov-murray"])
@pytest.mark.parametrize("num", [1, 2, 29, 1000])
def test_ladders_rise_from_zero_to_one(schedule: str, num: int) -> None:
    ladder = make_ladder(schedule, num)  # type: ignore[arg-type]
    assert ladder.shape == (num + 1,)
    assert (float(ladder[0]), float(ladder[-1])) == (0.0, 1.0)
    assert bool((ladder.diff() > 0).all())


def test_salakhutdinov_and_murrays_ladder_is_theirs() -> None:
    ladder = make_ladder("salakhutdinov-murray", 14_500)
    assert float(ladder[500]) == pytest.approx(0.5)
    assert float(ladder[4500]) == pytest.approx(0.9)


@pytest.mark.parametrize("given", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.6, 1.0], [1.0]])
def test_a_bad_ladder_is_named(given: list[float]) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        make_ladder(torch.tensor(given), 3)
    with pytest.raises(ConfigError, match="schedule: expected 'linear'"):
        make_ladder("cosine", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_temperatures"):
        make_ladder("linear", 0)


def test_the_next_rung_has_the_conditional_ess_asked_for() -> None:
    path = Shrinking(5)
    state, weights = path.draw(2000), torch.zeros(2000, 1, dtype=torch.float64)
    for cess in (0.5, 0.9, 0.99):
        beta = next_rung(path, state, weights, 0.0, cess)
        assert float(conditional_ess(weights, path.log_ratio(state, 0.0, beta)[:, None])) == pytest.approx(
            cess, abs=5e-3
        )
    assert next_rung(path, state, weights, 0.9, 1e-9) == 1.0


def test_forbidden_particles_do_not_stop_the_ladder() -> None:
    class Walled(Shrinking):
        def slope(self, state: State, beta: float) -> Tensor:
            return torch.where(state["z"][:, 0] > self.wall, super().slope(state, beta), -math.inf)

        wall = 0.0

    path = Walled(6)
    state, weights = path.draw(2000), torch.zeros(2000, 1, dtype=torch.float64)
    assert 0 < next_rung(path, state, weights, 0.0, 0.9) < 1
    path.wall = 100.0
    with pytest.raises(DataError, match="none of 2000 particles"):
        next_rung(path, state, weights, 0.0, 0.9)


def test_a_refined_ladder_keeps_the_places() -> None:
    ladder = torch.tensor([0.0, 0.01, 0.1, 1.0], dtype=torch.float64)
    finer = refine_ladder(ladder, found_at=0.8, cess=None, num=6)
    torch.testing.assert_close(finer[::2], ladder)
    # Steps of a variance 25 times smaller: five times as many.
    assert len(refine_ladder(ladder, found_at=0.8, cess=1 / 1.01, num=None)) == 16


# -- weights -----------------------------------------------------------------------------------------


def test_the_jackknife_is_the_delta_method_for_even_weights() -> None:
    log_weights = 0.3 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)).double()
    value, error = log_mean_weight(log_weights)
    relative = (log_weights - value).exp()
    torch.testing.assert_close(error, relative.std(0) / math.sqrt(5000), rtol=2e-3, atol=0.0)
    torch.testing.assert_close(value, log_weights.exp().mean(0).log())


def test_the_jackknife_tells_of_one_weight_that_outgrows_the_rest() -> None:
    log_weights = torch.zeros(50, 1, dtype=torch.float64)
    log_weights[7] = 200.0
    _, error = log_mean_weight(log_weights)
    # Without it the value falls by 200 - log 49.
    assert float(error) == pytest.approx((200 - math.log(49)) * 49 / 50, rel=1e-6)
    log_weights[:7] = log_weights[8:] = -math.inf
    assert log_mean_weight(log_weights)[1] == math.inf


def test_effective_sizes() -> None:
    even, one = torch.zeros(8, dtype=torch.float64), torch.full((8,), -math.inf, dtype=torch.float64)
    assert float(effective_sample_size(even)) == pytest.approx(8)
    assert float(effective_sample_size(one)) == 0
    one[3] = -1000.0
    assert float(effective_sample_size(one)) == pytest.approx(1)
    assert float(conditional_ess(even, even)) == pytest.approx(1)


def test_systematic_resampling_has_the_right_means() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
    points = torch.rand(20_000, generator=generator, dtype=torch.float64)
    rows = systematic_resample(weights.log()[:, None].expand(4, 20_000), points)
    counts = torch.nn.functional.one_hot(rows, 4).sum(0).double()
    assert_mean(counts, 4 * weights)
    assert bool((counts >= (4 * weights).floor()).all())
    assert bool((counts <= (4 * weights).floor() + 1).all())
    assert_close_to(counts.sum(1).mean(), 4.0, torch.tensor(1e-9))
    many = systematic_resample(weights.log()[:, None], points[:1], 100)
    assert torch.equal(torch.bincount(many[:, 0]), torch.tensor([5, 50, 15, 30]))
