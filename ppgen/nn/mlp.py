"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: Callable[[], nn.Module] = nn.SiLU,
    zero_last: bool = False,
) -> nn.Sequential:
    """Linear layers of widths ``hidden`` with ``activation`` between, on the last dimension.

    Args:
        num_inputs: width of the input.
        hidden: widths of the hidden layers; empty for a linear map.
        num_outputs: width of the output.
        activation: makes the nonlinearity after each hidden layer.
        zero_last: start the last layer at zero, so that the output starts at zero.
    """
    layers: list[nn.Module] = []
    widths = [num_inputs, *hidden]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    last = nn.Linear(widths[-1], num_outputs)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
