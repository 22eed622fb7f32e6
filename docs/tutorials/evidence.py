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
# # What is the evidence?
#
# The evidence of a model is the probability of the data with all latents integrated out,
# $p(y) = \int p(z)\, p(y \mid z)\, dz$. It is what compares models, and the likelihood of a decoder is the
# same integral, one for each datum. This page climbs a ladder of bounds on it, ELBO, IWAE, annealed
# importance sampling (AIS), closes in from above by AIS in reverse, and checks each on a model whose evidence
# is known. Then it does the same where nothing is known.

# %%
import math
import os
import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen import datasets
from ppgen.inference import AIS
from ppgen.inference.annealing.likelihood import simulated_bounds
from ppgen.inference.smc import SMC
from ppgen.models import RBM, VAE
from ppgen.ops.random import forked_rng
from ppgen.plots.canvas import LIGHT, plain_axes

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ

# %% [markdown]
# ## A model whose evidence is known
#
# Linear regression with known noise: $w \sim N(0, I_8)$ and $y \sim N(X w, 0.5^2 I)$. The columns of X
# have something in common, so the posterior of w is correlated. The evidence is a Gaussian density:
# $y \sim N(0, X X^T + 0.5^2 I)$.

# %%
num_data, num_latents, noise = 40, 8, 0.5
with forked_rng(0):
    shared = torch.randn(num_data, 1)
    design = (torch.randn(num_data, num_latents) + shared) / math.sqrt(2)
    y = design @ torch.randn(num_latents) + noise * torch.randn(num_data)


def model(y, num=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(num_latents), 1.0).to_event(1))
    with pyro.plate("data", num_data):
        return pyro.sample("y", dist.Normal(design @ w, noise), obs=y)


wide = design.double()
covariance = wide @ wide.T + noise**2 * torch.eye(num_data, dtype=torch.float64)
zeros = torch.zeros(num_data, dtype=torch.float64)
exact = float(dist.MultivariateNormal(zeros, covariance).log_prob(y.double()))
print(f"log p(y) = {exact:.4f} nats")

# %% [markdown]
# ## ELBO
#
# A guide q turns the integral into a mean of weights $p(y, z) / q(z)$, and the mean of their *logarithm* is
# the ELBO, a lower bound. What it lacks is $\mathrm{KL}(q \,\|\, p(z \mid y))$. The best guide with
# independent coordinates is known here, and so is what it lacks.

# %%
precision = wide.T @ wide / noise**2 + torch.eye(num_latents, dtype=torch.float64)
posterior_mean = torch.linalg.solve(precision, wide.T @ y.double() / noise**2)
guide_scale = precision.diagonal().rsqrt()
lacking = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2


def guide(y=None, num=None):
    pyro.sample(
        "w", dist.Normal(posterior_mean.float(), guide_scale.float()).to_event(1)
    )


wrapped = ppgen.wrap(model, guide, example=y)
num_particles = 500 if small else 1000
with forked_rng(0):
    elbo = wrapped.log_likelihood(y, method="elbo", num_particles=num_particles)
print("ELBO", elbo)
print(f"the exact value less the divergence: {exact - lacking:.4f}")
assert abs(elbo.value - (exact - lacking)) < 5 * elbo.std_error

# %% [markdown]
# ## IWAE
#
# The logarithm of the *mean* of P weights is a tighter bound (Burda, Grosse and Salakhutdinov 2016). But
# where the guide has the wrong shape the weights are uneven, and each doubling of P gains less than the
# one before.

# %%
iwae = {}
for size in (1, 10, 100):
    with forked_rng(0):
        repeats = max(num_particles // size, 8)
        found = torch.stack(
            [
                wrapped.log_likelihood(y, method="iwae", num_particles=size).value
                for _ in range(repeats)
            ]
        ).double()
    iwae[size] = found.mean()
    error = found.std() / math.sqrt(repeats)
    print(f"P = {size:3}   {found.mean():.3f} ± {error:.3f}   (exact {exact:.3f})")
    assert found.mean() < exact + 5 * error
assert iwae[1] < iwae[10] < iwae[100]

# %% [markdown]
# ## AIS
#
# Instead of jumping from the start to the posterior, particles *walk*: through distributions
# $p(z)\, p(y \mid z)^{\beta}$ with $\beta$ from 0 to 1, a few steps of HMC at each, and
# gather their weights on the way (Neal 2001). The mean weight is unbiased for $p(y)$ whatever the number of
# temperatures; more of them make the weights more even. No guide is needed: the walk begins at the prior.

# %%
evidence = AIS(model, num_particles=512, seed=0).run(y)
print(evidence)
print(f"exact {exact:.4f}")
assert evidence.ok, evidence.warnings
assert abs(evidence.log_evidence.value - exact) < 5 * evidence.log_evidence.std_error

# %% [markdown]
# The ladder of temperatures was found by a pilot run. The kind is `lower_bound`: the logarithm of an unbiased
# estimate is below the truth on average, by about half its variance.
#
# ## AIS in reverse
#
# How would one know how far below? Walk the other way: from an exact draw of the posterior down to the prior.
# The inverse of the weights so gathered is unbiased for $1 / p(y)$, which gives a bound from *above*.
# In this model the posterior can be drawn from, so both can be seen closing in.

# %%
with forked_rng(1):
    factor = torch.linalg.cholesky(precision)
    normal = torch.randn(128, num_latents, dtype=torch.float64)
    step = torch.linalg.solve_triangular(factor.T, normal.T, upper=True).T
    exact_draws = {"w": (posterior_mean + step).float()}

lower, upper = {}, {}
for num in (10, 300) if small else (10, 30, 100, 300):
    walk = AIS(model, num_particles=128, num_temperatures=num, seed=1)
    lower[num] = walk.run(y).log_evidence
    upper[num] = walk.reverse(exact_draws, y)
    print(
        f"T = {num:3}   {lower[num].value - exact:+.3f} ± {lower[num].std_error:.3f}"
        f"   {upper[num].value - exact:+.3f} ± {upper[num].std_error:.3f}"
    )
assert lower[300].value < exact + 5 * lower[300].std_error
assert upper[300].value > exact - 5 * upper[300].std_error
gap = {num: upper[num].value - lower[num].value for num in lower}
assert gap[300] < gap[10]

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
plain_axes(axes, LIGHT)
for found, colour, label in (
    (upper, LIGHT.second, "AIS in reverse"),
    (lower, LIGHT.first, "AIS"),
):
    axes.errorbar(
        list(found),
        [float(each.value) - exact for each in found.values()],
        [float(each.std_error) for each in found.values()],
        color=colour,
        marker="o",
        markersize=4,
        capsize=2.5,
        linewidth=1.4,
        label=label,
    )
axes.axhline(0, color=LIGHT.ink, linewidth=0.9)
bounds = {"ELBO": float(elbo.value), "IWAE, P = 100": float(iwae[100])}
for (label, value), dash in zip(bounds.items(), ("dotted", "dashed"), strict=True):
    axes.axhline(
        value - exact, color=LIGHT.muted, linestyle=dash, linewidth=1.4, label=label
    )
axes.set_xscale("log")
axes.set_xticks(list(lower), [str(num) for num in lower])
axes.minorticks_off()
axes.set_xlabel("temperatures", fontsize=9.5)
axes.set_ylabel("bound less exact, nats", fontsize=9.5)
legend = axes.legend(fontsize=8.5, frameon=False, loc="upper right")

# %% [markdown]
# Mostly the posterior cannot be drawn from. But on data that the *model* makes, it can: latents are drawn
# from the prior and data given them, so these latents are one exact draw of the posterior of these data.
# That is *bidirectional Monte Carlo* (Grosse, Ghahramani and Adams 2015). The gap bounds the error of either
# side, on data like ours.

# %%
both = AIS(model, num_particles=64, num_temperatures=300, seed=2).bidirectional(
    y, num_simulations=2 if small else 8
)
print("from below", both.lower.value.numpy().round(2))
print("from above", both.upper.value.numpy().round(2))
print("gap", both.gap)
assert both.gap.value > -5 * both.gap.std_error

# %% [markdown]
# ## Two cross-checks
#
# *Thermodynamic integration* takes the same walk by another formula,
# $\log p(y) = \int_0^1 E_\beta[\log p(y \mid z)]\, d\beta$. It does not rest on the weights being even, but
# on the sum being fine enough. *Sequential Monte Carlo* drops particles with small weights on the way and
# copies those with large ones. Figures that agree by three formulas are hard to get by a mistake.

# %%
particles = SMC(model, num_particles=1024, seed=0).run(y)
for name, estimate in (
    ("AIS", evidence.log_evidence),
    ("thermodynamic integration", evidence.thermodynamic),
    ("SMC", particles.log_evidence),
):
    print(f"{name:26} {estimate.value:.3f} ± {estimate.std_error:.3f}")
    assert abs(estimate.value - exact) < 5 * estimate.std_error
print(f"{'exact':26} {exact:.3f}")

# %% [markdown]
# The particles at the end are draws of the posterior, to be weighted or resampled:

# %%
drawn = evidence.resample(seed=0)["w"].double().mean(0)
weights = evidence.log_weights.softmax(0)
mean = weights @ evidence.samples["w"].double()
error = (precision.inverse().diagonal() / evidence.ess).sqrt()
print(
    f"largest error of a mean: {((mean - posterior_mean) / error).abs().max():.1f} standard errors"
)
assert ((mean - posterior_mean).abs() < 5 * error).all()

# %% [markdown]
# ## The likelihood of a decoder
#
# For a variational autoencoder the integral is over the latents of one image, one for each image:
# `log_likelihood` has the three methods, with all images and particles in one batch. AIS walks
# from the encoder's guess to the true posterior.

# %%
digits = datasets.load("digits")
with forked_rng(0):
    vae = VAE(
        digits.event_shape,
        latent_dim=8,
        likelihood="categorical",
        levels=digits.values.levels,
    )
fitted = ppgen.fit(
    vae,
    digits.train,
    validation=digits.validation,
    epochs=10 if small else 60,
    batch_size=64,
    schedule="cosine",
    progress=False,
)
print(fitted)
vae.eval()
images = digits.test.x[: 16 if small else 32]
chain = {}
temperatures = (10, 40) if small else (10, 100)
with forked_rng(0):
    chain["ELBO"] = vae.log_likelihood(images, method="elbo", num_particles=256)
    for num in (16, 256):
        chain[f"IWAE, P = {num}"] = vae.log_likelihood(
            images, method="iwae", num_particles=num
        )
for num in temperatures:
    chain[f"AIS, T = {num}"] = vae.log_likelihood(
        images, method="ais", num_particles=16, num_temperatures=num, seed=0
    )
for name, each in chain.items():
    print(f"{name:14} {each.value.mean():.3f} nats an image")

# %% [markdown]
# Images differ in how far their bounds are apart, so what is compared is each image with itself.

# %%
tightest = chain[f"AIS, T = {temperatures[-1]}"]
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
plain_axes(axes, LIGHT)
differences = [(each.value - chain["ELBO"].value).double() for each in chain.values()]
for place, each in enumerate(differences):
    shift = torch.linspace(-0.16, 0.16, len(each))
    axes.plot(
        place + shift, each, "o", color=LIGHT.first, markersize=3, alpha=0.45, mew=0
    )
means = [float(each.mean()) for each in differences]
axes.plot(range(len(means)), means, color=LIGHT.second, marker="D", markersize=5)
axes.set_xticks(range(len(chain)), [name.replace(", ", "\n") for name in chain])
axes.tick_params(axis="x", labelsize=8.5)
axes.set_ylabel("above the ELBO, nats", fontsize=9.5)


def higher(above, below):
    """How many standard errors one bound is above another, on average over the images."""
    first, second = chain[above], chain[below]
    spread = (first.std_error**2 + second.std_error**2).sum().sqrt()
    return float((first.value - second.value).sum() / spread)


# %%
print(f"IWAE above ELBO by {higher('IWAE, P = 256', 'ELBO'):.0f} standard errors")
assert higher("IWAE, P = 256", "ELBO") > 5
assert higher(f"AIS, T = {temperatures[-1]}", "ELBO") > 5
assert higher(f"AIS, T = {temperatures[-1]}", "IWAE, P = 256") > -5

# %% [markdown]
# How much is still missing? On images that the model itself made, both sides can be had:

# %%
made = simulated_bounds(
    vae,
    16 if small else 32,
    seed=0,
    num_particles=16,
    num_temperatures=temperatures[-1],
)
print(
    f"from below {made.lower.mean().value:.3f}, from above {made.upper.mean().value:.3f}"
)
print("gap", made.gap)
assert made.gap.value > -5 * made.gap.std_error

# %% [markdown]
# ## The normaliser of a Boltzmann machine
#
# A restricted Boltzmann machine has a density up to a constant, $p(v) = e^{-F(v)} / Z$, and $\log Z$ is the
# same kind of integral. AIS starts at a machine without weights that has the data's mean in each pixel. With
# 12 hidden units the sum over all their states gives the exact value. Three temperatures are too few, and the
# warnings say so.

# %%
binary = (digits.train.x > 0.5).float()
with forked_rng(0):
    machine = RBM(digits.event_shape, num_hidden=12)
ppgen.fit(machine, binary, epochs=30, batch_size=20, learning_rate=0.02, progress=False)
with torch.no_grad():
    log_z = machine.log_partition().value
sides = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for num in (3, 30, 300):
        sides[num] = machine.log_partition(
            method="ais", num_chains=128, num_temperatures=num, seed=0
        )
for num, low in sides.items():
    high = low.upper
    print(
        f"T = {num:3}   {low.value:.3f} ± {low.std_error:.3f}"
        f" ≤ log Z ≤ {high.value:.3f} ± {high.std_error:.3f}"
    )
print(f"exact     {log_z:.3f}")
for warning in said:
    print("said on the way:", warning.message)
low, high = sides[300], sides[300].upper
assert low.value - 5 * low.std_error < log_z < high.value + 5 * high.std_error
assert low.gap.value < sides[3].gap.value

# %% [markdown]
# A *lower* bound on $\log Z$ makes an *upper* bound of the likelihood, for Z stands below the line. Estimates
# say so, and metrics refuse to mix the kinds up.

# %%
estimate = machine.log_likelihood(
    binary[:100], method="ais", num_chains=128, num_temperatures=300, seed=0
)
print(estimate.kind, estimate.mean())
assert estimate.kind == ppgen.Kind.UPPER_BOUND
