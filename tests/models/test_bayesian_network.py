"""Bayesian networks against whole joint tables, closed forms, and pgmpy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

import ppgen
from ppgen.errors import ConfigError, DataError, DataWarning, ShapeError
from ppgen.inference import pgmpy_adapter
from ppgen.inference.structure.problem import WeightedGraphs
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.models import BayesianNetwork
from ppgen.ops.random import forked_rng
from ppgen.testing import check_contract
from ppgen.testing.statistics import assert_close_to, assert_mean
from tests.models.networks import MIXED, SIZES, discrete, gaussian, matrix, mixed, mixture, perturbed


def every_row(sizes: tuple[int, ...] = SIZES) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(s, dtype=torch.float64) for s in sizes))


def joint(model: BayesianNetwork, graph: int = 0) -> Tensor:
    """The joint table, multiplied out cell by cell from the tables."""
    sizes = tuple(model.table(n, graph).shape[-1] for n in model.labels.names)
    found = torch.ones(sizes, dtype=torch.float64)
    for cell in itertools.product(*(range(s) for s in sizes)):
        for v, name in enumerate(model.labels.names):
            parents = model.structure.parents(graph, v)
            found[cell] *= model.table(name, graph)[tuple(cell[p] for p in parents) + (cell[v],)]
    return found


TRIANGLE = [(0, 1), (0, 2), (1, 2)]


# -- the contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: BayesianNetwork((2, 2)), id="tree"),
        pytest.param(lambda: BayesianNetwork((3,), cardinalities=3, graph=[(0, 1), (1, 2)]), id="grid"),
        pytest.param(lambda: BayesianNetwork((3,), cardinalities=0, graph=TRIANGLE), id="real"),
        pytest.param(lambda: BayesianNetwork((3,), cardinalities=(3, 2, 4), graph=TRIANGLE), id="table"),
        pytest.param(lambda: BayesianNetwork((4,), cardinalities=(3, 2, 0, 0), graph=MIXED[:4]), id="mixed"),
    ],
)
def test_contract(make: Any) -> None:
    check_contract(make)


# -- densities ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [discrete, mixture], ids=["one", "mixture"])
def test_density_is_the_joint_table(make: Any) -> None:
    model = make()
    weights = model.weights_of_graphs
    expected = sum(w * joint(model, g) for g, w in enumerate(weights))
    found = model.log_likelihood(every_row()).value.exp().reshape(SIZES)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [discrete, mixture], ids=["one", "mixture"])
def test_gaps_are_summed_out(make: Any) -> None:
    model = make()
    table = model.log_likelihood(every_row()).value.exp().reshape(SIZES)
    x = model.sample(200, seed=1)
    with forked_rng(2):
        gone = torch.rand(x.shape) < 0.5
    found = model.log_likelihood(torch.where(gone, math.nan, x)).value
    for row, gaps, value in zip(x.long(), gone, found, strict=True):
        part = table
        for v in reversed(range(5)):
            part = part.sum(v) if gaps[v] else part.select(v, int(row[v]))
        assert float(value) == pytest.approx(float(part.log()), abs=1e-10)


def test_gaussian_gaps_are_the_marginal_normal() -> None:
    model = gaussian()
    weights, variances = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    intercepts = torch.zeros(5, dtype=torch.float64)
    for v, name in enumerate(model.labels.names):
        found, scale = model.regression(name)
        weights[v, list(model.structure.parents(0, v))] = found[1:]
        intercepts[v], variances[v] = found[0], scale**2
    mixing = torch.linalg.inv(torch.eye(5, dtype=torch.float64) - weights)
    mean, covariance = mixing @ intercepts, mixing @ variances.diag() @ mixing.T
    x = model.sample(60, seed=1)
    with forked_rng(2):
        gone = torch.rand(x.shape) < 0.4
    found = model.log_likelihood(torch.where(gone, math.nan, x)).value
    for row, gaps, value in zip(x, gone, found, strict=True):
        k = (~gaps).nonzero()[:, 0]
        if len(k):
            normal = torch.distributions.MultivariateNormal(mean[k], covariance[k[:, None], k])
            assert float(value) == pytest.approx(float(normal.log_prob(row[k])), abs=1e-9)
        else:
            assert float(value) == 0.0


def test_mixed_gaps_are_sums_over_levels_of_normals() -> None:
    model = mixed()
    x = model.sample(40, seed=1)
    with forked_rng(2):
        gone = torch.rand(x.shape) < 0.4
    found = model.log_likelihood(torch.where(gone, math.nan, x)).value
    p = torch.einsum("a,ab->ab", model.table("x0"), model.table("x1"))
    for row, gaps, value in zip(x, gone, found, strict=True):
        terms = []
        for a, b in itertools.product(range(3), range(2)):
            if (not gaps[0] and int(row[0]) != a) or (not gaps[1] and int(row[1]) != b):
                continue
            (w2, s2), (w3, s3), (w4, s4) = (model.regression(f"x{v}") for v in (2, 3, 4))
            m2, m3 = w2[a, 0], w3[b, 0] + w3[b, 1] * w2[a, 0]
            m4 = w4[b, 0] + w4[b, 1] * m3
            c22 = s2[a] ** 2
            c23, c33 = w3[b, 1] * c22, w3[b, 1] ** 2 * c22 + s3[b] ** 2
            c24, c34 = w4[b, 1] * c23, w4[b, 1] * c33
            c44 = w4[b, 1] ** 2 * c33 + s4[b] ** 2
            mean = torch.stack([m2, m3, m4])
            covariance = torch.stack([c22, c23, c24, c23, c33, c34, c24, c34, c44]).reshape(3, 3)
            k = (~gaps[2:]).nonzero()[:, 0]
            term = p[a, b].log()
            if len(k):
                normal = torch.distributions.MultivariateNormal(mean[k], covariance[k[:, None], k])
                term = term + normal.log_prob(row[2:][k])
            terms.append(term)
        assert float(value) == pytest.approx(float(torch.stack(terms).logsumexp(0)), abs=1e-9)


@pytest.mark.parametrize("make", [discrete, gaussian, mixed], ids=["discrete", "gaussian", "mixed"])
def test_the_program_with_a_site_a_variable_is_the_same(make: Any) -> None:
    model = make()
    with forked_rng(1):
        trace: Any = poutine.trace(model.node_model).get_trace(num=50)
    sites = [n for n, s in trace.nodes.items() if s["type"] == "sample" and n.startswith("x")]
    order = {name: place for place, name in enumerate(sites)}
    assert all(order[a] < order[b] for a, b in model.to_networkx().edges)
    columns = {n: trace.nodes[n]["value"] for n in model.labels.names}
    observed: Any = poutine.trace(model.node_model).get_trace(columns)
    x = torch.stack([columns[n].double() for n in model.labels.names], -1)
    total = float(model.log_likelihood(x).value.sum())
    assert float(observed.log_prob_sum()) == pytest.approx(total, rel=1e-10)
    assert len(list(pyro.get_param_store().keys())) == 0


# -- conditionals ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asia", "alarm"])
def test_queries_equal_those_of_pgmpy(name: str) -> None:
    from pgmpy.inference import VariableElimination

    network = pgmpy_adapter.example_network(name)
    model = BayesianNetwork.from_network(network)
    oracle = VariableElimination(model.to_pgmpy())
    row = model.sample(1, seed=3)[0].long().tolist()
    nodes = list(range(0, network.num_nodes, max(1, network.num_nodes // 6)))
    seen = {network.names[v]: network.levels[v][row[v]] for v in nodes[1::2]}
    targets = [network.names[v] for v in nodes[::2]][:3]
    expected = oracle.query(targets, evidence=seen, show_progress=False, joint=True)
    found = model.query(targets, seen)
    for cell, value in found.items():
        states = dict(zip(targets, cell, strict=True))
        assert value == pytest.approx(expected.get_value(**states), abs=1e-8)


def test_queries_of_a_mixture_weigh_graphs_by_the_evidence() -> None:
    model = mixture()
    table = model.log_likelihood(every_row()).value.exp().reshape(SIZES)
    expected = table[:, :, 1].sum((2, 3))
    found = model.query_table(["x1", "x0"], {"x2": 1})
    torch.testing.assert_close(found, expected.T / expected.sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", [discrete, mixture], ids=["one", "mixture"])
def test_draws_of_gaps_follow_the_conditional(make: Any) -> None:
    model = make()
    x = torch.tensor([[math.nan, 2.0, math.nan, math.nan, 0.0]], dtype=torch.float64)
    drawn = model.condition(x, num=20_000, seed=1)[:, 0]
    assert bool((drawn[:, [1, 4]] == torch.tensor([2.0, 0.0])).all())
    cells = torch.nn.functional.one_hot((drawn[:, 0] * 6 + drawn[:, 2] * 3 + drawn[:, 3]).long(), 12).double()
    expected = model.query_table(["x0", "x2", "x3"], {"x1": 2, "x4": 0})
    assert_mean(cells, expected.flatten())
    with pytest.raises(AssertionError):  # the planted defect: the evidence is ignored
        assert_mean(cells, model.query_table(["x0", "x2", "x3"]).flatten())


@pytest.mark.parametrize("make", [gaussian, mixed], ids=["gaussian", "mixed"])
def test_continuous_draws_have_the_moments_of_the_conditional(make: Any) -> None:
    model = make()
    x = model.sample(1, seed=4)
    x[0, [0, 2, 3]] = math.nan
    drawn = model.condition(x, num=20_000, seed=1)[:, 0]
    # By importance sampling: the prior of the gaps, weighted by the density of the whole row.
    prior = model.sample(200_000, seed=2)
    rows = torch.where(x.isnan(), prior, x)
    gone = torch.where(x.isnan(), rows, math.nan)
    log_weight = model.log_likelihood(rows).value - model.log_likelihood(gone).value
    weight = (log_weight - log_weight.max()).exp()[:, None]
    features = torch.stack(
        [prior[:, 3].tanh(), prior[:, 2].tanh() * prior[:, 3].tanh(), prior[:, 0].tanh()], -1
    )
    ours = torch.stack([drawn[:, 3].tanh(), drawn[:, 2].tanh() * drawn[:, 3].tanh(), drawn[:, 0].tanh()], -1)
    mean = (weight * features).sum(0) / weight.sum()
    error = ((weight * (features - mean)) ** 2).sum(0).sqrt() / weight.sum()
    both = (error**2 + ours.var(0) / len(ours)).sqrt()
    assert_close_to(ours.mean(0), mean, both)
    with pytest.raises(AssertionError):  # the planted defect: the gaps drawn from their prior
        assert_close_to(features.mean(0), mean, both)


def test_impossible_evidence_is_named() -> None:
    asia = BayesianNetwork.from_network(pgmpy_adapter.example_network("asia"))
    with pytest.raises(DataError, match="either='no'.*probability 0|lung='yes'.*probability 0"):
        asia.query("smoke", {"lung": "yes", "either": "no"})
    row = asia.sample(1, seed=0)
    row[0, asia.labels.node("lung")] = asia.labels.code(asia.labels.node("lung"), "yes")
    row[0, asia.labels.node("either")] = asia.labels.code(asia.labels.node("either"), "no")
    row[0, asia.labels.node("smoke")] = math.nan
    assert float(asia.log_likelihood(row).value[0].detach()) == -math.inf
    with pytest.raises(DataError, match="row 0 has probability 0"):
        asia.condition(row)


# -- interventions --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [discrete, mixture], ids=["one", "mixture"])
def test_do_is_the_truncated_factorisation(make: Any) -> None:
    model = make()
    weights = model.weights_of_graphs
    expected = torch.zeros(SIZES, dtype=torch.float64)
    for g, w in enumerate(weights):
        part = torch.ones(SIZES, dtype=torch.float64)
        for v, name in enumerate(model.labels.names):
            if v == 3:
                continue
            parents = model.structure.parents(g, v)
            for cell in itertools.product(*(range(s) for s in SIZES)):
                part[cell] *= model.table(name, g)[tuple(cell[p] for p in parents) + (cell[v],)]
        part[:, :, :, [0, 1]] = 0.0
        expected += w.detach() * part
    cut = model.do(x3=2)
    found = cut.log_likelihood(every_row()).value.exp().reshape(SIZES)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)
    assert not bool(cut.adjacency[:, :, 3].any())
    assert bool((cut.sample(50, seed=0)[:, 3] == 2).all())
    marginal = expected.sum((1, 2, 3, 4))
    torch.testing.assert_close(cut.query_table(["x0"]), marginal, rtol=1e-10, atol=0)
    torch.testing.assert_close(model.query_table(["x0"], do={"x3": 2}), marginal, rtol=1e-10, atol=0)
    # Seeing is not doing.
    assert not torch.allclose(model.query_table(["x0"], {"x3": 2}), marginal, atol=1e-3)
    again = cut.do({"x0": 1})
    assert again.interventions == ((0, 1.0), (3, 2.0))
    assert model.interventions == ()


def test_do_in_continuous_networks_moves_descendants_only() -> None:
    model = gaussian()
    draws = model.do(x1=2.5).sample(20_000, seed=1)
    assert bool((draws[:, 1] == 2.5).all())
    weights = [model.regression(f"x{v}")[0] for v in range(5)]
    mean0 = weights[0][0]
    mean2 = weights[2][0] + weights[2][1] * mean0
    mean3 = weights[3][0] + weights[3][1] * 2.5 + weights[3][2] * mean2
    assert_mean(draws[:, [0, 2, 3]], torch.stack([mean0, mean2, mean3]))
    seen = torch.full((1, 5), math.nan, dtype=torch.float64)
    seen[0, 1] = 2.5
    with pytest.raises(AssertionError):  # the planted defect: conditioning in place of setting
        assert_mean(model.condition(seen, num=20_000, seed=1)[:, 0, [0]], mean0[None])
    x = model.sample(5, seed=0)
    x[:, 1] = 2.5
    clamped = torch.zeros_like(x, dtype=torch.bool)
    clamped[:, 1] = True
    found = model.do(x1=2.5).log_likelihood(x).value
    torch.testing.assert_close(found, model.log_likelihood(x, clamped=clamped).value)
    x[:, 1] = 2.4
    assert bool(model.do(x1=2.5).log_likelihood(x).value.isneginf().all())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.do(PKAA="high"), ConfigError, "did you mean 'PKA'"),
        (lambda m: m.do(PKA="hihg"), ConfigError, "did you mean 'high'"),
        (lambda m: m.do([("PKA", "high")]), ConfigError, "do: expected a mapping"),
        (lambda m: m.query("PKA", evidence=["high"]), ConfigError, "evidence: expected a mapping"),
        (lambda m: m.query("Rafff"), ConfigError, "did you mean 'Raf'"),
        (lambda m: m.query("Raf", {"Raf": "low"}), ConfigError, "twice"),
        (lambda m: m.query([]), ConfigError, "one or more names"),
        (lambda m: m.do(PKA="high").learn(m.sample(5, seed=0)), ConfigError, "before do"),
        (lambda m: m.log_likelihood(torch.full((1, 2), 7.0)), DataError, "level numbers 0 to"),
        (lambda m: m.log_likelihood(torch.full((1, 2), math.inf)), DataError, "finite"),
        (
            lambda m: m.learn(m.sample(5, seed=0), clamped=torch.ones(5, 1) > 0),
            ShapeError,
            "clamped",
        ),
    ],
    ids=["name", "level", "pairs", "list", "target", "twice", "none", "learn", "unseen", "inf", "clamped"],
)
def test_what_is_asked_for_wrongly_is_named(call: Any, error: type[Exception], words: str) -> None:
    levels = {"PKA": ("low", "avg", "high"), "Raf": ("low", "high")}
    model = BayesianNetwork.from_graph([("PKA", "Raf")], levels)
    with pytest.raises(error, match=words):
        call(model)


def test_graphs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="cycle x. -> x. -> x. -> x.; remove"):
        BayesianNetwork((4,), graph=[(0, 1), (1, 2), (2, 0), (2, 3)])
    with pytest.raises(ConfigError, match="continuous parent 'x0'"):
        BayesianNetwork((2,), graph=[(0, 1)], cardinalities=(0, 2))
    with pytest.raises(ConfigError, match="GiB"):
        BayesianNetwork((17,), graph=[(i, 16) for i in range(16)], cardinalities=3)
    with pytest.raises(ConfigError, match="node numbers below 2"):
        BayesianNetwork((2,), graph=[(0, 5)])
    with pytest.raises(ShapeError, match="adjacency"):
        BayesianNetwork((2,), graph=torch.zeros(3, 3))


def test_a_row_that_is_too_much_to_sum_out_is_refused() -> None:
    # A grid of 4 levels, 16 by 16: its treewidth is 16.
    side = 16
    cells = list(itertools.product(range(side), range(side)))
    edges = [((i, j), (i + 1, j)) for i, j in cells if i < side - 1]
    edges += [((i, j), (i, j + 1)) for i, j in cells if j < side - 1]
    model = BayesianNetwork(
        (side, side), graph=[(cells.index(a), cells.index(b)) for a, b in edges], cardinalities=4
    )
    x = torch.zeros(1, side, side)
    x[0, :-1] = math.nan
    with pytest.raises(ConfigError, match="GiB"):
        model.log_likelihood(x)


# -- in and out -----------------------------------------------------------------------------


class Drawn:
    """A posterior of two graphs."""

    agent_probabilities: Tensor | None = None

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        graphs = torch.stack([matrix([(0, 1)], 2)] * (num - 1) + [matrix([(1, 0)], 2)])
        return WeightedGraphs(graphs, torch.full((num,), -math.log(num), dtype=torch.float64))

    def map_graph(self) -> Tensor:
        return matrix([(0, 1)], 2)

    def edge_probabilities(self) -> Tensor:
        return torch.tensor([[0.0, 0.75], [0.25, 0.0]], dtype=torch.float64)


def small_table() -> Table:
    with forked_rng(0):
        values = torch.randint(0, 2, (50, 2)).double()
    variables = (Variable("PKA", ("low", "high")), Variable("Raf", ("off", "on")))
    clamped = torch.zeros(50, 2, dtype=torch.bool)
    clamped[:10, 1] = True
    return Table(variables, values, clamped, Intervention.PERFECT)


def test_from_a_posterior_to_do() -> None:
    table = small_table()
    model = BayesianNetwork.from_posterior(Drawn(), table, num_graphs=4)
    assert model.weights_of_graphs.tolist() == pytest.approx([0.75, 0.25])
    assert model.table("Raf").shape == (2, 2)
    counts = torch.full((2, 2), 0.25, dtype=torch.float64)
    for row in table.codes[10:].tolist():
        counts[row[0], row[1]] += 1
    torch.testing.assert_close(model.table("Raf"), counts / counts.sum(-1, keepdim=True))
    frame = model.to_frame(model.do(PKA="high").sample(20, seed=0))
    assert set(frame["PKA"]) == {"high"}
    assert list(frame.columns) == ["PKA", "Raf"]
    assert model.to_frame(model.from_frame(frame)).equals(frame)
    assert BayesianNetwork.from_posterior(Drawn(), table, graphs="map").num_graphs == 1
    assert BayesianNetwork.from_posterior(Drawn(), table, graphs="median").adjacency[0, 0, 1]


def test_what_was_set_must_be_said_or_remembered() -> None:
    table = small_table()
    raw = table.values.long().numpy()

    class Remembering(Drawn):
        names = table.names
        targets = ((), (1,))

    posterior: Any = Remembering()
    with pytest.raises(ConfigError, match="variables were set"):
        BayesianNetwork.from_posterior(posterior, raw)
    posterior.table = table
    remembered = BayesianNetwork.from_posterior(posterior, raw)
    said = BayesianNetwork.from_posterior(Drawn(), table)
    torch.testing.assert_close(remembered.table("Raf"), said.table("Raf"))
    with pytest.raises(DataError, match="50 rows"):
        BayesianNetwork.from_posterior(posterior, raw[:10])
    posterior.names = ("Raf", "PKA")
    with pytest.raises(ConfigError, match="in their order"):
        BayesianNetwork.from_posterior(posterior, table)


def test_rows_in_which_agents_act_do_not_count() -> None:
    table = small_table()
    agents = torch.arange(50)[:, None] >= 30
    under = replace(table, clamped=torch.zeros_like(table.clamped), agents=agents, agent_names=("drug",))

    class Knowing(Drawn):
        agent_probabilities = torch.tensor([[0.1, 0.9]], dtype=torch.float64)

    found = BayesianNetwork.from_posterior(Knowing(), under, graphs="map")
    counts = torch.full((2, 2), 0.25, dtype=torch.float64)
    for row in table.codes[:30].tolist():
        counts[row[0], row[1]] += 1
    torch.testing.assert_close(found.table("Raf"), counts / counts.sum(-1, keepdim=True))
    with pytest.warns(DataWarning, match="agents were at work"):
        BayesianNetwork.from_posterior(Drawn(), under, graphs="map")


def test_frames_with_gaps_and_unknown_levels() -> None:
    import pandas

    model = BayesianNetwork.from_graph([("a", "b")], {"a": ("n", "y"), "b": None})
    frame = pandas.DataFrame({"a": ["y", None], "b": [1.5, float("nan")]})
    x = model.from_frame(frame)
    assert x[0].tolist() == [1.0, 1.5]
    assert bool(x[1].isnan().all())
    assert model.to_frame(x)["a"].isna().tolist() == [False, True]
    with pytest.raises(DataError, match="no level 'yy' .row 0.*did you mean 'y'"):
        model.from_frame(frame.assign(a=["yy", "n"]))
    with pytest.raises(DataError, match="no column 'b'"):
        model.from_frame(frame[["a"]])


def test_pgmpy_there_and_back() -> None:
    model = discrete()
    back = BayesianNetwork.from_pgmpy(model.to_pgmpy())
    for name in model.labels.names:
        torch.testing.assert_close(back.table(name), model.table(name), rtol=1e-12, atol=1e-14)
    cut = model.do(x3=1).to_network()
    assert cut.parents[3] == ()
    assert cut.tables[3].tolist() == [0.0, 1.0, 0.0]


def test_saved_and_loaded_with_names_and_interventions(tmp_path: Path) -> None:
    asia = BayesianNetwork.from_network(pgmpy_adapter.example_network("asia")).do(smoke="yes")
    ppgen.save(asia, tmp_path / "asia")
    back: Any = ppgen.load(tmp_path / "asia")
    assert back.query("lung").equals(asia.query("lung"))
    assert nx.utils.graphs_equal(back.to_networkx(), asia.to_networkx())


def test_one_variable_and_variables_alone() -> None:
    one = perturbed(BayesianNetwork((1,), graph=[]).double())
    assert float(one.log_likelihood(torch.full((1, 1), math.nan).double()).value) == 0.0
    alone = perturbed(BayesianNetwork((3,), graph=[], cardinalities=(2, 3, 1)).double())
    torch.testing.assert_close(alone.query_table(["x1"], {"x0": 1}), alone.table("x1"))
