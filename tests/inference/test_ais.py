"""The evidence of Pyro models against closed forms and quadrature, from both sides."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppgen.contract import Kind
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.ais import AIS
from ppgen.inference.annealing.path_ends import PathEnds
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.inference.annealing.tempering import _jitter
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.samplers import HMC, MALA, RandomWalk
from ppgen.inference.partition import log_partition
from ppgen.ops.random import forked_rng
from ppgen.ops.weights import log_mean_weight
from ppgen.testing.statistics import assert_close_to, assert_mean

_X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
_Y = _X @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(12, generator=torch.Generator().manual_seed(1))
_COUNTS = torch.tensor([7.0, 2.0, 5.0])


def regression(x: Tensor, y: Tensor | None = None) -> Tensor:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def regression_evidence(x: Tensor, y: Tensor) -> Tensor:
    covariance = 4 * x.double() @ x.double().T + 0.25 * torch.eye(len(x), dtype=torch.float64)
    return dist.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), covariance).log_prob(y.double())


def regression_posterior(x: Tensor, y: Tensor, num: int) -> Tensor:
    precision = x.T @ x / 0.25 + torch.eye(2) / 4
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)
    with forked_rng(3):
        return dist.MultivariateNormal(mean, precision_matrix=precision).sample((num,))


def counts(k: Tensor) -> None:
    """Two positive or bounded latents, conjugate apart."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Binomial(10, p), obs=k)
    pyro.sample("c", dist.Poisson(rate), obs=torch.tensor(4.0))


def counts_evidence(k: Tensor) -> Tensor:
    k = k.double()
    heads, tails = k.sum(), (10 - k).sum()
    ways = torch.lgamma(torch.tensor(11.0)) - torch.lgamma(k + 1) - torch.lgamma(11 - k)

    def beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    two, three = torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    poisson = dist.GammaPoisson(two, torch.ones_like(two)).log_prob(torch.tensor(4.0, dtype=torch.float64))
    return ways.sum() + beta(two + heads, three + tails) - beta(two, three) + poisson


def components(x: Tensor) -> None:
    """A discrete latent a datum, summed out."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu * k, 1.0), obs=x)


def components_evidence(x: Tensor) -> Tensor:
    mu = torch.linspace(-20, 20, 20_001, dtype=torch.float64)
    each = torch.stack(
        [
            math.log(w) + dist.Normal(mu[:, None] * k, 1.0).log_prob(x.double())
            for k, w in ((0, 0.3), (1, 0.7))
        ]
    ).logsumexp(0)
    log_joint = each.sum(1) + dist.Normal(torch.zeros_like(mu), 2.0).log_prob(mu)
    return torch.trapezoid(log_joint.exp(), mu).log()


MODELS: dict[str, tuple[Any, tuple[Tensor, ...], Tensor]] = {
    "linear-gaussian": (regression, (_X, _Y), regression_evidence(_X, _Y)),
    "beta-binomial": (counts, (_COUNTS,), counts_evidence(_COUNTS)),
    "enumerated": (components, (_Y,), components_evidence(_Y)),
}


@pytest.mark.parametrize(("model", "args", "truth"), MODELS.values(), ids=MODELS)
def test_evidence_is_the_closed_form(model: Any, args: tuple[Tensor, ...], truth: Tensor) -> None:
    evidence = AIS(model, num_particles=200, seed=0, compile=False).run(*args)
    assert evidence.ok, evidence.warnings
    assert evidence.log_evidence.kind is Kind.LOWER_BOUND
    assert_close_to(evidence.log_evidence.value, truth, evidence.log_evidence.std_error)
    assert_close_to(evidence.thermodynamic.value, truth, evidence.thermodynamic.std_error)
    assert evidence.log_weights.shape == (200,)
    assert 1 < float(evidence.ess) <= 200
    assert float(evidence.log_evidence.std_error) < 0.15


@pytest.mark.parametrize("name", ["linear-gaussian", "beta-binomial"])
def test_compiled_walks_have_the_same_evidence(name: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    model, args, truth = MODELS[name]
    ais = AIS(model, num_particles=200, seed=0, compile="native")
    evidence, again = ais.run(*args), ais.run(*args)
    assert evidence.ok, evidence.warnings
    assert_close_to(evidence.log_evidence.value, truth, evidence.log_evidence.std_error)
    assert torch.equal(evidence.log_weights, again.log_weights)


def mean_weight(defect: bool = False) -> None:
    """Weights of many particles over few temperatures average to the evidence."""
    ends = PathEnds(counts, None, (_COUNTS,), {}, dtype=torch.float64)
    honest = ends.potential.density(path=True)

    def without_jacobian(z: Tensor) -> tuple[Tensor, Tensor]:
        u, g = honest.batched(z)
        values = ends.potential.constrain(z)
        log_jacobian = (values["p"] * (1 - values["p"]) * values["rate"]).log()
        return u + torch.stack([log_jacobian, torch.zeros_like(log_jacobian)], 1), g

    density = replace(honest, batched=without_jacobian) if defect else honest
    tempering = Tempering(density, ends.draw, Plan(1000, num_temperatures=8, seed=0, compile=False))
    log_weights = tempering.up().log_weights[:, 0]
    assert_mean((log_weights - counts_evidence(_COUNTS)).exp(), 1.0)


def test_weights_are_unbiased() -> None:
    mean_weight()


def test_a_missing_jacobian_is_caught() -> None:
    with pytest.raises(AssertionError, match="off by"):
        mean_weight(defect=True)


def test_the_same_seed_gives_the_same_figure_and_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        AIS(regression, num_particles=8, num_temperatures=5, seed=s, compile=False).run(_X, _Y)
        for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.log_weights, again.log_weights)
    assert not torch.equal(first.log_weights, other.log_weights)
    with forked_rng(0):
        unseeded = AIS(regression, num_particles=8, num_temperatures=5, compile=False).run(_X, _Y)
    assert torch.equal(
        unseeded.log_weights,
        AIS(regression, num_particles=8, num_temperatures=5, seed=unseeded.seed, compile=False)
        .run(_X, _Y)
        .log_weights,
    )


def test_draws_are_the_posterior() -> None:
    evidence = AIS(regression, num_particles=600, seed=0, compile=False).run(_X, _Y)
    weights = evidence.log_weights.softmax(0)[:, None]
    w = evidence.samples["w"].double()
    mean = (weights * w).sum(0)
    error = ((weights * (w - mean)) ** 2).sum(0).sqrt()
    precision = _X.T @ _X / 0.25 + torch.eye(2) / 4
    assert_close_to(mean, torch.linalg.solve(precision, _X.T @ _Y / 0.25), error)
    drawn = evidence.resample(1000, seed=1)["w"]
    assert drawn.shape == (1000, 2)
    assert_close_to(drawn.double().mean(0), mean, 2 * error)


# -- starting from a guide ---------------------------------------------------------------------------


def near_guide(x: Tensor, y: Tensor | None = None) -> None:
    pyro.sample("w", dist.Normal(torch.tensor([1.0, -0.5]), 0.3).to_event(1))


def test_a_guide_that_is_near_needs_fewer_temperatures() -> None:
    truth = regression_evidence(_X, _Y)
    from_guide, from_prior = (
        AIS(regression, guide, num_particles=100, seed=0, compile=False).run(_X, _Y)
        for guide in (near_guide, None)
    )
    assert_close_to(from_guide.log_evidence.value, truth, from_guide.log_evidence.std_error)
    assert len(from_guide.betas) < len(from_prior.betas)
    assert set(from_guide.samples) == {"w"}


def test_an_automatic_guide_over_constrained_latents() -> None:
    guide = AutoNormal(counts, init_scale=0.5)
    with forked_rng(0):
        guide(_COUNTS)
    evidence = AIS(counts, guide, num_particles=200, seed=0, compile=False).run(_COUNTS)
    pyro.clear_param_store()
    assert_close_to(evidence.log_evidence.value, counts_evidence(_COUNTS), evidence.log_evidence.std_error)
    assert bool(((evidence.samples["p"] > 0) & (evidence.samples["p"] < 1)).all())


# -- both sides ------------------------------------------------------------------------------------------


def test_reverse_bounds_from_above() -> None:
    ais = AIS(regression, num_particles=200, seed=0, compile=False)
    upper = ais.reverse({"w": regression_posterior(_X, _Y, 200)}, _X, _Y)
    assert upper.kind is Kind.UPPER_BOUND
    assert_close_to(upper.value, regression_evidence(_X, _Y), upper.std_error)


def test_the_evidence_lies_between_the_bounds_on_simulated_data() -> None:
    few = AIS(regression, num_particles=4, num_temperatures=6, seed=1, compile=False)
    bounds = few.bidirectional(_X, _Y, num_simulations=6)
    assert bounds.lower.value.shape == bounds.upper.value.shape == (6,)
    assert bounds.gap.kind is Kind.UPPER_BOUND
    # A coarse ladder leaves a gap that is there beyond doubt, and a fine one closes it.
    assert float(bounds.gap.value) > 3 * float(bounds.gap.std_error) > 0
    fine = AIS(regression, num_particles=40, num_temperatures=150, seed=1, compile=False)
    closer = fine.bidirectional(_X, _Y, num_simulations=2)
    assert float(closer.gap.value) < float(bounds.gap.value) / 4


def test_what_cannot_be_simulated_is_refused() -> None:
    def with_factor(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("extra", -(mu**2))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    ais = AIS(with_factor, num_particles=8, num_temperatures=4, seed=0, compile=False)
    assert bool(torch.isfinite(ais.run(torch.tensor(1.0)).log_evidence.value))
    with pytest.raises(CapabilityError, match=r"pyro.factor\('extra'\)"):
        ais.bidirectional(torch.tensor(1.0))


def test_bidirectional_bounds_need_a_site_that_is_observed() -> None:
    def model(y: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ConfigError, match="observes nothing"):
        AIS(model, num_particles=8, num_temperatures=4, seed=0, compile=False).bidirectional()


def test_particles_that_share_a_draw_have_the_error_between_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    ais = AIS(regression, num_particles=60, num_temperatures=10, seed=0, compile=False)
    draws = {"w": regression_posterior(_X, _Y, 6)}
    seen: list[Tensor] = []

    def noted(log_weights: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(log_weights)
        return log_mean_weight(log_weights)

    monkeypatch.setattr("ppgen.inference.annealing.plan.log_mean_weight", noted)
    upper = ais.reverse(draws, _X, _Y)
    assert [tuple(w.shape) for w in seen] == [(10, 6), (6,)]
    assert float(upper.std_error) == pytest.approx(float(log_mean_weight(seen[1])[1]))


def test_memory_that_runs_out_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    ais = AIS(regression, num_particles=32, num_temperatures=8, seed=0, compile=False)
    whole = ais.run(_X, _Y)
    density = Potential.density
    calls: list[int] = []

    def cramped(self: Potential, path: bool = False) -> Density:
        honest = density(self, path)

        def batched(z: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(len(z))
            if len(z) > 10:
                raise torch.OutOfMemoryError("planted")
            return honest.batched(z)

        return replace(honest, batched=batched)

    monkeypatch.setattr(Potential, "density", cramped)
    in_parts = ais.run(_X, _Y)
    assert {32, 16, 8} <= set(calls)
    torch.testing.assert_close(in_parts.log_weights, whole.log_weights, rtol=1e-4, atol=1e-4)


def test_kernels_depend_on_the_rung_alone() -> None:
    betas = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 9
    whole = _jitter(betas, 3)
    assert torch.equal(whole[100:200], _jitter(betas[100:200], 3))
    assert_mean(whole, 1.0)
    assert float(whole.std()) > 0.1


# -- transitions, precision, bad input -----------------------------------------------------------------


@pytest.mark.parametrize(
    "transition", [MALA(), RandomWalk(), HMC(num_steps=3, full_mass=True)], ids=["mala", "walk", "dense"]
)
def test_other_transitions(transition: Any) -> None:
    ais = AIS(regression, num_particles=200, seed=0, transition=transition, num_transitions=3, compile=False)
    evidence = ais.run(_X, _Y)
    assert_close_to(evidence.log_evidence.value, regression_evidence(_X, _Y), evidence.log_evidence.std_error)


def test_too_few_temperatures_are_warned_of() -> None:
    evidence = AIS(regression, num_particles=64, num_temperatures=1, seed=0, compile=False).run(_X, _Y)
    assert not evidence.ok
    assert "effective sample size" in evidence.warnings[0]
    assert "num_temperatures" in evidence.warnings[0]


def only_discrete(x: Tensor) -> None:
    k = pyro.sample("k", dist.Categorical(torch.ones(2)))
    pyro.sample("x", dist.Normal(k * 1.0, 1.0), obs=x)


def test_nothing_to_move_is_an_error() -> None:
    with pytest.raises(ConfigError, match="discrete"):
        AIS(only_discrete, seed=0).run(torch.tensor(0.0))


def test_a_prior_that_hangs_on_a_discrete_latent_needs_a_guide() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        mu = pyro.sample("mu", dist.Normal(3 * k, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(1.5, 2.0))

    x = torch.tensor(1.0)
    with pytest.raises(CapabilityError, match="give a guide"):
        AIS(model, seed=0, compile=False).run(x)
    evidence = AIS(model, guide, num_particles=200, seed=0, compile=False).run(x)
    truth = torch.stack([dist.Normal(m, math.sqrt(2)).log_prob(x) for m in (0.0, 3.0)]).logsumexp(0)
    assert_close_to(evidence.log_evidence.value, truth - math.log(2), evidence.log_evidence.std_error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_particles": 1}, "num_particles"),
        ({"num_temperatures": 0}, "num_temperatures"),
        ({"schedule": "linear"}, "num_temperatures"),
        ({"schedule": "cosine", "num_temperatures": 3}, "schedule"),
        ({"cess": 1.0}, "cess"),
        ({"num_transitions": 0}, "num_transitions"),
        ({"transition": "hmc"}, "transition"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_bad_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=f"^{match}"):
        AIS(regression, seed=0, compile=False, **options).run(_X, _Y)


# -- energies ------------------------------------------------------------------------------------------


def test_log_partition_of_a_gaussian_and_of_a_double_well() -> None:
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    with forked_rng(0):
        draws = 1 + torch.randn(256, 2) @ factor.T
    found = log_partition(
        lambda z: 0.5 * ((z - 1) @ precision * (z - 1)).sum(-1), 2, scale=2.0, draws=draws, seed=0
    )
    truth = math.log(2 * math.pi) - 0.5 * float(torch.logdet(precision))
    assert found.upper is not None
    assert found.gap is not None
    for side in (found, found.upper):
        assert_close_to(side.value, truth, side.std_error)
    wells = log_partition(lambda z: (z[:, 0] ** 2 - 1) ** 2 * 2, 1, seed=1)
    grid = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    truth = float(torch.trapezoid((-2 * (grid**2 - 1) ** 2).exp(), grid).log())
    assert_close_to(wells.value, truth, wells.std_error)
    assert float(log_mean_weight(wells.log_weights)[0]) == pytest.approx(float(wells.value))
