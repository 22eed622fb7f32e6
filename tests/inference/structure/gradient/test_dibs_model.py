"""The Pyro model of DiBS against densities by hand, its mechanisms, and closed forms."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.gradient.dibs_model import DiBSModel, MechanismName, dibs_model
from ppgen.inference.structure.gradient.dibs_stein import log_density, score_surrogate
from ppgen.inference.structure.gradient.latent_graph import Edges, hard_graphs, scores, soft_graph
from ppgen.inference.structure.gradient.mechanisms import Linear, Network, Noise
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.ops.dags import is_acyclic
from tests.inference.structure.gradient.linear_sem import as_table, random_sem

_CLAMPED = torch.rand(30, 3, generator=torch.Generator().manual_seed(5)) < 0.25
_TABLE = as_table(random_sem(3, 2, 30, 0).table.values, _CLAMPED)
_PRIOR = GraphPrior(edges=torch.full((3, 3), 0.2, dtype=torch.float64).fill_diagonal_(0))


def _model(mechanism: MechanismName = "linear", **options: float | None) -> DiBSModel:
    return dibs_model(_TABLE, mechanism=mechanism, prior=_PRIOR, num_hidden=4, **options)  # type: ignore[arg-type]


def _draw(model: DiBSModel, seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace()
    drawn = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    return {name: value for name, value in drawn.items() if isinstance(value, Tensor) and name != "data"}


def _log_normal(x: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return (-0.5 * ((x - mean) / scale).square() - scale.log() - math.log(2 * math.pi) / 2).sum()


@pytest.mark.parametrize("mechanism", ["linear", "network"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"noise_scale": 0.7}], ids=["", "relaxed", "fixed"]
)
def test_density_of_the_program_is_that_by_hand(
    mechanism: MechanismName, options: dict[str, float | None]
) -> None:
    model = _model(mechanism, **options)
    values = _draw(model)
    trace = poutine.trace(poutine.condition(model, values)).get_trace(3.0, 7.0)
    found = trace.log_prob_sum()
    n, x = 3, model.mechanism.values
    z = values["z"]
    u, v = z[..., 0], z[..., 1]
    logits = 3.0 * u @ v.T
    off = 1 - torch.eye(n, dtype=torch.float64)
    probabilities = logits.sigmoid() * off
    graph = probabilities
    expected = _log_normal(z, 0.0, 1 / math.sqrt(n))
    walks = torch.linalg.matrix_power(torch.eye(n, dtype=torch.float64) + probabilities / n, n).trace() - n
    expected = expected - 7.0 * walks
    if "noise" in values:
        noise = values["noise"]
        expected = expected - (noise + 2 * torch.nn.functional.softplus(-noise)).sum()
        graph = ((logits + noise) / 0.5).sigmoid() * off
    expected = expected + math.log(0.2 / 0.8) * graph.sum()
    variance = values.get("variance", torch.full((n,), 0.49, dtype=torch.float64))
    if "variance" in values:
        expected = expected + (math.log(0.1) - 2 * variance.log() - 0.1 / variance).sum()
    theta = values["theta"]
    if mechanism == "linear":
        expected = expected + _log_normal(theta, 0.0, variance.sqrt().expand(n, n))
    else:
        scale = torch.ones(n, 4 * (n + 2) + 1, dtype=torch.float64)
        scale[:, 16:20] = 0.5
        expected = expected + _log_normal(theta, 0.0, scale)
    for j in range(n):
        rows = x[~_CLAMPED[:, j]]
        if mechanism == "linear":
            coefficients = graph[:, j] * theta[:, j]
            mean = rows[:, j].mean() + (rows - rows.mean(0)) @ coefficients
        else:
            first = theta[j, :12].view(n, 4)
            hidden = (rows @ (graph[:, j, None] * first) + theta[j, 12:16]).tanh()
            mean = hidden @ theta[j, 16:20] + theta[j, 20]
        expected = expected + _log_normal(rows[:, j], mean, variance[j].sqrt())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("mechanism", ["linear", "network"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"noise_scale": 0.7}], ids=["", "relaxed", "fixed"]
)
def test_density_of_particles_is_that_of_the_program(
    mechanism: MechanismName, options: dict[str, float | None]
) -> None:
    model = _model(mechanism, **options)
    draws = [_draw(model, seed) for seed in range(3)]
    fixed = torch.full((3,), 0.49, dtype=torch.float64)
    noise = torch.stack([d["noise"] for d in draws])[None] if "noise" in draws[0] else None
    parts = [
        torch.stack([d["z"] for d in draws]),
        torch.stack([d["theta"] for d in draws]),
        torch.stack([d.get("variance", fixed) for d in draws]).log(),
    ]
    found = log_density(model, parts, 3.0, 7.0, noise)
    for value, draw, log_variance in zip(found, draws, parts[2], strict=True):
        trace = poutine.trace(poutine.condition(model, draw)).get_trace(3.0, 7.0)
        expected = trace.log_prob_sum(lambda name, site: name != "noise")
        if "variance" in draw:
            expected = expected + log_variance.sum()  # the density of the logarithm
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


def test_evidence_is_the_integral_over_parameters() -> None:
    for fixed in (None, 0.7):
        model = _model(noise_scale=fixed)
        assert isinstance(model.mechanism, Linear)
        graph = torch.tensor([[0, 0.6, 1], [0, 0, 0.3], [0, 0, 0]], dtype=torch.float64)
        found = model.mechanism.log_evidence(graph, model.noise)
        x = model.mechanism.values
        for j in range(3):
            rows = x[~_CLAMPED[:, j]]
            rows = rows - rows.mean(0)
            design = rows * graph[:, j]
            # The coefficients integrated out leave a Gaussian with this covariance times the variance.
            covariance = torch.eye(len(rows), dtype=torch.float64) + design @ design.T
            zeros = torch.zeros(len(rows), dtype=torch.float64)

            def given(v: Tensor, y: Tensor = rows[:, j], c: Tensor = covariance, m: Tensor = zeros) -> Tensor:
                return torch.distributions.MultivariateNormal(m, v * c).log_prob(y)

            if fixed is not None:
                torch.testing.assert_close(found[j], given(torch.tensor(0.49, dtype=torch.float64)))
                continue
            # The trapezoidal rule converges geometrically for this integrand in log v.
            log_v = torch.linspace(-12, 12, 1201, dtype=torch.float64)
            v = log_v.exp()
            log_prior = math.log(0.1) - 2 * v.log() - 0.1 / v
            terms = torch.stack([given(each) for each in v]) + log_prior + log_v + math.log(0.02)
            torch.testing.assert_close(found[j], terms.logsumexp(0), rtol=1e-8, atol=0)


def test_evidence_of_draws_is_that_of_each() -> None:
    model = _model()
    assert isinstance(model.mechanism, Linear)
    graphs = (torch.rand(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    torch.diagonal(graphs, dim1=-2, dim2=-1).zero_()
    torch.testing.assert_close(
        model.mechanism.log_evidence_of_draws(graphs, model.noise),
        model.mechanism.log_evidence(graphs, model.noise),
    )


@pytest.mark.parametrize("marginal", [True, False], ids=["marginal", "joint"])
def test_score_gradient_is_unbiased_in_the_limit_of_all_graphs(marginal: bool) -> None:
    # With one free edge, the average over graphs is a sum of two terms. Draws in proportion to their
    # probabilities make the estimate of its gradient exact.
    constraints = Constraints(
        forbidden=[("x0", "x2"), ("x2", "x0"), ("x1", "x2"), ("x2", "x1"), ("x1", "x0")]
    )
    model = dibs_model(_TABLE, constraints=constraints, num_latent=1)
    z = torch.tensor([0.9, 0.4, -0.3, 1.2, 0.5, 0.7], dtype=torch.float64).view(1, 3, 1, 2)
    z[0, 0, 0, 0], z[0, 1, 0, 1] = 1.0, math.log(3) / 2  # probability 3/4 at alpha = 2
    parts = [z.requires_grad_()]
    if not marginal:
        draw = _draw(model)
        parts += [draw["theta"][None].requires_grad_(), draw["variance"].log()[None].requires_grad_()]
    noise = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    noise[0, 0, 0, 1] = -10.0  # one draw in four has no edge
    found = torch.autograd.grad(score_surrogate(model, parts, 2.0, 5.0, noise).sum(), parts)

    graphs = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    graphs[1, 0, 0, 1] = 1.0
    p = (2.0 * scores(parts[0]))[0, 0, 1].sigmoid()
    log_p = torch.stack([(1 - p).log(), p.log()])
    if marginal:
        assert isinstance(model.mechanism, Linear)
        given = model.mechanism.log_evidence(graphs, model.noise).sum(-1)[:, 0]
        rest = torch.zeros((), dtype=torch.float64)
    else:
        variance = parts[2].exp()
        given = model.log_likelihood(graphs, parts[1], variance).sum(-1)[:, 0]
        rest = (model.log_parameters(parts[1], variance) + parts[2].sum(-1)).sum()
    exact = model.log_prior_z(parts[0], 2.0, 5.0).sum() + rest + (given + log_p).logsumexp(0)
    for ours, expected in zip(found, torch.autograd.grad(exact, parts), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mechanism", ["linear", "network"])
def test_gradients_are_finite_differences(mechanism: MechanismName) -> None:
    model = _model(mechanism, temperature=0.5)
    draw = _draw(model)
    noise = draw["noise"][None, None]
    parts = tuple(
        t[None].clone().requires_grad_() for t in (draw["z"], draw["theta"], draw["variance"].log())
    )
    assert torch.autograd.gradcheck(lambda *p: log_density(model, p, 3.0, 7.0, noise), parts)


@pytest.mark.parametrize("mechanism", ["linear", "network"])
def test_set_cells_do_not_touch_their_variable(mechanism: MechanismName) -> None:
    other = _TABLE.values.clone()
    other[_CLAMPED[:, 1], 1] += 100.0

    def gradient(table_values: Tensor) -> Tensor:
        model = dibs_model(as_table(table_values, _CLAMPED), mechanism=mechanism, num_hidden=4)
        draw = _draw(model)
        graph = soft_graph(draw["z"], model.edges, 3.0).detach().requires_grad_()
        by_node = model.log_likelihood(graph, draw["theta"], draw["variance"])
        return torch.autograd.grad(by_node.sum(), graph)[0]

    ours, changed = gradient(_TABLE.values), gradient(other)
    # Column 1 is the mechanism of x1; the children of x1 do see the values that it was set to.
    torch.testing.assert_close(ours[:, 1], changed[:, 1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours[1, 0], changed[1, 0])


def test_runs_in_pyros_own_machinery() -> None:
    model = _model(temperature=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, potential, _, _ = initialize_model(model, (3.0, 7.0))
    draw = _draw(model)
    values = {**draw, "variance": draw["variance"].log()}
    trace = poutine.trace(poutine.condition(model, draw)).get_trace(3.0, 7.0)
    expected = -(trace.log_prob_sum() + values["variance"].sum())
    torch.testing.assert_close(potential(values), expected)
    assert not pyro.get_param_store().keys()


def test_hard_graphs_are_acyclic_and_known_edges_hold() -> None:
    z = torch.randn(40, 5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = ~torch.eye(5, dtype=torch.bool)
    allowed, required = off.clone(), torch.zeros_like(off)
    allowed[0, 1], required[3, 2], allowed[2, 3] = False, True, False
    edges = Edges(allowed, required, torch.zeros(5, 5, dtype=torch.float64), max_parents=2)
    found = hard_graphs(z, edges)
    assert bool(is_acyclic(found.adjacency).all())
    assert not bool(found.adjacency[:, 0, 1].any())
    assert bool(found.adjacency[:, 3, 2].all())
    assert int(found.adjacency.sum(1).max()) <= 2
    assert 0 < int(found.repaired.sum()) < 40
    soft = soft_graph(z, edges, 4.0)
    assert bool((soft[:, 3, 2] == 1).all())
    assert bool((soft[:, 0, 1] == 0).all())
    # Where nothing had to be repaired, and there are few parents, the graph is the sign of the scores.
    wide = Edges(off, torch.zeros_like(off), edges.log_odds, max_parents=4)
    plain = hard_graphs(z, wide)
    whole = ~plain.repaired
    assert torch.equal(plain.adjacency[whole], (scores(z) > 0)[whole] & off)


def test_the_weakest_edge_of_a_cycle_goes() -> None:
    score = torch.tensor([[0.0, 3.0, -1.0], [-1.0, 0.0, 1.0], [2.0, -1.0, 0.0]], dtype=torch.float64)
    z = torch.stack([score, torch.eye(3, dtype=torch.float64)], dim=-1)[None]
    torch.testing.assert_close(scores(z)[0], score)
    off = ~torch.eye(3, dtype=torch.bool)
    edges = Edges(off, torch.zeros_like(off), torch.zeros_like(score), max_parents=2)
    assert hard_graphs(z, edges).adjacency[0].nonzero().tolist() == [[0, 1], [2, 0]]


def test_parameters_that_matter() -> None:
    graph = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    network = Network(
        torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.bool), num_hidden=3
    )
    assert network.shape == (2, 13)
    used = network.used(graph)
    assert used.sum(-1).tolist() == [7, 10]
    theta = torch.randn(2, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(network.squares(graph, theta), network.squares(graph, theta * used))


def test_refuses_a_prior_that_it_has_no_place_for() -> None:
    with pytest.raises(ConfigError, match="fan_in"):
        dibs_model(_TABLE, prior=GraphPrior(fan_in="cardinality"))
    with pytest.raises(ConfigError, match="order"):
        dibs_model(_TABLE, prior=GraphPrior(kind="order"))
    with pytest.raises(ConfigError, match="mechanism"):
        dibs_model(_TABLE, mechanism="cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alpha"):
        dibs_model(_TABLE, alpha=0.0)


def test_noise_with_a_known_scale_has_no_prior() -> None:
    assert float(Noise(0.5).log_prior(torch.ones(3, dtype=torch.float64))) == 0
