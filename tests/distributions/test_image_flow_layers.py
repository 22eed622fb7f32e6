"""Layers of flows on images: inverses, log-determinants by autograd, and what they start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.distributions.elementwise import Affine
from ppgen.distributions.flow import FlowDistribution
from ppgen.distributions.image_flow_layers import ChannelMix, ImageCoupling, MultiScale, Shift, SplitPrior
from ppgen.errors import ConfigError
from ppgen.ops.random import forked_rng

SHAPE = torch.Size((2, 4, 8))
FUNCTIONS = pytest.mark.parametrize("elementwise", [Affine(), Shift()], ids=["affine", "additive"])
LAYERS: dict[str, Callable[[], Any]] = {
    "channel-mix": lambda: ChannelMix(4),
    "coupling": lambda: ImageCoupling(4, 6, (2, 3), Affine()),
    "coupling-of-three": lambda: ImageCoupling(3, 6, (2, 3), Affine()),
}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(build: Callable[[], Any], spread: float = 0.2) -> Any:
    """A layer in float64 whose parameters are all away from where they start."""
    with forked_rng(0), torch.no_grad():
        layer = build().double()
        for parameter in layer.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return layer


def multi_scale(**options: Any) -> MultiScale:
    options = {"num_levels": 2, "num_steps": 2, "hidden_channels": 6, "elementwise": Affine(), **options}
    layer: MultiScale = shaken(lambda: MultiScale(SHAPE, **options))
    return layer


def assert_log_det_is_autograd_s(pull: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> None:
    """For each row of x, shape ``(N, ...)``."""
    for row in x:
        size = row.numel()
        jacobian = torch.autograd.functional.jacobian(lambda v: pull(v[None])[0][0], row).reshape(size, size)
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(pull(row[None])[1].expand(1)[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_bijections_with_their_log_determinant(name: str) -> None:
    layer = shaken(LAYERS[name])
    channels = 3 if name.endswith("three") else 4
    x = normal(2, channels, 2, 3)
    torch.testing.assert_close(layer.push(layer.pull(x)[0]), x, rtol=0, atol=1e-12)
    assert_log_det_is_autograd_s(layer.pull, x)


@pytest.mark.parametrize("num_kept", [0, 3])
def test_the_split_is_a_bijection_with_its_log_determinant(num_kept: int) -> None:
    prior = shaken(lambda: SplitPrior(num_kept, 2, (2, 3)))
    kept = normal(1, num_kept, 2, 3, seed=2)
    x = normal(2, 2, 2, 3)
    for row in x[:, None]:
        torch.testing.assert_close(prior.push(prior.pull(row, kept)[0], kept), row, rtol=0, atol=1e-12)
    assert_log_det_is_autograd_s(lambda v: prior.pull(v, kept), x)


@FUNCTIONS
@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_multi_scale_is_a_bijection_with_its_log_determinant(
    elementwise: Any, num_levels: int, context_dim: int
) -> None:
    layer = multi_scale(elementwise=elementwise, num_levels=num_levels, context_dim=context_dim)
    x = normal(2, SHAPE.numel())
    context = torch.eye(3, dtype=torch.float64)[1:2] if context_dim else None
    z, _ = layer.pull(x, context)
    torch.testing.assert_close(layer.push(z, context), x, rtol=0, atol=1e-9)
    assert_log_det_is_autograd_s(lambda v: layer.pull(v, context), x)


def test_a_log_determinant_for_one_pixel_alone_is_caught() -> None:
    layer = multi_scale()
    mix = next(m for m in layer.modules() if isinstance(m, ChannelMix))
    pull = mix.pull

    def planted(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = pull(x, context)
        return z, log_det / (x.shape[-1] * x.shape[-2])

    mix.pull = planted  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        assert_log_det_is_autograd_s(layer.pull, normal(1, SHAPE.numel()))


def test_it_starts_as_a_rotation_of_the_image() -> None:
    layer = shaken(
        lambda: MultiScale(SHAPE, num_levels=2, num_steps=3, hidden_channels=6, elementwise=Affine()), 0
    )
    x = normal(3, SHAPE.numel())
    z, log_det = layer.pull(x)
    torch.testing.assert_close(z.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-4)
    assert not torch.allclose(z, x)


def test_actnorms_start_from_the_data() -> None:
    layer = multi_scale()
    layer.initialise(3 + 2 * normal(64, SHAPE.numel()) * torch.arange(1.0, 1 + SHAPE.numel()))
    first = next(m for m in layer.modules() if isinstance(m, ChannelMix))
    x = normal(64, SHAPE.numel(), seed=1) * torch.arange(1.0, 1 + SHAPE.numel())
    images = torch.nn.functional.pixel_unshuffle((3 + 2 * x).reshape(-1, *SHAPE), 2)
    centred = (images - first.loc[:, None, None]) * (-first.log_scale).exp()[:, None, None]
    torch.testing.assert_close(
        centred.mean((0, 2, 3)), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-9
    )
    spread = centred.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(spread, torch.ones(8, dtype=torch.float64))


def test_a_constant_channel_keeps_its_scale() -> None:
    mix = shaken(lambda: ChannelMix(2))
    mix.initialise(torch.stack([torch.full((5, 2, 2), 3.0).double(), normal(5, 2, 2)], dim=1))
    assert mix.log_scale[0] == 0
    assert bool(torch.isfinite(mix.pull(normal(1, 2, 2, 2))[0]).all())


def test_additive_couplings_keep_the_volume() -> None:
    coupling = shaken(lambda: ImageCoupling(4, 6, (2, 3), Shift()))
    assert bool((coupling.pull(normal(5, 4, 2, 3))[1] == 0).all())


def test_it_serves_in_torch_s_and_ppgen_s_distributions_alike() -> None:
    layer = multi_scale(context_dim=3)
    loc = torch.zeros(SHAPE.numel(), dtype=torch.float64)
    features = torch.eye(3, dtype=torch.float64)
    ours = FlowDistribution([layer], loc, SHAPE, context=features)
    x = normal(5, 3, *SHAPE)
    assert ours.log_prob(x).shape == (5, 3)
    for k in range(3):
        base = dist.Normal(loc, torch.ones_like(loc)).to_event(1)
        theirs = dist.TransformedDistribution(base, [layer.condition(features[k])])
        torch.testing.assert_close(ours.log_prob(x)[:, k], theirs.log_prob(x[:, k].flatten(1)))
    with forked_rng(0):
        assert ours.rsample((4,)).shape == (4, 3, *SHAPE)


def test_the_context_moves_every_part() -> None:
    coupling = shaken(lambda: ImageCoupling(4, 6, (2, 3), Affine(), context_dim=3))
    prior = shaken(lambda: SplitPrior(0, 2, (2, 3), context_dim=3))
    x, labels = normal(2, 4, 2, 3), torch.tensor([0, 2])
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    torch.testing.assert_close(coupling.pull(x, labels)[0], coupling.pull(x, one_hot)[0])
    assert not torch.allclose(coupling.pull(x, labels)[0], coupling.pull(x, labels.flip(0))[0])
    empty = x[:, :0]
    assert not torch.allclose(
        prior.pull(x[:, :2], empty, labels)[0], prior.pull(x[:, :2], empty, labels.flip(0))[0]
    )


def test_dropout_leaves_draws_and_evaluation_alone() -> None:
    layer = multi_scale(dropout=0.5)
    x = normal(3, SHAPE.numel())
    with forked_rng(0):
        assert not torch.equal(layer.pull(x)[0], layer.pull(x)[0])
        assert torch.equal(layer.push(x), layer.push(x))
    layer.eval()
    torch.testing.assert_close(layer.push(layer.pull(x)[0]), x, rtol=0, atol=1e-9)


def test_sides_that_cannot_be_halved_are_named() -> None:
    with pytest.raises(ConfigError, match="4 x 6"):
        MultiScale(torch.Size((1, 4, 6)), num_levels=2, num_steps=1, hidden_channels=2, elementwise=Affine())
