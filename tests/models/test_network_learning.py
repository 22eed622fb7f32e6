"""Learning the parameters of Bayesian networks, and trees, from complete rows and from rows with gaps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor

import ppgen
from ppgen.models import BayesianNetwork
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean
from tests.models.networks import (
    COLLIDER,
    DIAMOND,
    MIXED,
    MIXED_SIZES,
    SIZES,
    discrete,
    gaussian,
    matrix,
    mixed,
    mixture,
)


def gappy(model: BayesianNetwork, num: int, share: float) -> Tensor:
    x = model.sample(num, seed=5)
    with forked_rng(6):
        return torch.where(torch.rand(x.shape) < share, math.nan, x)


def test_complete_rows_give_posterior_means_of_counts() -> None:
    model = discrete()
    x = model.sample(300, seed=1)
    fresh = BayesianNetwork((5,), graph=DIAMOND, cardinalities=SIZES, equivalent_sample_size=2.0).double()
    assert fresh.learn(x) == []
    counts = torch.full((3, 2, 3), 2.0 / 18, dtype=torch.float64)
    for row in x.long().tolist():
        counts[row[1], row[2], row[3]] += 1
    torch.testing.assert_close(fresh.table("x3"), counts / counts.sum(-1, keepdim=True))


def test_one_iteration_is_the_answer_of_fit() -> None:
    x = discrete().sample(100, seed=1)
    learnt = BayesianNetwork((5,), graph=DIAMOND, cardinalities=SIZES).double()
    learnt.learn(x)
    fitted = BayesianNetwork((5,), graph=DIAMOND, cardinalities=SIZES).double()
    ppgen.fit(fitted, x, epochs=1, progress=False)
    for a, b in zip(learnt.parameters(), fitted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_fit_takes_rows_with_gaps() -> None:
    x = gappy(discrete(), 80, 0.2)
    fitted = BayesianNetwork((5,), graph=DIAMOND, cardinalities=SIZES).double()
    result = ppgen.fit(fitted, x, epochs=8, progress=False)
    totals = [float(row["loss"] or 0) + float(row["penalty"] or 0) for row in result.history]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(totals))
    assert totals[-1] < totals[0]


def test_cells_that_were_set_say_nothing_of_their_variable() -> None:
    model = discrete()
    x = model.sample(400, seed=1)
    clamped = torch.zeros_like(x, dtype=torch.bool)
    clamped[200:, 3] = True
    x[200:, 3] = 1.0
    fresh, oracle = (BayesianNetwork((5,), graph=DIAMOND, cardinalities=SIZES).double() for _ in range(2))
    fresh.learn(x, clamped=clamped)
    oracle.learn(x[:200])
    torch.testing.assert_close(fresh.table("x3"), oracle.table("x3"))
    oracle.learn(x)
    torch.testing.assert_close(fresh.table("x4"), oracle.table("x4"))
    assert not torch.allclose(fresh.table("x3"), oracle.table("x3"), atol=0.05)


@pytest.mark.parametrize("make", [discrete, gaussian, mixed], ids=["discrete", "gaussian", "mixed"])
def test_gaps_are_learnt_from_without_ever_getting_worse(make: Any) -> None:
    x = gappy(make(), 60, 0.25)
    edges, sizes = (MIXED, MIXED_SIZES) if make is mixed else (DIAMOND, SIZES if make is discrete else 0)
    fresh = BayesianNetwork((5,), graph=edges, cardinalities=sizes).double()
    trace = fresh.learn(x, max_steps=400, tolerance=1e-13)
    assert len(trace) > 5
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(trace))
    goal = fresh.log_likelihood(x).value.sum() + fresh.log_prior()
    gradients = torch.autograd.grad(goal, [p for p in fresh.parameters() if p.numel()])
    # A fixed point is a stationary point; EM converges linearly, hence not to rounding error.
    assert max(float(g.abs().max()) for g in gradients) < 1e-3
    before = BayesianNetwork((5,), graph=edges, cardinalities=sizes).double()
    before.learn(x, max_steps=1)
    start = before.log_likelihood(x).value.sum() + before.log_prior()
    first = torch.autograd.grad(start, [p for p in before.parameters() if p.numel()])
    assert max(float(g.abs().max()) for g in first) > 0.1


def test_a_mixture_with_gaps_never_gets_worse() -> None:
    x = gappy(mixture(), 80, 0.2)
    graphs = torch.stack([matrix(DIAMOND), matrix(COLLIDER)])
    fresh = BayesianNetwork((5,), graph=graphs, cardinalities=SIZES).double()
    trace = fresh.learn(x, max_steps=15, tolerance=0.0)
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(trace))
    totals = []
    for _ in range(10):
        step = fresh.em_step(x)
        totals.append(float(step.log_likelihood + step.log_prior))
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(totals))


def test_drawn_parameters_have_the_moments_of_their_posterior() -> None:
    model = BayesianNetwork((2,), graph=[(0, 1)], cardinalities=(2, 3)).double()
    x = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 2], [1, 0], [1, 2], [1, 2]], dtype=torch.float64)
    model.learn(x)
    draws = torch.stack([model.draw_parameters(seed=s).table("x1")[1] for s in range(500)])
    alpha = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64) + 1 / 6
    mean = alpha / alpha.sum()
    assert_mean(draws, mean)
    assert_mean((draws - mean) ** 2, mean * (1 - mean) / (alpha.sum() + 1))
    with pytest.raises(AssertionError):  # the planted defect: the spread of another prior strength
        assert_mean((draws - mean) ** 2, mean * (1 - mean) / (alpha.sum() + 4))


def test_drawn_regressions_scatter_like_the_normal_inverse_gamma() -> None:
    model = BayesianNetwork((2,), graph=[(0, 1)], cardinalities=0).double()
    x = gaussian().sample(30, seed=1)[:, :2]
    model.learn(x)
    slope = model.regression("x1")[0][1]
    draws = torch.stack([model.draw_parameters(seed=s).regression("x1")[0] for s in range(500)])
    assert_mean(draws[:, 1], slope)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    u = torch.stack([torch.ones(30, dtype=torch.float64), z[:, 0]], -1)
    precision = u.T @ u + torch.eye(2, dtype=torch.float64)
    w = torch.linalg.solve(precision, u.T @ z[:, 1])
    variance = (1 + (z[:, 1] ** 2).sum() - w @ u.T @ z[:, 1]) / 31  # rate over (shape - 1), both doubled
    spread = variance * torch.linalg.inv(precision)[1, 1] * (x[:, 1].std() / x[:, 0].std()) ** 2
    assert_mean((draws[:, 1] - slope) ** 2, spread)


@pytest.mark.parametrize("make", [discrete, gaussian, mixed], ids=["discrete", "gaussian", "mixed"])
def test_priors_as_sites_have_the_posterior_that_is_drawn_from(make: Any) -> None:
    """Joint density of the program over that of the posterior is the evidence, whatever the parameters."""
    model = make()
    x = model.sample(40, seed=1)
    model.learn(x)
    sizes = model.structure.cardinalities
    columns = {n: x[:, v].long() if sizes[v] else x[:, v] for v, n in enumerate(model.labels.names)}
    evidence = []
    for seed in range(4):
        drawn = model.draw_parameters(seed=seed)
        sites, log_posterior = {}, 0.0
        views = zip(model._views(model.structure), drawn._views(model.structure), strict=True)
        for number, ((node, view), (_, new)) in enumerate(views):
            name, shape = model.labels.names[node], model.structure.configurations(number)
            if "logits" in view:
                table = new["logits"].softmax(-1)
                alpha = view["counts"] + 1 / table.numel()
                log_posterior += float(torch.distributions.Dirichlet(alpha).log_prob(table).sum())
                sites[f"{name}.table"] = table.reshape(*shape, -1)
                continue
            variance = (2 * new["log_scales"]).exp()
            a = 1 + (1 + view["regression_counts"]) / 2
            b = (2 * view["log_scales"]).exp() * (a - 1)
            log_posterior += float(torch.distributions.InverseGamma(a, b).log_prob(variance).sum())
            size = new["weights"].shape[-1]
            precision = view["precisions"].reshape(-1, size, size) + torch.eye(size, dtype=torch.float64)
            normal = torch.distributions.MultivariateNormal(
                view["weights"], precision_matrix=precision / variance[:, None, None]
            )
            log_posterior += float(normal.log_prob(new["weights"]).sum())
            sites[f"{name}.variance"] = variance.reshape(shape)
            sites[f"{name}.weights"] = new["weights"].reshape(*shape, -1)
        program = poutine.condition(model.node_model, data=sites)
        trace: Any = poutine.trace(program).get_trace(columns, parameters="prior")
        evidence.append(float(trace.log_prob_sum()) - log_posterior)
    assert evidence == pytest.approx([evidence[0]] * 4, abs=1e-7)


def test_digits_by_a_tree() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(sklearn.load_digits().images >= 8).float()
    model = BayesianNetwork((8, 8))
    ppgen.fit(model, x[:1437], epochs=2, progress=False)
    assert float(-model.log_likelihood(x[1437:]).value.detach().mean()) == pytest.approx(20.56, abs=0.01)
