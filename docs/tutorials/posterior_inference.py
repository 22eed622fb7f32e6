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
# # Posterior inference on your own Pyro model
#
# From a Pyro script to a posterior that was looked at, doubted, repaired and compared with its rivals: the
# eight schools of Rubin (1981), with 64 chains where one would have run one. The posterior of this
# model is also known by quadrature, so every number on this page is held against the truth.

# %%
import os
import tempfile
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

from ppgen.inference import MCMC, NUTS
from ppgen.inference.arviz_adapter import compare, loo
from ppgen.plots.canvas import LIGHT, plain_axes

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ
num_chains, num_samples = (32, 400) if small else (64, 500)

# %% [markdown]
# ## The script
#
# In eight schools a coaching programme was tried; `y` is how much it helped, `sigma` the standard error of
# that. The model says that schools differ, by an amount `tau` that the data must tell:
#
# $$\mu \sim N(0, 5^2), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad
# \theta_j \sim N(\mu, \tau^2), \quad y_j \sim N(\theta_j, \sigma_j^2).$$

# %%
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %% [markdown]
# It is run as with Pyro. The one line that changes is the import, from `pyro.infer` to `ppgen.inference`.
# Chains are cheap, for they all run in one batch: take many, and fewer draws of each. Warnings would go to
# the terminal; here they are collected, to be shown.


# %%
def run(model, *data, seed=0, **options):
    mcmc = MCMC(
        NUTS(model, **options),
        num_samples=num_samples,
        warmup_steps=num_samples,
        num_chains=num_chains,
        seed=seed,
        disable_progbar=True,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mcmc.run(sigma, y=y)
    for warning in said:
        print("while running:", warning.message)
    return mcmc


first = run(centred)
print("draws of mu:", tuple(first.get_samples()["mu"].shape))
print("grouped:", tuple(first.get_samples(group_by_chain=True)["theta"].shape))
assert first.get_samples()["theta"].shape == (num_chains * num_samples, 8)

# %% [markdown]
# ## Is it any good?
#
# `.ok` says whether anything deserves a look. Here it is `False`, and the warnings say why, and what to do.

# %%
print(first.ok)
for warning in first.posterior.warnings:
    print("-", warning)
assert not first.ok
assert any("diverged" in warning for warning in first.posterior.warnings)

# %% [markdown]
# A transition *diverges* where the simulation of the dynamics breaks down: the density is too sharply
# curved there for the step size. Where are they? Small `tau` squeezes all `theta` together: a
# funnel, whose neck the chains cannot enter.


# %%
def panels(num, width=8.0, height=3.2, **options):
    figure, axes = plt.subplots(
        1, num, figsize=(width, height), layout="constrained", **options
    )
    for each in axes:
        plain_axes(each, LIGHT)
    return axes


def funnel(axes, mcmc, theta, title):
    tau = mcmc.get_samples()["tau"]
    diverged = mcmc.posterior.statistics["diverging"].flatten()
    shown = torch.arange(len(tau)) % (len(tau) // 3000) == 0
    for rows, colour, size, label in (
        (shown & ~diverged, LIGHT.first, 2, "draws"),
        (diverged, LIGHT.second, 7, "divergences"),
    ):
        axes.plot(
            theta[rows],
            tau[rows].log(),
            "o",
            color=colour,
            markersize=size**0.5 * 1.4,
            markeredgewidth=0,
            alpha=0.45,
            label=label,
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("theta of the first school", fontsize=9.5)


left, right = panels(2)
funnel(left, first, first.get_samples()["theta"][:, 0], "centred")
left.set_ylabel("log tau", fontsize=9.5)
left.legend(fontsize=8.5, frameon=False, loc="upper left", markerscale=2)

log_tau = first.get_samples(group_by_chain=True)["tau"].log()
for chain, colour in enumerate((LIGHT.first, LIGHT.second, LIGHT.ink)):
    right.plot(
        log_tau[chain], color=colour, linewidth=0.8, alpha=0.9, label=f"chain {chain}"
    )
right.set_title("three chains", fontsize=10)
right.set_xlabel("draw", fontsize=9.5)
right.set_ylim(top=5.2)
right.legend(fontsize=8.5, frameon=False, loc="upper left", ncols=3)

# %%
diverging = first.posterior.statistics["diverging"]
z = (log_tau[diverging].mean() - log_tau.mean()) / log_tau.std()
print(f"log tau at divergences: {z:.1f} standard deviations from its mean")
assert z < -0.5

# %% [markdown]
# ## The cure
#
# In the coordinates $\epsilon_j = (\theta_j - \mu) / \tau$ there is no funnel. Pyro's reparameterisation
# changes the coordinates and leaves the model's text alone:

# %%
reparameterised = poutine.reparam(centred, {"theta": LocScaleReparam(centered=0.0)})
second = run(reparameterised, target_accept_prob=0.95)
print(second.ok, sorted(second.get_samples()))

# %% [markdown]
# The same by hand, with `theta` as a deterministic site. Chains also take smaller steps now
# (`target_accept_prob=0.95`), for a few divergences are left at the default of 0.8.


# %%
def by_hand(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        epsilon = pyro.sample("epsilon", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * epsilon)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


mcmc = run(by_hand, target_accept_prob=0.95)
table = mcmc.summary()
posterior = mcmc.posterior
assert second.ok, second.posterior.warnings
assert posterior.ok, posterior.warnings
assert table.columns["r_hat"].max() < 1.01
before = first.posterior.summary().columns["ess_bulk"].min()
after = table.columns["ess_bulk"].min()
assert after > 10 * before

# %% [markdown]
# The last line says that the draws of the repaired model are worth at least ten times as many independent
# ones as those of the first. The same can be seen in the ranks. Rank all draws of `tau`; in each chain
# ranks must then be spread evenly. One row of the picture is one chain: even grey is good.


# %%
def ranks(mcmc, num_bins=20):
    tau = mcmc.get_samples(group_by_chain=True)["tau"]
    rank = tau.flatten().argsort().argsort().view_as(tau)
    cell = rank * num_bins // tau.numel()
    return torch.stack([torch.bincount(row, minlength=num_bins) for row in cell])


axes = panels(2, height=3.0, sharey=True)
titled = ((first, "centred"), (mcmc, "non-centred"))
for each, (run_of, title) in zip(axes, titled, strict=True):
    expected = num_samples / 20
    each.imshow(
        ranks(run_of) / expected,
        aspect="auto",
        cmap="Greys",
        vmin=0,
        vmax=3,
        origin="lower",
    )
    each.set_title(title, fontsize=10)
    each.set_xlabel("bin of the rank of tau, from small to large", fontsize=9.5)
    each.set_xticks((0, 4, 9, 14, 19), (1, 5, 10, 15, 20))
axes[0].set_ylabel("chain", fontsize=9.5)

# %% [markdown]
# ## Held against the truth
#
# Given `tau`, everything is Gaussian, so one sum over a grid of `tau` gives the exact posterior. A mean of
# draws has a Monte-Carlo standard error, `mcse_mean` in the table, and should lie within a few of it.

# %%
grid = torch.linspace(-8, 7, 4001, dtype=torch.float64)  # log tau
tau = grid.exp()
prior = dist.HalfCauchy(torch.tensor(5.0, dtype=torch.float64)).log_prob(tau) + grid


def log_joint(kept):
    """Log p(y of the kept schools, log tau), the means summed out, for each tau."""
    shared = 25.0 * torch.ones(len(kept), len(kept), dtype=torch.float64)
    own = torch.diag_embed(sigma[kept].double() ** 2 + tau[:, None] ** 2)
    zeros = torch.zeros(len(kept), dtype=torch.float64)
    return prior + dist.MultivariateNormal(zeros, shared + own).log_prob(
        y[kept].double()
    )


all_schools = torch.arange(8)
weights = log_joint(all_schools).softmax(0)
precision = 1 / (sigma.double() ** 2 + tau[:, None] ** 2)
mu_given_tau = (precision * y).sum(1) / (1 / 25 + precision.sum(1))
exact = {"mu": (weights * mu_given_tau).sum(), "tau": (weights * tau).sum()}
for name, truth in exact.items():
    row = table.rows.index(name)
    mean, error = (table.columns[key][row] for key in ("mean", "mcse_mean"))
    print(f"{name:3}  {mean:.3f} ± {error:.3f}   exact {truth:.3f}")
    assert abs(mean - truth) < 5 * error

# %% [markdown]
# The centred chains, in contrast, never saw the part of the posterior with small `tau`. They cannot say so
# themselves, except by their divergences.

# %%
left, right = panels(2, height=2.8, sharex=True, sharey=True)
density = weights / (grid[1] - grid[0])
for each, (run_of, title) in zip((left, right), titled, strict=True):
    draws = run_of.get_samples()["tau"].log()
    each.hist(draws, bins=60, range=(-5, 4), density=True, color=LIGHT.first, alpha=0.5)
    each.plot(grid, density, color=LIGHT.second, linewidth=1.6, label="exact")
    each.set_title(title, fontsize=10)
    each.set_xlabel("log tau", fontsize=9.5)
    each.set_xlim(-5, 4)
left.set_ylabel("density", fontsize=9.5)
left.legend(fontsize=8.5, frameon=False, loc="upper left")

# %%
bound = -1.5
truth = float(weights[grid < bound].sum())
share = {
    name: (run_of.get_samples(group_by_chain=True)["tau"].log() < bound)
    .double()
    .mean(1)
    for name, run_of in (("centred", first), ("non-centred", mcmc))
}
for name, each in share.items():
    # Chains are independent, so their spread gives the error of their mean.
    print(f"{name:12} {each.mean():.4f} ± {each.std() / num_chains**0.5:.4f}")
print(f"{'exact':12} {truth:.4f}")
error = share["non-centred"].std() / num_chains**0.5
assert abs(share["non-centred"].mean() - truth) < 5 * error
assert share["centred"].mean() < truth

# %% [markdown]
# ## What ArviZ gets
#
# `to_arviz` gives all groups, on request also draws of the prior and of the data that prior and posterior
# predict. Dimensions bear the names of the plates.

# %%
names = ["A", "B", "C", "D", "E", "F", "G", "H"]
data = mcmc.to_arviz(prior=1000, posterior_predictive=True, coords={"school": names})
print("\n".join(data.groups()))
print(data.posterior["theta"].sel(school="A").mean(("chain", "draw")).item())
assert set(data.posterior.dims) == {"chain", "draw", "school"}
assert {"log_likelihood", "prior_predictive", "posterior_predictive"} <= set(
    data.groups()
)

# %% [markdown]
# The first use is to see whether prior and posterior can make data like the data. The prior allows for
# effects larger than any seen; the posterior has learnt their scale, and the largest effect seen, 28, is
# nothing unusual for it.

# %%
prior_y = torch.tensor(data.prior_predictive["y"].values).flatten(0, 1)
drawn_y = torch.tensor(data.posterior_predictive["y"].values).flatten(0, 1)
axes = panels(2, height=2.8, sharey=True)
predicted = ((prior_y, "prior predictive"), (drawn_y, "posterior predictive"))
for each, (draws, title) in zip(axes, predicted, strict=True):
    quantiles = draws.quantile(torch.tensor([0.05, 0.95]), 0)
    each.vlines(range(8), *quantiles, color=LIGHT.first, linewidth=5, alpha=0.35)
    each.plot(y, "o", color=LIGHT.second, markersize=5)
    each.set_xticks(range(8), names)
    each.set_title(f"{title}: middle 90%, and y", fontsize=10)
axes[0].set_ylabel("effect", fontsize=9.5)

# %%
larger = (drawn_y.amax(1) >= y.max()).double().mean()
print(f"share of predicted data whose largest effect is above 28: {larger:.3f}")
assert prior_y.quantile(0.95) - prior_y.quantile(0.05) > (
    drawn_y.quantile(0.95) - drawn_y.quantile(0.05)
)
assert 0.05 < larger < 0.95

# %% [markdown]
# ## Against its rivals
#
# Two simpler stories: all schools are alike (complete pooling), or have nothing to do with each other
# (none). Which predicts a school that it has not seen?


# %%
def complete_pooling(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(sigma)):
        return pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def no_pooling(sigma, y=None):
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(0.0, 25.0))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


rivals = {
    "hierarchical": posterior,
    "complete pooling": run(complete_pooling).posterior,
    "no pooling": run(no_pooling).posterior,
}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ranking = compare(rivals)
print(ranking[["rank", "elpd_loo", "p_loo", "elpd_diff", "dse", "warning"]])
assert ranking.index[0] == "complete pooling"
assert ranking.loc["hierarchical", "elpd_diff"] < 2
assert ranking.loc["no pooling", "warning"]

# %% [markdown]
# The data cannot tell the first two apart. The third is marked: with one effect a school and nothing shared,
# leaving a school out changes its posterior too much for reweighting (Pareto $k > 0.7$), and the number is
# not to be trusted. It is an optimistic one, as an exact calculation shows: without its own `y`, a
# school's prediction is the prior's.

# %%
spread = (25.0**2 + sigma**2).sqrt()
exact_no_pooling = dist.Normal(0.0, spread).log_prob(y).sum()
print(f"no pooling, exact: {exact_no_pooling:.2f}")
print(f"no pooling, by reweighting: {ranking.loc['no pooling', 'elpd_loo']:.2f}")
assert ranking.loc["no pooling", "elpd_loo"] > exact_no_pooling

# %% [markdown]
# For the hierarchical model the Pareto k lie around 0.5, and the reweighted figure is close to the exact one.
# Where k is above 0.7, leave the observation out and run the model again: the seven other schools have the
# same shape each time, so all eight runs use the code compiled for the first.

# %%
with warnings.catch_warnings(action="ignore"):
    pointwise = loo(posterior, pointwise=True)
print("Pareto k:", pointwise.pareto_k.values.round(2))
total = log_joint(all_schools).logsumexp(0)
exact_hierarchical = sum(
    float(total - log_joint(all_schools[all_schools != school]).logsumexp(0))
    for school in range(8)
)
print(f"hierarchical, exact: {exact_hierarchical:.2f}")
print(f"hierarchical, by reweighting: {pointwise.elpd_loo:.2f} ± {pointwise.se:.2f}")
assert abs(pointwise.elpd_loo - exact_hierarchical) < 0.1 * pointwise.se

# %%
left_out = (0, 7) if small else range(8)
again = MCMC(
    NUTS(by_hand, target_accept_prob=0.95),
    num_samples=num_samples,
    warmup_steps=200,
    num_chains=num_chains,
    seed=1,
    disable_progbar=True,
)
for school in left_out:
    kept = all_schools[all_schools != school]
    again.run(sigma[kept], y=y[kept])
    draws = again.get_samples(group_by_chain=True)
    scale = (draws["tau"] ** 2 + sigma[school] ** 2).sqrt()
    each = dist.Normal(draws["mu"], scale).log_prob(y[school]).exp().double().mean(1)
    found, error = each.mean(), each.std() / num_chains**0.5
    truth = (total - log_joint(kept).logsumexp(0)).exp()
    print(f"{names[school]}  p = {found:.6f} ± {error:.6f}   exact {truth:.6f}")
    assert abs(found - truth) < 5 * error

# %% [markdown]
# ## Saving, and going on
#
# A run can be saved and taken up later, by another process: the further draws are those that it would have
# made unbroken. `extend` adds draws to a finished run. Ctrl-C ends a run with the draws that it has, and
# `extend(0)` makes the rest; `MCMC(..., checkpoint="folder")` saves as it goes.

# %%
with tempfile.TemporaryDirectory() as folder:
    mcmc.save(f"{folder}/schools")
    resumed = MCMC.resume(f"{folder}/schools", by_hand)
resumed.extend(100)
mcmc.extend(100)
longer = mcmc.get_samples(group_by_chain=True)["tau"]
print(tuple(longer.shape))
assert longer.shape[1] == num_samples + 100
assert torch.equal(longer, resumed.get_samples(group_by_chain=True)["tau"])

# %% [markdown]
# The same seed gives the same draws, and torch's own random numbers are left alone.

# %%
state = torch.get_rng_state()
repeated = run(by_hand, target_accept_prob=0.95).get_samples(group_by_chain=True)["tau"]
assert torch.equal(repeated, longer[:, :num_samples])
assert torch.equal(state, torch.get_rng_state())

# %% [markdown]
# ## Where next
#
# * *Which sampler* says when `ChEES` or another serves better than `NUTS`.
# * *What to do about divergences* goes through all warnings and their cures.
# * *What is the evidence?* compares models by the probability of the data.
