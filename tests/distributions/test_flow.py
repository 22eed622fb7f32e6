"""Flow layers and their distribution: exact inverses and log-determinants, and nothing remembered."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppgen.distributions.elementwise import Affine, Elementwise, Spline
from ppgen.distributions.flow import FlowDistribution, FlowTransform
from ppgen.distributions.flow_layers import Coupling, Inverted, MaskedAutoregressive
from ppgen.distributions.flow_margins import Gaussianise, Standardise
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.nn.masked import MaskedLinear
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_same_distribution

DIMS = 5
AFFINE = Affine()


def perturbed(make: Callable[[], FlowTransform], seed: int = 0) -> FlowTransform:
    """A layer in float64 with weights far from the identity."""
    with forked_rng(seed), torch.no_grad():
        layer = make().double()
        for parameter in layer.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return layer


SPLINE = Spline(num_bins=5, bound=0.8)  # ends inside the data


def masked(
    context_dim: int = 0, dims: int = DIMS, dropout: float = 0.0, elementwise: Elementwise = AFFINE
) -> FlowTransform:
    order = torch.randperm(dims, generator=torch.Generator().manual_seed(1))
    return perturbed(
        lambda: MaskedAutoregressive(
            dims, (12, 9), elementwise, order=order, context_dim=context_dim, dropout=dropout
        )
    )


def coupling(
    context_dim: int = 0, dims: int = DIMS, dropout: float = 0.0, elementwise: Elementwise = AFFINE
) -> FlowTransform:
    permutation = torch.randperm(dims, generator=torch.Generator().manual_seed(2))
    return perturbed(
        lambda: Coupling(
            dims, (12, 9), elementwise, permutation=permutation, context_dim=context_dim, dropout=dropout
        )
    )


masked_spline = functools.partial(masked, elementwise=SPLINE)
coupling_spline = functools.partial(coupling, elementwise=SPLINE)


def inverted(context_dim: int = 0) -> FlowTransform:
    return Inverted(masked(context_dim))


def standardise(context_dim: int = 0) -> FlowTransform:
    layer = Standardise(DIMS).double()
    layer.fit(data(200) * torch.arange(1, DIMS + 1))
    return layer


def gaussianise(context_dim: int = 0) -> FlowTransform:
    layer = Gaussianise(DIMS, 7).double()
    layer.fit(data(200) ** 2)
    return layer


def data(num: int = 6, dims: int = DIMS, seed: int = 3) -> Tensor:
    """Uniform draws in (0, 1), which every layer takes."""
    return torch.rand(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Make = Callable[..., FlowTransform]
NAMED: dict[str, Make] = {
    "masked": masked,
    "coupling": coupling,
    "masked_spline": masked_spline,
    "coupling_spline": coupling_spline,
    "inverted": inverted,
    "standardise": standardise,
    "gaussianise": gaussianise,
}


def layers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [NAMED[name] for name in names], ids=names)


LAYERS = layers(*NAMED)
LEARNT = layers("masked", "coupling", "masked_spline", "coupling_spline", "inverted")
DROPPING = layers("masked", "coupling", "masked_spline", "coupling_spline")


# -- layers ------------------------------------------------------------------------------


@LAYERS
@pytest.mark.parametrize("context_dim", [0, 3])
def test_push_inverts_pull(make: Make, context_dim: int) -> None:
    layer, x = make(context_dim), data()
    context = torch.eye(6, 3, dtype=torch.float64) if context_dim else None
    z, _ = layer.pull(x, context)
    with torch.no_grad():
        torch.testing.assert_close(layer.push(z, context), x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.push(z, context), x, rtol=1e-10, atol=1e-12)


@LAYERS
@pytest.mark.parametrize("context_dim", [0, 3])
def test_log_determinant_is_that_of_the_jacobian(make: Make, context_dim: int) -> None:
    layer, x = make(context_dim), data()
    context = torch.eye(6, 3, dtype=torch.float64) if context_dim else None
    _, log_det = layer.pull(x, context)
    for n in range(len(x)):
        row = None if context is None else context[n]
        jacobian = torch.autograd.functional.jacobian(lambda v, c=row: layer.pull(v, c)[0], x[n])
        torch.testing.assert_close(log_det[n], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_outputs_of_the_masked_network_see_only_what_comes_before(dims: int) -> None:
    layer = masked(dims=dims)
    assert isinstance(layer, MaskedAutoregressive)
    jacobian = torch.autograd.functional.jacobian(layer.network, data(1, dims)[0]).unflatten(0, (2, dims))
    order = layer.network.order
    sorted_ = jacobian[:, order][:, :, order]
    assert bool((sorted_.triu() == 0).all())
    assert bool((sorted_ != 0).sum() == dims * (dims - 1))


def test_weights_under_the_mask_have_no_effect() -> None:
    layer, x = masked(), data()
    assert isinstance(layer, MaskedAutoregressive)
    before = layer.pull(x)[0]
    with torch.no_grad():
        for linear in layer.network.layers:
            assert isinstance(linear, MaskedLinear)
            linear.weight.add_(7.0 * (1 - linear.mask))
    torch.testing.assert_close(layer.pull(x)[0], before)


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("hidden", [(12, 9), (7,), (6, 11, 8)], ids=len)
@pytest.mark.parametrize("elementwise", [AFFINE, SPLINE], ids=["affine", "spline"])
def test_one_draw_agrees_with_the_textbook_passes_in_value_and_gradient(
    elementwise: Elementwise, hidden: tuple[int, ...], context_dim: int
) -> None:
    order, z = torch.tensor([2, 0, 4, 1, 3]), data().requires_grad_()
    layer = perturbed(
        lambda: MaskedAutoregressive(DIMS, hidden, elementwise, order=order, context_dim=context_dim)
    )
    assert isinstance(layer, MaskedAutoregressive)
    context = torch.eye(6, 3, dtype=torch.float64) if context_dim else None
    x = z
    for _ in range(DIMS):  # after pass p, the first p coordinates are right
        outputs = layer.network(x, context).unflatten(-1, (elementwise.num_parameters, DIMS))
        x = elementwise.push(z, outputs.movedim(-2, 0))
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    inputs = [z, *layer.parameters()]
    expected = torch.autograd.grad((x * weights).sum(), inputs)
    drawn = layer.push(z, context)
    torch.testing.assert_close(drawn, x)
    torch.testing.assert_close(torch.autograd.grad((drawn * weights).sum(), inputs), expected)


@pytest.mark.parametrize("shape", [(DIMS,), (0, DIMS), (2, 3, DIMS)], ids=str)
def test_gradients_of_draws_of_any_batch_shape(shape: tuple[int, ...]) -> None:
    layer, z = masked(), data(6).flatten()[: torch.Size(shape).numel()].view(shape).requires_grad_()
    (gradient,) = torch.autograd.grad(layer.push(z).square().sum(), z)
    rows = z.detach().reshape(-1, DIMS).requires_grad_()
    (expected,) = torch.autograd.grad(layer.push(rows).square().sum(), rows)
    torch.testing.assert_close(gradient, expected.view(shape))


@pytest.mark.parametrize("context_dim", [0, 3])
def test_maximum_likelihood_of_an_inverted_layer_has_the_right_gradient(context_dim: int) -> None:
    layer, x = inverted(context_dim), data()
    context = torch.eye(6, 3, dtype=torch.float64) if context_dim else None
    weights = list(layer.parameters())
    noise, log_det = layer.pull(x, context)
    score = torch.autograd.grad((log_det - noise.square().sum(-1)).sum(), weights)
    step = 1e-6
    for weight, slope in zip(weights, score, strict=True):
        ends = []  # of a small step along all ones
        with torch.no_grad():
            for sign in (1, -2):
                weight.add_(sign * step)
                noise, log_det = layer.pull(x, context)
                ends.append((log_det - noise.square().sum(-1)).sum())
            weight.add_(step)
        rise = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(slope.sum(), rise, rtol=1e-6, atol=1e-6)


def test_an_inverted_layer_knows_its_log_determinant_from_the_noise() -> None:
    layer, z = inverted(), data()
    x, log_det = layer.push_with_log_det(z)
    torch.testing.assert_close(x, layer.push(z))
    torch.testing.assert_close(log_det, -layer.pull(x)[1])
    torch.testing.assert_close(layer.log_abs_det_jacobian(z, x), log_det)


@layers("masked_spline", "coupling_spline")
def test_spline_layers_are_the_identity_far_out(make: Make) -> None:
    layer, x = make(), 40 + data()
    z, log_det = layer.pull(x)
    assert bool((log_det == 0).all())
    back = layer.push(z)
    torch.testing.assert_close(back, x, rtol=0, atol=0)
    torch.testing.assert_close(z.sort(-1).values, x.sort(-1).values, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"num_bins": 1}, {"num_bins": 501}, {"bound": 0.0}], ids=str)
def test_splines_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Spline(**{"num_bins": 8, "bound": 5.0, **options})


def test_second_derivatives_of_a_draw_are_refused_rather_than_wrong() -> None:
    z = data().requires_grad_()
    (first,) = torch.autograd.grad(masked().push(z).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@DROPPING
def test_dropout_thins_densities_in_training_mode_alone(make: Make) -> None:
    layer, x = make(dropout=0.5), data()
    with forked_rng(0):
        assert not torch.equal(layer.pull(x)[0], layer.pull(x)[0])
        torch.testing.assert_close(layer.push(x), layer.push(x), rtol=0, atol=0)
    layer.eval()
    torch.testing.assert_close(layer.push(layer.pull(x)[0]), x)


def test_a_coupling_of_one_coordinate_is_refused() -> None:
    with pytest.raises(ConfigError, match="autoregressive"):
        Coupling(1, (4,), Affine(), permutation=torch.arange(1))


def test_a_network_without_hidden_units_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden"):
        MaskedAutoregressive(2, (), Affine(), order=torch.arange(2))


def test_standardise_keeps_constant_columns() -> None:
    layer = Standardise(2)
    layer.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert layer.loc.tolist() == [2.0, 5.0]
    assert layer.scale.tolist() == [1.0, 1.0]


# -- margins -----------------------------------------------------------------------------


def test_gaussianise_makes_margins_normal() -> None:
    with forked_rng(0):
        levels = torch.randint(0, 4, (40_000, 2)).clamp_min(1)
        x = (levels + torch.rand(40_000, 2)) / 4
        layer = Gaussianise(2, 4)
        layer.fit(x[:20_000])
        assert_same_distribution(layer.pull(x[20_000:])[0], torch.randn(20_000, 2))
        layer.fit(torch.rand(20_000, 2))
        with pytest.raises(AssertionError):  # twin: histograms of other data
            assert_same_distribution(layer.pull(x[20_000:])[0], torch.randn(20_000, 2))


def test_gaussianise_gives_the_density_of_the_histogram() -> None:
    layer = Gaussianise(1, 4).double()
    layer.fit(torch.tensor([[0.1], [0.3], [0.35], [0.9]], dtype=torch.float64))
    expected = torch.tensor([1.25, 2.25, 0.25, 1.25], dtype=torch.float64) / 5
    x = torch.tensor([[0.2], [0.4], [0.6], [0.8]], dtype=torch.float64)
    z, log_det = layer.pull(x)
    density = (log_det + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).exp()
    torch.testing.assert_close(density, 4 * expected)


def test_gaussianise_keeps_digits_in_both_tails_in_float32() -> None:
    layer = Gaussianise(1, 17)
    layer.fit(torch.zeros(1000, 1))  # 16 bins of 6e-5 each above one of nearly all the mass
    x = torch.linspace(0.001, 0.999, 999)[:, None]
    torch.testing.assert_close(layer.push(layer.pull(x)[0]), x, rtol=0, atol=1e-4)


def test_gaussianise_is_finite_on_the_border_and_impossible_outside() -> None:
    layer = Gaussianise(1, 4)
    _, border = layer.pull(torch.tensor([[0.0], [1.0]]))
    assert bool(torch.isfinite(border).all())
    z, outside = layer.pull(torch.tensor([[-0.01], [1.01]]))
    assert bool(torch.isfinite(z).all())
    assert outside.tolist() == [-float("inf")] * 2


def test_gaussianise_of_nan_is_nan() -> None:
    layer = Gaussianise(2, 4)
    x = torch.tensor([[float("nan"), 0.5]])
    flow = FlowDistribution([layer], torch.zeros(2), (2,), validate_args=False)
    assert bool(flow.log_prob(x).isnan().all())
    with pytest.raises(DataError, match="nan"):
        layer.fit(x)


def test_gaussianise_names_what_is_wrong_with_its_arguments() -> None:
    with pytest.raises(DataError, match=r"range of \[0, 2\]"):
        Gaussianise(1, 4).fit(torch.tensor([[0.0], [2.0]]))
    with pytest.raises(ConfigError, match="num_bins"):
        Gaussianise(1, 1)


# -- as Pyro transforms ------------------------------------------------------------------


def flow(context: Tensor | None = None) -> FlowDistribution:
    context_dim = 0 if context is None else context.shape[-1]
    layers = [standardise(), masked(context_dim), coupling(context_dim)]
    return FlowDistribution(layers, torch.zeros(DIMS, dtype=torch.float64), (DIMS,), context=context)


def move(layers: tuple[FlowTransform, ...]) -> None:
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.add_(0.1)


def test_density_agrees_with_pyro() -> None:
    ours, x = flow(), data()
    base = dist.Normal(ours.loc, 1.0).to_event(1)
    pyros = dist.TransformedDistribution(base, list(reversed(ours.transforms)))
    torch.testing.assert_close(ours.log_prob(x), pyros.log_prob(x))
    with forked_rng(0):
        drawn = pyros.sample((4,))
    with forked_rng(0):
        torch.testing.assert_close(ours.sample((4,)), drawn)


@LEARNT
@pytest.mark.parametrize("inverted", [False, True])
def test_pyro_sees_new_weights_on_the_same_tensor(make: Make, inverted: bool) -> None:
    layer, x = make(), data()
    base = dist.Normal(torch.zeros(DIMS, dtype=torch.float64), 1.0).to_event(1)
    placed = layer.with_cache().inv if inverted else layer.with_cache()
    pyros = dist.TransformedDistribution(base, [placed])
    before = pyros.log_prob(x)
    move((layer,))
    after = pyros.log_prob(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, pyros.log_prob(x.clone()))


@LEARNT
def test_full_batch_training_through_pyro_steps_twice(make: Make) -> None:
    layer, x = make(), data()
    base = dist.Normal(torch.zeros(DIMS, dtype=torch.float64), 1.0).to_event(1)
    for placed in (layer, layer.inv):
        pyros = dist.TransformedDistribution(base, [placed])
        for _ in range(2):
            pyros.log_prob(x).sum().backward()
            move((layer,))


@LEARNT
def test_conditioned_layers_are_transforms(make: Make) -> None:
    layer, z = make(3), data()
    context = torch.eye(6, 3, dtype=torch.float64)
    conditioned = layer.condition(context).with_cache()
    x = conditioned(z)
    torch.testing.assert_close(conditioned.inv(x), z)
    torch.testing.assert_close(conditioned.log_abs_det_jacobian(z, x), -layer.pull(x, context)[1])


# -- the distribution --------------------------------------------------------------------


def test_same_tensor_gives_the_new_density_after_an_update() -> None:
    ours, x = flow(), data()
    before = ours.log_prob(x)
    move(ours.transforms)
    after = ours.log_prob(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, ours.log_prob(x.clone()))


def test_sample_then_density_of_the_sample() -> None:
    ours = flow()
    with forked_rng(0):
        x = ours.sample((8,))
    first = ours.log_prob(x)
    torch.testing.assert_close(first, ours.log_prob(x.clone()))
    move(ours.transforms)
    assert not torch.allclose(first, ours.log_prob(x))


@LEARNT
@pytest.mark.parametrize("batched", [False, True])
def test_draws_come_with_their_densities(make: Make, batched: bool) -> None:
    context = torch.eye(3, dtype=torch.float64) if batched else None
    parts = [standardise(), make(3 if batched else 0)]
    ours = FlowDistribution(parts, torch.zeros(DIMS, dtype=torch.float64), (DIMS,), context=context)
    with forked_rng(0):
        x, log_density = ours.rsample_with_log_prob((4,))
    with forked_rng(0):
        torch.testing.assert_close(x, ours.rsample((4,)))
    torch.testing.assert_close(log_density, ours.log_prob(x))


def test_repeated_backward_on_one_tensor() -> None:
    ours, x = flow(), data()
    for _ in range(3):
        ours.log_prob(x).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_directions_keep_the_dtype(dtype: torch.dtype) -> None:
    layers = [layer.to(dtype) for layer in flow().transforms]
    ours = FlowDistribution(layers, torch.zeros(DIMS, dtype=dtype), (DIMS,))
    with forked_rng(0):
        x = ours.rsample((4,))
    assert x.dtype == ours.log_prob(x).dtype == dtype


def test_both_directions_follow_the_device() -> None:
    layers = [layer.to("meta") for layer in [*flow().transforms, gaussianise()]]
    ours = FlowDistribution(layers, torch.zeros(DIMS, device="meta"), (DIMS,), validate_args=False)
    x = ours.sample((4,))
    assert x.device.type == ours.log_prob(x).device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_both_directions_agree_on_cuda() -> None:
    ours, x = flow(), data()
    expected = ours.log_prob(x)
    there = FlowDistribution([t.cuda() for t in ours.transforms], ours.loc.cuda(), (DIMS,))
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), expected)
    assert there.sample((4,)).is_cuda


@pytest.mark.parametrize("event_shape", [(4,), (1, 2, 2), (2, 2)])
def test_shapes_of_events_batches_and_samples(event_shape: tuple[int, ...]) -> None:
    layers = [masked(dims=4), coupling(dims=4)]
    ours = FlowDistribution(layers, torch.zeros(4, dtype=torch.float64), event_shape)
    assert (ours.batch_shape, ours.event_shape) == ((), event_shape)
    wide = ours.expand((3, 2))
    with forked_rng(0):
        assert ours.sample((5,)).shape == (5, *event_shape)
        x = wide.sample((5,))
    assert x.shape == (5, 3, 2, *event_shape)
    assert wide.log_prob(x).shape == (5, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), ours.log_prob(x))
    assert wide.log_prob(x[0, 0, 0]).shape == (3, 2)


def test_scalar_events() -> None:
    ours = FlowDistribution([masked(dims=1)], torch.zeros(1, dtype=torch.float64), ())
    with forked_rng(0):
        x = ours.sample((7,))
    assert x.shape == ours.log_prob(x).shape == (7,)


def test_context_gives_the_batch_shape_and_expands() -> None:
    context = torch.eye(3, dtype=torch.float64)
    ours = flow(context)
    assert ours.batch_shape == (3,)
    wide, x = ours.expand((2, 3)), data(3)
    with forked_rng(0):
        assert wide.sample().shape == (2, 3, DIMS)
        assert ours.rsample((4,)).shape == (4, 3, DIMS)
    torch.testing.assert_close(wide.log_prob(x), ours.log_prob(x).expand(2, 3))
    alone = flow(context[1:2])
    torch.testing.assert_close(ours.log_prob(x)[1:2], alone.log_prob(x[1:2]))


def test_handlers_accept_the_distribution() -> None:
    ours, x = flow(), data()

    def model() -> Tensor:
        with pyro.plate("data", 6, dim=-1):
            return pyro.sample("x", ours)

    with forked_rng(0):
        trace = poutine.trace(model).get_trace()
        again = poutine.replay(model, trace)()
    trace.compute_log_prob()
    drawn = cast(Tensor, trace.nodes["x"]["value"])
    torch.testing.assert_close(again, drawn)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], ours.log_prob(drawn))
    conditioned = poutine.trace(poutine.condition(model, {"x": x})).get_trace()
    torch.testing.assert_close(conditioned.log_prob_sum(), ours.log_prob(x).sum())
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((1, DIMS), float("nan"), dtype=torch.float64))


def test_pickles() -> None:
    ours, x = flow(), data()
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours)).log_prob(x), ours.log_prob(x))


def test_an_event_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="must match"):
        FlowDistribution([], torch.zeros(4), (5,))
