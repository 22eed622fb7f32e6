"""Neural spline flows: exact mass, tails, the other layout through the contract, toys of known density."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor

from ppgen.datasets.toys import load_toy
from ppgen.distributions.flow_layers import Coupling, MaskedAutoregressive
from ppgen.errors import ConfigError
from ppgen.inference.svi import fit
from ppgen.models.neural_spline_flow import NeuralSplineFlow
from ppgen.nn.context import with_context
from ppgen.ops.random import forked_rng
from ppgen.ops.splines import MIN_SHARE
from ppgen.testing import CHECKS
from ppgen.testing.statistics import critical_z

Layout = Literal["coupling", "autoregressive"]
LAYOUTS = pytest.mark.parametrize("layout", ["coupling", "autoregressive"])
BOUND, NUM_BINS = 2.0, 5


def make(layout: Layout, num_layers: int = 1, context_dim: int = 0) -> NeuralSplineFlow:
    """A flow of the plane in float64, far from the identity."""
    with forked_rng(0), torch.no_grad():
        flow = NeuralSplineFlow(
            (2,),
            layout=layout,
            num_layers=num_layers,
            num_spline_bins=NUM_BINS,
            tail_bound=BOUND,
            hidden=(8, 8),
            context_dim=context_dim,
            activation="tanh",
        ).double()
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


# -- the mass of the plane ---------------------------------------------------------------


def knots(raw: Tensor) -> Tensor:
    """Where the splines with parameters ``(..., 3 K - 1)`` change piece: ``(..., K + 1)``."""
    shares = MIN_SHARE + (1 - NUM_BINS * MIN_SHARE) * raw[..., :NUM_BINS].softmax(-1)
    return 2 * BOUND * torch.cat([torch.zeros_like(shares[..., :1]), shares.cumsum(-1)], -1) - BOUND


def panels(breaks: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights ``(..., P)`` in panels between and around ``(..., K + 1)`` breaks."""
    outer = torch.tensor([-10.0, -5.0], dtype=breaks.dtype).expand(*breaks.shape[:-1], 2)
    ends = torch.cat([outer, breaks, -outer.flip(-1)], -1)
    nodes, weights = legendre(24)
    middle, half = (ends[..., 1:] + ends[..., :-1]) / 2, (ends[..., 1:] - ends[..., :-1]) / 2
    x = middle[..., None] + half[..., None] * nodes
    return x.flatten(-2), (half[..., None] * weights).flatten(-2)


def legendre(num: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the rule on [-1, 1], from the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, num, dtype=torch.float64)
    beside = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes, 2 * vectors[0].square()


@torch.no_grad()
def mass(flow: NeuralSplineFlow, context: Tensor | None = None) -> float:
    """The integral of the density of a flow of one layer: in each piece of its splines it is smooth."""
    layer = flow.layers[1]

    def raw(x: Tensor) -> Tensor:
        rows = None if context is None else context.expand(len(x), -1)
        if isinstance(layer, MaskedAutoregressive):
            return layer.network(x, rows).unflatten(-1, (-1, 2)).mT
        assert isinstance(layer, Coupling)
        outputs: Tensor = layer.network(with_context(x[:, layer.permutation[:1]], rows, layer.context_dim))
        return outputs[:, None]

    autoregressive = isinstance(layer, MaskedAutoregressive)
    first, second = [0, 1] if autoregressive else cast(Tensor, layer.permutation).tolist()
    start = torch.zeros(1, 2, dtype=torch.float64)
    breaks = knots(raw(start)[0, 0]) if autoregressive else torch.linspace(-4, 4, 9, dtype=torch.float64)
    a, weight_a = panels(breaks)
    rows = torch.zeros(len(a), 2, dtype=torch.float64)
    rows[:, first] = a
    b, weight_b = panels(knots(raw(rows)[:, -1]))
    x = torch.empty(*b.shape, 2, dtype=torch.float64)
    x[..., first], x[..., second] = a[:, None], b
    contexts = None if context is None else context.expand(b.numel(), -1)
    density = flow.log_likelihood(x.view(-1, 2), contexts).value.exp().view_as(b)
    return float((density * weight_b).sum(-1) @ weight_a)


@LAYOUTS
@pytest.mark.parametrize("context_dim", [0, 3])
def test_density_integrates_to_one(layout: Layout, context_dim: int) -> None:
    flow = make(layout, context_dim=context_dim)
    for label in range(max(context_dim, 1)):
        context = torch.eye(3, dtype=torch.float64)[label] if context_dim else None
        assert abs(mass(flow, context) - 1) < 1e-6


@LAYOUTS
def test_a_forgotten_log_determinant_is_caught_by_the_integral(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make(layout)
    layer = flow.layers[1]
    pull = layer.pull
    monkeypatch.setattr(layer, "pull", lambda x, context=None: (pull(x, context)[0], x.new_zeros(len(x))))
    assert abs(mass(flow) - 1) > 1e-3


@LAYOUTS
@pytest.mark.parametrize("context_dim", [0, 3])
def test_mass_is_one_where_noise_is_pushed(layout: Layout, context_dim: int) -> None:
    """Through several layers: the integral over noise, with autograd's Jacobian of the draws."""
    flow = make(layout, num_layers=3, context_dim=context_dim)
    t = torch.linspace(-7, 7, 60, dtype=torch.float64)
    z = torch.cartesian_prod(t, t).requires_grad_()
    labels = torch.full((len(z),), 1) if context_dim else None
    x = flow.decode(z, labels)
    rows = [torch.autograd.grad(x[:, i].sum(), z, retain_graph=True)[0] for i in range(2)]
    volume = torch.linalg.det(torch.stack(rows, 1)).abs()
    density = flow.log_likelihood(x.detach(), labels).value.exp()
    total = float((density * volume).detach().sum() * (t[1] - t[0]) ** 2)
    assert abs(total - 1) < 1e-6


# -- the rest ----------------------------------------------------------------------------


@LAYOUTS
def test_beyond_the_tails_it_is_a_standardised_normal(layout: Layout) -> None:
    flow = make(layout, num_layers=3)
    with forked_rng(0):
        flow.initialise(3 + 2 * torch.randn(500, 2, dtype=torch.float64))
    x = torch.tensor([[40.0, -60.0], [-50.0, 30.0]], dtype=torch.float64)
    z, slope = flow.layers[0].pull(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) + slope
    torch.testing.assert_close(flow.log_likelihood(x).value, normal)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "diagonal"},
        {"num_spline_bins": 1},
        {"num_spline_bins": 8.5},
        {"num_spline_bins": 501},
        {"tail_bound": 0.0},
        {"tail_bound": float("inf")},
    ],
    ids=str,
)
def test_options_that_make_no_spline_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        NeuralSplineFlow((2,), **options)


OTHERS = {
    "autoregressive": lambda: NeuralSplineFlow((2,), layout="autoregressive", num_layers=2, hidden=(8,)),
    "coupling-conditional": lambda: NeuralSplineFlow((2,), num_layers=2, hidden=(8,), context_dim=3),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("example", OTHERS.values(), ids=OTHERS)
def test_layouts_that_are_no_registered_example_keep_the_contract(example: Any, check: Any) -> None:
    check(example)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "toy", "tail_bound", "num_spline_bins"),
    [
        ("coupling", "two-moons", 4.0, 16),
        ("coupling", "eight-gaussians", 4.0, 16),
        ("coupling", "pinwheel", 5.0, 16),
        ("autoregressive", "two-moons", 4.0, 16),
        ("autoregressive", "eight-gaussians", 4.0, 16),
        # Their tails reach 14 and 24 standard deviations.
        ("coupling", "banana", 20.0, 24),
        ("coupling", "funnel", 20.0, 24),
    ],
)
def test_toys_of_known_density_are_met_within_a_fiftieth_of_a_nat(
    layout: Layout, toy: str, tail_bound: float, num_spline_bins: int
) -> None:
    data = load_toy(toy, num_train=400_000, num_test=20_000)
    assert data.truth is not None
    with forked_rng(0):
        flow = NeuralSplineFlow(
            (2,),
            layout=layout,
            num_layers=3 if layout == "autoregressive" else 6,
            num_spline_bins=num_spline_bins,
            tail_bound=tail_bound,
            hidden=(64, 64),
        )
    options: dict[str, Any] = {"learning_rate": 4e-3, "schedule": "cosine", "clip_norm": 5.0}
    fit(flow, data.train, epochs=3, batch_size=512, progress=False, device="cpu", **options)
    with torch.no_grad():
        gap = data.truth.log_prob(data.test.x) - flow.log_likelihood(data.test.x).value
    std_error = float(gap.std()) / math.sqrt(len(gap))
    assert float(gap.mean()) + critical_z() * std_error < 0.02
