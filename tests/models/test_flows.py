"""The flow families: densities that integrate to one, draws that follow them, every trap closed."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn

import ppgen
from ppgen.contract import (
    HasDecoder,
    HasEncoder,
    HasInitialiser,
    HasLogLikelihood,
    HasScore,
    Kind,
)
from ppgen.datasets.values import REAL, grid
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.models import iaf, maf, neural_spline_flow, real_nvp
from ppgen.models.flow import Flow
from ppgen.models.iaf import IAF
from ppgen.models.maf import MAF
from ppgen.models.neural_spline_flow import NeuralSplineFlow
from ppgen.models.real_nvp import RealNVP
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_same_distribution

Class = Callable[..., Flow]
spline_coupling = functools.partial(NeuralSplineFlow, layout="coupling", tail_bound=2.5)
spline_autoregressive = functools.partial(NeuralSplineFlow, layout="autoregressive", tail_bound=2.5)
NAMED: dict[str, Class] = {
    "maf": MAF,
    "real-nvp": RealNVP,
    "iaf": IAF,
    "spline-coupling": spline_coupling,
    "spline-autoregressive": spline_autoregressive,
}


def families(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [NAMED[name] for name in names], ids=names)


FAMILIES = families(*NAMED)
# Smooth densities, on which the trapezoidal rule converges exponentially.
SMOOTH = families("maf", "real-nvp", "iaf")
# Inverse autoregressive flows take no dropout.
DROPPING = families("maf", "real-nvp", "spline-coupling", "spline-autoregressive")


def make(family: Class, event_shape: tuple[int, ...] = (2,), *, spread: float = 0.3, **options: Any) -> Flow:
    """A small flow in float64 with weights far from the identity (bounded units keep its tails light)."""
    options = {"num_layers": 3, "hidden": (16, 16), "activation": "tanh", **options}
    with forked_rng(0), torch.no_grad():
        flow = family(event_shape, **options).double()
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- oracles -----------------------------------------------------------------------------


def plane(flow: Flow, num: int) -> tuple[Tensor, Tensor]:
    """Points of the data's plane and their weights: the trapezoidal rule where the data look normal.

    The points are sinh(t) for equally spaced t, pushed through the flow's first layer; the slope
    of that layer is autograd's. The rule converges exponentially for smooth integrands.
    """
    # Numbers next to the border of [0, 1] reach no further than 8 standard deviations.
    reach = 2.7 if flow.config.get("num_bins") else 4.5
    t = torch.linspace(-reach, reach, num, dtype=torch.float64)
    z = t.sinh()[:, None].expand(num, 2).contiguous().requires_grad_()
    x = flow.layers[0].push(z)
    (slope,) = torch.autograd.grad(x.sum(), z)
    weight = slope * t.cosh()[:, None] * (t[1] - t[0])
    x = x.detach()
    return torch.cartesian_prod(x[:, 0], x[:, 1]), torch.cartesian_prod(weight[:, 0], weight[:, 1]).prod(-1)


def masses(flow: Flow, num: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Points of the plane and the probability of the cell around each."""
    points, weights = plane(flow, num)
    rows = None if context is None else context.expand(len(points), -1)
    with torch.no_grad():
        return points, flow.log_likelihood(points, rows).value.exp() * weights


def assert_normalised(flow: Flow, context: Tensor | None = None) -> None:
    mass = float(masses(flow, 400, context)[1].sum())
    assert abs(mass - 1) < 1e-6, f"the density integrates to {mass}"


def no_log_det(layer: Any) -> None:
    """Plant the classical defect: a layer that forgets its log-determinant."""
    pull = layer.pull
    layer.pull = lambda x, context=None: (pull(x, context)[0], torch.zeros_like(x[..., 0]))


@SMOOTH
@pytest.mark.parametrize("context_dim", [0, 3])
def test_density_integrates_to_one(family: Class, context_dim: int) -> None:
    flow = make(family, context_dim=context_dim, spread=0.1)
    for label in range(max(context_dim, 1)):
        context = torch.eye(3, dtype=torch.float64)[label] if context_dim else None
        assert_normalised(flow, context)


@SMOOTH
def test_a_forgotten_log_determinant_is_caught_by_the_integral(family: Class) -> None:
    flow = make(family, spread=0.1)
    no_log_det(flow.layers[1])
    with pytest.raises(AssertionError, match="integrates to"):
        assert_normalised(flow)


@SMOOTH
def test_density_on_the_unit_square_integrates_to_one(family: Class) -> None:
    flow = make(family, num_bins=3, spread=0.03)
    flow.initialise(uniform(500, 2) ** 2)
    assert_normalised(flow)


def draws_by_density(flow: Flow, num: int, context: Tensor | None = None) -> Tensor:
    """Draws from the density alone, on a grid much finer than what the test can tell apart."""
    points, mass = masses(flow, 400, context)
    return points[torch.multinomial(mass, num, replacement=True)]


@FAMILIES
@pytest.mark.parametrize("context_dim", [0, 3])
def test_draws_follow_the_density(family: Class, context_dim: int) -> None:
    flow = make(family, context_dim=context_dim, spread=0.1)
    context = torch.eye(3, dtype=torch.float64)[1] if context_dim else None
    rows = None if context is None else context.expand(10_000, -1)
    with forked_rng(0):
        expected = draws_by_density(flow, 10_000, context)
    assert_same_distribution(flow.sample(10_000, rows, seed=1), expected)


@families("maf", "spline-coupling")
def test_draws_of_other_weights_are_caught(family: Class) -> None:
    flow, other = make(family, spread=0.1), make(family, spread=0.25)
    with forked_rng(0):
        expected = draws_by_density(flow, 10_000)
    with pytest.raises(AssertionError):
        assert_same_distribution(other.sample(10_000, seed=1), expected)


@FAMILIES
def test_maximum_likelihood_recovers_a_correlated_normal(family: Class) -> None:
    with forked_rng(0):
        mix = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        x = torch.randn(2000, 2) @ mix.T
        flow = family((2,), num_layers=2, hidden=(16,))
        flow.initialise(x)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(250):
            optimizer.zero_grad()
            loss = -flow.log_likelihood(x).value.mean()
            loss.backward()
            optimizer.step()
    # The best density of this sample that is normal; the flow holds it, so it does no worse.
    covariance = torch.cov(x.T, correction=0)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    assert loss.item() < entropy.item() + 0.01


# -- traps -------------------------------------------------------------------------------


@FAMILIES
def test_same_tensor_gives_the_new_density_after_an_update(family: Class) -> None:
    flow, x = make(family), uniform(4, 2)
    before = flow.log_likelihood(x).value
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1)
    after = flow.log_likelihood(x).value
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, flow.log_likelihood(x.clone()).value)


@FAMILIES
def test_full_batch_training_moves_on_one_tensor(family: Class) -> None:
    flow, x = make(family), uniform(64, 2)
    svi = SVI(flow.model, flow.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), Trace_ELBO())
    with forked_rng(0):
        losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0] - 10
    assert not pyro.get_param_store().keys()


@FAMILIES
def test_density_of_a_draw_is_right_after_drawing_it(family: Class) -> None:
    flow = make(family)
    x = flow.sample(5, seed=0)
    torch.testing.assert_close(flow.log_likelihood(x).value, flow.log_likelihood(x.clone()).value)


@FAMILIES
@pytest.mark.parametrize("num_bins", [None, 4])
def test_float32_and_float64_agree_in_both_directions(family: Class, num_bins: int | None) -> None:
    wide, x = make(family, (3,), num_bins=num_bins), uniform(20, 3)
    wide.initialise(x)
    narrow = copy.deepcopy(wide).float()
    z = wide.encode(x)
    torch.testing.assert_close(narrow.encode(x.float()), z.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(narrow.decode(z.float()), x.float(), rtol=1e-3, atol=1e-3)
    assert wide.sample(2, seed=0).dtype == torch.float64
    assert narrow.sample(2, seed=0).dtype == torch.float32


@FAMILIES
def test_everything_moves_with_the_model(family: Class) -> None:
    flow = make(family, context_dim=3, num_bins=4).to("meta")
    x = torch.empty(4, 2, device="meta", dtype=torch.float64)
    context = torch.empty(4, 3, device="meta", dtype=torch.float64)
    with pyro.validation_enabled(False):
        assert flow.log_likelihood(x, context).value.device.type == "meta"
        assert flow.sample(4, context).device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@FAMILIES
def test_cuda_gives_the_same_numbers(family: Class) -> None:
    flow, x = make(family, context_dim=3, num_bins=4), uniform(4, 2)
    labels = torch.tensor([0, 1, 2, 0])
    expected = flow.log_likelihood(x, labels).value
    flow.cuda()
    torch.testing.assert_close(flow.log_likelihood(x.cuda(), labels.cuda()).value.cpu(), expected)
    assert flow.sample(4, labels.cuda(), seed=0).is_cuda


@FAMILIES
def test_state_dict_rebuilds_the_flow_whole(family: Class) -> None:
    flow, x = make(family, num_bins=4), uniform(50, 2)
    flow.initialise(x)
    with forked_rng(7):
        twin = family((2,), num_layers=3, hidden=(16, 16), num_bins=4, activation="tanh").double()
    twin.load_state_dict(flow.state_dict())
    torch.testing.assert_close(twin.log_likelihood(x).value, flow.log_likelihood(x).value, rtol=0, atol=0)
    torch.testing.assert_close(twin.sample(3, seed=0), flow.sample(3, seed=0), rtol=0, atol=0)


# -- capabilities ------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("event_shape", [(4,), (2, 2), (1, 2, 3)])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_encode_and_decode_are_inverse(family: Class, event_shape: tuple[int, ...], context_dim: int) -> None:
    flow, x = make(family, event_shape, context_dim=context_dim), uniform(5, *event_shape)
    labels = torch.tensor([0, 1, 2, 0, 1]) if context_dim else None
    z = flow.encode(x, labels)
    assert z.shape == (5, flow.event_shape.numel())
    torch.testing.assert_close(flow.decode(z, labels), x, rtol=1e-8, atol=1e-8)
    assert flow.sample(5, labels, seed=0).shape == (5, *event_shape)


@FAMILIES
def test_score_is_the_slope_of_the_log_density(family: Class) -> None:
    flow, x = make(family), uniform(3, 2)
    score, step = flow.score(x), 1e-6
    for i in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[i]
        rise = flow.log_likelihood(x + shift).value - flow.log_likelihood(x - shift).value
        torch.testing.assert_close(score[:, i], (rise / (2 * step)).detach(), rtol=1e-5, atol=1e-6)


@FAMILIES
def test_gradients_flow_through_decode(family: Class) -> None:
    flow = make(family)
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(flow.decode(z).sum(), z)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        rise = (flow.decode(z + step) - flow.decode(z - step)).sum(-1) / 2e-6
    torch.testing.assert_close(gradient[0], rise, rtol=1e-5, atol=1e-7)


@FAMILIES
def test_capabilities_and_kind(family: Class) -> None:
    flow = make(family)
    for capability in (HasLogLikelihood, HasEncoder, HasDecoder, HasScore, HasInitialiser):
        assert isinstance(flow, capability)
    estimate = flow.log_likelihood(uniform(3, 2))
    assert estimate.kind is Kind.EXACT
    assert bool((estimate.std_error == 0).all())


@FAMILIES
def test_labels_and_one_hot_features_are_the_same_context(family: Class) -> None:
    flow, x = make(family, context_dim=3), uniform(4, 2)
    labels = torch.tensor([2, 0, 1, 1])
    by_label = flow.log_likelihood(x, labels).value
    features = nn.functional.one_hot(labels, 3).double()
    torch.testing.assert_close(by_label, flow.log_likelihood(x, features).value)
    assert not torch.allclose(by_label, flow.log_likelihood(x, labels.flip(0)).value)


@FAMILIES
def test_predictive_and_a_subsampled_plate(family: Class) -> None:
    flow, x = make(family), uniform(4, 2)
    with forked_rng(0):
        drawn = Predictive(flow.model, guide=flow.guide, num_samples=6, parallel=True)(num=3)["x"]
    assert drawn.shape == (6, 3, 2)
    trace = pyro.poutine.trace(flow.model).get_trace(x, num=40)
    torch.testing.assert_close(trace.log_prob_sum(), 10 * flow.log_likelihood(x).value.sum())


@FAMILIES
def test_initialise_standardises_and_gaussianises(family: Class) -> None:
    with forked_rng(0):
        flat = family((3,), num_layers=2, hidden=(8,))
        bounded = family((3,), num_layers=2, hidden=(8,), num_bins=8)
    x = (10 + 5 * uniform(500, 3)).float()
    assert not flat.initialised
    flat.initialise(x)
    assert flat.initialised
    z, _ = flat.layers[0].pull(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-4)
    with pytest.raises(DataError, match="num_bins=8"):
        bounded.initialise(x)
    bounded.initialise(uniform(500, 3).float() ** 3)
    draws = bounded.sample(200, seed=0)
    assert 0 <= draws.min().item() <= draws.max().item() <= 1


@DROPPING
def test_dropout_leaves_evaluation_exact(family: Class) -> None:
    flow, x = make(family, dropout=0.5), uniform(4, 2)
    with forked_rng(0):
        assert not torch.equal(flow.log_likelihood(x).value, flow.log_likelihood(x).value)
    flow.eval()
    torch.testing.assert_close(flow.log_likelihood(x).value, flow.log_likelihood(x).value, rtol=0, atol=0)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=1e-8, atol=1e-8)


@FAMILIES
def test_gradient_reaches_every_parameter(family: Class) -> None:
    with forked_rng(0):
        flow = family((4,), num_layers=3, hidden=(16, 16), context_dim=3)
    labels = torch.arange(16) % 3
    flow.log_likelihood(uniform(16, 4).float(), labels).value.sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@families("real-nvp", "spline-coupling")
@pytest.mark.parametrize("num_dims", [2, 3, 5, 8])
def test_every_coordinate_of_a_coupling_pair_is_changed(family: Class, num_dims: int) -> None:
    flow, x = make(family, (num_dims,), num_layers=2), uniform(1, num_dims)[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v[None])[0], x)
    # A coordinate that no layer changes would reach the noise with a slope of exactly one.
    assert not bool((jacobian == 1).any())


def test_a_single_coordinate_needs_an_autoregressive_flow() -> None:
    for family in ("maf", "iaf", "spline-autoregressive"):
        flow, x = make(NAMED[family], (1,)), uniform(4, 1)
        torch.testing.assert_close(flow.decode(flow.encode(x)), x)
    for family in ("real-nvp", "spline-coupling"):
        with pytest.raises(ConfigError, match=r"use MAF, or NeuralSplineFlow\(layout='autoregressive'\)"):
            NAMED[family]((1,))


@DROPPING
@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 0},
        {"num_layers": 2.5},
        {"dropout": 1.0},
        {"hidden": (0,)},
        {"hidden": 64},
        {"activation": "x"},
        {"num_bins": 1},
        {"num_bins": 4.5},
        {"context_dim": -1},
    ],
    ids=str,
)
def test_options_that_make_no_flow_are_named(family: Class, options: dict[str, Any]) -> None:
    with forked_rng(0), pytest.raises(ConfigError, match=next(iter(options))):
        make(family, **options)


@FAMILIES
def test_wrong_shapes_are_named(family: Class) -> None:
    flow = make(family)
    with pytest.raises(ShapeError, match="x:"):
        flow.log_likelihood(uniform(4, 3))
    with pytest.raises(ShapeError, match="z:"):
        flow.decode(uniform(4, 3))
    with pytest.raises(CapabilityError, match="unconditional"):
        flow.encode(uniform(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ShapeError, match="conditional"):
        make(family, context_dim=3).score(uniform(4, 2))


@FAMILIES
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_named(family: Class, bad: float) -> None:
    flow, x, context = make(family, context_dim=3), uniform(4, 2), uniform(4, 3)
    wrong, odd = x.clone(), context.clone()
    wrong[1, 0] = odd[2, 1] = bad
    for name in ("log_likelihood", "encode", "score", "initialise"):
        with pytest.raises(DataError, match="x: expected finite numbers, got 1 NaN or infinite of 8"):
            getattr(flow, name)(wrong, context)
    with pytest.raises(DataError, match="z: expected finite"):
        flow.decode(wrong, context)
    for name in ("log_likelihood", "encode", "score", "decode"):
        with pytest.raises(DataError, match="context: expected finite"):
            getattr(flow, name)(x, odd)
    with pytest.raises(DataError, match="x: expected one datum or more"):
        flow.initialise(x[:0])
    assert not flow.initialised


@FAMILIES
def test_contexts_that_are_not_one_row_a_datum_are_named(family: Class) -> None:
    flow, x = make(family, context_dim=3), uniform(4, 2)
    labels = torch.tensor([0, 1, 2, 0])
    for wrong in (labels[:3], labels[:, None], uniform(5, 3)):
        for name in ("log_likelihood", "encode", "score", "decode"):
            with pytest.raises(ShapeError, match="context:"):
                getattr(flow, name)(x, wrong)
    with pytest.raises(ShapeError, match="context:"):
        flow.sample(4, labels[:3])


# -- parts of other programs -------------------------------------------------------------


class Encoded(PyroModule):
    """A flow whose context is an image, read by a network that is learnt with it."""

    def __init__(self, family: Class) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.flow = family((2,), num_layers=2, hidden=(8,), context_dim=4)

    def forward(self, x: Tensor, images: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.flow.distribution(self.read(images)), obs=x)

    def read(self, images: Tensor) -> Tensor:
        """Features of images."""
        return self.linear(images.flatten(1)).tanh()


@families("maf", "spline-coupling")
def test_a_context_may_be_an_image_that_a_network_reads(family: Class) -> None:
    images = uniform(256, 1, 4, 4).float()
    x = images.flatten(1)[:, :2] * 4 + 0.1 * uniform(256, 2).float()
    with forked_rng(0):
        pair = Encoded(family)
    pair.flow.initialise(x)
    options: dict[str, Any] = {"batch_size": 64, "learning_rate": 2e-2, "device": "cpu", "progress": False}
    before = pair.linear.weight.clone()
    with pyro.get_param_store().scope():
        ppgen.fit(pair, (x, images), epochs=25, **options)
    assert not torch.equal(before, pair.linear.weight)
    with torch.no_grad():
        given = pair.flow.log_likelihood(x, pair.read(images)).value
        mixed = pair.flow.log_likelihood(x, pair.read(images.flip(0))).value
    # No density without the image does better than this normal by much: the margins are nearly uniform.
    normal = 0.5 * float(torch.logdet(2 * math.pi * math.e * torch.cov(x.T)))
    assert float(given.mean()) > 0.5 - normal
    assert float(mixed.mean()) < -normal


# -- families ----------------------------------------------------------------------------

REGISTERED = [maf.FAMILY, real_nvp.FAMILY, iaf.FAMILY, neural_spline_flow.FAMILY]


@pytest.mark.parametrize("family", REGISTERED, ids=lambda family: family.name)
def test_registration_builds_for_levels_and_for_reals(family: Any) -> None:
    with forked_rng(0):
        on_levels = family.build(torch.Size((1, 4, 4)), grid(17), 100)
        on_reals = family.build(torch.Size((2,)), REAL, 100)
        assert on_levels.config["num_bins"] == 17
        assert on_reals.config["num_bins"] is None
        assert family.conditional_example().context_dim == 3
        assert family.example().density is family.density is Kind.EXACT
        optimizer = family.fit_options["optimizer"](on_reals.parameters(), 1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.slow
@pytest.mark.parametrize("family", REGISTERED, ids=lambda family: family.name)
def test_digits_beat_the_best_mixture_of_diagonal_normals(family: Any) -> None:
    from sklearn.datasets import load_digits

    from ppgen.datasets.split import Split
    from ppgen.inference.svi import fit

    values = grid(17)
    images = torch.as_tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    train, validation, test = images[:1293], images[1293:1437], images[1437:]
    with forked_rng(0):
        flow = family.build(torch.Size((1, 8, 8)), values, 1437)
    fit(
        flow,
        Split(train, values=values),
        validation=Split(validation, values=values),
        progress=False,
        **{**family.fit_options, "epochs": 60},
    )
    with forked_rng(0), torch.no_grad():
        noisy = values.dequantise(test.repeat(8, 1, 1, 1))
        nats = -flow.log_likelihood(noisy).value.mean().item()
    bits_per_dim = (nats / 64 + math.log(17)) / math.log(2)
    assert bits_per_dim < 2.737  # scikit-learn's GaussianMixture, 30 diagonal components
