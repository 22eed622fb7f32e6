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
# # Graphical models
#
# The oldest generative models draw a graph first: which variable leans on which. What is not joined is
# independent once its neighbours are known, and that is what makes sums over everything unseen possible.
# This page is about graphs with arrows: it puts the families on the same handwritten digits where that can be
# done, and each on what it is made for, and says what the number that comes out means. Graphs without arrows
# are those of [random fields](random_fields.py).

# %%
import itertools
import math
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch
from pyro.infer import TraceEnum_ELBO

import ppgen
from ppgen import datasets
from ppgen.models import (
    BayesianNetwork,
    GaussianMixture,
    HiddenMarkov,
    KernelDensity,
    LinearGaussianStateSpace,
    NaiveBayes,
)
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
# | family | graph | unseen, and summed out | datum |
# |---|---|---|---|
# | `NaiveBayes` | class → every coordinate | the class, where no label says it | any columns |
# | `BayesianNetwork` | any DAG, or a tree that is learnt | nothing (or which graph) | a row of a table |
# | `HiddenMarkov` | a chain of states, each emits one step | K states, T times | a sequence |
# | `LinearGaussianStateSpace` | the same chain | vectors | a sequence of vectors |
# | `KernelDensity` | which training datum → a point near it | the training datum | a real vector |
#
# With arrows, $p(x) = \prod_i p(x_i \mid \text{parents of } x_i)$, and every factor is a probability.
# So their product sums to 1 as it is, and what costs is only the sum over what is unseen.

# %% [markdown]
# ## The pair
#
# Every family is a Pyro `model` and `guide`. What is discrete and unseen can be summed out, and these
# families do: `model` of a hidden Markov model has the one site `x` with that density, and its guide is
# empty. `path_model` tells the story with every state as a site. Pyro can sum these out too, and both agree
# with the sum over all $3^5$ paths:

# %%
with forked_rng(0):
    chain = HiddenMarkov((5,), num_states=3, emission="categorical", levels=3)
    x = chain.sample(4)
with torch.no_grad():
    summed = float(chain.log_likelihood(x).value.sum())
    by_pyro = -TraceEnum_ELBO(max_plate_nesting=1).loss(
        chain.path_model, lambda x: None, x
    )
    paths = torch.tensor(list(itertools.product(range(3), repeat=5)))
    steps = chain.transitions[paths[:, :-1], paths[:, 1:]].log().sum(1)
    log_path = chain.initial[paths[:, 0]].log() + steps
    table = chain.emission.log_prob(
        torch.tensor([[0.0], [0.5], [1.0]])
    ).T  # (K, levels)
    codes = (2 * x).round().long()
    emitted = table[paths[:, None], codes].sum(-1)  # of each path (rows), each sequence
    by_hand = float((log_path[:, None] + emitted).logsumexp(0).sum())
print(
    f"summed {summed:.5f}, by Pyro's enumeration {by_pyro:.5f}, path by path {by_hand:.5f}"
)
assert abs(summed - by_pyro) < 1e-4
assert abs(summed - by_hand) < 1e-4

# %% [markdown]
# A density is one if it sums to 1, and here that can be seen. There are $3^5$ sequences as well:

# %%
everything = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=5)))
with torch.no_grad():
    total = float(chain.log_likelihood(everything).value.double().exp().sum())
print(f"the probabilities of all sequences sum to {total:.7f}")
assert abs(total - 1) < 1e-5

# %% [markdown]
# Where a latent is worth having, it is kept. The site `y` of naive Bayes is the class, and the guide is
# $p(y \mid x)$ itself, which Bayes' rule gives; so the classifier is the guide.

# %% [markdown]
# ## Fit
#
# One call trains them all, each by what suits it: naive Bayes and the tree by counting, which takes one step
# and ends, the hidden Markov model by EM. The digits have two levels here. The hidden Markov model reads
# them row by row, and the tree picks one parent for each pixel.

# %%
digits = datasets.load("digits").binarised()
shape = digits.event_shape


def fit(model, data=digits, **options):
    with forked_rng(0):
        return ppgen.fit(
            model, data.train, validation=data.validation, progress=False, **options
        )


with forked_rng(0):  # some start at random
    models = {
        "naive Bayes": NaiveBayes(shape, num_classes=10, columns="bernoulli"),
        "tree": BayesianNetwork(shape, cardinalities=2),
        "hidden Markov": HiddenMarkov(shape, num_states=30, emission="bernoulli"),
    }
fits = {
    "naive Bayes": fit(models["naive Bayes"]),
    "tree": fit(models["tree"]),
    "hidden Markov": fit(models["hidden Markov"], epochs=60, patience=10),
}
for name, each in fits.items():
    print(f"{name:14}", each)

# %% [markdown]
# Labels train a classifier by the way, though not the best one: naive Bayes takes pixels for
# independent within a class.

# %%
bayes = models["naive Bayes"]
right = (bayes.predict(digits.test.x) == digits.test.y).float()
accuracy, error = mean_and_error(right)
print(f"{accuracy:.3f} ± {error:.3f} of the test digits are classified right")
assert accuracy > 0.7

# %% [markdown]
# And the guide is the posterior itself: $\log p(x, y) - \log q(y \mid x)$ is one number, whichever class y
# one takes, and that number is $\log p(x)$. So the ELBO has no gap and no noise.

# %%
with torch.no_grad():
    weights = bayes.log_joint(digits.test.x) - bayes.classify(digits.test.x).log()
    likelihood = bayes.log_likelihood(digits.test.x).value
finite = weights.isfinite()  # some posteriors are 0 to the last digit of a float
assert torch.allclose(
    weights[finite], likelihood[:, None].expand_as(weights)[finite], atol=1e-3
)

# %% [markdown]
# ### A table with names
#
# Most tables have names in them: of columns, of levels, of classes. `NaiveBayes.of_frame` reads them off a
# DataFrame: numbers become Gaussian columns, booleans Bernoulli ones, text and categories tables; empty cells
# stay empty, and are summed out. The mushrooms of this wood are made up.


# %%
def mushrooms(num, seed):
    generator = torch.Generator().manual_seed(seed)
    toxic = torch.rand(num, generator=generator) < 0.4
    red = torch.rand(num, generator=generator) < torch.where(toxic, 0.6, 0.2)
    ring = torch.rand(num, generator=generator) < torch.where(toxic, 0.8, 0.3)
    height = 7 - 2 * toxic + 1.5 * torch.randn(num, generator=generator)
    frame = pd.DataFrame(
        {
            "colour": ["red" if one else "brown" for one in red],
            "ring": ring.numpy(),
            "height": height.numpy(),
            "kind": ["toxic" if one else "edible" for one in toxic],
        }
    )
    nobody_looked = torch.rand(num, generator=generator) < 0.3
    return frame.assign(colour=frame["colour"].mask(nobody_looked.numpy()))


basket, other_basket = mushrooms(400, seed=0), mushrooms(1000, seed=1)
forager = NaiveBayes.of_frame(basket, label="kind")
ppgen.fit(forager, forager.from_frame(basket), progress=False)
print(forager.classify({"colour": "red", "height": 4.0}).round(3))
found = forager.predict(other_basket)
right = (found == other_basket["kind"]).mean()
print(f"{right:.3f} of another basket are named right, most often '{found.mode()[0]}'")
assert right > 0.75
assert set(found) == {"edible", "toxic"}

# %% [markdown]
# Draws, and what `condition` fills the gaps with, become tables again by `to_frame`.

# %%
rows = forager.from_frame(other_basket.head(6))
filled = forager.condition(rows.x, ~rows.x.isnan(), context=rows.y, seed=0)[0]
forager.to_frame(filled, rows.y)

# %% [markdown]
# A kernel density estimate is fitted by putting a kernel at each datum. Only the width is to be found,
# and the likelihood of each datum under the kernels of all others finds it:

# %%
moons = datasets.load(
    "two-moons", num_train=500, num_validation=100, num_test=300 if small else 1000
)
densities = {}
for kernel in ("gaussian", "epanechnikov"):
    densities[kernel] = KernelDensity(moons.event_shape, kernel=kernel)
    fit(densities[kernel], moons)
    print(f"{kernel:13} width {densities[kernel].bandwidth[0].item():.3f}")
with forked_rng(0):
    mixture = GaussianMixture(moons.event_shape, num_components=2)
fit(mixture, moons)

# %% [markdown]
# ## Look
#
# ### Digits
#
# First what each makes of nothing:

# %%
draws = {name: model.sample(12, seed=0) for name, model in models.items()}
image_rows({"real": digits.test.x[:12], **draws})

# %% [markdown]
# Then what each makes of the upper half of a digit. `condition` draws what is missing given what is there,
# and for these three the draws are exact, from the law that the model has. None was trained for it.

# %%
seen = torch.zeros(shape, dtype=torch.bool)
seen[:, :4] = True
half = digits.test.x[:12]
completed = {
    name: model.condition(half, seen, seed=0)[0] for name, model in models.items()
}
for drawn in completed.values():
    assert torch.equal(
        drawn.masked_select(seen), half.expand_as(drawn).masked_select(seen)
    )
image_rows({"real": half, "shown": half.where(seen, 0.5), **completed})

# %% [markdown]
# ### Two moons
#
# A kernel density estimate follows any shape, and so does its picture. A mixture of two Gaussians cannot
# bend.

# %%
axis = torch.linspace(-2.6, 2.6, 120)
plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
shown = {"kernels": densities["gaussian"], "two Gaussians": mixture}
figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.1), layout="constrained")
masses = {}
for axes, (name, model) in zip(panels, shown.items(), strict=True):
    with torch.no_grad():
        density = model.log_likelihood(plane.reshape(-1, 2)).value.exp()
    masses[name] = float(density.double().sum()) * float(axis[1] - axis[0]) ** 2
    axes.contourf(axis, axis, density.view(120, 120), levels=12, cmap="Blues")
    axes.plot(*moons.train.x[:200].T, ".", color=LIGHT.second, markersize=2)
    axes.set_title(name, fontsize=10)
    axes.set_aspect("equal")
    plain_axes(axes, LIGHT)
plt.show()
print({name: round(mass, 4) for name, mass in masses.items()})
assert abs(masses["kernels"] - 1) < 0.01

# %% [markdown]
# ### A chain of states
#
# A geyser erupts for a short or a long time. Here a short eruption is always followed by a long one, and a
# long one by either. The truth is known, so that what is found can be held against it. The records have
# different lengths, and a fifth of their entries is missing: NaN, at the end for padding
# (`datasets.sequences` does that) and anywhere else for what nobody wrote down.

# %%
num_records = 60 if small else 150
truth = HiddenMarkov((100,), num_states=2)
onward = torch.tensor([[0.0, 1.0], [0.45, 0.55]])  # rows: short, long
truth.set_chain(torch.tensor([0.3, 0.7]), onward)
with torch.no_grad():
    truth.emission.locs.copy_(torch.tensor([[2.0], [4.3]]))
    truth.emission.log_scales.copy_(torch.tensor([[0.4], [0.5]]).log())
with forked_rng(1):
    complete = truth.sample(num_records)
    lengths = torch.randint(40, 101, (num_records,))
    lost = torch.rand(complete.shape) < 0.2
lost.scatter_(
    1, lengths[:, None] - 1, False
)  # a record ends with what was last written
records = [
    x.masked_fill(gone, torch.nan)[:length]
    for x, gone, length in zip(complete, lost, lengths, strict=True)
]
geyser = datasets.sequences(records, num_steps=100, validation=0.1, test=0.3)
print(geyser.event_shape, geyser.values)

# %%
with forked_rng(0):
    eruptions = HiddenMarkov(geyser.event_shape, num_states=2, smoothing=0.0)
print(fit(eruptions, geyser, epochs=50))
with torch.no_grad():
    order = eruptions.emission.locs[:, 0].argsort()  # states have no names of their own
    found = eruptions.transitions[order][:, order]
    visits = eruptions.smooth(geyser.train.x)[..., order].sum((0, 1))
pd.DataFrame(found.numpy().round(3), index=["short", "long"], columns=["short", "long"])

# %% [markdown]
# Within the error that so many visits leave. (States are not seen but inferred, and a fifth not even that,
# which makes errors larger than those of counting; hence a wider margin.)

# %%
error = float((0.45 * 0.55 / visits[1]).sqrt())
print(
    f"p(short after long) = {float(found[1, 0]):.3f} ± {error:.3f}, the truth is 0.45"
)
assert abs(float(found[1, 0]) - 0.45) < 8 * error
assert float(found[0, 0]) < 0.05

# %% [markdown]
# The posterior of the states is exact, missing steps included. There the neighbours decide: after a short one
# comes a long one, seen or not.

# %%
one = geyser.test.x[:1]
chance = eruptions.smooth(one)[0][:, order]
figure, (above, below) = plt.subplots(
    2, 1, figsize=(6.6, 3.2), sharex=True, layout="constrained"
)
end = 40
above.plot(one[0, :end], "o", color=LIGHT.ink, markersize=3.5)
above.set_ylabel("eruption, minutes", fontsize=9.5)
below.step(range(end), chance[:end, 1], where="mid", color=LIGHT.first)
below.set_ylabel("p(long | record)", fontsize=9.5)
below.set_xlabel("step; those in orange are missing", fontsize=9.5)
for axes in (above, below):
    plain_axes(axes, LIGHT)
    for step in one[0, :end].isnan().nonzero()[:, 0].tolist():
        axes.axvspan(step - 0.5, step + 0.5, color=LIGHT.second, alpha=0.2, linewidth=0)
plt.show()

# %% [markdown]
# The likeliest path as a whole is another thing than the likeliest state of each step: it obeys the rules
# of the chain, in which two short eruptions in a row are next to impossible.

# %%
paths, _ = eruptions.viterbi(geyser.test.x)
short = paths == order[0]
twice = int((short[:, 1:] & short[:, :-1]).sum())
print(f"{int(short.sum())} short eruptions, {twice} right after another")
assert twice == 0

# %% [markdown]
# Is "60 %" right six times in ten? For new records that the truth makes, the states are known as well, so it
# can be counted at the steps that are missing.

# %%
with forked_rng(2), torch.no_grad():
    states = truth.distribution().sample_states(torch.Size([400]), 100)
    whole = truth.emission.sample(states)[..., 0]
    lost = torch.rand(whole.shape) < 0.2
    lost[:, -1] = False
chance = eruptions.smooth(whole.masked_fill(lost, torch.nan))[..., order[1]][lost]
long = (states[lost] == 1).float()
for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01)):
    group = (chance >= low) & (chance < high)
    said, (was, off) = float(chance[group].mean()), mean_and_error(long[group])
    print(f"said {said:.3f}, was {was:.3f} ± {off:.3f}  ({int(group.sum())} steps)")
mean, off = mean_and_error(long - chance)
print(f"difference {mean:+.4f} ± {off:.4f}")
assert abs(mean) < 5 * math.hypot(off, error)

# %% [markdown]
# ### A chain of vectors
#
# With a vector for a state and Gaussian noise everywhere, sums become integrals and stay exact: the Kalman
# filter. Here a river's level drifts, is measured with noise, and for twenty years is not measured at all.

# %%
num_rivers, num_years = 20, 100
with forked_rng(0):
    level = 10 + torch.randn(num_rivers, num_years).mul(0.4).cumsum(1)
    flow = level + torch.randn(num_rivers, num_years)
flow[:, 45:65] = torch.nan
river = datasets.from_arrays(flow, missing=True, validation=2, test=2)
with forked_rng(0):
    drift = LinearGaussianStateSpace(river.event_shape, latent_dim=1)
print(fit(drift, river, epochs=30 if small else 60))
means, variances = drift.smooth(flow)
with torch.no_grad():
    known = drift.chain
    guess = known.offset + (means @ known.loading.T)[..., 0]
    spread = (known.loading @ variances @ known.loading.T)[..., 0, 0].sqrt()
ahead, doubt = drift.forecast(flow, 15)
reach = 1.96 * doubt[..., 0, 0].sqrt()

# %%
figure, axes = plt.subplots(figsize=(6.6, 2.6), layout="constrained")
plain_axes(axes, LIGHT)
low, high = (guess - 1.96 * spread)[0], (guess + 1.96 * spread)[0]
axes.fill_between(range(num_years), low, high, color=LIGHT.first, alpha=0.2, lw=0)
axes.plot(guess[0], color=LIGHT.first, label="level, as inferred")
after = range(num_years, num_years + 15)
axes.fill_between(
    after,
    ahead[0] - reach[0],
    ahead[0] + reach[0],
    color=LIGHT.second,
    alpha=0.15,
    lw=0,
)
axes.plot(after, ahead[0], "--", color=LIGHT.second, label="forecast")
axes.plot(level[0], color=LIGHT.second, linewidth=1, label="level, the truth")
axes.plot(flow[0], ".", color=LIGHT.ink, markersize=3, label="measured")
axes.set_xlabel("year", fontsize=9.5)
axes.set_ylabel("level of the river", fontsize=9.5)
axes.legend(
    frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1)
)
plt.show()

# %% [markdown]
# The band widens where nothing was measured, and holds the truth about as often as it says, 95 times in
# 100. (It takes the fitted parameters for the true ones, so it is a little too narrow, if anything.) The
# dashes are what will be measured next: `forecast` gives exact means and variances, `predict` draws.

# %%
inside = ((level - guess).abs() < 1.96 * spread).float().mean(1)
cover, error = mean_and_error(inside)
print(f"covered {cover:.3f} ± {error:.3f}")
assert float(spread[:, 50:60].mean()) > 1.5 * float(spread[:, 20:30].mean())
assert abs(cover - 0.95) < 5 * error
assert bool((reach[:, 1:] > reach[:, :-1]).all())  # further ahead, less is known

# %% [markdown]
# ## What its likelihood means
#
# On the same binary digits the first three have the same unit, nats a digit, and each figure is exact. So
# they can be compared with each other, and with any other exact likelihood of these pixels. Independent
# pixels stand beside them as the least that one should expect.

# %%
independent = NaiveBayes(shape, num_classes=1, columns="bernoulli")
with forked_rng(0):
    ppgen.fit(independent, digits.train.x, progress=False)
nats = {}
for name, model in {"independent pixels": independent, **models}.items():
    with torch.no_grad():
        estimate = model.log_likelihood(digits.test.x)
    assert estimate.kind == ppgen.Kind.EXACT
    nats[name] = estimate.value
least = nats["independent pixels"]
rows = {}
for name, values in nats.items():
    mean, error = mean_and_error(values)
    gain, gain_error = mean_and_error(values - least)
    rows[name] = {"log p": mean, "error": error, "gain": gain, "its error": gain_error}
    if name != "independent pixels":
        assert gain > 5 * gain_error
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# A gain is the mean of what each digit gains, and its error that of these differences: what makes a digit
# hard for all models alike drops out.
#
# These families sum NaN out, so their likelihood of a half is exact as well, and says how well the upper half
# predicts the lower one: $\log p(\text{lower} \mid \text{upper}) = \log p(x) - \log p(\text{upper})$.

# %%
upper = digits.test.x.masked_fill(~seen, torch.nan)
for name in ("independent pixels", "naive Bayes", "tree", "hidden Markov"):
    model = independent if name == "independent pixels" else models[name]
    with torch.no_grad():
        rest = nats[name] - model.log_likelihood(upper).value
    mean, error = mean_and_error(rest)
    print(f"{name:19} log p(lower | upper) = {mean:.2f} ± {error:.2f} nats")
    assert bool((rest <= 1e-3).all())

# %% [markdown]
# A kernel density has an exact likelihood, with a trap of its own. Compact kernels reach no further than
# their width, and one datum that none of them reaches makes the mean of logarithms $-\infty$.
# Cross-validation guards against that by making them wide enough for the loneliest of the training data, and
# all others pay for it.

# %%
rows = {}
with torch.no_grad():
    for name, model in {**densities, "two Gaussians": mixture}.items():
        rows[name] = model.log_likelihood(moons.test.x).value
    far = torch.tensor([[5.0, 5.0]])
    edge = {
        name: float(model.log_likelihood(far).value)
        for name, model in densities.items()
    }
reached = rows["epanechnikov"].isfinite()
print(f"{int((~reached).sum())} points out of reach, left out")
for name, values in rows.items():
    mean, error = mean_and_error(values[reached])
    print(f"{name:13} {mean:.3f} ± {error:.3f} nats a point")
gain, error = mean_and_error(rows["gaussian"] - rows["two Gaussians"])
assert gain > 5 * error
lost, error = mean_and_error(rows["gaussian"][reached] - rows["epanechnikov"][reached])
assert lost > 5 * error
assert edge["epanechnikov"] == -math.inf
assert math.isfinite(edge["gaussian"])

# %% [markdown]
# | family | its number | also says | missing values |
# |---|---|---|---|
# | `NaiveBayes` | exact, of x or of x with its label | class, exact | summed out |
# | `BayesianNetwork` | exact | effects of interventions, counterfactuals | summed out |
# | `HiddenMarkov` | exact, of a whole sequence | states, likeliest path | summed out |
# | `LinearGaussianStateSpace` | exact, a density | states with their error | integrated out |
# | `KernelDensity` | exact, a density | nothing more | drawn by `condition` |
#
# Two things not to do: compare the density of real numbers with the probability of levels; compare the
# likelihood of rows together with their labels with that of the rows alone.
#
# ## When to choose it
#
# - **Naive Bayes** for a first classifier, few data, labels for some of them only, holes in the table.
# - **A Bayesian network** where the question is what depends on what, or what an intervention does:
#   [](sachs.py) finds the graph, [](do.py) asks it *what if*.
# - **A hidden Markov model** for sequences of any length with a few regimes, and for what is missing in
#   them. What lies further apart than the states remember is lost on it.
# - **A state-space model** for smooth paths measured with noise: tracking, filling gaps, forecasts with
#   errors.
# - **A kernel density** for up to about five dimensions with no idea of a shape. Beyond, take a flow.
#
# Where no direction is natural, or labels are wanted *given* features, [random fields](random_fields.py) are
# the place to look. [](../how-to/choose-a-family.md) has the other families beside these.
#
# ## Exercises
#
# 1. Give naive Bayes the labels of fifty digits only (the others are -1) and compare its accuracy with that
#    of one trained on the fifty alone. When does it help to have the rest?
# 2. How many states does the geyser have? Fit 1, 2, 3 and 4 and compare test likelihoods, with errors of the
#    differences. What do the additional states do?
# 3. Fit `KernelDensity` to the digits with real-valued pixels, and compare its bits with those of a mixture
#    in [](first_steps.py). Which way does the width go when the dimension grows?
