"""One run of many chains: from their starting points through warm-up to the last draw."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import CheckpointError, CheckpointWarning, ConfigError, SamplingError, SamplingWarning
from ppgen.inference.checkpoint import CheckpointDirectory
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.mcmc import saving
from ppgen.inference.mcmc.adaptation import Warmed, Warmup
from ppgen.inference.mcmc.adaptation.stuck import Restart
from ppgen.inference.mcmc.backends import Compile, make_executor
from ppgen.inference.mcmc.draws import Draws
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.progress import ProgressBar
from ppgen.inference.mcmc.result import Posterior
from ppgen.inference.mcmc.samplers import Sampler
from ppgen.inference.mcmc.starts import starting_points
from ppgen.inference.mcmc.target import InParts, make_potential, unflatten
from ppgen.inference.memory import is_out_of_memory

#: Called as ``hook_fn(sampler, values, stage, i)`` for transition ``i`` of a stage.
Hook = Callable[[Sampler, dict[str, Tensor], str, int], None]

_CHUNK_SECONDS = 0.15  # between two looks at interrupts, progress and the clock
_FIRST_CHUNK, _GROWTH = 8, 16
_STILL, _NEVER = 50, 1e-3  # after so many transitions, an acceptance below this will not get better


@dataclass(frozen=True)
class Settings:
    """What :class:`~ppgen.inference.MCMC` was given; see there."""

    sampler: Sampler
    warmup_steps: int
    num_chains: int
    initial_params: Mapping[str, Tensor] | None
    transforms: Mapping[str, Any] | None
    hook_fn: Hook | None
    disable_progbar: bool
    save_params: list[str] | None
    seed: int | None
    dtype: torch.dtype | None
    device: torch.device | None
    compile: Compile
    checkpoint: CheckpointDirectory | None
    checkpoint_seconds: float


class Run:
    """A run: the potential, the chains, what was drawn.

    Args:
        settings: how to run.
        args: arguments of the model.
        kwargs: the same.
        num_samples: draws of each chain that are wanted.
        saved: the tree of a saved run, to go on with.

    Raises:
        DataError, ConfigError, SamplingError, CheckpointError: see :meth:`ppgen.inference.MCMC.run`.
    """

    def __init__(
        self,
        settings: Settings,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        num_samples: int,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        self.kwargs = dict(kwargs)
        if settings.checkpoint is not None:
            settings.checkpoint.prepare()
            found = settings.checkpoint.read_latest() if saved is None else None
            saved = saved if found is None else saving.check_kind(found, settings.checkpoint.path)
        seed = settings.seed if saved is None else int(saved["seed"])
        # As Pyro, a run without a seed depends on torch's global generator, and moves it.
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self._seeds = _split_seed(self.seed, 4)
        self.num_samples, self.interrupted, self.notes = num_samples, False, list[str]()
        self._compile, self._told = settings.compile, 0
        self.seconds = {"setup": 0.0, "warmup": 0.0, "sampling": 0.0}
        self._chains_at_once: int | None = None
        self._moved = False
        self._warmed: Warmed | None = None
        self._posterior: Posterior | None = None
        started = time.perf_counter()
        with poutine.block():
            self._set_up(saved)
        self.seconds["setup"] += time.perf_counter() - started

    # -- set-up ---------------------------------------------------------------------------

    def _set_up(self, saved: Mapping[str, Any] | None) -> None:
        settings, sampler = self.settings, self.settings.sampler
        self.potential = make_potential(
            sampler,
            self.args,
            self.kwargs,
            settings.initial_params,
            settings.num_chains,
            dtype=settings.dtype,
            device=settings.device,
            seed=self._seeds[0],
        )
        names = sorted(site.name for site in self.potential.sites)
        unknown = sorted(set(settings.save_params or ()) - set(names))
        if unknown:
            raise ConfigError(f"save_params: no latent site is called {unknown}; the sites are {names}")
        self.names = names if settings.save_params is None else sorted(set(settings.save_params))
        self.kernel = sampler.kernel(self.potential.num_dims)
        if saved is None:
            self._unless_out_of_memory(self._begin)
        else:
            self._load(saved)

    def _begin(self) -> None:
        settings = self.settings
        starts = starting_points(
            self._in_parts(),
            settings.num_chains,
            settings.initial_params or settings.sampler.init_strategy,
            seed=self._seeds[1],
        )
        self._start(starts)

    def _in_parts(self) -> Any:
        return (
            self.potential if self._chains_at_once is None else InParts(self.potential, self._chains_at_once)
        )

    def _start(self, starts: Tensor) -> None:
        """Chains at the points ``starts`` (C, D), before any transition."""
        self._starts = starts
        self.executor = make_executor(
            self.kernel,
            self._in_parts().density(),
            num_chains=len(starts),
            seed=self._seeds[2],
            device=starts.device,
            compile=self._compile if self._chains_at_once is None else False,
            work=self.settings.warmup_steps + self.num_samples,
        )
        self.draws, self._moved, self._warmed = Draws(), False, None
        sampler = self.settings.sampler
        first = torch.full_like(starts[:, 0], sampler.first_step_size)
        self._warmup = Warmup(
            self.executor,
            self.kernel,
            self.executor.init(starts, first),
            sampler.tuning,
            num=self.settings.warmup_steps,
            seed=self._seeds[3],
            record=self._watched(),
        )
        self.draws.reserve(self.num_samples, self._one_draw())

    # -- the loop -------------------------------------------------------------------------

    def go(self, num_samples: int) -> None:
        """Warm up if that is still to do, and sample until each chain has ``num_samples`` draws."""
        settings = self.settings
        self.num_samples, self.interrupted, self._posterior = num_samples, False, None
        self._last_checkpoint = time.perf_counter()
        with (
            Interrupts() as self._interrupts,
            poutine.block(),
            ProgressBar(
                settings.warmup_steps, num_samples, settings.num_chains, disable=settings.disable_progbar
            ) as self._bar,
        ):
            self._bar.skip(self._warmup.completed + self.draws.done)
            try:
                self._unless_out_of_memory(self._warm_up_and_sample)
            except KeyboardInterrupt:
                self.interrupted = True
        self._finish()

    def _unless_out_of_memory(self, action: Callable[[], None]) -> None:
        """Do ``action``; where memory runs out, begin again with fewer chains at a time, and do it then."""
        try:
            action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._chains_at_once is not None:
                raise
            num_chains = self.settings.num_chains
            self._chains_at_once = -(-num_chains // 2)
            self.notes.append(
                f"memory ran out on {self.potential.device} with {num_chains} chains at once; the run began "
                "again, its density evaluated on fewer chains at a time"
            )
        else:
            return
        # Outside the handler: an exception keeps alive all that filled the memory.
        self._begin()
        if action != self._begin:
            action()

    def _warm_up_and_sample(self) -> None:
        self.draws.reserve(self.num_samples, self._one_draw())
        if self._warmed is None:
            self._warm_up()
        if self._warmed is not None:
            self._sample(self._warmed)

    def _warm_up(self) -> None:
        """Warm up, a few transitions at a time."""
        warmup = self._warmup
        started, before = time.perf_counter(), self.seconds["warmup"]
        try:
            while not warmup.done:
                if self._interrupts.requested:
                    self.interrupted = True
                    return
                done = warmup.completed
                warmup.step()
                if not self.settings.disable_progbar:
                    shown = warmup.recorded | {"step_size": torch.tensor(warmup.step_size)}
                    self._bar.update("Warmup", warmup.completed - done, shown)
                if self.settings.hook_fn is not None:
                    self._call_hook(warmup.recorded["z"], "Warmup", done)
                self.seconds["warmup"] = before + time.perf_counter() - started
                self._write_checkpoint_if_due()
        except KeyboardInterrupt:
            self._start(self._starts)  # a step cut short can neither be kept nor taken back
            raise
        self._warmed = warmup.finish()
        self.state = self._warmed.state
        self.notes += self._warmed.report.warnings

    def _watched(self) -> list[str]:
        """What the host looks at after transitions of warm-up."""
        bar = [] if self.settings.disable_progbar else ["diverging"]
        return bar if self.settings.hook_fn is None else [*bar, "z"]

    def _sample(self, warmed: Warmed) -> None:
        """Sample in chunks, whose sizes change nothing but how often the host looks."""
        record = ("z", "u", *self.kernel.statistics)
        chunk = _FIRST_CHUNK
        while self.draws.done < self.num_samples:
            if self._interrupts.requested:
                self.interrupted = True
                return
            started = time.perf_counter()
            first, num = self.draws.done, min(chunk, self.num_samples - self.draws.done)
            before = self.state, self.executor.rng_state()
            try:
                schedule = warmed.schedule(first, num)
                self.state, recorded = self.executor.run(
                    self.state, warmed.params, num=num, schedule=schedule, record=record
                )
                self._write(recorded)
            except BaseException:  # as if this chunk had not begun
                self.state, self.draws.done = before[0], first
                self.executor.set_rng_state(before[1])
                raise
            self._bar.update("Sample", num, recorded | {"step_size": self.state["step_size"]})
            self._check_moving()
            self._call_hook(recorded["z"], "Sample", first)
            seconds = time.perf_counter() - started
            self.seconds["sampling"] += seconds
            chunk = max(1, min(int(num * _CHUNK_SECONDS / seconds) + 1, num * _GROWTH))
            self._write_checkpoint_if_due()

    def _write(self, recorded: Mapping[str, Tensor]) -> None:
        """Store a chunk of draws: all of z, or only the sites that are kept."""
        stored = {name: recorded[name] for name in self.kernel.statistics}
        stored["lp"] = -recorded["u"].sum(-1)
        if self.settings.save_params is None:
            stored["z"] = recorded["z"]
        else:
            values = self._constrain(recorded["z"])
            stored |= {f"site:{name}": values[name] for name in self.names}
        self.draws.write(stored)

    def _one_draw(self) -> dict[str, Tensor]:
        """Tensors (C, ...) like those that :meth:`_write` stores of each draw."""
        state = self._warmup.state
        z = state["z"]
        like = {name: state[name] for name in self.kernel.statistics} | {"lp": z[:, 0]}
        if self.settings.save_params is None:
            return like | {"z": z}
        shapes = {site.name: site.shape for site in self.potential.sites}
        return like | {f"site:{n}": z[:, :1].new_empty(len(z), *shapes[n]) for n in self.names}

    def _constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Values of each site in its support, ``(..., *shape)``, from z ``(..., D)``."""
        values = self.potential.constrain(z)
        transforms = self.settings.transforms or {}
        return {n: transforms[n].inv(values[n]) if n in transforms else values[n] for n in self.names}

    def _check_moving(self) -> None:
        """Raise where no chain has moved since sampling began, nor will."""
        done = self.draws.done
        if self._moved or done < _STILL:
            return
        drawn = self.draws.read()
        accept = float(drawn["accept_prob"].mean())
        self._moved = accept > _NEVER or bool((drawn["lp"] != drawn["lp"][:, :1]).any())
        if not self._moved:
            step_size = float(self.state["step_size"].median())
            raise SamplingError(
                f"none of the {self.settings.num_chains} chains moved in {done} transitions: the mean "
                f"acceptance is {accept:.2g} with a step size of {step_size:.3g}; give more "
                "warmup_steps, a smaller step_size, or look for a wrong scale in the model"
            )

    def _call_hook(self, z: Tensor, stage: str, first: int) -> None:
        """Call the user's hook for each of the points z (num, C, D)."""
        if self.settings.hook_fn is not None:
            for i, points in enumerate(z):
                values = unflatten(self.potential, points, squeeze=self.settings.num_chains == 1)
                self.settings.hook_fn(self.settings.sampler, values, stage, first + i)

    # -- the end --------------------------------------------------------------------------

    def _finish(self) -> None:
        if self.settings.checkpoint is not None:
            self._write_checkpoint()
        notes = self.notes[self._told :]
        self._told = len(self.notes)
        if self.interrupted:
            where = "in warm-up" if self._warmed is None else f"after {self.draws.done} draws of each chain"
            notes.append(f"the run was interrupted {where}; extend(0) goes on with the rest")
        for note in notes:
            warnings.warn(note, SamplingWarning, stacklevel=4)

    def posterior(self) -> Posterior:
        """What has been drawn so far."""
        if self._posterior is None:
            stored = self.draws.read()
            z = stored.pop("z", None)
            if z is None:
                samples = {name: stored.pop(f"site:{name}") for name in self.names}
            elif self.draws.done > 0:
                samples = self._constrain(z)
            else:  # not every bijection takes no points
                shapes = {site.name: site.shape for site in self.potential.sites}
                samples = {name: z.new_empty(len(z), 0, *shapes[name]) for name in self.names}
            if self.draws.done > 0:
                stored["step_size"] = self.state["step_size"][:, None].expand(-1, self.draws.done)
            self._posterior = Posterior(
                samples=samples,
                statistics=stored,
                unconstrained=z,
                potential=self.potential if isinstance(self.potential, Potential) else None,
                attributes=self._attributes(),
            )
        return self._posterior

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = self.executor.info | {
            "sampler": self.settings.sampler.name,
            "seed": self.seed,
            "versions": {name: version(name) for name in ("ppgen", "torch", "pyro-ppl")},
            "dtype": str(self.potential.dtype).removeprefix("torch."),
            "device": str(self._starts.device),
            "num_samples": self.num_samples,
            "warmup_steps": self.settings.warmup_steps,
            "interrupted": self.draws.done < self.num_samples,
            "notes": list(self.notes),
            **{f"{name}_seconds": value for name, value in self.seconds.items()},
        }
        if self._warmed is not None:
            report = self._warmed.report
            found |= {
                "step_size": report.step_size,
                "scale": self._warmed.params["scale"],
                "trajectory_length": report.trajectory_length,
                "restarted": _chains(report.restarts, stuck=True),
                "left_behind": _chains(report.restarts, stuck=False),
            }
        return found

    # -- saving ---------------------------------------------------------------------------

    def tree(self) -> dict[str, Any]:
        """All that :meth:`_load` needs, as a tree for a bundle."""
        settings = self.settings
        warmed = self._warmed is not None
        return saving.make_tree(
            {
                "same": self._what_must_be_same(),
                "target": "potential_fn" if settings.sampler.model is None else "model",
                "seed": self.seed,
                "num_samples": self.num_samples,
                "disable_progbar": settings.disable_progbar,
                "compile": settings.compile,
                "backend": self.executor.backend,
                "device": str(self._starts.device),
                "data": saving.encode_data(self.args, self.kwargs),
                "initial_params": None if settings.initial_params is None else dict(settings.initial_params),
                "chains_at_once": self._chains_at_once,
                "starts": self._starts,
                "warmup": self._warmup.state_dict(),
                "state": dict(self.state) if warmed else None,
                "rng": self.executor.rng_state() if warmed else None,
                "draws": self.draws.read(),
                "seconds": self.seconds,
                "notes": self.notes,
            }
        )

    def _what_must_be_same(self) -> dict[str, Any]:
        """What a saved run and the one that goes on with it must agree on; JSON only."""
        settings = self.settings
        sites = [[s.name, list(s.shape)] for s in self.potential.sites]
        return {
            "sampler": settings.sampler.name,
            "sampler_arguments": settings.sampler.arguments,
            "warmup_steps": settings.warmup_steps,
            "num_chains": settings.num_chains,
            "save_params": settings.save_params,
            "dtype": str(self.potential.dtype).removeprefix("torch."),
            "sites": sites,
            "num_dims": self.potential.num_dims,
            "data": saving.digest_of_data(self.args, self.kwargs),
        }

    def _load(self, saved: Mapping[str, Any]) -> None:
        """Put everything where the saved run stood."""
        now = self._what_must_be_same()
        for name, value in saved["same"].items():
            saving.check_same(name, value, now.get(name))
        if self.settings.seed is not None:
            saving.check_same("seed", saved["seed"], self.settings.seed)
        device = self.potential.device
        self._chains_at_once = saved["chains_at_once"]
        # Each backend has random numbers of its own.
        self._compile = False if saved["backend"] == "eager" else saved["backend"]
        self._start(saved["starts"].to(device))
        self._warmup.load_state_dict(saved["warmup"])
        if saved["state"] is not None:
            self._warmed = self._warmup.finish()
            self.state = {name: value.to(device) for name, value in saved["state"].items()}
            self.executor.set_rng_state(saved["rng"])
            self.draws.load(saved["draws"], device)
        self.seconds, self.notes = dict(saved["seconds"]), list(saved["notes"])
        self._told = len(self.notes)

    def _write_checkpoint_if_due(self) -> None:
        due = time.perf_counter() - self._last_checkpoint > self.settings.checkpoint_seconds
        if due and self.settings.checkpoint is not None:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """A checkpoint; a disk that refuses costs a warning, not the run."""
        if self.settings.checkpoint is None:
            return
        try:
            self.settings.checkpoint.write(self._warmup.completed + self.draws.done, self.tree())
        except CheckpointError as error:
            warnings.warn(str(error), CheckpointWarning, stacklevel=2)
        self._last_checkpoint = time.perf_counter()


def _chains(restarts: list[Restart], *, stuck: bool) -> list[int]:
    """The chains that were started again, because they were stuck or slow to arrive."""
    return sorted({chain for item in restarts if item.stuck is stuck for chain in item.chains})


def _split_seed(seed: int, num: int) -> list[int]:
    """``num`` seeds that depend on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**63 - 1, (num,), generator=generator).tolist()
