r"""The evidence of a Pyro model from both sides, by annealed importance sampling.

.. math:: \log p(y) = \log \int p(\theta)\, p(y \mid \theta)\, d\theta

Particles start as exact draws of the prior (or of a guide), walk the geometric path to the posterior, and
gather weights whose mean is unbiased for :math:`p(y)` (:mod:`ppgen.inference.annealing.walk`); its log is
below the log evidence in expectation (Jensen). On data that were simulated from the model, the latents
that made them are an exact draw of their posterior; walking back from it bounds the log evidence from
above. Both together are bidirectional Monte Carlo, and the gap between them bounds the error of either.

.. code-block:: python

    evidence = AIS(model, num_particles=256).run(x, y)
    evidence.log_evidence            # ≥ -31.2041 ± 0.0123 (lower_bound)
    evidence.thermodynamic           # the same by another formula: a cross-check
    AIS(model).bidirectional(x, y)   # both sides, on data like these

References: Neal 2001; Grosse, Ghahramani & Adams 2015 (bidirectional Monte Carlo); Wu et al. 2017; Lartillot
& Philippe 2006 and Calderhead & Girolami 2009 (thermodynamic integration).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError
from ppgen.inference.annealing.ladders import Ladder
from ppgen.inference.annealing.path_ends import PathEnds, fresh_seed, simulate
from ppgen.inference.annealing.plan import Plan, Tempering
from ppgen.inference.annealing.walk import Annealed, uneven_weights
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.samplers import Sampler
from ppgen.ops.weights import effective_sample_size, log_mean_weight, systematic_resample

_LOW_ACCEPTANCE = 0.2
# Errors of the two formulas for the evidence that leave their difference unexplained.
_FAR_APART = 5.0


@dataclass(frozen=True)
class Evidence:
    """What particles found on their way from a start to a posterior.

    Attributes:
        log_evidence: log p(y), a lower bound in expectation, with its standard error (the jackknife's, over
            independent particles).
        log_weights: of the particles, shape (P,), float64. For annealed importance sampling their mean is
            unbiased for p(y); for sequential Monte Carlo they are those since the last resampling.
        ess: effective sample size of these weights.
        samples: latents by site, constrained, each ``(P, *shape)``; to be weighted by ``log_weights``.
        thermodynamic: log p(y) by thermodynamic integration of the same run; ``estimate``. Its error is
            that of the discrete sum alone.
        betas: the ladder, shape (T + 1,).
        ess_path: effective sample size at each rung, (T + 1,).
        accept_prob: mean acceptance probability at each rung, (T,).
        interrupted: whether Ctrl-C cut the ladder short; the figures hold and are less sure.
        warnings: what deserves a look, and what to do about it.
        seed: that gives the same run again.
    """

    log_evidence: Estimate
    log_weights: Tensor
    ess: Tensor
    samples: Mapping[str, Tensor]
    thermodynamic: Estimate
    betas: Tensor
    ess_path: Tensor
    accept_prob: Tensor
    interrupted: bool
    warnings: tuple[str, ...]
    seed: int

    @property
    def ok(self) -> bool:
        """Whether there is nothing to warn of."""
        return not self.warnings

    def resample(self, num: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of equal weight, each ``(num, *shape)``, by systematic resampling; P of them by default.

        With weights in few hands many draws are copies: look at ``ess``.
        """
        num = num or len(self.log_weights)
        generator = torch.Generator().manual_seed(seed)
        points = torch.rand(1, generator=generator, dtype=torch.float64).to(self.log_weights.device)
        rows = systematic_resample(self.log_weights[:, None], points, num)[:, 0]
        return {name: value[rows] for name, value in self.samples.items()}

    def __str__(self) -> str:
        return (
            f"log evidence {self.log_evidence}, ESS {float(self.ess):.1f} of {len(self.log_weights)}, "
            f"{len(self.betas) - 1} temperatures"
        )


@dataclass(frozen=True)
class Bounds:
    """Both sides of the log evidence of simulated data, one entry a simulation.

    Attributes:
        lower: by walks from the start, shape (M,); ``lower_bound``.
        upper: by walks from the latents that made the data, shape (M,); ``upper_bound``. The error holds
            the spread of the particles, which share that one draw.
        gap: mean over simulations of upper - lower, with the error of that mean (for one simulation, that
            of the particles): an upper bound in expectation on the error of either.
        seed: that gives the same run again.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    seed: int


class AIS:
    r"""Annealed importance sampling for any Pyro model with continuous latents.

    A pilot run finds the step sizes, the scales and the ladder; they are then fixed, so that the weights
    of the particles that count are unbiased.

    Args:
        model: a Pyro model. Discrete latents are summed out.
        guide: a Pyro program over the same latents with the same arguments, to start from instead of the
            prior. It must be a density that can be drawn from and be as wide as the posterior, as
            ``AutoNormal`` is; its parameters are taken as they are.
        num_particles: P.
        num_temperatures: steps T of the ladder, or ``"adaptive"``: as many as ``cess`` asks for.
        schedule: ``"adaptive"``: rungs where the pilot run put them; or ``"linear"``, ``"sigmoid"``,
            ``"salakhutdinov-murray"``, or a tensor of inverse temperatures from 0 to 1.
        cess: conditional effective sample size of a step, where T is adaptive.
        transition: a sampler without a model, ``HMC(num_steps=10)``. Its kernel counts, and of its arguments
            ``num_steps``, ``target_accept_prob``, ``full_mass`` and, where it is not adapted, the step size.
        num_transitions: transitions at each rung.
        seed: for the same figures again; without it torch's global generator gives one.
        dtype: of the particles; see :class:`~ppgen.inference.mcmc.potential.Potential`.
        device: of the particles.
        compile: whether the transitions are compiled.
        progress: show a bar of the rungs.

    Raises:
        ConfigError: arguments that make no sense.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        *,
        num_particles: int = 64,
        num_temperatures: int | Literal["adaptive"] = "adaptive",
        schedule: Literal["adaptive"] | Ladder | Tensor = "adaptive",
        cess: float = 0.999,
        transition: Sampler | None = None,
        num_transitions: int = 1,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | str = "auto",
        progress: bool = False,
    ) -> None:
        self.model, self.guide, self.seed = model, guide, seed
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
        """The evidence of the data that the model is given.

        Args:
            *args: arguments of the model.
            **kwargs: the same.

        Raises:
            ConfigError, DataError: what :class:`~ppgen.inference.mcmc.potential.Potential` refuses, among it
                a model without continuous latents.
            CapabilityError: a prior that cannot be drawn from.
        """
        seed = fresh_seed(self.seed)
        ends, tempering = self.prepare(args, kwargs, seed)
        walk = tempering.up()
        log_weights = walk.log_weights[:, 0]
        return make_evidence(log_mean_weight(log_weights), walk, log_weights, ends.potential, seed)

    def reverse(self, draws: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Estimate:
        """An upper bound in expectation on the log evidence, from exact draws of the posterior.

        Args:
            draws: latents by site, each ``(M, *shape)``: exact draws, such as the latents that made simulated
                data, or those of a conjugate posterior. Draws of MCMC make it an estimate.
            *args: arguments of the model.
            **kwargs: the same.
        """
        ends, tempering = self.prepare(args, kwargs, fresh_seed(self.seed))
        (value, error), _ = tempering.inverse(ends.unconstrain(draws))
        return Estimate(-value, Kind.UPPER_BOUND, error)

    def bidirectional(self, *args: Any, num_simulations: int = 1, **kwargs: Any) -> Bounds:
        """Both bounds on data that are simulated from the model with these arguments.

        Observed values among the arguments only give the shapes: each simulation draws latents from the
        prior and data given them. With several simulations the error of the gap is that between them.

        Raises:
            CapabilityError: a model with ``pyro.factor`` or unnormalised sites, from which no data can be
                simulated.
        """
        stream = torch.Generator().manual_seed(fresh := fresh_seed(self.seed))
        if num_simulations < 1:
            raise ConfigError(f"num_simulations: expected a positive integer, got {num_simulations}")
        lowers, uppers = [], []
        for _ in range(num_simulations):
            seed = int(torch.randint(2**62, (), generator=stream))
            latents, conditioned = simulate(self.model, args, kwargs, seed, self._device)
            ends, tempering = self.prepare(args, kwargs, seed, conditioned)
            walk = tempering.up()
            inverse, interrupted = tempering.inverse(
                ends.unconstrain({name: value[None] for name, value in latents.items()})
            )
            lowers.append(log_mean_weight(walk.log_weights[:, 0]))
            uppers.append((-inverse[0], inverse[1]))
            if walk.interrupted or interrupted:
                break
        lower, upper = (
            Estimate(torch.stack([v for v, _ in found]), kind, torch.stack([e for _, e in found]))
            for found, kind in ((lowers, Kind.LOWER_BOUND), (uppers, Kind.UPPER_BOUND))
        )
        each = Estimate(
            upper.value - lower.value, Kind.UPPER_BOUND, torch.hypot(upper.std_error, lower.std_error)
        )
        return Bounds(lower, upper, each.mean(), fresh)

    def prepare(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seed: int,
        model: Callable[..., Any] | None = None,
    ) -> tuple[PathEnds, Tempering]:
        """The ends of the path for these arguments, of ``model`` in place of its own, and its tuned walks."""
        ends = PathEnds(
            model or self.model, self.guide, args, kwargs, dtype=self._dtype, device=self._device, seed=seed
        )
        density, device = ends.potential.density(path=True), ends.potential.device
        return ends, Tempering(density, ends.draw, replace(self.plan, seed=seed), device=device)


def make_evidence(
    found: tuple[Tensor, Tensor], walk: Annealed, log_weights: Tensor, potential: Potential, seed: int
) -> Evidence:
    """An :class:`Evidence` with its warnings, of a log evidence and its error."""
    log_evidence = Estimate(found[0], Kind.LOWER_BOUND, found[1])
    ess, thermodynamic = effective_sample_size(log_weights), thermodynamic_integral(walk)
    uneven = uneven_weights("log_evidence", ess, len(log_weights))
    notes = [] if uneven is None else [f"{uneven}, with a guide"]
    apart = float((thermodynamic.value - log_evidence.value).abs())
    if apart > _FAR_APART * math.hypot(float(log_evidence.std_error), float(thermodynamic.std_error)):
        notes.append(
            f"thermodynamic integration differs by {apart:.3g} nats, far more than the errors: the moves do "
            "not keep up with the path; raise num_temperatures or num_transitions"
        )
    accepts = walk.accept_prob
    if len(accepts) and float(accepts.min()) < _LOW_ACCEPTANCE:
        beta = float(walk.betas[1:][accepts.argmin()])
        notes.append(
            f"acceptance falls to {float(accepts.min()):.2f} at beta = {beta:.3g}: give the "
            "transition a smaller step_size or a higher target_accept_prob"
        )
    if walk.interrupted:
        notes.append("interrupted: the last temperatures were left out; run it again for a sharper figure")
    return Evidence(
        log_evidence,
        log_weights,
        ess,
        potential.constrain(walk.state["z"]) | potential.deterministic(walk.state["z"]),
        thermodynamic,
        walk.betas,
        walk.ess.sum(1),
        walk.accept_prob,
        walk.interrupted,
        tuple(notes),
        seed,
    )


def thermodynamic_integral(walk: Annealed) -> Estimate:
    r"""Log Z_1 / Z_0 by thermodynamic integration of an ascending walk.

    .. math::
       \int_0^1 E_\beta[s]\, d\beta \approx \sum_t \frac{\Delta_t}{2} (m_t + m_{t-1})
       - \frac{\Delta_t^2}{12} (v_t - v_{t-1})

    with m and v the weighted mean and variance of the slope :math:`s = d \log f_\beta / d \beta` at each
    rung: the trapezoid rule with the correction of Friel, Hurn & Wyse 2014, for paths that are linear in
    :math:`\beta`, where v is the derivative of m. The error adds that of the means, taken as
    independent, to the size of the correction, which stands for the rule's own.
    """
    steps = walk.betas.diff().to(walk.slope_means)[:, None]
    m, v = walk.slope_means, walk.slope_variances
    plain = (steps / 2 * (m[1:] + m[:-1])).sum(0)
    correction = (steps.square() / 12 * (v[1:] - v[:-1])).sum(0)
    share = torch.zeros_like(m)
    share[1:] += steps / 2
    share[:-1] += steps / 2
    # The particles are the same all along: errors at the rungs add up rather than average out.
    error = (share * (v / walk.ess.clamp_min(1)).sqrt()).sum(0)
    value = plain - correction
    return Estimate(value.mean(), Kind.ESTIMATE, torch.hypot(error, correction).mean())
