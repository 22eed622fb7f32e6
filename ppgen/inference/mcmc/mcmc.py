"""Markov chain Monte Carlo on any Pyro model, all chains in one batch: the face.

.. code-block:: python

    mcmc = MCMC(NUTS(model), num_samples=1000, warmup_steps=500, num_chains=64, seed=0)
    mcmc.run(x, y)
    mcmc.summary()                                  # a table on stdout, as Pyro's
    mcmc.get_samples()["theta"]                     # (64 * 1000, ...)
    mcmc.ok, mcmc.posterior.warnings
    mcmc.extend(500)                                # 500 more draws of each chain
    mcmc.save("run"); mcmc = MCMC.resume("run", model)

A script written for :mod:`pyro.infer` changes its import. What differs for the better: chains are
cheap, so take 64 of them and fewer draws of each; torch's global generators are left alone where
``seed`` is given; an interrupted run keeps its draws.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError, SamplingWarning, ShapeError
from ppgen.inference.checkpoint import CheckpointDirectory, write_bundle
from ppgen.inference.mcmc import faults, saving
from ppgen.inference.mcmc.backends import Compile
from ppgen.inference.mcmc.result import Posterior, Summary
from ppgen.inference.mcmc.run import Hook, Run, Settings
from ppgen.inference.mcmc.samplers import (
    Model,
    PotentialFunction,
    Sampler,
    check_count,
    check_positive,
    rebuild_sampler,
)
from ppgen.inference.trainee import find_device


class MCMC:
    """Runs a sampler on many chains at once.

    The first eleven arguments are those of :class:`pyro.infer.MCMC`, in its order.

    Args:
        kernel: a sampler of a model or a ``potential_fn``: :class:`~ppgen.inference.NUTS`, ...
        num_samples: S, draws of each chain after warm-up.
        warmup_steps: transitions that adapt and are not kept; ``num_samples`` where it is ``None``.
        initial_params: where chains start: unconstrained values of every site, ``(C, ...)`` each, with one
            chain also without the first dimension. A ``potential_fn`` needs them.
        num_chains: C. Chains share their adaptation and cost little: 64 is a good number.
        hook_fn: called as ``hook_fn(sampler, values, stage, i)`` once for every transition of all chains,
            in order, from chunks of transitions already done. ``values`` are the unconstrained sites, each
            ``(C, ...)``, with one chain ``(...)`` as in Pyro; ``stage`` is "Warmup" or "Sample".
        mp_context: without effect: there are no processes.
        disable_progbar: show no progress.
        disable_validation: without effect: the model is validated once, on one chain; within chains, which
            meet non-finite numbers on purpose, nothing is validated.
        transforms: for ``potential_fn``, the transform of each name from its support to real numbers.
        save_params: the sites to keep draws of; all by default.
        seed: of everything random. ``None`` draws one from torch's global generator, which is otherwise
            left as it is. The seed is in ``posterior.attributes``, and the same seed gives the same draws.
        dtype: ``torch.float32`` or ``torch.float64``; that of the model by default.
        device: where the chains are; that of the model by default.
        compile: ``"auto"`` compiles the sampler where it pays and can be done; ``"native"`` (CPU),
            ``"inductor"`` (``torch.compile``) and ``True`` (one of them) insist; ``False`` does not.
        checkpoint: directory of checkpoints; a run that finds one of its own there goes on from it.
        checkpoint_seconds: time between checkpoints.

    Raises:
        ConfigError: an argument out of its range, or arguments that contradict each other.
        DeviceError: there is no such device.
    """

    def __init__(
        self,
        kernel: Sampler,
        num_samples: int,
        warmup_steps: int | None = None,
        initial_params: Mapping[str, Tensor] | None = None,
        num_chains: int = 1,
        hook_fn: Hook | None = None,
        mp_context: str | None = None,
        disable_progbar: bool = False,
        disable_validation: bool | None = True,
        transforms: Mapping[str, Any] | None = None,
        save_params: Iterable[str] | None = None,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        compile: Compile = "auto",
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        num_samples = check_count("num_samples", num_samples)
        num_chains = check_count("num_chains", num_chains)
        warmup_steps = (
            num_samples if warmup_steps is None else check_count("warmup_steps", warmup_steps, least=0)
        )
        if initial_params is not None:
            if not isinstance(initial_params, Mapping):
                raise ConfigError(
                    "initial_params: expected a dictionary of unconstrained values by name of the site, got "
                    f"{type(initial_params).__name__}"
                )
            initial_params = {name: torch.as_tensor(value) for name, value in initial_params.items()}
        _check_target(kernel, initial_params, transforms, num_chains)
        if hook_fn is not None and not callable(hook_fn):
            raise ConfigError(f"hook_fn: expected a function, got {type(hook_fn).__name__}")
        if isinstance(save_params, str):
            raise ConfigError(f"save_params: expected a list of site names, got the string {save_params!r}")
        seed = None if seed is None else check_count("seed", seed, least=0)
        if seed is not None and seed >= 2**63:
            raise ConfigError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed}")
        if dtype not in (None, torch.float32, torch.float64):
            raise ConfigError(f"dtype: expected torch.float32, torch.float64 or None, got {dtype!r}")
        if compile not in ("auto", "native", "inductor", True, False):
            raise ConfigError(
                f"compile: expected 'auto', 'native', 'inductor', True or False, got {compile!r}"
            )
        check_positive("checkpoint_seconds", checkpoint_seconds)
        self.num_samples = num_samples
        self._settings = Settings(
            sampler=kernel,
            warmup_steps=warmup_steps,
            num_chains=num_chains,
            initial_params=initial_params or None,
            transforms=(kernel.transforms if transforms is None else transforms)
            if kernel.model is None
            else None,
            hook_fn=hook_fn,
            disable_progbar=disable_progbar,
            save_params=None if save_params is None else sorted(set(save_params)),
            seed=seed,
            dtype=dtype,
            device=None if device is None else find_device(device),
            compile=compile,
            checkpoint=None if checkpoint is None else CheckpointDirectory(checkpoint),
            checkpoint_seconds=float(checkpoint_seconds),
        )
        self._run: Run | None = None

    @property
    def kernel(self) -> Sampler:
        """The sampler."""
        return self._settings.sampler

    @property
    def num_chains(self) -> int:
        """C."""
        return self._settings.num_chains

    @property
    def warmup_steps(self) -> int:
        """Transitions of the warm-up."""
        return self._settings.warmup_steps

    # -- sampling -------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up and sample, given the arguments of the model.

        The first Ctrl-C (or SIGTERM) ends the run after the transitions under way, a second one at once;
        what has been drawn is kept, and ``extend(0)`` goes on with the rest. Another ``run`` starts
        afresh; new data of the same shape use what was compiled before.

        What is seen at once to be wrong with the draws (divergences, chains that are stuck or apart) is
        said as :class:`~ppgen.errors.SamplingWarning`; ``posterior.warnings`` has looked at every site.

        Raises:
            DataError: data or starting values that the model cannot take.
            ConfigError: a model without latents that can be sampled, or an argument that does not fit it.
            SamplingError: no start with a finite density, a step size of zero, chains that never move, or
                memory that does not suffice.
            CheckpointError: ``checkpoint`` belongs to another run, or cannot be written at the start.
        """
        self._run = None
        run = Run(self._settings, args, kwargs, self.num_samples)
        self._run = run
        self._go(run)

    def extend(self, num: int) -> None:
        """Draw ``num`` more of each chain, after completing a run that was interrupted.

        The draws are those that a run with ``num`` more ``num_samples`` and the same ``warmup_steps``
        would have made (unless only one of them is so short that ``compile="auto"`` leaves it as it is).

        Raises:
            ConfigError: ``run`` comes first.
        """
        run = self._started()
        self.num_samples += check_count("num", num, least=0)
        self._go(run)

    def _go(self, run: Run) -> None:
        run.go(self.num_samples)
        for fault in faults.find_at_once(run.posterior()):
            warnings.warn(fault, SamplingWarning, stacklevel=3)

    # -- results --------------------------------------------------------------------------

    @property
    def posterior(self) -> Posterior:
        """The draws with all that belongs to them."""
        return self._started().posterior()

    @property
    def ok(self) -> bool:
        """Whether the run came to its end and nothing deserves a look."""
        return self.posterior.ok

    def get_samples(
        self,
        num_samples: int | None = None,
        group_by_chain: bool = False,
        *,
        deterministic: bool = False,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Draws of each latent site, as :meth:`pyro.infer.MCMC.get_samples`.

        Args:
            num_samples: resample so many with replacement; all in order where it is ``None``.
            group_by_chain: keep the dimension of the chains.
            deterministic: add the model's ``pyro.deterministic`` sites.
            seed: of the resampling; without it, torch's global generator is drawn from.

        Returns:
            For each site ``(C * S, ...)``, or ``(C, S, ...)`` grouped.
        """
        return self.posterior.get_samples(num_samples, group_by_chain, deterministic=deterministic, seed=seed)

    def diagnostics(self) -> dict[str, Any]:
        """R-hat and effective sample size of each site, divergences and acceptance rate of each chain."""
        return self.posterior.diagnostics()

    def summary(self, prob: float = 0.9) -> Summary:
        """Write a table of the posterior, with its warnings, to stdout, as Pyro does, and return it.

        Args:
            prob: probability inside the interval.
        """
        table = self.posterior.summary(prob)
        sys.stdout.write(f"\n{table}\n")
        return table

    def to_arviz(self, **options: Any) -> Any:
        """The run for ArviZ; see :meth:`Posterior.to_arviz`."""
        return self.posterior.to_arviz(**options)

    # -- saving ---------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the run, finished or interrupted, to the directory ``path``; see :meth:`resume`.

        Raises:
            ConfigError: ``run`` comes first.
            CheckpointError: ``path`` cannot be written.
        """
        write_bundle(Path(path), self._started().tree())

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        model: Model | PotentialFunction | Sampler,
        *args: Any,
        hook_fn: Hook | None = None,
        **kwargs: Any,
    ) -> Self:
        """Go on with a saved run, or with the newest checkpoint in a directory of them.

        An unfinished run is finished first, with the draws that it would have made unbroken, bit for bit on
        the CPU; a finished one is read only.

        Args:
            path: what :meth:`save` or ``checkpoint=`` wrote. A directory of checkpoints is written on.
            model: the model (or ``potential_fn``) of the run, or a sampler of it.
            *args: arguments of the model; needed only where they were no tensors, arrays or plain values.
            hook_fn: as in the constructor; functions are not saved.
            **kwargs: as ``args``.

        Raises:
            CheckpointError: damaged, or of another model, sampler or data.
        """
        tree = saving.read_run(path)
        same = tree["same"]
        if not isinstance(model, Sampler):
            model = rebuild_sampler(same["sampler"], same["sampler_arguments"], model, tree["target"])
        if not (args or kwargs):
            if tree["data"] is None:
                raise CheckpointError(
                    "args: the arguments of the model could not be saved with the run; give them to resume "
                    "after the model"
                )
            args, kwargs = saving.decode_data(tree["data"])
        device = tree["device"] if torch.cuda.is_available() else "cpu"
        mcmc = cls(
            model,
            tree["num_samples"],
            same["warmup_steps"],
            initial_params=tree["initial_params"],
            num_chains=same["num_chains"],
            hook_fn=hook_fn,
            disable_progbar=tree["disable_progbar"],
            save_params=same["save_params"],
            seed=tree["seed"],
            dtype=getattr(torch, same["dtype"]),
            device=device,
            compile=tree["compile"],
            checkpoint=None if saving.is_bundle(path) else path,
        )
        mcmc._run = Run(mcmc._settings, args, kwargs, mcmc.num_samples, tree)
        mcmc._go(mcmc._run)
        return mcmc

    def _started(self) -> Run:
        if self._run is None:
            raise ConfigError("run: nothing has been drawn yet; call run(...) first")
        return self._run


def _check_target(
    sampler: object,
    initial_params: Mapping[str, Tensor] | None,
    transforms: Mapping[str, Any] | None,
    num_chains: int,
) -> None:
    """Raise unless the sampler has a target and what belongs to it."""
    if not isinstance(sampler, Sampler):
        cls = type(sampler)
        hint = f"; import {cls.__name__} from ppgen.inference" if cls.__module__.startswith("pyro.") else ""
        raise ConfigError(f"kernel: expected a sampler of ppgen.inference, got {cls.__name__}{hint}")
    if sampler.model is None and sampler.potential_fn is None:
        raise ConfigError(f"kernel: {sampler.name} has neither a model nor a potential_fn; give it one")
    if sampler.potential_fn is not None and not initial_params:
        raise ConfigError(
            "initial_params: a potential_fn needs them, unconstrained values of all names, to know their "
            "shapes; got none"
        )
    if sampler.model is not None and transforms is not None:
        raise ConfigError(
            "transforms: draws of a model come back in the supports of its sites; leave transforms out (they "
            "belong to a potential_fn)"
        )
    if sampler.model is not None and sampler.transforms is not None and initial_params:
        raise ConfigError(
            "transforms, initial_params: a model's initial_params are read by the transforms of its "
            "supports; leave transforms out"
        )
    for name, value in (initial_params or {}).items():
        if num_chains > 1 and tuple(value.shape[:1]) != (num_chains,):
            raise ShapeError(
                f"initial_params: {name!r} needs {num_chains} as its first dimension, a value for each "
                f"chain; got the shape {tuple(value.shape)}"
            )
