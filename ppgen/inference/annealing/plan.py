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
    cess: float = 0.995
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

    Args:
        density: of two parts; see the module.
        draw: exact draws of the start for a number of particles and a seed, shape (P G, D).
        plan: how to go.
        num_groups: G.
        device: where the particles are.
        executor: makes the executor of a kernel for a number of chains and a seed; by default the best
            that there is.
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
        device: torch.device | str = "cpu",
        executor: Callable[[Kernel, int, int], Executor] | None = None,
        tuned: Tempering | None = None,
    ) -> None:
        self.density, self.draw, self.plan, self.num_groups = density, draw, plan, num_groups
        self._device, self._make = device, executor or self._best
        self._kernel = plan.transition.kernel(density.num_dims)
        # A stream of seeds of its own: the pilot, then each walk.
        self._stream = torch.Generator().manual_seed(plan.seed)
        self.scales: Scales
        self.ladder: Tensor
        self.scales, self.ladder = (tuned.scales, tuned.ladder) if tuned else self._tuned()

    def _tuned(self) -> tuple[Scales, Tensor]:
        """Scales and ladder by a pilot run."""
        plan, num_groups = self.plan, self.num_groups
        num = plan.num_pilot or min(max(plan.num_particles, 16), 1024)
        tuning = plan.transition.tuning
        scales = pilot(
            self._make(self._kernel, num * num_groups, self.next_seed()),
            self.draw(num, self.next_seed()),
            num_groups=num_groups,
            num_steps=plan.num_steps,
            step_size=None if tuning.adapt_step_size else tuning.step_size,
            target_accept=tuning.target_accept_prob or 0.65,
            dense=tuning.full_mass,
            generator=self.generator(),
        )
        if isinstance(plan.schedule, Tensor) or plan.schedule != "adaptive":
            count = 1 if plan.num_temperatures == "adaptive" else plan.num_temperatures
            return scales, make_ladder(plan.schedule, count)
        if plan.num_temperatures == "adaptive":
            return scales, scales.ladder(cess=plan.cess)
        return scales, scales.ladder(num_temperatures=plan.num_temperatures)

    def up(self, *, resample_below: float = 0.0, num_islands: int = 1) -> Annealed:
        """A walk of fresh draws of the start to the target; with resampling, within each of some islands."""
        z = self.draw(self.plan.num_particles, self.next_seed())
        return self._walk(z, self.ladder, resample_below, num_islands)

    def down(self, z: Tensor) -> Annealed:
        """A walk from draws z (P G, D) of the target to the start."""
        return self._walk(z, self.ladder.flip(0))

    def next_seed(self) -> int:
        """The next seed of the stream."""
        return int(torch.randint(2**62, (), generator=self._stream))

    def generator(self) -> torch.Generator:
        """A generator on the CPU with the next seed of the stream."""
        return torch.Generator().manual_seed(self.next_seed())

    def _walk(self, z: Tensor, ladder: Tensor, resample_below: float = 0.0, num_islands: int = 1) -> Annealed:
        executor = self._make(self._kernel, len(z), self.next_seed())
        path = TemperedPath(
            executor, self.scales, num_steps=self.plan.num_steps, num_transitions=self.plan.num_transitions
        )
        return anneal(
            path,
            path.start(z),
            ladder,
            num_groups=self.num_groups * num_islands,
            resample_below=resample_below,
            generator=self.generator(),
            progress=self.plan.progress,
        )

    def _best(self, kernel: Kernel, num_chains: int, seed: int) -> Executor:
        return make_executor(
            kernel,
            self.density,
            num_chains=num_chains,
            seed=seed,
            device=self._device,
            compile=self.plan.compile,
        )
