"""What warm-up is asked to learn, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.adaptation.stuck import Restart
from ppgen.inference.mcmc.kernel import Params, State

#: Mean acceptances that are near the most efficient ones, by the name of the kernel.
TARGETS = {"NUTS": 0.8, "HMC": 0.8, "ChEES": 0.9, "MALA": 0.574, "random walk": 0.234}


@dataclass(frozen=True)
class Tuning:
    """How a kernel is tuned.

    Attributes:
        step_size: the first step size, or the only one where it is not adapted.
        adapt_step_size: whether to learn it.
        adapt_mass_matrix: whether to learn the scale of the momenta from the draws.
        full_mass: whether that is a matrix rather than a diagonal.
        target_accept_prob: mean acceptance that the step size aims at; by default that of
            :data:`TARGETS`.
        num_steps: leapfrog steps of HMC, whatever the step size is.
        trajectory_length: length of HMC's trajectories, in steps of ``ceil(length / step_size)``; or
            "chees" to learn it. Where neither this nor ``num_steps`` is given, one step.
        min_step_size: smallest step size.
        max_step_size: largest.

    Raises:
        ConfigError: an argument out of its range; both ``num_steps`` and ``trajectory_length``.
    """

    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: bool = False
    target_accept_prob: float | None = None
    num_steps: int | None = None
    trajectory_length: float | Literal["chees"] | None = None
    min_step_size: float = 1e-12
    max_step_size: float = 1e6

    def __post_init__(self) -> None:
        positive = {"step_size": self.step_size, "min_step_size": self.min_step_size}
        positive["max_step_size"] = self.max_step_size
        if isinstance(self.trajectory_length, int | float):
            positive["trajectory_length"] = self.trajectory_length
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}: expected a positive finite number, got {value}")
        if self.num_steps is not None and self.num_steps < 1:
            raise ConfigError(f"num_steps: expected 1 or more, got {self.num_steps}")
        if self.num_steps is not None and self.trajectory_length is not None:
            raise ConfigError("num_steps and trajectory_length: expected one of them, got both")
        if isinstance(self.trajectory_length, str) and self.trajectory_length != "chees":
            raise ConfigError(
                f"trajectory_length: expected a number or 'chees', got {self.trajectory_length!r}"
            )
        if self.target_accept_prob is not None and not 0 < self.target_accept_prob < 1:
            raise ConfigError(
                f"target_accept_prob: expected a number between 0 and 1, got {self.target_accept_prob}"
            )

    @property
    def chees(self) -> bool:
        """Whether the trajectory length is learnt."""
        return self.trajectory_length == "chees"

    def target(self, kernel_name: str) -> float:
        """The acceptance aimed at."""
        if self.target_accept_prob is not None:
            return self.target_accept_prob
        return TARGETS["ChEES" if self.chees else kernel_name]


@dataclass(frozen=True)
class Report:
    """What warm-up found.

    Attributes:
        step_size: the step size that sampling uses.
        trajectory_length: the longest trajectory of sampling, where HMC has one.
        accept_prob: mean acceptance over all chains in the last window; NaN without one.
        restarts: chains that were stuck, or slow to arrive, and started again.
        warnings: what deserves a look, each with what to do.
    """

    step_size: float
    trajectory_length: float | None
    accept_prob: float
    restarts: list[Restart] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Warmed:
    """A tuned kernel, ready to sample.

    Attributes:
        state: where the chains stand, with their step sizes.
        params: what they share: ``scale``, ``weights`` and, for HMC, ``num_steps``.
        schedule: ``schedule(first, num)`` is the ``schedule`` of the executor's ``run`` for the draws
            from number ``first`` on, or nothing where params stay the same. It depends on nothing else,
            so draws may be made in chunks of any size.
        report: what warm-up found.
    """

    state: State
    params: Params
    schedule: Callable[[int, int], dict[str, torch.Tensor] | None]
    report: Report
