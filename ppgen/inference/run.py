"""The state of one training run, and the loop over it; :func:`ppgen.fit` sets it up."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppgen.contract import HasInitialiser
from ppgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ShapeError,
    TrainingError,
    TrainingWarning,
)
from ppgen.inference.checkpoint import CheckpointDirectory
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.last_good import LastGood
from ppgen.inference.memory import is_out_of_memory
from ppgen.inference.objectives.base import Objective, StepOptions, Stepper
from ppgen.inference.objectives.pair import check_pair, find_non_finite
from ppgen.inference.result import FitResult
from ppgen.inference.resume import Progress, data_digest, pack, unpack
from ppgen.inference.trainee import Batches, Trainee
from ppgen.ops.random import forked_rng

Schedule = Literal["constant", "cosine"] | Callable[[float], float]
BuildOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
_MAX_ROLLBACKS = 3
_SNAPSHOT_EVERY = 100  # steps between the states that a rollback goes back to


@dataclass(frozen=True)
class Options:
    """The numbers that :func:`ppgen.fit` was given; see there."""

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
        """Raise :class:`~ppgen.errors.ConfigError` where an option makes no sense."""
        for name in ("epochs", "max_seconds", "batch_size", "learning_rate", "clip_norm", "patience"):
            value = getattr(self, name)
            if value is None:
                continue
            whole = name in ("epochs", "batch_size", "patience")
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not value > 0
            ):
                kind = "integer" if whole else "number"
                raise ConfigError(f"{name}: expected a positive {kind}, got {value!r}")
        if self.patience is not None and not has_validation:
            raise ConfigError("patience: early stopping watches validation data, got none; pass validation=")
        if not callable(self.schedule) and self.schedule not in ("constant", "cosine"):
            raise ConfigError(
                f"schedule: expected 'constant', 'cosine' or a function of progress, got {self.schedule!r}"
            )

    def factor(self, progress: float) -> float:
        """Factor on the learning rate at ``progress`` in [0, 1]."""
        if callable(self.schedule):
            return float(self.schedule(progress))
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) if self.schedule == "cosine" else 1.0


class Run:
    """One training run.

    Args:
        trainee: what is trained.
        objective: what a step and a validation figure are.
        train: training data.
        validation: validation data, or ``None``.
        options: the numbers.
        device: where trainee and data are.
        compiled: networks that run compiled.
    """

    def __init__(
        self,
        trainee: Trainee,
        objective: Objective,
        train: Batches,
        validation: Batches | None,
        options: Options,
        device: torch.device,
        compiled: list[nn.Module],
    ) -> None:
        self.compiled = compiled
        self.trainee, self.objective, self.options, self.device = trainee, objective, options, device
        self.train, self.validation = train, validation
        self.result, self.progress = FitResult(), Progress()
        self.best: dict[str, Tensor] | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.rates: list[list[float]] = []  # of each optimiser's groups, as they were built
        self.seconds_before = 0.0
        self.told: set[str] = set()  # what is warned of once

    # -- the loop -------------------------------------------------------------------------

    def go(
        self,
        checkpoint: str | os.PathLike[str] | None,
        optimizer: BuildOptimizer | None,
        autocast: torch.dtype | None,
        progress: bool,
    ) -> FitResult:
        """Train; the arguments are those of :func:`ppgen.fit`."""
        self.directory = None if checkpoint is None else CheckpointDirectory(checkpoint)
        try:
            self.started = self.last_checkpoint = time.perf_counter()
            self._prepare(optimizer, autocast)
            limit = self.options.epochs
            total = None if limit is None else limit * self.train.per_epoch
            with Interrupts() as interrupts, tqdm(total=total, disable=not progress, unit="step") as bar:
                bar.update(self.result.steps)
                try:
                    self._loop(interrupts, bar)
                except KeyboardInterrupt:
                    self.good.restore()
                    self.result.stopped = "interrupted"
                    self.directory = None  # that state is older than the history: no checkpoint of it
            self._finish()
            return self.result
        finally:
            self.trainee.train(False)

    def _prepare(
        self,
        optimizer: BuildOptimizer | None,
        autocast: torch.dtype | None,
    ) -> None:
        """Everything before the first step: start values or the saved run, checks, the stepper."""
        saved = None
        if self.directory is not None:
            saved = self.directory.read_latest()
            self.directory.prepare()
        self.trainee.train()
        if saved is None:
            for note in self.train.remarks:
                self._warn(note)
            self._initialise()
        self._check()
        self.stepper = self._make_stepper(optimizer, autocast)
        if self.directory is not None:
            self.fingerprint = self._describe()
        if saved is not None:
            self.progress, self.best = unpack(
                saved, self.fingerprint, self.result, self.trainee, self.stepper, self.device
            )
            self.seconds_before = self.progress.seconds
        self.good = LastGood(self.trainee, self.stepper, self.result.steps)

    def _loop(self, interrupts: Interrupts, bar: tqdm[Any]) -> None:
        while not self._done():
            for args in self.train.shuffled(self.options.seed, self.result.epochs, self.progress.position):
                self._set_rate()
                self._step(args)
                bar.update(1)
                if interrupts.requested:
                    self.result.stopped = "interrupted"
                    return
                if self._out_of_time():
                    break
                if time.perf_counter() - self.last_checkpoint > self.options.checkpoint_seconds:
                    self._keep()
                    self._write_checkpoint()
            if self.progress.position < self.train.per_epoch:
                self.result.stopped = "time"
                return
            self._end_epoch()
            bar.set_postfix_str(self._postfix(), refresh=False)

    def _done(self) -> bool:
        result, options = self.result, self.options
        enough = options.epochs is not None and result.epochs >= options.epochs
        if enough or getattr(self.stepper, "settled", False):
            result.stopped = "finished"
            return True
        if self._out_of_time():
            result.stopped = "time"
            return True
        if options.patience is None or not result.history:
            return False
        # NaN is no better validation loss; None is an objective that has none to watch.
        watched = result.history[-1]["validation_loss"] is not None
        if watched and result.epochs - (result.best_epoch or 0) >= options.patience:
            result.stopped = "early"
            return True
        return False

    def _step(self, args: tuple[Tensor, ...]) -> None:
        try:
            figures = {name: float(value) for name, value in self.stepper.step(*args).items()}
        except (RuntimeError, ValueError, MemoryError) as error:
            if is_out_of_memory(error):
                raise self._no_memory(f"step {self.result.steps + 1} on a batch of {len(args[0])}") from error
            if self.good.find_bad() is None:
                raise
            figures = {"loss": math.nan}  # a kernel refused parameters that are not finite
        self.progress.position += 1
        self.result.steps += 1
        for name, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            if not math.isfinite(figures.get(name, 0.0)):
                self._roll_back(what, figures[name], args)
                return
        rows, sums = len(args[0]), self.progress.sums
        self.progress.rows += rows
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * rows
        if self.result.steps % _SNAPSHOT_EVERY == 0:
            self._keep()

    def _end_epoch(self) -> None:
        row: dict[str, float | None] = {
            "epoch": self.result.epochs + 1,
            "step": self.result.steps,
            "seconds": self._seconds,
            "loss": None,
            **{name: total / self.progress.rows for name, total in self.progress.sums.items()},
            "validation_loss": self._validate(),
        }
        if self.optimizers:
            row["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        self.result.history.append(row)
        self.progress.sums, self.progress.rows, self.progress.position = {}, 0, 0
        watched = row["validation_loss"]
        if watched is None:
            return
        if not math.isfinite(watched):
            self._warn_once(
                "validation",
                f"epoch {self.result.epochs}: the validation loss is {watched}; such an epoch is never best",
            )
        elif self.result.best_loss is None or watched < self.result.best_loss:
            self.result.best_loss, self.result.best_epoch = watched, self.result.epochs
            self.best = self.trainee.snapshot()

    def _validate(self) -> float | None:
        """Mean validation loss a datum, on the same random numbers each time."""
        if self.validation is None:
            return None
        self.trainee.train(False)
        try:
            while True:
                try:
                    return self._validation_loss(self.validation)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if not self.validation.halve():
                        rows = self.validation.batch_size
                        raise self._no_memory(f"validation on a batch of {rows}") from error
        finally:
            self.trainee.train()

    @torch.no_grad()
    def _validation_loss(self, data: Batches) -> float | None:
        total = 0.0
        with forked_rng(self.options.seed + 1, self.device):
            for args in data.in_order():
                loss = self.objective.validation_loss(self.trainee.model, self.trainee.guide, *args)
                if loss is None:
                    return None
                total += float(loss)
        return total / data.size

    def _finish(self) -> None:
        """Save where the run stands, then put the best state in place and look at what was learnt."""
        bad = self.good.find_bad()
        if bad is not None:
            self.good.restore()
            self._warn(
                f"step {self.result.steps}: {bad} at the end; went back to step {self.good.step}. "
                "Lower learning_rate or set clip_norm"
            )
        self._write_checkpoint()
        if self.result.stopped == "time" and self.progress.position > 0:
            self._end_epoch()  # after saving: a run with more time goes on with the rest of the epoch
        self.result.seconds = self._seconds
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
        try:
            with torch.no_grad():
                model.initialise(*self.train.everything())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory on {self.device} as {type(model).__name__}.initialise looked at all "
                f"{self.train.size} data; call it on fewer, set model.initialised to true, and fit again"
            ) from error
        model.initialised.fill_(True)

    def _check(self) -> None:
        """Run the pair once on both kinds of data: what cannot work fails before the first step."""
        batch = next(iter(self.train.in_order()))
        try:
            self.trainee.check(*batch)
        except ShapeError as error:
            if not (self.compiled and type(error.__cause__).__module__.startswith("torch._")):
                raise
            undo_compile(self.compiled)
            reason = str(error.__cause__).strip().splitlines()[0]
            self._warn(f"compile: the networks could not be compiled ({reason}); training goes on without")
            self.trainee.check(*batch)
        if self.validation is None:
            return
        with forked_rng(self.options.seed, self.device):
            batch = next(iter(self.validation.in_order()))
            try:
                check_pair(self.trainee.model, self.trainee.guide, *batch)
            except DataError as error:
                raise type(error)(f"validation: {error}") from error

    def _make_stepper(
        self,
        optimizer: BuildOptimizer | None,
        autocast: torch.dtype | None,
    ) -> Stepper:
        build = optimizer or _adam

        def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            self.optimizers.append(build(list(parameters), self.options.learning_rate))
            self.rates.append([group["lr"] for group in self.optimizers[-1].param_groups])
            return self.optimizers[-1]

        def precision() -> Any:
            if autocast is None:
                return contextlib.nullcontext()
            return torch.autocast(self.device.type, dtype=autocast)

        return self.objective.stepper(
            self.trainee.model,
            self.trainee.guide,
            StepOptions(self.trainee.parameters, make, self.options.clip_norm, precision),
        )

    def _set_rate(self) -> None:
        options = self.options
        if options.schedule == "constant" and self.progress.rate_factor == 1.0:
            return
        if options.epochs is not None:
            progress = self.result.steps / (options.epochs * self.train.per_epoch)
        else:
            progress = self._seconds / (options.max_seconds or math.inf)
        factor = self.progress.rate_factor * options.factor(progress)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    # -- faults -----------------------------------------------------------------------------

    def _keep(self) -> None:
        """Keep the present state for a rollback, or roll back if it is poisoned already."""
        bad = self.good.find_bad()
        if bad is None:
            self.good.keep(self.result.steps)
        else:
            self._roll_back(bad, math.nan, next(iter(self.train.in_order())))

    def _roll_back(self, what: str, value: float, args: tuple[Tensor, ...]) -> None:
        where = find_non_finite(self.trainee.model, self.trainee.guide, *args)
        self.good.restore()
        self.progress.rollbacks += 1
        if self.progress.rollbacks > _MAX_ROLLBACKS:
            raise TrainingError(
                f"step {self.result.steps}: {what} is {value} again after {_MAX_ROLLBACKS} rollbacks, each "
                f"with half the learning rate; {where}. The model holds its state of step {self.good.step}. "
                "Lower learning_rate, set clip_norm, or look at the data at that site"
            )
        self.progress.rate_factor *= 0.5
        self._warn(
            f"step {self.result.steps}: {what} was {value} ({where}); went back to step {self.good.step} "
            "and halved the learning rate"
        )

    def _no_memory(self, doing: str) -> TrainingError:
        self.good.restore()
        return TrainingError(
            f"out of memory on {self.device} in {doing}, which cannot be cut further; lower batch_size, "
            f"or take a smaller model. The model holds its state of step {self.good.step}"
        )

    def _warn(self, message: str) -> None:
        self.result.warnings.append(message)
        warnings.warn(message, TrainingWarning, stacklevel=2)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            self._warn(message)

    def _postfix(self) -> str:
        row = self.result.history[-1]
        shown = {"loss": row["loss"], "validation": row["validation_loss"]}
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)

    # -- checkpoints ----------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        """What must be the same in a run that goes on from a checkpoint of this one."""
        options, model = self.options, self.trainee.generative
        return {
            "model": type(model).__name__ if model is not None else "pair",
            "objective": type(self.objective).__name__,
            "data": data_digest(self.train.tensors),
            "validation": None if self.validation is None else data_digest(self.validation.tensors),
            "batch_size": self.train.batch_size,
            "seed": options.seed,
            "learning_rate": options.learning_rate,
            "schedule": "function" if callable(options.schedule) else options.schedule,
            "clip_norm": options.clip_norm,
            "optimizer": [type(optimizer).__name__ for optimizer in self.optimizers],
            "state": {n: [str(t.dtype), *t.shape] for n, t in self.trainee.state().items()},
        }

    def _write_checkpoint(self) -> None:
        self.last_checkpoint = time.perf_counter()
        if self.directory is None:
            return
        self.progress.seconds = self._seconds
        tree = pack(
            self.fingerprint, self.progress, self.result, self.trainee, self.stepper, self.best, self.device
        )
        try:
            self.directory.write(self.result.steps, tree)
        except CheckpointError as error:
            self._warn_once("checkpoint", f"step {self.result.steps}: no checkpoint was written. {error}")


def _adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam, as one kernel over all parameters where torch has it."""
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def undo_compile(networks: list[nn.Module]) -> None:
    """Let networks run as they were before ``compile``."""
    for network in networks:
        network._compiled_call_impl = None
