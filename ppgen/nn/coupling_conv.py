"""Convolutional networks of image couplings: they keep the size of the image and start at zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.nn.context import context_features


class CouplingConv(nn.Module):
    """Images ``(N, num_inputs, H, W)`` to images ``(N, num_outputs, H, W)``.

    Convolutions of 3x3, 1x1 and 3x3, with a bias of its own for each place after the first (which tells the
    network where it is) and the context, mapped linearly, added before each nonlinearity. The last
    convolution starts at zero.

    Args:
        num_inputs: channels that come in.
        hidden_channels: channels between.
        num_outputs: channels that go out.
        size: height and width of the images.
        context_dim: features of the context; 0 for none.
        activation: makes the nonlinearity.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_channels: int,
        num_outputs: int,
        size: tuple[int, int],
        *,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.first = nn.Conv2d(num_inputs, hidden_channels, 3, padding=1, bias=False)
        self.place = nn.Parameter(torch.zeros(hidden_channels, *size))
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.last = nn.Conv2d(hidden_channels, num_outputs, 3, padding=1)
        self.given = nn.Linear(context_dim, 2 * hidden_channels, bias=False) if context_dim else None
        self.activation = activation()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, x: Tensor, context: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
        """The output for each image.

        Args:
            x: shape ``(N, num_inputs, H, W)``.
            context: labels ``(N,)`` or features ``(N, C)``.
            dropout: share of the hidden channels' values that this call leaves out at random.
        """
        h = self.first(x) + self.place
        shift: Tensor | None = None
        if self.given is not None and context is not None:
            features: Tensor = self.given(context_features(context, self.context_dim, like=x))
            early, shift = features[..., None, None].chunk(2, dim=1)
            h = h + early
        h = self.middle(functional.dropout(self.activation(h), dropout))
        if shift is not None:
            h = h + shift
        image: Tensor = self.last(functional.dropout(self.activation(h), dropout))
        return image
