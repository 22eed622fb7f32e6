"""The trainer: one loop for every family, for plain Pyro pairs, and for any Pyro ELBO.

.. code-block:: python

    result = ppgen.fit(vae, digits.train, validation=digits.validation, epochs=200)
    result.ok, result.best_loss, result.history[-1]

    ppgen.fit(my_model, (x, y), guide=my_guide, objective=pyro.infer.TraceGraph_ELBO())

A step is whatever the objective says: a gradient step, an EM iteration, a round of two
players. Around it the loop keeps a validated best state, rolls back when numbers overflow,
writes checkpoints that resume to the same numbers, and leaves the global generators as
they were.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from tqdm import tqdm

from ppgen.contract import GenerativeModel, HasDefaultObjective, HasInitialiser, unannounced_parameters
from ppgen.errors import CheckpointError, ConfigError, TrainingError, TrainingWarning
from ppgen.inference.checkpoint import CheckpointDirectory
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.objectives.base import Objective, Program, Stepper
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.pair import find_non_finite
from ppgen.inference.objectives.pyro_elbo import PyroObjective
from ppgen.inference.result import FitResult
from ppgen.inference.trainee import Batches, Trainee, find_device
from ppgen.ops.random import forked_rng

Schedule = Literal["constant", "cosine"] | Callable[[float], float]
_MAX_ROLLBACKS = 3
_SNAPSHOT_EVERY = 100  # steps between the states that a rollback goes back to


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
            tensor, ``(x, y)``, a torch ``Dataset``); for a plain pair its positional arguments, cut
            into batches along their first dimension. A model that subsamples by itself, or has
            latents outside its data plate, wants ``batch_size=None``.
        guide: guide of a plain pair.
        objective: an :class:`~ppgen.inference.objectives.base.Objective` or a Pyro ELBO; by default
            the family's own, else :class:`~ppgen.inference.objectives.elbo.ELBO`.
        validation: data of the same form; the epoch with the smallest validation loss is kept.
        epochs: passes over the data; 100 where neither this nor ``max_seconds`` is given.
        max_seconds: time limit on training, over all resumed runs.
        batch_size: data a step; ``None`` for all. Objectives for full batches (EM) take all.
        learning_rate: of the optimiser.
        optimizer: makes an optimiser from parameters and learning rate; Adam by default.
        schedule: factor on the learning rate as a function of progress in [0, 1]: a function,
            ``"cosine"`` (to zero) or ``"constant"``. Progress counts steps where ``epochs`` is
            given, else time.
        clip_norm: largest norm of the gradient.
        patience: epochs without a better validation loss after which training stops.
        seed: of batches, noise and initialisation from data; torch's global generators are left
            as they were.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``. The model
            stays there.
        autocast: lower precision for the networks, e.g. ``torch.bfloat16``.
        compile: compile the networks of a generative model (slow start, faster steps).
        checkpoint: directory of checkpoints. A run that finds some there goes on from the newest,
            on the CPU to the same numbers bit by bit.
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
        TrainingError: the loss was not finite again and again; the model holds its last good state.
        CheckpointError: ``checkpoint`` belongs to another run.
    """
    options = _Options(
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
    place = find_device(device)
    trainee = Trainee(model, guide)
    trainee.to(place)
    goal = _as_objective(objective, trainee)
    if goal.full_batch:
        batch_size = None
    train = Batches(data, trainee, batch_size, place)
    held_out = None if validation is None else Batches(validation, trainee, batch_size or 1024, place)
    run = _Run(trainee, goal, train, held_out, options, place)
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked_rng(seed, place))
        stack.enter_context(pyro.validation_enabled(False))
        if trainee.generative is not None:
            if not (trainee.generative.has_priors or goal.needs_param_sites):
                stack.enter_context(unannounced_parameters())
            if compile:
                stack.enter_context(_compiled(trainee.generative))
        return run.go(checkpoint, optimizer, autocast, progress)


@dataclass(frozen=True)
class _Options:
    epochs: int | None
    max_seconds: float | None
    batch_size: int | None
    learning_rate: float
    schedule: Schedule
    clip_norm: float | None
    patience: int | None
    seed: int
    checkpoint_seconds: float

    def check(self, has_validation: bool) -> None:
        for name in ("epochs", "max_seconds", "batch_size", "learning_rate", "clip_norm", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected a positive number, got {value}")
        if self.patience is not None and not has_validation:
            raise ConfigError("patience: early stopping watches validation data, got none; pass validation=")
        if not callable(self.schedule) and self.schedule not in ("constant", "cosine"):
            raise ConfigError(
                f"schedule: expected 'constant', 'cosine' or a function of progress, got {self.schedule!r}"
            )

    @property
    def num_epochs(self) -> int | None:
        return 100 if self.epochs is None and self.max_seconds is None else self.epochs

    def factor(self, progress: float) -> float:
        if callable(self.schedule):
            return float(self.schedule(progress))
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) if self.schedule == "cosine" else 1.0


class _Run:
    """The state of one training run, and the loop over it."""

    def __init__(
        self,
        trainee: Trainee,
        objective: Objective,
        train: Batches,
        validation: Batches | None,
        options: _Options,
        device: torch.device,
    ) -> None:
        self.trainee, self.objective, self.options, self.device = trainee, objective, options, device
        self.train, self.validation = train, validation
        self.result = FitResult()
        self.position = 0  # batches done in this epoch
        self.sums: dict[str, float] = {}
        self.rate_factor, self.rollbacks = 1.0, 0
        self.best: dict[str, Tensor] | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.started = self.last_checkpoint = time.perf_counter()
        self.seconds_before = 0.0

    # -- the loop -------------------------------------------------------------------------

    def go(
        self,
        checkpoint: str | os.PathLike[str] | None,
        optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] | None,
        autocast: torch.dtype | None,
        progress: bool,
    ) -> FitResult:
        self.directory = None if checkpoint is None else CheckpointDirectory(checkpoint)
        saved = None if self.directory is None else self.directory.read_latest()
        self.trainee.train()
        if saved is None:
            self._initialise()
        self.trainee.check(*next(iter(self.train.in_order())))
        self.stepper = self._make_stepper(optimizer, autocast)
        if saved is not None:
            self._resume(saved)
        self._take_snapshot()
        total = None if self.options.num_epochs is None else self.options.num_epochs * self.train.per_epoch
        self.started = self.last_checkpoint = time.perf_counter()
        with Interrupts() as interrupts, tqdm(total=total, disable=not progress, unit="step") as bar:
            bar.update(self.result.steps)
            try:
                self._loop(interrupts, bar)
            except KeyboardInterrupt:
                self.trainee.restore(self.good)
                self.result.stopped = "interrupted"
                self.directory = None  # that state is older than the history: no checkpoint of it
        self.result.seconds = self._seconds
        self._write_checkpoint()
        self._conclude()
        return self.result

    def _loop(self, interrupts: Interrupts, bar: tqdm[Any]) -> None:
        while not self._done():
            for args in self.train.shuffled(self.options.seed, self.result.epochs, self.position):
                self._set_rate()
                self._step(args)
                bar.update(1)
                if interrupts.requested:
                    self.result.stopped = "interrupted"
                    return
                if self._out_of_time():
                    break
                if time.perf_counter() - self.last_checkpoint > self.options.checkpoint_seconds:
                    self._write_checkpoint()
            self._end_epoch()
            bar.set_postfix_str(self._postfix(), refresh=False)

    def _done(self) -> bool:
        result, options = self.result, self.options
        if options.num_epochs is not None and result.epochs >= options.num_epochs:
            result.stopped = "finished"
            return True
        if self._out_of_time():
            result.stopped = "time"
            return True
        if options.patience is None or result.best_epoch is None:
            return False
        if result.epochs - result.best_epoch >= options.patience:
            result.stopped = "early"
            return True
        return False

    def _step(self, args: tuple[Tensor, ...]) -> None:
        try:
            figures = {name: float(value) for name, value in self.stepper.step(*args).items()}
        except (RuntimeError, ValueError):
            if self._is_finite():
                raise
            figures = {"loss": math.nan}  # a kernel refused parameters that are not finite
        self.position += 1
        self.result.steps += 1
        if not math.isfinite(figures["loss"]):
            self._roll_back(figures["loss"], args)
            return
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.result.steps % _SNAPSHOT_EVERY == 0:
            self._take_snapshot()

    def _end_epoch(self) -> None:
        row: dict[str, float | None] = {
            "epoch": self.result.epochs + 1,
            "step": self.result.steps,
            "seconds": self._seconds,
            **{name: total / self.position for name, total in self.sums.items()},
            "validation_loss": self._validate(),
        }
        if self.optimizers:
            row["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        self.result.history.append(row)
        self.sums, self.position = {}, 0
        watched = row["validation_loss"]
        if watched is None or not math.isfinite(watched):
            return
        if self.result.best_loss is None or watched < self.result.best_loss:
            self.result.best_loss, self.result.best_epoch = watched, self.result.epochs
            self.best = self.trainee.snapshot()

    def _validate(self) -> float | None:
        """Mean validation loss a datum, on the same random numbers each time."""
        if self.validation is None:
            return None
        self.trainee.train(False)
        total = 0.0
        with torch.no_grad(), forked_rng(self.options.seed + 1, self.device):
            for args in self.validation.in_order():
                loss = self.objective.validation_loss(self.trainee.model, self.trainee.guide, *args)
                if loss is None:
                    self.trainee.train()
                    return None
                total += float(loss)
        self.trainee.train()
        return total / self.validation.size

    def _conclude(self) -> None:
        """Put the best state in place and look at what was learnt."""
        if self.best is not None:
            self.trainee.restore(self.best)
        self.trainee.train(False)
        args = next(iter(self.train.in_order()))
        with torch.no_grad():
            for note in self.objective.diagnose(self.trainee.model, self.trainee.guide, *args):
                self._warn(note)

    # -- pieces ---------------------------------------------------------------------------

    @property
    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _out_of_time(self) -> bool:
        limit = self.options.max_seconds
        return limit is not None and self.result.steps > 0 and self._seconds >= limit

    def _initialise(self) -> None:
        model = self.trainee.generative
        if model is None or not isinstance(model, HasInitialiser) or bool(model.initialised):
            return
        with torch.no_grad():
            model.initialise(*self.train.everything())
            model.initialised.fill_(True)

    def _make_stepper(
        self,
        optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] | None,
        autocast: torch.dtype | None,
    ) -> Stepper:
        build = optimizer or _adam

        def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            self.optimizers.append(build(list(parameters), self.options.learning_rate))
            return self.optimizers[-1]

        def precision() -> Any:
            if autocast is None:
                return contextlib.nullcontext()
            return torch.autocast(self.device.type, dtype=autocast)

        return self.objective.stepper(
            self.trainee.model,
            self.trainee.guide,
            self.trainee.parameters,
            make,
            self.options.clip_norm,
            precision,
        )

    def _set_rate(self) -> None:
        if self.options.schedule == "constant" and self.rate_factor == 1.0:
            return
        if self.options.epochs is not None:
            progress = self.result.steps / (self.options.epochs * self.train.per_epoch)
        elif self.options.max_seconds is not None:
            progress = self._seconds / self.options.max_seconds
        else:
            progress = self.result.epochs / (self.options.num_epochs or 1)
        rate = self.options.learning_rate * self.rate_factor * self.options.factor(progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _take_snapshot(self) -> None:
        """Keep the present state for a rollback, unless it is poisoned already."""
        state = self.trainee.snapshot()
        if self._is_finite():
            self.good, self.good_stepper = state, _copied(self.stepper.state_dict())
            self.good_step = self.result.steps

    def _is_finite(self) -> bool:
        state = self.trainee.state().values()
        return all(bool(torch.isfinite(t).all()) for t in state if t.is_floating_point())

    def _roll_back(self, loss: float, args: tuple[Tensor, ...]) -> None:
        where = find_non_finite(self.trainee.model, self.trainee.guide, *args)
        self.trainee.restore(self.good)
        self.rollbacks += 1
        if self.rollbacks > _MAX_ROLLBACKS:
            self.trainee.train(False)
            raise TrainingError(
                f"step {self.result.steps}: the loss is {loss} again after {_MAX_ROLLBACKS} rollbacks, each "
                f"with half the learning rate; {where}. The model holds its state of step {self.good_step}. "
                "Lower learning_rate, set clip_norm, or look at the data at that site"
            )
        self.stepper.load_state_dict(_copied(self.good_stepper))
        self.rate_factor *= 0.5
        self._warn(
            f"step {self.result.steps}: the loss was {loss} ({where}); went back to step {self.good_step} "
            "and halved the learning rate"
        )

    def _warn(self, message: str) -> None:
        self.result.warnings.append(message)
        warnings.warn(message, TrainingWarning, stacklevel=2)

    def _postfix(self) -> str:
        row = self.result.history[-1]
        shown = {"loss": row.get("loss"), "validation": row.get("validation_loss")}
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)

    # -- checkpoints ----------------------------------------------------------------------

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "data": self.train.size,
            "batch_size": self.train.batch_size,
            "seed": self.options.seed,
            "learning_rate": self.options.learning_rate,
            "objective": type(self.objective).__name__,
            "state": {name: list(tensor.shape) for name, tensor in self.trainee.state().items()},
        }

    def _write_checkpoint(self) -> None:
        self.last_checkpoint = time.perf_counter()
        if self.directory is None:
            return
        result = self.result
        progress = {
            "fingerprint": self._fingerprint(),
            "history": result.history,
            "steps": result.steps,
            "seconds": self._seconds,
            "best_loss": result.best_loss,
            "best_epoch": result.best_epoch,
            "warnings": result.warnings,
            "position": self.position,
            "sums": self.sums,
            "rate_factor": self.rate_factor,
            "rollbacks": self.rollbacks,
        }
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        tree = {
            "trainee": self.trainee.state(),
            "best": self.best,
            "stepper": self.stepper.state_dict(),
            "rng": rng,
            "progress": json.dumps(progress),
        }
        self.directory.write(result.steps, tree)

    def _resume(self, saved: dict[str, Any]) -> None:
        progress = json.loads(saved["progress"])
        theirs, ours = progress["fingerprint"], self._fingerprint()
        different = [key for key in ours if theirs.get(key) != ours[key]]
        if different:
            raise CheckpointError(
                f"checkpoint: the run saved there differs from this one in {', '.join(different)}; "
                "use another directory, or the same arguments"
            )
        self.trainee.restore(saved["trainee"])
        self.stepper.load_state_dict(saved["stepper"])
        self.best = saved["best"]
        result = self.result
        result.history, result.steps = progress["history"], progress["steps"]
        result.best_loss, result.best_epoch = progress["best_loss"], progress["best_epoch"]
        result.warnings = progress["warnings"]
        self.position, self.sums = progress["position"], progress["sums"]
        self.rate_factor, self.rollbacks = progress["rate_factor"], progress["rollbacks"]
        self.seconds_before = progress["seconds"]
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved["rng"]:
            torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)


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


def _adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam, as one kernel over all parameters where torch has it."""
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


@contextlib.contextmanager
def _compiled(model: GenerativeModel) -> Any:
    """Within, the model's networks run compiled; their parameters keep their names."""
    networks = [m for m in model.children() if any(True for _ in m.parameters())]
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {k: _copied(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_copied(v) for v in tree]
    return tree
