from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ppgen.inference.mcmc.kernel import Noise, Params, State
from ppgen.inference.mcmc.mala import mala_kernel
from ppgen.testing.statistics import assert_same_distribution
from tests.inference.mcmc.exact import DOUBLE, generator, make_params, run, skewed

_EPS = 0.8
_PARAMS = make_params(3, num_steps=torch.tensor(1))


def test_acceptance_is_the_ratio_of_langevin_proposals() -> None:
    """Against Metropolis-Hastings with the two normal densities written out."""
    target, kernel = skewed(), mala_kernel(3)
    z = target.draw(100, 1)
    scale = torch.tensor([0.5, 1.0, 0.8], dtype=DOUBLE)
    params = _PARAMS | {"scale": scale}
    momentum = torch.randn(100, 3, generator=generator(2), dtype=DOUBLE)
    state = kernel.init(z, target, torch.full((100,), _EPS, dtype=DOUBLE))
    state = kernel.begin(state, params, {"momentum": momentum})
    state = kernel.advance(state, params, target, {})
    new = state["new_z"]
    state = kernel.end(state, params, {"accept": torch.full((100,), 0.5, dtype=DOUBLE)})

    def log_proposal(start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        centre = start - 0.5 * _EPS**2 * scale**2 * target(start)[1][:, 0]
        return torch.distributions.Normal(centre, _EPS * scale).log_prob(stop).sum(1)

    drift = -0.5 * _EPS**2 * scale**2 * target(z)[1][:, 0]
    torch.testing.assert_close(new, z + drift + _EPS * scale * momentum)
    ratio = target(z)[0][:, 0] - target(new)[0][:, 0] + log_proposal(new, z) - log_proposal(z, new)
    torch.testing.assert_close(state["accept_prob"], ratio.exp().clamp(max=1.0))
    assert 0 < (state["z"] == new).all(1).sum() < 100


@pytest.mark.parametrize("forgets", [False, True], ids=["right", "forgets_the_proposal_densities"])
def test_exact_draws_stay_exact(forgets: bool) -> None:
    whole, target = mala_kernel(3), skewed()

    def end(state: State, params: Params, noise: Noise) -> State:
        spoilt = state | {"start": state["u"].sum(1), "momentum": torch.zeros_like(state["momentum"])}
        return whole.end(spoilt, params, noise)

    kernel = replace(whole, end=end) if forgets else whole
    state, _ = run(kernel, target, target.draw(4000, 10), step_size=_EPS, num=5, params=_PARAMS)
    reference = target.draw(16_000, 20)
    if forgets:
        with pytest.raises(AssertionError, match="Kolmogorov"):
            assert_same_distribution(state["z"], reference)
    else:
        assert_same_distribution(state["z"], reference)


def test_one_gradient_a_transition() -> None:
    target = skewed()
    state, _ = run(mala_kernel(3), target, target.draw(10, 1), step_size=_EPS, num=3, params=_PARAMS)
    assert (state["num_steps"] == 1).all()
