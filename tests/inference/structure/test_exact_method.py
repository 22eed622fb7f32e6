"""The method ``exact``: evidence, constraints, agents, the choice of a way, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, SamplingWarning
from ppgen.inference.structure.exact.best import adjacency_of, columns_of
from ppgen.inference.structure.exact.marginals import PriorKind
from ppgen.inference.structure.exact.method import Exact, log_num_graphs
from ppgen.inference.structure.exact.source import ExactSource
from ppgen.inference.structure.family_scores import dense_scores, log_priors
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import GraphSource, Problem
from ppgen.inference.structure.scores.discrete import BDeu
from ppgen.inference.structure.table import Table, Variable
from ppgen.ops.dags import enumerate_dags
from ppgen.testing.statistics import assert_close_to
from tests.inference.structure.all_dags import AllDags

PRIORS: tuple[PriorKind, ...] = ("uniform", "order")


def _table(num_nodes: int, num_rows: int = 60, *, agents: int = 0) -> Table:
    """A chain of noisy copies; agent a, at work in a third of the rows, sets node a to 1."""
    generator = torch.Generator().manual_seed(num_nodes)
    columns: list[Tensor] = []
    acting = torch.rand(num_rows, agents, generator=generator) < 1 / 3
    for node in range(num_nodes):
        fresh = torch.randint(2, (num_rows,), generator=generator)
        copied = torch.rand(num_rows, generator=generator) < 0.7
        column = torch.where(copied, columns[-1], fresh) if columns else fresh
        columns.append(torch.where(acting[:, node], 1, column) if node < agents else column)
    values = torch.stack(columns, 1).double()
    return Table(
        variables=tuple(Variable("ABCDEFGHIJ"[i], (0, 1)) for i in range(num_nodes)),
        values=values,
        clamped=torch.zeros_like(values, dtype=torch.bool),
        agents=acting if agents else None,
        agent_names=("first", "second")[:agents],
        max_agents=1 if agents else 0,
    )


def _problem(num_nodes: int, kind: PriorKind, *, agents: int = 0, **known: Any) -> Problem:
    edges = known.pop("edges", None)
    prior = GraphPrior(kind, fan_in=known.pop("fan_in", None), edges=edges)
    return Problem(_table(num_nodes, agents=agents), BDeu(1.0), prior, Constraints(**known), progress=False)


_KNOWLEDGE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "fan_in": {"fan_in": "cardinality"},
    "edges": {"edges": torch.full((4, 4), 0.2).fill_diagonal_(0)},
    "constraints": {"required": [("B", "A")], "forbidden": [("C", "D")], "max_parents": 2},
    "tiers": {"tiers": [["A", "B"], ["C", "D"]]},
}


@pytest.mark.parametrize("known", list(_KNOWLEDGE))
@pytest.mark.parametrize("kind", PRIORS)
def test_posterior_and_evidence_are_those_of_the_list(kind: PriorKind, known: str) -> None:
    problem = _problem(4, kind, **_KNOWLEDGE[known])
    learned = Exact().run(problem, seed=0)
    scores = dense_scores(problem)
    prior = log_priors(problem, scores).log_scores
    after, before = AllDags.of(scores.log_scores + prior, kind), AllDags.of(prior, kind)
    torch.testing.assert_close(learned.source.edge_probabilities(), after.edges(), rtol=1e-10, atol=1e-10)
    evidence = learned.source.log_evidence
    assert evidence is not None
    assert evidence.kind == "exact"
    assert evidence.value.item() == pytest.approx(
        (after.log_partition - before.log_partition).item(), abs=1e-9
    )
    assert not learned.warnings
    if known == "constraints":
        edges = learned.source.edge_probabilities()
        assert edges[1, 0].item() == pytest.approx(1.0, abs=1e-12)
        assert edges[2, 3] == 0


def test_numbers_of_graphs() -> None:
    for nodes, count in enumerate([1, 1, 3, 25, 543, 29281]):
        assert log_num_graphs(nodes, "uniform") == pytest.approx(math.log(count), abs=1e-12)
    assert log_num_graphs(3, "order") == pytest.approx(math.log(6 * 8), abs=1e-12)


@pytest.mark.parametrize("kind", PRIORS)
def test_agents_are_found_as_by_the_list(kind: PriorKind) -> None:
    problem = _problem(4, kind, agents=2)
    learned = Exact().run(problem, seed=0)
    found = learned.agent_probabilities
    scores = dense_scores(problem)
    assert found is not None
    assert scores.agent_terms is not None
    assert scores.agent_sets is not None
    truth = AllDags.of(scores.log_scores, kind)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for node in range(4):
        terms = scores.agent_terms[node, truth.columns[:, node]]
        given = (terms - terms.logsumexp(-1, keepdim=True)).exp() @ scores.agent_sets.double()
        expected[:, node] = truth.probabilities @ given
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found[0].argmax() == 0
    assert found[1].argmax() == 1


def _assert_edges(drawn: GraphSource, exact: GraphSource) -> None:
    """Within errors; rare edges hang on few draws of large weight, whose mean is not normal."""
    p = exact.edge_probabilities()
    common = (p > 0.05) & (p < 0.95)
    assert common.sum() > 10
    assert_close_to(drawn.edge_probabilities()[common], p[common], drawn.edge_errors()[common], "edges")


def test_too_many_nodes_are_drawn_with_weights_and_said() -> None:
    problem = _problem(8, "uniform", agents=1)
    exact = Exact().run(problem, seed=0)
    with pytest.warns(SamplingWarning, match="8 nodes are too many"):
        drawn = Exact(max_seconds=3e-4).run(problem, seed=0)
    assert drawn.attributes["way"] == "weighted draws"
    assert isinstance(drawn.source, SampledSource)
    assert "8 nodes are too many for sums over DAGs" in drawn.warnings[0]
    _assert_edges(drawn.source, exact.source)
    found, expected = drawn.source.log_evidence, exact.source.log_evidence
    assert found is not None
    assert expected is not None
    assert found.kind == "estimate"
    assert_close_to(found.value[None], expected.value[None], found.std_error[None], "log evidence")
    assert torch.equal(drawn.source.map_graph(), exact.source.map_graph())
    assert drawn.agent_probabilities is not None
    assert exact.agent_probabilities is not None
    # The standard deviation of a number between 0 and 1 is at most a half.
    error = torch.full((1, 8), 0.5 / math.sqrt(drawn.attributes["effective_draws"]))
    assert_close_to(drawn.agent_probabilities, exact.agent_probabilities, error, "agents")
    again = Exact(max_seconds=3e-4).run(problem, seed=0)
    assert torch.equal(again.source.edge_probabilities(), drawn.source.edge_probabilities())


def test_weighted_draws_with_a_prior_that_is_not_flat() -> None:
    problem = _problem(8, "uniform", max_parents=2)
    exact = Exact().run(problem, seed=0).source
    drawn = Exact(max_seconds=3e-4).run(problem, seed=1).source
    assert isinstance(exact, ExactSource)
    _assert_edges(drawn, exact)
    assert drawn.log_evidence is not None
    assert exact.log_evidence is not None
    gap = drawn.log_evidence.value - exact.log_evidence.value
    assert_close_to(gap[None], 0.0, drawn.log_evidence.std_error[None], "log evidence")


# -- refusals -------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_its_cost() -> None:
    assert Exact().plan(11).way == "dag sums"
    assert Exact().plan(18).way == "dag sums"
    assert Exact().plan(21).way == "weighted draws"
    assert Exact().plan(23, "order").way == "order sums"
    assert Exact(max_memory=16, max_seconds=1000).plan(25, "order").gibibytes < 16
    with pytest.raises(ConfigError, match=r"31 nodes take about \d+ GiB and .* s .*'order_mcmc'"):
        Exact().plan(31, "order")
    with pytest.raises(ConfigError, match=r"60 nodes .*'partition_mcmc'"):
        Exact().plan(60)
    with pytest.raises(ConfigError, match="max_memory=0.001"):
        Exact(max_memory=0.001).plan(15)
    with pytest.raises(ConfigError, match="22 nodes"):
        Exact(max_memory=4).plan(22, "order", num_agent_sets=22)


def test_refusal_comes_before_the_scores() -> None:
    table = _table(4)
    wide = replace(
        table,
        variables=tuple(Variable(f"v{i}", (0, 1)) for i in range(60)),
        values=torch.zeros(5, 60, dtype=torch.float64),
        clamped=torch.zeros(5, 60, dtype=torch.bool),
    )
    problem = Problem(wide, BDeu(1.0), GraphPrior(), Constraints(), progress=False)
    with pytest.raises(ConfigError, match="60 nodes"):
        Exact().run(problem)


@pytest.mark.parametrize(
    "options", [{"max_memory": 0}, {"max_seconds": -1.0}, {"max_seconds": math.nan}, {"num_draws": 1}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Exact(**options)


def test_a_score_is_needed() -> None:
    with pytest.raises(ConfigError, match="score: method 'exact' needs one"):
        Exact().run(replace(_problem(3, "uniform"), score=None))


def test_scores_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: Problem, *, max_bytes: int) -> Any:
        found = dense_scores(problem)
        return replace(found, log_scores=found.log_scores.index_fill(1, torch.tensor(1), math.nan))

    monkeypatch.setattr("ppgen.inference.structure.exact.method.dense_scores", broken)
    with pytest.raises(DataError, match="gave NaN"):
        Exact().run(_problem(3, "uniform"))


def test_columns_and_adjacency_are_each_others_inverse() -> None:
    dags = enumerate_dags(4)
    assert torch.equal(adjacency_of(columns_of(dags)), dags)
