"""Metrics on graphs: hand cases from the papers, brute force, scikit-learn and networkx."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from ppgen import metrics
from ppgen.errors import DataError, ShapeError
from ppgen.metrics.graphs import intervention_distance
from ppgen.ops import dags
from ppgen.testing.statistics import critical_z


def _graph(num_nodes: int, *edges: tuple[int, int]) -> Tensor:
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for i, j in edges:
        adjacency[i, j] = True
    return adjacency


@dataclass
class _Draws:
    adjacency: Tensor
    log_weights: Tensor


class _WithTable:
    """A posterior that gives its probabilities as an attribute."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.edge_probabilities = table


class _WithMethod:
    """A posterior that gives its probabilities as a method."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def edge_probabilities(self) -> Tensor:
        return self.matrix


# -- distances ---------------------------------------------------------------------------


def test_missing_extra_and_reversed_edges_count_one_each() -> None:
    truth = _graph(4, (0, 1), (1, 2), (2, 3))
    assert metrics.shd(truth, truth) == 0
    assert metrics.shd(truth, _graph(4, (0, 1), (1, 2))) == 1
    assert metrics.shd(truth, _graph(4, (0, 1), (1, 2), (2, 3), (0, 3))) == 1
    assert metrics.shd(truth, _graph(4, (1, 0), (1, 2), (2, 3))) == 1
    assert metrics.shd(truth, _graph(4, (1, 0), (0, 1), (1, 2), (2, 3))) == 1
    assert metrics.shd(truth, _graph(4, (1, 0), (0, 2), (2, 3))) == 3


def test_shd_agrees_with_pgmpy_on_dags() -> None:
    pgmpy = pytest.importorskip("pgmpy.metrics")
    base = pytest.importorskip("pgmpy.base")
    graphs = dags.random_dag(8, 0.4, torch.Generator().manual_seed(0), num=20)
    for first, second in itertools.pairwise(graphs):
        theirs = []
        for graph in (first, second):
            theirs.append(base.DAG(graph.nonzero().tolist()))
            theirs[-1].add_nodes_from(range(8))
        assert metrics.shd(first, second) == metrics.shd(*theirs)
        assert metrics.shd(first, second) == pgmpy.SHD()(*theirs)


def test_equivalent_graphs_have_no_pattern_distance() -> None:
    chain, fork, collider = _graph(3, (0, 1), (1, 2)), _graph(3, (1, 0), (1, 2)), _graph(3, (0, 1), (2, 1))
    assert metrics.shd(chain, fork) == 1
    assert metrics.cpdag_shd(chain, fork) == 0
    assert metrics.cpdag_shd(chain, collider) == 2
    # An undirected edge says that the graph is a pattern already.
    assert metrics.cpdag_shd(collider, dags.cpdag(chain)) == 2
    # Where 1 was set, the edges at 1 are told apart.
    assert metrics.cpdag_shd(chain, fork, targets=[set(), {1}]) == 1
    assert metrics.cpdag_shd(chain, chain, targets=[set(), {1}]) == 0
    with pytest.raises(DataError, match="estimate: expected a graph without directed cycles"):
        metrics.cpdag_shd(chain, _graph(3, (0, 1), (1, 2), (2, 0)))


def _simple_paths(dag: Tensor, start: int, end: int) -> list[list[int]]:
    return list(nx.all_simple_paths(nx.Graph((dag | dag.T).numpy()), start, end))


def _brute_force_sid(truth: Tensor, estimate: Tensor) -> int:
    """Peters & Buehlmann's condition (*), path by path."""
    n = len(truth)
    reach = dags.closure(truth) | torch.eye(n, dtype=torch.bool)
    wrong = 0
    for i, j in itertools.permutations(range(n), 2):
        given = set(estimate[:, i].nonzero()[:, 0].tolist())
        if j in given:
            wrong += bool(reach[i, j])
            continue
        bad = False
        for path in _simple_paths(truth, i, j):
            if all(truth[a, b] for a, b in itertools.pairwise(path)):
                bad |= any(reach[w, z] for w in path[1:] for z in given)
                continue
            blocked = False
            for a, v, b in zip(path, path[1:], path[2:], strict=False):
                if truth[a, v] and truth[b, v]:
                    blocked |= not any(reach[v, z] for z in given)
                else:
                    blocked |= v in given
            bad |= not blocked
        wrong += bad
    return wrong


def test_sid_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(1)
    firsts = torch.cat([dags.random_dag(6, p, generator, num=60) for p in (0.2, 0.4, 0.7)])
    seconds = firsts[torch.randperm(len(firsts), generator=generator)]
    distances = [metrics.sid(a, b) for a, b in zip(firsts, seconds, strict=True)]
    assert distances == [_brute_force_sid(a, b) for a, b in zip(firsts, seconds, strict=True)]
    assert len(set(distances)) > 15


def test_sid_of_all_graphs_of_three_nodes() -> None:
    graphs = dags.enumerate_dags(3)
    for a, b in itertools.product(graphs, graphs):
        assert metrics.sid(a, b) == _brute_force_sid(a, b)


def test_sid_check_rejects_planted_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = dags.random_dag(6, 0.5, torch.Generator().manual_seed(2), num=40)
    expected = [_brute_force_sid(a, b) for a, b in itertools.pairwise(graphs)]
    assert [metrics.sid(a, b) for a, b in itertools.pairwise(graphs)] == expected
    monkeypatch.setattr(intervention_distance, "_open_paths", lambda dag, given, reaches: dag.T)
    assert [metrics.sid(a, b) for a, b in itertools.pairwise(graphs)] != expected


def test_sid_of_the_example_in_the_paper() -> None:
    # Example 1 and Figure 1 of Peters & Buehlmann (2015): X = {0, 1} and Y = {2, 3, 4}.
    both = [(i, j) for i in (0, 1) for j in (2, 3, 4)]
    truth = _graph(5, (0, 1), *both)
    one_more = _graph(5, (0, 1), (2, 3), *both)
    one_reversed = _graph(5, (1, 0), *both)
    assert metrics.shd(truth, one_more) == metrics.shd(truth, one_reversed) == 1
    assert metrics.sid(truth, one_more) == 0
    assert metrics.sid(truth, one_reversed) == 8


def test_sid_needs_dags() -> None:
    dag = _graph(3, (0, 1))
    with pytest.raises(DataError, match="estimate: expected a directed graph without cycles"):
        metrics.sid(dag, _graph(3, (0, 1), (1, 0)))
    assert metrics.sid(dag, _graph(3)) == 1  # the effect of 0 on 1 is missed; 1 on 0 is confounded by none


# -- posterior against a truth ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("skeleton", [False, True])
def test_ranking_agrees_with_scikit_learn(seed: int, skeleton: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = dags.random_dag(9, 0.3, generator)
    # Few levels, so that there are ties within and between edges and others.
    p = (torch.rand(9, 9, generator=generator, dtype=torch.float64) * 4).round() / 10
    if skeleton:
        i, j = np.triu_indices(9, 1)
        labels, scores = (truth | truth.T).numpy()[i, j], (p + p.T).numpy()[i, j]
        scores = scores.round(9)
    else:
        away = ~np.eye(9, dtype=bool)
        labels, scores = truth.numpy()[away], p.numpy()[away]
    assert metrics.auroc(truth, p, skeleton=skeleton) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.auprc(truth, p, skeleton=skeleton) == pytest.approx(
        average_precision_score(labels, scores)
    )


def test_differences_below_a_billionth_are_ties() -> None:
    truth = _graph(3, (0, 1), (1, 2))
    p = torch.zeros(3, 3, dtype=torch.float64)
    p[0, 1] = 0.9
    p[1, 2], p[2, 1], p[0, 2] = 1e-30, 3e-12, 2e-11
    # (1, 2) ties with the four others, of which it beats half.
    assert metrics.auroc(truth, p) == pytest.approx((4 + 2) / 8)
    p[1, 2] = 1e-8
    assert metrics.auroc(truth, p) == 1
    assert metrics.auprc(truth, p) == 1


def test_chance_and_reversal() -> None:
    truth = dags.random_dag(6, 0.5, torch.Generator().manual_seed(5))
    assert metrics.auroc(truth, torch.full((6, 6), 0.3)) == 0.5
    assert metrics.auprc(truth, torch.full((6, 6), 0.3)) == pytest.approx(float(truth.sum()) / 30)
    assert metrics.auroc(truth, truth.double()) == 1
    reversed_p = truth.T.double()
    assert metrics.auroc(truth, reversed_p) < 0.5
    assert metrics.auroc(truth, reversed_p, skeleton=True) == 1


def test_calibrated_probabilities_are_found_calibrated() -> None:
    generator = torch.Generator().manual_seed(6)
    p = torch.rand(200, 7, 7, generator=generator, dtype=torch.float64)
    off = ~torch.eye(7, dtype=torch.bool)
    truth = (torch.rand(200, 7, 7, generator=generator, dtype=torch.float64) < p) & off

    def worst(stated: Tensor) -> float:
        found = metrics.edge_calibration(truth, stated)
        return float(((found.predicted - found.observed) / found.std_error).abs().max())

    assert worst(p) < critical_z(10)
    assert worst(p**1.3) > critical_z(10)
    found = metrics.edge_calibration(truth, p)
    chosen = p[:, off]
    assert found.brier == pytest.approx(float(((chosen - truth[:, off].double()) ** 2).mean()))
    assert int(found.count.sum()) == 200 * 42
    assert metrics.edge_calibration(truth[0], p[0], num_bins=3).count.sum() == 42


def test_certainty_is_scored() -> None:
    truth = _graph(3, (0, 1))
    sure = metrics.edge_calibration(truth, truth.double())
    assert (sure.brier, sure.log_score, sure.calibration_error) == (0, 0, 0)
    assert metrics.edge_calibration(truth, torch.zeros(3, 3)).log_score == -math.inf


def test_expected_shd() -> None:
    graphs = dags.enumerate_dags(3)
    weights = torch.rand(25, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    weights /= weights.sum()
    truth = graphs[7]
    found = metrics.expected_shd(truth, _Draws(graphs, weights.log()))
    distances = [metrics.shd(truth, g) for g in graphs]
    mean = sum(w * d for w, d in zip(weights.tolist(), distances, strict=True))
    error = math.sqrt(sum((w * (d - mean)) ** 2 for w, d in zip(weights.tolist(), distances, strict=True)))
    assert float(found.value) == pytest.approx(mean)
    assert float(found.std_error) == pytest.approx(error)
    with pytest.raises(DataError, match="at least one draw"):
        metrics.expected_shd(truth, _Draws(graphs[:0], weights[:0]))


# -- forms of input ---------------------------------------------------------------------


def test_names_are_matched() -> None:
    truth = nx.DiGraph([("a", "b"), ("b", "c")])
    truth.add_node("d")
    names = ["d", "c", "b", "a"]
    table = pd.DataFrame(0, index=names, columns=list(reversed(names)))
    table.loc["a", "b"] = table.loc["b", "c"] = 1
    assert metrics.shd(truth, table) == 0
    assert metrics.sid(truth, table) == 0
    assert metrics.cpdag_shd(table, truth) == 0
    assert metrics.auroc(truth, _WithTable(table * 0.7)) == 1
    assert metrics.auroc(truth, _WithMethod(torch.tensor(nx.to_numpy_array(truth)))) == 1
    # Without names, places count.
    assert metrics.shd(truth, nx.to_numpy_array(truth)) == 0
    assert metrics.shd(nx.DiGraph([(2, 0), (0, 1)]), _graph(3, (2, 0), (0, 1))) == 0


def test_what_does_not_match_is_refused() -> None:
    truth = nx.DiGraph([("a", "b")])
    with pytest.raises(DataError, match=r"lacks \['b'\] and has \['x'\]"):
        metrics.shd(truth, nx.DiGraph([("a", "x")]))
    with pytest.raises(ShapeError, match="expected 2 nodes"):
        metrics.shd(truth, torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="square"):
        metrics.shd(truth, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="one graph"):
        metrics.shd(torch.zeros(2, 2), torch.zeros(5, 2, 2))
    with pytest.raises(ShapeError, match="one matrix"):
        metrics.auroc(truth, torch.zeros(5, 2, 2))
    with pytest.raises(DataError, match="entries 0 and 1"):
        metrics.shd(truth, torch.full((2, 2), 0.5))
    with pytest.raises(DataError, match="reference: expected a networkx graph, .* got a list"):
        metrics.shd([("a", "b")], truth)
    with pytest.raises(DataError, match="itself"):
        metrics.shd(truth, torch.eye(2))
    with pytest.raises(DataError, match="numbers from 0 to 1"):
        metrics.auroc(truth, torch.full((2, 2), math.nan))
    with pytest.raises(DataError, match="rows and columns"):
        metrics.shd(truth, pd.DataFrame(0, index=["a", "b"], columns=["a", "c"]))
    with pytest.raises(DataError, match="some edges"):
        metrics.auprc(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.cuda
def test_metrics_on_a_gpu() -> None:
    first, second = dags.random_dag(8, 0.4, torch.Generator().manual_seed(8), num=2)
    p = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for metric in (metrics.shd, metrics.cpdag_shd, metrics.sid):
        assert metric(first.cuda(), second.cuda()) == metric(first, second)
    for ranking in (metrics.auroc, metrics.auprc):
        assert ranking(first.cuda(), p.cuda()) == pytest.approx(ranking(first, p))
    on_gpu, here = metrics.edge_calibration(first.cuda(), p.cuda()), metrics.edge_calibration(first, p)
    torch.testing.assert_close(on_gpu.observed.cpu(), here.observed)
