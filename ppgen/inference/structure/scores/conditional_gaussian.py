r"""The conditional-Gaussian BIC, for tables of categorical and continuous variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.scores.counting import check_cells, elements, joint_ids
from ppgen.inference.structure.scores.functions import (
    Advance,
    SetFunction,
    cardinalities,
    columns,
    silent,
)
from ppgen.inference.structure.scores.gaussian import (
    SINGULAR,
    correlation,
    submatrices,
)
from ppgen.inference.structure.scores.parts import Part, PartScore, check_mixed, mechanisms
from ppgen.inference.structure.table import Table


@dataclass(frozen=True)
class ConditionalGaussianBIC(PartScore):
    r"""Likelihood ratio of conditional-Gaussian models, less :math:`\tfrac12 \log N` a parameter.

    The model of a set S of categorical variables D and c continuous ones C: any table over the r
    configurations d of D, and given each a Gaussian with a mean and covariance of its own,

    .. math::
        h(S) = \sum_d \Big[ N_d \log \frac{N_d}{N} + \log N(C_d; \bar x_d, \Sigma_d) \Big]
            - \tfrac12 \log N \, \big[ r - 1 + r\, c (c + 3) / 2 \big],

    and the score of a family is :math:`h(P \cup v) - h(P)` (Andrews, Ramsey & Cooper 2018). For a
    continuous node it is that of one linear regression on the continuous parents for each configuration
    of the categorical ones, with r (c + 2) parameters. For a categorical node it is that of classes with
    Gaussian continuous parents, by Bayes' rule; no regression, but the same for Markov-equivalent graphs.
    Tables of one kind only have the scores of ``BIC`` and ``GaussianBIC``. Interventions count as for these.

    Args:
        pooled_rows: m >= 0. Configurations with few rows have no covariance of their own, so
            :math:`\Sigma_d = (N_d \hat\Sigma_d + m \hat\Sigma) / (N_d + m)` with the covariance
            :math:`\hat\Sigma` of all rows that count; 0 for the plain maximum of the likelihood.
    """

    pooled_rows: float = 1.0
    name = "conditional_gaussian_bic"

    def __post_init__(self) -> None:
        if not 0 <= self.pooled_rows < math.inf:
            raise ConfigError(f"pooled_rows: expected a number >= 0, got {self.pooled_rows!r}")

    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        check_mixed(table, self.name)

    def parts(self, table: Table, node: int) -> list[Part]:
        """See :meth:`PartScore.parts`."""
        term = _Term(self.pooled_rows)
        return [
            part
            for rows in mechanisms(table, node)
            for part in (Part(1, rows, True, term), Part(-1, rows, False, term))
        ]


@dataclass(frozen=True)
class _Term:
    pooled_rows: float

    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """See :meth:`Term.function`."""
        # In a table of numbers only, agents are numbers too.
        levels = cardinalities(table)
        if table.is_continuous:
            levels = (0,) * len(levels)
        return _Function(columns(table)[rows], levels, self.pooled_rows)


class _Function(SetFunction):
    def __init__(self, values: Tensor, levels: Sequence[int], pooled_rows: float) -> None:
        self.device, self.levels, self.pooled_rows = values.device, tuple(levels), pooled_rows
        self.num_rows = len(values)
        self.codes = values.long()
        self.continuous = [c for c, cardinality in enumerate(levels) if cardinality == 0]
        self.place = {c: i for i, c in enumerate(self.continuous)}
        numbers = values[:, self.continuous]
        self.correlation, self.log_variance = correlation(numbers)
        scale = (0.5 * self.log_variance).exp()
        self.standard = (numbers - numbers.mean(0)) / scale

    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """See :meth:`SetFunction.sets`."""
        result = torch.zeros(len(sets), dtype=torch.float64, device=self.device)
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        members = sets.sort(dim=1).values.tolist()
        for index, one in enumerate(members):
            categorical = tuple(c for c in one if self.levels[c])
            groups.setdefault((categorical, len(one) - len(categorical)), []).append(index)
        for (categorical, size), indices in groups.items():
            places = [[self.place[c] for c in members[i] if not self.levels[c]] for i in indices]
            chosen = torch.tensor(places, dtype=torch.int64, device=self.device).view(len(indices), size)
            result[indices] = self._group(categorical, chosen)
            advance(len(indices))
        return result

    def _group(self, categorical: Sequence[int], sets: Tensor) -> Tensor:
        """Values of sets with the same categorical variables and these continuous ones, (F, c), by place."""
        rows, size = self.num_rows, sets.shape[1]
        levels = [self.levels[c] for c in categorical]
        ids, num = joint_ids(self.codes[:, list(categorical)], levels)
        cells = math.prod(levels)
        check_cells(torch.tensor(float(cells)))
        counts = torch.bincount(ids, minlength=num).double()
        parameters = cells - 1 + cells * size * (size + 3) / 2
        constant = float(torch.xlogy(counts, counts / rows).sum()) - 0.5 * math.log(rows) * parameters
        if size == 0:
            return torch.full((len(sets),), constant, dtype=torch.float64, device=self.device)
        used, position = torch.unique(sets, return_inverse=True)
        own = self._covariances(used, ids, counts)
        pooled = self.correlation[used[:, None], used]
        shrunk = (counts[:, None, None] * own + self.pooled_rows * pooled) / (counts + self.pooled_rows)[
            :, None, None
        ]
        scale = self.log_variance[used]
        parts = []
        for chunk in position.split(max(1, elements(self.device) // (num * size**2))):
            log_det, square = _shape(submatrices(shrunk, chunk), submatrices(own, chunk))
            log_det = log_det + scale[chunk].sum(-1)
            parts.append(counts @ (size * math.log(2 * math.pi) + log_det + square))
        return constant - 0.5 * torch.cat(parts)

    def _covariances(self, used: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Covariances of some numbers, (c,), within each configuration; shape (G, c, c)."""
        x = self.standard[:, used]
        means = x.new_zeros(len(counts), len(used)).index_add_(0, ids, x) / counts[:, None]
        centred = x - means[ids]
        result = x.new_zeros(len(counts), len(used), len(used))
        rows = max(1, elements(self.device) // len(used) ** 2)
        for part, owner in zip(centred.split(rows), ids.split(rows), strict=True):
            result.index_add_(0, owner, part[:, :, None] * part[:, None, :])
        return result / counts[:, None, None]


def _shape(shrunk: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Log determinants of covariances (*, m, m), and mean squared distances of rows of covariance ``own``.

    In directions in which nothing varies, there is no distance.
    """
    values, vectors = torch.linalg.eigh(shrunk)
    along = torch.einsum("...ji,...jk,...ki->...i", vectors, own, vectors)
    square = torch.where(values > SINGULAR, along / values.clamp(min=SINGULAR), 0.0).sum(-1)
    return values.clamp(min=SINGULAR).log().sum(-1), square
