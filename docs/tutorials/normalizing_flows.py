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
# # Normalizing flows
#
# Take noise whose density everybody knows, and bend it. If the bending can be undone, the density of what
# comes out is known too, exactly. That is the whole idea, and this page looks at it from all sides: how one
# bends, what it costs in each direction, how near to the truth one gets where the truth is known, and
# what the number means on pictures, where it is easily misread.

# %%
import math
import os
import time

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam

import ppgen
from ppgen import datasets, metrics
from ppgen.models import IAF, MAF, ContinuousFlow, Glow, NeuralSplineFlow, RealNVP
from ppgen.ops.random import forked_rng
from ppgen.plots.canvas import LIGHT, plain_axes
from ppgen.plots.images import image_rows

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ


def mean_and_error(values):
    """The mean of independent values, and its standard error."""
    values = values.detach().double().flatten()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


# %% [markdown]
# ## The story
#
# Noise $z \sim N(0, I)$ goes through layers that can each be undone, and becomes $x = T(z)$. Where the map
# stretches, the same probability lies on more room, and the density falls by as much:
#
# $$\log p(x) = \log N(z; 0, I) - \log \left| \det \partial T / \partial z \right|, \qquad z = T^{-1}(x).$$
#
# So a layer must be able to do three things fast: go forward, go back, and say its determinant. In general
# a determinant costs $D^3$. Families differ in how they get around that:
#
# | family | a layer | density | draw |
# |---|---|---|---|
# | `RealNVP` | half of the coordinates shift and scale the other half | one pass | one pass |
# | `MAF` | each coordinate is shifted and scaled by those before it | one pass | one by one |
# | `IAF` | the same, turned around | one by one | one pass |
# | `NeuralSplineFlow` | a spline for shift and scale; both layouts | one pass | one pass, or one by one |
# | `Glow` | RealNVP with convolutions, for images, at several scales | one pass | one pass |
# | `ContinuousFlow` | a velocity, followed through time | solves an equation | solves an equation |
#
# In the first four the matrix of derivatives is triangular, up to the order of coordinates, and its
# determinant the product of its diagonal. Glow adds mixing of channels, kept as triangular factors for the
# same reason. The last replaces the product by an integral of the velocity's divergence.

# %% [markdown]
# ## The pair
#
# The noise is no site: `x` is a deterministic image of it, so that nothing is latent and the guide is empty.
# `model` has one site, `x`, with the density above.


# %%
def fit(model, data, **options):
    options = {"schedule": "cosine", "clip_norm": 5.0} | options
    with forked_rng(0):
        return ppgen.fit(model, data.train, progress=False, **options)


moons = datasets.load("two-moons", num_train=8_000 if small else 40_000, num_test=2_000)
with forked_rng(0):
    flow = RealNVP(moons.event_shape, num_layers=6, hidden=(64, 64))
print(fit(flow, moons, epochs=1, batch_size=250, learning_rate=4e-3))
flow = flow.double()  # to check the arithmetic to many digits

x = moons.test.x[:200].double()
trace = poutine.trace(flow.model).get_trace(x)
with torch.no_grad():
    by_site = float(trace.log_prob_sum())
    by_method = float(flow.log_likelihood(x).value.sum())
print([name for name, site in trace.nodes.items() if site["type"] == "sample"])
print(f"the trace says {by_site:.4f} nats, log_likelihood {by_method:.4f}")
assert abs(by_site - by_method) < 1e-6
assert not list(poutine.trace(flow.guide).get_trace(x).stochastic_nodes)

# %% [markdown]
# A grid, pushed through. Each little square of noise becomes a small patch among the data, and its area is
# what the determinant tells. Where lines are dense, so are data.

# %%
line, knots = torch.linspace(-3, 3, 400), torch.linspace(-3, 3, 25)
grid = [torch.stack([k.expand(400), line], -1).double() for k in knots]
grid += [g.flip(-1) for g in grid]
figure, panels = plt.subplots(1, 2, figsize=(6.6, 3.3), layout="constrained")
with torch.no_grad():
    noise = flow.encode(moons.test.x[:800].double())
    for curve in grid:
        for axes, points in zip(panels, (curve, flow.decode(curve)), strict=True):
            axes.plot(*points.T, color=LIGHT.first, linewidth=0.5, alpha=0.7)
for axes, points, title in zip(
    panels, (noise, moons.test.x[:800]), ("noise z", "data x = T(z)"), strict=True
):
    axes.plot(*points.T, ".", color=LIGHT.second, markersize=2)
    axes.set_title(title, fontsize=10)
    axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
    axes.set_aspect("equal")
    plain_axes(axes, LIGHT)
panels[1].set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
plt.show()

# %% [markdown]
# The two moons stay connected by thin bridges. A map that is continuous both ways cannot tear the plane, so a
# flow can make the bridge thin, but never remove it.
#
# Is the determinant right? Automatic differentiation has the whole matrix of derivatives at each point, and
# its determinant the slow way:

# %%
with torch.no_grad():
    z, log_det = flow.distribution().to_noise(x)
    back = (flow.decode(z) - x).abs().max()
jacobian = torch.func.vmap(
    torch.func.jacrev(lambda v: flow.distribution().to_noise(v)[0])
)(x)
apart = (torch.linalg.slogdet(jacobian)[1] - log_det).abs().max()
print(f"log-determinants differ by {apart:.1e}, there and back by {back:.1e}")
assert apart < 1e-8
assert back < 1e-8


# %% [markdown]
# And is it a density? Then it integrates to 1. The plane is small enough to see that by adding up squares:


# %%
def mass(model, half_width, num):
    """The integral of a density over a square, by the trapezoidal rule."""
    axis = torch.linspace(-half_width, half_width, num, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis).to(model.base_loc.dtype)
    with torch.no_grad():
        parts = [model.log_likelihood(p).value.double() for p in plane.split(20_000)]
    return float(torch.cat(parts).exp().sum()) * float(axis[1] - axis[0]) ** 2


total = mass(flow, 5.0, 300 if small else 600)
print(f"the density integrates to {total:.6f}")
assert abs(total - 1) < 1e-3

# %% [markdown]
# ## Fit
#
# Training is maximum likelihood: one call, the gradient of the exact density, nothing else. Eight separate
# Gaussians are a hard case, since they have to be joined by bridges. The test data's density under the truth
# is known, and so the gap to it, an estimate of the Kullback–Leibler divergence in nats, which no model
# can bring below zero.

# %%
num_train = 9_000 if small else 48_000
eight = datasets.load("eight-gaussians", num_train=num_train, num_test=4_000)
spline = {"num_spline_bins": 16, "tail_bound": 4.0, "hidden": (64, 64)}
with forked_rng(0):
    flows = {
        "RealNVP": RealNVP((2,), num_layers=6, hidden=(64, 64)),
        "spline, coupling": NeuralSplineFlow((2,), num_layers=4, **spline),
        "spline, autoregressive": NeuralSplineFlow(
            (2,), layout="autoregressive", num_layers=2, **spline
        ),
    }
rows, log_p = {}, {}
for name, model in flows.items():
    done = fit(model, eight, epochs=1, batch_size=300, learning_rate=4e-3)
    with torch.no_grad():
        log_p[name] = model.log_likelihood(eight.test.x).value
    gap, error = mean_and_error(eight.truth.log_prob(eight.test.x) - log_p[name])
    rows[name] = {
        "gap, nats": gap,
        "± standard error": error,
        "layers": len(model.layers) - 1,
    }
    assert gap > -5 * error
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# Same data, same number of steps, far from the end of training. An affine layer only shifts and stretches,
# and needs many layers to make eight of one; a spline with 16 pieces bends where the data want it. The three
# were tested on the same points, so their difference is known better than each of them:

# %%
better, error = mean_and_error(log_p["spline, coupling"] - log_p["RealNVP"])
print(f"the spline is {better:.3f} ± {error:.3f} nats better than affine layers")
assert better > 5 * error

# %% [markdown]
# With more steps the splines come within a fiftieth of a nat of the truth: 400 000 points, three epochs. The
# package's slow tests hold that.
#
# ## Look
#
# ### What affine layers cannot do

# %%
axis = torch.linspace(-3.2, 3.2, 160)
plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
shown = {"truth": eight.truth.log_prob(plane)}
with torch.no_grad():
    for name in ("RealNVP", "spline, coupling"):
        shown[name] = flows[name].log_likelihood(plane).value
figure, panels = plt.subplots(1, 3, figsize=(6.8, 2.5), layout="constrained")
top = float(shown["truth"].exp().max())
for axes, (name, values) in zip(panels, shown.items(), strict=True):
    image = values.exp().view(160, 160)
    axes.imshow(
        image, origin="lower", extent=(-3.2, 3.2) * 2, cmap="Blues", vmin=0, vmax=top
    )
    axes.set_title(name, fontsize=10)
    axes.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ### Two prices: MAF and IAF
#
# An autoregressive layer knows each coordinate's shift from those before it. If those are data, all shifts
# are known at once, and a density is one pass; a draw has to make the coordinates one by one. IAF is the same
# layer turned around, and so are its prices. Here 64 coordinates, 500 points, best of three:


# %%
def milliseconds(job):
    found = []
    for _ in range(3):
        start = time.perf_counter()
        job()
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)


costs, many = {}, torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
for family in (MAF, IAF):
    with forked_rng(0):
        model = family((64,), num_layers=3)
    with torch.no_grad():
        costs[family.__name__] = {
            "density, ms": milliseconds(lambda m=model: m.log_likelihood(many)),
            "draw, ms": milliseconds(lambda m=model: m.sample(500, seed=0)),
        }
costs = pd.DataFrame(costs).T
costs.round(1)

# %% [markdown]
# Both directions are exact in both. Training by data wants densities: MAF. Where nobody gives data and
# draws are wanted together with their density, take IAF. That is what a guide is.
#
# ### IAF as a guide
#
# Two unknowns, of which only the product was measured: $z_1 z_2 = 1$, give or take 0.3. Either both are
# positive or both are negative, and along each branch one may grow as the other shrinks. The guide takes its
# draw and the density of that draw from one pass, and hands both to Pyro in a `Delta`:


# %%
def product(num):
    with pyro.plate("copies", num):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.prod(-1), 0.3), obs=torch.ones(num))


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.flow = IAF((2,), num_layers=5, hidden=(32, 32))

    def forward(self, num):
        with pyro.plate("copies", num):
            z, log_q = self.flow.distribution().rsample_with_log_prob((num,))
            return pyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))


def one_normal(num):  # for comparison
    loc = pyro.param("loc", torch.ones(2))
    scale = pyro.param(
        "scale", torch.full((2,), 0.5), constraint=dist.constraints.positive
    )
    with pyro.plate("copies", num):
        return pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def log_joint(z):
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + dist.Normal(z.prod(-1), 0.3).log_prob(torch.ones_like(z[..., 0]))


drawn, log_weights = {}, {}
with forked_rng(0), pyro.get_param_store().scope():
    guides = {"one normal": one_normal, "IAF": Guide()}
    for name, guide in guides.items():
        optimiser = ClippedAdam({"lr": 1e-2, "lrd": 0.995})
        svi = SVI(product, guide, optimiser, Trace_ELBO())
        for _ in range(100 if small else 300):
            svi.step(128)
        with torch.no_grad():
            site = poutine.trace(guide).get_trace(10_000).nodes["z"]
            log_q = site["fn"].log_prob(site["value"])
        drawn[name] = site["value"]
        log_weights[name] = log_joint(site["value"]) - log_q
side = torch.linspace(-6, 6, 601, dtype=torch.float64)
cells = log_joint(torch.cartesian_prod(side, side))
evidence = float(cells.logsumexp(0)) + 2 * math.log(12 / 600)
bounds = {name: mean_and_error(each) for name, each in log_weights.items()}
for name, (bound, error) in bounds.items():
    print(f"{name:10} bound {bound:.3f} ± {error:.3f}, log evidence {evidence:.3f}")

# %%
figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
window = torch.linspace(-3, 3, 150)
shades = torch.linspace(0.02, 0.3, 8)
across = torch.stack(torch.meshgrid(window, window, indexing="xy"), -1)
for axes, (name, z) in zip(panels, drawn.items(), strict=True):
    levels = (log_joint(across) - evidence).exp()
    axes.contourf(window, window, levels, levels=shades, cmap="Blues", extend="max")
    axes.plot(*z[:800].T, ".", color=LIGHT.second, markersize=2, alpha=0.7)
    axes.set_title(f"posterior (blue), {name} (dots)", fontsize=9)
    axes.set(xlim=(-3, 3), ylim=(-3, 3))
    axes.set_aspect("equal")
    plain_axes(axes, LIGHT)
plt.show()

# %% [markdown]
# One normal settles on one branch and says nothing of the other. That is also how a bad guide can look
# sure. The flow covers both, with a bridge between them. Its bound is below the evidence, as it must be, by
# what the bridge and the edges cost. With a context it is the posterior of an autoencoder, its first use:
# `flow.distribution(encoder(x))`, in the plate of the data.
#
# A guide with a density is a proposal as well: the mean of joint density over proposal density is the
# evidence, without bias. Where the flow's tails are too thin, a rare draw has a huge weight; so one draw in
# ten is the prior's, which keeps all weights below a bound. There the flow's density is asked for at *given*
# points: exact too, only slower.

# %%
with forked_rng(0), torch.no_grad():
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    z = torch.cat([drawn["IAF"][:9_000], prior.sample((1_000,))])
    log_q = guides["IAF"].flow.distribution().log_prob(z)
mixture = torch.logaddexp(log_q + math.log(0.9), prior.log_prob(z) + math.log(0.1))
weight, error = mean_and_error((log_joint(z) - mixture - evidence).exp())
print(f"estimated evidence over the true one: {weight:.3f} ± {error:.3f}")
assert abs(weight - 1) < 5 * error
ahead, error = mean_and_error(log_weights["IAF"] - log_weights["one normal"])
assert ahead > 5 * error
assert bounds["IAF"][0] < evidence

# %% [markdown]
# ### A flow through time
#
# `ContinuousFlow` has no layers. It learns a velocity, by regression on straight lines from noise to data
# (flow matching), without ever solving an equation; only draws and densities follow the velocity. Forty
# small steps of one's own are enough to watch it:

# %%
with forked_rng(0):
    stream = ContinuousFlow((2,), hidden=(64, 64, 64))
options = {"batch_size": 500, "learning_rate": 1e-2}
print(fit(stream, moons, epochs=8 if small else 6, **options))
with forked_rng(0), torch.no_grad():
    start = torch.randn(600, 2)
    path = [start]
    for step in range(40):
        now = torch.full((600,), (step + 0.5) / 40)
        path.append(path[-1] + stream.velocity(path[-1], now) / 40)
    standardise = stream.layers[0]
    path = torch.stack([standardise.push(y) for y in path])
    solved = stream.decode(start)
figure, panels = plt.subplots(1, 4, figsize=(7, 2), layout="constrained")
for axes, step in zip(panels, (0, 20, 30, 40), strict=True):
    axes.plot(*path[: step + 1, :60].unbind(-1), color=LIGHT.muted, linewidth=0.4)
    axes.plot(*path[step].T, ".", color=LIGHT.first, markersize=2)
    axes.set_title(f"t = {step / 40}", fontsize=10)
    axes.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    axes.set_aspect("equal")
plt.show()
off = (path[-1] - solved).norm(dim=-1)
print(f"forty steps end {float(off.mean()):.3f} from where the solver does")
assert float(off.mean()) < 0.1

# %% [markdown]
# Its likelihood has two errors that the others have not. The solver's goes down with its tolerance, at the
# price of more steps. And where the divergence is too dear to be summed over all coordinates, random
# directions estimate it (Hutchinson), and the estimate says how sure it is. That is why its density is
# called an `estimate`, and not `exact`:

# %%
stream = stream.double()  # so that only the solver is at fault
few = moons.test.x[: 30 if small else 200].double()
with torch.no_grad():
    reference = stream.log_likelihood(few, tolerance=1e-8).value
    errors = {}
    for tolerance in (1e-2, 1e-4, 1e-6):
        solved = stream.log_likelihood(few, tolerance=tolerance).value
        errors[tolerance] = (solved - reference).abs()
    with forked_rng(0):
        guessed = stream.log_likelihood(few, method="hutchinson", num_probes=8)
for tolerance, wrong in errors.items():
    print(f"tolerance {tolerance:g}: off by {float(wrong.mean()):.1e} nats on average")
assert errors[1e-6].mean() < errors[1e-4].mean() < errors[1e-2].mean()
off, error = mean_and_error(guessed.value - reference)
print(f"Hutchinson, 8 directions: off by {off:.4f} ± {error:.4f}, {guessed.kind}")
assert abs(off) < 5 * error
gap, error = mean_and_error(moons.truth.log_prob(few) - reference)
print(f"gap to the truth {gap:.3f} ± {error:.3f} nats")

# %% [markdown]
# ### Glow, told the class
#
# On images, layers are convolutions. Every flow here can be conditioned: `context_dim=10`, and the labels
# go to each layer's network. Grey levels are no real numbers: each of the 17 is spread uniformly over its
# cell, by the trainer, on its own. `num_bins` lets the first layer begin with the margins.

# %%
digits = datasets.load("digits")
with forked_rng(0):
    sizes = {"num_steps": 2, "hidden_channels": 32, "context_dim": 10, "dropout": 0.2}
    glow = Glow(digits.event_shape, num_bins=digits.values.levels, **sizes)
options = {"batch_size": 64, "learning_rate": 5e-3, "clip_norm": 50.0}
print(fit(glow, digits, epochs=2 if small else 8, **options))
glow = glow.eval()

# %%
classes = torch.arange(10)
with forked_rng(0), torch.no_grad():
    made = [glow.sample(10, context=classes, seed=seed).clamp(0, 1) for seed in (0, 1)]
    calm = glow.sample_tempered(10, temperature=0.7, context=classes, seed=2)
real = torch.stack([digits.test.x[digits.test.y == k][0] for k in classes])
image_rows({"real": real, "drawn": torch.cat(made), "calmed to 0.7": calm}, columns=10)

# %% [markdown]
# A density given each class makes a classifier, by Bayes' rule, that was never trained to be one:

# %%
some = digits.test.take(slice(0, 80 if small else 200))
each = []
for k in range(10):
    given = {"context": torch.full((len(some),), k), "num_dequantisations": 2}
    each.append(metrics.log_likelihoods(glow, some, **given).value)
each = torch.stack(each, dim=1)
accuracy, error = mean_and_error((each.argmax(1) == some.y).float())
print(f"{accuracy:.3f} ± {error:.3f} of the digits are classified right")
assert accuracy > 0.1 + 5 * error

# %% [markdown]
# ## What its likelihood means
#
# ### A bound, because of the noise
#
# The density of a flow is exact, but digits have probabilities, not densities. A level's probability is the
# integral of the density over its cell; the mean of the *log* density over the cell is below the log of that
# integral. So the figure that ppgen gives is a bound, and it says so:

# %%
bits = metrics.bits_per_dim(glow, digits.test)
print(f"{bits}; every level alike: {math.log2(17):.4f} bits a pixel")
assert bits.kind == "upper_bound"
assert bits.value + 5 * bits.std_error < math.log2(17)

# %% [markdown]
# How loose is it? Averaging the densities of K points of the cell before taking the logarithm gives a
# tighter bound, with the integral itself in the limit. What it wins is at least missing in the figure above.

# %%
generator = torch.Generator().manual_seed(0)
volume = digits.values.log_cell_volume(64)
logs = []
for _ in range(8 if small else 64):
    with torch.no_grad():
        inside = digits.values.dequantise(some.x, generator)
        logs.append(glow.log_likelihood(inside, some.y).value.double())
logs = torch.stack(logs)
loose = logs.mean(0) + volume
tight = logs.logsumexp(0) - math.log(len(logs)) + volume
won, error = mean_and_error((tight - loose) / (64 * math.log(2)))
print(f"{len(logs)} points a cell win {won:.3f} ± {error:.3f} bits a pixel")
assert won > 5 * error

# %% [markdown]
# Three things to keep in mind when bits a pixel are compared. *Noise*: without it, a density may rise
# without limit at the levels, and the number means nothing. *Units*: a density changes with the unit of the
# data, by $\log 17$ a pixel between $[0, 1]$ and $[0, 17]$; as probabilities of levels, which is what
# ppgen's figures are, all agree. *Kinds*: a bound beside the exact probability of a `PixelCNN` favours the
# latter, by the slack.
#
# ### A high density does not mean "typical"
#
# It is tempting to call data odd when their density is low. Here are test digits, told their class, next to
# images that are none: black all over, and white. They have no class, so that theirs is summed over.

# %%
typical = metrics.log_likelihoods(glow, digits.test).value
blank = {}
for level, name in ((0, "black"), (16, "white")):
    images = torch.full((10, *digits.event_shape), level / 16)
    split = datasets.Split(images, classes, values=digits.values)
    values = metrics.log_likelihoods(glow, split).value
    blank[name] = float(values.logsumexp(0)) - math.log(10)
figure, axes = plt.subplots(figsize=(5.8, 2.4), layout="constrained")
axes.hist(typical, bins=30, color=LIGHT.first, alpha=0.6)
for name, value in blank.items():
    axes.axvline(value, color=LIGHT.second)
    axes.text(value, 1.02, name, transform=axes.get_xaxis_transform(), ha="center")
axes.set(xlabel="log-likelihood of an image, nats", ylabel="test digits")
plain_axes(axes, LIGHT)
plt.show()
higher = float((typical < blank["black"]).double().mean())
print(f"the black image is likelier than {higher:.0%} of the test digits")
assert blank["black"] > typical.mean()

# %% [markdown]
# The black image is likelier than a typical digit, and yet the flow does not draw anything like it. Both
# are right. There is one black image, and there are very many digits; each digit is less likely than the
# black image, and together they have all the probability. (A coin that shows heads six times in ten, thrown
# a hundred times: all heads is the likeliest single outcome, and nobody will ever see it.) Large images
# have the same trap: flows trained on photographs of animals and vehicles give house numbers a higher
# density (Nalisnick et al. 2019). Ask for a typical set, a ratio of two densities, or a classifier; a
# density alone does not say what belongs.

# %%
draws = torch.cat([glow.sample(10, context=classes, seed=seed) for seed in range(10)])
ink = digits.values.quantise(draws).mean((1, 2, 3))
print(
    f"ink of {len(ink)} draws: {float(ink.min()):.2f} to {float(ink.max()):.2f}, black has 0"
)
assert float(ink.min()) > 0.05

# %% [markdown]
# ## When to choose it
#
# - *An exact density of real-valued data*, with fast draws: `NeuralSplineFlow`, in the coupling layout. It
#   is the one to start with. The autoregressive layout does more with a layer, where draws may be slow.
# - *A guide*, or anything else that wants draws with their density: `IAF`.
# - *Many coordinates, and densities alone*: `MAF`, or the autoregressive spline.
# - *Images*, when an exact inverse or a code of the data's size is wanted: `Glow`. For the number alone,
#   try the autoregressive models of pixels, which give probabilities of levels with no bound between.
# - *A free choice of network, and good draws*: `ContinuousFlow`. A training step is one pass of the
#   network, and its density is the dearest of all.
#
# Not for data on fewer dimensions than the space has, which a flow can only approach with ever larger
# determinants; and not for sets that are torn apart, if the bridges matter.
#
# ## Exercises
#
# 1. Give RealNVP twice the layers on the eight Gaussians. How many does it take to match the spline?
# 2. One coordinate given the other: train a `NeuralSplineFlow((1,), layout="autoregressive",
#    context_dim=1)` for $p(x_2 \mid x_1)$ of the two moons, and compare with the joint density.
# 3. Train `ContinuousFlow(..., coupling="optimal_transport")` on the moons. Are the paths straighter, and
#    does the solver take fewer steps for the same tolerance?
# 4. Let the IAF guide have one layer only. Which branch does it lose, and what does the bound say?
# 5. Walk from one digit to another of its class: `glow.decode(torch.lerp(a, b, w), label)`, where `a` and `b`
#    come from `encode`. What does the same walk through pixels look like?
#
# ## References
#
# Dinh, Sohl-Dickstein & Bengio, *Density estimation using Real NVP*, ICLR 2017. Papamakarios, Pavlakou &
# Murray, *Masked autoregressive flow*, NeurIPS 2017. Kingma et al., *Inverse autoregressive flow*, NeurIPS
# 2016. Durkan et al., *Neural spline flows*, NeurIPS 2019. Kingma & Dhariwal, *Glow*, NeurIPS 2018. Lipman
# et al., *Flow matching*, ICLR 2023. Theis, van den Oord & Bethge, *A note on the evaluation of generative
# models*, ICLR 2016. Nalisnick et al., *Do deep generative models know what they don't know?*, ICLR 2019.
