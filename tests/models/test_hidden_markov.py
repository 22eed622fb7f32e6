"""Hidden Markov models against the sum over all paths, Pyro, conjugate posteriors, and bad input."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim.optim import PyroOptim
from torch import Tensor

import ppgen
from ppgen import datasets
from ppgen.distributions.hidden_markov import HiddenMarkov as Distribution
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference import MCMC, NUTS
from ppgen.models import HiddenMarkov
from ppgen.models.emissions import Emission
from ppgen.ops import chains
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean

KINDS: dict[str, dict[str, Any]] = {
    "categorical": {"event_shape": (4,), "emission": "categorical", "levels": 3},
    "categorical-vector": {"event_shape": (4, 2), "emission": "categorical", "levels": 3},
    "bernoulli": {"event_shape": (4, 3), "emission": "bernoulli"},
    "poisson": {"event_shape": (4, 2), "emission": "poisson"},
    "diagonal": {"event_shape": (4, 2), "emission": "gaussian"},
    "full": {"event_shape": (4, 2), "emission": "gaussian", "covariance": "full"},
    "mixture": {"event_shape": (4, 2), "emission": "mixture"},
    "full-mixture": {"event_shape": (4, 2), "emission": "mixture", "covariance": "full"},
}


def hmm(kind: str, *, num_states: int = 3, smoothing: float = 0.1, **options: Any) -> HiddenMarkov:
    """A float64 model with parameters drawn at random."""
    with forked_rng(1), torch.no_grad():
        model = HiddenMarkov(**{**KINDS[kind], "num_states": num_states, "smoothing": smoothing, **options})
        model = model.double()
        for parameter in model.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    return model


def with_holes(x: Tensor, seed: int = 0) -> Tensor:
    """Some coordinates and a step missing, the second sequence ended early, the third all unknown."""
    generator = torch.Generator().manual_seed(seed)
    holes = torch.rand(x.shape, generator=generator) < 0.25
    x = x.masked_fill(holes, torch.nan)
    x[1, 2:] = torch.nan
    x[2] = torch.nan
    x[3, 1] = torch.nan
    return x


def coordinate_log_prob(model: HiddenMarkov, step: Tensor, k: int) -> float:
    """Log p(known coordinates of one step, state k), by torch's own distributions."""
    e: Any = model.emission
    known = ~step.isnan()
    step = step[known]
    if not len(step):
        return 0.0
    if hasattr(e, "levels"):
        index = (step * (e.levels - 1)).round().long()
        return float(e.probs[k][known].gather(1, index[:, None]).log().sum().detach())
    if hasattr(e, "rates"):
        return float(torch.distributions.Poisson(e.rates[k][known]).log_prob(step).sum().detach())
    if not hasattr(e, "means"):
        return float(torch.distributions.Bernoulli(e.probs[k][known]).log_prob(step).sum().detach())
    parts = [
        w.log() + torch.distributions.MultivariateNormal(m[known], c[known][:, known]).log_prob(step)
        for w, m, c in zip(e.weights[k], e.means[k], e.covariances[k], strict=True)
    ]
    return float(torch.stack(parts).logsumexp(0).detach())


def all_paths(model: HiddenMarkov, sequence: Tensor, length: int = 4) -> tuple[Tensor, Tensor]:
    """Every path (K^T, T), and log p(x, path), of the first T steps."""
    steps = sequence.reshape(model.num_steps, -1)[:length]
    emitted = [[coordinate_log_prob(model, step, k) for k in range(model.num_states)] for step in steps]
    initial, transitions = model.initial.log().tolist(), model.transitions.log().tolist()
    paths = list(itertools.product(range(model.num_states), repeat=length))
    weights = [
        initial[p[0]]
        + sum(transitions[i][j] for i, j in itertools.pairwise(p))
        + sum(emitted[t][k] for t, k in enumerate(p))
        for p in paths
    ]
    return torch.tensor(paths), torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_likelihood_and_posterior_are_sums_over_all_paths(kind: str, holes: bool) -> None:
    model = hmm(kind)
    x = model.sample(4, seed=0)
    x = with_holes(x) if holes else x
    with torch.no_grad():
        found = model.log_likelihood(x).value
    torch.testing.assert_close(model.log_likelihood(x).value.detach(), found)
    nodes, filtered, (best, weight) = model.smooth(x), model.filter(x), model.viterbi(x)
    for n in range(4):
        end = 4
        while end > 1 and bool(x[n].reshape(4, -1)[end - 1].isnan().all()):
            end -= 1
        torch.testing.assert_close(found[n], all_paths(model, x[n])[1].logsumexp(0))
        paths, weights = all_paths(model, x[n], end)
        torch.testing.assert_close(found[n], weights.logsumexp(0))
        torch.testing.assert_close(weight[n], weights.max())
        assert best[n, end:].tolist() == [-1] * (4 - end)
        p = weights.softmax(0)
        for t, k in itertools.product(range(end), range(model.num_states)):
            torch.testing.assert_close(nodes[n, t, k], p[paths[:, t] == k].sum())
        past = x[n].clone()
        past[2:] = torch.nan
        paths, weights = all_paths(model, past)
        if end > 1:
            mass = torch.stack([weights.softmax(0)[paths[:, 1] == k].sum() for k in range(3)])
            torch.testing.assert_close(filtered[n, 1], mass)
    assert not bool(nodes[1, 2:].any()) or not holes


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "full", "mixture"])
def test_pyro_sums_the_path_model_to_the_same(kind: str) -> None:
    model = hmm(kind)
    x = with_holes(model.sample(4, seed=0))
    exact = model.log_likelihood(x).value.sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.path_model, lambda x: None, x)
    torch.testing.assert_close(-loss, exact)
    wanted = list(model.parameters())
    ours = torch.autograd.grad(exact, wanted)
    theirs = torch.autograd.grad(-loss, wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_path_model_generates_the_same_sequences() -> None:
    model = hmm("categorical")
    with forked_rng(3):
        drawn = model.path_model(num=20_000)[..., 0]
    ours = model.sample(20_000, seed=4)
    points = datasets.grid(3).points(4)
    assert points is not None
    every = torch.cartesian_prod(*points)
    p = model.log_likelihood(every).value.detach().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-10)
    for draws in (drawn, ours):
        assert_mean((draws[:, None] == every).all(-1).double(), p)
    with pytest.raises(AssertionError):  # the twin: steps shuffled in time
        assert_mean((ours.flip(-1)[:, None] == every).all(-1).double(), p)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_em_climbs(kind: str, holes: bool, smoothing: float) -> None:
    truth, model = hmm(kind), hmm(kind, smoothing=smoothing)
    x = truth.sample(60, seed=5)
    x = with_holes(x) if holes else x
    with forked_rng(6):
        model.initialise(x)
    heights = []
    for _ in range(12):
        step = model.em_step(x)
        heights.append(float(step.log_likelihood + step.log_prior))
        assert not step.notes
    assert all(b >= a - 1e-7 * abs(a) for a, b in itertools.pairwise(heights)), heights
    assert heights[-1] > heights[0]


@pytest.mark.parametrize(
    ("kind", "holes"),
    [("categorical", True), ("bernoulli", True), ("poisson", True), ("diagonal", True), ("full", False)],
)
def test_an_m_step_is_the_maximum_of_the_expected_log_joint(kind: str, holes: bool) -> None:
    """Its gradient vanishes at the new parameters, under the posterior of the old ones."""
    model = hmm(kind, smoothing=0.3, min_variance=1e-12)
    x = model.sample(40, seed=5)
    x = with_holes(x) if holes else x
    unary, pairwise, lengths = (p if p is None else p.detach() for p in model.distribution().potentials(x))
    found = chains.expectations(unary, pairwise, lengths)  # type: ignore[arg-type]

    def expected() -> Tensor:
        emitted = model.emission.log_prob(x.reshape(-1, model.num_dims)).view_as(found.nodes)
        chain = found.nodes[:, 0] @ model.initial_logits.log_softmax(-1)
        onward = (found.edges * model.transition_logits.log_softmax(-1)).sum()
        return (found.nodes * emitted).sum() + chain.sum() + onward + model.log_prior()

    parameters = list(model.parameters())
    before = torch.autograd.grad(expected(), parameters)
    model.em_step(x)
    after = torch.autograd.grad(expected(), parameters)
    assert max(float(g.abs().max()) for g in before) > 1
    assert max(float(g.abs().max()) for g in after) < 1e-5


def test_em_is_that_of_padded_lengths() -> None:
    """Sequences of their own length, one EM step each way: padding adds nothing."""
    model = hmm("categorical", smoothing=0.0)
    x = model.sample(6, seed=0)
    short, other = x.clone(), hmm("categorical", event_shape=(3,), smoothing=0.0)
    short[:, 3] = torch.nan
    model.em_step(short)
    other.em_step(x[:, :3])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_em_in_logarithms_where_densities_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, again = hmm("diagonal"), hmm("diagonal")
    x = with_holes(model.sample(20, seed=5))
    model.em_step(x)
    monkeypatch.setattr(chains, "forward_backward", lambda *_: None)
    monkeypatch.setattr(chains, "forward_sum", lambda *_: None)
    step = again.em_step(x)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert bool(torch.isfinite(step.log_likelihood))


def test_draws_of_paths_have_the_posterior() -> None:
    model = hmm("full")
    x = with_holes(model.sample(4, seed=0))
    paths = model.posterior_paths(x, 20_000, seed=1)
    every, weights = all_paths(model, x[3])
    p = weights.softmax(0)
    table = (paths[:, 3][:, None] == every).all(-1).double()
    seen = p > 1e-3
    assert_mean(table[:, seen], p[seen])
    with pytest.raises(AssertionError):
        assert_mean(table.flip(1)[:, seen], p[seen])


def test_conditional_draws_have_the_ratios() -> None:
    model = hmm("categorical")
    x = model.sample(1, seed=0)
    mask = torch.tensor([[True, False, True, False]])
    drawn = model.condition(x.masked_fill(~mask, torch.nan), mask, 20_000, seed=3)[:, 0]
    assert torch.equal(drawn[:, [0, 2]], x[0, [0, 2]].expand(20_000, -1))
    points = datasets.grid(3).points(2)
    assert points is not None
    free = torch.cartesian_prod(*points)
    joint = x.repeat(9, 1)
    joint[:, [1, 3]] = free
    p = model.log_likelihood(joint).value.detach().softmax(-1)
    assert_mean((drawn[:, None, [1, 3]] == free).all(-1).double(), p)
    alone = model.sample(20_000, seed=3)
    with pytest.raises(AssertionError):
        assert_mean((alone[:, None, [1, 3]] == free).all(-1).double(), p)


@pytest.mark.parametrize("kind", ["diagonal", "full", "full-mixture"])
def test_conditional_gaussian_draws_have_the_moments(kind: str) -> None:
    model = hmm(kind)
    x = model.sample(1, seed=0)
    mask = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    drawn = model.condition(x, mask, 20_000, seed=3)[:, 0]
    # Importance sampling of the missing numbers: the density of the whole is the weight.
    with forked_rng(4):
        proposals = 4 * torch.randn(40_000, 3, dtype=torch.float64)
    whole = x.repeat(40_000, 1, 1)
    whole[:, 1, 1], whole[:, 2] = proposals[:, 0], proposals[:, 1:]
    log_w = model.log_likelihood(whole).value.detach() + (proposals / 4).square().sum(-1) / 2
    w = log_w.softmax(0)[:, None]
    for f in (
        lambda z: z.tanh(),
        lambda z: (z.square() / 4).tanh(),
        lambda z: (z * z.roll(1, -1) / 4).tanh(),
    ):
        ours = f(torch.stack([drawn[:, 1, 1], drawn[:, 2, 0], drawn[:, 2, 1]], -1))
        theirs = f(proposals)
        mean = (w * theirs).sum(0)
        error = (ours.var(0) / len(ours) + (w.square() * (theirs - mean).square()).sum(0)).sqrt()
        assert_close_to(ours.mean(0), mean, error)


def test_predictions_go_on_from_each_end() -> None:
    model = hmm("categorical")
    x = model.sample(2, seed=0)
    x[1, 2:] = torch.nan
    drawn = model.predict(x, 2, 20_000, seed=1)
    points = datasets.grid(3).points(2)
    assert points is not None
    every = torch.cartesian_prod(*points)
    assert drawn.shape == (20_000, 2, 2)
    joint = x[1].repeat(9, 1)
    joint[:, 2:] = every
    p = model.log_likelihood(joint).value.detach().softmax(-1)
    assert_mean((drawn[:, 1, None] == every).all(-1).double(), p)
    with pytest.raises(AssertionError):
        assert_mean((drawn[:, 0, None] == every).all(-1).double(), p)


def test_gradients_climb_as_em_does() -> None:
    truth = hmm("categorical")
    x = with_holes(truth.sample(100, seed=1))
    with forked_rng(0), pyro.get_param_store().scope():
        model = HiddenMarkov((4,), num_states=3, emission="categorical", levels=3).double()
        svi = SVI(model.model, model.guide, PyroOptim(torch.optim.Adam, {"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(60)]
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(-float(model.log_likelihood(x).value.detach().sum()), rel=0.01)


@pytest.mark.parametrize("missing", [False, True])
def test_fit_takes_ragged_sequences(missing: bool) -> None:
    truth = hmm("poisson", event_shape=(12, 2))
    items = [row[: 5 + n % 8].clone() for n, row in enumerate(truth.sample(80, seed=2))]
    if missing:
        for item in items:
            item[1, 0] = torch.nan
    data = datasets.sequences(items, levels="count", dtype=torch.float64)
    model = hmm("poisson", event_shape=(12, 2))
    assert data.values == model.support
    result = ppgen.fit(model, data.train, validation=data.validation, epochs=20, device="cpu", progress=False)
    losses = [(row["loss"] or 0.0) + (row["penalty"] or 0.0) for row in result.history]
    assert losses[-1] < losses[0]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))
    assert math.isfinite(float(ppgen.metrics.nll(model, data.test).value))


def test_a_conditional_chain_learns_its_classes() -> None:
    """Two classes with opposite orders of two symbols, told apart by Bayes' rule."""
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).repeat(40, 1)
    y = torch.arange(40) % 2
    x[y == 1] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    with forked_rng(0):
        model = HiddenMarkov((4,), num_states=3, emission="categorical", levels=2, context_dim=2)
    split = datasets.Split(x, y, datasets.BINARY)
    ppgen.fit(model, split, epochs=150, learning_rate=0.1, device="cpu", progress=False)
    with torch.no_grad():
        right, wrong = model.log_likelihood(x, y).value, model.log_likelihood(x, 1 - y).value
    assert bool((right > wrong + 1).all())
    with pytest.raises(CapabilityError, match="no closed M-step"):
        model.em_step(x, y)


def test_the_posterior_of_one_state_is_conjugate() -> None:
    """K = 1: independent Poisson counts with an exponential prior on the rate."""
    with forked_rng(2):
        x = torch.poisson(torch.full((30, 2, 1), 3.0))
    with forked_rng(0):
        model = HiddenMarkov((2, 1), num_states=1, emission="poisson")
        model.initialise(x)
    mcmc = MCMC(NUTS(model.bayesian_model), num_samples=200, warmup_steps=200, num_chains=16, seed=0)
    mcmc.run(x)
    rates = mcmc.get_samples(group_by_chain=True)["emission.rates"].flatten(2)[..., 0].double()
    shape, rate = 1 + float(x.sum()), 60 + 1 / float(model.emission.prior_rates)
    means = rates.mean(1)
    assert_close_to(means.mean(), shape / rate, means.std() / 4)
    squares = (rates - shape / rate).square().mean(1)
    assert_close_to(squares.mean(), shape / rate**2, squares.std() / 4)
    with pytest.raises(AssertionError):
        assert_close_to(means.mean(), shape / rate * 1.1, means.std() / 4)


def test_nuts_finds_the_posterior_that_a_grid_gives() -> None:
    """Two states with known, overlapping emissions: the chance of staying has one dimension."""
    emissions = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    half = torch.full((2,), 0.5).log()

    def chain(stay: Tensor) -> Distribution:
        rows = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        return Distribution(half, rows.log(), emissions, (15,))

    def model(x: Tensor) -> None:
        stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", chain(stay), obs=x)

    with forked_rng(1):
        x = chain(torch.tensor(0.8)).sample(torch.Size([4]))
    x[1, 3], x[2, 10:] = torch.nan, torch.nan
    mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=200, num_chains=16, seed=0)
    mcmc.run(x)
    draws = mcmc.get_samples(group_by_chain=True)["stay"].double()
    grid = torch.linspace(0.0005, 0.9995, 1000)
    log_p = torch.stack([dist.Beta(2.0, 2.0).log_prob(s) + chain(s).log_prob(x).sum() for s in grid]).double()
    p = log_p.softmax(0)
    mean = (p * grid).sum()
    means, squares = draws.mean(1), (draws - mean).square().mean(1)
    assert_close_to(means.mean(), mean, means.std() / 4)
    assert_close_to(squares.mean(), (p * (grid - mean).square()).sum(), squares.std() / 4)
    with pytest.raises(AssertionError):
        assert_close_to(means.mean(), mean + 0.1, means.std() / 4)


class Laplace(Emission):
    """A user's emission without an M-step."""

    def __init__(self, num_states: int, num_dims: int) -> None:
        super().__init__(num_states, num_dims)
        self.values = datasets.Values("real", missing=True)
        self.locs = torch.nn.Parameter(torch.randn(num_states, num_dims))

    def log_prob(self, rows: Tensor) -> Tensor:
        each = torch.distributions.Laplace(self.locs, 1.0).log_prob(rows.nan_to_num(0.0)[:, None])
        return each.masked_fill(rows.isnan()[:, None], 0.0).sum(-1)

    def sample(self, states: Tensor) -> Tensor:
        return torch.distributions.Laplace(self.locs[states], 1.0).sample()


def test_a_conditional_chain_is_the_plain_one_with_shifted_tables() -> None:
    with forked_rng(0):
        model = HiddenMarkov((5,), num_states=3, emission="categorical", levels=3, context_dim=2).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.6 * torch.randn_like(parameter))
        x = model.sample(4, torch.tensor([0, 1, 1, 0]))
    x[1, 3:], x[2, 1] = torch.nan, torch.nan
    y = torch.tensor([0, 1, 1, 0])
    found = model.log_likelihood(x, y).value
    gradient = torch.autograd.grad(found.sum(), model.transition_shift)[0]
    for label in (0, 1):
        plain = hmm("categorical", event_shape=(5,))
        with torch.no_grad():
            plain.initial_logits.copy_(model.initial_logits + model.initial_shift[label])
            plain.transition_logits.copy_(model.transition_logits + model.transition_shift[label])
            plain.emission.load_state_dict(model.emission.state_dict())
        mine = y == label
        alone = plain.log_likelihood(x[mine]).value
        torch.testing.assert_close(found[mine], alone)
        torch.testing.assert_close(
            gradient[label], torch.autograd.grad(alone.sum(), plain.transition_logits)[0]
        )
        torch.testing.assert_close(model.smooth(x, y)[mine], plain.smooth(x[mine]))
        torch.testing.assert_close(model.filter(x, y)[mine], plain.filter(x[mine]))
        for a, b in zip(model.viterbi(x, y), plain.viterbi(x[mine]), strict=True):
            torch.testing.assert_close(a[mine], b)
    assert torch.equal(model.viterbi(x, y[1:2])[0], model.viterbi(x, torch.ones(4).long())[0])
    with pytest.raises(ShapeError, match="one row for each of 4 data"):
        model.smooth(x, y[:3])
    with pytest.raises(DataError, match="context: expected finite numbers"):
        model.smooth(x, torch.full((4, 2), torch.nan))


class Exponential(Emission):
    """A user's emission with an M-step."""

    def __init__(self, num_states: int, num_dims: int) -> None:
        super().__init__(num_states, num_dims)
        self.values = datasets.Values("real", missing=True)
        self.log_rates = torch.nn.Parameter(torch.linspace(-1, 1, num_states)[:, None].repeat(1, num_dims))

    def log_prob(self, rows: Tensor) -> Tensor:
        each = self.log_rates - self.log_rates.exp() * rows.nan_to_num(0.0)[:, None]
        return each.masked_fill(rows.isnan()[:, None], 0.0).sum(-1)

    def sample(self, states: Tensor) -> Tensor:
        return torch.distributions.Exponential(self.log_rates[states].exp()).sample()

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        known = (~rows.isnan()).to(rows.dtype)
        self.log_rates.copy_((weights.T @ known).log() - (weights.T @ rows.nan_to_num(0.0)).log())
        return ()


def test_an_emission_of_the_users_own_takes_part_in_em() -> None:
    with forked_rng(0):
        model = HiddenMarkov((12, 2), num_states=2, emission=Exponential(2, 2))
        x = with_holes(HiddenMarkov((12, 2), num_states=2, emission=Exponential(2, 2)).sample(60))
    data = datasets.from_arrays(x, missing=True).train
    result = ppgen.fit(model, data, epochs=15, device="cpu", progress=False)
    heights = [-(row["loss"] or 0.0) for row in result.history]
    penalties = [row["penalty"] or 0.0 for row in result.history]
    heights = [height - penalty for height, penalty in zip(heights, penalties, strict=True)]
    assert all(b >= a - 1e-5 for a, b in itertools.pairwise(heights)), heights
    assert heights[-1] > heights[0]


def test_an_emission_of_the_users_own() -> None:
    with forked_rng(0):
        model = HiddenMarkov((5, 2), num_states=2, emission=Laplace(2, 2))
        x = model.sample(50)
        x[0, 2, 1] = torch.nan
    data = datasets.from_arrays(x, missing=True).train
    result = ppgen.fit(model, data, epochs=3, device="cpu", progress=False)
    assert result.history[-1]["loss"] is not None
    assert model.smooth(x).shape == (50, 5, 2)
    with pytest.raises(CapabilityError, match="Laplace has no M-step"):
        model.em_step(x)
    with forked_rng(0), pytest.raises(ShapeError, match="expected 3 states and 2 coordinates"):
        HiddenMarkov((5, 2), num_states=3, emission=Laplace(2, 2))


def test_a_distribution_as_emission() -> None:
    trils = torch.linalg.cholesky(torch.tensor([[1.0, 0.3], [0.3, 1.0]])).expand(2, 2, 2)
    emitted = dist.MultivariateNormal(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), scale_tril=trils)
    chain = Distribution(torch.zeros(2), torch.eye(2), emitted, (3, 2))
    with forked_rng(0):
        x = chain.expand(torch.Size([4])).sample()
    assert x.shape == (4, 3, 2)
    x[0, 1] = torch.nan
    direct = torch.logsumexp(emitted.log_prob(x[:, :1]) + math.log(0.5), -1)
    torch.testing.assert_close(
        Distribution(torch.zeros(2), torch.eye(2), emitted, (1, 2)).log_prob(x[:, :1]), direct
    )
    x[0, 1, 0] = 0.0
    with pytest.raises(DataError, match="single coordinates are missing"):
        chain.log_prob(x)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="num_states: expected a positive"):
        HiddenMarkov((3,), num_states=0)
    with pytest.raises(ConfigError, match="levels: categorical emissions need"):
        HiddenMarkov((3,), emission="categorical")
    with pytest.raises(ConfigError, match="emission: expected 'gaussian'"):
        HiddenMarkov((3,), emission="cauchy")
    with pytest.raises(ConfigError, match="smoothing"):
        HiddenMarkov((3,), smoothing=-1.0)
    with pytest.raises(ConfigError, match=r"num_states: expected a positive integer, got 2\.5"):
        HiddenMarkov((3,), num_states=2.5)
    with pytest.raises(ConfigError, match="event_shape"):
        HiddenMarkov(())
    with pytest.raises(ConfigError, match="levels: categorical emissions have them, got 3 beside 'gaussian'"):
        HiddenMarkov((3,), levels=3)
    with pytest.raises(ConfigError, match="covariance: Gaussian emissions have one"):
        HiddenMarkov((3,), emission="bernoulli", covariance="full")
    model = hmm("categorical")
    x = model.sample(4, seed=0)
    for call in (model.log_likelihood, model.smooth, model.viterbi, model.em_step):
        with pytest.raises(ShapeError, match="expects shape"):
            call(x[:, :3])
    with pytest.raises(DataError, match="values of the grid of 3 levels"):
        model.log_likelihood(x + 0.1)
    with pytest.raises(DataError, match="infinite"):
        model.smooth(x / 0)
    with pytest.raises(ConfigError, match="num: expected"):
        model.posterior_paths(x, 0)
    for wrong in (0, 2.5):
        with pytest.raises(ConfigError, match="num_steps: expected"):
            model.predict(x, wrong)
    for call in (model.smooth, model.filter):
        assert torch.equal(call(x > 2), call(x.new_zeros(x.shape)))  # any type that holds the values
    with pytest.raises(ConfigError, match="initial: expected probabilities"):
        model.set_chain(torch.tensor([0.5, 0.2, 0.2]), torch.eye(3))
    with pytest.raises(ShapeError, match=r"transitions: expected shape \(3, 3\)"):
        model.set_chain(torch.tensor([0.5, 0.3, 0.2]), torch.eye(2))
    with forked_rng(0), pytest.raises(ConfigError, match="3 states need as many observed steps"):
        hmm("diagonal").initialise(torch.full((1, 4, 2), torch.nan, dtype=torch.float64))


def test_impossible_evidence() -> None:
    """A chain that stays, and states that emit one symbol each: any change of symbol is impossible."""
    model = hmm("categorical")
    with torch.no_grad():
        model.emission.logits.copy_(torch.eye(3).log()[:, None])
    model.set_chain(torch.full((3,), 1 / 3), torch.eye(3))
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.5]], dtype=torch.float64)
    assert model.log_likelihood(x).value.tolist() == pytest.approx([-math.log(3), -math.inf])
    before = model.transition_logits.detach().clone()
    assert float(model.em_step(x).log_likelihood) == -math.inf
    assert torch.equal(model.transition_logits, before)
    for call in (
        model.smooth,
        model.filter,
        model.viterbi,
        model.posterior_paths,
        lambda x: model.predict(x, 2),
        lambda x: model.condition(x, torch.tensor(True)),
    ):
        with pytest.raises(DataError, match="sequence 1 has probability 0"):
            call(x)
    assert model.smooth(x[:1])[0].argmax(-1).tolist() == [0, 0, 0, 0]


def test_chorales(data_dir: Path) -> None:
    """88 notes a step; ten states are far better than one, and unheard notes are not impossible."""
    with np.load(data_dir / "jsb_chorales" / "jsb_chorales.npz") as file:
        parts = {
            s: np.split(file[f"{s}_roll"], np.cumsum(file[f"{s}_lengths"])[:-1]) for s in ("train", "test")
        }
    pieces = parts["train"] + parts["test"]
    data = datasets.sequences(pieces, levels=2, num_steps=160, validation=20, test=40)
    assert data.train.x.shape == (246, 160, 88)
    notes = float((~data.test.x.isnan()).sum()) / 88
    found = {}
    for num_states in (1, 10):
        with forked_rng(0):
            model = HiddenMarkov((160, 88), num_states=num_states, emission="bernoulli")
        ppgen.fit(model, data.train, epochs=15, device="cpu", progress=False)
        with torch.no_grad():
            found[num_states] = float(model.log_likelihood(data.test.x).value.sum()) / notes
    assert found[10] > found[1] + 1.0
    assert math.isfinite(found[1])
