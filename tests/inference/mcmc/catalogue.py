"""Small Pyro models of every kind that people write, with their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints


@dataclass(frozen=True)
class Entry:
    """A model and its data, in float64.

    Attributes:
        name: of the test.
        model, args, kwargs: as for ``pyro.infer.MCMC``.
        traceable: whether its density can be traced.
        pyro: whether Pyro's own potential is an oracle for it.
        log_density: log density of constrained values, where Pyro's is none.
        max_plate_nesting: as for ``pyro.infer.NUTS``.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    traceable: bool = True
    pyro: bool = True
    log_density: Callable[[dict[str, Tensor]], Tensor] | None = None
    max_plate_nesting: int | None = None


def _draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _one(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
X = _draws(20, 3, seed=1)
Y = X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) + 0.3 * _draws(20, seed=2)
BINARY = (Y > 0).double()
COUNTS = Y.abs().mul(3).round()
GROUPS = torch.arange(20) % 4
SERIES = _draws(12, seed=3).cumsum(0)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfCauchy(5 * torch.ones(())))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(0, 1))
        theta = pyro.deterministic("theta", mu + tau * effect)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfNormal(5))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def linear_regression(x: Tensor, y: Tensor | None = None) -> None:
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0, 10))
    sigma = pyro.sample("sigma", dist.Exponential(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight + bias, sigma), obs=y)


def logistic_regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def poisson_groups(groups: Tensor, y: Tensor) -> None:
    base = pyro.sample("base", dist.Normal(0, 1))
    scale = pyro.sample("scale", dist.LogNormal(-1, 0.5))
    with pyro.plate("groups", int(groups.max()) + 1):  # a number that depends on data
        shift = pyro.sample("shift", dist.Normal(base, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(shift[groups].exp()), obs=y)


def nested_plates(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(2, 1))
    with pyro.plate("columns", y.shape[1], dim=-1):
        column = pyro.sample("column", dist.StudentT(4, 0, scale))
        with pyro.plate("rows", y.shape[0], dim=-2):
            cell = pyro.sample("cell", dist.Laplace(column, 1))
            pyro.sample("y", dist.Normal(cell, 0.5), obs=y)


def simplex(counts: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(4) * 2))
    pyro.sample("counts", dist.Multinomial(10, probs=weights), obs=counts)


def batched_simplex(y: Tensor) -> None:
    with pyro.plate("rows", 3):
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("y", dist.Categorical(weights), obs=y)


def correlations(y: Tensor) -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
    tril = scale.diag_embed() @ factor
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=y)


def covariance(y: Tensor) -> None:
    matrix = pyro.sample("matrix", dist.Wishart(_one(5.0), torch.eye(3, dtype=torch.float64)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), precision_matrix=matrix), obs=y)


def _covariance_density(values: dict[str, Tensor]) -> Tensor:
    matrix = values["matrix"]
    prior = torch.distributions.Wishart(_one(5.0), torch.eye(3, dtype=torch.float64)).log_prob(matrix)
    y = X
    like = 0.5 * len(y) * matrix.logdet() - 0.5 * ((y @ matrix) * y).sum()
    return prior + like - 0.5 * y.numel() * torch.log(2 * _one(torch.pi))


def ordered(y: Tensor) -> None:
    base = dist.Normal(torch.zeros(3), 2.0).to_event(1)
    ordered_prior = dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])
    cuts = pyro.sample("cuts", ordered_prior)
    slope = pyro.sample("slope", dist.Normal(0, 1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.OrderedLogistic(slope * X[:, 0], cuts), obs=y)


def interval(y: Tensor) -> None:
    low = pyro.sample("low", dist.Uniform(-2, 3))
    share = pyro.sample("share", dist.Beta(2, 3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(low, share + 0.1), obs=y)


def dependent_support(y: Tensor) -> None:
    low = pyro.sample("low", dist.Normal(0, 1))
    high = pyro.sample("high", dist.Uniform(low, low + 3))
    pyro.sample("y", dist.Normal(high, 1).expand([len(y)]).to_event(1), obs=y)


def _dependent_density(values: dict[str, Tensor]) -> Tensor:
    low, high = values["low"], values["high"]
    prior = dist.Normal(_one(0.0), 1.0).log_prob(low) - torch.log(_one(3.0))
    return prior + dist.Normal(high, 1.0).log_prob(Y).sum()


def improper(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def _improper_density(values: dict[str, Tensor]) -> Tensor:
    return dist.Normal(values["mean"], values["scale"]).log_prob(Y).sum()


def factors(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
    pyro.factor("ring", -((z.norm() - 2) ** 2))
    with pyro.plate("data", len(y)):
        pyro.factor("pull", -0.1 * (y - z[0]).abs())


def missing(y: Tensor, observed: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0, 3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1), obs=y, obs_mask=observed)


MASK = torch.arange(20) % 3 > 0


def _missing_density(values: dict[str, Tensor]) -> Tensor:
    mean = values["mean"]
    whole = torch.cat([values["y_unobserved"], Y[MASK]])
    return dist.Normal(_one(0.0), 3.0).log_prob(mean) + dist.Normal(mean, 1.0).log_prob(whole).sum()


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0, 3))
        scale = pyro.sample("scale", dist.LogNormal(0, 1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mean[k], scale[k]), obs=y)


def latent_given_discrete(y: Tensor) -> None:
    centre = torch.tensor([-1.0, 2.0])
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(centre[k.long()], 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def _latent_given_discrete_density(values: dict[str, Tensor]) -> Tensor:
    z = values["z"]
    first = torch.log(_one(0.7)) + dist.Normal(_one(-1.0), 1.0).log_prob(z)
    second = torch.log(_one(0.3)) + dist.Normal(_one(2.0), 1.0).log_prob(z)
    return torch.logaddexp(first, second).sum() + dist.Normal(z, 0.5).log_prob(Y[:6]).sum()


def hidden_markov(y: Tensor) -> None:
    with pyro.plate("states", 2):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2) * 3))
        mean = pyro.sample("mean", dist.Normal(0, 2))
    state: Any = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]))
        pyro.sample(f"y_{t}", dist.Normal(mean[state], 1), obs=y[t])


def hidden_markov_plates(y: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("sequences", y.shape[0], dim=-1):
        state: Any = 0
        for t in pyro.markov(range(y.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]))
            pyro.sample(f"y_{t}", dist.Normal(mean[state], 1), obs=y[:, t])


def sequential_plate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0, 1))
    for i in pyro.plate("steps", 5):
        z = pyro.sample(f"z_{i}", dist.Normal(mean, 1))
        pyro.sample(f"y_{i}", dist.Normal(z, 1), obs=y[int(i)])


def random_walk(y: Tensor) -> None:
    drift = pyro.sample("drift", dist.Normal(0, 1))
    scale = pyro.sample("scale", dist.HalfNormal(1))
    path = torch.zeros(len(y))
    step = pyro.sample("step", dist.Normal(torch.zeros(len(y)), 1).to_event(1))
    path[0] = step[0]
    for t in range(1, len(y)):  # latents written into a fresh tensor
        path[t] = path[t - 1] + drift + scale * step[t]
    pyro.sample("y", dist.Normal(path, 0.5).to_event(1), obs=y)


def listed(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0, 1))
    b = pyro.sample("b", dist.Normal(0, 1))
    row = torch.tensor([a, 0.5, b])  # Pyro by itself would lose the gradient here
    pyro.sample("y", dist.Normal(X @ row, 1).to_event(1), obs=y)


def _listed_density(values: dict[str, Tensor]) -> Tensor:
    a, b = values["a"], values["b"]
    prior = dist.Normal(_one(0.0), 1.0).log_prob(a) + dist.Normal(_one(0.0), 1.0).log_prob(b)
    return prior + dist.Normal(X @ torch.stack([a, _one(0.5), b]), 1.0).log_prob(Y).sum()


def gaussian_process(y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0, 1))
    noise = pyro.sample("noise", dist.LogNormal(-1, 1))
    x = torch.linspace(0, 1, len(y))
    kernel = torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2)) + (noise + 0.01) * torch.eye(len(y))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), kernel), obs=y)


def ode(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.LogNormal(-1, 0.5).expand([2]).to_event(1))
    state = torch.stack([torch.tensor(1.0), torch.tensor(0.5)])
    states = []
    for _ in range(len(y)):
        change = torch.stack([rate[0] * state[0] * (1 - state[1]), rate[1] * state[1] * (state[0] - 1)])
        state = state + 0.1 * change
        states.append(state)
    pyro.sample("y", dist.Normal(torch.stack(states)[:, 0], 1).to_event(1), obs=y)


def with_params(y: Tensor) -> None:
    scale = pyro.param("scale", lambda: torch.tensor(2.0), constraint=constraints.positive)
    offset = pyro.param("offset", torch.tensor(0.3))
    z = pyro.sample("z", dist.Normal(offset, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1), obs=y)


LINEAR: Any = PyroModule[torch.nn.Linear]


class Network(PyroModule):
    """A small network with priors over some of its weights."""

    sigma: Any

    def __init__(self) -> None:
        super().__init__()
        self.hidden = LINEAR(3, 2)
        self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        self.hidden.bias = torch.nn.Parameter(torch.tensor([0.1, -0.2]))
        self.out = LINEAR(2, 1)
        self.out.weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0]]))
        self.out.bias = torch.nn.Parameter(torch.tensor([0.0]))
        self.sigma = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.out(self.hidden(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.sigma), obs=y)


def branching(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    scale = 1.0 if z > 0 else 2.0
    pyro.sample("y", dist.Normal(z, scale).expand([len(y)]).to_event(1), obs=y)


def to_number(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    bump = max(z.item(), 0.0)
    pyro.sample("y", dist.Normal(z, 1 + 0 * bump).expand([len(y)]).to_event(1), obs=y)


def circular(y: Tensor) -> None:
    angle = pyro.sample("angle", dist.VonMises(0.0, 2.0))
    pyro.sample("y", dist.VonMises(angle, 1.0).expand([len(y)]).to_event(1), obs=y)


def softly(y: Tensor) -> None:
    shape = pyro.sample("shape", dist.InverseGamma(3.0, 1.0))
    mixed = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.4, 0.6])), dist.Normal(torch.tensor([-1.0, 1.0]), shape)
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", mixed, obs=y)


def nested_arguments(data: dict[str, Any], *, power: int, label: str) -> None:
    z = pyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    mean = sum(part**power @ z for part in data["parts"])
    pyro.sample(label, dist.Normal(mean, data["scale"]).to_event(1), obs=data["y"])


def matrix_normal(y: Tensor) -> None:
    loading = pyro.sample("loading", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    pyro.sample(
        "y",
        dist.LowRankMultivariateNormal(torch.zeros(3), loading, torch.ones(3)).expand([20]).to_event(1),
        obs=y,
    )


NON_CENTRED = poutine.reparam(eight_schools_centred, {"theta": LocScaleReparam(0.0)})


CATALOGUE = (
    Entry("eight-schools", eight_schools, (EFFECTS, ERRORS)),
    Entry("eight-schools-centred", eight_schools_centred, (EFFECTS, ERRORS)),
    Entry("eight-schools-reparam", NON_CENTRED, (EFFECTS, ERRORS)),
    Entry("linear-regression", linear_regression, (X,), {"y": Y}),
    Entry("conditioned", poutine.condition(linear_regression, {"y": Y}), (X,)),
    Entry(
        "masked-and-scaled",
        poutine.scale(poutine.mask(linear_regression, mask=True), 0.5),
        (X, Y),
    ),
    Entry("intervened", poutine.do(linear_regression, {"bias": _one(0.5)}), (X, Y)),
    Entry("logistic-regression", logistic_regression, (X, BINARY)),
    Entry("poisson-groups", poisson_groups, (GROUPS, COUNTS)),
    Entry("nested-plates", nested_plates, (_draws(3, 4, seed=4),)),
    Entry("simplex", simplex, (torch.tensor([3.0, 1.0, 4.0, 2.0]),)),
    Entry("batched-simplex", batched_simplex, (torch.tensor([0, 2, 1]),)),
    Entry("correlations", correlations, (X,)),
    Entry("covariance", covariance, (X,), pyro=False, log_density=_covariance_density),
    Entry("ordered", ordered, (GROUPS,)),
    Entry("interval", interval, (Y,)),
    Entry("dependent-support", dependent_support, (Y,), pyro=False, log_density=_dependent_density),
    Entry("improper", improper, (Y,), pyro=False, log_density=_improper_density),
    Entry("factors", factors, (Y,)),
    Entry("missing", missing, (Y, MASK), pyro=False, log_density=_missing_density),
    Entry("mixture", mixture, (Y,)),
    Entry(
        "latent-given-discrete",
        latent_given_discrete,
        (Y[:6],),
        pyro=False,
        log_density=_latent_given_discrete_density,
    ),
    Entry("hidden-markov", hidden_markov, (SERIES[:6],), max_plate_nesting=1),
    Entry("hidden-markov-plates", hidden_markov_plates, (_draws(2, 5, seed=5),)),
    Entry("sequential-plate", sequential_plate, (Y,)),
    Entry("random-walk", random_walk, (SERIES,)),
    Entry("listed", listed, (Y,), pyro=False, log_density=_listed_density),
    Entry("gaussian-process", gaussian_process, (SERIES,)),
    Entry("ode", ode, (SERIES,)),
    Entry("params", with_params, (Y,)),
    Entry("module", Network(), (X, Y)),
    Entry("circular", circular, (Y,)),
    Entry("marginalised-mixture", softly, (Y,)),
    Entry(
        "nested-arguments",
        nested_arguments,
        ({"parts": [X, 0.1 * X], "y": Y, "scale": 0.7},),
        {"power": 2, "label": "y"},
    ),
    Entry("low-rank", matrix_normal, (X,)),
    Entry("branching", branching, (Y,), traceable=False),
    Entry("item", to_number, (Y,), traceable=False),
)
