r"""Linear regressions of posteriordb as Pyro models, with the densities of the Stan programs.

A parameter that a Stan program gives no prior has a flat one on its support:
``dist.ImproperUniform``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from tests.posteriordb.declare import Arguments, Data, tensor


def flat_regression(design: Tensor, y: Tensor) -> None:
    """Regression y ~ Normal(X beta, sigma), flat in beta and in sigma > 0."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (design.shape[1],)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def kidscore(design: Tensor, y: Tensor) -> None:
    """Regression y ~ Normal(X beta, sigma), flat in beta, sigma ~ HalfCauchy(2.5)."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (design.shape[1],)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def blr(design: Tensor, y: Tensor) -> None:
    """Conjugate-like regression: beta ~ Normal(0, 10), sigma ~ HalfNormal(10)."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([design.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def diamonds(centred: Tensor, y: Tensor) -> None:
    """As brms writes it: centred predictors, Student priors on the intercept and on sigma > 0."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([centred.shape[1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + centred @ b, sigma), obs=y)


def kilpisjarvi(x: Tensor, y: Tensor, priors: Tensor) -> None:
    """A line through yearly temperatures; ``priors`` (2, 2): mean and sd of alpha and of beta."""
    alpha = pyro.sample("alpha", dist.Normal(priors[0, 0], priors[0, 1]))
    beta = pyro.sample("beta", dist.Normal(priors[1, 0], priors[1, 1]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def log10earn_height(data: Data, dtype: torch.dtype) -> Arguments:
    """log10 of earnings on height."""
    height, earn = tensor(data, "height", dtype), tensor(data, "earn", dtype)
    return torch.stack([torch.ones_like(height), height], 1), earn.log10()


def logearn_interaction_z(data: Data, dtype: torch.dtype) -> Arguments:
    """Log of earnings on standardised height, sex and their product."""
    height, male, earn = (tensor(data, name, dtype) for name in ("height", "male", "earn"))
    z = (height - height.mean()) / height.std()
    return torch.stack([torch.ones_like(z), z, male, z * male], 1), earn.log()


def kidscore_interaction(data: Data, dtype: torch.dtype) -> Arguments:
    """Test score of a child on the mother's schooling, IQ and their product."""
    hs, iq, score = (tensor(data, name, dtype) for name in ("mom_hs", "mom_iq", "kid_score"))
    return torch.stack([torch.ones_like(iq), hs, iq, hs * iq], 1), score


def kidscore_momiq(data: Data, dtype: torch.dtype) -> Arguments:
    """Test score of a child on the mother's IQ."""
    iq, score = tensor(data, "mom_iq", dtype), tensor(data, "kid_score", dtype)
    return torch.stack([torch.ones_like(iq), iq], 1), score


def logmesquite(data: Data, dtype: torch.dtype) -> Arguments:
    """Log weight of mesquite bushes on the logs of their sizes, and their group."""
    sizes = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = [tensor(data, name, dtype).log() for name in sizes]
    group = tensor(data, "group", dtype)
    return torch.stack([torch.ones_like(group), *logs, group], 1), tensor(data, "weight", dtype).log()


def nes(data: Data, dtype: torch.dtype) -> Arguments:
    """Party identification on ideology, race, age as a factor, education, gender and income."""
    age = tensor(data, "age_discrete", dtype)
    columns = [
        torch.ones_like(age),
        *(tensor(data, name, dtype) for name in ("real_ideo", "race_adj")),
        *((age == level).to(dtype) for level in (2, 3, 4)),
        *(tensor(data, name, dtype) for name in ("educ1", "gender", "income")),
    ]
    return torch.stack(columns, 1), tensor(data, "partyid7", dtype)


def given_design(data: Data, dtype: torch.dtype) -> Arguments:
    """The design matrix as it comes."""
    return tensor(data, "X", dtype), tensor(data, "y", dtype)


def centred_design(data: Data, dtype: torch.dtype) -> Arguments:
    """The design matrix without its column of ones, each column centred."""
    x = tensor(data, "X", dtype)[:, 1:]
    return x - x.mean(0), tensor(data, "Y", dtype)


def line_with_priors(data: Data, dtype: torch.dtype) -> Arguments:
    """Years, temperatures and the table of priors."""
    priors = [[data["pmualpha"], data["psalpha"]], [data["pmubeta"], data["psbeta"]]]
    return tensor(data, "x", dtype), tensor(data, "y", dtype), torch.tensor(priors, dtype=dtype)
