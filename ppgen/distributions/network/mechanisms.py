r"""How each variable follows from its parents, as factors over what is unknown of a row.

A discrete family is a table :math:`\log p(x_v \mid x_P)`. A continuous one is a linear regression for each
configuration q of its discrete parents, kept as a quadratic form in :math:`u = (1, x_P, x_v)`,

.. math:: \log p(x_v \mid x_P) = c_q - \tfrac12 u^\top \Lambda_q u ,

so that rows with gaps add up: forms of a row are summed, restricted to what is known, and integrated over
the rest in closed form. The gradient of a log-likelihood with respect to a log table is the expected
count of each cell, with respect to :math:`\Lambda` it is :math:`-\frac{1}{2}` the expected :math:`u u^\top`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.ops.elimination import Factor

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Discrete:
    """A conditional table.

    Attributes:
        log_table: shape ``(L_p1, ..., L_v)``, the discrete parents in increasing order, then the node.
    """

    log_table: Tensor


@dataclass(frozen=True)
class Gaussian:
    """A linear regression by configuration.

    Attributes:
        form: the quadratic form, shape ``(L_p1, ..., d + 2, d + 2)`` for d continuous parents.
        constant: shape ``(L_p1, ...)``.
    """

    form: Tensor
    constant: Tensor

    @classmethod
    def regression(cls, weights: Tensor, log_scales: Tensor) -> Gaussian:
        """From intercept and coefficients, shape ``(..., 1 + d)``, and log standard deviations ``(...)``."""
        residual = torch.cat([-weights, torch.ones_like(weights[..., :1])], -1) / log_scales.exp()[..., None]
        form = residual[..., :, None] * residual[..., None, :]
        return cls(form, -log_scales - 0.5 * _LOG_2PI)

    def moments(self, u: Tensor, configuration: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the node, given (1, parents) of shape ``(M, 1 + d)``."""
        form = self.form[configuration]
        precision = form[..., -1, -1]
        mean = -(form[..., -1, :-1] * u).sum(-1) / precision
        return mean, precision.rsqrt()


Mechanism = Discrete | Gaussian


@dataclass(frozen=True)
class Rows:
    """Rows of which the same variables are known and the same are set.

    Attributes:
        values: shape (B, n), float64: level numbers of discrete variables, numbers of continuous ones;
            NaN where unknown.
        known: which variables are.
        set: which of those were set by intervention, so that their families say nothing.
    """

    values: Tensor
    known: frozenset[int]
    set: frozenset[int]

    def codes(self, node: int) -> Tensor:
        """Level numbers of a known discrete variable, shape (B,)."""
        return self.values[:, node].detach().long()


def restrict(table: Tensor, variables: Sequence[int], rows: Rows) -> tuple[tuple[int, ...], Tensor]:
    """A table at the known variables of each row.

    Args:
        table: its first dimensions are ``variables``; further ones are kept at the end.
        variables: discrete variables.
        rows: B rows.

    Returns:
        The unknown variables in increasing order, and the table of shape ``(B or 1, L..., rest)``.
    """
    known = [i for i, v in enumerate(variables) if v in rows.known]
    unknown = sorted((i for i, v in enumerate(variables) if v not in rows.known), key=lambda i: variables[i])
    rest = range(len(variables), table.ndim)
    moved = table.permute((*known, *unknown, *rest))
    chosen = moved[tuple(rows.codes(variables[i]) for i in known)] if known else moved[None]
    return tuple(variables[i] for i in unknown), chosen


def discrete_factor(mechanism: Discrete, node: int, parents: Sequence[int], rows: Rows) -> Factor:
    """The table of a discrete node over what is unknown of it and its parents."""
    scope, table = restrict(mechanism.log_table, (*parents, node), rows)
    return Factor(scope, table)


def known_factor(
    mechanism: Gaussian, node: int, discrete: Sequence[int], continuous: Sequence[int], rows: Rows
) -> Factor:
    """The density of a continuous node, all known but discrete parents, over the unknown ones of those."""
    scope, form = restrict(mechanism.form, discrete, rows)
    _, constant = restrict(mechanism.constant, discrete, rows)
    u = _augmented(rows, (*continuous, node))
    middle = (1,) * len(scope)
    left = u.reshape(len(u), *middle, 1, -1)
    right = u.reshape(len(u), *middle, -1, 1)
    return Factor(scope, constant - 0.5 * (left @ form @ right)[..., 0, 0])


@dataclass(frozen=True)
class Block:
    r"""The unknown continuous variables of rows, jointly Gaussian given the discrete ones.

    :math:`\log p = c + h^\top y - \tfrac12 y^\top J y`, by configuration of the discrete ``scope``.

    Attributes:
        scope: unknown discrete variables that choose among the regressions.
        variables: y, the unknown continuous variables, m of them.
        precision: J, shape ``(B or 1, L..., m, m)``.
        shift: h, shape ``(B or 1, L..., m)``.
        constant: c, shape ``(B or 1, L...)``.
    """

    scope: tuple[int, ...]
    variables: tuple[int, ...]
    precision: Tensor
    shift: Tensor
    constant: Tensor

    @property
    def evidence(self) -> Factor:
        """Log of the integral over y."""
        factor = torch.linalg.cholesky(self.precision)
        half = torch.linalg.solve_triangular(factor, self.shift[..., None], upper=False)[..., 0]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        value = 0.5 * len(self.variables) * _LOG_2PI - log_det + 0.5 * (half**2).sum(-1)
        return Factor(self.scope, self.constant + value)

    def draw(self, rows: Tensor, drawn: dict[int, Tensor]) -> Tensor:
        """Exact draws of y given drawn discrete variables; row numbers (M,) to values (M, m)."""
        at = tuple(drawn[v] for v in self.scope)
        precision, shift = (_take(t, rows, at) for t in (self.precision, self.shift))
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(shift[..., None], factor)
        noise = torch.randn_like(shift)[..., None]
        return (mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True))[..., 0]


def gaussian_block(
    members: Sequence[tuple[int, Sequence[int], Sequence[int], Gaussian]],
    cardinalities: Sequence[int],
    rows: Rows,
) -> Block:
    """The joint density of continuous nodes that are unknown, or have unknown continuous parents.

    Args:
        members: for each, the node, its discrete and continuous parents, and its regression.
        cardinalities: number of levels of each variable.
        rows: B rows.
    """
    unknown = [node for node, *_ in members if node not in rows.known]
    place = {v: i for i, v in enumerate(unknown)}
    scope = tuple(sorted({p for _, discrete, _, _ in members for p in discrete if p not in rows.known}))
    middle = [cardinalities[v] for v in scope]
    num, size = len(rows.values), len(unknown)
    precision = rows.values.new_zeros(num, *middle, size, size)
    shift = rows.values.new_zeros(num, *middle, size)
    constant = rows.values.new_zeros(num, *middle)
    for node, discrete, continuous, mechanism in members:
        own, form = restrict(mechanism.form, discrete, rows)
        _, part = restrict(mechanism.constant, discrete, rows)
        spread = [cardinalities[v] if v in own else 1 for v in scope]
        form = form.reshape(len(form), *spread, *form.shape[-2:])
        part = part.reshape(len(part), *spread)
        inputs = (*continuous, node)
        free = [i + 1 for i, v in enumerate(inputs) if v in place]
        fixed = [0, *(i + 1 for i, v in enumerate(inputs) if v not in place)]
        u = _augmented(rows, [v for v in inputs if v not in place])
        u = u.reshape(num, *(1,) * len(scope), len(fixed), 1)
        constant = constant + part - 0.5 * (u.mT @ form[..., fixed, :][..., fixed] @ u)[..., 0, 0]
        if free:
            # Which of y each free input is, as a matrix: adding up this way is differentiable.
            select = rows.values.new_zeros(len(free), size)
            select[range(len(free)), [place[inputs[i - 1]] for i in free]] = 1.0
            precision = precision + select.T @ form[..., free, :][..., free] @ select
            shift = shift - (form[..., free, :][..., fixed] @ u)[..., 0] @ select
    return Block(scope, tuple(unknown), precision, shift, constant)


def _augmented(rows: Rows, variables: Sequence[int]) -> Tensor:
    """(1, values of known variables), shape (B, 1 + k)."""
    ones = torch.ones_like(rows.values[:, :1])
    return torch.cat([ones, rows.values[:, list(variables)]], -1)


def _take(table: Tensor, rows: Tensor, at: tuple[Tensor, ...]) -> Tensor:
    first = rows if len(table) > 1 else torch.zeros_like(rows)
    return table[(first, *at)]
