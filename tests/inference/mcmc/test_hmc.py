from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.hmc import hmc_kernel, kinetic, leapfrog
from ppgen.inference.mcmc.kernel import Energy, Kernel, Noise, Params, State
from ppgen.testing.statistics import assert_same_distribution
from tests.inference.mcmc.exact import (
    DOUBLE,
    Gaussian,
    LogGamma,
    correlated,
    generator,
    make_params,
    run,
    skewed,
)

_LOWER = torch.tensor([[0.7, 0, 0], [0.4, 0.8, 0], [-1.0, 0.3, 2.0]], dtype=DOUBLE)


def _check_invariance(kernel: Kernel, energy: Energy, target: Gaussian | LogGamma, params: Params) -> None:
    state, _ = run(kernel, energy, target.draw(4000, 10), step_size=0.5, num=5, params=params)
    assert_same_distribution(state["z"], target.draw(16_000, 20))


def _steps(num: int) -> Params:
    return make_params(3, num_steps=torch.tensor(num))


@pytest.mark.parametrize("scale", [torch.ones(3, dtype=DOUBLE), _LOWER], ids=["diagonal", "dense"])
@pytest.mark.parametrize("target", [correlated(), skewed()], ids=["gaussian", "skewed"])
def test_exact_draws_stay_exact(target: Gaussian | LogGamma, scale: Tensor) -> None:
    _check_invariance(hmc_kernel(3), target, target, _steps(4) | {"scale": scale})


def test_a_wrong_gradient_costs_acceptance_but_no_bias() -> None:
    target = correlated()
    wrong = correlated(wrong=1.3)
    _check_invariance(hmc_kernel(3), wrong, target, _steps(4))
    rates = [
        float(
            run(hmc_kernel(3), e, target.draw(500, 1), step_size=0.1, num=1, params=_steps(10))[0][
                "accept_prob"
            ].mean()
        )
        for e in (target, wrong)
    ]
    assert rates[1] < rates[0]


def _always_accepts(kernel: Kernel) -> Kernel:
    def end(state: State, params: Params, noise: Noise) -> State:
        return kernel.end(state, params, {"accept": torch.zeros_like(noise["accept"])})

    return replace(kernel, end=end)


def _keeps_momenta_small(kernel: Kernel) -> Kernel:
    def begin(state: State, params: Params, noise: Noise) -> State:
        return kernel.begin(state, params, {"momentum": 0.7 * noise["momentum"]})

    return replace(kernel, begin=begin)


_DEFECTS = {
    "biased_acceptance": (_always_accepts, skewed()),
    "wrong_momenta": (_keeps_momenta_small, skewed()),
    "missing_jacobian": (lambda kernel: kernel, skewed(without_jacobian=True)),
}


@pytest.mark.parametrize("defect", list(_DEFECTS))
def test_the_check_rejects(defect: str) -> None:
    spoil, energy = _DEFECTS[defect]
    with pytest.raises(AssertionError, match="Kolmogorov"):
        _check_invariance(spoil(hmc_kernel(3)), energy, skewed(), _steps(4))


def test_a_proposal_returns_when_momenta_are_turned_round() -> None:
    target, step = skewed(), torch.full((50,), 0.3, dtype=DOUBLE)
    z = target.draw(50, 1)
    momentum = torch.randn(50, 3, generator=generator(2), dtype=DOUBLE)
    params = make_params(3) | {"scale": _LOWER}
    z1, p1, _, g1 = leapfrog(z, momentum, target(z)[1], step, params, target)
    z2, p2, u2, g2 = leapfrog(z1, -p1, g1, step, params, target)
    torch.testing.assert_close(z2, z)
    torch.testing.assert_close(-p2, momentum)
    torch.testing.assert_close((u2, g2), target(z))


def test_the_energy_error_of_a_fixed_time_is_of_second_order() -> None:
    target = skewed()
    z = target.draw(200, 1)
    momentum = torch.randn(200, 3, generator=generator(2), dtype=DOUBLE)
    errors = []
    for num_steps in (16, 32, 64):
        at, p, (u, g) = z, momentum, target(z)
        before = u[:, 0] + kinetic(p)
        for _ in range(num_steps):
            step = torch.full((200,), 1.0 / num_steps, dtype=DOUBLE)
            at, p, u, g = leapfrog(at, p, g, step, make_params(3), target)
        errors.append(float((u[:, 0] + kinetic(p) - before).abs().mean()))
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert coarse / fine == pytest.approx(4.0, rel=0.05)  # halving the step: four times, up to O(step^2)


def test_one_leapfrog_step_of_a_standard_normal_in_closed_form() -> None:
    target = Gaussian(torch.eye(1, dtype=DOUBLE))
    z, p, eps = torch.tensor([[0.3]], dtype=DOUBLE), torch.tensor([[-1.1]], dtype=DOUBLE), 0.4
    z1, p1, _, _ = leapfrog(z, p, target(z)[1], torch.tensor([eps], dtype=DOUBLE), make_params(1), target)
    torch.testing.assert_close(z1, (1 - eps**2 / 2) * z + eps * p)
    torch.testing.assert_close(p1, (1 - eps**2 / 2) * p - eps * (1 - eps**2 / 4) * z)


def test_divergent_and_undefined_proposals_are_rejected() -> None:
    target = correlated()
    z = target.draw(50, 1)
    state, _ = run(hmc_kernel(3), target, z, step_size=1e3, num=1, params=_steps(3))
    assert state["diverging"].all()
    assert torch.equal(state["z"], z)

    def nowhere(z: Tensor) -> tuple[Tensor, Tensor]:
        u, g = target(z)
        return torch.where(z[:, :1] == 0, u, torch.nan), g

    origin = torch.zeros(10, 3, dtype=DOUBLE)
    state, _ = run(hmc_kernel(3), nowhere, origin, step_size=0.1, num=1, params=_steps(1))
    assert torch.equal(state["z"], origin)
    assert state["diverging"].all()
    assert (state["accept_prob"] == 0).all()


def test_statistics() -> None:
    target = correlated()
    state, kept = run(
        hmc_kernel(3),
        target,
        target.draw(50, 1),
        step_size=0.2,
        num=4,
        params=_steps(7),
        record=("num_steps", "energy", "u"),
    )
    assert (kept["num_steps"] == 7).all()
    assert (kept["energy"] >= kept["u"][..., 0]).all()
    u, g = target(state["z"])
    torch.testing.assert_close(state["u"], u)
    torch.testing.assert_close(state["g"], g)
