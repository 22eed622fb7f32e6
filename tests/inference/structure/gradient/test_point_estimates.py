"""NOTEARS and DAGMA: conditions of optimality, known graphs, constraints, interventions."""

from __future__ import annotations

import math
import os
import signal
import warnings

import pytest
import torch

from ppgen.errors import ConfigError, DataError, DataWarning, SamplingWarning
from ppgen.inference.structure.gradient.acyclicity import log_determinant, trace_exponential
from ppgen.inference.structure.gradient.dagma import DAGMA
from ppgen.inference.structure.gradient.least_squares import LeastSquares
from ppgen.inference.structure.gradient.moments import moments
from ppgen.inference.structure.gradient.notears import NOTEARS
from ppgen.inference.structure.gradient.point_estimate import prepare, threshold_to_dag, varsortability
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.ops.dags import closure, is_acyclic
from tests.inference.structure.gradient.linear_sem import as_table, problem, random_sem, simulate

_METHODS = [NOTEARS(), DAGMA()]
_IDS = ["notears", "dagma"]


def _run(method: NOTEARS | DAGMA, given: Problem) -> Learned:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return method.run(given, seed=0)


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
@pytest.mark.parametrize(("degree", "seed"), [(1, 0), (2, 1)])
def test_recovers_a_graph_with_equal_noises(method: NOTEARS | DAGMA, degree: int, seed: int) -> None:
    sem = random_sem(10, degree, 1000, seed)
    learned = _run(method, problem(sem.table))
    assert torch.equal(learned.source.map_graph(), sem.adjacency)
    assert torch.equal(learned.source.edge_probabilities(), sem.adjacency.double())
    assert learned.weighted_graph is not None
    assert torch.equal(learned.weighted_graph != 0, sem.adjacency)
    assert any("no uncertainty" in doubt for doubt in learned.warnings)


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_weights_are_stationary(method: NOTEARS | DAGMA) -> None:
    sem = random_sem(6, 2, 300, 2)
    squares = prepare(problem(sem.table), "it", method.penalty, False).squares
    found = method.optimise(squares)
    weights = found.weights.clone().requires_grad_()
    residual = sem.table.values - sem.table.values.mean(0)
    residual = residual - residual @ weights
    loss = residual.square().sum() / (2 * 300)
    if isinstance(method, NOTEARS):
        h = trace_exponential(weights.square())[0]
        assert float(h.detach()) <= method.tolerance
    else:
        barrier = log_determinant(weights.square(), method.radii[-1])
        assert barrier is not None
        h = barrier[0]
    (gradient,) = torch.autograd.grad(loss + found.multiplier * h, weights)
    off = ~torch.eye(6, dtype=torch.bool)
    g, w = gradient[off], found.weights[off]
    slack = torch.where(
        w == 0, (g.abs() - method.penalty).clamp(min=0), (g + method.penalty * w.sign()).abs()
    )
    # The minimiser ends at 1e-6; a multiplier of 1e5 leaves 1e-10 of rounding in gradients.
    assert float(slack.max()) <= 1.1e-6
    assert bool((w == 0).any())


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_constraints_hold(method: NOTEARS | DAGMA) -> None:
    sem = random_sem(5, 2, 300, 4)
    edges = sem.adjacency.nonzero().tolist()
    (a, b), (c, d) = edges[0], edges[1]
    constraints = Constraints(required=[(f"x{b}", f"x{a}")], forbidden=[(f"x{c}", f"x{d}")], max_parents=1)
    learned = _run(method, problem(sem.table, constraints))
    graph = learned.source.map_graph()
    assert bool(graph[b, a])
    assert not bool(graph[a, b])
    assert not bool(graph[c, d])
    assert int(graph.sum(0).max()) <= 1
    assert bool(is_acyclic(graph))


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_tiers_hold(method: NOTEARS | DAGMA) -> None:
    sem = random_sem(5, 2, 300, 4)
    backwards = [["x4", "x3"], ["x2", "x1", "x0"]]
    graph = _run(method, problem(sem.table, Constraints(tiers=backwards))).source.map_graph()
    assert not bool(graph[:3, 3:].any())


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_set_cells_are_not_in_the_loss_of_their_variable(method: NOTEARS | DAGMA) -> None:
    # x0 -> x1; x1 is set in half of the rows, to values that would show the reverse.
    adjacency = torch.tensor([[False, True], [False, False]])
    clamped = torch.zeros(400, 2, dtype=torch.bool)
    clamped[200:, 1] = True
    sem = simulate(adjacency, 400, 0, clamped)
    learned = _run(method, problem(sem.table))
    assert torch.equal(learned.source.map_graph(), adjacency)
    squares = prepare(problem(sem.table), "it", 0.1, False).squares
    other = sem.table.values.clone()
    other[clamped] = 1e3 * torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    changed = prepare(problem(as_table(other, clamped)), "it", 0.1, False).squares
    weights = torch.tensor([[0.0, 0.7], [0.0, 0.0]], dtype=torch.float64)
    # The loss of x1 given x0, and its gradient, do not see them; that of x0 given x1 does.
    assert torch.equal(squares.loss(weights)[1][:, 1], changed.loss(weights)[1][:, 1])
    reverse = weights.T.contiguous()
    assert not torch.allclose(squares.loss(reverse)[1][:, 0], changed.loss(reverse)[1][:, 0])


def test_loss_is_that_of_the_rows() -> None:
    sem = random_sem(4, 2, 50, 0)
    clamped = torch.rand(50, 4, generator=torch.Generator().manual_seed(3)) < 0.3
    table = as_table(sem.table.values, clamped)
    given = prepare(problem(table), "it", 0.1, False)
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights.fill_diagonal_(0).requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for j in range(4):
        residual = (table.values[:, j] - table.values @ weights[:, j])[~clamped[:, j]]
        expected = expected + (residual - residual.mean()).square().mean() / 2
    value, gradient = given.squares.loss(weights)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(expected, weights)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


def test_a_variable_that_is_always_set_has_no_loss() -> None:
    clamped = torch.zeros(30, 2, dtype=torch.bool)
    clamped[:, 0] = True
    values = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(moments(values, clamped).scatter[0].abs().max()) == 0
    assert not bool(
        _run(NOTEARS(standardise=True), problem(as_table(values, clamped))).source.map_graph()[1, 0]
    )


def test_threshold_is_raised_until_there_is_no_cycle() -> None:
    strength = torch.tensor([[0.0, 0.9, 0.0], [0.5, 0.0, 0.8], [0.4, 0.0, 0.0]], dtype=torch.float64)
    off = ~torch.eye(3, dtype=torch.bool)
    none = torch.zeros_like(off)
    found = threshold_to_dag(strength, 0.3, off, none, 2)
    assert found.threshold == 0.5
    assert found.adjacency.nonzero().tolist() == [[0, 1], [1, 2]]
    assert threshold_to_dag(strength, 0.6, off, none, 2).threshold == 0.6
    required = none.clone()
    required[2, 0] = True
    kept = threshold_to_dag(strength, 0.3, off, required, 2)
    assert kept.adjacency.nonzero().tolist() == [[0, 1], [2, 0]]
    assert not bool(threshold_to_dag(torch.zeros(3, 3), 0.0, off, none, 2).adjacency.any())


def test_varsortability_by_hand() -> None:
    chain = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
    assert int(closure(chain).sum()) == 3
    assert varsortability(chain, torch.tensor([1.0, 2.0, 3.0])) == (1.0, 3)
    assert math.isclose(varsortability(chain, torch.tensor([1.0, 1.0, 0.0]))[0], 0.5 / 3)
    share, pairs = varsortability(torch.zeros(2, 2, dtype=torch.bool), torch.ones(2))
    assert math.isnan(share)
    assert pairs == 0


def test_warns_where_the_variances_make_the_order() -> None:
    chain = torch.diag(torch.ones(3), 1).bool()
    sem = simulate(chain, 500, 1)
    with pytest.warns(DataWarning, match="standardise=True"):
        learned = NOTEARS().run(problem(sem.table))
    assert learned.attributes["varsortability"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NOTEARS(standardise=True).run(problem(sem.table))


def test_standardised_weights_are_in_the_units_of_the_table() -> None:
    sem = simulate(torch.tensor([[False, True], [False, False]]), 500, 1)
    scaled = as_table(sem.table.values * torch.tensor([10.0, 0.1]))
    only = Constraints(forbidden=[("x1", "x0")])
    learned = NOTEARS(penalty=0.0, standardise=True).run(problem(scaled, only))
    x = scaled.values - scaled.values.mean(0)
    assert learned.weighted_graph is not None
    # The regression coefficient; the gradient is at most 1e-6 in units where the curvature is 1.
    gap = (learned.weighted_graph[0, 1] - (x[:, 0] @ x[:, 1]) / x[:, 0].square().sum()).abs()
    assert float(gap) <= 1e-6 * float(x[:, 1].std() / x[:, 0].std())


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_interrupted_weights_come_back(method: NOTEARS | DAGMA, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LeastSquares.loss

    def interrupting(self: LeastSquares, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, weights)

    monkeypatch.setattr(LeastSquares, "loss", interrupting)
    with pytest.warns(SamplingWarning, match="interrupted"):
        learned = method.run(problem(random_sem(4, 2, 50, 0).table))
    assert bool(is_acyclic(learned.source.map_graph()))


@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_refuses_what_it_cannot_take(method: NOTEARS | DAGMA) -> None:
    values = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clamped = torch.zeros(20, 2, dtype=torch.bool)
    discrete = Table((Variable("a", (0, 1)), Variable("b")), values, clamped)
    with pytest.raises(ConfigError, match="a is categorical"):
        method.run(problem(discrete))
    continuous = (Variable("a"), Variable("b"))
    imperfect = Table(continuous, values, clamped, Intervention.IMPERFECT)
    with pytest.raises(ConfigError, match="imperfect"):
        method.run(problem(imperfect))
    agents = Table(continuous, values, clamped, agents=clamped[:, :1], agent_names=("drug",), max_agents=1)
    with pytest.raises(ConfigError, match="agents"):
        method.run(problem(agents))
    with pytest.raises(ConfigError, match="prior"):
        method.run(problem(as_table(values), prior=GraphPrior(kind="order")))
    with pytest.raises(DataError, match="2 rows"):
        method.run(problem(as_table(values[:1])))


def test_refuses_to_standardise_a_constant() -> None:
    values = torch.ones(20, 2, dtype=torch.float64)
    with pytest.raises(DataError, match="x0, x1 never vary"):
        NOTEARS(standardise=True).run(problem(as_table(values)))


def test_refuses_options_out_of_range() -> None:
    with pytest.raises(ConfigError, match="penalty"):
        NOTEARS(penalty=-1.0)
    with pytest.raises(ConfigError, match="threshold"):
        DAGMA(threshold=math.nan)
    with pytest.raises(ConfigError, match="radii"):
        DAGMA(path=(1.0,))


@pytest.mark.cuda
@pytest.mark.parametrize("method", _METHODS, ids=_IDS)
def test_cuda(method: NOTEARS | DAGMA) -> None:
    sem = random_sem(6, 2, 1000, 0)
    here, there = _run(method, problem(sem.table)), _run(method, problem(sem.table.to("cuda")))
    assert there.source.map_graph().device.type == "cuda"
    assert torch.equal(here.source.map_graph(), there.source.map_graph().cpu())
