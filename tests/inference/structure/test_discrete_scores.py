"""BDeu, BDe, K2, BIC and AIC: against pgmpy, against plain loops, and under interventions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.bde import BDe
from ppgen.inference.structure.scores.discrete import AIC, BIC, K2, BDeu
from ppgen.inference.structure.scores.registry import score_from, score_names
from ppgen.inference.structure.table import Intervention, Table
from ppgen.ops.dags import cpdag, enumerate_dags
from tests.inference.structure.score_tables import (
    SOFT,
    continuous_table,
    dirichlet_score,
    discrete_table,
    mixed_table,
    random_families,
)

LEVELS = (2, 3, 4, 2, 3)


@pytest.mark.parametrize("name", ["BDeu", "K2", "BIC", "AIC"])
def test_equal_to_pgmpy(name: str) -> None:
    import pandas as pd
    from pgmpy import structure_score

    table = discrete_table((2, 3, 4, 2, 3, 5), 700)
    names = list(table.names)
    frame = pd.DataFrame(table.codes.numpy(), columns=names).astype("category")
    levels = {n: list(range(c)) for n, c in zip(names, table.cardinalities, strict=True)}
    options = {"equivalent_sample_size": 2.5} if name == "BDeu" else {}
    peer = getattr(structure_score, name)(frame, state_names=levels, **options)
    ours = {"BDeu": BDeu(2.5), "K2": K2(), "BIC": BIC(), "AIC": AIC()}[name]
    for node, parents in random_families(6, 4, 60):
        expected = peer.local_score(names[node], tuple(names[p] for p in parents))
        if name == "K2":
            # pgmpy adds log Gamma(r) for configurations that do not occur and forgets to take it off.
            occurring = len(np.unique(table.codes[:, list(parents)].numpy(), axis=0))
            absent = math.prod(table.cardinalities[p] for p in parents) - (occurring if parents else 1)
            expected -= absent * math.lgamma(table.cardinalities[node])
        assert float(ours.local(table, node, [parents])) == pytest.approx(expected, rel=0, abs=1e-8)


def test_a_level_that_the_data_lack_counts() -> None:
    table = discrete_table((2, 2), 50)
    wider = dataclasses.replace(table.variables[1], levels=(0, 1, 2))
    other = dataclasses.replace(table, variables=(table.variables[0], wider))
    expected = dirichlet_score(table.values, 0, (1,), (2, 3), lambda *_: 1 / 6)
    assert float(BDeu().local(other, 0, [(1,)])) == pytest.approx(expected, abs=1e-10)
    assert float(BDeu().local(table, 0, [(1,)])) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("node", "parents"), random_families(5, 3, 6, seed=3), ids=str)
class TestInterventions:
    def tables(self, **fields: Any) -> tuple[Table, torch.Tensor]:
        table = discrete_table(LEVELS, 120, clamp=0.3, **fields)
        return table, table.clamped

    def test_perfect(self, node: int, parents: tuple[int, ...]) -> None:
        table, clamped = self.tables(intervention=Intervention.PERFECT)
        cells = math.prod(LEVELS[p] for p in (*parents, node))
        expected = dirichlet_score(
            table.values[~clamped[:, node]], node, parents, LEVELS, lambda *_: 2 / cells
        )
        assert float(BDeu(2.0).local(table, node, [parents])) == pytest.approx(expected, abs=1e-9)

    def test_imperfect(self, node: int, parents: tuple[int, ...]) -> None:
        table, clamped = self.tables(intervention=Intervention.IMPERFECT)
        expected = sum(
            dirichlet_score(table.values[rows], node, parents, LEVELS, lambda *_: 1.0)
            for rows in (clamped[:, node], ~clamped[:, node])
        )
        assert float(K2().local(table, node, [parents])) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("score", [BDeu(2.0), K2(), BDe(2.0)], ids=lambda s: s.name)
    def test_soft(self, node: int, parents: tuple[int, ...], score: Score) -> None:
        pushed_to = torch.tensor([1, 2, 0, 1, 1])
        table, clamped = self.tables(**SOFT, pushed_to=pushed_to)
        cells = math.prod(LEVELS[p] for p in (*parents, node))
        base = 1.0 if score.name == "k2" else 2 / cells

        def pushed(configuration: object, level: int) -> float:
            return base + (3.0 if level == pushed_to[node] else 0.0)

        set_rows = clamped[:, node]
        expected = dirichlet_score(table.values[~set_rows], node, parents, LEVELS, lambda *_: base)
        expected += dirichlet_score(table.values[set_rows], node, parents, LEVELS, pushed)
        assert float(score.local(table, node, [parents])) == pytest.approx(expected, abs=1e-9)

    def test_soft_reaches_from_imperfect_to_perfect(self, node: int, parents: tuple[int, ...]) -> None:
        table, clamped = self.tables(intervention=Intervention.IMPERFECT)
        values = torch.where(clamped, torch.ones(5, dtype=torch.float64), table.values)
        table = dataclasses.replace(table, values=values)

        def score(**fields: Any) -> float:
            return float(BDeu().local(dataclasses.replace(table, **fields), node, [parents]))

        one = torch.ones(5, dtype=torch.int64)
        weak = score(intervention=Intervention.SOFT, push=1e-11, pushed_to=one)
        strong = score(intervention=Intervention.SOFT, push=1e7, pushed_to=one)
        assert weak == pytest.approx(score(), abs=1e-6)
        # Each set row has probability (w + a + i) / (w + a' + i), a' <= 1, and is at most 1 / w short of 1.
        assert strong == pytest.approx(score(intervention=Intervention.PERFECT), abs=120 / 1e7 + 1e-6)


@pytest.mark.parametrize("score", [BDeu(), K2(), BIC(), AIC(), BDe()], ids=lambda s: s.name)
def test_a_node_that_was_set_in_every_row_scores_zero(score: Score) -> None:
    table = discrete_table((2, 3, 2), 40, intervention=Intervention.PERFECT)
    table.clamped[:, 1] = True
    assert score.local(table, 1, [(), (0,), (0, 2)]).tolist() == [0, 0, 0]


class TestBDe:
    def test_a_uniform_prior_network_is_bdeu(self) -> None:
        table = discrete_table(LEVELS, 200)
        sets = [(), (1,), (2, 3), (4, 1, 2)]
        torch.testing.assert_close(
            BDe(3.0).local(table, 0, sets), BDeu(3.0).local(table, 0, sets), rtol=0, atol=1e-9
        )

    def test_marginals_are_a_joint_table(self) -> None:
        table = discrete_table((2, 3, 2), 100)
        marginals = {"x0": [0.2, 0.8], "x1": [0.5, 0.3, 0.2]}
        joint = torch.einsum(
            "a,b,c->abc", torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.5, 0.5])
        )
        sets = [(), (0,), (2, 0)]
        first, second = BDe(4.0, marginals).local(table, 1, sets), BDe(4.0, joint).local(table, 1, sets)
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
        expected = dirichlet_score(
            table.values,
            1,
            (2, 0),
            (2, 3, 2),
            lambda c, k: 4 * [0.5, 0.3, 0.2][k] * [0.2, 0.8][c[1]] * 0.5,
        )
        assert float(first[2]) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            ({"nobody": [0.5, 0.5]}, "nobody"),
            ({"x0": [0.5, 0.3, 0.2]}, "shape"),
            ({"x0": [0.0, 1.0]}, "positive"),
            ({"x0": [0.5, 0.6]}, "sum to 1"),
            (torch.ones(2, 2), "all variables"),
        ],
        ids=["name", "shape", "zero", "sum", "joint"],
    )
    def test_bad_priors(self, prior: object, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            BDe(1.0, prior).check(discrete_table((2, 3, 2), 10))


@pytest.mark.parametrize(
    ("score", "equivalent"),
    [
        (BDeu(), True),
        (BDe(2.0, {"x0": [0.2, 0.8]}), True),
        (BIC(), True),
        (AIC(), True),
        (K2(), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_markov_equivalent_graphs_score_alike(score: Score, equivalent: bool) -> None:
    table = discrete_table((2, 3, 2, 4), 80)
    assert all_within_classes_equal(score, table) is equivalent


def all_within_classes_equal(score: Score, table: Table) -> bool:
    """Whether the scores of all DAGs depend on their equivalence class only."""
    graphs = enumerate_dags(table.num_variables)
    totals = torch.zeros(len(graphs), dtype=torch.float64)
    for node in range(table.num_variables):
        sets = [graph[:, node].nonzero()[:, 0].tolist() for graph in graphs]
        totals += score.local(table, node, sets)
    classes = torch.unique(cpdag(graphs).flatten(1).long(), dim=0, return_inverse=True)[1]
    num = int(classes.max()) + 1
    low = torch.full((num,), torch.inf, dtype=torch.float64).scatter_reduce(0, classes, totals, "amin")
    high = torch.full((num,), -torch.inf, dtype=torch.float64).scatter_reduce(0, classes, totals, "amax")
    return bool((high - low).max() < 1e-8)


class TestRegistry:
    def test_defaults(self) -> None:
        assert score_from(None, discrete_table((2, 2), 9)) == BDeu(1.0)
        assert score_from(None, continuous_table(2, 9)).name == "bge"
        assert score_from(None, mixed_table((2, 0), 9)).name == "conditional_gaussian_bic"

    def test_names(self) -> None:
        assert [score_from(n, discrete_table((2, 2), 9)).name for n in ("BDeu", "k2")] == ["bdeu", "k2"]
        assert len(score_names()) == 8
        assert all(isinstance(s, Score) for s in (BDeu(), BDe(), K2(), BIC(), AIC()))

    @pytest.mark.parametrize("score", ["bd", 3, BDeu], ids=str)
    def test_unknown(self, score: Any) -> None:
        with pytest.raises(ConfigError, match="score"):
            score_from(score, discrete_table((2, 2), 9))


class TestBadInput:
    @pytest.mark.parametrize("score", [BDeu(), BDe(), K2(), BIC(), AIC()], ids=lambda s: s.name)
    def test_continuous_columns(self, score: Score) -> None:
        with pytest.raises(ConfigError, match="x1 is continuous"):
            score.check(mixed_table((2, 0), 9))

    @pytest.mark.parametrize("value", [math.nan, -1.0, 2.0, 0.5], ids=str)
    def test_values_that_are_no_levels(self, value: float) -> None:
        table = discrete_table((2, 2), 9)
        table.values[3, 1] = value
        with pytest.raises(DataError, match="x1"):
            BDeu().check(table)

    def test_empty(self) -> None:
        with pytest.raises(DataError, match="at least one row"):
            BDeu().check(discrete_table((2, 2), 0))

    @pytest.mark.parametrize("score", [BIC(), AIC()], ids=lambda s: s.name)
    def test_soft_interventions_without_a_prior(self, score: Score) -> None:
        with pytest.raises(ConfigError, match="soft"):
            score.check(discrete_table((2, 2), 9, **SOFT))

    def test_soft_interventions_to_an_unknown_level(self) -> None:
        table = discrete_table((2, 2), 9, clamp=0.5, **SOFT, pushed_to=torch.tensor([1, -1]))
        with pytest.raises(ConfigError, match="x1 to is unknown"):
            BDeu().check(table)

    @pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True], ids=str)
    def test_equivalent_sample_size(self, value: float) -> None:
        with pytest.raises(ConfigError, match="equivalent_sample_size"):
            BDeu(value)

    @pytest.mark.parametrize("parents", [(0,), (1, 1), (3,)], ids=str)
    def test_parents(self, parents: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match="parents"):
            BDeu().local(discrete_table((2, 2, 2), 9), 0, [parents])

    def test_too_many_states(self) -> None:
        table = discrete_table([2**16] * 5, 20)
        with pytest.raises(ConfigError, match="too many states"):
            BDeu().local(table, 0, [(1, 2, 3, 4)])
