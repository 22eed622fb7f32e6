r"""Samplers as the user names them: what to sample from, with which kernel, tuned how.

.. code-block:: python

    MCMC(NUTS(model, target_accept_prob=0.9), num_samples=1000, num_chains=64)
    AIS(model, transition=HMC(num_steps=10))          # a transition needs no model of its own

Names, positions and defaults of the arguments are those of :mod:`pyro.infer.mcmc`, so that a
script changes its import and nothing else. A sampler holds arguments only, and serves any number
of runs. What Pyro's arguments about its own machinery ask for (``jit_compile``, ``jit_options``,
``ignore_jit_warnings``) is accepted and without effect.

References: Duane et al. 1987; Hoffman & Gelman 2014 (NUTS); Betancourt 2017; Hoffman, Radul &
Sountsov 2021 (ChEES); Roberts & Tweedie 1996 (MALA); Roberts, Gelman & Gilks 1997 (acceptance
rates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral
from typing import Any, Literal

from pyro.infer.autoguide import init_to_uniform
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.adaptation import Tuning
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel
from ppgen.inference.mcmc.mala import mala_kernel
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.inference.mcmc.random_walk import random_walk_kernel

#: A Pyro model: any callable with Pyro primitives.
Model = Callable[..., Any]
#: Minus a log density, in nats, of a dict of unconstrained values.
PotentialFunction = Callable[[dict[str, Tensor]], Tensor]
#: One of ``pyro.infer.autoguide.initialization``, or a name.
InitStrategy = Callable[..., Any] | str
#: Whether the mass matrix is dense. Pyro's list of blocks of sites counts as dense over all sites.
FullMass = bool | Sequence[tuple[str, ...]]

#: A tree of this depth has a million leapfrog steps.
_DEEPEST = 20
# Functions and what only they need: not written to checkpoints.
_NOT_SAVED = ("model", "potential_fn", "transforms", "init_strategy", "jit_options")


class Sampler:
    """What all samplers have.

    Attributes:
        model: a Pyro model.
        potential_fn: instead of a model, minus a log density of a dict of unconstrained values.
        step_size: the first step size; warm-up searches a good one from there.
        adapt_step_size: adapt it in warm-up.
        adapt_mass_matrix: adapt it in warm-up.
        full_mass: a dense mass matrix instead of a diagonal one.
        transforms: for ``potential_fn``, the transform of each name from its support to real numbers, so
            that draws come back in the support. A model's are found by themselves.
        max_plate_nesting: largest number of nested plates, for a model whose discrete latents are summed
            out; found by a trace where it is ``None``.
        target_accept_prob: acceptance probability that the step size aims at.
        init_strategy: where chains start.

    Raises:
        ConfigError: both ``model`` and ``potential_fn``, or an argument out of its range.
    """

    model: Model | None
    potential_fn: PotentialFunction | None
    adapt_step_size: bool
    adapt_mass_matrix: bool
    full_mass: FullMass
    transforms: Mapping[str, Any] | None
    max_plate_nesting: int | None
    target_accept_prob: float
    init_strategy: InitStrategy

    def __post_init__(self) -> None:
        if self.model is not None and self.potential_fn is not None:
            raise ConfigError(f"model, potential_fn: {self.name} takes one of them, got both; leave one out")
        for argument in ("model", "potential_fn"):
            value = getattr(self, argument)
            if value is not None and not callable(value):
                raise ConfigError(f"{argument}: expected a function, got {type(value).__name__}")
        if not (callable(self.init_strategy) or isinstance(self.init_strategy, str)):
            raise ConfigError(
                "init_strategy: expected a strategy of pyro.infer.autoguide or its name, "
                f"got {self.init_strategy!r}"
            )
        if self.max_plate_nesting is not None:
            self.max_plate_nesting = check_count("max_plate_nesting", self.max_plate_nesting, least=0)
        check_positive(self._step_size_argument, getattr(self, self._step_size_argument))
        check_positive("target_accept_prob", self.target_accept_prob)
        if self.target_accept_prob >= 1:
            raise ConfigError(
                f"target_accept_prob: expected a number between 0 and 1, got {self.target_accept_prob!r}"
            )
        blocks = [] if isinstance(self.full_mass, bool) else list(self.full_mass)
        if not all(isinstance(block, tuple) and block for block in blocks):
            raise ConfigError(
                f"full_mass: expected True, False or a list of tuples of site names, got {self.full_mass!r}"
            )

    _step_size_argument = "step_size"

    @property
    def name(self) -> str:
        """Name of the algorithm, for messages and attributes."""
        return type(self).__name__

    @property
    def first_step_size(self) -> float:
        """The step size before any adaptation."""
        return float(getattr(self, self._step_size_argument))

    @property
    def tuning(self) -> Tuning:
        """How step size, mass matrix and trajectory length are adapted."""
        return self._make_tuning()

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that a checkpoint can hold: all but functions."""
        names = [f.name for f in fields(self) if f.name not in _NOT_SAVED]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names}
        if not isinstance(self.full_mass, bool):
            values["full_mass"] = [list(block) for block in self.full_mass]
        return values

    def kernel(self, num_dims: int) -> Kernel:
        """The transition of a chain in ``num_dims`` dimensions."""
        raise NotImplementedError

    def _make_tuning(self, **others: Any) -> Tuning:
        return Tuning(
            step_size=self.first_step_size,
            adapt_step_size=bool(self.adapt_step_size),
            adapt_mass_matrix=bool(self.adapt_mass_matrix),
            full_mass=bool(self.full_mass),
            target_accept_prob=float(self.target_accept_prob),
            **others,
        )


@dataclass(eq=False)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo; all chains take the same number of leapfrog steps.

    Attributes:
        trajectory_length: time of a trajectory; :math:`2 \pi` where neither it nor ``num_steps`` is given,
            as in Stan. The number of steps is this over the step size.
        num_steps: number of leapfrog steps, where no ``trajectory_length`` is given. As in Pyro, the
            trajectory length is ``step_size * num_steps`` with the *first* step size, and kept as the
            step size adapts.
        min_stepsize: smallest step size of the adaptation.
        max_stepsize: largest step size of the adaptation.
    """

    model: Model | None = None
    potential_fn: PotentialFunction | None = None
    step_size: float = 1
    trajectory_length: float | None = None
    num_steps: int | None = None
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: FullMass = False
    transforms: Mapping[str, Any] | None = None
    max_plate_nesting: int | None = None
    jit_compile: bool = False
    jit_options: Mapping[str, Any] | None = None
    ignore_jit_warnings: bool = False
    target_accept_prob: float = 0.8
    init_strategy: InitStrategy = init_to_uniform
    _: KW_ONLY
    min_stepsize: float = 1e-10
    max_stepsize: float = 1e10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory_length is not None:
            check_positive("trajectory_length", self.trajectory_length)
        if self.num_steps is not None:
            self.num_steps = check_count("num_steps", self.num_steps)
        check_positive("min_stepsize", self.min_stepsize)
        check_positive("max_stepsize", self.max_stepsize)

    @property
    def tuning(self) -> Tuning:
        """See :class:`Sampler`."""
        length = self.trajectory_length
        if length is None:
            length = 2 * math.pi if self.num_steps is None else self.step_size * self.num_steps
        return self._make_tuning(
            trajectory_length=float(length),
            min_step_size=float(self.min_stepsize),
            max_step_size=float(self.max_stepsize),
        )

    def kernel(self, num_dims: int) -> Kernel:
        """See :class:`Sampler`."""
        return hmc_kernel(num_dims)


@dataclass(eq=False)
class NUTS(Sampler):
    """The no-U-turn sampler: the length of each trajectory is found as it goes.

    Attributes:
        use_multinomial_sampling: without effect: points of a trajectory are always drawn by their weight.
            ``False`` asks Pyro for the older slice sampling, which has the same stationary distribution.
        max_tree_depth: a trajectory has at most ``2**max_tree_depth - 1`` leapfrog steps.
    """

    model: Model | None = None
    potential_fn: PotentialFunction | None = None
    step_size: float = 1
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: FullMass = False
    use_multinomial_sampling: bool = True
    transforms: Mapping[str, Any] | None = None
    max_plate_nesting: int | None = None
    jit_compile: bool = False
    jit_options: Mapping[str, Any] | None = None
    ignore_jit_warnings: bool = False
    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    init_strategy: InitStrategy = init_to_uniform

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_tree_depth = check_count("max_tree_depth", self.max_tree_depth)
        if self.max_tree_depth > _DEEPEST:
            raise ConfigError(f"max_tree_depth: expected at most {_DEEPEST}, got {self.max_tree_depth}")

    def kernel(self, num_dims: int) -> Kernel:
        """See :class:`Sampler`."""
        return nuts_kernel(num_dims, self.max_tree_depth)


@dataclass(eq=False)
class ChEES(Sampler):
    """HMC whose trajectory length is learnt in warm-up from all chains together.

    Warm-up climbs the change in the estimator of the expected square (ChEES) by stochastic gradients;
    sampling jitters the length. It wants many chains, 32 or more, and is then the most efficient sampler
    on most models. Attributes: those of :class:`Sampler`. The default target acceptance is .9: that of .651,
    optimal for HMC in high dimensions, is too low for most models, and diverges where scales are latent.
    """

    model: Model | None = None
    potential_fn: PotentialFunction | None = None
    step_size: float = 1
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: FullMass = False
    transforms: Mapping[str, Any] | None = None
    max_plate_nesting: int | None = None
    target_accept_prob: float = 0.9
    init_strategy: InitStrategy = init_to_uniform

    @property
    def tuning(self) -> Tuning:
        """See :class:`Sampler`."""
        return self._make_tuning(trajectory_length="chees")

    def kernel(self, num_dims: int) -> Kernel:
        """See :class:`Sampler`."""
        return hmc_kernel(num_dims)


@dataclass(eq=False)
class MALA(Sampler):
    """The Metropolis-adjusted Langevin algorithm: one gradient a transition.

    Attributes: those of :class:`Sampler`; a target of .574 is optimal in high dimensions.
    """

    model: Model | None = None
    potential_fn: PotentialFunction | None = None
    step_size: float = 1
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: FullMass = False
    transforms: Mapping[str, Any] | None = None
    max_plate_nesting: int | None = None
    target_accept_prob: float = 0.574
    init_strategy: InitStrategy = init_to_uniform

    def kernel(self, num_dims: int) -> Kernel:
        """See :class:`Sampler`."""
        return mala_kernel(num_dims)


@dataclass(eq=False)
class RandomWalk(Sampler):
    """Metropolis with Gaussian steps; needs no gradient. Pyro's ``RandomWalkKernel``.

    Attributes: those of :class:`Sampler`, the step size being ``init_step_size``; a target of .234 is
    optimal in high dimensions. Pyro's steps are isotropic; ``adapt_mass_matrix=False`` keeps them so.
    """

    model: Model | None = None
    init_step_size: float = 0.1
    target_accept_prob: float = 0.234
    _: KW_ONLY
    potential_fn: PotentialFunction | None = None
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: FullMass = False
    transforms: Mapping[str, Any] | None = None
    max_plate_nesting: int | None = None
    init_strategy: InitStrategy = init_to_uniform

    _step_size_argument = "init_step_size"

    def kernel(self, num_dims: int) -> Kernel:
        """See :class:`Sampler`."""
        return random_walk_kernel(num_dims)


#: Pyro's name of :class:`RandomWalk`.
RandomWalkKernel = RandomWalk

_SAMPLERS: dict[str, type[Sampler]] = {c.__name__: c for c in (HMC, NUTS, ChEES, MALA, RandomWalk)}


def rebuild_sampler(
    name: str, arguments: Mapping[str, Any], target: Model, kind: Literal["model", "potential_fn"]
) -> Sampler:
    """The sampler whose :attr:`Sampler.name` and :attr:`Sampler.arguments` were saved, for ``target``.

    Raises:
        ConfigError: no sampler of that name or of these arguments.
    """
    full_mass = arguments.get("full_mass", False)
    blocks = full_mass if isinstance(full_mass, bool) else [tuple(block) for block in full_mass]
    given: dict[str, Any] = {**arguments, "full_mass": blocks, kind: target}
    try:
        return _SAMPLERS[name](**given)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"sampler: {name!r} with {sorted(arguments)} is not known here") from error


def check_count(name: str, value: object, least: int = 1) -> int:
    """``value``, an integer of ``least`` or more.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}: expected an integer of {least} or more, got {value!r}")
    return int(value)


def check_positive(name: str, value: object) -> None:
    """Raise :class:`~ppgen.errors.ConfigError` unless ``value`` is a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name}: expected a positive number, got {value!r}")
