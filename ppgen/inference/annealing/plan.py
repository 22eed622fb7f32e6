"""How to walk a tempered path, and the walks: pilot run, ladder, executor, up and down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.annealing.ladders import Ladder, make_ladder, refine_ladder
from ppgen.inference.annealing.pilot import PILOT_CESS, pilot
from ppgen.inference.annealing.tempering import Scales, TemperedPath
from ppgen.inference.annealing.walk import Annealed, anneal
from ppgen.inference.mcmc.backends import make_executor
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.executor import Executor
from ppgen.inference.mcmc.samplers import HMC, Sampler
from ppgen.inference.mcmc.target import split_energy
from ppgen.inference.memory import is_out_of_memory
from ppgen.ops.weights import log_mean_weight

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """How to walk a tempered path; what :class:`~ppgen.inference.ais.AIS` is given, checked.

    Attributes:
        num_particles: P, for each group.
        num_temperatures: steps T of the ladder, or ``"adaptive"`` for as many as ``cess`` asks for.
        schedule: ``"adaptive"`` to place the rungs as the pilot run did, or a ladder.
        cess: least conditional effective sample size of a step, where T is adaptive.
        transition: the kernel and what of it is tuned.
        num_transitions: transitions at each rung.
        num_pilot: particles of the pilot run, for each group; P, but 16 at least and 1,024 at most, unless
            given.
        seed: of everything that is random.
        compile: see :func:`~ppgen.inference.mcmc.backends.make_executor`.
        progress: show a bar.
    """

    num_particles: int
    num_temperatures: int | Literal["adaptive"] = "adaptive"
    schedule: Literal["adaptive"] | Ladder | Tensor = "adaptive"
    cess: float = 0.999
    transition: Sampler = field(default_factory=lambda: HMC(num_steps=5, target_accept_prob=0.65))
    num_transitions: int = 1
    num_pilot: int | None = None
    seed: int = 0
    compile: bool | str = "auto"
    progress: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.transition, Sampler):
            raise ConfigError(
                "transition: expected a sampler of ppgen.inference such as HMC(num_steps=10), got "
                f"{type(self.transition).__name__}"
            )
        for name, least in (("num_particles", 2), ("num_transitions", 1), ("num_pilot", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: expected an integer of {least} or more, got {value}")
        if self.num_temperatures == "adaptive":
            if not isinstance(self.schedule, Tensor) and self.schedule != "adaptive":
                raise ConfigError(
                    f"num_temperatures: the schedule {self.schedule!r} needs a number of temperatures, "
                    "got 'adaptive'"
                )
        elif self.num_temperatures < 1:
            raise ConfigError(
                f"num_temperatures: expected a positive integer or 'adaptive', got {self.num_temperatures}"
            )
        if not 0 < self.cess < 1:
            raise ConfigError(f"cess: expected a share between 0 and 1, got {self.cess}")

    @property
    def num_steps(self) -> int:
        """Leapfrog steps of a transition."""
        return int(getattr(self.transition, "num_steps", None) or 5)


class Tempering:
    """A density with a start that can be drawn from, and moves tuned to it by a pilot run.

    Where memory runs out, the density is evaluated on fewer particles at a time, which changes no figure
    but by rounding; compiled code is then left for torch as it is.

    Args:
        density: of two parts; see :mod:`~ppgen.inference.annealing.tempering`.
        draw: exact draws of the start for a number of particles and a seed, shape (P G, D).
        plan: how to go.
        num_groups: G.
        apart: whether particles can be evaluated apart: not where each group has a density of its own.
        device: where the particles are.
        tuned: another one of the same kind, whose scales and ladder are taken over.

    Attributes:
        scales: of the moves.
        ladder: inverse temperatures from 0 to 1, shape (T + 1,).
    """

    def __init__(
        self,
        density: Density,
        draw: Callable[[int, int], Tensor],
        plan: Plan,
        *,
        num_groups: int = 1,
        apart: bool = True,
        device: torch.device | str = "cpu",
        tuned: Tempering | None = None,
    ) -> None:
        self.density, self.draw, self.plan, self.num_groups = density, draw, plan, num_groups
        self._device = device
        self._whole: Density | None = density if apart else None
        self._kernel = plan.transition.kernel(density.num_dims)
        # A stream of seeds of its own: the pilot, then each walk.
        self._stream = torch.Generator().manual_seed(plan.seed)
        self.scales: Scales
        self.ladder: Tensor
        self.scales, self.ladder = (tuned.scales, tuned.ladder) if tuned else self._tuned()

    def up(self, *, resample_below: float = 0.0, num_islands: int = 1) -> Annealed:
        """A walk of fresh draws of the start to the target; with resampling, within each of some islands."""
        z = self.draw(self.plan.num_particles, self._next_seed())
        return self._walk(z, self.ladder, resample_below, num_islands)

    def down(self, z: Tensor) -> Annealed:
        """A walk from draws z (P G, D) of the target to the start."""
        return self._walk(z, self.ladder.flip(0))

    def inverse(self, draws: Tensor) -> tuple[tuple[Tensor, Tensor], bool]:
        """Walks from draws (M, D) of the target, each the start of P / M particles, rounded up; of one group.

        Returns:
            Log mean weight, which is one of 1 / Z, with its error: between draws where there are two or
            more, for particles of one draw depend on each other, else between particles; and whether the
            walk was cut short.
        """
        num = len(draws)
        walk = self.down(draws.repeat(-(-self.plan.num_particles // num), 1))
        each = walk.log_weights.view(-1, num)
        return log_mean_weight(each[:, 0] if num == 1 else log_mean_weight(each)[0]), walk.interrupted

    def _tuned(self) -> tuple[Scales, Tensor]:
        """Scales and ladder by a pilot run."""
        plan = self.plan
        num = plan.num_pilot or min(max(plan.num_particles, 16), 1024)
        tuning = plan.transition.tuning
        z, seed, resampling = self.draw(num, self._next_seed()), self._next_seed(), self._next_seed()
        scales = self._unless_out_of_memory(
            len(z),
            lambda: pilot(
                self._executor(len(z), seed),
                z,
                num_groups=self.num_groups,
                num_steps=plan.num_steps,
                step_size=None if tuning.adapt_step_size else tuning.step_size,
                target_accept=tuning.target_accept_prob or 0.65,
                dense=tuning.full_mass,
                generator=torch.Generator().manual_seed(resampling),
            ),
        )
        if isinstance(plan.schedule, Tensor) or plan.schedule != "adaptive":
            count = 1 if plan.num_temperatures == "adaptive" else plan.num_temperatures
            return scales, make_ladder(plan.schedule, count)
        ladder = refine_ladder(
            scales.betas.cpu(),
            found_at=PILOT_CESS,
            cess=plan.cess,
            num=None if plan.num_temperatures == "adaptive" else plan.num_temperatures,
        )
        return scales, ladder

    def _walk(self, z: Tensor, ladder: Tensor, resample_below: float = 0.0, num_islands: int = 1) -> Annealed:
        seed, resampling = self._next_seed(), self._next_seed()

        def walk() -> Annealed:
            path = TemperedPath(
                self._executor(len(z), seed),
                self.scales,
                num_steps=self.plan.num_steps,
                num_transitions=self.plan.num_transitions,
            )
            return anneal(
                path,
                path.start(z),
                ladder,
                num_groups=self.num_groups * num_islands,
                resample_below=resample_below,
                generator=torch.Generator().manual_seed(resampling),
                progress=self.plan.progress,
            )

        return self._unless_out_of_memory(len(z), walk)

    def _unless_out_of_memory(self, num: int, action: Callable[[], _Result]) -> _Result:
        """Do ``action``; where memory runs out, again with the particles' densities evaluated in parts."""
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._whole is None:
                raise
        # Outside the handler: an exception keeps alive all that filled the memory.
        self.density = replace(self._whole, batched=split_energy(self._whole.batched, -(-num // 2)))
        self.plan, self._whole = replace(self.plan, compile=False), None
        return action()

    def _executor(self, num_chains: int, seed: int) -> Executor:
        return make_executor(
            self._kernel,
            self.density,
            num_chains=num_chains,
            seed=seed,
            device=self._device,
            compile=self.plan.compile,
        )

    def _next_seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self._stream))
