"""The survey: fit many families on one data set, measure each, write one page."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.contract import GenerativeModel
from ppgen.datasets import load
from ppgen.datasets.declare import column_warnings
from ppgen.datasets.split import DataSet
from ppgen.errors import ConfigError, DataError, DataWarning, TrainingWarning
from ppgen.inference.checkpoint import read_bundle, save_model
from ppgen.inference.result import FitResult
from ppgen.inference.svi import fit
from ppgen.inference.trainee import find_device
from ppgen.models.family import Family
from ppgen.ops.random import forked_rng
from ppgen.report.findings import findings
from ppgen.report.measure import View, measure_model, reference_rows
from ppgen.report.page import Page, render
from ppgen.report.pictures import draw_curves, draw_samples
from ppgen.report.plan import Settings, choose, default_threads
from ppgen.report.table import SCHEMA, Row, to_csv, to_json, write_atomically
from ppgen.report.table_html import values_title

DEFAULT_BUDGET = 150.0
_RECORD = "record.json"
# Two trainings count as alike where the seconds allowed to them differ by less than this share.
_SAME_TIME = 0.2


@dataclass(frozen=True)
class SurveyResult:
    """What a survey found and where it wrote it.

    Attributes:
        path: the page.
        rows: the table, references first in each group of data values.
        findings: sentences computed from the table.
        environment: versions, device, seed, data and times.
        interrupted: whether Ctrl-C ended it; the same call goes on from there.
    """

    path: Path
    rows: list[Row]
    findings: list[str]
    environment: dict[str, Any]
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every family has its figures, but for those that are not for such data."""
        statuses = [row.status for row in self.rows if row.group == "family"]
        return not self.interrupted and "done" in statuses and set(statuses) <= {"done", "skipped"}

    def to_frame(self) -> Any:
        """The table as a pandas ``DataFrame``, one line a row, as in ``table.csv``."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows])

    def __str__(self) -> str:
        statuses = [row.status for row in self.rows if row.group == "family"]
        counted = f"{statuses.count('done')} of {len(statuses)} families measured"
        skipped = statuses.count("skipped")
        if skipped:
            counted += f", {skipped} skipped (not for these data)"
        return "\n".join([*self.findings, f"{counted}; the report is at {self.path}"])


def survey(
    data: str | Path | DataSet = "digits",
    *,
    families: Sequence[str | Family] | None = None,
    budget: float = DEFAULT_BUDGET,
    device: str | torch.device = "auto",
    out: str | os.PathLike[str] = "ppgen-survey",
    seed: int = 0,
    num_samples: int = 1000,
    threads: int | None = None,
    progress: bool = True,
    load_options: Mapping[str, Any] | None = None,
) -> SurveyResult:
    """Fit families on one data set and write the measured version of the textbook's table.

    Writes ``index.html`` (complete in itself), ``table.json``, ``table.csv``, and for each family
    a directory with its pictures and its saved model (:func:`ppgen.load` reads it). A second call with
    the same arguments keeps what is done and goes on with what is not; one with other families keeps
    the rows whose training would have been given about the same time.

    Args:
        data: a registered name, a file (see :func:`ppgen.datasets.load`), or a data set.
        families: names or :class:`~ppgen.models.family.Family` objects; by default those for small images.
            Of those that are not asked for by their own names (but by a group's, or ``"all"``), what is not
            for such data is skipped.
        budget: seconds of training over all families. What one leaves unused goes to those after it.
        device: as in :func:`ppgen.fit`.
        out: directory of the report.
        seed: of initialisation, training, sampling and features.
        num_samples: draws a family; samples are compared with as many test data, or with all of
            them where there are fewer.
        threads: threads of torch on the CPU while the survey runs; by default one for small data,
            else as many as torch has now.
        progress: show lines on stderr, and bars where that is a terminal.
        load_options: of :func:`ppgen.datasets.load` where ``data`` is a name or a file:
            ``{"label": "species"}``.

    Raises:
        ConfigError: an unknown family, a seed out of range, or a budget, number of samples or of
            threads that is not positive.
        DataError: data that cannot be read, or fewer than 2 to train on.
        DeviceError: a device that is not there.
    """
    chosen = choose(families)
    place = find_device(device)
    dataset, remarks = _data_and_remarks(data, load_options or {})
    if len(dataset.train) < 2:
        raise DataError(
            f"data: a survey needs 2 training data or more, {dataset.name} leaves {len(dataset.train)}; "
            "bring more rows"
        )
    if threads is None:
        threads = default_threads(dataset.train.num_dims)
    settings = Settings(float(budget), place, seed, num_samples, threads, progress)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        named = frozenset(f.name if isinstance(f, Family) else f for f in families or ())
        return _Survey(dataset, chosen, settings, Path(out), remarks, named).go()
    finally:
        torch.set_num_threads(before)


def _data_and_remarks(
    data: str | Path | DataSet, load_options: Mapping[str, Any]
) -> tuple[DataSet, list[str]]:
    """The data set, and what is doubtful about it, which is warned of as well."""
    if isinstance(data, DataSet):
        if load_options:
            raise ConfigError(
                "load_options: these are for a name or a file, and data is loaded; leave them out"
            )
        real = data.values.kind == "real"
        return data, column_warnings(data.train.x, None, data.name) if real else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(data, **load_options)
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=3)
    return dataset, [str(w.message) for w in caught if issubclass(w.category, DataWarning)]


@dataclass
class _Survey:
    """One run of the survey and its state."""

    data: DataSet
    families: list[Family]
    settings: Settings
    out: Path
    remarks: list[str]
    named: frozenset[str]
    views: dict[str, View] = field(default_factory=dict)
    references: list[Row] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    test_nll: dict[str, Tensor] = field(default_factory=dict)
    training: float = 0.0

    def go(self) -> SurveyResult:
        self.started = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        for family in self.families:
            self.rows[family.name] = self._empty_row(family)
        current: Family | None = None
        interrupted = False
        try:
            for number, current in enumerate(self.families):
                self._say(f"[{number + 1}/{len(self.families)}] {current.title}")
                row = self._one(current, len(self.families) - number)
                self.rows[current.name] = row
                self._say("      " + _summary(row))
                self._write()
                if row.status == "interrupted":
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
            if current is not None and self.rows[current.name].status == "pending":
                reason = "interrupted before it was measured; the same command goes on from here"
                self.rows[current.name] = replace(
                    self._empty_row(current), status="interrupted", reason=reason
                )
        return self._write(interrupted)

    # -- one family -----------------------------------------------------------------------

    def _one(self, family: Family, left: int) -> Row:
        """The row of a family: kept from an earlier run, measured now, or saying what failed."""
        try:
            try:
                view = self._view(family)
                with forked_rng(self.settings.seed):
                    model = family.build(view.data.event_shape, view.data.values, len(view.data.train))
                if model.context_dim:
                    raise ConfigError(
                        f"families: {family.title} models data given a context, and a survey has none; leave "
                        "it out"
                    )
            except (ConfigError, DataError) as error:
                # The family is not for such data; that is a failure only where it was asked for.
                if family.name in self.named:
                    raise
                return replace(self._empty_row(family), status="skipped", reason=str(error))
            signature = self.settings.signature(family, model, view.data)
            seconds = self._allowed(family, left)
            kept = self._kept(family, signature, seconds)
            if kept is not None:
                self.training += kept.train_seconds or 0.0
                self._say("      kept from an earlier run")
                return kept
            result = self._train(family, model, view, seconds, signature)
            if result.stopped == "interrupted":
                reason = f"interrupted after {result.epochs} epochs; the same command goes on from there"
                return replace(self._empty_row(family), status="interrupted", reason=reason)
            self._say(f"      trained {result.seconds:.1f} s ({result.stopped}), measuring")
            return self._measure(family, model, view, result, seconds, signature)
        except Exception as error:
            # Whatever one family does, the others get their turn; its row carries the message.
            return replace(
                self._empty_row(family), status="failed", reason=f"{type(error).__name__}: {error}"
            )

    def _allowed(self, family: Family, left: int) -> float:
        """Seconds that a family may train: an equal share of what is left of the budget."""
        share = max(1.0, (self.settings.budget - self.training) / left)
        return float(min(share, family.fit_options.get("max_seconds", share)))

    def _train(
        self, family: Family, model: GenerativeModel, view: View, seconds: float, signature: str
    ) -> FitResult:
        place = self._place(family)
        checkpoint = place / f"checkpoint-{signature[:12]}"
        for stale in place.glob("checkpoint-*"):
            if stale != checkpoint:
                shutil.rmtree(stale)
        # A picture or record of other settings must not stand beside the new figures.
        for old in (*place.glob("*.png"), *place.glob("*.json")):
            old.unlink()
        options = {**family.fit_options, "max_seconds": seconds}
        self._say(f"      training on {len(view.data.train)} data, up to {seconds:.0f} s")
        with warnings.catch_warnings():
            # They come back in the result, and the page shows them.
            warnings.simplefilter("ignore", TrainingWarning)
            result = fit(
                model,
                view.data.train,
                validation=view.data.validation,
                seed=self.settings.seed,
                device=self.settings.device,
                checkpoint=checkpoint,
                checkpoint_seconds=10.0,
                progress=self.settings.progress and sys.stderr.isatty(),
                **options,
            )
        self.training += result.seconds
        return result

    def _measure(
        self,
        family: Family,
        model: GenerativeModel,
        view: View,
        result: FitResult,
        seconds: float,
        signature: str,
    ) -> Row:
        place = self._place(family)
        settings = self.settings
        found = measure_model(model, view, num_samples=settings.num_samples, seed=settings.seed)
        row = replace(
            self._empty_row(family),
            status="done",
            reason=None,
            density=str(model.density or "implicit"),
            notes=found.notes,
            train_seconds=result.seconds,
            epochs=result.epochs,
            steps=result.steps,
            stopped=result.stopped,
            warnings=tuple(result.warnings),
            **found.figures,
        )
        if found.samples is not None:
            draw_samples(place, view.data.test.x, found.samples)
        draw_curves(place, result.history, model)
        save_model(model, place / "model")
        each = None if found.test_nll is None else found.test_nll.tolist()
        record = {
            "schema": SCHEMA,
            "signature": signature,
            "allowed_seconds": seconds,
            "row": row.to_json(),
            "test_nll": each,
            "pictures": sorted(path.name for path in place.glob("*.png")),
        }
        write_atomically(place / "history.json", json.dumps(result.history, indent=1))
        write_atomically(place / _RECORD, json.dumps(record, indent=1))
        self._remember(row, each)
        for checkpoint in place.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return row

    def _kept(self, family: Family, signature: str, seconds: float) -> Row | None:
        """The row of an earlier run with the same signature whose model and pictures are whole.

        And that was allowed about as many seconds, or needed fewer for the epochs that it was to do.
        """
        place = self._place(family)
        try:
            record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA or record["signature"] != signature:
                return None
            read_bundle(place / "model")
            if not all((place / name).is_file() for name in record["pictures"]):
                return None
            row = Row.from_json(record["row"])
            done = "epochs" in family.fit_options and row.stopped != "time"
            alike = abs(record["allowed_seconds"] - seconds) <= _SAME_TIME * seconds
            if not alike and not (done and float(row.train_seconds or 0.0) <= seconds):
                return None
            self._remember(row, record["test_nll"])
            return row
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            # Damaged or missing: measure again.
            return None

    # -- pieces ---------------------------------------------------------------------------

    def _remember(self, row: Row, test_nll: Sequence[float] | Tensor | None) -> None:
        if test_nll is not None:
            self.test_nll[f"{row.values}/{row.name}"] = torch.as_tensor(test_nll, dtype=torch.float64)

    def _view(self, family: Family) -> View:
        """The data as the family sees them; features and references are made once a view."""
        data = self.data
        if family.view == "binary" and data.values.kind != "binary":
            if data.values.kind == "real":
                raise DataError(
                    f"data: {family.title} is surveyed on binary data, and {data.name} has real values; "
                    "leave the family out, or give data with levels"
                )
            data = data.binarised()
        key = str(data.values)
        if key not in self.views:
            self._say(f"      preparing features and references ({values_title(key).lower()})")
            view = View.of(data, num_samples=self.settings.num_samples, seed=self.settings.seed)
            for row, test_nll in reference_rows(view, seed=self.settings.seed):
                self.references.append(row)
                self._remember(row, test_nll)
            self.views[key] = view
        return self.views[key]

    def _place(self, family: Family) -> Path:
        place = self.out / "families" / family.name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _empty_row(self, family: Family) -> Row:
        values = self.data.values
        binary = family.view == "binary" and values.discrete
        return Row(
            family.name,
            family.title,
            "family",
            "binary" if binary else str(values),
            str(family.density or "implicit"),
            status="pending",
            reason="not begun; the same command goes on from here",
            reading=family.reading,
        )

    def _write(self, interrupted: bool = False) -> SurveyResult:
        """Write the page and the tables with what there is by now."""
        rows = self._sorted_rows()
        environment = self.settings.environment(self.data, time.perf_counter() - self.started)
        sentences = findings(rows, self.test_nll, self.data.train.num_dims)
        page = Page(
            data=self.data,
            views=list(self.views.values()),
            rows=rows,
            findings=sentences,
            environment=environment,
            out=self.out,
            interrupted=interrupted,
            remarks=self.remarks,
        )
        path = self.out / "index.html"
        write_atomically(self.out / "table.json", to_json(rows, environment))
        write_atomically(self.out / "table.csv", to_csv(rows))
        write_atomically(path, render(page))
        return SurveyResult(path, rows, sentences, environment, interrupted)

    def _sorted_rows(self) -> list[Row]:
        everything = [*self.references, *self.rows.values()]
        order = list(dict.fromkeys([str(self.data.values), *(row.values for row in everything)]))
        return sorted(everything, key=lambda row: order.index(row.values))

    def _say(self, line: str) -> None:
        if self.settings.progress:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _summary(row: Row) -> str:
    if row.status != "done":
        return f"{row.status}: {row.reason}"
    bits = (
        row.notes.get("bits_per_dim", "no bits/dim")
        if row.bits_per_dim is None
        else f"{row.bits_per_dim} bits/dim"
    )
    return bits if row.fid is None else f"{bits}, FID {row.fid}"
