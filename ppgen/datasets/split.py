"""The records that carry data: one :class:`Split` a role, one :class:`DataSet` a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ppgen.datasets.values import BINARY, REAL, Values
from ppgen.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True)
class Split:
    """Data of one role (train, validation, test), with what is known of their values.

    Attributes:
        x: the data, shape ``(N, *event_shape)``.
        y: labels or other context, first dimension N; ``None`` where there are none.
        values: what a coordinate of ``x`` can be; see :class:`~ppgen.datasets.values.Values`.
        name: for messages and reports.
    """

    x: Tensor
    y: Tensor | None = None
    values: Values = REAL
    name: str = "data"

    def __post_init__(self) -> None:
        if self.x.ndim < 2:
            raise ShapeError(
                f"{self.name}: expected x of shape (N, *event_shape), got {tuple(self.x.shape)}; "
                "use x[:, None] for one column (and .to_event(1) in a Pyro model of your own)"
            )
        if self.x.numel() == 0:
            raise DataError(f"{self.name}: expected at least one datum, got shape {tuple(self.x.shape)}")
        if not self.x.is_floating_point():
            raise DataError(
                f"{self.name}: expected x of a floating-point type, got {self.x.dtype}; use x.float(), or "
                "datasets.from_arrays, which scales levels as well"
            )
        if self.y is not None and len(self.y) != len(self.x):
            raise ShapeError(
                f"{self.name}: x has {len(self.x)} rows and y has {len(self.y)}; they must match"
            )
        self.values.check(self.x, self.name)
        # Sequences of features may be padded with NaN where x may be.
        padded = self.values.missing and self.y is not None and self.y.ndim > 2
        if self.y is not None and self.y.is_floating_point() and not padded:
            self._check_features(self.y)

    def _check_features(self, y: Tensor) -> None:
        if not bool(torch.isfinite(y).all()):
            bad = int((~torch.isfinite(y)).sum())
            raise DataError(
                f"{self.name}: expected finite y, got {bad} NaN or infinite of {y.numel()}; "
                "drop or impute those rows first"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one datum."""
        return self.x.shape[1:]

    @property
    def num_dims(self) -> int:
        """Number of coordinates of one datum."""
        return self.event_shape.numel()

    def to(self, device: torch.device | str) -> Split:
        """The same data on another device."""
        return self._rows_of(self.x.to(device), None if self.y is None else self.y.to(device))

    def take(self, indices: Tensor | slice) -> Split:
        """The rows named by ``indices``."""
        return self._rows_of(self.x[indices], None if self.y is None else self.y[indices])

    def binarised(self, threshold: float = 0.5) -> Split:
        """The same data with 1 where ``x >= threshold`` and 0 elsewhere; what is missing stays so."""
        ones = (self.x >= threshold).to(self.x.dtype)
        values = replace(BINARY, missing=self.values.missing)
        return replace(self, x=torch.where(self.x.isnan(), self.x, ones), values=values)

    def _rows_of(self, x: Tensor, y: Tensor | None) -> Split:
        """A split of data that were checked already, so that batches cost no second look."""
        new = object.__new__(Split)
        for name, value in (("x", x), ("y", y), ("values", self.values), ("name", self.name)):
            object.__setattr__(new, name, value)
        return new

    def joined(self, other: Split) -> Split:
        """The rows of both splits; values and shapes must agree."""
        if other.values != self.values or other.event_shape != self.event_shape:
            raise ShapeError(
                f"other: expected {self.values} values of shape {tuple(self.event_shape)}, "
                f"got {other.values} of shape {tuple(other.event_shape)}"
            )
        y = None if self.y is None or other.y is None else torch.cat([self.y, other.y])
        return replace(self, x=torch.cat([self.x, other.x]), y=y)


@dataclass(frozen=True)
class DataSet:
    """A named data set with deterministic splits.

    Attributes:
        name: the name in the registry, or the file's.
        train: data to fit on.
        validation: data for early stopping and choices.
        test: data for the figures that are reported.
        description: a sentence for reports: what it is and how it was split.
        truth: for toys, the exact data distribution (a Pyro distribution over x).
    """

    name: str
    train: Split
    validation: Split
    test: Split
    description: str = ""
    truth: torch.distributions.Distribution | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for split in (self.validation, self.test):
            if split.event_shape != self.train.event_shape or split.values != self.train.values:
                raise ConfigError(
                    f"{self.name}: all splits need the event shape {tuple(self.train.event_shape)} and "
                    f"{self.train.values} values; {split.name} has {tuple(split.event_shape)}, {split.values}"
                )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one datum."""
        return self.train.event_shape

    @property
    def values(self) -> Values:
        """What a coordinate of a datum can be."""
        return self.train.values

    def binarised(self, threshold: float = 0.5) -> DataSet:
        """The binary view of the data: 1 where ``x >= threshold``."""
        return replace(
            self,
            name=f"{self.name}-binary",
            train=self.train.binarised(threshold),
            validation=self.validation.binarised(threshold),
            test=self.test.binarised(threshold),
            description=f"{self.description} Binarised at x >= {threshold:g}.".strip(),
            truth=None,
        )
