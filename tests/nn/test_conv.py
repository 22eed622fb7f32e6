"""Convolutional encoders and decoders on images of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppgen.errors import ShapeError
from ppgen.nn.conv import ConvDecoder, ConvEncoder
from ppgen.ops.random import forked_rng

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 5, 7), (2, 3, 3), (1, 1, 9), (1, 4, 64)]


def encoder(shape: tuple[int, ...], num_outputs: int = 6, **options: Any) -> ConvEncoder:
    with forked_rng(0):
        return ConvEncoder(torch.Size(shape), num_outputs, **{"channels": 4, **options})


def decoder(shape: tuple[int, ...], num_inputs: int = 6, **options: Any) -> ConvDecoder:
    with forked_rng(0):
        return ConvDecoder(num_inputs, torch.Size(shape), **{"channels": 4, **options})


def noise(*shape: int) -> Tensor:
    with forked_rng(1):
        return torch.randn(*shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_become_features_and_features_images(shape: tuple[int, ...]) -> None:
    features = encoder(shape)(noise(2, *shape))
    assert features.shape == (2, 6)
    assert decoder(shape)(features).shape == (2, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    down, up = encoder(shape), decoder(shape)
    x, z = noise(3, 2, *shape), noise(3, 2, 6)
    assert down(x).shape == (3, 2, 6)
    assert up(z).shape == (3, 2, *shape)
    torch.testing.assert_close(down(x)[2], down(x[2]))
    torch.testing.assert_close(up(z)[2], up(z[2]))
    torch.testing.assert_close(down(x[0, 0]), down(x)[0, 0])
    torch.testing.assert_close(up(z[0, 0]), up(z)[0, 0])


def test_the_decoder_makes_as_many_channels_as_asked() -> None:
    assert decoder((1, 8, 8), num_channels=17)(noise(2, 6)).shape == (2, 17, 8, 8)


@pytest.mark.parametrize(
    ("shape", "smallest", "channels"),
    [
        ((1, 8, 8), (2, 2), 16),
        ((1, 28, 28), (2, 2), 64),
        ((3, 32, 32), (2, 2), 64),
        ((1, 5, 7), (3, 4), 8),
        ((1, 3, 3), (3, 3), 4),
    ],
)
def test_images_are_halved_until_below_four(
    shape: tuple[int, ...], smallest: tuple[int, int], channels: int
) -> None:
    down = encoder(shape)
    assert down.convolutions(noise(1, *shape)).shape == (1, channels, *smallest)
    assert decoder(shape).start_shape == (channels, *smallest)


def reach(network: nn.Module, x: Tensor) -> Tensor:
    """Which coordinates of the input have a part in the output."""
    x = x.requires_grad_()
    weights = torch.linspace(1, 2, network(x).numel()).reshape(network(x).shape)
    (gradient,) = torch.autograd.grad((network(x) * weights).sum(), x)
    return gradient != 0


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_and_every_parameter_has_a_part(shape: tuple[int, ...]) -> None:
    down, up = encoder(shape), decoder(shape)
    assert bool(reach(down, noise(1, *shape)).all())
    assert bool(reach(up, noise(1, 6)).all())
    for network, x in ((down, noise(4, *shape)), (up, noise(4, 6))):
        network(x).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.abs().gt(0).any()) for p in network.parameters())


def test_the_activation_is_the_one_given() -> None:
    for network in (encoder((1, 8, 8), activation=nn.ReLU), decoder((1, 8, 8), activation=nn.ReLU)):
        kinds = {type(m) for m in network.modules()}
        assert nn.ReLU in kinds
        assert nn.SiLU not in kinds


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 5, 7)])
def test_dtype_and_device_follow_the_module(shape: tuple[int, ...]) -> None:
    down, up = encoder(shape).double(), decoder(shape).double()
    assert up(down(noise(2, *shape).double())).dtype == torch.float64
    shadow = up.to("meta")(down.to("meta")(torch.zeros(2, *shape, dtype=torch.float64, device="meta")))
    assert shadow.device.type == "meta"
    assert shadow.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 1, 8, 8)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    for build in (encoder, decoder):
        with pytest.raises(ShapeError, match=r"convolutions expect \(C, H, W\), got .*; use an MLP"):
            build(shape)
