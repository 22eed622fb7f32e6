r"""Sequential Monte Carlo samplers: the walk of annealed importance sampling, with resampling.

Particles that have gathered little weight are replaced by copies of those that have gathered much
(systematic resampling, where the effective sample size falls below a share), so all effort goes to where
the posterior is. The product of the mean weights between resamplings is unbiased for the evidence, for
the ladder and the scales of the moves come from a pilot run and not from these particles.

Particles that are resampled together depend on one another, so a standard error needs independent runs:
they fall into *islands* that never meet; the evidence is the mean over islands, its error from their
spread.

References: Del Moral, Doucet & Jasra 2006; Zhou, Johansen & Aston 2016; Lee & Whiteley 2016 (forests of
islands); Dai, Heng, Jacob & Whiteley 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError
from ppgen.inference.ais import Evidence, make_evidence
from ppgen.inference.annealing.ladders import Ladder
from ppgen.inference.mcmc.samplers import Sampler
from ppgen.inference.annealing.path_ends import PathEnds, fresh_seed
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.ops.weights import log_mean_weight


class SMC:
    r"""A tempered sequential Monte Carlo sampler for any Pyro model with continuous latents.

    Args:
        model: a Pyro model. Discrete latents are summed out.
        guide: see :class:`~ppgen.inference.ais.AIS`.
        num_particles: particles in all.
        num_islands: groups that are resampled apart, a divisor of ``num_particles``.
        resample_below: an island is resampled where its effective sample size is below this share.
        num_temperatures: see :class:`~ppgen.inference.ais.AIS`, as all that follow.
        schedule: see there.
        cess: see there; steps may be larger, for weights never travel far.
        transition: see there.
        num_transitions: see there.
        seed: see there.
        dtype: see there.
        device: see there.
        compile: see there.
        progress: see there.

    Raises:
        ConfigError: arguments that make no sense.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        *,
        num_particles: int = 1024,
        num_islands: int = 16,
        resample_below: float = 0.5,
        num_temperatures: int | Literal["adaptive"] = "adaptive",
        schedule: Literal["adaptive"] | Ladder | Tensor = "adaptive",
        cess: float = 0.95,
        transition: Sampler | None = None,
        num_transitions: int = 2,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | str = "auto",
        progress: bool = False,
    ) -> None:
        if num_islands < 2 or num_particles % num_islands or num_particles < 2 * num_islands:
            raise ConfigError(
                f"num_islands: expected a divisor of num_particles={num_particles}, from 2 to its half, "
                f"got {num_islands}"
            )
        if not 0 < resample_below <= 1:
            raise ConfigError(f"resample_below: expected a share above 0 and at most 1, got {resample_below}")
        self.model, self.guide, self.seed = model, guide, seed
        self.num_islands, self.resample_below = num_islands, resample_below
        self._dtype, self._device = dtype, device
        chosen: dict[str, Any] = {} if transition is None else {"transition": transition}
        self.plan = Plan(
            num_particles,
            num_temperatures,
            schedule,
            cess,
            num_transitions=num_transitions,
            compile=compile,
            progress=progress,
            **chosen,
        )

    def run(self, *args: Any, **kwargs: Any) -> Evidence:
        """The evidence and posterior draws; arguments and errors as :meth:`ppgen.inference.ais.AIS.run`.

        ``log_weights`` of the result weigh all particles against one another: islands by their evidence,
        particles of one island by what they gathered since it was resampled.
        """
        seed = fresh_seed(self.seed)
        ends = PathEnds(
            self.model, self.guide, args, kwargs, dtype=self._dtype, device=self._device, seed=seed
        )
        potential = ends.potential
        tempering = Tempering(
            potential.density(path=True), ends.draw, replace(self.plan, seed=seed), device=potential.device
        )
        walk = tempering.up(resample_below=self.resample_below, num_islands=self.num_islands)
        each = walk.log_resampled + log_mean_weight(walk.log_weights)[0]
        value, error = log_mean_weight(each)
        log_weights = (walk.log_weights + walk.log_resampled).flatten()
        return make_evidence(
            Estimate(value, Kind.LOWER_BOUND, error), walk, log_weights, potential, seed, "num_particles"
        )
