"""Causal image networks: who sees whom, found by gradients; cached activations; skewing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.nn.causal_conv import GatedPixelStack, MaskedConv2d, PixelNetwork
from ppgen.nn.pixel_lstm import PixelLSTM, _DiagonalCache, _RowCache, skew, unskew
from ppgen.ops.random import forked_rng

SIZE = 4
MAKERS: dict[str, Callable[[], PixelNetwork]] = {
    "gated": lambda: GatedPixelStack(2, num_channels=3, num_layers=4, first_kernel_size=3),
    "gated, wide kernel": lambda: GatedPixelStack(
        2, num_channels=3, num_layers=2, kernel_size=5, first_kernel_size=5
    ),
    "gated, wide first kernel": lambda: GatedPixelStack(2, num_channels=3, num_layers=1),
    "row LSTM": lambda: PixelLSTM(2, layout="row", num_channels=2, num_layers=2),
    "diagonal BiLSTM": lambda: PixelLSTM(2, layout="diagonal", num_channels=2, num_layers=1),
}


def perturbed(make: Callable[[], PixelNetwork]) -> PixelNetwork:
    with forked_rng(0), torch.no_grad():
        network = make().double().eval()
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def influence(network: PixelNetwork, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Whether the features at each pixel depend on each pixel, shape ``(H W, H W)``: by whom, on whom."""
    with forked_rng(1):
        x = torch.rand(1, 2, height, width, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, x)[0, :, :, :, 0]
    size = height * width
    return (jacobian != 0).any(3).any(0).reshape(size, size)


def strictly_earlier(size: int) -> Tensor:
    return torch.ones(size, size).tril(-1).bool()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_features_see_no_pixel_at_or_after_theirs(make: Callable[[], PixelNetwork]) -> None:
    seen = influence(perturbed(make))
    assert seen.any()
    assert not (seen & ~strictly_earlier(SIZE**2)).any()


@pytest.mark.parametrize(
    "name", ["gated", "gated, wide kernel", "gated, wide first kernel", "diagonal BiLSTM"]
)
def test_there_is_no_blind_spot(name: str) -> None:
    assert torch.equal(influence(perturbed(MAKERS[name])), strictly_earlier(SIZE**2))


@pytest.mark.parametrize(("kernel_size", "num_layers"), [(3, 1), (3, 3), (5, 2)])
def test_a_pixel_of_a_large_image_sees_a_window_of_its_reach(kernel_size: int, num_layers: int) -> None:
    network = perturbed(
        lambda: GatedPixelStack(
            2, num_channels=3, num_layers=num_layers, kernel_size=kernel_size, first_kernel_size=3
        )
    )
    assert isinstance(network, GatedPixelStack)
    size, far = 9, network.reach
    assert far == 1 + (num_layers - 1) * (kernel_size // 2)
    seen = influence(network, size, size).view(size, size, size, size)
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for row, column in ((8, 4), (5, 8), (6, 0), (2, 3)):
        above = (i < row) & (i >= row - far - 1) & ((j - column).abs() <= far)
        left = (i == row) & (j < column) & (j >= column - far)
        assert torch.equal(seen[row, column], above | left)


def test_diagonal_states_see_everything_before_on_larger_images_than_the_first_window() -> None:
    network = perturbed(lambda: PixelLSTM(2, layout="diagonal", num_channels=2, num_layers=1))
    assert torch.equal(influence(network, 6, 9), strictly_earlier(54))


def test_masked_convolutions_alone_have_a_blind_spot_which_the_test_finds() -> None:
    """The stack of masked convolutions without two streams: the twin that must not pass."""

    class Plain(PixelNetwork):
        def __init__(self) -> None:
            super().__init__()
            layers = [MaskedConv2d(2, 3, (3, 3), mask="A")]
            layers += [MaskedConv2d(3, 3, (3, 3), mask="B") for _ in range(9)]
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.layers(x)

    seen = influence(perturbed(Plain))
    assert not (seen & ~strictly_earlier(SIZE**2)).any()
    blind = strictly_earlier(SIZE**2) & ~seen
    # From (1, 0), row 0 is hidden from column 2 on: three rows of slope one.
    assert bool(blind[SIZE, 2:SIZE].all())


def test_a_mask_that_lets_the_pixel_through_is_found() -> None:
    network = perturbed(lambda: PixelLSTM(2, layout="row", num_channels=2, num_layers=1))
    assert isinstance(network, PixelLSTM)
    allowed = network.first.allowed
    assert isinstance(allowed, Tensor)
    allowed[-1, allowed.shape[1] // 2] = 1
    seen = influence(network)
    assert bool((seen & ~strictly_earlier(SIZE**2)).any())


def _echo(features: Tensor) -> Tensor:
    """Two channels in [0, 1] from features, so that every activation counts."""
    return torch.stack([features.sum(-1), features.square().sum(-1)], -1).sigmoid()


CACHED: dict[str, Callable[[int], PixelNetwork]] = {
    "gated": lambda dim: GatedPixelStack(2, num_channels=4, num_layers=3, context_dim=dim),
    "gated, wide kernel": lambda dim: GatedPixelStack(
        2, num_channels=4, num_layers=3, kernel_size=5, context_dim=dim
    ),
    "row LSTM": lambda dim: PixelLSTM(2, layout="row", num_channels=3, num_layers=2, context_dim=dim),
    "row LSTM, wide kernel": lambda dim: PixelLSTM(
        2, layout="row", num_channels=3, num_layers=2, kernel_size=5, context_dim=dim
    ),
    "diagonal BiLSTM": lambda dim: PixelLSTM(
        2, layout="diagonal", num_channels=3, num_layers=2, context_dim=dim
    ),
}


def seen_while_drawing(network: PixelNetwork, start: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images drawn by :func:`_echo`, and the features ``(N, F, H, W)`` that it was given."""
    seen = []

    def step(i: int, j: int, features: Tensor) -> Tensor:
        seen.append(features.clone())
        return _echo(features)

    x = network.unroll(start, step, context)
    return x, torch.stack(seen, -1).unflatten(-1, start.shape[2:])


@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("make", CACHED.values(), ids=CACHED)
@pytest.mark.parametrize("context_dim", [0, 3])
def test_cached_activations_are_those_of_the_whole_network(
    shape: tuple[int, int], make: Callable[[int], PixelNetwork], context_dim: int
) -> None:
    network = perturbed(lambda: make(context_dim))
    assert type(network).unroll is not PixelNetwork.unroll
    context = torch.tensor([0, 2, 1]) if context_dim else None
    start = torch.zeros(3, 2, *shape, dtype=torch.float64)
    x, seen = seen_while_drawing(network, start, context)
    with torch.no_grad():
        whole = network(x, context)
    torch.testing.assert_close(seen, whole, rtol=1e-10, atol=1e-10)
    again = PixelNetwork.unroll(network, start, lambda i, j, features: _echo(features), context)
    torch.testing.assert_close(x, again, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["row LSTM", "diagonal BiLSTM"])
def test_a_state_of_the_wrong_row_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the states that a row is given are those of the row above moved by one column."""
    network = perturbed(lambda: CACHED[name](0))
    cache = _RowCache if name == "row LSTM" else _DiagonalCache
    plain = cache.begin_row

    def moved(self: Any) -> None:
        self.h = self.h.roll(1, 0)
        plain(self)

    monkeypatch.setattr(cache, "begin_row", moved)
    x, seen = seen_while_drawing(network, torch.zeros(1, 2, 4, 4, dtype=torch.float64), None)
    with torch.no_grad():
        assert float((seen - network(x)).abs().max()) > 1e-4


def test_skewing_moves_rows_and_back() -> None:
    x = torch.arange(1.0, 13.0).view(3, 4)
    moved = skew(x)
    assert moved.shape == (3, 6)
    for i in range(3):
        assert torch.equal(moved[i, i : i + 4], x[i])
        assert float(moved[i].sum()) == float(x[i].sum())
    assert torch.equal(unskew(moved), x)
    batch = torch.arange(30.0).view(2, 3, 5, 1)
    assert torch.equal(unskew(skew(batch)), batch)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GatedPixelStack(1, kernel_size=4),
        lambda: GatedPixelStack(1, kernel_size=1),
        lambda: GatedPixelStack(1, num_layers=0),
        lambda: PixelLSTM(1, layout="columns"),  # type: ignore[arg-type]
        lambda: PixelLSTM(1, kernel_size=2),
        lambda: PixelLSTM(1, num_channels=0),
        lambda: MaskedConv2d(1, 1, (3, 3), mask="C"),
    ],
    ids=["even kernel", "kernel of one", "no layer", "layout", "even row kernel", "no channel", "mask"],
)
def test_networks_that_make_no_sense_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()
