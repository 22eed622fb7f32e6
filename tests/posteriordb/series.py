"""Time series, mixtures and other structured posteriors of posteriordb as Pyro models."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from tests.posteriordb.declare import Arguments, Data, tensor


def ark(lags: Tensor, y: Tensor) -> None:
    """Autoregression of order K on ``lags`` (T - K, K), the latest first."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def lagged(data: Data, dtype: torch.dtype) -> Arguments:
    """The K values before each of the last T - K, the latest first; and these."""
    y, order = tensor(data, "y", dtype), int(data["K"])
    return y.unfold(0, order, 1)[:-1].flip(-1), y[order:]


def garch11(y: Tensor, first_sigma: Tensor) -> None:
    """GARCH(1, 1): flat on alpha0 > 0 and on the triangle alpha1, beta1 > 0, alpha1 + beta1 < 1."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    below = constraints.interval(0.0, 1.0 - alpha1)
    beta1 = pyro.sample("beta1", dist.ImproperUniform(below, (), ()))

    shock = alpha0 + alpha1 * (y[:-1] - mu) ** 2
    variances = [first_sigma**2]
    for now in shock.unbind():
        variances.append(now + beta1 * variances[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def returns(data: Data, dtype: torch.dtype) -> Arguments:
    """The series, and its standard deviation at the first time."""
    return tensor(data, "y", dtype), tensor(data, "sigma1", dtype)


def gp_regr(x: Tensor, y: Tensor) -> None:
    """Gaussian process with a squared exponential kernel; ``sigma`` is the *variance* of the noise."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * torch.exp(-0.5 * distance**2) + sigma * torch.eye(len(x), dtype=x.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def inputs(data: Data, dtype: torch.dtype) -> Arguments:
    """Inputs and outputs."""
    return tensor(data, "x", dtype), tensor(data, "y", dtype)


def low_dim_gauss_mix(y: Tensor) -> None:
    """Two Gaussians with ordered means; ``theta`` is the weight of the lower."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1.0 - theta])
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


def hmm_example(y: Tensor) -> None:
    """Hidden Markov chain of two states, unit Gaussian emissions, positive ordered means."""
    theta = torch.stack([pyro.sample(f"theta{k}", dist.Dirichlet(y.new_ones(2))) for k in (1, 2)])
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(y.new_tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    state_probs = y.new_ones(2) / 2
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"z_{t}", dist.Categorical(state_probs), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(mu[state], 1.0), obs=y[t])
        state_probs = theta[state]


def series(data: Data, dtype: torch.dtype) -> Arguments:
    """The observations alone."""
    return (tensor(data, "y", dtype),)


#: Runge-Kutta steps a year. On the reference draws their error in the log density has an sd of 0.010 nats
#: (0.20 with one step, 0.0007 with four), which moves no posterior mean by more than 0.17 of the
#: reference's Monte-Carlo errors: the fewest steps that do.
STEPS_A_YEAR = 2


def lotka_volterra(populations: Tensor) -> None:
    """Hares and lynxes, (years + 1, 2) from the year 0, as a noisy predator-prey cycle.

    The equations are solved by the classical Runge-Kutta method with a fixed step.
    """
    # A normal distribution cut off at zero.
    theta = pyro.sample(
        "theta", dist.ImproperUniform(constraints.independent(constraints.positive, 1), (), (4,))
    )
    prior = dist.Normal(theta.new_tensor([1.0, 0.05, 1.0, 0.05]), theta.new_tensor([0.5, 0.05, 0.5, 0.05]))
    pyro.factor("theta_prior", prior.log_prob(theta).sum(-1))
    start = pyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    growth, contact = theta[::2] * theta.new_tensor([1.0, -1.0]), theta[1::2] * theta.new_tensor([-1.0, 1.0])
    z = predator_prey(start, growth, contact, years=len(populations) - 1)
    with pyro.plate("species", 2), pyro.plate("year", len(populations)):
        pyro.sample("y", dist.LogNormal(z.log(), sigma), obs=populations)


def predator_prey(
    start: Tensor, growth: Tensor, contact: Tensor, *, years: int, steps: int = STEPS_A_YEAR
) -> Tensor:
    """Solution of z' = z (growth + contact * z.flip), (years + 1, 2), from ``start`` (2,)."""
    h = 1.0 / steps

    def slope(z: Tensor) -> Tensor:
        return z * (growth + contact * z.flip(-1))

    path = [start]
    for _ in range(years):
        z = path[-1]
        for _ in range(steps):
            a = slope(z)
            b = slope(z + (h / 2) * a)
            c = slope(z + (h / 2) * b)
            d = slope(z + h * c)
            z = z + (h / 6) * (a + 2 * (b + c) + d)
        path.append(z)
    return torch.stack(path)


def pelts(data: Data, dtype: torch.dtype) -> Arguments:
    """Populations of both species from the year 0."""
    return (torch.cat([tensor(data, "y_init", dtype)[None], tensor(data, "y", dtype)]),)


def eight_schools_centred(y: Tensor, sigma: Tensor) -> None:
    """Effects theta ~ Normal(mu, tau) of eight schools."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(y: Tensor, sigma: Tensor) -> None:
    """The same through standardised effects: theta = mu + tau theta_trans."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools(data: Data, dtype: torch.dtype) -> Arguments:
    """Effects and their standard errors."""
    return tensor(data, "y", dtype), tensor(data, "sigma", dtype)
