"""Markov random fields against sums over all states, transfer matrices, and the laws of their chains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import SVI
from pyro.optim.optim import PyroOptim
from torch import Tensor

import ppgen
from ppgen.contract import Kind
from ppgen.distributions.pairwise.field import PairwiseField
from ppgen.distributions.pairwise.graph import SiteGraph, site_graph
from ppgen.errors import CapabilityError, ConfigError, DataError, SamplingWarning, ShapeError, TrainingWarning
from ppgen.inference import field_partition
from ppgen.inference.annealing.walk import anneal
from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.pseudo_likelihood import PseudoLikelihood
from ppgen.inference.partition import PartitionEstimate
from ppgen.inference.svi import fit
from ppgen.models import GAN, MarkovRandomField
from ppgen.ops.random import forked_rng
from ppgen.testing import CHECKS
from ppgen.testing.statistics import FALSE_ALARM_RATE
from tests.models.fields import (
    CRITICAL,
    FIELDS,
    NUM,
    assert_drawn_from,
    attractive,
    conditional_law,
    every_state,
    log_weights,
    randomised,
    torus_log_partition,
)

# -- the contract ------------------------------------------------------------------------------

BUILDS: dict[str, Callable[[], MarkovRandomField]] = {
    "potts": lambda: MarkovRandomField((2, 2), num_states=3),
    "pairwise": lambda: MarkovRandomField((4,), graph=nx.star_graph(3), num_states=3, interaction="pairwise"),
    "tied": lambda: MarkovRandomField((2, 3), graph="torus", tied=True),
    "unnormalised": lambda: MarkovRandomField((3, 3), max_entries=4, num_gibbs_steps=20),
    "context": lambda: MarkovRandomField((2, 2), context_dim=3),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_contract(
    build: Callable[[], MarkovRandomField], check: Callable[[Callable[[], MarkovRandomField]], None]
) -> None:
    with forked_rng(0):
        check(build)


# -- exact sums --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)
def test_likelihood_and_marginals_are_the_enumerated_ones(make: Callable[[], MarkovRandomField]) -> None:
    mrf = make()
    x = every_state(mrf)
    weights = log_weights(mrf, x)
    torch.testing.assert_close(mrf.energy(x), -weights)
    torch.testing.assert_close(mrf.log_partition().value, weights.logsumexp(0))
    found = mrf.log_likelihood(x)
    assert found.kind is Kind.EXACT is mrf.density
    law = weights.softmax(0)
    torch.testing.assert_close(found.value.exp(), law)
    codes = (x.flatten(1) * (mrf.num_states - 1)).round().long()
    one_hot = torch.nn.functional.one_hot(codes, mrf.num_states).double()
    sites, pairs = mrf.marginals()
    torch.testing.assert_close(sites, torch.einsum("n,nsq->sq", law, one_hot))
    ends = mrf.graph.ends
    expected = torch.einsum("n,nea,neb->eab", law, one_hot[:, ends[:, 0]], one_hot[:, ends[:, 1]])
    torch.testing.assert_close(pairs, expected)


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)
def test_pseudo_likelihood_is_the_sum_of_enumerated_conditionals(
    make: Callable[[], MarkovRandomField],
) -> None:
    mrf = make()
    x, q = every_state(mrf), mrf.num_states
    table = log_weights(mrf, x).reshape((q,) * mrf.event_shape.numel())
    expected = sum((table.log_softmax(d) for d in range(table.ndim)), torch.zeros_like(table))
    torch.testing.assert_close(mrf.pseudo_log_likelihood(x), expected.flatten())


@pytest.mark.parametrize("size", [4, 5, 6])
@pytest.mark.parametrize("coupling", [0.2, CRITICAL, -0.5])
def test_square_lattice_is_that_of_the_transfer_matrix(size: int, coupling: float) -> None:
    mrf = MarkovRandomField((size, size), graph="torus", tied=True).double().requires_grad_(False)
    mrf.coupling.fill_(coupling)
    assert float(mrf.log_partition().value) == pytest.approx(torus_log_partition(size, coupling), abs=1e-10)


def test_large_trees_and_narrow_grids_are_exact() -> None:
    with forked_rng(0):
        tree = nx.random_labeled_tree(400, seed=1)
    mrf = randomised(MarkovRandomField((400,), graph=tree, num_states=3))
    assert mrf.density is Kind.EXACT
    mrf.coupling.zero_()
    torch.testing.assert_close(mrf.log_partition().value, mrf.field.logsumexp(-1).sum())
    strip = MarkovRandomField((3, 100), tied=True).double().requires_grad_(False)
    assert strip.density is Kind.EXACT
    strip.coupling.fill_(0.3)
    column = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    log_own = 0.3 * (column[:, 1:] * column[:, :-1]).sum(1)
    total = log_own
    for _ in range(99):
        total = (total[:, None] + 0.3 * column @ column.T).logsumexp(0) + log_own
    torch.testing.assert_close(strip.log_partition().value, total.logsumexp(0))


def test_wide_grids_are_unnormalised_and_say_so() -> None:
    mrf = MarkovRandomField((20, 20))
    x = torch.ones(2, 20, 20)
    found = mrf.log_likelihood(x)
    assert found.kind is Kind.UNNORMALISED is mrf.density
    torch.testing.assert_close(found.value, -mrf.energy(x))
    with pytest.raises(CapabilityError, match=r"400 sites needs a table of 2.1e\+06 entries.*method='ais'"):
        mrf.log_partition()
    with pytest.warns(TrainingWarning, match="does not train the field"):
        ppgen.inference.ELBO()(mrf.model, mrf.guide, x)
    with pytest.raises(CapabilityError, match=r"more than 2\^30"):
        MarkovRandomField((50,), graph="complete").marginals()
    assert isinstance(mrf.default_objective(), PseudoLikelihood)


def test_the_known_log_partition_is_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    mrf = FIELDS["ising"]()
    with torch.no_grad():
        first = mrf.log_partition().value
        mrf.coupling.data.add_(0.5)  # leaves no trace in the version counter
        assert mrf.log_partition().value > first
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return anneal(*args, **kwargs)

    monkeypatch.setattr(field_partition, "anneal", counted)
    x = every_state(mrf)[:3]
    options: dict[str, Any] = {"method": "ais", "num_temperatures": 20, "reverse": False}
    both = [mrf.log_likelihood(x, **options).value for _ in range(2)]
    assert torch.equal(*both)
    assert len(calls) == 1
    mrf.field.data.add_(0.5)
    mrf.log_likelihood(x, **options)
    assert len(calls) == 2


# -- context -----------------------------------------------------------------------------------


def test_with_a_context_each_row_has_its_own_law() -> None:
    with forked_rng(0):
        mrf = randomised(MarkovRandomField((2, 2), num_states=3, context_dim=2))
    contexts = torch.tensor([[1.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
    x = every_state(mrf)
    for c in contexts:
        plain = MarkovRandomField((2, 2), num_states=3).double().requires_grad_(False)
        assert mrf.context_weight is not None
        plain.field.copy_(mrf.field + torch.tensordot(c, mrf.context_weight, 1))
        plain.coupling.copy_(mrf.coupling)
        rows = c.expand(len(x), -1)
        torch.testing.assert_close(mrf.log_likelihood(x, rows).value, plain.log_likelihood(x).value)
        torch.testing.assert_close(mrf.log_partition(c[None]).value[0], plain.log_partition().value)
        torch.testing.assert_close(mrf.marginals(c[None]), plain.marginals())
        torch.testing.assert_close(mrf.pseudo_log_likelihood(x, rows), plain.pseudo_log_likelihood(x))
        mask = torch.tensor([[True, False], [False, False]])
        drawn = mrf.condition(x[-1:], mask, NUM, context=c[None], seed=0)[:, 0]
        assert_drawn_from(mrf, drawn, conditional_law(plain, x[-1], mask), "conditional")
        chains = mrf.sample(NUM, c.expand(NUM, -1), num_steps=15, seed=1)
        assert_drawn_from(mrf, chains, log_weights(plain, x).softmax(0), "chains")
    with pytest.raises(CapabilityError, match="annealing is for one field"):
        mrf.log_partition(contexts, method="ais")
    with pytest.raises(ConfigError, match="context_dim: Z depends on the context"), forked_rng(0):
        MarkovRandomField((20, 20), context_dim=2)


# -- training ----------------------------------------------------------------------------------


def test_the_gradient_of_the_likelihood_is_a_difference_of_moments() -> None:
    mrf = FIELDS["pairwise"]().requires_grad_()
    x = mrf.sample(50, seed=0)
    (-mrf.log_likelihood(x).value.mean()).backward()
    sites, pairs = mrf.marginals()
    codes = (x * 2).round().long()
    one_hot = torch.nn.functional.one_hot(codes, 3).double()
    ends = mrf.graph.ends
    seen = torch.einsum("nea,neb->eab", one_hot[:, ends[:, 0]], one_hot[:, ends[:, 1]]) / 50
    assert mrf.field.grad is not None
    assert mrf.coupling.grad is not None
    torch.testing.assert_close(mrf.field.grad, sites - one_hot.mean(0))
    torch.testing.assert_close(mrf.coupling.grad, pairs - seen)


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "likelihood": ELBO,
    "pseudo-likelihood": PseudoLikelihood,
    "persistent": lambda: ContrastiveDivergence(k=2, persistent=True, num_chains=1000),
    "contrastive": lambda: ContrastiveDivergence(k=5),
}
NUM_DATA = 2000


def trained(objective: Any) -> tuple[MarkovRandomField, MarkovRandomField]:
    """A field, and one that was fitted to draws of it, as near to the optimum as full batches bring it."""
    truth, mrf = randomised(MarkovRandomField((3, 3)), std=0.4), MarkovRandomField((3, 3)).double()
    fit(
        mrf,
        truth.sample(NUM_DATA, seed=0),
        objective=objective,
        epochs=80,
        batch_size=None,
        learning_rate=0.05,
        schedule="cosine",
        device="cpu",
        progress=False,
    )
    return truth, mrf


def distance(truth: MarkovRandomField, mrf: MarkovRandomField, pseudo: bool) -> float:
    r"""Wald's statistic of the maximiser of the (pseudo-)likelihood, a chi-squared of as many as parameters.

    Its errors have the sandwich covariance :math:`H^{-1} G H^{-1} / N` (Huber 1967), H the mean curvature and
    G the covariance of the gradients, here those of Ising fields summed over all states. With the drive a of
    a spin s by its neighbours, log p(s given them) has the gradient (s - tanh a) f, where f is that of a, and
    the curvature f f / cosh^2 a. Of a likelihood both are the covariance of the sufficient statistics.
    """
    states = every_state(truth)
    law, spins = log_weights(truth, states).softmax(0), 2 * states.flatten(1) - 1
    num, edges = spins.shape[1], truth.graph.edges
    drives = torch.zeros(num, len(spins), num + len(edges), dtype=torch.float64)  # f of each site
    for i in range(num):
        drives[i, :, i] = 1.0
    for e, (i, j) in enumerate(edges):
        drives[i, :, num + e], drives[j, :, num + e] = spins[:, j], spins[:, i]
    if pseudo:
        total = drives @ flat(truth)
        scores = ((spins.T - total.tanh())[..., None] * drives).sum(0)
        curvature = torch.einsum("in,inp,inq->pq", law * total.cosh() ** -2, drives, drives)
    else:
        ends = truth.graph.ends
        scores = torch.cat([spins, spins[:, ends[:, 0]] * spins[:, ends[:, 1]]], 1)
        scores = scores - law @ scores
        curvature = (law[:, None] * scores).T @ scores
    spread = (law[:, None] * scores).T @ scores
    pull = curvature @ (flat(mrf) - flat(truth))
    return float(NUM_DATA * pull @ torch.linalg.solve(spread, pull))


def flat(mrf: MarkovRandomField) -> Tensor:
    return torch.cat([mrf.field.detach(), mrf.coupling.detach()])


LIMIT = float(scipy.stats.chi2.isf(FALSE_ALARM_RATE, 9 + 12))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_finds_the_couplings(name: str) -> None:
    """Contrastive divergence, with so many chains or moves, is held to the law of maximum likelihood."""
    truth, mrf = trained(OBJECTIVES[name]())
    assert distance(truth, mrf, name == "pseudo-likelihood") < LIMIT


@pytest.mark.parametrize("name", ["pseudo-likelihood", "persistent", "contrastive"])
def test_training_that_is_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defects: an edge that speaks to one of its ends only, and chains that never move."""
    if name == "pseudo-likelihood":
        right, one_way = PairwiseField.messages, torch.arange(25).repeat_interleave(2)[:, None] < 12
        monkeypatch.setattr(PairwiseField, "messages", lambda field: right(field) * one_way)
    else:
        monkeypatch.setattr(PairwiseField, "gibbs", lambda field, codes, num_steps, **_: codes)
    truth, mrf = trained(OBJECTIVES[name]())
    monkeypatch.undo()
    assert distance(truth, mrf, name == "pseudo-likelihood") > LIMIT


@pytest.mark.parametrize("objective", [PseudoLikelihood(), ContrastiveDivergence()], ids=["pl", "cd"])
def test_objectives_serve_pyro_s_svi(objective: Any) -> None:
    mrf = MarkovRandomField((3, 3))
    with forked_rng(0), pyro.get_param_store().scope():
        svi = SVI(mrf.model, mrf.guide, PyroOptim(torch.optim.Adam, {"lr": 0.1}), loss=objective)
        svi.step(mrf.sample(20))
    assert bool((mrf.field != 0).any())


def test_objectives_refuse_what_they_cannot_train() -> None:
    with forked_rng(0):
        gan = GAN((3,))
    x = torch.zeros(2, 3)
    with pytest.raises(CapabilityError, match="GAN has no pseudo_log_likelihood"):
        PseudoLikelihood()(gan.model, gan.guide, x)
    with pytest.raises(CapabilityError, match="GAN is none"):
        ContrastiveDivergence()(gan.model, gan.guide, x)
    mrf = MarkovRandomField((3,))
    objective = ContrastiveDivergence(persistent=True)
    with forked_rng(0):
        objective(mrf.model, mrf.guide, x)
    other = MarkovRandomField((2, 2))
    with pytest.raises(ShapeError, match="one ContrastiveDivergence a model"):
        objective(other.model, other.guide, torch.zeros(2, 2, 2))


def test_initialise_gives_the_data_s_frequencies() -> None:
    mrf = MarkovRandomField((2, 2), num_states=3)
    x = torch.tensor([[0.0, 0.5], [1.0, 1.0]]).expand(9, 2, 2)
    mrf.initialise(x)
    sites, _ = mrf.marginals()
    assert torch.allclose(sites.max(-1).values, torch.tensor(10 / 12))
    assert sites.argmax(-1).tolist() == [0, 1, 2, 2]


def test_digits_are_modelled_better_than_pixel_by_pixel() -> None:
    digits = ppgen.datasets.load("digits").binarised()
    mrf = MarkovRandomField(digits.event_shape)
    with forked_rng(0):
        fit(
            mrf,
            digits.train,
            epochs=15,
            objective=PseudoLikelihood(),
            batch_size=100,
            learning_rate=0.1,
            schedule="cosine",
            device="cpu",
            progress=False,
        )
    with torch.no_grad():
        found = -mrf.log_likelihood(digits.test.x).value.mean()
    assert float(found) < 22.5  # independent pixels reach 24.80 on this split


# -- graphs, saving and bad input --------------------------------------------------------------


def test_graphs_come_in_many_forms() -> None:
    shape = torch.Size([3, 4])
    grid = site_graph(None, shape)
    assert grid == site_graph("grid", shape) == site_graph(nx.grid_2d_graph(3, 4), shape)
    assert grid == site_graph(torch.tensor(nx.to_numpy_array(nx.grid_2d_graph(3, 4))), shape)
    assert grid == site_graph(list(grid.edges), shape)
    assert site_graph("torus", shape) == site_graph(nx.grid_2d_graph(3, 4, periodic=True), shape)
    named = nx.Graph([("b", "a"), ("a", "c")])
    assert site_graph(named, torch.Size([3])) == SiteGraph(3, ((0, 1), (1, 2)))
    assert len(grid.colours) == 2
    for graph in (grid, site_graph("torus", torch.Size([5, 5])), site_graph("complete", torch.Size([5]))):
        colour = {s: c for c, sites in enumerate(graph.colours) for s in sites.tolist()}
        assert sorted(colour) == list(range(graph.num_sites))
        assert all(colour[i] != colour[j] for i, j in graph.edges)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "name": ({"graph": "ring"}, ConfigError, "expected one of grid, torus, complete"),
    "directed": ({"graph": nx.DiGraph([(0, 1)])}, ConfigError, "undirected"),
    "loop": ({"graph": [(0, 0)]}, ConfigError, "site 0 interacts with itself"),
    "pair": ({"graph": [(0, 4)]}, ConfigError, "sites below 4"),
    "text": ({"graph": ["01"]}, ConfigError, "pairs of numbers"),
    "nodes": ({"graph": nx.path_graph(3)}, ShapeError, "expected 4 nodes"),
    "matrix": ({"graph": torch.ones(3, 3)}, ShapeError, r"shape \(4, 4\)"),
    "asymmetric": ({"graph": torch.ones(4, 4).triu(1)}, ConfigError, "symmetric"),
    "states": ({"num_states": 1}, ConfigError, "2 or more"),
    "interaction": ({"interaction": "xy"}, ConfigError, "ising, potts, pairwise"),
    "ising": ({"interaction": "ising", "num_states": 3}, ConfigError, "take 'potts'"),
    "steps": ({"num_gibbs_steps": 0}, ConfigError, "num_gibbs_steps"),
}


@pytest.mark.parametrize(("options", "error", "match"), BAD.values(), ids=BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        MarkovRandomField((4,), **options)


def test_bad_input() -> None:
    mrf = MarkovRandomField((2, 2))
    wrong: Any = "wolff"
    with pytest.raises(ShapeError, match="expects shape"):
        mrf.energy(torch.zeros(2, 4))
    for bad in (0.5, math.nan, 2.0):
        with pytest.raises(DataError):
            mrf.log_likelihood(torch.full((1, 2, 2), bad))
    with pytest.raises(ConfigError, match="sampler: expected one of gibbs, swendsen-wang"):
        mrf.sample(2, sampler=wrong, seed=0)
    with pytest.raises(ConfigError, match="num_steps"):
        mrf.sample(2, num_steps=0)
    with pytest.raises(ConfigError, match="seed: an argument of method='ais'"):
        mrf.log_partition(seed=1)
    with pytest.raises(ConfigError, match="method: expected"):
        mrf.log_likelihood(torch.zeros(1, 2, 2), method=wrong)
    with pytest.raises(ConfigError, match="2 chains"):
        mrf.log_partition(method="ais", num_chains=1)
    with pytest.raises(ShapeError, match="start: expected shape"):
        mrf.log_partition(method="ais", start=torch.zeros(3))
    half = torch.full((1, 2, 2), 0.5)
    for asked in (mrf.energy, mrf.pseudo_log_likelihood, mrf.gibbs, mrf.swendsen_wang, mrf.initialise):
        with pytest.raises(DataError, match="1/|grid|binary"):
            asked(half)
    mrf.coupling.data.fill_(-0.1)
    with pytest.raises(CapabilityError, match="4 of 4 are below"):
        mrf.swendsen_wang(torch.zeros(1, 2, 2))
    with pytest.raises(CapabilityError, match="general table"):
        FIELDS["pairwise"]().sample(1, sampler="swendsen-wang", seed=0)


def test_a_context_of_one_row_is_that_of_all_chains() -> None:
    with forked_rng(0):
        mrf = BUILDS["context"]().double()
    drawn = mrf.sample(5, torch.tensor([1]), num_steps=3, seed=0)
    assert drawn.shape == (5, 2, 2)
    torch.testing.assert_close(drawn, mrf.sample(5, torch.tensor([1] * 5), num_steps=3, seed=0))
    for context, error in (
        (torch.tensor(1), ShapeError),
        (torch.full((1, 3), math.nan, dtype=torch.float64), DataError),
    ):
        with pytest.raises(error, match="context"):
            mrf.sample(5, context, num_steps=3)
        with pytest.raises(error, match="context"):
            mrf.log_partition(context)
        with pytest.raises(error, match="context"):
            mrf.marginals(context)


def test_sides_that_differ_by_rounding_alone_are_not_warned_of() -> None:
    """From independent sites to independent sites both walks are exact, without an error to compare with."""
    mrf = MarkovRandomField((3, 3))
    found = mrf.log_partition(method="ais", num_chains=16, num_temperatures=20, seed=0)
    assert isinstance(found, PartitionEstimate)
    assert found.gap is not None
    assert float(found.value) == pytest.approx(9 * math.log(2))
    assert float(found.gap.value) == pytest.approx(0, abs=1e-9)


def test_too_short_a_ladder_is_warned_of() -> None:
    mrf = attractive(MarkovRandomField((8, 8)))
    mrf.coupling.fill_(1.5)
    with pytest.warns(SamplingWarning):
        mrf.log_partition(method="ais", sampler="gibbs", num_chains=20, num_temperatures=2, seed=0)


@pytest.mark.parametrize("name", ["ising-tied", "pairwise", "no-edges"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    mrf = FIELDS[name]()
    ppgen.save(mrf, tmp_path / "mrf")
    again = ppgen.load(tmp_path / "mrf")
    assert again.graph == mrf.graph
    x = every_state(mrf)[:5]
    torch.testing.assert_close(again.log_likelihood(x).value, mrf.log_likelihood(x).value)
