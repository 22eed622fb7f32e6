"""The restricted Boltzmann machine as a Pyro pair, and its capabilities, against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import Tensor

from ppgen import metrics
from ppgen.contract import Kind
from ppgen.datasets.split import Split
from ppgen.datasets.values import BINARY, REAL
from ppgen.errors import CapabilityError, ConfigError, DataError, SamplingWarning, ShapeError
from ppgen.inference.annealing.walk import anneal
from ppgen.inference.objectives.elbo import ELBO, SiteRecorder
from ppgen.inference.partition import PartitionEstimate
from ppgen.inference.svi import fit
from ppgen.models.rbm import FAMILY, RBM
from ppgen.ops.random import forked_rng
from ppgen.testing import CHECKS
from ppgen.testing.statistics import assert_close_to, assert_mean, assert_same_distribution


def machine(shape: tuple[int, ...] = (2, 2), num_hidden: int = 3, std: float = 0.8, **options: Any) -> RBM:
    with forked_rng(0):
        rbm = RBM(shape, num_hidden=num_hidden, **options).double()
        for p in rbm.parameters():
            torch.nn.init.normal_(p, std=std)
    return rbm


def every_state(num: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=num)), dtype=torch.float64)


def state_probs(rbm: RBM, states: Tensor) -> Tensor:
    """p(x) by the sum of exp(-E) over x and h, from the definition of E alone."""
    v, h = states.flatten(1), every_state(rbm.num_hidden)
    with torch.no_grad():
        joint = (v @ rbm.visible_bias)[:, None] + h @ rbm.hidden_bias + v @ rbm.weight @ h.mT
    return joint.flatten().softmax(0).view(joint.shape).sum(1)


def frequencies(draws: Tensor) -> Tensor:
    """Which binary state each draw is, as rows with a single one."""
    v = draws.flatten(1).long()
    places = 2 ** torch.arange(v.shape[1] - 1, -1, -1)
    return torch.nn.functional.one_hot((v * places).sum(-1), 2 ** v.shape[1]).double()


BUILDS: dict[str, Callable[[], RBM]] = {
    "gaussian": lambda: RBM((3,), num_hidden=2, visible="gaussian"),
    "gaussian-image": lambda: RBM((1, 2, 2), num_hidden=2, visible="gaussian"),
    "unnormalised": lambda: RBM((3, 7), num_hidden=21, num_gibbs_steps=5),
    "gaussian-unnormalised": lambda: RBM((3,), num_hidden=21, visible="gaussian", num_gibbs_steps=5),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_contract(build: Callable[[], RBM], check: Callable[[Callable[[], RBM]], None]) -> None:
    with forked_rng(0):
        check(build)


# -- the density -------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "num_hidden"), [((2, 2), 3), ((3,), 5), ((1, 5, 1), 2)])
def test_likelihood_is_the_enumerated_one(shape: tuple[int, ...], num_hidden: int) -> None:
    rbm = machine(shape, num_hidden)
    x = every_state(rbm.event_shape.numel()).view(-1, *shape)
    found = rbm.log_likelihood(x)
    assert found.kind is Kind.EXACT is rbm.density
    torch.testing.assert_close(found.value.exp(), state_probs(rbm, x))
    torch.testing.assert_close(found.value, -rbm.energy(x) - rbm.log_partition().value)


def test_gaussian_density_integrates_to_one() -> None:
    rbm = machine((1,), 3, visible="gaussian")
    grid = torch.linspace(-40, 40, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = rbm.log_likelihood(grid).value.exp()
    assert abs(float(torch.trapezoid(density, grid[:, 0])) - 1) < 1e-9


def test_many_units_are_unnormalised() -> None:
    rbm = machine((3, 7), 21)
    x = torch.ones(2, 3, 7, dtype=torch.float64)
    found = rbm.log_likelihood(x)
    assert found.kind is Kind.UNNORMALISED is rbm.density
    torch.testing.assert_close(found.value, -rbm.energy(x))
    with pytest.raises(CapabilityError, match=r"limit 20\).*D = 21 and H = 21.*num_hidden <= 20"):
        rbm.log_partition()
    assert machine((3, 7), 20).density is Kind.EXACT
    assert machine((20,), 30).density is Kind.EXACT
    assert machine((2,), 21, visible="gaussian").density is Kind.UNNORMALISED


def test_the_known_log_partition_is_never_stale() -> None:
    rbm = machine()
    with torch.no_grad():
        first = rbm.log_partition().value
        assert torch.equal(first, rbm.log_partition().value)
        rbm.weight.data.add_(0.5)  # leaves no trace in the version counter
        second = rbm.log_partition().value
    assert second > first
    torch.testing.assert_close(second, rbm.log_partition().value.detach())


def test_an_annealed_log_partition_is_kept_for_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm, calls = machine(), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return anneal(*args, **kwargs)

    monkeypatch.setattr("ppgen.inference.partition.anneal", counted)
    options: dict[str, Any] = {
        "num_chains": 20,
        "num_temperatures": 10,
        "reverse": False,
        "search_start": False,
    }
    first = rbm.log_partition(method="ais", seed=0, **options)
    assert rbm.log_partition(method="ais", seed=0, **options) is first
    assert len(calls) == 1
    rbm.start_mean.data.add_(0.1)
    rbm.log_partition(method="ais", seed=0, **options)
    assert len(calls) == 2


def test_pseudo_likelihood_of_independent_units_is_the_likelihood() -> None:
    rbm = machine((6,), 2)
    with torch.no_grad():
        rbm.weight.zero_()
    x = every_state(6)
    torch.testing.assert_close(rbm.pseudo_log_likelihood(x), rbm.log_likelihood(x).value)


# -- the pair --------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_elbo_is_the_log_likelihood_whatever_z_is(visible: Any) -> None:
    rbm = machine((2, 3), 4, visible=visible)
    with forked_rng(0):
        x = torch.randint(0, 2, (7, 2, 3)).double()
        exact = float(rbm.log_likelihood(x).value.sum().detach())
        for _ in range(20):
            assert abs(Trace_ELBO().loss(rbm.model, rbm.guide, x) + exact) < 1e-9
        vectorised = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
        assert abs(vectorised.loss(rbm.model, rbm.guide, x) + exact) < 1e-9


def expected_gradient(rbm: RBM, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Gradient of Pyro's Trace_ELBO for one datum, averaged over all z with ``weights``."""
    total = [torch.zeros_like(p) for p in rbm.parameters()]
    for z, weight in zip(every_state(rbm.num_hidden), weights, strict=True):
        rbm.zero_grad()
        with SiteRecorder({"z": z[None]}):
            Trace_ELBO().differentiable_loss(rbm.model, rbm.guide, x).backward()
        for part, p in zip(total, rbm.parameters(), strict=True):
            part += 0.0 if p.grad is None else weight * p.grad
    return total


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_expected_gradient_of_trace_elbo_is_that_of_the_likelihood(visible: Any) -> None:
    rbm = machine((3,), 2, visible=visible)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        on = rbm.encode(x)
    z = every_state(2)
    posterior = (on * z + (1 - on) * (1 - z)).prod(-1)
    exact = torch.autograd.grad(-rbm.log_likelihood(x).value.sum(), list(rbm.parameters()))
    for found, expected in zip(expected_gradient(rbm, x, posterior), exact, strict=True):
        torch.testing.assert_close(found, expected)
    # The score-function terms cancel under the posterior alone.
    uniform = expected_gradient(rbm, x, torch.full((4,), 0.25, dtype=torch.float64))
    assert not all(torch.allclose(a, b) for a, b in zip(uniform, exact, strict=True))


def test_exact_maximum_likelihood_through_the_elbo() -> None:
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(20, 1)
    with forked_rng(0):
        rbm = RBM((4,), num_hidden=3)
    before = float(rbm.log_likelihood(x).value.mean().detach())
    fit(
        rbm,
        Split(x, values=BINARY),
        objective=ELBO(),
        epochs=150,
        learning_rate=0.05,
        batch_size=None,
        device="cpu",
        progress=False,
    )
    assert float(rbm.log_likelihood(x).value.mean().detach()) > before / 2


def test_generated_latents_and_data_are_the_joint() -> None:
    rbm = machine()
    with forked_rng(1):
        drawn = Predictive(rbm.model, num_samples=1)(num=20_000)
    x = every_state(4)
    assert_mean(frequencies(drawn["x"].flatten(0, 1)), state_probs(rbm, x))
    z = drawn["z"].flatten(0, 1)
    on = rbm.encode(drawn["x"].flatten(0, 1)).detach()
    assert_mean(z - on, torch.zeros(3))


# -- capabilities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [None, 100])
def test_samples_have_their_probabilities(num_steps: int | None) -> None:
    rbm = machine(std=0.5)
    draws = rbm.sample(20_000, num_steps=num_steps, seed=0)
    assert draws.shape == (20_000, 2, 2)
    assert_mean(frequencies(draws), state_probs(rbm, every_state(4)))


def test_sample_check_sees_too_few_sweeps() -> None:
    rbm = machine(std=1.5)
    with pytest.raises(AssertionError, match="off by"):
        assert_mean(frequencies(rbm.sample(20_000, num_steps=1, seed=0)), state_probs(rbm, every_state(4)))


def test_gaussian_chains_meet_exact_draws() -> None:
    rbm = machine((3,), 2, std=0.5, visible="gaussian")
    assert_same_distribution(rbm.sample(4000, seed=0), rbm.sample(4000, num_steps=100, seed=1))


def test_gibbs_leaves_the_model_invariant() -> None:
    rbm = machine()
    moved = rbm.gibbs(rbm.sample(20_000, seed=0), 3, seed=1)
    assert_mean(frequencies(moved), state_probs(rbm, every_state(4)))


def conditional_probs(rbm: RBM, x: Tensor, mask: Tensor) -> Tensor:
    """p(x' | x where mask) over all states x', by enumeration."""
    states = every_state(4)
    agrees = (states == x.flatten())[:, mask.flatten()].all(1)
    probs = state_probs(rbm, states) * agrees
    return probs / probs.sum()


def conditional_draws(rbm: RBM, x: Tensor, mask: Tensor) -> Tensor:
    return rbm.condition(x[None], mask, 20_000, num_steps=60, seed=0)[:, 0]


def test_condition_draws_the_missing_given_the_observed() -> None:
    rbm = machine()
    x = torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]], dtype=torch.float64)
    mask = ~x.isnan()
    draws = conditional_draws(rbm, x, mask)
    assert bool((draws[:, mask] == x[mask]).all())
    assert_mean(frequencies(draws), conditional_probs(rbm, x, mask))
    # The same draws are not those of the marginal over what is missing.
    with pytest.raises(AssertionError, match="off by"):
        assert_mean(frequencies(draws), state_probs(rbm, every_state(4)))


def test_gaussian_condition_keeps_what_is_observed() -> None:
    rbm = machine((4,), 2, visible="gaussian")
    x = torch.arange(8, dtype=torch.float64).view(2, 4)
    mask = torch.tensor([True, False, True, False])
    draws = rbm.condition(x, mask, 3, num_steps=5, seed=0)
    assert draws.shape == (3, 2, 4)
    assert torch.equal(draws[..., mask], x[:, mask].expand(3, -1, -1))
    assert bool(torch.isfinite(draws).all())


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_codes_are_conditional_means(visible: Any) -> None:
    rbm = machine((2, 2), 3, visible=visible)
    m = rbm.harmonium()
    x, h = every_state(4).view(-1, 2, 2), every_state(3)
    with torch.no_grad():
        posterior = (-m.energy(x.flatten(1)[:, None], h)).softmax(-1)
        torch.testing.assert_close(rbm.encode(x), posterior @ h)
        assert rbm.decode(h).shape == (8, 2, 2)
        if visible == "binary":
            likelihood = (-m.energy(every_state(4), h[:, None])).softmax(-1)
            torch.testing.assert_close(rbm.decode(h).flatten(1), likelihood @ every_state(4))


def test_score_is_the_gradient_of_the_log_density() -> None:
    rbm = machine((2, 2), 3, visible="gaussian")
    with forked_rng(0):
        x = torch.randn(5, 2, 2, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(rbm.log_likelihood(x).value.sum(), x)
    torch.testing.assert_close(rbm.score(x), expected)
    with pytest.raises(CapabilityError, match="gaussian"):
        machine().score(torch.zeros(1, 2, 2))


def test_start_matches_the_datas_moments() -> None:
    with forked_rng(0):
        x = (torch.rand(500, 2, 2) < 0.3).float()
        x[:, 0, 0] = 0.0
        y = 3 + 2 * torch.randn(500, 2, 2)
        binary, gaussian = RBM((2, 2), num_hidden=2), RBM((2, 2), num_hidden=2, visible="gaussian")
    binary.initialise(x)
    assert binary.initialised
    torch.testing.assert_close(binary.visible_bias.sigmoid(), (x.flatten(1).sum(0) + 1) / 502)
    assert bool(torch.isfinite(binary.visible_bias).all())
    gaussian.initialise(y)
    torch.testing.assert_close(gaussian.visible_bias.detach(), y.flatten(1).mean(0))
    assert gaussian.log_scale is not None
    torch.testing.assert_close(gaussian.log_scale.exp().detach(), y.flatten(1).std(0, correction=0))


def test_support_follows_the_visible_units() -> None:
    assert machine().support == BINARY
    assert machine(visible="gaussian").support == REAL
    with forked_rng(0):
        assert FAMILY.build(torch.Size((2,)), REAL, 100).support == REAL


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_hidden": 0}, "num_hidden"),
        ({"visible": "poisson"}, "visible"),
        ({"num_gibbs_steps": 0}, "num_gibbs_steps"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=f"^{match}: "):
        RBM((2,), **options)


def test_calls_are_checked() -> None:
    rbm, x = machine(), torch.zeros(1, 2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="nun_steps"):
        rbm.condition(x, torch.ones(2, 2, dtype=torch.bool), nun_steps=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="num"):
        rbm.sample(0, num_steps=3)
    with pytest.raises(ConfigError, match="num_steps"):
        rbm.gibbs(x, 0, seed=0)
    with pytest.raises(ShapeError, match="z: "):
        rbm.decode(torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="expects shape"):
        rbm.gibbs(torch.zeros(1, 4))
    for asked in (rbm.gibbs, rbm.pseudo_log_likelihood, rbm.initialise):
        with pytest.raises(DataError, match="x: "):
            asked(x + 0.5)
    with pytest.raises(CapabilityError, match="context"):
        rbm.log_likelihood(x, torch.zeros(1, 1))


def test_validation_of_distributions_holds() -> None:
    with pyro.validation_enabled(True), forked_rng(0):
        rbm = machine()
        Trace_ELBO().loss(rbm.model, rbm.guide, rbm.sample(3))
        with pytest.raises(ValueError, match="support"):
            Trace_ELBO().loss(rbm.model, rbm.guide, torch.full((1, 2, 2), 0.5).double())


@pytest.mark.slow
def test_sixteen_hidden_units_on_digits() -> None:
    """Digits binarised at 8 of 16, first 1437 for training: 18.89 nats is BernoulliRBM's figure."""
    from sklearn.datasets import load_digits

    x = torch.as_tensor(load_digits().data >= 8).float()
    with forked_rng(0):
        rbm = FAMILY.build(x.shape[1:], BINARY, len(x))
    train, validation = Split(x[:1257], values=BINARY), Split(x[1257:1437], values=BINARY)
    fit(rbm, train, validation=validation, device="cpu", progress=False, **FAMILY.fit_options)
    with torch.no_grad():
        loss = -rbm.log_likelihood(x[1437:]).mean().value
    assert float(loss) <= 18.9


# -- log Z by annealing --------------------------------------------------------------------------


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
@pytest.mark.parametrize("num_hidden", [1, 4, 10, 16])
def test_annealed_log_z_is_the_enumerated_one(visible: Any, num_hidden: int) -> None:
    rbm = machine((2, 3), num_hidden, std=0.6, visible=visible)
    found = rbm.log_partition(method="ais", num_temperatures=100, num_chains=400, seed=0)
    truth = rbm.log_partition().value.detach()
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    assert (found.kind, found.upper.kind) == (Kind.LOWER_BOUND, Kind.UPPER_BOUND)
    assert_close_to(found.value, truth, found.std_error)
    assert_close_to(found.upper.value, truth, found.upper.std_error)
    assert_mean((found.log_weights - truth).exp(), 1.0)
    with pytest.raises(AssertionError, match="off by"):  # a hidden unit forgotten in the start's log Z
        assert_mean((found.log_weights - 0.6931 - truth).exp(), 1.0)


def test_few_temperatures_leave_a_gap_with_the_truth_inside() -> None:
    rbm = machine((4, 4), 8, std=1.0)
    with pytest.warns(SamplingWarning):
        found = rbm.log_partition(method="ais", num_temperatures=4, num_chains=20, seed=0)
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    assert found.gap is not None
    with torch.no_grad():
        assert float(found.value) < float(rbm.log_partition().value) < float(found.upper.value)
    assert float(found.gap.value) == pytest.approx(float(found.upper.value - found.value))


def test_a_machine_known_from_elsewhere(data_dir: Path) -> None:
    """The 784 x 15 machine of pylearn2's own test; log Z by enumeration of its hidden states."""
    file = data_dir / "rbm_pylearn2" / "mnist_rbm.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    arrays = np.load(file)
    with forked_rng(0):
        rbm = RBM((784,), num_hidden=15)
    with torch.no_grad():
        rbm.weight.copy_(torch.as_tensor(arrays["vishid"]))
        rbm.visible_bias.copy_(torch.as_tensor(arrays["visbiases"]))
        rbm.hidden_bias.copy_(torch.as_tensor(arrays["hidbiases"]))
        assert float(rbm.log_partition().value) == pytest.approx(215.138406, abs=1e-3)
    found = rbm.log_partition(method="ais", num_temperatures=300, num_chains=100, seed=0)
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    for side in (found, found.upper):  # from a start that was searched for: nobody knows the data's means
        assert_close_to(side.value, 215.138406, side.std_error)
        assert float(side.std_error) < 0.05
    # A start that misses the one heavy mode: the truth is between the bounds, and the errors admit the gap.
    options: dict[str, Any] = {"num_temperatures": 100, "num_chains": 50, "search_start": False, "seed": 0}
    with pytest.warns(SamplingWarning, match="nats apart"):
        far = rbm.log_partition(method="ais", **options)
    assert isinstance(far, PartitionEstimate)
    assert far.upper is not None
    assert float(far.value) < 215.138406 < float(far.upper.value)
    assert float(far.std_error) > 5
    assert_close_to(far.value, 215.138406, far.std_error)


def test_without_enumeration_nothing_is_promised_from_above() -> None:
    rbm = machine((3, 7), 21, std=0.2, num_gibbs_steps=20)
    found = rbm.log_partition(method="ais", num_temperatures=50, num_chains=50, seed=0)
    assert isinstance(found, PartitionEstimate)
    assert found.upper is not None
    assert found.upper.kind is Kind.ESTIMATE
    assert found.gap is not None
    assert abs(float(found.gap.value)) < 10 * float(found.gap.std_error)


def test_annealed_likelihood_says_what_it_is() -> None:
    rbm = machine((2, 3), 4)
    x = rbm.sample(30, seed=0)
    options: dict[str, Any] = {"method": "ais", "num_temperatures": 30, "num_chains": 50, "seed": 0}
    with torch.no_grad():
        found, exact = rbm.log_likelihood(x, **options), rbm.log_likelihood(x, method="exact")
        assert torch.equal(exact.value, rbm.log_likelihood(x, method="elbo").value)
    assert (found.kind, exact.kind) == (Kind.UPPER_BOUND, Kind.EXACT)
    assert found.shared_error is not None
    assert_close_to(found.value, exact.value, found.std_error)
    # Its error is one error of all data: it does not average out.
    mean = found.mean()
    assert float(mean.std_error) > float(found.shared_error) > 0
    assert mean.shared_error is not None
    in_batches = metrics.log_likelihoods(rbm, x, batch_size=7, **options)
    assert in_batches.shared_error is not None
    torch.testing.assert_close(in_batches.value, found.value.double())
    torch.testing.assert_close(in_batches.mean().std_error, mean.std_error.double())
    with torch.no_grad():
        rbm.weight.data.add_(0.5)  # a changed machine has another log Z
        assert float(rbm.log_partition(**options).value) != float(found.value.mean())
    large = machine((3, 7), 21, std=0.2)
    assert large.log_likelihood(torch.ones(2, 3, 7).double(), **options).kind is Kind.UPPER_BOUND


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "guess"}, "method"),
        ({"num_chains": 3}, "num_chains"),
        ({"method": "ais", "num_chains": 1}, "num_chains"),
        ({"method": "ais", "num_temperatures": 0}, "num_temperatures"),
        ({"method": "ais", "schedule": "cosine"}, "schedule"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_arguments_of_log_partition_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=f"^{match}"):
        machine().log_partition(**options)


def test_an_elbo_without_log_z_is_refused() -> None:
    with forked_rng(0):
        rbm = RBM((25,), num_hidden=25)
        x = torch.randint(0, 2, (10, 25)).float()
    with pytest.raises(CapabilityError, match="RBM is unnormalised"):
        fit(rbm, x, objective=ELBO(), device="cpu", progress=False)
