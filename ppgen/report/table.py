"""The survey's table: rows of numbers that say what they are, as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError

SCHEMA = 1

Status = Literal["done", "failed", "skipped", "interrupted", "pending"]
Group = Literal["reference", "family"]

# The columns that hold a Number, in the order of the table.
MEASURES = ("bits_per_dim", "nll", "fid", "kid", "precision", "recall", "density_score", "coverage")


@dataclass(frozen=True)
class Number:
    """A figure of the table.

    Attributes:
        value: the figure.
        std_error: its standard error.
        kind: what it says about the quantity it stands for; see :class:`~ppgen.contract.Kind`.
    """

    value: float
    std_error: float
    kind: str

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """The number that a scalar estimate holds."""
        return cls(float(estimate.value), float(estimate.std_error), str(estimate.kind))

    @property
    def sign(self) -> str:
        """``"≤ "`` for an upper bound, ``"≥ "`` for a lower one, nothing else."""
        return {Kind.UPPER_BOUND: "≤ ", Kind.LOWER_BOUND: "≥ "}.get(Kind(self.kind), "")

    def text(self) -> tuple[str, str]:
        """The value with its sign, and the standard error (``""`` for 0), to the error's second digit.

        A value without error gets three decimals.
        """
        if not math.isfinite(self.value):
            return str(self.value), ""
        if not (math.isfinite(self.std_error) and self.std_error > 0):
            return self.sign + _signed(self.value, 3), ""
        digits = min(4, max(0, 1 - math.floor(math.log10(self.std_error))))
        return self.sign + _signed(self.value, digits), f"{self.std_error:.{digits}f}"

    def __str__(self) -> str:
        value, error = self.text()
        return f"{value} ± {error}" if error else value


@dataclass(frozen=True)
class Row:
    """One line of the table: a family, or a reference that needs no training.

    Attributes:
        name: short name.
        title: name as in a textbook.
        group: a family, or a reference.
        values: what the coordinates of its data are; rows are comparable where this agrees.
        density: kind of the family's density: exact, lower_bound, unnormalised, ..., implicit.
        status: done; failed, skipped (not for these data) or interrupted: ``reason`` says why;
            pending: not begun.
        reason: why there are no figures.
        notes: measure to the reason why it has no number.
        bits_per_dim: test bits per dimension.
        nll: test negative log-likelihood of a datum, in nats.
        fid: Fréchet distance of features of test data and samples.
        kid: kernel distance of the same.
        precision: share of samples within the data's manifold.
        recall: share of data within the samples' manifold.
        density_score: density of samples (Naeem et al. 2020).
        coverage: coverage of data (Naeem et al. 2020).
        train_seconds: seconds of training.
        epochs: epochs of training.
        steps: optimiser steps.
        stopped: why training ended.
        sample_seconds: seconds that drawing 1000 samples takes.
        latent_dim: size of the latent; ``None`` where there is none.
        latent_unit: what that size counts: dims, (hidden) units, or components of a mixture.
        num_parameters: how many numbers are learnt.
        has_components: whether it is a mixture: a discrete latent with an exact posterior.
        warnings: what the trainer found worth a look.
        reading: one line on how to read the figures.
    """

    name: str
    title: str
    group: Group
    values: str
    density: str
    status: Status = "done"
    reason: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    bits_per_dim: Number | None = None
    nll: Number | None = None
    fid: Number | None = None
    kid: Number | None = None
    precision: Number | None = None
    recall: Number | None = None
    density_score: Number | None = None
    coverage: Number | None = None
    train_seconds: float | None = None
    epochs: int | None = None
    steps: int | None = None
    stopped: str | None = None
    sample_seconds: float | None = None
    latent_dim: int | None = None
    latent_unit: str | None = None
    num_parameters: int | None = None
    has_components: bool = False
    warnings: Sequence[str] = ()
    reading: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The row that :meth:`to_json` wrote."""
        known = {f.name for f in fields(cls)}
        arguments = {k: v for k, v in record.items() if k in known}
        for name in MEASURES:
            if arguments.get(name) is not None:
                arguments[name] = Number(**arguments[name])
        arguments["warnings"] = tuple(arguments.get("warnings", ()))
        return cls(**arguments)

    def to_json(self) -> dict[str, Any]:
        """The row as plain dicts, lists and numbers."""
        record = asdict(self)
        record["warnings"] = list(self.warnings)
        return record

    def flat(self) -> dict[str, Any]:
        """The row with each measure as three columns: value, ``_std_error`` and ``_kind``."""
        record: dict[str, Any] = {}
        for name, value in self.to_json().items():
            if name in MEASURES:
                number = value or {"value": None, "std_error": None, "kind": None}
                record[name] = number["value"]
                record[f"{name}_std_error"] = number["std_error"]
                record[f"{name}_kind"] = number["kind"]
            elif name == "notes":
                record[name] = "; ".join(f"{k}: {v}" for k, v in value.items())
            elif name == "warnings":
                record[name] = "; ".join(value)
            else:
                record[name] = value
        return record


def to_json(rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """The table with its environment as JSON text; numbers that are not finite become ``null``."""
    tree = {"schema": SCHEMA, "environment": dict(environment), "rows": [row.to_json() for row in rows]}
    return json.dumps(_finite(tree), indent=2, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV text, one line a row, measures as in :meth:`Row.flat`."""
    buffer = io.StringIO()
    names = list(Row("", "", "family", "", "").flat())
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.flat() for row in rows)
    return buffer.getvalue()


def read_table(path: str | os.PathLike[str]) -> tuple[list[Row], dict[str, Any]]:
    """Rows and environment of a ``table.json``.

    Raises:
        CheckpointError: the file is damaged, or of a newer schema.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        if tree["schema"] > SCHEMA:
            raise CheckpointError(
                f"path: {path} has schema {tree['schema']}, this version reads up to {SCHEMA}; update ppgen"
            )
        return [Row.from_json(record) for record in tree["rows"]], dict(tree["environment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"path: {path} is not a table of a survey ({type(error).__name__}: {error}); run it again"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file beside its final name, flush it, and rename it over what stood there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _signed(value: float, digits: int) -> str:
    """The value with a typographic minus, and none before a zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.removeprefix("-")


def _finite(node: Any) -> Any:
    """The tree with NaN and infinities, which JSON lacks, as ``None``."""
    if isinstance(node, float) and not math.isfinite(node):
        return None
    if isinstance(node, Mapping):
        return {k: _finite(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(v) for v in node]
    return node
