"""Sums over orders and DAGs against lists of all DAGs, and against each other where lists end."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.inference.structure.exact.best import adjacency_of, best_dag
from ppgen.inference.structure.exact.lattice import (
    signs,
    subset_logsumexp_,
    subset_max_,
    sums_by_member,
    sums_over_subsets,
    superset_logsumexp_,
    superset_moebius_,
)
from ppgen.inference.structure.exact.marginals import PriorKind, log_partition
from ppgen.inference.structure.exact.source import ExactSource
from ppgen.inference.structure.exact.uniform import UniformTables
from ppgen.inference.structure.problem import GraphSource
from ppgen.ops.dags import is_acyclic
from tests.inference.structure.all_dags import AllDags, random_scores

PRIORS: tuple[PriorKind, ...] = ("uniform", "order")
SIZES = (1, 2, 3, 4, 5)
SCALES = (1.0, 30.0, 3000.0)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# -- transforms -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [3.0, 300.0, 3000.0])  # by additions, near the limit, and by logaddexp
@pytest.mark.parametrize("num_bits", [0, 1, 3, 7])
def test_transforms_are_sums_over_the_lattice(num_bits: int, scale: float) -> None:
    values = random_scores(num_bits + 1, scale)[0]
    sets = torch.arange(1 << num_bits)
    below = (sets[None, :] & ~sets[:, None]) == 0  # [S, P]: P is a subset of S
    inside = torch.where(below, values, -torch.inf)
    _close(subset_logsumexp_(values.clone()[None])[0], inside.logsumexp(1))
    _close(subset_max_(values.clone()[None])[0], inside.amax(1))
    _close(superset_logsumexp_(values.clone()), torch.where(below.T, values, -torch.inf).logsumexp(1))
    linear = (values / scale).exp()
    size = sum((sets >> b) & 1 for b in range(num_bits)) + torch.zeros_like(sets)
    sign = (-1.0) ** (size[None, :] - size[:, None]).double()
    _close(superset_moebius_(linear.clone()[:, None])[:, 0], torch.where(below.T, sign * linear, 0.0).sum(1))
    _close(signs(num_bits, linear), -((-1.0) ** size.double()))
    member = (sets[:, None] >> torch.arange(num_bits)) & 1 > 0
    _close(sums_by_member(linear[:, None])[:, 0], (member * linear[:, None]).sum(0))
    _close(sums_over_subsets(linear[:num_bits, None])[:, 0], (member * linear[:num_bits]).sum(1))


@pytest.mark.parametrize("span", [0.0, 599.0, 601.0, 1199.0, 1201.0])
def test_additions_hold_over_their_whole_range(span: float) -> None:
    values = torch.full((64,), -torch.inf, dtype=torch.float64)
    values[0], values[5], values[48] = 10.0, 10.0 + span, 10.0 + span / 2
    sets = torch.arange(64)
    below = (sets[None, :] & ~sets[:, None]) == 0
    _close(subset_logsumexp_(values.clone()[None])[0], torch.where(below, values, -torch.inf).logsumexp(1))
    mirrored = superset_logsumexp_(values.flip(0).clone())
    _close(mirrored, torch.where(below, values, -torch.inf).logsumexp(1).flip(0))


# -- against all DAGs -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_nodes", SIZES)
@pytest.mark.parametrize("prior", PRIORS)
def test_posterior_is_that_of_the_list(prior: PriorKind, num_nodes: int, scale: float) -> None:
    scores = random_scores(num_nodes, scale)
    source, truth = ExactSource(scores, prior), AllDags.of(scores, prior)
    _close(source.log_partition, truth.log_partition)
    _close(source.edge_probabilities(), truth.edges())
    _close(source.path_probabilities().value, truth.paths())
    for node in range(num_nodes):
        _close(source.family_posterior(node), truth.families(node))
    _close(best_dag(scores).log_score, truth.log_scores.max())
    best = source.map_graph()
    assert is_acyclic(best)
    assert truth.log_scores[truth.frequencies(best[None]).argmax()] == truth.log_scores.max()


@pytest.mark.parametrize("prior", PRIORS)
def test_required_parents_take_the_empty_set_away(prior: PriorKind) -> None:
    scores = random_scores(4, 5.0, forbid=0.0)
    scores[2, ~(torch.arange(8) & 1 > 0)] = -torch.inf  # 0 -> 2
    scores[0, torch.arange(8) & 2 > 0] = -torch.inf  # not 2 -> 0
    source, truth = ExactSource(scores, prior), AllDags.of(scores, prior)
    assert source.edge_probabilities()[0, 2] == pytest.approx(1.0, abs=1e-12)
    _close(source.edge_probabilities(), truth.edges())
    _close(source.path_probabilities().value, truth.paths())
    _close(source.log_partition, truth.log_partition)


@pytest.mark.parametrize("prior", PRIORS)
def test_no_dag_is_said(prior: PriorKind) -> None:
    scores = torch.zeros(3, 4, dtype=torch.float64)
    scores[:, 0] = -torch.inf
    with pytest.raises(ConfigError, match="no DAG on 3 nodes"):
        ExactSource(scores, prior).edge_probabilities()


@pytest.mark.parametrize("prior", PRIORS)
def test_parent_sets_are_sorted_families(prior: PriorKind) -> None:
    scores = random_scores(5, 2.0)
    source, truth = ExactSource(scores, prior), AllDags.of(scores, prior)
    for node in range(5):
        sets, values = source.parent_sets(node)
        assert bool((values.diff() <= 0).all())
        assert not sets[:, node].any()
        assert values.sum().item() == pytest.approx(1.0, abs=1e-10)
        _close((values[:, None] * sets).sum(0), truth.edges()[:, node])
        expected = truth.families(node)
        _close(values, expected[expected > 1e-16].sort(descending=True).values)


def test_ties_go_to_the_same_graph() -> None:
    scores = torch.zeros(4, 8, dtype=torch.float64)
    assert not best_dag(scores).adjacency.any()
    assert torch.equal(best_dag(scores).columns, best_dag(scores.clone()).columns)


def test_adjacency_of_columns() -> None:
    assert adjacency_of(torch.tensor([[0b10, 0b00, 0b01]]))[0].nonzero().tolist() == [[0, 2], [2, 0]]


# -- gradients ------------------------------------------------------------------------------


def _order_partition_by_hand(scores: Tensor) -> Tensor:
    """The same sum by autograd's own operations: over all orders."""
    num_nodes = len(scores)
    columns = torch.arange(scores.shape[1])
    totals = []
    for order in itertools.permutations(range(num_nodes)):
        parts, before = [], 0
        for node in order:
            low = (1 << node) - 1
            column = (before & low) | ((before >> 1) & ~low)
            parts.append(scores[node][(columns & ~column) == 0].logsumexp(0))
            before |= 1 << node
        totals.append(sum(parts, torch.zeros(())))
    return torch.stack(totals).logsumexp(0)


@pytest.mark.parametrize("num_nodes", [1, 3, 4])
@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_of_the_partition_is_the_family_posterior(prior: PriorKind, num_nodes: int) -> None:
    scores = random_scores(num_nodes, 2.0, forbid=0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: log_partition(s, prior), (scores,))
    (gradient,) = torch.autograd.grad(log_partition(scores, prior), scores)
    source = ExactSource(scores.detach(), prior)
    _close(gradient, torch.stack([source.family_posterior(v) for v in range(num_nodes)]))
    if prior == "order":
        by_hand = _order_partition_by_hand(scores)
        _close(by_hand.detach(), source.log_partition)
        _close(torch.autograd.grad(by_hand, scores)[0], gradient)


# -- beyond lists ---------------------------------------------------------------------------


def _spread(scores: Tensor, num_nodes: int, places: list[int]) -> Tensor:
    """Scores of a small problem put on some nodes of a larger one, the others without parents or children."""
    small = len(scores)
    result = torch.full((num_nodes, 1 << (num_nodes - 1)), -torch.inf, dtype=torch.float64)
    result[:, 0] = 0.0
    for node, place in enumerate(places):
        others = [p for i, p in enumerate(places) if i != node]
        columns = torch.arange(1 << (small - 1))
        low = (1 << place) - 1
        for column in columns.tolist():
            mask = sum(1 << p for b, p in enumerate(others) if column >> b & 1)
            result[place, (mask & low) | ((mask >> 1) & ~low)] = scores[node, column]
    return result


@pytest.mark.parametrize("prior", PRIORS)
def test_blocks_of_a_large_problem_are_the_small_ones(prior: PriorKind) -> None:
    first, second = random_scores(5, 40.0, seed=1), random_scores(5, 2.0, seed=2)
    places = [0, 3, 4, 8, 10], [1, 2, 5, 6, 9]
    scores = _spread(first, 11, places[0])
    other = _spread(second, 11, places[1])
    scores[places[1]] = other[places[1]]
    source = ExactSource(scores, prior)
    truths = [AllDags.of(part, prior) for part in (first, second)]
    extra = math.log(math.factorial(11) // math.factorial(5) ** 2) if prior == "order" else 0.0
    _close(source.log_partition, truths[0].log_partition + truths[1].log_partition + extra)
    edges = torch.zeros(11, 11, dtype=torch.float64)
    for place, truth in zip(places, truths, strict=True):
        edges[torch.tensor(place)[:, None], torch.tensor(place)] = truth.edges()
    _close(source.edge_probabilities(), edges)


def test_number_of_dags_on_twelve_nodes() -> None:
    tables = UniformTables(torch.zeros(12, 2048, dtype=torch.float64))
    assert tables.log_partition.item() == pytest.approx(math.log(521939651343829405020504063), rel=1e-13)
    assert tables.rounding_error < 3**12 * 1e-14


def test_independent_nodes_cancel_worst_and_stay_right() -> None:
    scores = torch.full((12, 2048), -torch.inf, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scores[:, 0] = torch.randn(12, generator=generator, dtype=torch.float64)
    tables = UniformTables(scores)
    assert tables.rounding_error > 1e-12  # each of 3^12 terms has the size of the sum
    error = abs(tables.log_partition.item() - scores[:, 0].sum().item())
    assert error <= tables.rounding_error
    assert ExactSource(scores, "uniform").edge_probabilities().abs().max() <= tables.rounding_error


def test_rounding_error_bounds_what_single_nodes_shifts_do() -> None:
    scores = random_scores(10, 1.0)
    shifted = ExactSource(scores + 1000.0 * torch.arange(10)[:, None], "uniform")
    plain = ExactSource(scores, "uniform")
    gap = (shifted.edge_probabilities() - plain.edge_probabilities()).abs().max()
    # Scores of 9000 have roundings of 1e-12, which no arithmetic afterwards can mend.
    assert gap < 1e-9


def test_progress_tells_of_all_terms() -> None:
    done: list[int] = []
    UniformTables(random_scores(6, 1.0), tick=done.append)
    assert sum(done) == pytest.approx(2 * 3**6, rel=0.1)


# -- the source -----------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
def test_source_keeps_the_protocol_and_comes_back_from_its_state(prior: PriorKind) -> None:
    source = ExactSource(random_scores(4, 2.0), prior, seed=3)
    assert isinstance(source, GraphSource)
    again = ExactSource.from_state(*source.state())
    assert torch.equal(again.edge_probabilities(), source.edge_probabilities())
    assert torch.equal(again.edge_errors(), torch.zeros(4, 4, dtype=torch.float64))
    assert again.log_evidence is None
    assert torch.equal(again.sample(9, seed=1).adjacency, source.sample(9, seed=1).adjacency)


def test_damaged_states_are_refused() -> None:
    tensors, plain = ExactSource(random_scores(4, 2.0), "order").state()
    with pytest.raises(CheckpointError, match="damaged"):
        ExactSource.from_state(tensors | {"edges": torch.zeros(3, 3)}, plain)
    with pytest.raises(CheckpointError, match="lacks 'log_scores'"):
        ExactSource.from_state({"edges": torch.zeros(3, 3)}, plain)


@pytest.mark.cuda
@pytest.mark.parametrize("prior", PRIORS)
def test_cuda_gives_the_same(prior: PriorKind) -> None:
    scores = random_scores(8, 3.0)
    here, there = ExactSource(scores, prior), ExactSource(scores.cuda(), prior)
    _close(there.edge_probabilities().cpu(), here.edge_probabilities())
    _close(there.path_probabilities().value.cpu(), here.path_probabilities().value)
    assert is_acyclic(there.sample(50, seed=0).adjacency).all()
    assert torch.equal(there.map_graph().cpu(), here.map_graph())
