"""The trainer: one loop for every family, for plain Pyro pairs, and for any Pyro ELBO.

.. code-block:: python

    result = ppgen.fit(vae, digits.train, validation=digits.validation, epochs=200)
    result.ok, result.best_loss, result.history[-1]

    ppgen.fit(my_model, (x, y), guide=my_guide, objective=pyro.infer.TraceGraph_ELBO())

A step is whatever the objective says: a gradient step, an EM iteration, a round of two
players. Around it the loop keeps a validated best state, rolls back when numbers overflow,
writes checkpoints that resume to the same numbers, and leaves the global generators as
they were. What was learnt is never lost to a fault that comes later: a full disk or an
overflow at the end is a warning in the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import nn

from ppgen.contract import GenerativeModel, HasDefaultObjective
from ppgen.distributions.parameter_sites import unannounced_parameters
from ppgen.errors import ConfigError
from ppgen.inference.objectives.base import Objective, Program
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.pyro_elbo import PyroObjective
from ppgen.inference.result import FitResult
from ppgen.inference.run import Options, Run, Schedule, undo_compile
from ppgen.inference.trainee import Batches, Trainee, find_device
from ppgen.ops.random import forked_rng

_DEFAULT_EPOCHS, _DEFAULT_STEPS = 100, 3000


def fit(
    model: GenerativeModel | Program,
    data: Any,
    *,
    guide: Program | None = None,
    objective: Objective | PyroELBO | None = None,
    validation: Any = None,
    epochs: int | None = None,
    max_seconds: float | None = None,
    batch_size: int | None = 128,
    learning_rate: float = 1e-3,
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] | None = None,
    schedule: Schedule = "constant",
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    autocast: torch.dtype | None = None,
    compile: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> FitResult:
    """Train a model in place and report how it went.

    Args:
        model: a :class:`~ppgen.contract.GenerativeModel`, or a plain Pyro model with its ``guide``.
        data: for a generative model whatever :func:`ppgen.datasets.as_split` takes (a split, a
            tensor, ``(x, y)``, a torch ``Dataset``); for a plain pair its positional arguments
            (tensors, or a ``Dataset``), cut into batches along their first dimension. A model that
            subsamples by itself, or has latents outside its data plate, wants ``batch_size=None``.
        guide: guide of a plain pair.
        objective: an :class:`~ppgen.inference.objectives.base.Objective` or a Pyro ELBO; by default
            the family's own, else :class:`~ppgen.inference.objectives.elbo.ELBO`.
        validation: data of the same form; the epoch with the smallest validation loss is kept.
        epochs: passes over the data. Where neither this nor ``max_seconds`` is given, what the objective
            says, else 100, or on small data as many as make 3000 steps.
        max_seconds: time limit on training, over all resumed runs.
        batch_size: data a step; ``None`` for all. Objectives for full batches (EM) take all.
        learning_rate: of the optimiser.
        optimizer: makes an optimiser from parameters and learning rate; Adam by default.
        schedule: factor on the learning rate as a function of progress in [0, 1]: a function,
            ``"cosine"`` (to zero) or ``"constant"``. Progress counts time where ``max_seconds`` alone
            is given, else steps.
        clip_norm: largest norm of the gradient.
        patience: epochs without a better validation loss after which training stops; without effect
            where the objective has no figure to validate.
        seed: of batches, noise and initialisation from data; torch's global generators are left
            as they were.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``. The model
            stays there.
        autocast: lower precision for the networks, e.g. ``torch.bfloat16``.
        compile: compile the networks of a generative model (slow start, faster steps); where that
            cannot be done, train without and warn.
        checkpoint: directory of checkpoints. A run that finds some there goes on from the newest,
            on the CPU to the same numbers bit by bit. ``epochs``, ``max_seconds`` and ``patience``
            may be larger than before; the data and all else must be the same.
        checkpoint_seconds: time between checkpoints.
        progress: show a progress bar on stderr.

    The first Ctrl-C (or SIGTERM) ends training after the step under way, with a checkpoint that
    resumes exactly; a second one stops at once, and the newest checkpoint is the last one written.

    Returns:
        The history, why training stopped, and what deserves a look. The model is left in
        evaluation mode with the best state found.

    Raises:
        ConfigError: arguments that make no sense together, or a pair that cannot be trained.
        DataError: data that the model cannot take.
        TrainingError: the loss was not finite again and again, or memory ran out where the batch
            cannot be cut; the model holds its last good state.
        CheckpointError: ``checkpoint`` belongs to another run, or cannot be written at the start
            (later on, that is a warning).
    """
    options = Options(
        epochs,
        max_seconds,
        batch_size,
        learning_rate,
        schedule,
        clip_norm,
        patience,
        seed,
        checkpoint_seconds,
    )
    options.check(has_validation=validation is not None)
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ConfigError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast!r}")
    place = find_device(device)
    trainee = Trainee(model, guide)
    trainee.to(place)
    goal = _as_objective(objective, trainee)
    train = Batches(data, trainee, None if goal.full_batch else batch_size, place)
    if epochs is None and max_seconds is None:
        steps = 0 if goal.full_batch else _DEFAULT_STEPS
        epochs = goal.default_epochs or max(_DEFAULT_EPOCHS, -(-steps // train.per_epoch))
        options = replace(options, epochs=epochs)
    held_out = None
    if validation is not None:
        rows = 1024 if goal.full_batch else batch_size
        held_out = Batches(validation, trainee, rows, place, name="validation")
        held_out.check_like(train)
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked_rng(seed, place))
        stack.enter_context(pyro.validation_enabled(False))
        networks: list[nn.Module] = []
        if trainee.generative is not None:
            if not (trainee.generative.has_priors or goal.needs_param_sites):
                stack.enter_context(unannounced_parameters())
            if compile:
                networks = stack.enter_context(_compiled(trainee.generative))
        run = Run(trainee, goal, train, held_out, options, place, networks)
        return run.go(checkpoint, optimizer, autocast, progress)


def _as_objective(objective: Objective | PyroELBO | None, trainee: Trainee) -> Objective:
    if objective is None:
        own = trainee.generative
        return own.default_objective() if isinstance(own, HasDefaultObjective) else ELBO()
    if isinstance(objective, PyroELBO):
        return PyroObjective(objective)
    if isinstance(objective, Objective):
        return objective
    raise ConfigError(
        f"objective: expected an Objective of ppgen or an ELBO of pyro.infer, got {type(objective).__name__}"
    )


@contextlib.contextmanager
def _compiled(model: GenerativeModel) -> Iterator[list[nn.Module]]:
    """Within, the model's networks (which are given) run compiled; their parameters keep their names."""
    networks = [m for m in model.children() if any(True for _ in m.parameters())]
    for network in networks:
        network.compile()
    try:
        yield networks
    finally:
        undo_compile(networks)
