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
from typing import Any

from ppgen.errors import ConfigError
from ppgen.inference.ais import AIS, Evidence, make_evidence
from ppgen.inference.annealing.path_ends import fresh_seed
from ppgen.ops.weights import log_mean_weight


class SMC:
    r"""A tempered sequential Monte Carlo sampler for any Pyro model with continuous latents.

    Args:
        model: a Pyro model. Discrete latents are summed out.
        guide: see :class:`~ppgen.inference.ais.AIS`.
        num_particles: particles in all.
        num_islands: groups that are resampled apart, a divisor of ``num_particles``.
        resample_below: an island is resampled where its effective sample size is below this share.
        cess: conditional effective sample size of a step; steps may be larger than those of
            :class:`~ppgen.inference.ais.AIS`, for weights never travel far.
        num_transitions: transitions at each rung.
        **options: the other arguments of :class:`~ppgen.inference.ais.AIS`: ``num_temperatures``,
            ``schedule``, ``transition``, ``seed``, ``dtype``, ``device``, ``compile``, ``progress``.

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
        cess: float = 0.95,
        num_transitions: int = 2,
        **options: Any,
    ) -> None:
        if num_islands < 2 or num_particles % num_islands or num_particles < 2 * num_islands:
            raise ConfigError(
                f"num_islands: expected a divisor of num_particles={num_particles}, from 2 to its half, "
                f"got {num_islands}"
            )
        if not 0 < resample_below <= 1:
            raise ConfigError(f"resample_below: expected a share above 0 and at most 1, got {resample_below}")
        self.num_islands, self.resample_below = num_islands, resample_below
        self._ais = AIS(
            model,
            guide,
            num_particles=num_particles,
            cess=cess,
            num_transitions=num_transitions,
            **options,
        )

    def run(self, *args: Any, **kwargs: Any) -> Evidence:
        """The evidence and posterior draws; arguments and errors as :meth:`ppgen.inference.ais.AIS.run`.

        ``log_weights`` of the result weigh all particles against one another: islands by their evidence,
        particles of one island by what they gathered since it was resampled.
        """
        seed = fresh_seed(self._ais.seed)
        ends, tempering = self._ais.prepare(args, kwargs, seed)
        walk = tempering.up(resample_below=self.resample_below, num_islands=self.num_islands)
        each = walk.log_resampled + log_mean_weight(walk.log_weights)[0]
        log_weights = (walk.log_weights + walk.log_resampled).flatten()
        return make_evidence(log_mean_weight(each), walk, log_weights, ends.potential, seed)
