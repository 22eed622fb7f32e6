"""What the entries have in common: train on one split, choose on another, measure on a third."""

from __future__ import annotations

import time
from typing import Any, Protocol

from benchmarks.likelihood.registry import Figure, Run
from ppgen import fit
from ppgen.contract import Estimate, GenerativeModel
from ppgen.datasets.split import DataSet, Split


class Measure(Protocol):
    """A figure of :mod:`ppgen.metrics`."""

    def __call__(self, model: GenerativeModel, data: Split, *, seed: int) -> Estimate:
        """The mean over the data, a scalar."""


def train_and_test(
    model: GenerativeModel, data: DataSet, run: Run, measure: Measure, note: str, **options: Any
) -> Figure:
    """Fit on the training split, keep the epoch that is best on the validation split, test.

    Args:
        model: made anew.
        data: the three splits.
        run: what was asked for; its time limit goes before that of ``options``.
        measure: the figure.
        note: what is trained, in a line.
        **options: of :func:`ppgen.fit`; learning rates fall to zero unless there is another ``schedule``.
    """
    if run.seconds is not None:
        options["max_seconds"] = run.seconds
    if "learning_rate" in options:
        options.setdefault("schedule", "cosine")
    start = time.perf_counter()
    fit(
        model,
        data.train,
        validation=data.validation,
        seed=run.seed,
        device=run.device,
        progress=False,
        **options,
    )
    seconds = time.perf_counter() - start
    found = measure(model, data.test, seed=run.seed)
    return Figure(
        float(found.value), float(found.std_error), str(found.kind), model.num_parameters, seconds, note
    )
