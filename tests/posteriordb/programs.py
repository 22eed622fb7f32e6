"""The posteriors of posteriordb that have reference draws here, by name."""

from __future__ import annotations

import torch
from pyro.infer.autoguide.initialization import init_to_value

from tests.posteriordb import regressions, series
from tests.posteriordb.declare import Posterior, Values

_BETA_SIGMA = ("beta", "sigma")


def _effects(values: Values) -> Values:
    mu, tau = values["mu"][..., None], values["tau"][..., None]
    return values | {"theta": mu + tau * values["theta_trans"]}


def _standardised(values: Values) -> Values:
    mu, tau = values["mu"][..., None], values["tau"][..., None]
    return values | {"theta_trans": (values["theta"] - mu) / tau}


# A cycle of about ten years from the populations of the first one.
_PREDATORS_START = {
    "theta": torch.tensor([0.5, 0.025, 0.8, 0.025]),
    "z_init": torch.tensor([30.0, 5.0]),
    "sigma": torch.tensor([0.3, 0.3]),
}

_ALL = (
    Posterior("arK-arK", series.ark, series.lagged, ("alpha", "beta", "sigma")),
    Posterior(
        "diamonds-diamonds",
        regressions.diamonds,
        regressions.centred_design,
        ("b", "Intercept", "sigma"),
        sampler={"full_mass": True},
        slow=True,
    ),
    Posterior(
        "earnings-log10earn_height",
        regressions.flat_regression,
        regressions.log10earn_height,
        _BETA_SIGMA,
        sampler={"full_mass": True},
    ),
    Posterior(
        "earnings-logearn_interaction_z",
        regressions.flat_regression,
        regressions.logearn_interaction_z,
        _BETA_SIGMA,
    ),
    Posterior(
        "eight_schools-eight_schools_centered",
        series.eight_schools_centred,
        series.schools,
        ("theta", "mu", "tau"),
        sampler={"target_accept_prob": 0.95},
        mcmc={"num_samples": 1000},
    ),
    Posterior(
        "eight_schools-eight_schools_noncentered",
        series.eight_schools_noncentred,
        series.schools,
        ("theta", "mu", "tau"),
        to_reference=_effects,
        from_reference=_standardised,
    ),
    Posterior(
        "garch-garch11", series.garch11, series.returns, ("mu", "alpha0", "alpha1", "beta1"), loops=True
    ),
    Posterior("gp_pois_regr-gp_regr", series.gp_regr, series.inputs, ("rho", "alpha", "sigma")),
    Posterior(
        "hmm_example-hmm_example",
        series.hmm_example,
        series.series,
        ("theta1", "theta2", "mu"),
        loops=True,
        slow=True,
    ),
    Posterior(
        "hudson_lynx_hare-lotka_volterra",
        series.lotka_volterra,
        series.pelts,
        ("theta", "z_init", "sigma"),
        # From elsewhere some chains stay at other periods of the cycle, 50 nats below.
        sampler={"init_strategy": init_to_value(values=_PREDATORS_START)},
        mcmc={"warmup_steps": 500},
        loops=True,
        slow=True,
    ),
    Posterior(
        "kidiq-kidscore_interaction",
        regressions.kidscore,
        regressions.kidscore_interaction,
        _BETA_SIGMA,
        sampler={"full_mass": True},
    ),
    Posterior(
        "kidiq-kidscore_momiq",
        regressions.kidscore,
        regressions.kidscore_momiq,
        _BETA_SIGMA,
        sampler={"full_mass": True},
    ),
    Posterior(
        "kilpisjarvi_mod-kilpisjarvi",
        regressions.kilpisjarvi,
        regressions.line_with_priors,
        ("alpha", "beta", "sigma"),
        sampler={"full_mass": True},
    ),
    Posterior(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        series.low_dim_gauss_mix,
        series.series,
        ("mu", "sigma", "theta"),
    ),
    Posterior("mesquite-logmesquite", regressions.flat_regression, regressions.logmesquite, _BETA_SIGMA),
    Posterior(
        "nes1980-nes", regressions.flat_regression, regressions.nes, _BETA_SIGMA, sampler={"full_mass": True}
    ),
    Posterior("sblrc-blr", regressions.blr, regressions.given_design, _BETA_SIGMA),
)

#: All of them, by name.
POSTERIORS: dict[str, Posterior] = {posterior.name: posterior for posterior in _ALL}
