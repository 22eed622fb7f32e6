"""Effects against sums over all DAGs, simulated experiments, and known equivalence classes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ppgen.distributions.network.structure import NetworkStructure
from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.effects import EffectMethod, causal_effect, ida, possible_parents
from ppgen.inference.structure.problem import WeightedGraphs
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.models import BayesianNetwork
from ppgen.ops.dags import cpdag, enumerate_dags
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

NAMES = ("z", "x", "m", "y")
# z confounds x and y; x acts on y through m and directly.
TRUTH = [("z", "x"), ("z", "y"), ("x", "m"), ("m", "y")]


class Weighted:
    """A distribution over listed DAGs."""

    agent_probabilities = None

    def __init__(self, graphs: Tensor, log_weights: Tensor) -> None:
        self.graphs, self.log_weights = graphs, log_weights.double().log_softmax(0)

    def parent_sets(self, node: int) -> tuple[Tensor, Tensor]:
        sets, number = self.graphs[:, :, node].unique(dim=0, return_inverse=True)
        weights = torch.zeros(len(sets), dtype=torch.float64).index_add_(0, number, self.log_weights.exp())
        order = weights.argsort(descending=True)
        return sets[order], weights[order]

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        with forked_rng(seed):
            chosen = torch.multinomial(self.log_weights.exp(), num, replacement=True)
        return WeightedGraphs(self.graphs[chosen], torch.full((num,), -math.log(num), dtype=torch.float64))


class All(Weighted):
    """The same, whose sample is every graph with its weight."""

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        return WeightedGraphs(self.graphs, self.log_weights)


def truth(discrete: bool = True) -> BayesianNetwork:
    levels = dict.fromkeys(NAMES, ("lo", "hi") if discrete else None)
    model = BayesianNetwork.from_graph(TRUTH, levels)
    if discrete:
        high = {"z": [0.5], "x": [0.15, 0.85], "m": [0.2, 0.8], "y": [0.1, 0.3, 0.6, 0.9]}
        tables = [torch.tensor(high[n], dtype=torch.float64) for n in NAMES]
        flat = torch.cat([torch.stack([1 - t, t], -1).flatten() for t in tables])
        with torch.no_grad():
            model.logits.copy_(flat.log())
        return model
    with torch.no_grad(), forked_rng(5):
        model.weights.normal_()
        model.log_scales.fill_(-0.5)
    return model


def table_of(values: Tensor, clamped: Tensor | None = None, discrete: bool = True) -> Table:
    variables = tuple(Variable(n, ("lo", "hi") if discrete else None) for n in NAMES)
    clamped = torch.zeros_like(values, dtype=torch.bool) if clamped is None else clamped
    return Table(variables, values, clamped, Intervention.PERFECT)


def all_graphs(seed: int = 0, every: int = 1) -> tuple[Tensor, Tensor]:
    graphs = enumerate_dags(4)[::every]
    with forked_rng(seed):
        return graphs, torch.randn(len(graphs), dtype=torch.float64)


def the_graph() -> Tensor:
    found = torch.zeros(4, 4, dtype=torch.bool)
    for a, b in TRUTH:
        found[NAMES.index(a), NAMES.index(b)] = True
    return found[None]


def by_hand(table: Table, graphs: Tensor, weights: Tensor, x: int, y: int) -> Tensor:
    """Posterior mean of p(y given do(x)) over all graphs: parents' adjustment with counts, cell by cell."""
    codes, total = table.codes, torch.zeros(2, 2, dtype=torch.float64)
    for graph, weight in zip(graphs, weights, strict=True):
        parents = graph[:, x].nonzero()[:, 0].tolist()
        value = torch.zeros(2, 2, dtype=torch.float64)
        if y in parents:
            share = (codes[:, y].bincount(minlength=2) + 0.5) / (len(codes) + 1)
            value[:] = share
        else:
            cells = 2 ** len(parents)
            for context in itertools.product(range(2), repeat=len(parents)):
                here = (codes[:, parents] == torch.tensor(context)).all(-1)
                p_context = (here.sum() + 1 / cells) / (len(codes) + 1)
                for a in range(2):
                    rows = codes[here & (codes[:, x] == a), y].bincount(minlength=2) + 1 / (4 * cells)
                    value[a] += p_context * rows / rows.sum()
        total += weight * value
    return total


def test_parents_equal_the_sum_over_all_dags() -> None:
    table = table_of(truth().sample(40, seed=1))
    graphs, log_weights = all_graphs()
    found = causal_effect(Weighted(graphs, log_weights), table, "x", "y", seed=0, num_draws=50)
    expected = by_hand(table, graphs, log_weights.softmax(0), 1, 3)
    torch.testing.assert_close(found.mean, expected, rtol=1e-8, atol=1e-8)
    assert found.method == "parents"


def test_graphs_equal_the_sum_over_all_dags() -> None:
    table = table_of(truth().sample(40, seed=1))
    graphs, log_weights = all_graphs(every=4)
    found = causal_effect(All(graphs, log_weights), table, "x", "y", method="graphs", seed=0, num_draws=5)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for graph, weight in zip(graphs, log_weights.softmax(0), strict=True):
        model = BayesianNetwork.from_graph(graph, table)
        for level, name in enumerate(("lo", "hi")):
            expected[level] += weight * model.query_table(["y"], do={"x": name})
    torch.testing.assert_close(found.mean, expected, rtol=1e-10, atol=1e-12)


def test_slopes_equal_the_sum_over_all_dags() -> None:
    table = table_of(truth(False).sample(40, seed=1), discrete=False)
    graphs, log_weights = all_graphs(every=4)
    found = causal_effect(All(graphs, log_weights), table, "x", "y", method="graphs", seed=0, num_draws=5)
    expected = 0.0
    for graph, weight in zip(graphs, log_weights.softmax(0), strict=True):
        model = BayesianNetwork.from_graph(graph, table)
        weights = torch.zeros(4, 4, dtype=torch.float64)
        for v, name in enumerate(NAMES):
            parents = list(model.structure.parents(0, v))
            weights[parents, v] = model.regression(name)[0][1:]
        weights[:, 1] = 0.0
        power, paths = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
        for _ in range(3):
            power = power @ weights
            paths = paths + power
        expected += float(weight * paths[1, 3])
    assert float(found.mean) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["parents", "graphs"])
def test_draws_are_centred_on_the_mean(method: EffectMethod) -> None:
    table = table_of(truth().sample(60, seed=1))
    graphs, log_weights = all_graphs()
    found = causal_effect(
        All(graphs, 3 * log_weights),
        table,
        "x",
        "y",
        method=method,
        seed=0,
        num_draws=800,
    )
    assert_close_to(found.draws.mean(0), found.mean, found.spread / math.sqrt(len(found.draws)))
    low, high = found.interval(0.9)
    assert bool(((low < found.mean) & (found.mean < high)).all())
    assert float(found.to_frame()["mean"].sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])
@pytest.mark.parametrize("method", ["parents", "graphs"])
def test_the_effect_is_that_of_a_simulated_experiment(method: EffectMethod, discrete: bool) -> None:
    model = truth(discrete)
    num = 20_000
    table = table_of(model.sample(num, seed=1), discrete=discrete)
    source = Weighted(the_graph(), torch.zeros(1))
    found = causal_effect(source, table, "x", "y", method=method, seed=0, num_draws=300)
    if discrete:
        done = model.do(x="hi").sample(num, seed=2)[:, 3].mean()
        effect, error = found.mean[1, 1], found.spread[1, 1]
        noise = math.sqrt(float(done * (1 - done)) / num)
        rows = table.codes[:, 1] == 1
        seen = table.values[rows, 3].mean()
    else:
        up, down = (model.do(x=value).sample(num, seed=2)[:, 3] for value in (1.0, 0.0))
        done, effect, error = (up - down).mean(), found.mean, found.spread
        noise = float((up - down).std() / math.sqrt(num)) + 1e-9
        centred = table.values - table.values.mean(0)
        seen = (centred[:, 1] * centred[:, 3]).sum() / (centred[:, 1] ** 2).sum()
    total = (error**2 + noise**2).sqrt()
    assert_close_to(effect, done, total)
    with pytest.raises(AssertionError):  # the planted defect: conditioning in place of setting
        assert_close_to(seen, done, total)


def test_rows_in_which_only_the_cause_was_set_count() -> None:
    model = truth()
    quiet, set_x = model.sample(2000, seed=1), model.do(x="hi").sample(2000, seed=2)
    values = torch.cat([quiet, set_x])
    clamped = torch.zeros_like(values, dtype=torch.bool)
    clamped[2000:, 1] = True
    source = Weighted(the_graph(), torch.zeros(1))
    both = causal_effect(source, table_of(values, clamped), "x", "y", seed=0, num_draws=200)
    assert both.method == "parents"
    assert both.num_rows == 4000
    expected = model.query_table(["y"], do={"x": "hi"})
    assert_close_to(both.mean[1], expected, both.spread[1])


def test_rows_in_which_others_were_set_count_only_by_graphs() -> None:
    model = truth()
    quiet, set_m = model.sample(4000, seed=1), model.do(m="hi").sample(4000, seed=2)
    values = torch.cat([quiet, set_m])
    clamped = torch.zeros_like(values, dtype=torch.bool)
    clamped[4000:, 2] = True
    source, table = Weighted(the_graph(), torch.zeros(1)), table_of(values, clamped)
    found = causal_effect(source, table, "x", "y", seed=0, num_draws=200)
    assert found.method == "graphs"
    assert found.num_rows == 8000
    expected = model.query_table(["y"], do={"x": "hi"})
    assert_close_to(found.mean[1], expected, found.spread[1])
    adjusted = causal_effect(source, table, "x", "y", method="parents", seed=0, num_draws=200)
    assert adjusted.num_rows == 4000
    assert_close_to(adjusted.mean[1], expected, adjusted.spread[1])
    naive = causal_effect(source, table_of(values), "x", "y", seed=0, num_draws=200)
    with pytest.raises(AssertionError):  # the planted defect: all rows as if nothing had been set
        assert_close_to(naive.mean[0], model.query_table(["y"], do={"x": "lo"}), naive.spread[0])


def test_an_effect_on_an_ancestor_is_none() -> None:
    table = table_of(truth().sample(500, seed=1))
    found = causal_effect(Weighted(the_graph(), torch.zeros(1)), table, "x", "z", seed=0, num_draws=50)
    torch.testing.assert_close(found.mean[0], found.mean[1])
    assert bool((found.contrast("hi", "lo") == 0).all())


# -- IDA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", range(4))
def test_possible_parents_are_those_of_the_class(node: int) -> None:
    graphs = enumerate_dags(4)
    classes = cpdag(graphs)
    _, number = classes.flatten(1).unique(dim=0, return_inverse=True)
    for one in range(0, int(number.max()) + 1, 3):
        members = graphs[number == one]
        expected = {tuple(g[:, node].nonzero()[:, 0].tolist()) for g in members}
        assert set(possible_parents(classes[number == one][0], node)) == expected


def test_ida_gives_the_effects_of_the_class() -> None:
    table = table_of(truth(False).sample(300, seed=1), discrete=False)
    graphs = enumerate_dags(4)
    chain = torch.zeros(4, 4, dtype=torch.bool)
    chain[0, 1] = chain[1, 2] = chain[1, 3] = True
    classes = cpdag(graphs)
    members = graphs[(classes == cpdag(chain)).flatten(1).all(-1)]
    expected = {
        round(
            float(
                causal_effect(Weighted(g[None], torch.zeros(1)), table, "x", "y", seed=0, num_draws=1).mean
            ),
            10,
        )
        for g in members
    }
    found = ida(cpdag(chain), table, "x", "y")
    assert {round(float(one.value), 10) for one in found} == expected
    assert 0.0 in expected
    assert {one.parents for one in found} == {(), ("z",), ("m",), ("y",)}


def test_ida_of_tables_has_a_table_a_parent_set() -> None:
    table = table_of(truth().sample(300, seed=1))
    for one in ida(cpdag(the_graph()[0]), table, "x", "y"):
        torch.testing.assert_close(one.value.sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("xx", "y"), ConfigError, "no variable is called 'xx'"),
        (("x", "x"), ConfigError, "another variable"),
    ],
    ids=["name", "same"],
)
def test_wrong_names_are_named(arguments: tuple[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        causal_effect(Weighted(the_graph(), torch.zeros(1)), table_of(truth().sample(5, seed=0)), *arguments)


def test_what_cannot_be_worked_out_is_refused() -> None:
    source = Weighted(the_graph(), torch.zeros(1))
    values = truth().sample(5, seed=0)
    everywhere = torch.zeros_like(values, dtype=torch.bool)
    everywhere[:, 2] = True
    with pytest.raises(DataError, match="graphs"):
        causal_effect(source, table_of(values, everywhere), "x", "y", method="parents", seed=0)
    with pytest.raises(DataError, match="missing"):
        causal_effect(source, table_of(values.index_fill(0, torch.tensor(0), math.nan)), "x", "y", seed=0)
    variables = (Variable("z", ("lo", "hi")), *(Variable(n) for n in NAMES[1:]))
    mixed = Table(variables, values, torch.zeros_like(values, dtype=torch.bool))
    with pytest.raises(DataError, match="both kinds"):
        causal_effect(source, mixed, "x", "y", seed=0)
    assert NetworkStructure.of((2, 2), [[[], [0]]], ("a", "b")).num_graphs == 1
