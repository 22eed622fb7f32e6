"""Contrastive divergence: its gradient against autograd and exact likelihood, its steps, its state."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import SVI
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY
from ppgen.distributions.boltzmann import Harmonium
from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.inference.objectives.base import GradientStepper, StepOptions
from ppgen.inference.objectives.contrastive_divergence import ClosedFormStepper, ContrastiveDivergence
from ppgen.inference.svi import fit
from ppgen.models import RealNVP
from ppgen.models.rbm import RBM
from ppgen.ops.binary import binary_states
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean

SGD = torch.optim.SGD
CD, PCD = {"k": 1}, {"k": 1, "persistent": True, "num_chains": 100}
DESCENT = functools.partial(SGD, lr=0.1)
VARIANTS: list[dict[str, Any]] = [
    {"k": 1},
    {"k": 3},
    {"k": 1, "persistent": True},
    {"k": 2, "persistent": True, "num_chains": 7},
]


def machine(shape: tuple[int, ...] = (2, 3), num_hidden: int = 4, **options: Any) -> RBM:
    with forked_rng(0):
        rbm = RBM(shape, num_hidden=num_hidden, **options).double()
        for p in rbm.parameters():
            torch.nn.init.normal_(p, std=0.7)
    return rbm


def some_data(num: int = 5, shape: tuple[int, ...] = (2, 3), seed: int = 1) -> Tensor:
    with forked_rng(seed):
        return torch.randint(0, 2, (num, *shape)).double()


def stepper(
    rbm: RBM,
    objective: ContrastiveDivergence,
    make: Callable[..., torch.optim.Optimizer] = DESCENT,
    clip_norm: float | None = None,
) -> GradientStepper:
    made = objective.stepper(rbm.model, rbm.guide, StepOptions(list(rbm.parameters()), make, clip_norm))
    assert isinstance(made, GradientStepper)
    return made


@torch.no_grad()
def mean_loss(rbm: RBM, x: Tensor) -> float:
    return float(-rbm.log_likelihood(x).value.mean())


def drawn_by(step: ClosedFormStepper) -> Tensor:
    """Fantasies of the last step, whose rows hold them times their weights of 1/M."""
    assert step.work is not None
    return (step.work.fantasies.visible != 0).double()


# -- the gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_closed_form_gradient_is_that_of_autograd(options: dict[str, Any]) -> None:
    rbm, x = machine(), some_data()
    # Nesterov momentum cannot be folded into the matrix products, so the gradient is left in .grad.
    idle = functools.partial(SGD, lr=0.0, momentum=0.9, nesterov=True)
    step = stepper(rbm, ContrastiveDivergence(**options), idle)
    assert isinstance(step, ClosedFormStepper)
    with forked_rng(2):
        loss = step.step(x)["loss"]
    found = {n: p.grad.clone() for n, p in rbm.named_parameters() if p.grad is not None}
    fantasies = drawn_by(step)
    m = rbm.harmonium()
    by_hand = m.free_energy(x.flatten(1)).mean() - m.free_energy(fantasies).mean()
    rbm.zero_grad()
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand.detach())
    assert set(found) == {"weight", "visible_bias", "hidden_bias"}
    for name, parameter in rbm.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_loss_is_a_total_scaled_to_the_population() -> None:
    rbm, x = machine(), some_data()
    with forked_rng(0):
        total = ContrastiveDivergence().loss(rbm.model, rbm.guide, x)
    with forked_rng(0):
        scaled = ContrastiveDivergence().loss(rbm.model, rbm.guide, x, num=50)
    torch.testing.assert_close(scaled, 10 * total)


def free_energy_gradients(m: Harmonium, v: Tensor) -> Tensor:
    """Gradient of F at each row of v: W, b and c one after the other."""
    hidden = m.hidden_logits(v).sigmoid()
    return -torch.cat([(v[:, :, None] * hidden[:, None]).flatten(1), v, hidden], -1)


def negative_phase(k: int, persistent: bool) -> tuple[Tensor, Tensor]:
    """Gradients at many independent fantasies, and their exact expectation under the model."""
    rbm = machine()
    m = rbm.harmonium()
    data = torch.ones(4000, 6, dtype=torch.float64)
    objective = ContrastiveDivergence(k, persistent=persistent)
    with forked_rng(3), torch.no_grad():
        fantasies = objective.fantasies(m, data)
        states = binary_states(6, dtype=torch.float64)
        probs = (-m.free_energy(states)).softmax(0)
        return free_energy_gradients(m, fantasies), probs @ free_energy_gradients(m, states)


@pytest.mark.parametrize("persistent", [False, True])
def test_many_sweeps_give_the_gradient_of_the_likelihood(persistent: bool) -> None:
    assert_mean(*negative_phase(200, persistent))


def test_the_same_check_sees_the_bias_of_one_sweep() -> None:
    with pytest.raises(AssertionError, match="off by"):
        assert_mean(*negative_phase(1, False))


def test_the_steps_fantasies_follow_the_model_too() -> None:
    rbm = machine()
    step = stepper(
        rbm, ContrastiveDivergence(200, persistent=True, num_chains=4000), functools.partial(SGD, lr=0)
    )
    with forked_rng(4):
        step.step(some_data(4))
    assert isinstance(step, ClosedFormStepper)
    with torch.no_grad():
        m = rbm.harmonium()
        states = binary_states(6, dtype=torch.float64)
        expected = (-m.free_energy(states)).softmax(0) @ free_energy_gradients(m, states)
        assert_mean(free_energy_gradients(m, drawn_by(step)), expected)


def test_gaussian_gradient_of_the_likelihood() -> None:
    rbm = machine((3,), 2, visible="gaussian")
    with forked_rng(5):
        exact = rbm.sample(4000, seed=6)
        fantasies = ContrastiveDivergence(100).fantasies(rbm.harmonium(), torch.zeros_like(exact))
    assert_mean(fantasies, draws_mean(rbm))


def draws_mean(rbm: RBM) -> Tensor:
    """Exact mean of a Gaussian machine, by its sum over hidden states."""
    m = rbm.harmonium()
    with torch.no_grad():
        h = binary_states(m.num_hidden, dtype=torch.float64)
        return (-m.hidden_free_energy(h)).softmax(0) @ m.visible_mean(h)


# -- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_folded_descent_is_torchs_descent(momentum: float, decay: float, options: dict[str, Any]) -> None:
    make = functools.partial(SGD, lr=0.1, momentum=momentum, weight_decay=decay)
    runs = []
    for clip_norm in (None, 1e9):  # a norm to clip keeps the update from being folded
        rbm = machine()
        step = stepper(rbm, ContrastiveDivergence(**options), make, clip_norm)
        with forked_rng(7):
            figures = [step.step(some_data(n, seed=n)) for n in (5, 5, 3, 5)]
        assert ("grad_norm" in figures[0]) == (clip_norm is not None)
        runs.append((dict(rbm.named_parameters()), step.optimizer.state_dict()["state"]))
    for name, parameter in runs[0][0].items():
        torch.testing.assert_close(parameter, runs[1][0][name])
    if momentum:
        for key, state in runs[1][1].items():
            torch.testing.assert_close(runs[0][1][key]["momentum_buffer"], state["momentum_buffer"])


def test_a_step_with_a_population_goes_through_autograd() -> None:
    rbm = machine()
    step = stepper(rbm, ContrastiveDivergence())
    before = rbm.weight.detach().clone()
    with forked_rng(0):
        step.step(some_data(), num=20)
    assert not torch.equal(before, rbm.weight)


def test_other_machines_take_the_gradient_step() -> None:
    frozen = machine()
    frozen.hidden_bias.requires_grad_(False)
    trainable = [p for p in frozen.parameters() if p.requires_grad]
    gaussian = machine((3,), visible="gaussian")
    for rbm, parameters in ((frozen, trainable), (gaussian, list(gaussian.parameters()))):
        step = ContrastiveDivergence().stepper(rbm.model, rbm.guide, StepOptions(parameters, DESCENT))
        assert type(step) is GradientStepper
        before = rbm.hidden_bias.detach().clone()
        with forked_rng(0):
            step.step(some_data(5, tuple(rbm.event_shape)))
        assert torch.equal(before, rbm.hidden_bias) == (rbm is frozen)


def test_schedulers_do_not_complain() -> None:
    rbm = machine()
    step = stepper(rbm, ContrastiveDivergence())
    schedule = torch.optim.lr_scheduler.StepLR(step.optimizer, 1)
    with warnings.catch_warnings(), forked_rng(0):
        warnings.simplefilter("error")
        for _ in range(3):
            step.step(some_data())
            schedule.step()


def test_runs_under_pyros_svi() -> None:
    rbm, x = machine(), torch.ones(20, 2, 3, dtype=torch.float64)
    before = mean_loss(rbm, x)
    optimiser = PyroOptim(torch.optim.Adam, {"lr": 0.05})
    with forked_rng(0):
        svi = SVI(rbm.model, rbm.guide, optimiser, loss=ContrastiveDivergence(k=1))
        for _ in range(100):
            svi.step(x)
    assert mean_loss(rbm, x) < 0.5 * before


@pytest.mark.parametrize("options", [CD, PCD], ids=["cd", "pcd"])
def test_training_comes_near_the_best_likelihood(options: dict[str, Any]) -> None:
    # Two patterns of four bits, equally often: the entropy ln 2 bounds the loss from below.
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(50, 1)
    with forked_rng(0):
        rbm = RBM((4,), num_hidden=2)
    data = Split(x, values=BINARY)
    fit(
        rbm,
        data,
        objective=ContrastiveDivergence(**options),
        optimizer=SGD,
        learning_rate=0.2,
        epochs=200,
        batch_size=10,
        schedule="cosine",
        device="cpu",
        progress=False,
    )
    loss = mean_loss(rbm, x)
    assert 0.693 < loss < 0.85


# -- state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [functools.partial(SGD, lr=0.1, momentum=0.5), torch.optim.Adam])
def test_steps_resume_to_the_same_bits(make: Callable[..., torch.optim.Optimizer]) -> None:
    def run(rbm: RBM, step: GradientStepper, first: int, last: int) -> list[float]:
        return [float(step.step(some_data(5, seed=n))["loss"]) for n in range(first, last)]

    whole, parts = machine(), machine()
    with forked_rng(8):
        losses = run(whole, stepper(whole, ContrastiveDivergence(persistent=True), make), 0, 30)
    with forked_rng(8):
        first = stepper(parts, ContrastiveDivergence(persistent=True), make)
        begun = run(parts, first, 0, 13)
        saved = first.state_dict()
        resumed = stepper(parts, ContrastiveDivergence(persistent=True), make)
        resumed.load_state_dict(saved)
        assert begun + run(parts, resumed, 13, 30) == losses
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fit_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data = Split(some_data(40).float(), values=BINARY)

    def trained(epochs: list[int], checkpoint: Path) -> RBM:
        for number in epochs:
            rbm = machine().float()
            fit(rbm, data, epochs=number, batch_size=8, checkpoint=checkpoint, device="cpu", progress=False)
        return rbm

    whole, parts = trained([6], tmp_path / "whole"), trained([3, 6], tmp_path / "parts")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


# -- validation and errors --------------------------------------------------------------------------


def test_validation_loss_is_the_best_figure_there_is() -> None:
    objective, x = ContrastiveDivergence(), some_data()
    small = machine()
    found = objective.validation_loss(small.model, small.guide, x)
    torch.testing.assert_close(found, -small.log_likelihood(x).value.sum())

    large, y = machine((21,), 21), some_data(5, (21,))
    found = objective.validation_loss(large.model, large.guide, y)
    torch.testing.assert_close(found, -large.pseudo_log_likelihood(y).sum())

    gaussian = machine((3,), 21, visible="gaussian")
    assert objective.validation_loss(gaussian.model, gaussian.guide, torch.zeros(1, 3).double()) is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k": 0}, "k"),
        ({"num_chains": 5}, "num_chains"),
        ({"persistent": True, "num_chains": 0}, "num_chains"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        ContrastiveDivergence(**options)


def test_only_boltzmann_machines_will_do() -> None:
    objective = ContrastiveDivergence(persistent=True)
    with forked_rng(0):
        flow = RealNVP((2,))
    with pytest.raises(CapabilityError, match="restricted Boltzmann"):
        objective.loss(flow.model, flow.guide, torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="GenerativeModel"):
        objective.loss(lambda x: x, lambda x: x, torch.zeros(1, 2))
    small, other = machine((3,), 2), machine((3,), 4)
    with forked_rng(0):
        objective.loss(small.model, small.guide, some_data(5, (3,)))
        with pytest.raises(ShapeError, match="chains"):
            objective.loss(other.model, other.guide, some_data(5, (3,)))
    with pytest.raises(ConfigError, match="chains or nothing"):
        objective.load_state_dict({"weights": torch.zeros(1)})
