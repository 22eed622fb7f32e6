from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import SamplingError
from ppgen.inference.mcmc.adaptation import Tuning, Warmed, Warmup, warm_up
from ppgen.inference.mcmc.adaptation.warm_up import STRETCH
from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Energy, Kernel
from ppgen.inference.mcmc.mala import mala_kernel
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.inference.mcmc.random_walk import random_walk_kernel
from ppgen.testing.statistics import assert_mean
from tests.inference.mcmc.exact import DOUBLE, Gaussian, correlated, generator

_CASES: dict[str, tuple[Kernel, Tuning]] = {
    "nuts": (nuts_kernel(3, 8), Tuning()),
    "hmc": (hmc_kernel(3), Tuning(trajectory_length=1.5)),
    "hmc_steps": (hmc_kernel(3), Tuning(num_steps=4)),
    "chees": (hmc_kernel(3), Tuning(trajectory_length="chees")),
    "mala": (mala_kernel(3), Tuning()),
    "random_walk": (random_walk_kernel(3), Tuning()),
}


def _begin(kernel: Kernel, energy: Energy, tuning: Tuning, *, num: int, z: Tensor, seed: int = 0) -> Warmup:
    executor = EagerExecutor(kernel, energy, seed=seed)
    state = executor.init(z, torch.ones(len(z), dtype=z.dtype))
    return Warmup(executor, kernel, state, tuning, num=num, seed=seed)


def _finish(warmup: Warmup) -> Warmed:
    while not warmup.done:
        warmup.step()
    return warmup.finish()


def _uniform(num_chains: int, num_dims: int, seed: int = 5) -> Tensor:
    return 4 * torch.rand(num_chains, num_dims, generator=generator(seed), dtype=DOUBLE) - 2


def _ill_conditioned(num_dims: int = 10) -> Gaussian:
    return Gaussian(torch.diag(torch.logspace(-4, 2, num_dims, dtype=DOUBLE)))


@pytest.mark.parametrize("case", list(_CASES))
def test_acceptance_and_draws_are_right_after_warm_up(case: str) -> None:
    kernel, tuning = _CASES[case]
    target, num_chains = correlated(), 200
    warmup = _begin(kernel, target, tuning, num=120, z=_uniform(num_chains, 3))
    warmed = _finish(warmup)
    assert warmed.report.warnings == []
    assert warmed.report.restarts == []
    # 64: a whole round of Halton's sequence. Means over few transitions of few steps are coarse.
    state, kept = warmup.executor.run(
        warmed.state, warmed.params, num=64, schedule=warmed.schedule(0, 64), record=("accept_prob",)
    )
    assert float(kept["accept_prob"].mean()) == pytest.approx(tuning.target(kernel.name), abs=0.1)
    # The last draws of independent chains are independent.
    assert_mean(state["z"], torch.zeros(3, dtype=DOUBLE))
    assert_mean(state["z"][:, :, None] * state["z"][:, None], target.covariance)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "dense"])
def test_mass_is_the_covariance(full: bool) -> None:
    target = correlated()
    tuning = Tuning(trajectory_length="chees", full_mass=full)
    warmed = _finish(_begin(hmc_kernel(3), target, tuning, num=200, z=_uniform(64, 3)))
    scale = warmed.params["scale"]
    found = scale @ scale.T if full else scale**2
    expected = target.covariance if full else target.covariance.diagonal()
    spread = torch.outer(sd := target.covariance.diagonal().sqrt(), sd) if full else expected
    # 64 chains, 90 transitions: with independent transitions the error would be 2%.
    assert ((found - expected).abs() / spread < 0.15).all()


def test_one_chain_learns_scale_and_step_size() -> None:
    target = Gaussian(torch.diag(torch.logspace(-1, 1, 5, dtype=DOUBLE)))
    warmed = _finish(_begin(nuts_kernel(5), target, Tuning(), num=600, z=_uniform(1, 5)))
    ratio = warmed.params["scale"] / target.covariance.diagonal().sqrt()
    assert ((ratio > 0.6) & (ratio < 1.6)).all()
    assert warmed.report.accept_prob == pytest.approx(0.8, abs=0.15)


def test_the_same_target_in_float32() -> None:
    target = Gaussian(correlated().covariance.float())
    warmed = _finish(
        _begin(nuts_kernel(3), target, Tuning(full_mass=True), num=100, z=_uniform(32, 3).float())
    )
    assert warmed.state["z"].dtype == torch.float32
    assert warmed.params["scale"].dtype == torch.float32
    assert warmed.report.warnings == []


def test_chees_of_a_standard_normal() -> None:
    r"""Trajectories :math:`\cos(t) z + \sin(t) p` change :math:`|z|^2` most at a quarter of a period.

    With jitter uniform on (T/2, T) the mean of :math:`\sin^2 t`, 1/2 - (sin 2T - sin T)/(2T), has its
    maximum at T = 2.02.
    """
    target = Gaussian(torch.eye(20, dtype=DOUBLE))
    tuning = Tuning(trajectory_length="chees", target_accept_prob=0.95)
    warmed = _finish(_begin(hmc_kernel(20), target, tuning, num=400, z=_uniform(256, 20)))
    length = warmed.report.trajectory_length
    assert length is not None
    # Rounding up to whole steps adds half a step on average; Adam's noise is of the order of its rate.
    assert length / STRETCH == pytest.approx(2.02, rel=0.2)


def test_chees_grows_with_the_longest_direction() -> None:
    tuning = Tuning(trajectory_length="chees", adapt_mass_matrix=False)
    lengths = []
    for sd in (1.0, 4.0):
        target = Gaussian(torch.diag(torch.tensor([1.0] * 4 + [sd**2], dtype=DOUBLE)))
        warmed = _finish(_begin(hmc_kernel(5), target, tuning, num=400, z=_uniform(128, 5)))
        lengths.append(warmed.report.trajectory_length or math.nan)
    assert lengths[1] / lengths[0] == pytest.approx(4.0, rel=0.35)


def test_schedule_does_not_depend_on_chunks() -> None:
    kernel, tuning = _CASES["chees"]
    warmed = _finish(_begin(kernel, correlated(), tuning, num=50, z=_uniform(32, 3)))
    whole = warmed.schedule(0, 100)
    parts = [warmed.schedule(first, 20) for first in range(0, 100, 20)]
    assert whole is not None
    joined = torch.cat([part["num_steps"] for part in parts if part is not None])
    assert torch.equal(whole["num_steps"], joined)
    assert whole["num_steps"].dtype == torch.int64
    assert len(whole["num_steps"].unique()) > 1


def test_a_fixed_trajectory_has_as_many_steps_as_it_needs() -> None:
    kernel, tuning = _CASES["hmc"]
    warmed = _finish(_begin(kernel, correlated(), tuning, num=60, z=_uniform(32, 3)))
    assert int(warmed.params["num_steps"]) == math.ceil(1.5 / warmed.report.step_size)
    assert warmed.schedule(0, 10) is None


def test_nothing_is_learnt_where_nothing_is_asked() -> None:
    tuning = Tuning(step_size=0.3, adapt_step_size=False, adapt_mass_matrix=False, num_steps=5)
    warmed = _finish(_begin(hmc_kernel(3), correlated(), tuning, num=30, z=_uniform(16, 3)))
    assert warmed.report.step_size == 0.3
    assert (warmed.state["step_size"] == 0.3).all()
    assert torch.equal(warmed.params["scale"], torch.ones(3, dtype=DOUBLE))
    assert int(warmed.params["num_steps"]) == 5


@pytest.mark.parametrize("num", [0, 1, 2, 10, 20])
@pytest.mark.parametrize("case", list(_CASES))
def test_any_number_of_transitions(case: str, num: int) -> None:
    kernel, tuning = _CASES[case]
    warmup = _begin(kernel, correlated(), tuning, num=num, z=_uniform(8, 3))
    warmed = _finish(warmup)
    assert warmup.completed == num
    assert warmed.report.step_size > 0
    state, _ = warmup.executor.run(warmed.state, warmed.params, num=2, schedule=warmed.schedule(0, 2))
    assert torch.isfinite(state["z"]).all()


class TestStuckChains:
    def test_are_started_again_and_reported(self) -> None:
        """A standard normal with a shelf far away that no gradient leads out of."""

        def shelf(z: Tensor) -> tuple[Tensor, Tensor]:
            on_shelf = z[:, :1] > 50
            u = torch.where(on_shelf, 1e9, 0.5 * (z * z).sum(1, keepdim=True))
            return u, torch.where(on_shelf, 0.0, z)[:, None]

        z = _uniform(16, 3)
        z[7] = 1e6
        for kernel, tuning in (_CASES["nuts"], _CASES["chees"]):
            warmed = _finish(_begin(kernel, shelf, tuning, num=100, z=z))
            assert [item.chains for item in warmed.report.restarts] == [[7]]
            assert len(warmed.report.warnings) == 1
            assert "[7]" in warmed.report.warnings[0]
            assert warmed.report.restarts[0].stuck
            assert warmed.state["z"].abs().max() < 10
            assert warmed.report.step_size > 0.1

    def test_one_chain_in_a_steep_tail_does_not_ruin_the_others(self) -> None:
        target = correlated()
        z = _uniform(32, 3)
        z[3] = 1e4
        warmed = _finish(_begin(nuts_kernel(3, 8), target, Tuning(), num=100, z=z))
        assert warmed.report.step_size > 0.1
        assert warmed.report.accept_prob == pytest.approx(0.8, abs=0.1)

    @pytest.mark.parametrize(("drop", "moved"), [(40.0, True), (0.0, False)], ids=["worse", "equal"])
    def test_chains_leave_a_worse_mode_and_keep_one_of_equal_weight(self, drop: float, moved: bool) -> None:
        """Two normal modes a hundred standard deviations apart."""

        def modes(z: Tensor) -> tuple[Tensor, Tensor]:
            right = z[:, :1] > 50
            centred = torch.where(right, z - 100, z)
            u = 0.5 * (centred * centred).sum(1, keepdim=True) + torch.where(right, drop, 0.0)
            return u, centred[:, None]

        z = _uniform(16, 3)
        z[:6] += 100
        warmed = _finish(_begin(nuts_kernel(3, 6), modes, Tuning(), num=100, z=z))
        there = (warmed.state["z"][:, 0] > 50).nonzero()[:, 0].tolist()
        assert there == ([] if moved else list(range(6)))
        # Early in warm-up a chain that still moves is not called stuck.
        assert not any(item.stuck for item in warmed.report.restarts)
        assert sorted({c for item in warmed.report.restarts for c in item.chains}) == (
            list(range(6)) if moved else []
        )

    def test_healthy_chains_are_left_alone(self) -> None:
        kernel, tuning = _CASES["nuts"]
        warmed = _finish(_begin(kernel, _ill_conditioned(3), tuning, num=100, z=_uniform(64, 3)))
        assert warmed.report.restarts == []


def test_a_collapse_of_the_step_size_is_an_error() -> None:
    def wrong(z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise where a density should be: no step is small enough."""
        u = 1e6 * torch.sin(1e14 * z).sum(1, keepdim=True)
        return u, 1e20 * torch.ones_like(z)[:, None]

    for num_chains in (1, 16):
        with pytest.raises(SamplingError, match="step_size"):
            _finish(_begin(hmc_kernel(3), wrong, Tuning(num_steps=3), num=100, z=_uniform(num_chains, 3)))


def test_too_few_chains_for_chees_are_named() -> None:
    kernel, tuning = _CASES["chees"]
    warmed = _finish(_begin(kernel, correlated(), tuning, num=100, z=_uniform(4, 3)))
    assert any("4 chains" in text for text in warmed.report.warnings)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Mapping):
            _same(value, other[name])
        elif isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


@pytest.mark.parametrize("split", [0, 3, 16, 60])
@pytest.mark.parametrize("case", list(_CASES))
def test_interrupted_warm_up_goes_on_to_the_same_draws(case: str, split: int) -> None:
    kernel, tuning = _CASES[case]
    z = _uniform(16, 3)
    whole = _begin(kernel, correlated(), tuning, num=64, z=z)
    first = _begin(kernel, correlated(), tuning, num=64, z=z)
    while first.completed < split:
        first.step()
    second = _begin(kernel, correlated(), tuning, num=64, z=_uniform(16, 3, seed=6), seed=99)
    second.seed = 0
    second.load_state_dict(first.state_dict())
    one, other = _finish(whole), _finish(second)
    _same(whole.state_dict(), second.state_dict())
    _same(one.state, other.state)
    _same(one.params, other.params)
    assert one.report == other.report


def test_warm_up_in_one_call_can_be_stopped_and_resumed() -> None:
    kernel, tuning = _CASES["chees"]
    saved: dict[str, Any] = {}

    def stop(warmup: Warmup) -> bool:
        saved.update(warmup.state_dict())
        return warmup.completed >= 30

    def call(**others: Any) -> Warmed:
        executor = EagerExecutor(kernel, correlated(), seed=1)
        state = executor.init(_uniform(16, 3), torch.ones(16, dtype=DOUBLE))
        return warm_up(executor, kernel, state, tuning, num=60, seed=1, **others)

    call(on_step=stop)
    assert 30 <= saved["completed"] < 40
    _same(call().state, call(saved=saved).state)
