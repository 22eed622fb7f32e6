"""All families at once: counting by cubes and by products, agents, priors, pruning, limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from ppgen.errors import ConfigError
from ppgen.inference.structure.families import DenseScores, members, unsqueeze
from ppgen.inference.structure.family_scores import add_prior, dense_scores, log_priors, sets_of_agents
from ppgen.inference.structure.listed_scores import listed_scores
from ppgen.inference.structure.prior import GraphPrior
from ppgen.inference.structure.scores import counting, products
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.bde import BDe
from ppgen.inference.structure.scores.conditional_gaussian import ConditionalGaussianBIC
from ppgen.inference.structure.scores.counting import distinct, sums_over_cells
from ppgen.inference.structure.scores.cubes import Lattice
from ppgen.inference.structure.scores.discrete import BIC, K2, BDeu, Dirichlet
from ppgen.inference.structure.scores.functions import silent
from ppgen.inference.structure.scores.gaussian import BGe, GaussianBIC
from ppgen.inference.structure.scores.products import all_subsets
from ppgen.inference.structure.scores.subsets import ranks, subsets
from ppgen.inference.structure.table import Intervention, Table
from tests.inference.structure.all_dags import AllDags
from tests.inference.structure.score_tables import (
    SOFT,
    agents,
    continuous_table,
    discrete_table,
    mixed_table,
    problem,
)

LEVELS = (2, 3, 4, 2, 3)
PERFECT, IMPERFECT = Intervention.PERFECT, Intervention.IMPERFECT


def all_columns(node: int, num: int) -> list[list[int]]:
    """The members of the set in each column of a node's row."""
    sets = members(unsqueeze(torch.arange(1 << (num - 1)), node), num)
    return [row.nonzero()[:, 0].tolist() for row in sets]


def test_subsets_are_numbered_in_order() -> None:
    for num, size in itertools.product(range(7), range(5)):
        sets = subsets(num, size)
        assert len(sets) == math.comb(num, size)
        assert ranks(sets).tolist() == list(range(len(sets)))
        assert sorted(map(tuple, sets.tolist())) == list(itertools.combinations(range(num), size))


class TestCounting:
    """Three ways to count must agree, whatever the sizes of their chunks."""

    rows = distinct(discrete_table((2, 5, 3, 2, 4, 3, 2), 150).codes, (2, 5, 3, 2, 4, 3, 2))
    term = Dirichlet(1.5, 0.25)

    @pytest.fixture(params=[2**17, 200], ids=["large", "small"], autouse=True)
    def chunks(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(counting._ELEMENTS, "cpu", request.param)

    @pytest.fixture(params=[2**22, 0], ids=["looked up", "computed"], autouse=True)
    def lookup(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counting, "_LOOKUP", request.param)

    def plain(self, columns: list[int]) -> float:
        counts: dict[tuple[int, ...], int] = {}
        for row, weight in zip(self.rows.codes.tolist(), self.rows.weights.tolist(), strict=True):
            cell = tuple(row[c] for c in columns)
            counts[cell] = counts.get(cell, 0) + weight
        alpha = 1.5 / self.rows.cells(columns) + 0.25
        return sum(math.lgamma(n + alpha) - math.lgamma(alpha) for n in counts.values())

    @pytest.mark.parametrize("per_row", [4, 0], ids=["counted", "sorted"])
    def test_by_codes(self, per_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counting, "_CELLS_PER_ROW", per_row)
        for size in range(5):
            sets = subsets(7, size).flip(1)
            values = sums_over_cells(self.rows, self.term, sets)
            assert values.tolist() == pytest.approx([self.plain(s) for s in sets.tolist()], abs=1e-9)

    @pytest.mark.parametrize("extra", [(), (6,), (6, 1)], ids=str)
    def test_by_cubes(self, extra: tuple[int, ...]) -> None:
        num = 6 if not extra else 5
        chosen = [c for c in extra if c >= num]
        values = Lattice(self.rows, self.term, num, chosen, num, silent).run()
        for mask in range(1 << num):
            inside = [c for c in range(num) if mask >> c & 1]
            assert float(values[mask]) == pytest.approx(self.plain([*inside, *chosen]), abs=1e-9)

    @pytest.mark.parametrize("multiply", [0.0, 2.5, 1e9], ids=["products", "both", "codes"])
    @pytest.mark.parametrize("left", [2**24, 0], ids=["one block", "blocks"])
    def test_by_products(self, multiply: float, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "_MULTIPLY", multiply)
        monkeypatch.setattr(products, "_LEFT", left)
        monkeypatch.setattr(products, "_LEAST_COLUMNS", 5)
        candidates, extra = [4, 0, 1, 5, 2, 6], (3,)
        for size in range(6):
            values = all_subsets(self.rows, self.term, candidates, size, extra)
            expected = [self.plain([*(candidates[p] for p in s), *extra]) for s in subsets(6, size).tolist()]
            assert values.tolist() == pytest.approx(expected, abs=1e-9)


TABLES: dict[str, tuple[Table, Score]] = {
    "plain": (discrete_table(LEVELS, 90), BDeu()),
    "perfect": (discrete_table(LEVELS, 90, clamp=0.2, intervention=PERFECT), BDeu()),
    "imperfect": (discrete_table(LEVELS, 90, clamp=0.2, intervention=IMPERFECT), BIC()),
    "soft": (
        discrete_table(LEVELS, 90, clamp=0.2, **SOFT, pushed_to=torch.tensor([0, 1, 2, 1, 0])),
        K2(),
    ),
    "bde": (discrete_table(LEVELS, 90), BDe(2.0, {"x1": [0.2, 0.3, 0.5]})),
    "bge": (continuous_table(5, 60, clamp=0.2, intervention=PERFECT), BGe()),
    "gaussian_bic": (continuous_table(5, 60, clamp=0.2, intervention=IMPERFECT), GaussianBIC()),
    "mixed": (mixed_table((2, 0, 0, 3, 0), 80, clamp=0.1, intervention=PERFECT), ConditionalGaussianBIC()),
}


@pytest.mark.parametrize("case", TABLES)
class TestOneByOne:
    def test_dense_scores(self, case: str) -> None:
        table, score = TABLES[case]
        dense = dense_scores(problem(table, score))
        for node in range(5):
            expected = score.local(table, node, all_columns(node, 5))
            torch.testing.assert_close(dense.log_scores[node], expected, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("forbidden", [(), (("x0", "x1"), ("x3", "x1"))], ids=["all", "some"])
    def test_listed_scores(self, case: str, forbidden: Any) -> None:
        table, score = TABLES[case]
        listed = listed_scores(problem(table, score, forbidden=forbidden), max_parents=3, prune=0.0)
        for node in range(5):
            sets = [[m for m in one if m >= 0] for one in listed.parents[node].tolist()]
            assert len(sets) == sum(math.comb(2 if forbidden and node == 1 else 4, k) for k in range(4))
            assert all(one == sorted(one) for one in sets)
            expected = score.local(table, node, sets)
            torch.testing.assert_close(listed.log_scores[node], expected, rtol=0, atol=1e-8)

    def test_agents_are_summed_out(self, case: str) -> None:
        table, score = TABLES[case]
        table = dataclasses.replace(
            table, agents=agents(table.num_rows, 3), agent_names=("a", "b", "c"), max_agents=2
        )
        dense = dense_scores(problem(table, score))
        listed = listed_scores(problem(table, score), max_parents=2, prune=0.0)
        assert dense.agent_sets is not None
        assert dense.agent_terms is not None
        assert listed.agent_terms is not None
        assert dense.agent_sets.long().sum(1).tolist() == [0, 1, 1, 1, 2, 2, 2]
        for node in range(5):
            columns = all_columns(node, 5)
            with_agents = [
                [*parents, *(row.nonzero()[:, 0] + 5).tolist()]
                for parents in columns
                for row in dense.agent_sets
            ]
            expected = score.local(table, node, with_agents).view(16, 7) - math.log(7)
            torch.testing.assert_close(dense.agent_terms[node], expected, rtol=0, atol=1e-8)
            torch.testing.assert_close(dense.log_scores[node], expected.logsumexp(1), rtol=0, atol=1e-8)
            small = [c for c, parents in enumerate(columns) if len(parents) <= 2]
            found = {
                tuple(m for m in one if m >= 0): terms
                for one, terms in zip(listed.parents[node].tolist(), listed.agent_terms[node], strict=True)
            }
            assert len(found) == len(small)
            for column in small:
                torch.testing.assert_close(found[tuple(columns[column])], expected[column], rtol=0, atol=1e-8)


class _Custom:
    """A score that knows no parts."""

    name = "custom"

    def check(self, table: Table) -> None:
        pass

    def local(self, table: Table, node: int, parents: Any) -> torch.Tensor:
        return torch.tensor([sum(p + 1 for p in one) + node / 10 for one in parents], dtype=torch.float64)


def test_any_score_will_do() -> None:
    table = discrete_table((2, 2, 2), 9)
    dense = dense_scores(problem(table, _Custom()))
    assert dense.log_scores[1].tolist() == pytest.approx([0.1, 1.1, 3.1, 4.1])
    listed = listed_scores(problem(table, _Custom()), max_parents=1)
    assert listed.log_scores[0].tolist() == [0, 2, 3]
    with pytest.raises(ConfigError, match="agents"):
        dense_scores(problem(dataclasses.replace(table, agents=agents(9, 1), max_agents=1), _Custom()))


class TestPrior:
    prior = GraphPrior("uniform", fan_in="cardinality")

    def test_is_added(self) -> None:
        table, score = TABLES["perfect"]
        case = problem(table, score, self.prior, required=[("x0", "x1")], forbidden=[("x2", "x4")])
        likelihood = dense_scores(case)
        both, prior = add_prior(likelihood, case), log_priors(case, likelihood)
        torch.testing.assert_close(both.log_scores, likelihood.log_scores + prior.log_scores)
        for node in range(5):
            for column, parents in enumerate(all_columns(node, 5)):
                allowed = not (node == 1 and 0 not in parents) and not (node == 4 and 2 in parents)
                # Nothing that the required edge leads to can lead back.
                allowed = allowed and not (node == 0 and 1 in parents)
                expected = -math.log(math.comb(4, len(parents))) if allowed else -math.inf
                assert float(prior.log_scores[node, column]) == pytest.approx(expected)

    def test_is_in_listed_scores(self) -> None:
        table, score = TABLES["perfect"]
        case = problem(table, score, self.prior, required=[("x0", "x1")])
        listed = listed_scores(case, max_parents=2, prune=0.0)
        assert (listed.parents[1] == 0).any(1).all()
        prior = log_priors(case, listed)
        for node in range(5):
            sets = [[m for m in one if m >= 0] for one in listed.parents[node].tolist()]
            torch.testing.assert_close(
                listed.log_scores[node], score.local(table, node, sets) + prior.log_scores[node]
            )

    def test_agents_carry_it(self) -> None:
        table = dataclasses.replace(TABLES["plain"][0], agents=agents(90, 2), max_agents=1)
        case = problem(table, BDeu(), self.prior)
        both = add_prior(dense_scores(case), case)
        assert both.agent_terms is not None
        torch.testing.assert_close(both.agent_terms.logsumexp(-1), both.log_scores)

    @pytest.mark.parametrize("limit", [0, 1, 2, 3])
    def test_larger_sets_than_allowed_have_no_weight(self, limit: int) -> None:
        table, score = TABLES["perfect"]
        full = dense_scores(problem(table, score)).log_scores
        some = dense_scores(problem(table, score, max_parents=limit)).log_scores
        for node in range(5):
            size = torch.tensor([len(one) for one in all_columns(node, 5)])
            torch.testing.assert_close(some[node][size <= limit], full[node][size <= limit])
            assert (some[node][size > limit] == -math.inf).all()


class TestPruning:
    @pytest.mark.parametrize("prior", ["uniform", "order"])
    @pytest.mark.parametrize("prune", [1e-2, 1e-1])
    def test_dropped_sets_are_as_improbable_as_promised(self, prune: float, prior: str) -> None:
        table = discrete_table((2, 3, 2, 2), 60)
        case = problem(table, BDeu(), required=[("x0", "x1")])
        every = AllDags.of(add_prior(dense_scores(case), case).log_scores, prior)
        kept = listed_scores(case, max_parents=3, prune=prune)
        dropped = 0
        for node in range(4):
            listed = {tuple(m for m in one if m >= 0) for one in kept.parents[node].tolist()}
            probabilities = every.families(node)
            for column, parents in enumerate(all_columns(node, 4)):
                if tuple(parents) not in listed:
                    assert float(probabilities[column]) <= prune
                    dropped += float(probabilities[column]) > 0
        assert dropped > 3

    def test_a_set_is_compared_with_allowed_subsets_only(self) -> None:
        table = discrete_table((2, 2, 2), 4)
        # The empty set scores best by far, but x0 -> x2 is required.
        free, bound = problem(table, _Steep()), problem(table, _Steep(), required=[("x0", "x2")])
        assert listed_scores(free, max_parents=2).parents[2].tolist() == [[-1, -1]]
        assert listed_scores(bound, max_parents=2).parents[2].tolist() == [[0, -1]]

    def test_the_best_subset_may_be_two_smaller(self) -> None:
        table = discrete_table((2, 2, 2, 2), 4)
        listed = listed_scores(problem(table, _Bowl()), max_parents=3)
        assert sorted((one >= 0).sum().item() for one in listed.parents[0]) == [0, 1, 1, 1, 3]


class _Steep(_Custom):
    def local(self, table: Table, node: int, parents: Any) -> torch.Tensor:
        return torch.tensor([-50.0 * len(one) for one in parents], dtype=torch.float64)


class _Bowl(_Custom):
    def local(self, table: Table, node: int, parents: Any) -> torch.Tensor:
        by_size = [0.0, -20.0, -40.0, -25.0]
        return torch.tensor([by_size[len(one)] for one in parents], dtype=torch.float64)


class TestLimits:
    def test_memory_of_dense_scores(self) -> None:
        table = discrete_table([2] * 40, 5)
        with pytest.raises(ConfigError, match=r"GiB.*order_mcmc"):
            dense_scores(problem(table, BDeu()))

    def test_memory_of_listed_scores(self) -> None:
        table = discrete_table([2] * 200, 5)
        with pytest.raises(ConfigError, match=r"GiB.*max_parents=4"):
            listed_scores(problem(table, BDeu()), max_parents=5)

    def test_states(self) -> None:
        table = discrete_table([2**13] * 16, 6)
        with pytest.raises(ConfigError, match="too many states"):
            listed_scores(problem(table, BDeu()), max_parents=4)

    def test_more_required_than_allowed(self) -> None:
        table, score = TABLES["plain"]
        case = problem(table, score, required=[("x0", "x1"), ("x2", "x1")])
        with pytest.raises(ConfigError, match="x1 has 2 required parents"):
            listed_scores(case, max_parents=1)

    @pytest.mark.parametrize("options", [{"max_parents": -1}, {"prune": 1.0}, {"prune": -0.1}], ids=str)
    def test_arguments(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="max_parents, prune"):
            listed_scores(problem(*TABLES["plain"]), **options)

    def test_no_score(self) -> None:
        with pytest.raises(ConfigError, match="score"):
            dense_scores(problem(TABLES["plain"][0], None))


def test_one_variable() -> None:
    table = discrete_table((3,), 20)
    dense = dense_scores(problem(table, BDeu()))
    assert dense.log_scores.shape == (1, 1)
    assert listed_scores(problem(table, BDeu())).parents[0].shape == (1, 0)


def test_wide_tables_take_the_way_by_size() -> None:
    table = discrete_table([2] * 11, 50)
    few = dense_scores(problem(table, BDeu(), max_parents=1))
    full = dense_scores(problem(table, BDeu()))
    kept = few.log_scores.isfinite()
    assert kept.sum() == 11 * 11
    torch.testing.assert_close(few.log_scores[kept], full.log_scores[kept])


def test_agent_sets_without_agents() -> None:
    assert sets_of_agents(TABLES["plain"][0]) is None


@pytest.mark.cuda
@pytest.mark.parametrize("case", TABLES)
def test_on_cuda(case: str) -> None:
    table, score = TABLES[case]
    here = dense_scores(problem(table, score))
    there = dense_scores(problem(table.to("cuda"), score))
    assert isinstance(there, DenseScores)
    assert there.log_scores.is_cuda
    torch.testing.assert_close(there.log_scores.cpu(), here.log_scores, rtol=0, atol=1e-7)
    listed = listed_scores(problem(table, score), max_parents=2)
    for a, b in zip(
        listed.log_scores,
        listed_scores(problem(table.to("cuda"), score), max_parents=2).log_scores,
        strict=True,
    ):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-7)
