r"""Autoregressive networks: output i sees the inputs that come before i, and no others.

The weights of a multi-layer perceptron are masked so that the Jacobian of its outputs is strictly
triangular in a given order of the inputs (MADE; Germain, Gregor, Murray & Larochelle 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.context import with_context


class MaskedLinear(nn.Module):
    """A linear layer whose weight is zero wherever ``mask`` is.

    Args:
        mask: shape ``(num_outputs, num_inputs)``; True where an output may see an input.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        # The layer starts as a plain linear layer does; the mask multiplies at every use, so that a
        # weight set or drawn by anyone else cannot open a forbidden path.
        plain = nn.Linear(mask.shape[1], mask.shape[0])
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("mask", mask.to(plain.weight.dtype))

    def masked_weight(self) -> Tensor:
        """The weight in use, shape ``(num_outputs, num_inputs)``."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """``x @ (weight * mask).T + bias``."""
        return functional.linear(x, self.masked_weight(), self.bias)


class AutoregressiveMLP(nn.Module):
    r"""A perceptron with :math:`\theta_i = f_i(x_{j : j \text{ before } i},\, c)`.

    Hidden units are sorted by degree: a unit of degree m sees the inputs at positions 0..m of the
    order (and the context), so the values at position p are functions of the units of degree below
    p. In :meth:`unroll`, each unit is therefore computed once, when its last input is known: a
    whole sequential pass costs as many multiplications as one :meth:`forward`.

    Args:
        num_dims: number D of inputs.
        hidden: widths of the hidden layers.
        num_outputs: numbers given for each input.
        order: a permutation of 0..D-1: ``order[p]`` is the input at position p.
        context_dim: features of the context, which every output sees; 0 for none.
        activation: makes the nonlinearity after each hidden layer.
    """

    order: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        num_outputs: int,
        *,
        order: Tensor,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ConfigError(f"hidden: expected one or more widths of 1 or more, got {tuple(hidden)}")
        self.num_dims, self.num_outputs, self.context_dim = num_dims, num_outputs, context_dim
        self.register_buffer("order", order.clone())
        position = torch.empty_like(order).scatter_(0, order, torch.arange(num_dims))
        # Degree -1: units that see the context alone, without which position 0 could not.
        lowest = -1 if context_dim or num_dims == 1 else 0
        span = num_dims - 1 - lowest
        degrees = [torch.cat([position, torch.full((context_dim,), -1)])]
        degrees += [lowest + torch.arange(width) * span // width for width in hidden]
        masks = [after[:, None] >= before for before, after in pairwise(degrees)]
        masks.append((position[:, None] > degrees[-1]).repeat(num_outputs, 1))
        layers = [MaskedLinear(mask) for mask in masks]
        self.layers = nn.ModuleList(layers)
        self.activation = activation()
        # ends[l][p]: how many units of hidden layer l have a degree below p.
        self.ends = [[int((d < p).sum()) for p in range(num_dims + 1)] for d in degrees[1:]]
        with torch.no_grad():  # outputs start near zero, so that a flow starts near the identity
            layers[-1].weight.mul_(0.1)
            layers[-1].bias.zero_()

    def forward(self, x: Tensor, context: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
        """Outputs for every input at once.

        Args:
            x: shape ``(..., D)``.
            context: labels or features, see :func:`~ppgen.nn.context.with_context`.
            dropout: share of the hidden units that this call leaves out at random.

        Returns:
            Shape ``(..., num_outputs * D)``: the first numbers of all inputs, then the second, ...
        """
        h = with_context(x, context, self.context_dim)
        *inner, last = self.layers
        for layer in inner:
            h = self.activation(layer(h))
            if dropout:
                h = functional.dropout(h, dropout)
        outputs: Tensor = last(h)
        return outputs

    @torch.no_grad()
    def unroll(
        self, start: Tensor, step: Callable[[Tensor, Tensor], Tensor], context: Tensor | None
    ) -> Tensor:
        """Fill in x one input at a time, each from its outputs: ``x_i = step(start_i, outputs_i)``.

        Args:
            start: what ``step`` is given for each input, shape ``(..., D)``.
            step: takes ``(N,)`` starts and ``(num_outputs, N)`` outputs of one input; gives ``(N,)`` values.
            context: as in :meth:`forward`.

        Returns:
            x, shape ``(..., D)``, without gradients.
        """
        # Batch last: the rows of one input, or of one block of units, are contiguous.
        columns = start.reshape(-1, self.num_dims).T[self.order].contiguous()
        x = torch.empty_like(columns)
        layers = cast(list[MaskedLinear], list(self.layers))
        first, *middle, last = ((layer.masked_weight(), layer.bias[:, None]) for layer in layers)
        weight, bias = first
        if self.context_dim:
            zeros = start.new_zeros(*start.shape[:-1], 0)
            features = with_context(zeros, context, self.context_dim).reshape(-1, self.context_dim)
            bias = torch.addmm(bias, weight[:, self.num_dims :], features.T)
        blocks = [(weight[:, : self.num_dims][:, self.order], bias), *middle]
        weight_out, bias_out = last
        weight_out = weight_out.unflatten(0, (self.num_outputs, -1))[:, self.order].transpose(0, 1)
        bias_out = bias_out.unflatten(0, (self.num_outputs, -1))[:, self.order].transpose(0, 1)
        units = [x.new_empty(len(b), x.shape[1]) for _, b in blocks]
        done = [0] * len(units)
        for p in range(self.num_dims):
            known, size = x, p
            for level, (weight, bias) in enumerate(blocks):
                begin, end = done[level], self.ends[level][p]
                if end > begin:
                    block = torch.addmm(bias[begin:end], weight[begin:end, :size], known[:size])
                    units[level][begin:end] = self.activation(block)
                known, size, done[level] = units[level], end, end
            x[p] = step(columns[p], torch.addmm(bias_out[p], weight_out[p, :, :size], known[:size]))
        return self._unsorted(x, start)

    @torch.no_grad()
    def unroll_gradient(self, x: Tensor, gradient: Tensor, slopes: Tensor, context: Tensor | None) -> Tensor:
        r"""Gradients in what an unrolled pass added last, from gradients in its result.

        With :math:`x_i = g_i(f_i(x_{j : j \text{ before } i}))` and
        :math:`J_{ij} = \partial x_i / \partial x_j` this solves :math:`\lambda = \gamma + J^T \lambda`, from
        the last input to the first. Each unit's gradient is computed once: the arithmetic of one
        backward pass, in D small steps.

        Args:
            x: the result of :meth:`unroll`, shape ``(..., D)``.
            gradient: :math:`\gamma`, same shape.
            slopes: derivative of each x in its own outputs, shape ``(num_outputs, ..., D)``.
            context: as in :meth:`forward`.

        Returns:
            :math:`\lambda`, shape ``(..., D)``.
        """
        *inner, last = cast(list[MaskedLinear], list(self.layers))
        h = with_context(x, context, self.context_dim).reshape(-1, self.num_dims + self.context_dim)
        gains = []
        for layer in inner:
            before = layer(h).requires_grad_()
            with torch.enable_grad():
                h = self.activation(before)
                gains.append(torch.autograd.grad(h.sum(), before)[0].T.contiguous())
            h = h.detach()
        # Batch last, inputs in their order; weights from a unit to what sees it.
        total = gradient.reshape(-1, self.num_dims).T[self.order].contiguous()
        slopes = slopes.reshape(self.num_outputs, -1, self.num_dims).permute(2, 0, 1)[self.order]
        weight_in = inner[0].masked_weight()[:, : self.num_dims][:, self.order].T
        weights = [layer.masked_weight().T for layer in inner[1:]]
        weight_out = last.masked_weight().unflatten(0, (self.num_outputs, -1))[:, self.order]
        weights.append(weight_out.transpose(0, 1).flatten(0, 1).T)
        units = [torch.empty_like(gain) for gain in gains]
        outputs = torch.empty_like(slopes)  # gradients in the outputs, (D, num_outputs, N)
        for p in reversed(range(self.num_dims)):
            above, size = outputs.flatten(0, 1), (p + 1) * self.num_outputs
            for level in reversed(range(len(units))):
                begin, end = self.ends[level][p], self.ends[level][p + 1]
                if end > begin:
                    block = weights[level][begin:end, size:] @ above[size:]
                    units[level][begin:end] = gains[level][begin:end] * block
                above, size = units[level], begin
            total[p].addmv_(above[size:].T, weight_in[p, size:])
            outputs[p] = slopes[p] * total[p]
        return self._unsorted(total, gradient)

    def _unsorted(self, columns: Tensor, like: Tensor) -> Tensor:
        """Columns ``(D, N)`` in the order of the inputs as rows of the shape of ``like``."""
        rows = torch.empty_like(columns)
        rows[self.order] = columns
        return rows.T.reshape(like.shape)
