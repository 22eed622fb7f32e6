"""Every family, interrupted in training and resumed from its checkpoint, ends at the same bits."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import ppgen
from ppgen import datasets
from ppgen.contract import GenerativeModel, HasDefaultObjective
from ppgen.errors import ShapeError
from ppgen.inference import ELBO
from ppgen.inference.objectives.base import Objective
from ppgen.models import families
from ppgen.models.family import Family
from ppgen.ops.random import forked_rng


def interrupted_after(steps: int, objective: Objective) -> Objective:
    """The objective, with a Ctrl-C in one of its steps."""
    make_stepper = objective.stepper

    def stepper(*args: Any, **kwargs: Any) -> Any:
        made: Any = make_stepper(*args, **kwargs)
        whole_step, done = made.step, [0]

        def step(*batch: Any) -> Any:
            done[0] += 1
            if done[0] == steps:
                signal.raise_signal(signal.SIGINT)
            return whole_step(*batch)

        made.step = step
        return made

    objective.stepper = stepper  # type: ignore[method-assign]
    return objective


@pytest.mark.parametrize("family", families().values(), ids=families())
def test_resumes_to_the_same_bits(family: Family, tmp_path: Path) -> None:
    digits = datasets.load("digits")
    data = digits.binarised() if family.view == "binary" else digits
    train, validation = data.train.take(slice(0, 200)), data.validation
    try:
        with forked_rng(3):
            family.build(data.event_shape, data.values, len(train))
    except ShapeError:  # for series: an image is one, pixel by pixel
        train, validation = (dataclasses.replace(s, x=s.x.flatten(1)) for s in (train, validation))
    options = {k: v for k, v in family.fit_options.items() if k not in ("max_seconds", "patience", "epochs")}

    def run(steps: int | None, checkpoint: Path | None) -> tuple[GenerativeModel, ppgen.inference.FitResult]:
        with forked_rng(3):
            model = family.build(train.x.shape[1:], data.values, len(train))
        objective = model.default_objective() if isinstance(model, HasDefaultObjective) else ELBO()
        if steps is not None:
            objective = interrupted_after(steps, objective)
        result = ppgen.fit(
            model,
            train,
            validation=validation,
            objective=objective,
            epochs=4,
            device="cpu",
            progress=False,
            checkpoint=checkpoint,
            **options,
        )
        return model, result

    expected, whole = run(None, None)
    cut = min(3, whole.steps)  # what is found by counting is done before
    _, broken = run(cut, tmp_path)
    assert broken.stopped == "interrupted"
    assert broken.steps == cut
    resumed, rest = run(None, tmp_path)
    assert rest.steps == whole.steps
    for (name, a), b in zip(expected.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
