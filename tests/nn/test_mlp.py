"""Multi-layer perceptrons: the layers asked for, on the last dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ppgen.nn.mlp import mlp
from ppgen.ops.random import forked_rng


def make(*args: Any, **options: Any) -> nn.Sequential:
    with forked_rng(0):
        return mlp(*args, **options)


@pytest.mark.parametrize("hidden", [(), (5,), (7, 4), [6, 6, 6]])
def test_the_layers_have_the_widths_asked_for(hidden: tuple[int, ...]) -> None:
    network = make(3, hidden, 2)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    widths = [3, *hidden, 2]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip(widths, widths[1:], strict=False)
    )
    assert [isinstance(layer, nn.Linear) for layer in network] == [True, *[False, True] * len(hidden)]


def test_the_output_is_the_composition_of_its_layers() -> None:
    network = make(3, (4,), 2, activation=nn.Tanh).double()
    layers: list[Any] = list(network)
    first, second = layers[0], layers[-1]
    with forked_rng(1):
        x = torch.randn(6, 3, dtype=torch.float64)
    by_hand = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(network(x), by_hand)


def test_without_hidden_layers_it_is_affine() -> None:
    network = make(3, (), 2).double()
    with forked_rng(1):
        x, y = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(network(0.3 * x + 0.7 * y), 0.3 * network(x) + 0.7 * network(y))


def test_the_last_layer_alone_can_start_at_zero() -> None:
    with forked_rng(1):
        x = torch.randn(6, 3)
    network = make(3, (8,), 2, zero_last=True)
    assert torch.equal(network(x), torch.zeros(6, 2))
    layers: list[Any] = list(network)
    assert bool(layers[0](x).abs().gt(0).any())
    assert not torch.equal(make(3, (8,), 2)(x), torch.zeros(6, 2))
    network(x).sum().backward()
    assert bool(layers[-1].weight.grad.abs().gt(0).any())


def test_leading_dimensions_are_kept() -> None:
    network = make(3, (8,), 2)
    with forked_rng(1):
        x = torch.randn(5, 4, 6, 3)
    out = network(x)
    assert out.shape == (5, 4, 6, 2)
    torch.testing.assert_close(out[2, 3], network(x[2, 3]))
    assert network(x[0, 0, 0]).shape == (2,)
    assert network(torch.zeros(0, 3)).shape == (0, 2)


def test_dtype_and_device_follow_the_module() -> None:
    assert make(3, (8,), 2).double()(torch.zeros(1, 3, dtype=torch.float64)).dtype == torch.float64
    assert make(3, (8,), 2).to("meta")(torch.zeros(1, 3, device="meta")).device.type == "meta"


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        make(3, (8,), 2)(torch.zeros(4, 5))
