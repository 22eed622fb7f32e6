r"""Densities of rows whose columns are variables of different kinds, independent given a class.

.. math:: p(x \mid k) = \prod_d p(x_d \mid k)

Each column is Bernoulli, categorical, Gaussian or Poisson; NaN is a missing coordinate and leaves the
product.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.datasets.tensors import listed
from ppgen.datasets.values import Values, table_values
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.emissions import BernoulliEmission, CategoricalEmission, Emission, PoissonEmission
from ppgen.models.gaussian_emission import GaussianEmission

ColumnKind = Literal["gaussian", "bernoulli", "categorical", "poisson"]
# The least variance of a real column is this share of its variance in all data.
_SHARE = 1e-9


class GaussianColumns(GaussianEmission):
    r"""Columns of real numbers, a mean and a variance a class.

    By default no variance is below :math:`10^{-9}` of that of the column in all data, so that units do not
    matter; a column that is constant in all data takes the largest variance of the others for its own.

    Args:
        num_states: number of classes K.
        names: of the columns.
        classes: of the classes; their numbers by default.
        min_variance: least variance in squared units of the data, in the place of that share.
    """

    min_variance: Tensor

    def __init__(
        self,
        num_states: int,
        names: Sequence[Hashable],
        classes: Sequence[Hashable] | None,
        min_variance: float | None,
    ) -> None:
        least = _SHARE if min_variance is None else min_variance
        super().__init__(num_states, len(names), min_variance=least)
        self.names, self.classes, self.relative = names, classes, min_variance is None
        del self.min_variance
        self.register_buffer("min_variance", torch.full((len(names),), least))

    def prepare(self, rows: Tensor) -> None:
        """Find the variances that the least ones are shares of; and as the base class."""
        if self.relative:
            known = ~rows.isnan()
            # About a value of the column: rounding of the mean makes no constant column vary.
            first = rows.gather(0, known.to(torch.int8).argmax(0)[None])
            moved = torch.where(known, rows - first, 0.0)
            count = known.sum(0).clamp_min(1)
            away = torch.where(known, moved - moved.sum(0) / count, 0.0)
            variances = away.square().sum(0) / count
            largest = variances.max() if bool(variances.any()) else torch.ones_like(variances[0])
            self.min_variance.copy_(_SHARE * variances.where(variances > 0, largest))
        super().prepare(rows)

    def _remark(self, collapsed: Tensor) -> str:
        places = []
        for column, which in zip(self.names, collapsed.T, strict=True):
            numbers = which.nonzero()[:, 0].tolist()
            if numbers:
                own = listed([repr(k if self.classes is None else self.classes[k]) for k in numbers])
                everywhere = len(numbers) == self.num_states
                places.append(f"{column!r} (of {'every class' if everywhere else f'class {own}'})")
        return (
            f"collapsed: column(s) {listed(places)} are as good as constant and were held at the least "
            "variance, so that any other value there all but rules the class out; drop these columns, or "
            "raise min_variance"
        )


class ColumnEmission(Emission):
    """Columns grouped by their kind, one emission a group.

    Args:
        num_states: number of classes K.
        num_dims: number of columns D.
        columns: one kind for all columns, or of each column the number of its levels (0: real).
        levels: number of levels L of ``"categorical"`` columns, stored as k / (L - 1).
        min_variance: least variance of Gaussian columns, in squared units of the data; ``None``: see
            :class:`GaussianColumns`.
        smoothing: pseudo-counts at every probability in M-steps.
        names: of the columns, for messages; their numbers by default.
        classes: names of the classes, for messages; their numbers by default.
    """

    support = constraints.real

    def __init__(
        self,
        num_states: int,
        num_dims: int,
        columns: ColumnKind | Sequence[int],
        *,
        levels: int | None = None,
        min_variance: float | None = None,
        smoothing: float = 0.0,
        names: Sequence[Hashable] | None = None,
        classes: Sequence[Hashable] | None = None,
    ) -> None:
        super().__init__(num_states, num_dims)
        self.values, cardinalities = _declared(columns, levels, num_dims)
        self.groups: dict[str, list[int]] = {}
        parts: dict[str, Emission] = {}
        for size in sorted(set(cardinalities)):
            where = [d for d, c in enumerate(cardinalities) if c == size]
            if size == 1:
                continue  # a single level is certain
            name = f"levels{size}" if size > 0 else "counts" if size < 0 else "real"
            self.groups[name] = where
            if size < 0:
                parts[name] = PoissonEmission(num_states, len(where), smoothing=smoothing)
            elif size == 0:
                called = [where[d] if names is None else names[where[d]] for d in range(len(where))]
                parts[name] = GaussianColumns(num_states, called, classes, min_variance)
            elif size == 2:
                parts[name] = BernoulliEmission(num_states, len(where), smoothing=smoothing)
            else:
                parts[name] = CategoricalEmission(num_states, len(where), levels=size, smoothing=smoothing)
        self.parts = nn.ModuleDict(parts)
        # Tables hold level numbers, grids hold k / (L - 1), as the parts do.
        self.on_grid = self.values.kind != "table"

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log density of rows (R, D) under each class, (R, K), in nats; NaN coordinates are left out."""
        total = rows.new_zeros(len(rows), self.num_states)
        for name, part in self._pieces():
            total = total + part.log_prob(self._read(rows, name))
        return total

    def sample(self, states: Tensor) -> Tensor:
        """One row for each class, shape ``(*states.shape, D)``."""
        like = next(self.parameters())
        rows = torch.zeros(*states.shape, self.num_dims, dtype=like.dtype, device=like.device)
        for name, part in self._pieces():
            rows[..., self.groups[name]] = part.sample(states) * self._steps(name)
        return rows

    def start(self, rows: Tensor) -> Tensor:
        """Responsibilities of k-means clusters of the standardised columns."""
        known = ~rows.isnan()
        count = known.sum(0).clamp_min(1)
        mean = torch.where(known, rows, 0.0).sum(0) / count
        spread = (torch.where(known, rows - mean, 0.0).square().sum(0) / count).sqrt()
        return super().start((rows - mean) / spread.where(spread > 0, 1.0))

    def prepare(self, rows: Tensor) -> None:
        """As the parts do."""
        for name, part in self._pieces():
            part.prepare(self._read(rows, name))

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """As the parts do."""
        return tuple(
            note for name, part in self._pieces() for note in part.maximise(self._read(rows, name), weights)
        )

    def log_prior(self) -> Tensor:
        """The sum over the parts, in nats."""
        total = next(self.parameters()).new_zeros(())
        for _, part in self._pieces():
            total = total + part.log_prior()
        return total

    def _pieces(self) -> list[tuple[str, Emission]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Emission)]

    def _steps(self, name: str) -> int:
        """What the part's values are multiplied with to be the data's."""
        grouped = name.removeprefix("levels")
        return int(grouped) - 1 if not self.on_grid and grouped != name else 1

    def _read(self, rows: Tensor, name: str) -> Tensor:
        where, steps = self.groups[name], self._steps(name)
        part = rows if len(where) == self.num_dims else rows[:, where]
        return part if steps == 1 else part / steps


def _declared(
    columns: ColumnKind | Sequence[int], levels: int | None, num_dims: int
) -> tuple[Values, list[int]]:
    """The values of the data, and of each column its number of levels: 0 for reals, -1 for counts."""
    if isinstance(columns, str):
        if (columns == "categorical") != (levels is not None):
            raise ConfigError(
                f"levels: expected a number of levels for categorical columns alone, got {levels} for "
                f"{columns!r}"
            )
        if columns == "categorical" and levels is not None:
            if levels < 2:
                raise ConfigError(f"levels: expected 2 or more, got {levels}")
            return Values("binary" if levels == 2 else "grid", levels, missing=True), [levels] * num_dims
        sizes = {"gaussian": 0, "bernoulli": 2, "poisson": -1}
        if columns not in sizes:
            raise ConfigError(
                "columns: expected 'gaussian', 'bernoulli', 'categorical', 'poisson' or numbers of levels, "
                f"got {columns!r}"
            )
        kinds: dict[str, Literal["real", "binary", "count"]] = {
            "gaussian": "real",
            "bernoulli": "binary",
            "poisson": "count",
        }
        return Values(kinds[columns], missing=True), [sizes[columns]] * num_dims
    cardinalities = [int(c) for c in columns]
    if levels is not None:
        raise ConfigError(f"levels: columns say their own numbers of levels, got {levels}; leave it out")
    if len(cardinalities) != num_dims:
        raise ShapeError(
            f"columns: expected a number of levels (0: real) for each of {num_dims} columns, got "
            f"{len(cardinalities)}"
        )
    if min(cardinalities) < 0:
        raise ConfigError(
            f"columns: expected numbers of levels of 0 (real) or more, got {min(cardinalities)}"
        )
    if set(cardinalities) == {1}:
        raise ConfigError("columns: every column has a single level; there is nothing to model")
    found = table_values(cardinalities, on_grid=False)
    return Values(found.kind, found.levels, found.cardinalities, missing=True), cardinalities
