"""BGe, Gaussian BIC and conditional-Gaussian BIC, against closed forms, regressions and pgmpy."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.conditional_gaussian import ConditionalGaussianBIC
from ppgen.inference.structure.scores.discrete import BIC
from ppgen.inference.structure.scores.gaussian import BGe, GaussianBIC
from ppgen.inference.structure.table import Intervention, Table
from tests.inference.structure.score_tables import (
    SOFT,
    agents,
    continuous_table,
    discrete_table,
    mixed_table,
    random_families,
)
from tests.inference.structure.test_discrete_scores import all_within_classes_equal


def sequential(rows: Tensor, alpha_mu: float, degrees: float, mean: Tensor, scale: Tensor) -> float:
    """Log evidence of a normal-Wishart model, one row's predictive multivariate t after another."""
    size, result = rows.shape[1], 0.0
    for row in rows:
        freedom = degrees - size + 1
        shape = scale * (alpha_mu + 1) / (alpha_mu * freedom)
        result += float(stats.multivariate_t.logpdf(row.numpy(), mean.numpy(), shape.numpy(), df=freedom))
        away = row - mean
        scale = scale + alpha_mu / (alpha_mu + 1) * torch.outer(away, away)
        mean = (alpha_mu * mean + row) / (alpha_mu + 1)
        alpha_mu, degrees = alpha_mu + 1, degrees + 1
    return result


class TestBGe:
    scale = torch.tensor(
        [[2.0, 0.5, 0.0, 0.1], [0.5, 1.5, 0.2, 0.0], [0.0, 0.2, 1.0, 0.3], [0.1, 0.0, 0.3, 3.0]],
        dtype=torch.float64,
    )

    @pytest.mark.parametrize(
        ("score", "alpha_mu", "alpha_w", "mean", "scale"),
        [
            (BGe(), 1.0, 6.0, torch.zeros(4), 0.5 * torch.eye(4)),
            (BGe(2.5, 7.5, [1.0, -1, 2, 0], scale), 2.5, 7.5, torch.tensor([1.0, -1, 2, 0]), scale),
        ],
        ids=["defaults", "all given"],
    )
    @pytest.mark.parametrize(("node", "parents"), random_families(4, 3, 5), ids=str)
    def test_is_a_ratio_of_evidences(
        self,
        score: BGe,
        alpha_mu: float,
        alpha_w: float,
        mean: Tensor,
        scale: Tensor,
        node: int,
        parents: tuple[int, ...],
    ) -> None:
        table = continuous_table(4, 25)

        def evidence(members: Sequence[int]) -> float:
            index = list(members)
            if not index:
                return 0.0
            part = scale.double()[index][:, index]
            degrees = alpha_w - 4 + len(index)
            return sequential(table.values[:, index], alpha_mu, degrees, mean.double()[index], part)

        expected = evidence([*parents, node]) - evidence(parents)
        assert float(score.local(table, node, [parents])) == pytest.approx(expected, abs=1e-8)

    def test_the_uncorrected_degrees_of_freedom_are_told_apart(self) -> None:
        # The formula of 1994 has alpha_w where it should have alpha_w - n + l.
        table = continuous_table(4, 25)
        wrong = sequential(
            table.values[:, :1], 1.0, 6.0, torch.zeros(1).double(), 0.5 * torch.eye(1).double()
        )
        assert abs(float(BGe().local(table, 0, [()])) - wrong) > 1e-3

    def test_a_prior_counts_without_rows(self) -> None:
        table = continuous_table(3, 20, intervention=Intervention.PERFECT)
        table.clamped[:, 1] = True
        assert BGe().local(table, 1, [(), (0, 2)]).tolist() == [0, 0]

    def test_bad_hyperparameters(self) -> None:
        table = continuous_table(3, 20)
        for score, message in [
            (BGe(alpha_w=2.0), "alpha_w"),
            (BGe(alpha_w=3.5), "prior_scale"),
            (BGe(prior_mean=[1.0]), "prior_mean"),
            (BGe(prior_scale=torch.ones(3, 3)), "positive-definite"),
            (BGe(prior_scale=-1.0), "positive-definite"),
            (BGe(prior_scale=torch.eye(2)), "3 x 3"),
        ]:
            with pytest.raises(ConfigError, match=message):
                score.check(table)
        with pytest.raises(ConfigError, match="alpha_mu"):
            BGe(0.0)


def regression(y: np.ndarray, x: np.ndarray) -> float:
    """The largest log likelihood of a linear regression with an intercept."""
    design = np.column_stack([np.ones(len(y)), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(stats.norm.logpdf(residual, scale=np.sqrt((residual**2).mean())).sum())


@pytest.mark.parametrize(("node", "parents"), random_families(5, 3, 6, seed=1), ids=str)
class TestGaussianBIC:
    def test_equal_to_pgmpy(self, node: int, parents: tuple[int, ...]) -> None:
        import pandas as pd
        from pgmpy.structure_score import BICGauss

        table = continuous_table(5, 90)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = BICGauss(pd.DataFrame(table.values.numpy(), columns=list(table.names)))
            expected = peer.local_score(f"x{node}", tuple(f"x{p}" for p in parents))
        assert float(GaussianBIC().local(table, node, [parents])) == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize("kind", ["perfect", "imperfect"])
    def test_interventions(self, node: int, parents: tuple[int, ...], kind: str) -> None:
        table = continuous_table(5, 150, clamp=0.3, intervention=Intervention(kind))
        groups = [~table.clamped[:, node]] + ([table.clamped[:, node]] if kind == "imperfect" else [])
        expected = 0.0
        for rows in groups:
            x = table.values[rows].numpy()
            expected += regression(x[:, node], x[:, list(parents)])
            expected -= (len(parents) + 2) / 2 * math.log(len(x))
        assert float(GaussianBIC().local(table, node, [parents])) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("score", [GaussianBIC(), BGe()], ids=lambda s: s.name)
def test_collinear_and_constant_parents_are_no_fault(score: Score) -> None:
    table = continuous_table(5, 60)
    values = table.values.clone()
    values[:, 3] = 2 * values[:, 1] - 1
    values[:, 4] = 5.0
    table = dataclasses.replace(table, values=values)
    score.check(table)
    found = score.local(table, 0, [(1,), (1, 3), (1, 4), (3, 4, 1, 2)])
    assert found.isfinite().all()
    if isinstance(score, GaussianBIC):
        x = values.numpy()
        penalty = 0.5 * math.log(60)
        expected = [regression(x[:, 0], x[:, c]) for c in ([1], [1], [1], [1, 2])]
        expected = [e - penalty * k for e, k in zip(expected, (3, 4, 4, 6), strict=True)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_few_rows_are_warned_of() -> None:
    with pytest.warns(DataWarning, match="fit any data"):
        GaussianBIC().check(continuous_table(5, 5))


class TestConditionalGaussian:
    table = mixed_table((3, 2, 0, 0, 2, 0), 400)

    def configurations(self, columns: Sequence[int]) -> list[Tensor]:
        if not columns:
            return [torch.ones(self.table.num_rows, dtype=torch.bool)]
        codes = self.table.codes[:, list(columns)]
        return [(codes == one).all(1) for one in torch.unique(codes, dim=0)]

    @pytest.mark.parametrize("continuous", [(), (3,), (3, 5)], ids=str)
    @pytest.mark.parametrize("discrete", [(), (0,), (0, 4)], ids=str)
    def test_a_continuous_node_is_a_regression_a_configuration(
        self, discrete: tuple[int, ...], continuous: tuple[int, ...]
    ) -> None:
        x = self.table.values
        expected = sum(
            regression(x[rows][:, 2].numpy(), x[rows][:, list(continuous)].numpy())
            for rows in self.configurations(discrete)
        )
        cells = math.prod(self.table.cardinalities[d] for d in discrete)
        expected -= 0.5 * math.log(400) * cells * (len(continuous) + 2)
        found = float(ConditionalGaussianBIC(0.0).local(self.table, 2, [(*continuous, *discrete)]))
        assert found == pytest.approx(expected, abs=1e-7)

    def test_a_discrete_node_is_classes_with_gaussian_parents(self) -> None:
        x = self.table.values[:, [2, 3]].numpy()
        joint = 0.0
        for rows in self.configurations((0, 1)):
            mine = x[rows.numpy()]
            gaussian = stats.multivariate_normal(mine.mean(0), np.cov(mine.T, bias=True))
            joint += gaussian.logpdf(mine).sum() + len(mine) * math.log(len(mine) / 400)
        for rows in self.configurations((1,)):
            mine = x[rows.numpy()]
            gaussian = stats.multivariate_normal(mine.mean(0), np.cov(mine.T, bias=True))
            joint -= gaussian.logpdf(mine).sum() + len(mine) * math.log(len(mine) / 400)
        joint -= 0.5 * math.log(400) * 2 * 2 * (1 + 2 + 3)
        found = float(ConditionalGaussianBIC(0.0).local(self.table, 0, [(2, 1, 3)]))
        assert found == pytest.approx(joint, abs=1e-7)

    def test_pooled_rows_are_those_of_all_configurations(self) -> None:
        x = self.table.values[:, [2, 3]].numpy()
        pooled, m = np.cov(x.T, bias=True), 5.0
        expected = 0.0
        for rows in self.configurations((0,)):
            mine = x[rows.numpy()]
            shrunk = (len(mine) * np.cov(mine.T, bias=True) + m * pooled) / (len(mine) + m)
            expected += stats.multivariate_normal(mine.mean(0), shrunk).logpdf(mine).sum()
            expected -= stats.norm(mine[:, 1].mean(), shrunk[1, 1] ** 0.5).logpdf(mine[:, 1]).sum()
        expected -= 0.5 * math.log(400) * 3 * 3
        found = float(ConditionalGaussianBIC(m).local(self.table, 2, [(3, 0)]))
        assert found == pytest.approx(expected, abs=1e-7)

    def test_configurations_with_few_rows_are_no_fault(self) -> None:
        table = mixed_table((6, 6, 0, 0), 40)
        assert ConditionalGaussianBIC().local(table, 2, [(0, 1, 3)]).isfinite().all()

    def test_tables_of_one_kind(self) -> None:
        discrete, sets = discrete_table((2, 3, 2), 90), [(), (1,), (1, 2)]
        expected = BIC().local(discrete, 0, sets)
        torch.testing.assert_close(ConditionalGaussianBIC().local(discrete, 0, sets), expected)
        continuous = continuous_table(3, 90)
        expected = GaussianBIC().local(continuous, 0, sets)
        torch.testing.assert_close(ConditionalGaussianBIC().local(continuous, 0, sets), expected)
        with_agents = dataclasses.replace(continuous, agents=agents(90, 1), max_agents=1)
        expected = GaussianBIC().local(with_agents, 0, [(3,), (1, 3)])
        torch.testing.assert_close(ConditionalGaussianBIC().local(with_agents, 0, [(3,), (1, 3)]), expected)

    def test_bad_pooled_rows(self) -> None:
        with pytest.raises(ConfigError, match="pooled_rows"):
            ConditionalGaussianBIC(-1.0)


@pytest.mark.parametrize(
    ("score", "table"),
    [
        (BGe(), continuous_table(4, 50)),
        (GaussianBIC(), continuous_table(4, 50)),
        (ConditionalGaussianBIC(), mixed_table((2, 0, 3, 0), 50)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_markov_equivalent_graphs_score_alike(score: Score, table: Table) -> None:
    assert all_within_classes_equal(score, table)


class TestBadInput:
    @pytest.mark.parametrize("score", [BGe(), GaussianBIC()], ids=lambda s: s.name)
    def test_categorical_columns(self, score: Score) -> None:
        with pytest.raises(ConfigError, match="x0 is categorical"):
            score.check(mixed_table((2, 0), 9))

    @pytest.mark.parametrize("score", [BGe(), GaussianBIC(), ConditionalGaussianBIC()], ids=lambda s: s.name)
    @pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
    def test_values(self, score: Score, value: float) -> None:
        table = continuous_table(3, 9)
        table.values[2, 1] = value
        with pytest.raises(DataError, match="x1"):
            score.check(table)

    @pytest.mark.parametrize("score", [BGe(), GaussianBIC(), ConditionalGaussianBIC()], ids=lambda s: s.name)
    def test_soft_interventions(self, score: Score) -> None:
        with pytest.raises(ConfigError, match="soft"):
            score.check(continuous_table(3, 9, **SOFT))
