"""Draws of DAGs against the list of all, each check with a planted bug that it must reject."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.inference.structure.exact import sampling
from ppgen.inference.structure.exact.marginals import PriorKind
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.reweighted import draw_reweighted
from ppgen.inference.structure.exact.sampling import draw_parents
from ppgen.inference.structure.exact.source import ExactSource
from ppgen.testing.statistics import assert_close_to
from tests.inference.structure.all_dags import AllDags, random_scores

PRIORS: tuple[PriorKind, ...] = ("uniform", "order")
NUM = 20_000


def _assert_law(drawn: Tensor, truth: AllDags) -> None:
    """The number of draws of each DAG that is not rare, and of all rare ones together."""
    expected, found = truth.probabilities, truth.frequencies(drawn)
    common = expected * len(drawn) > 50
    p = torch.cat([expected[common], expected[~common].sum()[None]])
    f = torch.cat([found[common], found[~common].sum()[None]])
    assert_close_to(f, p, (p * (1 - p) / len(drawn)).clamp_min(0).sqrt() + 1 / len(drawn), "share of a DAG")
    # All together: Pearson's statistic has mean k and variance 2 k, and a little for small counts.
    kept = p * len(drawn) > 50
    statistic = (len(drawn) * (f - p) ** 2 / p)[kept].sum()
    freedom = torch.tensor(float(max(int(kept.sum()) - 1, 1)), dtype=torch.float64)
    if int(kept.sum()) > 30:
        assert_close_to(statistic[None], freedom[None], (2 * freedom + freedom / 50).sqrt()[None], "Pearson")


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    ("num_nodes", "scale"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.5), (5, 2.0), (5, 2000.0)]
)
def test_draws_have_the_posterior_law(prior: PriorKind, num_nodes: int, scale: float) -> None:
    scores = random_scores(num_nodes, scale)
    drawn = ExactSource(scores, prior).sample(NUM, seed=1)
    assert drawn.log_weights.logsumexp(0).item() == pytest.approx(0.0, abs=1e-9)
    _assert_law(drawn.adjacency, AllDags.of(scores, prior))


def test_planted_wrong_prior_is_found() -> None:
    scores = random_scores(4, 1.0)
    for drawn, judged in zip(PRIORS, reversed(PRIORS), strict=True):
        graphs = ExactSource(scores, drawn).sample(NUM, seed=1).adjacency
        with pytest.raises(AssertionError):
            _assert_law(graphs, AllDags.of(scores, judged))


def test_planted_layers_without_their_condition_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(4, 1.0)
    true_draw = sampling.draw_parents

    def forgetful(scores: Tensor, within: Tensor, hit: Tensor | None, generator: torch.Generator) -> Tensor:
        return true_draw(scores, within, None, generator)

    monkeypatch.setattr(sampling, "draw_parents", forgetful)
    with pytest.raises(AssertionError):
        _assert_law(
            ExactSource(scores, "uniform").sample(NUM, seed=1).adjacency, AllDags.of(scores, "uniform")
        )


def test_parents_that_must_hit_a_set() -> None:
    scores = random_scores(5, 1.5)[0]
    within, hit = 0b1101, 0b0101
    columns = torch.arange(16)
    allowed = ((columns & ~within) == 0) & ((columns & hit) > 0)
    expected = scores.masked_fill(~allowed, -torch.inf).softmax(0)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_parents(scores, torch.full((NUM,), within), torch.full((NUM,), hit), generator)
    found = torch.bincount(drawn, minlength=16).double() / NUM
    assert found[~allowed].sum() == 0
    assert_close_to(found, expected, (expected * (1 - expected) / NUM).sqrt() + 1 / NUM)


@pytest.mark.parametrize("prior", PRIORS)
def test_draws_of_larger_graphs_have_the_exact_marginals(prior: PriorKind) -> None:
    source = ExactSource(random_scores(9, 1.5, seed=4), prior)
    graphs = source.sample(4000, seed=2).adjacency.double()
    p = source.edge_probabilities()
    assert_close_to(graphs.mean(0), p, (p * (1 - p) / 4000).sqrt() + 1 / 4000, "edges")


def test_seeds_give_the_same_draws_and_leave_the_global_generator() -> None:
    source = ExactSource(random_scores(5, 1.0), "uniform")
    before = torch.get_rng_state()
    first, second, third = (source.sample(20, seed=s).adjacency for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# -- weighted draws -------------------------------------------------------------------------


def _weighted(scores: Tensor) -> tuple[Tensor, Tensor, float, float]:
    drawn = draw_reweighted(scores, OrderTables(scores), NUM, torch.Generator().manual_seed(5))
    weights = drawn.log_weights.exp()
    edges = torch.einsum("s,sij->ij", weights, drawn.adjacency.double())
    gap = drawn.adjacency.double() - edges
    errors = (weights[:, None, None] ** 2 * gap**2).sum(0).sqrt()
    return edges, errors, drawn.log_partition.value.item(), drawn.log_partition.std_error.item()


@pytest.mark.parametrize("num_nodes", [4, 5, 8])
def test_weighted_draws_have_the_uniform_law(num_nodes: int) -> None:
    scores = random_scores(num_nodes, 1.0, seed=7)
    exact = ExactSource(scores, "uniform")
    edges, errors, log_z, error = _weighted(scores)
    assert_close_to(edges, exact.edge_probabilities(), errors + 1 / NUM, "edges")
    expected = exact.log_partition.item()
    assert_close_to(torch.tensor([log_z]), expected, torch.tensor([error]), "log Z")
    order = ExactSource(scores, "order")
    with pytest.raises(AssertionError):  # the twin: the law without weights
        assert_close_to(edges, order.edge_probabilities(), errors + 1 / NUM, "edges")
    assert math.isfinite(order.log_partition.item())


def test_paths_under_the_order_prior_beyond_exact_sums() -> None:
    scores = torch.full((13, 4096), -torch.inf, dtype=torch.float64)
    scores[:, 0] = 0.0
    scores[1:, 1] = 1.0  # node 0 may be the parent of each
    scores[0, 1] = 0.5  # and node 1 the parent of it
    source = ExactSource(scores, "order", seed=0)
    paths = source.path_probabilities()
    assert paths.kind == "estimate"
    edges = source.edge_probabilities()
    assert_close_to(paths.value[0], edges[0], paths.std_error[0], "paths from 0")
