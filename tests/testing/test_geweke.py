"""The joint distribution test passes exact kernels, and sees small shifts and wrong scales."""

from __future__ import annotations

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel, Noise, Params, State
from ppgen.testing import assert_close_to
from ppgen.testing.geweke import assert_leaves_invariant, assert_same_scores
from ppgen.testing.joint import joint_from_functions, joint_from_model

_HALF = 0.5**0.5


def _normal(num: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num, width, generator=generator, dtype=torch.float64)


CONJUGATE = joint_from_functions(
    lambda theta, x: -0.5 * (theta @ theta + (x - theta) @ (x - theta)),
    prior=lambda num, generator: _normal(num, 2, generator),
    data=lambda theta, generator: theta + _normal(len(theta), 2, generator),
)


def gibbs(num_dims: int, shift: float = 0.0, spread: float = 1.0) -> Kernel:
    """Draws theta from its posterior Normal(x / 2, 1/2) itself, shifted and widened by parts of its sd."""
    kernel = hmc_kernel(num_dims)

    def end(state: State, params: Params, noise: Noise) -> State:
        x, normal = state["z"][:, 2:], state["momentum"][:, :2]
        return state | {"z": torch.cat([x / 2 + _HALF * (shift + spread * normal), x], 1)}

    return dataclasses.replace(kernel, end=end, advance=lambda state, *_: state)


@pytest.mark.parametrize("seed", range(3))
def test_exact_draws_pass(seed: int) -> None:
    params = {"num_steps": torch.tensor(1)}
    assert_leaves_invariant(gibbs, CONJUGATE, step_size=1.0, params=params, num_transitions=1, seed=seed)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"shift": 0.1}, id="shift of a tenth of an sd"),
        pytest.param({"spread": 1.1}, id="a tenth too wide"),
        pytest.param({"spread": 0.9}, id="a tenth too narrow"),
    ],
)
def test_small_errors_are_seen(wrong: dict[str, float]) -> None:
    params = {"num_steps": torch.tensor(1)}
    with pytest.raises(AssertionError, match="normal scores"):
        assert_leaves_invariant(
            lambda num_dims: gibbs(num_dims, **wrong),
            CONJUGATE,
            step_size=1.0,
            params=params,
            num_transitions=1,
        )


def test_chains_that_do_not_move_are_refused() -> None:
    with pytest.raises(ConfigError, match="step_size"):
        assert_leaves_invariant(hmc_kernel, CONJUGATE, step_size=1e3, params={"num_steps": torch.tensor(1)})


def test_without_noise_and_gradient_data_stay_where_they_are() -> None:
    v = CONJUGATE.draw(5, torch.Generator().manual_seed(0))
    parts, gradients = CONJUGATE.density.batched(v)
    assert bool((gradients[..., 2:] == 0).all())
    torch.testing.assert_close(parts[:, 0], 0.5 * (v[:, :2] ** 2 + (v[:, 2:] - v[:, :2]) ** 2).sum(1))


def test_scores_of_heavy_tails_are_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, yardstick = (torch.randn(4000, 2, generator=generator).double() for _ in range(3))
    one, other, third = (x[:, :1] / x[:, 1:] for x in (a, b, yardstick))
    assert_same_scores(one, other, third)
    with pytest.raises(AssertionError, match="normal scores"):
        assert_same_scores(one + 0.3, other, third)


def shares() -> None:
    """A simplex, a scale, ordered means and an interval; data of two kinds."""
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    tau = pyro.sample("tau", dist.LogNormal(-1.0, 0.3))
    ordered = dist.TransformedDistribution(
        dist.Normal(torch.tensor([-1.0, 0.0]), 0.5).to_event(1), dist.transforms.OrderedTransform()
    )
    cuts = pyro.sample("cuts", ordered)
    low = pyro.sample("low", dist.Uniform(-1.0, 3.0))
    pyro.sample("x", dist.Normal(p, tau[..., None]).to_event(1))
    pyro.sample("y", dist.LogNormal(cuts + low[..., None], 0.7).to_event(1))


def test_draws_of_a_pyro_model_have_its_density() -> None:
    joint = joint_from_model(shares, data=("x", "y"))
    assert joint.moves.tolist() == [True] * 6 + [False] * 5
    v = joint.draw(20_000, torch.Generator().manual_seed(0))
    moving = v[:, joint.moves]
    score = -joint.density.batched(v)[1].sum(1)[:, joint.moves]
    # Integration by parts: E[score] = 0 and E[v score] = -1.
    identities = torch.cat([score, moving * score + 1], 1)
    assert_close_to(identities.mean(0), 0.0, identities.std(0) / len(v) ** 0.5)


def test_kernels_leave_a_pyro_model_invariant() -> None:
    joint = joint_from_model(shares, data=("x", "y"))
    params = {"num_steps": torch.tensor(5)}
    assert_leaves_invariant(hmc_kernel, joint, step_size=0.25, params=params, num_chains=4000)


def test_models_that_are_no_joint_are_refused() -> None:
    with pytest.raises(ConfigError, match="missing"):
        joint_from_model(shares, data=("x", "z"))
