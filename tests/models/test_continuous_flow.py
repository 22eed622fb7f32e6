"""Continuous flows: the density by every trace against closed forms, and flow matching's minimiser."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

import ppgen
from ppgen.contract import HasDecoder, HasDefaultObjective, HasEncoder, HasLogLikelihood, HasScore, Kind
from ppgen.datasets.toys import load_toy
from ppgen.datasets.values import REAL, grid
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference import ELBO
from ppgen.inference.objectives import flow_matching
from ppgen.inference.objectives.flow_matching import FlowMatching, HasVelocity, assignment, mean_velocity
from ppgen.models.continuous_flow import FAMILY, ContinuousFlow
from ppgen.models.maf import MAF
from ppgen.ops.random import forked_rng
from ppgen.testing.agreement import compare_on_reals
from ppgen.testing.statistics import assert_mean, assert_same_distribution, critical_z

SOLVERS: dict[str, dict[str, Any]] = {
    "dopri5": {"solver": "dopri5", "tolerance": 1e-7},
    "rk4": {"solver": "rk4", "num_steps": 40},
}
# Few steps, and errors below 1e-6 on the smooth fields here.
COARSE: dict[str, Any] = {"solver": "rk4", "num_steps": 24}
EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS)


class GaussianVelocity(nn.Module):
    r"""The best velocity for data N(m, S): :math:`m + (t S - (1 - t) I) S_t^{-1} (y - t m)`."""

    def __init__(self, mean: Tensor, covariance: Tensor, *, slip: float = 0.0) -> None:
        super().__init__()
        self.mean, self.covariance, self.slip = mean, covariance, slip

    def forward(self, y: Tensor, t: Tensor, context: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
        identity = torch.eye(len(self.mean), dtype=y.dtype)
        t = t[:, None, None]
        at_t = t**2 * self.covariance + (1 - t) ** 2 * identity
        gain = (t * self.covariance - (1 - t + self.slip) * identity) @ torch.linalg.inv(at_t)
        found: Tensor = self.mean + (gain @ (y - t[..., 0] * self.mean)[..., None])[..., 0]
        return found


MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.4, 0.3, 1.5]], dtype=torch.float64)
TRUTH = torch.distributions.MultivariateNormal(MEAN, scale_tril=FACTOR)


def gaussian_flow(*, slip: float = 0.0, **options: Any) -> ContinuousFlow:
    with forked_rng(0):
        flow = ContinuousFlow((3,), hidden=(2,), **{**SOLVERS["dopri5"], **options}).double()
    flow.transform.network = GaussianVelocity(MEAN, FACTOR @ FACTOR.T, slip=slip)
    return flow


def make(event_shape: tuple[int, ...] = (2,), *, spread: float = 0.1, **options: Any) -> ContinuousFlow:
    with forked_rng(0), torch.no_grad():
        options = {"hidden": (16, 16), **SOLVERS["dopri5"], **options}
        flow = ContinuousFlow(event_shape, **options).double()
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the density -------------------------------------------------------------------------


@EVERY_SOLVER
def test_gaussian_data_have_the_gaussian_s_density(solver: str) -> None:
    flow, x = gaussian_flow(**SOLVERS[solver]), normal(50, 3)
    found = flow.log_likelihood(x, method="full")
    torch.testing.assert_close(found.value, TRUTH.log_prob(x), rtol=1e-5, atol=1e-5)
    assert found.kind is Kind.ESTIMATE
    assert bool((found.std_error == 0).all())


def test_a_trace_of_the_wrong_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x = gaussian_flow(), normal(50, 3)
    transform = flow.transform
    right = transform._slopes

    def planted(*arguments: Any) -> tuple[Tensor, Tensor]:
        slope, change = right(*arguments)
        return slope, -change

    monkeypatch.setattr(transform, "_slopes", planted)
    assert not torch.allclose(flow.log_likelihood(x).value, TRUTH.log_prob(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(AssertionError):
        assert_unbiased(flow, x[:1])


def assert_unbiased(flow: ContinuousFlow, x: Tensor) -> None:
    with forked_rng(3), torch.no_grad():
        features = flow.layers[0].pull(x)[0].expand(3000, -1)
        log_dets = flow.transform.pull_with_trace(features, num_probes=1, tolerance=1e-4)[1][0]
        z = flow.encode(x)
    exact = TRUTH.log_prob(x) + 0.5 * (z.square().sum(-1) + 3 * math.log(2 * math.pi))
    assert_mean(log_dets, exact[0], "log-determinant by Hutchinson's trace")


def test_hutchinson_s_trace_is_unbiased_and_its_error_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x = gaussian_flow(), normal(1, 3)
    assert_unbiased(flow, x)
    with forked_rng(0), torch.no_grad():
        many = flow.log_likelihood(x.expand(2000, -1), method="hutchinson", num_probes=4, tolerance=1e-4)
    assert many.kind is Kind.ESTIMATE
    assert_mean(many.value, float(TRUTH.log_prob(x)), "log-likelihood by Hutchinson's trace")
    assert_mean(many.std_error**2, float(many.value.var()), "its squared standard error")
    # The planted defect: probes that are all the same sign see the sum of the Jacobian, not its trace.
    monkeypatch.setattr(torch, "randint", lambda high, size, **options: torch.ones(size, **options))
    with pytest.raises(AssertionError):
        assert_unbiased(flow, x)


def masses(flow: ContinuousFlow, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Points of the plane and the probability of the cell around each, by the trapezoidal rule."""
    line = torch.linspace(-7, 7, 57, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    rows = None if context is None else context.expand(len(points))
    with torch.no_grad():
        return points, flow.log_likelihood(points, rows).value.exp() * (line[1] - line[0]) ** 2


@pytest.mark.parametrize("context_dim", [0, 3])
def test_density_integrates_to_one(context_dim: int) -> None:
    flow = make(context_dim=context_dim, spread=0.02, **COARSE)
    context = torch.tensor([1]) if context_dim else None
    assert abs(float(masses(flow, context)[1].sum()) - 1) < 1e-6


def test_density_integrates_to_one_up_to_the_tolerance() -> None:
    for tolerance in (1e-3, 1e-7):
        flow = make(spread=0.02, solver="dopri5", tolerance=tolerance)
        assert abs(float(masses(flow)[1].sum()) - 1) < 5 * tolerance


def test_a_forgotten_trace_is_caught_by_the_integral() -> None:
    flow: Any = make(spread=0.02, **COARSE)
    whole = flow.transform.pull_with_trace

    def planted(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        z, log_det = whole(*arguments, **options)
        return z, torch.zeros_like(log_det)

    flow.transform.pull_with_trace = planted
    assert abs(float(masses(flow)[1].sum()) - 1) > 1e-3


@pytest.mark.parametrize("context_dim", [0, 3])
def test_draws_follow_the_density(context_dim: int) -> None:
    flow = make(context_dim=context_dim, **COARSE)
    context = torch.full((10_000,), 2) if context_dim else None
    draws = flow.sample(10_000, context, seed=1)
    compare_on_reals(flow, draws, context)
    if not context_dim:
        with pytest.raises(AssertionError):
            compare_on_reals(flow, 1.2 * draws, context)


@EVERY_SOLVER
def test_the_log_determinant_is_autograd_s(solver: str) -> None:
    flow, x = make((3,), context_dim=3, **SOLVERS[solver]), normal(3, 3)
    labels = torch.tensor([0, 1, 2])
    for n in range(1, 3):
        label = labels[n : n + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, c=label: flow.encode(v[None], c)[0], x[n])
        z = flow.encode(x[n : n + 1], label)
        log_base = -0.5 * (z.square().sum(-1) + 3 * math.log(2 * math.pi))
        expected = log_base + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(
            flow.log_likelihood(x[n : n + 1], label).value, expected, rtol=0, atol=1e-5
        )


def test_the_pair_and_the_capability_give_one_density() -> None:
    flow, x = make(num_bins=4), torch.rand(5, 2, generator=torch.Generator().manual_seed(0)).double()
    flow.initialise(x)
    trace = pyro.poutine.trace(flow.model).get_trace(x, num=50)
    torch.testing.assert_close(trace.log_prob_sum(), 10 * flow.log_likelihood(x).value.sum())
    probed = make(num_bins=4, trace="hutchinson")
    with forked_rng(0):
        assert float(probed.log_likelihood(x).std_error.sum()) > 0
        assert bool((probed.log_likelihood(x, method="full").std_error == 0).all())


@EVERY_SOLVER
@pytest.mark.parametrize("event_shape", [(4,), (1, 2, 3)])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_encode_and_decode_are_inverse(solver: str, event_shape: tuple[int, ...], context_dim: int) -> None:
    flow, x = make(event_shape, context_dim=context_dim, **SOLVERS[solver]), normal(5, *event_shape)
    labels = torch.tensor([0, 1, 2, 0, 1]) if context_dim else None
    z = flow.encode(x, labels)
    assert z.shape == (5, flow.event_shape.numel())
    torch.testing.assert_close(flow.decode(z, labels), x, rtol=0, atol=1e-5)
    assert flow.sample(5, labels, seed=0).shape == (5, *event_shape)


def test_the_tolerance_is_what_the_error_follows() -> None:
    flow, x = gaussian_flow(), normal(20, 3)
    with torch.no_grad():
        errors = [
            float((flow.log_likelihood(x, tolerance=tolerance).value - TRUTH.log_prob(x)).abs().max())
            for tolerance in (1e-3, 1e-5, 1e-7, 1e-9)
        ]
    assert all(fine < coarse / 5 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 1e-7


def test_score_is_the_slope_of_the_log_density() -> None:
    flow, x = gaussian_flow(), normal(4, 3)
    expected = torch.linalg.solve(FACTOR @ FACTOR.T, (MEAN - x).T).T
    torch.testing.assert_close(flow.score(x), expected, rtol=1e-4, atol=1e-4)


# -- flow matching -----------------------------------------------------------------------


def line_errors(flow: ContinuousFlow, batches: Tensor) -> Tensor:
    """The mean squared error of each batch on noise and times that are the same at each call."""
    with forked_rng(5), torch.no_grad():
        return torch.stack([FlowMatching().errors(flow, x).mean() for x in batches])


def assert_minimiser(flow: ContinuousFlow, x: Tensor) -> None:
    """Around the best velocity every change d costs exactly d squared, in expectation.

    Batches are independent of each other; data of one share their lines.
    """
    best = line_errors(flow, x)
    network = flow.transform.network

    class Changed(nn.Module):
        def forward(
            self, y: Tensor, t: Tensor, context: Tensor | None = None, *, dropout: float = 0.0
        ) -> Tensor:
            found: Tensor = network(y, t, context) + self.change(y, t)
            return found

        def __init__(self, change: Any) -> None:
            super().__init__()
            self.change = change

    constant = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    changes = [
        lambda y, t: constant.expand_as(y),
        lambda y, t: t[:, None] * constant,
        lambda y, t: 0.2 * y.flip(-1).tanh(),
    ]
    for change in changes:
        flow.transform.network = Changed(change)
        extra = line_errors(flow, x) - best
        seen: list[Tensor] = []
        flow.transform.network = Changed(
            lambda y, t, c=change, s=seen: s.append(c(y, t).square().sum(-1).mean()) or 0 * y
        )
        line_errors(flow, x)
        assert_mean(extra - torch.stack(seen), 0.0, "cost of a change")
    flow.transform.network = network


def test_the_conditional_mean_minimises_flow_matching() -> None:
    with forked_rng(1):
        x = TRUTH.sample((200, 128))
    assert_minimiser(gaussian_flow(), x)
    with pytest.raises(AssertionError):
        assert_minimiser(gaussian_flow(slip=0.1), x)


def lines_through(z: Tensor, y: Tensor, t: Tensor, same: Tensor) -> Tensor:
    """The definition of the mean velocity: Bayes' rule over the data that a point may be on the way to."""
    points = (1 - t[:, None]) * z + t[:, None] * y
    noise = (points[:, None] - t[:, None, None] * y) / (1 - t[:, None, None])
    weights = (-0.5 * noise.square().sum(-1)).masked_fill(~same, -math.inf).softmax(-1)
    return (weights[..., None] * (y - noise)).sum(1)


@pytest.mark.parametrize("context", [None, "labels", "features"])
def test_the_target_is_the_mean_velocity_of_all_lines_through_the_point(context: str | None) -> None:
    z, y, t = normal(40, 2), normal(40, 2, seed=2), torch.linspace(0, 0.99, 40, dtype=torch.float64)
    labels = torch.arange(40) % 3
    given = {"labels": labels, "features": torch.nn.functional.one_hot(labels, 3).double()}.get(context or "")
    same = labels[:, None] == labels if context else torch.ones(40, 40, dtype=torch.bool)
    found = mean_velocity(z, y, t, given)
    torch.testing.assert_close(found, lines_through(z, y, t, same))
    assert not torch.allclose(found, lines_through(z, y, t, ~same | torch.eye(40, dtype=torch.bool)))
    narrow = mean_velocity(z.float(), y.float(), t.float(), given)
    torch.testing.assert_close(narrow, found.float(), rtol=1e-3, atol=1e-3)


def test_at_the_end_of_a_line_the_target_is_its_own_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = normal(40, 2).float(), normal(40, 2, seed=2).float()
    for late in (1 - 1e-7, 1.0):
        torch.testing.assert_close(mean_velocity(z, y, torch.full((40,), late)), y - z)
    start = mean_velocity(z, y, torch.zeros(40))
    torch.testing.assert_close(start, y.mean(0) - z)  # where all lines from a point are alike
    monkeypatch.setattr(flow_matching, "_MOST_LINES", 25)
    parts = mean_velocity(z, y, torch.zeros(40))
    torch.testing.assert_close(parts[:25], y[:25].mean(0) - z[:25])
    torch.testing.assert_close(parts[25:], y[25:].mean(0) - z[25:])


def test_training_soon_leaves_the_normal_that_it_starts_at() -> None:
    data = load_toy("eight-gaussians", num_train=10_000, num_test=2_000)
    with forked_rng(0):
        flow = ContinuousFlow((2,), hidden=(32, 32))
    flow.initialise(data.train.x)
    before = float(line_errors(flow, data.test.x[None]))
    options: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "cosine", "progress": False}
    ppgen.fit(flow, data.train, epochs=3, batch_size=128, device="cpu", **options)
    assert float(line_errors(flow, data.test.x[None])) < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "width", "epochs"),
    [("two-moons", 64, 20), ("eight-gaussians", 64, 20), ("rings", 128, 70), ("pinwheel", 64, 20)],
)
def test_toys_of_known_density_are_met_within_a_twentieth_of_a_nat(toy: str, width: int, epochs: int) -> None:
    data = load_toy(toy, num_train=50_000, num_test=5_000)
    assert data.truth is not None
    with forked_rng(0):
        flow = ContinuousFlow((2,), hidden=(width,) * 3)
    options: dict[str, Any] = {"learning_rate": 5e-3, "schedule": "cosine", "clip_norm": 5.0}
    ppgen.fit(flow, data.train, epochs=epochs, batch_size=256, progress=False, device="cpu", **options)
    with torch.no_grad():
        gap = data.truth.log_prob(data.test.x) - flow.log_likelihood(data.test.x, tolerance=1e-4).value
    std_error = float(gap.std()) / math.sqrt(len(gap))
    assert float(gap.mean()) + critical_z() * std_error < 0.05


def test_it_starts_at_the_best_velocity_for_standard_normal_data() -> None:
    with forked_rng(0):
        flow = ContinuousFlow((3,), hidden=(8, 8)).double()
    x, zeros, identity = normal(5, 3), torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(flow.velocity(x, t), GaussianVelocity(zeros, identity)(x, t))
    torch.testing.assert_close(flow.encode(x), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("coupling", ["independent", "optimal_transport"])
def test_training_finds_a_correlated_normal(coupling: Any) -> None:
    with forked_rng(0):
        mix = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        x = 1 + torch.randn(3000, 2) @ mix.T
        flow = ContinuousFlow((2,), hidden=(32, 32), coupling=coupling)
    assert flow.default_objective().coupling == coupling
    result = ppgen.fit(
        flow,
        x,
        epochs=12,
        batch_size=100,
        learning_rate=5e-3,
        schedule="cosine",
        device="cpu",
        progress=False,
    )
    losses = [row["loss"] or 0.0 for row in result.history]
    assert losses[-1] < losses[0]
    with torch.no_grad():
        loss = -float(flow.log_likelihood(x, tolerance=1e-4).value.mean())
    # Of all normal densities the best on this sample; a flow near the truth is close to it.
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * torch.cov(x.T, correction=0)))
    assert loss < entropy + 0.02


def test_maximum_likelihood_trains_through_the_solver() -> None:
    flow, x = make(solver="rk4", num_steps=3, spread=0.0), 2 * normal(64, 2).cumsum(-1)
    flow.initialise(x)
    with torch.no_grad():
        before = float(flow.log_likelihood(x).value.mean())
    ppgen.fit(flow, x, objective=ELBO(), epochs=25, learning_rate=1e-2, device="cpu", progress=False)
    with torch.no_grad():
        assert float(flow.log_likelihood(x).value.mean()) > before + 0.1


def test_assignment_is_the_best_of_all_permutations() -> None:
    z, y = normal(5, 2), normal(5, 2, seed=2)
    found = assignment(z, y)
    costs = {p: float((z[list(p)] - y).square().sum()) for p in itertools.permutations(range(5))}
    assert tuple(found.tolist()) == min(costs, key=lambda p: costs[p])


@pytest.mark.parametrize("features", [False, True])
def test_assignment_stays_within_a_context(features: bool) -> None:
    z, y = normal(40, 2), normal(40, 2, seed=2)
    labels = torch.arange(40) % 3
    context = torch.nn.functional.one_hot(labels, 3).double() if features else labels
    found = assignment(z, y, context)
    assert sorted(found.tolist()) == list(range(40))
    assert torch.equal(labels[found], labels)
    assert not torch.equal(found, torch.arange(40))


def test_noise_stays_independent_of_the_context_under_optimal_transport() -> None:
    # Classes far apart: pairs across classes would send each class's noise to a side of its own.
    labels = torch.arange(512) % 2
    y = 10.0 * labels[:, None] + normal(512, 1)
    z = normal(512, 1, seed=3)

    def assert_independent(partner: Tensor) -> None:
        assert_same_distribution(z[partner][labels == 0], z[partner][labels == 1])

    assert_independent(assignment(z, y, labels))
    with pytest.raises(AssertionError):
        assert_independent(assignment(z, y))


def test_flow_matching_runs_under_pyro() -> None:
    with forked_rng(0):
        flow = ContinuousFlow((2,), hidden=(8, 8), context_dim=3)
        x, labels = torch.randn(64, 2) * 3 + 1, torch.arange(64) % 3
        svi = SVI(flow.model, flow.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), loss=FlowMatching())
        losses = [svi.step(x, labels) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not pyro.get_param_store().keys()


def test_a_batch_of_a_population_is_scaled_and_validation_repeats() -> None:
    flow, x = make(), normal(8, 2)
    goal = flow.default_objective()
    with forked_rng(0):
        one = goal.loss(flow.model, flow.guide, x)
    with forked_rng(0):
        torch.testing.assert_close(goal.loss(flow.model, flow.guide, x, num=80), 10 * one)
    first, second = (goal.validation_loss(flow.model, flow.guide, x) for _ in range(2))
    assert first is not None
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_dropout_is_for_training_alone() -> None:
    flow, x = make(dropout=0.5, **COARSE), normal(4, 2)
    t = torch.rand(4, generator=torch.Generator().manual_seed(0)).double()
    flow.train()
    with forked_rng(0):
        assert not torch.equal(flow.velocity(x, t), flow.velocity(x, t))
    torch.testing.assert_close(flow.encode(x), flow.eval().encode(x), rtol=0, atol=0)
    torch.testing.assert_close(flow.velocity(x, t), flow.velocity(x, t), rtol=0, atol=0)


# -- errors and registration -------------------------------------------------------------


def test_what_makes_no_continuous_flow_is_named() -> None:
    cases: list[dict[str, Any]] = [
        {"hidden": ()},
        {"hidden": 64},
        {"dropout": 1.0},
        {"coupling": "greedy"},
        {"solver": "euler"},
        {"num_steps": 0},
        {"num_probes": 1},
        {"tolerance": 0.0},
        {"trace": "half"},
        {"num_bins": 1},
    ]
    with forked_rng(0):
        for options in cases:
            with pytest.raises(ConfigError, match=next(iter(options))):
                ContinuousFlow((2,), **{"hidden": (4,), **options})
    flow, x = make(), normal(4, 2)
    with pytest.raises(ConfigError, match="num_probes"):
        flow.log_likelihood(x, method="hutchinson", num_probes=1)
    with pytest.raises(ConfigError, match="trace"):
        flow.log_likelihood(x, method="quarter")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tolerance"):
        flow.log_likelihood(x, tolerance=1e-30)
    with pytest.raises(ShapeError, match="x:"):
        flow.log_likelihood(normal(4, 3))
    with pytest.raises(DataError, match="x: expected finite numbers, got 1 NaN"):
        flow.log_likelihood(torch.tensor([[0.5, 1.0], [math.nan, 2.0]]))
    with pytest.raises(ShapeError, match="x:"):
        flow.default_objective().loss(flow.model, flow.guide, normal(4, 3))
    with pytest.raises(CapabilityError, match="unconditional"):
        flow.default_objective().loss(flow.model, flow.guide, x, torch.zeros(4, dtype=torch.long))
    with forked_rng(0):
        other = MAF((2,), num_layers=1, hidden=(4,))
    with pytest.raises(CapabilityError, match="MAF has none"):
        FlowMatching().loss(other.model, other.guide, x.float())


def test_capabilities_and_registration() -> None:
    flow = make()
    for capability in (HasLogLikelihood, HasEncoder, HasDecoder, HasScore, HasVelocity, HasDefaultObjective):
        assert isinstance(flow, capability)
    with forked_rng(0):
        assert FAMILY.build(torch.Size((1, 8, 8)), grid(17), 100).config["num_bins"] == 17
        large = ContinuousFlow((1, 28, 28), hidden=(4,))
        assert FAMILY.build(torch.Size((2,)), REAL, 100).config["num_bins"] is None
    assert large.transform.trace == "hutchinson"
    assert flow.density is FAMILY.density is Kind.ESTIMATE
