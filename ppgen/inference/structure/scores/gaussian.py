r"""Scores of continuous variables: BGe and Gaussian BIC.

Both are those of linear Gaussian networks, and differences of a function h of the covariance of a set of
variables. Rows in which the node was set count as in the discrete scores: not at all (*perfect*), or for a
regression of their own (*imperfect*). A node without any row left has score 0 with every set of parents.
Agents are parents of value 0 or 1: they shift the mean.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataWarning
from ppgen.inference.structure.scores.counting import elements
from ppgen.inference.structure.scores.discrete import check_positive
from ppgen.inference.structure.scores.functions import Advance, SetFunction, Term, columns, silent
from ppgen.inference.structure.scores.parts import Part, PartScore, check_continuous, mechanisms
from ppgen.inference.structure.table import Table
from ppgen.inference.structure.warned import warn

# Eigenvalues of correlation matrices below this count as zero, that is, as this.
SINGULAR = 1e-10


class _Gaussian(PartScore):
    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        check_continuous(table, self.name)

    @abstractmethod
    def term(self, table: Table) -> Term:
        """What h is."""

    def parts(self, table: Table, node: int) -> list[Part]:
        """See :meth:`PartScore.parts`."""
        term = self.term(table)
        return [
            part
            for rows in mechanisms(table, node)
            for part in (Part(1, rows, True, term), Part(-1, rows, False, term))
        ]


@dataclass(frozen=True, eq=False)
class BGe(_Gaussian):
    r"""Marginal likelihood of a linear Gaussian network under a normal-Wishart prior: score-equivalent.

    With :math:`\mu \sim N(\nu, (\alpha_\mu W)^{-1})` and W from a Wishart with :math:`\alpha_w` degrees of
    freedom and parametric matrix T, for a set of l of the n variables and N rows,

    .. math::
        h = \tfrac l2 \log \frac{\alpha_\mu}{N + \alpha_\mu} - \tfrac{lN}2 \log \pi
            + \log \frac{\Gamma_l((N + \alpha_w - n + l) / 2)}{\Gamma_l((\alpha_w - n + l) / 2)}
            + \tfrac{\alpha_w - n + l}2 \log |T| - \tfrac{N + \alpha_w - n + l}2 \log |R|,

    :math:`R = T + S + \frac{N \alpha_\mu}{N + \alpha_\mu} (\nu - \bar x)(\nu - \bar x)^\top` with S the
    scatter about the mean, T and R restricted to the set (Geiger & Heckerman 2002, as corrected by Kuipers,
    Moffa & Heckerman 2014). The score depends on the units of the variables: standardise them unless the
    prior knows them.

    Args:
        alpha_mu: :math:`\alpha_\mu` > 0, rows that the prior mean is worth.
        alpha_w: :math:`\alpha_w` > n - 1; ``None`` for :math:`n + \alpha_\mu + 1`.
        prior_mean: :math:`\nu`, a number or one for each variable.
        prior_scale: T, a matrix, or t > 0 for T = t I; ``None`` for
            :math:`t = \alpha_\mu (\alpha_w - n - 1) / (\alpha_\mu + 1)`.
    """

    alpha_mu: float = 1.0
    alpha_w: float | None = None
    prior_mean: Any = 0.0
    prior_scale: Any = None
    name = "bge"

    def __post_init__(self) -> None:
        check_positive(self.alpha_mu, "alpha_mu")

    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        super().check(table)
        self.term(table)

    def term(self, table: Table) -> Term:
        """The prior for the variables of this table, agents after them.

        Raises:
            ConfigError: hyperparameters that make no prior for so many variables.
        """
        n, total = table.num_variables, columns(table).shape[1]
        alpha_w = n + self.alpha_mu + 1 if self.alpha_w is None else self.alpha_w
        if not alpha_w > n - 1:
            raise ConfigError(f"alpha_w: expected more than {n - 1} for {n} variables, got {alpha_w:g}")
        mean = torch.as_tensor(self.prior_mean, dtype=torch.float64).cpu()
        if mean.shape not in ((), (n,)) or not bool(mean.isfinite().all()):
            raise ConfigError(
                f"prior_mean: expected a finite number, or {n} of them, got {self.prior_mean!r}"
            )
        scale = self.prior_scale
        if scale is None:
            scale = self.alpha_mu * (alpha_w - n - 1) / (self.alpha_mu + 1)
            if scale <= 0:
                raise ConfigError(
                    f"prior_scale: has no default for alpha_w = {alpha_w:g} <= {n + 1}, the number of "
                    "variables + 1; give a number > 0"
                )
        matrix = torch.as_tensor(scale, dtype=torch.float64).cpu()
        if matrix.ndim == 0:
            matrix = matrix * torch.eye(n, dtype=torch.float64)
        if matrix.shape != (n, n) or not bool((matrix - matrix.T).abs().max() <= 1e-12 * matrix.abs().max()):
            raise ConfigError(f"prior_scale: expected a number or a symmetric matrix {n} x {n}")
        if bool(torch.linalg.cholesky_ex(matrix)[1]):
            raise ConfigError("prior_scale: expected a positive-definite matrix")
        agents = total - n
        whole = torch.block_diag(matrix, torch.eye(agents, dtype=torch.float64) * matrix.diagonal().mean())
        nu = torch.cat([mean.expand(n), torch.zeros(agents, dtype=torch.float64)])
        numbers = (tuple(nu.tolist()), tuple(whole.flatten().tolist()))
        return _Wishart(float(self.alpha_mu), float(alpha_w - n), *numbers)


@dataclass(frozen=True)
class GaussianBIC(_Gaussian):
    r"""Largest log likelihood of a linear regression, less :math:`\tfrac12 \log N` a parameter.

    The parameters of a node are its coefficients, an intercept and a variance. Where parents are
    collinear, what they determine counts once.
    """

    name = "gaussian_bic"

    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        super().check(table)
        for node in range(table.num_variables):
            rows = min((int(rows.sum()) for rows in mechanisms(table, node)), default=table.num_rows)
            if rows <= table.num_variables:
                warn(
                    f"table: only {rows} rows count for {table.names[node]}, and regressions on {rows - 1} "
                    "parents or more fit any data perfectly; set max_parents well below, or use 'bge'",
                    DataWarning,
                )
                return

    def term(self, table: Table) -> Term:
        """What h is."""
        return _Fitted()


@dataclass(frozen=True)
class _Wishart:
    alpha_mu: float
    excess: float
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """See :meth:`Term.function`."""
        return _Marginal(self, columns(table)[rows])


class _Marginal(SetFunction):
    def __init__(self, term: _Wishart, values: Tensor) -> None:
        self.device, self.num_rows, self.term = values.device, len(values), term
        n = values.shape[1]
        self.prior = torch.tensor(term.scale, dtype=torch.float64, device=self.device).view(n, n)
        nu = torch.tensor(term.mean, dtype=torch.float64, device=self.device)
        centre = values.mean(0)
        away, weight = nu - centre, self.num_rows * term.alpha_mu / (self.num_rows + term.alpha_mu)
        centred = values - centre
        self.posterior = self.prior + centred.T @ centred + weight * torch.outer(away, away)

    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """See :meth:`SetFunction.sets`."""
        size, rows, term = sets.shape[1], self.num_rows, self.term
        before, after = (term.excess + size) / 2, (rows + term.excess + size) / 2
        half = torch.tensor([after, before], dtype=torch.float64)
        gammas = torch.mvlgamma(half, size) if size else torch.zeros(2, dtype=torch.float64)
        constant = (
            0.5 * size * math.log(term.alpha_mu / (rows + term.alpha_mu))
            - 0.5 * size * rows * math.log(math.pi)
            + float(gammas[0] - gammas[1])
        )
        parts = []
        for chunk in chunks(sets):
            log_prior = log_determinants(submatrices(self.prior, chunk))
            log_posterior = log_determinants(submatrices(self.posterior, chunk))
            parts.append(constant + before * log_prior - after * log_posterior)
            advance(len(chunk))
        return torch.cat(parts) if parts else sets.new_zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class _Fitted:
    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """See :meth:`Term.function`."""
        return _Likelihood(columns(table)[rows])


class _Likelihood(SetFunction):
    def __init__(self, values: Tensor) -> None:
        self.device, self.num_rows = values.device, len(values)
        self.correlation, self.log_variance = correlation(values)

    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """See :meth:`SetFunction.sets`."""
        size, rows = sets.shape[1], self.num_rows
        parameters = size + size * (size + 1) / 2
        constant = -0.5 * rows * size * (math.log(2 * math.pi) + 1) - 0.5 * parameters * math.log(rows)
        parts = []
        for chunk in chunks(sets):
            log_det = log_determinants(submatrices(self.correlation, chunk), SINGULAR)
            log_det = log_det + self.log_variance[chunk].sum(-1)
            parts.append(constant - 0.5 * rows * log_det)
            advance(len(chunk))
        return torch.cat(parts) if parts else sets.new_zeros(0, dtype=torch.float64)


def chunks(sets: Tensor) -> tuple[Tensor, ...]:
    """Sets, (F, m), in groups whose matrices are of a good size together."""
    return sets.split(max(1, elements(sets.device) // max(1, sets.shape[1] ** 2)))


def submatrices(matrix: Tensor, sets: Tensor) -> Tensor:
    """Rows and columns of each set, (F, m), of a matrix (*, n, n); shape (*, F, m, m)."""
    return matrix[..., sets[:, :, None], sets[:, None, :]]


def log_determinants(matrices: Tensor, floor: float = 0.0) -> Tensor:
    """Log determinants of positive semi-definite matrices (*, m, m); shape (*).

    Eigenvalues below ``floor`` count as that. What makes the covariance of parents singular then cancels from
    the score of a family: the node has no part in it.
    """
    if matrices.shape[-1] == 0:
        return torch.zeros(matrices.shape[:-2], dtype=matrices.dtype, device=matrices.device)
    factor, failed = torch.linalg.cholesky_ex(matrices)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    # Pivots are no eigenvalues, but where all of them are large the matrix is far from singular.
    doubtful = (failed > 0) | (diagonal.square().amin(-1) < 100 * floor)
    result = 2 * diagonal.clamp(min=1e-150).log().sum(-1)
    if bool(doubtful.any()):
        values = torch.linalg.eigvalsh(matrices[doubtful])
        result[doubtful] = values.clamp(min=max(floor, 1e-300)).log().sum(-1)
    return result


def correlation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation matrix (n, n) and log variances (n,) of rows (N, n); zeros where a column is constant."""
    centred = values - values.mean(0)
    scale = centred.square().mean(0).sqrt()
    # What is left of a constant column by rounding.
    constant = scale <= 1e-13 * values.abs().amax(0).clamp(min=1e-150)
    standard = torch.where(constant, 0.0, centred / torch.where(constant, 1.0, scale))
    matrix = standard.T @ standard / len(values)
    matrix.diagonal().copy_((~constant).double())
    return matrix, torch.where(constant, 0.0, 2 * scale.clamp(min=1e-150).log())
