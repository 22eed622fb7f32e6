from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.kernel import Noise, Params, State
from ppgen.inference.mcmc.random_walk import random_walk_kernel
from ppgen.testing.statistics import assert_mean, assert_same_distribution
from tests.inference.mcmc.exact import DOUBLE, make_params, run, skewed

_PARAMS = make_params(3, num_steps=torch.tensor(1))


@pytest.mark.parametrize("biased", [False, True], ids=["right", "accepts_too_much"])
def test_exact_draws_stay_exact(biased: bool) -> None:
    whole, target = random_walk_kernel(3), skewed()

    def end(state: State, params: Params, noise: Noise) -> State:
        return whole.end(state, params, {"accept": noise["accept"] ** 3})

    kernel = replace(whole, end=end) if biased else whole
    state, _ = run(kernel, target, target.draw(4000, 10), step_size=0.8, num=5, params=_PARAMS)
    reference = target.draw(16_000, 20)
    if biased:
        with pytest.raises(AssertionError, match="Kolmogorov"):
            assert_same_distribution(state["z"], reference)
    else:
        assert_same_distribution(state["z"], reference)


def test_a_density_without_gradient_and_with_an_edge() -> None:
    """Uniform on [0, 1]: mean 1/2 and mean square 1/3; the gradient is never looked at."""

    def uniform(z: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.where((z >= 0) & (z <= 1), 0.0, torch.inf).to(z)
        return u, torch.full_like(z, torch.nan)[:, None]

    z = torch.full((2000, 1), 0.1, dtype=DOUBLE)
    params = make_params(1, num_steps=torch.tensor(1))
    state, kept = run(random_walk_kernel(1), uniform, z, step_size=0.5, num=60, params=params, record=("z",))
    assert ((kept["z"] >= 0) & (kept["z"] <= 1)).all()
    assert_mean(state["z"], 0.5)
    assert_mean(state["z"] ** 2, 1 / 3)
    assert not state["diverging"].any()


def test_rejected_chains_stand_still_and_steps_are_scaled() -> None:
    target = skewed()
    z = target.draw(2000, 1)
    scale = torch.tensor([0.1, 1.0, 2.0], dtype=DOUBLE)
    state, kept = run(
        random_walk_kernel(3),
        target,
        z,
        step_size=0.5,
        num=1,
        params=_PARAMS | {"scale": scale},
        record=("new_z",),
    )
    proposed = kept["new_z"][0]
    moved = (state["z"] != z).any(1)
    assert torch.equal(state["z"][moved], proposed[moved])
    assert_mean(((proposed - z) / scale) ** 2, torch.full((3,), 0.25, dtype=DOUBLE))
    assert 0 < moved.sum() < 2000
