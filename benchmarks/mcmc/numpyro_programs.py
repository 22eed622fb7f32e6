"""The benchmark's posteriors written for NumPyro, with the densities of the Pyro programs that ppgen runs.

The names and the data are posteriordb's; ``PROGRAMS[name](data)`` gives a NumPyro model without
arguments. ``logistic``, ``glmm`` and ``gaussian`` are synthetic, see :mod:`benchmarks.mcmc.problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Data = dict[str, Any]
Program = Callable[[], None]


def _flat(name: str, shape: tuple[int, ...] = (), support: Any = None) -> Any:
    import numpyro
    import numpyro.distributions as dist

    support = dist.constraints.real if support is None else support
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape).mask(False))


def _regression(design: np.ndarray, outcome: np.ndarray) -> Program:
    """Linear regression with flat priors on the coefficients and on sigma > 0."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    x, y = jnp.asarray(design, jnp.float32), jnp.asarray(outcome, jnp.float32)

    def model() -> None:
        beta = _flat("beta", (x.shape[1],))
        sigma = _flat("sigma", (), dist.constraints.positive)
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model


def eight_schools(data: Data) -> Program:
    """Eight schools, non-centred."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    y, s = jnp.asarray(data["y"], jnp.float32), jnp.asarray(data["sigma"], jnp.float32)

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", len(y)):
            theta = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * theta, s), obs=y)

    return model


def ark(data: Data) -> Program:
    """Autoregression of order K."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    order, series = data["K"], np.asarray(data["y"], np.float32)
    lags = jnp.asarray(np.stack([series[order - k - 1 : -k - 1] for k in range(order)], 1))
    y = jnp.asarray(series[order:])

    def model() -> None:
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)

    return model


def logearn_interaction_z(data: Data) -> Program:
    """Log earnings on standardised height, sex and their product."""
    height, male = np.asarray(data["height"], float), np.asarray(data["male"], float)
    z = (height - height.mean()) / height.std(ddof=1)
    design = np.stack([np.ones_like(z), z, male, z * male], 1)
    return _regression(design, np.log(np.asarray(data["earn"], float)))


def kidscore_interaction(data: Data) -> Program:
    """Children's scores on the mother's schooling, IQ and their product."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    high_school, iq = np.asarray(data["mom_hs"], float), np.asarray(data["mom_iq"], float)
    x = jnp.asarray(np.stack([np.ones_like(iq), high_school, iq, high_school * iq], 1), jnp.float32)
    y = jnp.asarray(data["kid_score"], jnp.float32)

    def model() -> None:
        beta = _flat("beta", (4,))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model


def logmesquite(data: Data) -> Program:
    """Log weight of mesquite bushes on log measurements."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    columns = [np.log(np.asarray(data[name], float)) for name in names]
    group = np.asarray(data["group"], float)
    design = np.stack([np.ones_like(group), *columns, group], 1)
    return _regression(design, np.log(np.asarray(data["weight"], float)))


def nes(data: Data) -> Program:
    """Party identification in 1980 on seven covariates."""
    age = np.asarray(data["age_discrete"])
    columns = [
        np.ones(len(age)),
        np.asarray(data["real_ideo"], float),
        np.asarray(data["race_adj"], float),
        *[(age == level).astype(float) for level in (2, 3, 4)],
        np.asarray(data["educ1"], float),
        np.asarray(data["gender"], float),
        np.asarray(data["income"], float),
    ]
    return _regression(np.stack(columns, 1), np.asarray(data["partyid7"], float))


def blr(data: Data) -> Program:
    """Linear regression with normal priors."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    x, y = jnp.asarray(data["X"], jnp.float32), jnp.asarray(data["y"], jnp.float32)

    def model() -> None:
        beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model


def garch(data: Data) -> Program:
    """GARCH(1, 1)."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    y, first = jnp.asarray(data["y"], jnp.float32), float(data["sigma1"])
    positive, unit = dist.constraints.positive, dist.constraints.unit_interval

    def model() -> None:
        mu = _flat("mu")
        alpha0 = _flat("alpha0", (), positive)
        alpha1 = _flat("alpha1", (), unit)
        fraction = _flat("fraction", (), unit)
        beta1 = numpyro.deterministic("beta1", fraction * (1 - alpha1))
        numpyro.factor("jacobian", jnp.log1p(-alpha1))

        def step(variance: Any, previous: Any) -> tuple[Any, Any]:
            variance = alpha0 + alpha1 * (previous - mu) ** 2 + beta1 * variance
            return variance, variance

        _, rest = jax.lax.scan(step, jnp.float32(first**2), y[:-1])
        scale = jnp.concatenate([jnp.full((1,), first), jnp.sqrt(rest)])
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    return model


def gp_regr(data: Data) -> Program:
    """Gaussian process regression, latent function integrated out."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    x, y = np.asarray(data["x"], np.float32), jnp.asarray(data["y"], jnp.float32)
    squares = jnp.asarray((x[:, None] - x[None]) ** 2)

    def model() -> None:
        rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        cov = alpha**2 * jnp.exp(-0.5 * squares / rho**2) + sigma * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), cov), obs=y)

    return model


def low_dim_gauss_mix(data: Data) -> Program:
    """Mixture of two ordered normals, assignment summed out."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    y = jnp.asarray(data["y"], jnp.float32)

    def model() -> None:
        base = dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)).mask(False)
        mu = numpyro.sample("mu", base)
        numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
        parts = jnp.stack([jnp.log(theta), jnp.log1p(-theta)]) + dist.Normal(mu, sigma).log_prob(y[:, None])
        numpyro.factor("y", jnp.logaddexp(parts[:, 0], parts[:, 1]).sum())

    return model


def hmm_example(data: Data) -> Program:
    """Hidden Markov model with two states, summed out by the forward recursion."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    y = jnp.asarray(data["y"], jnp.float32)

    def model() -> None:
        theta = [numpyro.sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)]
        positive_ordered = dist.constraints.positive_ordered_vector
        mu = numpyro.sample("mu", dist.ImproperUniform(positive_ordered, (), (2,)).mask(False))
        centres = jnp.array([3.0, 10.0])
        numpyro.factor("mu_prior", dist.Normal(centres, 1.0).log_prob(mu).sum())
        log_transition = jnp.log(jnp.stack(theta))
        emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

        def step(alpha: Any, e: Any) -> tuple[Any, None]:
            return jax.nn.logsumexp(alpha[:, None] + log_transition, axis=0) + e, None

        alpha, _ = jax.lax.scan(step, emission[0], emission[1:])
        numpyro.factor("y", jax.nn.logsumexp(alpha))

    return model


def logistic(data: Data) -> Program:
    """Logistic regression."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    x, y = jnp.asarray(data["x"], jnp.float32), jnp.asarray(data["y"], jnp.float32)

    def model() -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
        weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ weights), obs=y)

    return model


def glmm(data: Data) -> Program:
    """Poisson regression with a random effect a group, non-centred."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    group, x, y = jnp.asarray(data["group"]), jnp.asarray(data["x"], jnp.float32), jnp.asarray(data["y"])

    def model() -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("groups", int(data["num_groups"])):
            effects = numpyro.sample("effects", dist.Normal(0.0, 1.0))
        rate = jnp.exp(intercept + x @ slopes + tau * effects[group])
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    return model


def gaussian(data: Data) -> Program:
    """A Gaussian given by its precision matrix."""
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    precision = jnp.asarray(data["precision"], jnp.float32)

    def model() -> None:
        zero = jnp.zeros(len(precision))
        numpyro.sample("z", dist.MultivariateNormal(zero, precision_matrix=precision))

    return model


PROGRAMS: dict[str, Callable[[Data], Program]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "arK-arK": ark,
    "earnings-logearn_interaction_z": logearn_interaction_z,
    "kidiq-kidscore_interaction": kidscore_interaction,
    "mesquite-logmesquite": logmesquite,
    "nes1980-nes": nes,
    "sblrc-blr": blr,
    "garch-garch11": garch,
    "gp_pois_regr-gp_regr": gp_regr,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "hmm_example-hmm_example": hmm_example,
    "logistic": logistic,
    "glmm": glmm,
    "gaussian": gaussian,
}
