"""Greedy searches: what they find, what the class around it weighs, constraints, interventions."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning, SamplingWarning
from ppgen.inference.pgmpy_adapter import example_network
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.family_scores import dense_scores
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.inference.structure.prior import Constraints, GraphPrior, compile_prior
from ppgen.inference.structure.problem import Learned, Method, Problem
from ppgen.inference.structure.remembered_scores import RememberedScores
from ppgen.inference.structure.scores.discrete import K2, BDeu
from ppgen.inference.structure.search import GES, PC, HillClimb
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.ops.dags import cpdag, enumerate_dags, is_acyclic

METHODS: dict[str, Method] = {"hill_climb": HillClimb(), "ges": GES(), "pc": PC()}
EXAMPLE = Constraints(
    required=[("xray", "asia")],
    forbidden=[("either", "dysp"), ("dysp", "either")],
    tiers=[["bronc"], ["smoke"]],
)


@pytest.fixture(name="asia", scope="module")
def asia_table() -> Table:
    return example_network("asia").table(2000, seed=1)


@pytest.fixture(name="earthquake", scope="module")
def earthquake_network() -> DiscreteNetwork:
    return example_network("earthquake")


def problem(table: Table, constraints: Constraints | None = None, prior: GraphPrior | None = None) -> Problem:
    return Problem(table, BDeu(1.0), prior or GraphPrior(), constraints or Constraints(), progress=False)


def chain(num: int = 600, *, seed: int = 0) -> Table:
    """Rows of a -> b -> c over two levels."""
    keep = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    levels = ((0, 1),) * 3
    tables = (torch.tensor([0.5, 0.5]), keep, keep)
    return DiscreteNetwork(("a", "b", "c"), levels, ((), (0,), (1,)), tables).table(num, seed=seed)


def set_in(table: Table, node: int, rows: slice, generator: torch.Generator) -> Table:
    """The table with a variable set at random in some rows, and what follows from it left as it is."""
    values, clamped = table.values.clone(), table.clamped.clone()
    count = len(values[rows])
    values[rows, node] = torch.randint(2, (count,), generator=generator).double()
    clamped[rows, node] = True
    return replace(table, values=values, clamped=clamped, intervention=Intervention.PERFECT)


def quietly(method: Method, given: Problem, seed: int | None = 0) -> Learned:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.run(given, seed=seed)


def log_score(table: Table, graph: Tensor) -> float:
    return sum(
        float(BDeu(1.0).local(table, v, [graph[:, v].nonzero()[:, 0].tolist()])) for v in range(len(graph))
    )


# -- what they find -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_they_find_the_class_of_a_small_network(name: str, earthquake: DiscreteNetwork) -> None:
    learned = quietly(METHODS[name], problem(earthquake.table(50_000, seed=0)))
    members = earthquake_class(earthquake)
    assert torch.equal(cpdag(learned.source.map_graph()), cpdag(earthquake.adjacency))
    expected = members.double().mean(0)
    assert torch.allclose(learned.source.edge_probabilities(), expected, rtol=0, atol=1e-6)
    assert not learned.source.edge_errors().any()
    assert learned.attributes["num_members"] == len(members)


def earthquake_class(network: DiscreteNetwork) -> Tensor:
    dags = enumerate_dags(5)
    same = (cpdag(dags) == cpdag(network.adjacency)).flatten(1).all(1)
    return dags[same]


@pytest.mark.parametrize("name", ["hill_climb", "ges"])
def test_members_weigh_alike_under_a_score_that_cannot_tell_them_apart(name: str) -> None:
    learned = quietly(METHODS[name], problem(chain()))
    third = 1 / 3
    # a <- b <- c, a <- b -> c and a -> b -> c
    expected = torch.tensor([[0, third, 0], [2 * third, 0, 2 * third], [0, third, 0]], dtype=torch.float64)
    assert torch.allclose(learned.source.edge_probabilities(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["hill_climb", "ges"])
def test_members_weigh_as_their_scores_say(name: str) -> None:
    """With rows in which b was set, members score differently: the weights are those of the scores."""
    table = set_in(chain(), 1, slice(0, 40), torch.Generator().manual_seed(0))
    learned = quietly(METHODS[name], problem(table))
    dags = enumerate_dags(3)
    found = cpdag(learned.source.map_graph())
    members = dags[(cpdag(dags) == found).flatten(1).all(1)]
    scores = torch.tensor([log_score(table, m) for m in members], dtype=torch.float64)
    assert float(scores.max() - scores.min()) > 0.1
    expected = (scores.softmax(0)[:, None, None] * members).sum(0)
    assert torch.allclose(learned.source.edge_probabilities(), expected, rtol=0, atol=1e-9)


def test_a_class_too_large_to_list_is_drawn_from_and_told() -> None:
    copies = torch.randint(2, (400, 1), generator=torch.Generator().manual_seed(0)).double()
    noise = torch.rand(400, 5, generator=torch.Generator().manual_seed(1)) < 0.05
    values = (copies.bool() ^ noise).double()
    table = Table(tuple(Variable(n, (0, 1)) for n in "abcde"), values, torch.zeros(400, 5, dtype=torch.bool))
    with pytest.warns(SamplingWarning, match="more than 2 DAGs"):
        learned = HillClimb(max_members=2).run(problem(table), seed=0)
    assert not learned.attributes["all_members"]
    again = quietly(HillClimb(max_members=2), problem(table))
    assert torch.equal(learned.source.edge_probabilities(), again.source.edge_probabilities())


# -- constraints ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize(
    "constraints",
    [
        EXAMPLE,
        Constraints(max_parents=1),
        Constraints(required=[("asia", "smoke"), ("smoke", "xray")], max_parents=2),
        Constraints(tiers=[["dysp", "xray"], ["either"], ["lung", "tub"], ["smoke", "asia", "bronc"]]),
    ],
    ids=["edges", "fan-in", "both", "tiers"],
)
def test_every_method_keeps_the_constraints(name: str, constraints: Constraints, asia: Table) -> None:
    given = problem(asia, constraints)
    learned = quietly(METHODS[name], given)
    prior = compile_prior(given.prior, constraints, asia.names)
    drawn = learned.source.sample(200, seed=0).adjacency
    assert bool(is_acyclic(drawn).all())
    assert bool(prior.allows(drawn).all())
    free = quietly(METHODS[name], problem(asia)).source.sample(200, seed=0).adjacency
    assert not bool(prior.allows(free).all())  # they had to give way


def test_ges_says_when_no_member_meets_the_constraints(asia: Table) -> None:
    with pytest.warns(SamplingWarning, match="hill climbing went on from the nearest one"):
        learned = GES().run(problem(asia, EXAMPLE), seed=0)
    assert any("hill climbing went on" in text for text in learned.warnings)


def test_pc_says_when_the_directions_contradict_the_constraints(asia: Table) -> None:
    with pytest.warns(SamplingWarning, match="breaks fewest of them was taken"):
        PC().run(problem(asia, Constraints(max_parents=1)), seed=0)


def test_contradictory_constraints_are_refused(asia: Table) -> None:
    for method in METHODS.values():
        with pytest.raises(ConfigError, match="make a cycle"):
            method.run(problem(asia, Constraints(required=[("asia", "tub"), ("tub", "asia")])), seed=0)


def test_an_edge_prior_moves_the_weights() -> None:
    edges = torch.full((3, 3), 0.5, dtype=torch.float64).fill_diagonal_(0)
    edges[0, 1] = 0.8
    learned = quietly(HillClimb(), problem(chain(), prior=GraphPrior(edges=edges)))
    # Of the three members one has a -> b: weights .8 * .5, against (1 - .8) * .5 each of the other two.
    expected = 0.8 / (0.8 + 2 * 0.2)
    assert math.isclose(float(learned.source.edge_probabilities()[0, 1]), expected, abs_tol=1e-9)


# -- interventions --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ges", "pc"])
def test_searches_that_cannot_use_interventions_leave_those_rows_out_and_say_so(name: str) -> None:
    table = set_in(chain(), 1, slice(0, 150), torch.Generator().manual_seed(0))
    with pytest.warns(DataWarning, match="150 of 600 rows"):
        learned = METHODS[name].run(problem(table), seed=0)
    rest = quietly(METHODS[name], problem(table.rows(torch.arange(150, 600))))
    assert torch.equal(cpdag(learned.source.map_graph()), cpdag(rest.source.map_graph()))
    with pytest.raises(DataError, match="0 are left of 150"):
        METHODS[name].run(problem(table.rows(torch.arange(150))), seed=0)


def test_hill_climbing_uses_interventions() -> None:
    # c copies b, which was set in half of the rows: b -> c stands, and nothing leads to b there.
    generator = torch.Generator().manual_seed(0)
    b = torch.randint(2, (400,), generator=generator).double()
    c = torch.where(torch.rand(400, generator=generator) < 0.9, b, 1 - b)
    values = torch.stack([b, c], 1)
    clamped = torch.zeros(400, 2, dtype=torch.bool)
    clamped[:200, 0] = True
    table = Table((Variable("b", (0, 1)), Variable("c", (0, 1))), values, clamped, Intervention.PERFECT)
    forward = float(quietly(HillClimb(), problem(table)).source.edge_probabilities()[0, 1])
    blind = replace(table, clamped=torch.zeros_like(clamped), intervention=Intervention.NONE)
    assert forward > 0.99
    assert math.isclose(float(quietly(HillClimb(), problem(blind)).source.edge_probabilities()[0, 1]), 0.5)


def test_hill_climbing_sums_unknown_targets_out() -> None:
    table = chain()
    agents = torch.zeros(600, 1, dtype=torch.bool)
    agents[:200] = True
    values = table.values.clone()
    values[:200, 2] = torch.randint(2, (200,), generator=torch.Generator().manual_seed(3)).double()
    given = problem(replace(table, values=values, agents=agents, agent_names=("drug",), max_agents=1))
    learned = quietly(HillClimb(), given)
    assert learned.agent_probabilities is not None
    assert learned.agent_probabilities.shape == (1, 3)
    dags = enumerate_dags(3)
    members = dags[(cpdag(dags) == cpdag(learned.source.map_graph())).flatten(1).all(1)]
    terms = torch.stack([torch.stack([_agent_terms(given.table, v, m) for v in range(3)]) for m in members])
    weights = terms.logsumexp(-1).sum(-1).softmax(0)
    expected = (weights[:, None] * terms.softmax(-1)[..., 1]).sum(0)
    assert torch.allclose(learned.agent_probabilities[0], expected, rtol=0, atol=1e-9)
    assert int(expected.argmax()) == 2


def _agent_terms(table: Table, node: int, graph: Tensor) -> Tensor:
    """Scores of a family without and with the agent among the parents."""
    parents = graph[:, node].nonzero()[:, 0].tolist()
    return BDeu(1.0).local(table, node, [parents, [*parents, 3]])


# -- scores that are remembered ---------------------------------------------------------------


def flat(table: Table, constraints: Constraints | None = None) -> FamilyPrior:
    return compile_prior(GraphPrior(), constraints or Constraints(), table.names)


@pytest.mark.parametrize("agents", [False, True], ids=["plain", "agents"])
def test_remembered_scores_are_those_of_all_families(agents: bool) -> None:
    table = chain()
    if agents:
        acting = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) < 0.3
        table = replace(table, agents=acting, agent_names=("p", "q"), max_agents=2)
    dense = dense_scores(problem(table)).log_scores
    scores = RememberedScores(table, BDeu(1.0), flat(table))
    for node in range(3):
        others = [v for v in range(3) if v != node]
        for column in range(4):
            parents = frozenset(v for bit, v in enumerate(others) if column >> bit & 1)
            assert math.isclose(scores.of(node, parents), float(dense[node, column]), abs_tol=1e-8)
    graphs = enumerate_dags(3)
    totals = scores.of_graphs(graphs)
    for graph, value in zip(graphs, totals.tolist(), strict=True):
        parts = [scores.of(v, frozenset(graph[:, v].nonzero()[:, 0].tolist())) for v in range(3)]
        assert math.isclose(sum(parts), value, abs_tol=1e-8)


@dataclass(frozen=True)
class Counting:
    """BDeu that writes down how it is called, and refuses large tables."""

    calls: list[int]
    limit: int = 99
    name = "counting"

    def check(self, table: Table) -> None:
        """Anything goes."""

    def local(self, table: Table, node: int, parents: Sequence[Sequence[int]]) -> Tensor:
        if any(len(p) > self.limit for p in parents):
            raise DataError("parents: too large a table")
        self.calls.append(len(parents))
        return BDeu(1.0).local(table, node, parents)


def test_families_are_scored_once_and_together(asia: Table) -> None:
    calls: list[int] = []
    scores = RememberedScores(asia, Counting(calls), flat(asia))
    for other in range(1, 8):
        scores.of(0, frozenset({other}))
    assert calls == [8]
    scores.of(0, frozenset())
    scores.of(0, frozenset({3}))
    assert calls == [8]
    for other in (1, 2, 4, 5, 6, 7):
        scores.of(0, frozenset({3, other}))
        scores.of(0, frozenset({3}))
    assert calls == [8, 6]
    assert sum(calls) == scores.num_families


def test_families_that_the_score_refuses_are_left_out_and_told(asia: Table) -> None:
    given = replace(problem(asia), score=Counting([], limit=1))
    with pytest.warns(DataWarning, match="families were not looked at"):
        learned = HillClimb().run(given, seed=0)
    assert int(learned.source.map_graph().sum(0).max()) == 1
    with pytest.raises(DataError, match="too large"):
        HillClimb().run(replace(given, score=Counting([], limit=-1)), seed=0)


def test_a_score_that_tells_members_apart_counts() -> None:
    learned = quietly(HillClimb(), replace(problem(chain()), score=K2()))
    p = learned.source.edge_probabilities()
    assert math.isclose(float(p[0, 1] + p[1, 0]), 1, abs_tol=1e-9)
    assert not math.isclose(float(p[0, 1]), 1 / 3, abs_tol=1e-3)


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (HillClimb, {"tabu_length": 0}, "tabu_length: expected a positive whole number"),
        (HillClimb, {"min_improvement": -1.0}, "min_improvement: expected a finite number"),
        (GES, {"max_members": 1.5}, "max_members: expected a positive whole number"),
        (PC, {"significance": 0.0}, "significance: expected a number between 0 and 1"),
        (PC, {"max_conditioning": -1}, "max_conditioning"),
    ],
    ids=["tabu", "improvement", "members", "significance", "conditioning"],
)
def test_options_out_of_range(kind: type, options: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        kind(**options)


def test_no_score_and_priors_without_effect(asia: Table) -> None:
    for method in (HillClimb(), GES()):
        with pytest.raises(ConfigError, match="score: .* needs one"):
            method.run(replace(problem(asia), score=None), seed=0)
    with pytest.warns(DataWarning, match="order-modular"):
        HillClimb().run(problem(asia, prior=GraphPrior("order")), seed=0)
    with pytest.warns(DataWarning, match="PC uses no prior"):
        PC().run(problem(asia, prior=GraphPrior(fan_in="cardinality")), seed=0)
