# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own Pyro model in ppgen
#
# ppgen takes plain Pyro programs. This page wraps one, fits it, and estimates its likelihood, on a model
# whose likelihood is also known in closed form, so that every number can be checked.

# %%
import math
import os

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.datasets import load_iris
from torch import nn

import ppgen
from ppgen import metrics
from ppgen.ops.random import forked_rng

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ

# %% [markdown]
# ## Data
#
# The four measurements of 150 iris flowers, standardised; every third flower is kept for testing.

# %%
x = torch.tensor(load_iris().data, dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)
held_out = torch.arange(len(x)) % 3 == 0
train, test = x[~held_out], x[held_out]
print(tuple(train.shape), tuple(test.shape))

# %% [markdown]
# ## The pair
#
# Probabilistic principal components (Tipping and Bishop 1999): two latent factors, a linear map, and
# noise,
#
# $$z \sim N(0, I_2), \qquad x \mid z \sim N(W z + b, \sigma^2 I_4).$$
#
# The model is a Pyro program whose first argument is the data, or `None` to generate. Its parameters are
# those of a module, so two models never share any. An argument `num` tells it how many data to generate.


# %%
class Factors(PyroModule):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 4)
        self.log_sigma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x=None, num=None):
        with pyro.plate("data", num if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Normal(self.map(z), self.log_sigma.exp()).to_event(1), obs=x
            )


# %% [markdown]
# The guide approximates $p(z \mid x)$ by a Gaussian with independent coordinates, its mean linear in x.
# The true posterior is Gaussian too, but its coordinates are correlated, so this guide is not quite
# right. We will see by how much.


# %%
class Reader(PyroModule):
    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(4, 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x=None, num=None):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)
            )


with forked_rng(0):  # networks draw their first weights
    model, guide = Factors(), Reader()

# %% [markdown]
# ## Wrap and fit
#
# `ppgen.wrap` makes the pair a `GenerativeModel`. The same `fit` as for any family trains it, by default
# on the evidence lower bound.

# %%
factors = ppgen.wrap(model, guide, example=train)
result = ppgen.fit(
    factors,
    train,
    epochs=150 if small else 600,
    batch_size=None,
    learning_rate=0.02,
    progress=False,
)
print(result)
assert result.ok, result.warnings
assert result.history[-1]["loss"] < result.history[0]["loss"]

# %% [markdown]
# The programs themselves are what was trained: `model` and `guide` can still be used with Pyro alone.

# %%
svi_loss = pyro.infer.Trace_ELBO(num_particles=16)
with forked_rng(0):
    print(
        f"ELBO by Pyro: {-svi_loss.loss(model, guide, train) / len(train):.3f} nats a flower"
    )

# %% [markdown]
# ## The likelihood, and what kind of number it is
#
# For a pair with continuous latents the likelihood is an integral, and what comes back is a lower bound:
# an average of importance weights $p(x, z_i) / q(z_i \mid x)$ over P draws from the guide.

# %%
with forked_rng(0):
    estimate = factors.log_likelihood(test)
print(estimate.kind, tuple(estimate.value.shape))
print(estimate.mean())
assert estimate.kind == ppgen.Kind.LOWER_BOUND

# %% [markdown]
# Here the integral can be done: x is Gaussian with covariance $W W^T + \sigma^2 I$.

# %%
with torch.no_grad():
    w, b, sigma = model.map.weight, model.map.bias, model.log_sigma.exp()
    exact = dist.MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(4)).log_prob(test)
print(f"exact: {exact.mean():.4f} nats a flower")

# %% [markdown]
# One draw gives the ELBO. More draws close the gap that the guide's wrong shape leaves:

# %%
gaps = {}
for num_particles in (1, 4, 64):
    repeats = 2048 // num_particles
    with forked_rng(0):
        drawn = torch.stack(
            [
                factors.log_likelihood(test, num_particles=num_particles).value
                for _ in range(repeats)
            ]
        )
    means = (exact - drawn).mean(1)
    gaps[num_particles] = means.mean()
    error = means.std() / math.sqrt(repeats)
    print(f"P = {num_particles:2}   gap {gaps[num_particles]:.4f} ± {error:.4f} nats")

# %%
values = torch.stack(list(gaps.values()))
assert (values.diff() < 0).all()  # tighter with every step
assert values[0] > 0
assert abs(values[-1]) < 0.05

# %% [markdown]
# The gap at $P = 1$ is the mean divergence $\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))$ between two
# Gaussians, which is known as well. The posterior has covariance
# $\sigma^2 (W^T W + \sigma^2 I)^{-1}$.

# %%
with torch.no_grad():
    precision = (w.T @ w + sigma**2 * torch.eye(2)) / sigma**2
    posterior_mean = torch.linalg.solve(precision, w.T @ (test - b).T / sigma**2).T
    posterior = dist.MultivariateNormal(posterior_mean, precision_matrix=precision)
    q = dist.MultivariateNormal(
        guide.mean(test), torch.diag(guide.log_scale.exp() ** 2)
    )
    divergence = torch.distributions.kl_divergence(q, posterior).mean()
print(f"KL {divergence:.4f}, gap of the ELBO {gaps[1]:.4f}")
assert abs(divergence - gaps[1]) < 0.1 * divergence + 0.01

# %% [markdown]
# ## Sample, and measure
#
# The wrapped model samples, and the metrics take it like any family.

# %%
flowers = factors.sample(1000, seed=0)
print("correlation of petal length and width:")
print(
    f"  data {torch.corrcoef(train.T)[2, 3]:.3f}, model {torch.corrcoef(flowers.T)[2, 3]:.3f}"
)
assert flowers.shape == (1000, 4)
assert torch.corrcoef(flowers.T)[2, 3] > 0.8

# %%
nll = metrics.nll(factors, test)
print("negative log-likelihood in nats:", nll)
assert nll.kind == ppgen.Kind.UPPER_BOUND

# %% [markdown]
# ## Discrete latents are summed out
#
# Where every latent is discrete, no guide is needed: all states are enumerated, and the likelihood is
# exact. ppgen finds that out by tracing the model once.


# %%
class Clusters(PyroModule):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))
        self.centres = nn.Parameter(train[[0, 40, 80]].clone())
        self.log_scale = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x=None, num=None):
        with pyro.plate("data", num if x is None else len(x)):
            k = pyro.sample(
                "k",
                dist.Categorical(logits=self.logits),
                infer={"enumerate": "parallel"},
            )
            emission = dist.Normal(self.centres[k], self.log_scale[k].exp()).to_event(1)
            return pyro.sample("x", emission, obs=x)


clusters = ppgen.wrap(Clusters(), example=train)
result = ppgen.fit(
    clusters,
    train,
    epochs=50 if small else 300,
    batch_size=None,
    learning_rate=0.05,
    progress=False,
)
print(result)
print(metrics.nll(clusters, test))

# %%
by_state = [
    dist.Normal(centre, scale.exp()).log_prob(test).sum(-1)
    for centre, scale in zip(
        clusters.user_model.centres, clusters.user_model.log_scale, strict=True
    )
]
by_hand = (
    torch.stack(by_state, -1) + clusters.user_model.logits.log_softmax(-1)
).logsumexp(-1)
estimate = clusters.log_likelihood(test)
assert estimate.kind == ppgen.Kind.EXACT
assert torch.allclose(estimate.value, by_hand, atol=1e-4)
