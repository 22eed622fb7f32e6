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
# # Random fields: labels that hang together, and a magnet
#
# A graph without arrows says which variables lean on each other, and not which comes first. Each edge has a
# number for every pair of values, high where the two go well together. This page shows two families of
# this kind, a chain of labels given features and a field over any graph, and says what the number that
# comes out means. Graphs with arrows are those of [graphical models](graphical_models.py).

# %%
import itertools
import math
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import ppgen
from ppgen import datasets
from ppgen.models import LinearChainCRF, MarkovRandomField, NaiveBayes
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
# | `LinearChainCRF` | an undirected chain of labels, given features | nothing | labels of a sequence |
# | `MarkovRandomField` | any undirected graph | nothing, but all of it for Z | levels on sites |
#
# Without arrows, $p(x) = \frac{1}{Z} \prod_{ij} \psi_{ij}(x_i, x_j)$, and factors are any positive numbers.
# They are no probabilities, and only $Z$, the sum of the product over all x, makes one of them: it is $Z$
# that costs. On a chain it is a sum from step to step. On a grid its cost grows exponentially with the
# shorter side, and on a large torus it has to be estimated.
#
# The conditional random field has a $Z$ for each row of features f:
# $p(y \mid f) = \frac{1}{Z(f)} \exp \bigl( \sum_t u(y_t, f_t) + \sum_t V(y_{t-1}, y_t) \bigr)$.
# The Ising model is the simplest field: its sites are spins, $s_i = 2 x_i - 1$, and
# $p(x) = \frac{1}{Z} \exp \bigl( \sum_i h_i s_i + \sum_{ij} J_{ij} s_i s_j \bigr)$.

# %% [markdown]
# ## The pair
#
# Every family is a Pyro `model` and `guide`. Nothing is unseen here, so `model` has the one site `x` and the
# guide is empty. For the conditional random field `x` is the labels, and features are its context. With three
# labels and five steps there are $3^5$ sequences of labels, so the sum can be done by hand:

# %%
with forked_rng(0):
    crf = LinearChainCRF((5,), num_labels=3, num_features=2)
    for parameter in crf.parameters():
        parameter.data.normal_()
    given = torch.randn(1, 5, 2)
paths = torch.tensor(list(itertools.product(range(3), repeat=5)))
with torch.no_grad():
    unary = given[0] @ crf.weights.T + crf.biases
    score = unary[torch.arange(5), paths].sum(1)
    score += crf.transitions[paths[:, :-1], paths[:, 1:]].sum(1)
    score += crf.first[paths[:, 0]] + crf.last[paths[:, -1]]
    by_hand = score - score.logsumexp(0)
    log_p = crf.log_likelihood(paths.float(), given.expand(len(paths), 5, 2)).value
print(f"the probabilities of all labels sum to {float(log_p.double().exp().sum()):.7f}")
assert torch.allclose(log_p, by_hand, atol=1e-4)
assert abs(float(log_p.double().exp().sum()) - 1) < 1e-5

# %% [markdown]
# The same for a field on a grid of 3 × 3 sites, which has $2^9$ pictures. `energy` is minus the exponent, so
# $\log Z$ is the logarithm of the sum of $e^{-E}$:

# %%
with forked_rng(0):
    grid = MarkovRandomField((3, 3))
    for parameter in grid.parameters():
        parameter.data.normal_()
spots = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 3, 3)
with torch.no_grad():
    by_hand = float((-grid.energy(spots)).logsumexp(0))
    by_elimination = float(grid.log_partition().value)
    total = float(grid.log_likelihood(spots).value.double().exp().sum())
print(f"log Z {by_elimination:.5f}, picture by picture {by_hand:.5f}")
print(f"the probabilities of all pictures sum to {total:.7f}")
assert abs(by_elimination - by_hand) < 1e-4
assert abs(total - 1) < 1e-5

# %% [markdown]
# ## Fit
#
# The same call trains both. A field on a grid of 8 × 8 pixels is narrow enough for its exact likelihood, and
# is fitted by the gradients of it. The digits have two levels here, and each pixel leans on its four
# neighbours. Independent pixels stand beside it as the least that one should expect.

# %%
digits = datasets.load("digits").binarised()
shape = digits.event_shape
ising = MarkovRandomField(shape)
independent = NaiveBayes(shape, num_classes=1, columns="bernoulli")
with forked_rng(0):
    fitted = ppgen.fit(
        ising,
        digits.train,
        validation=digits.validation,
        epochs=2 if small else 8,
        batch_size=200,
        learning_rate=0.1,
        progress=False,
    )
    ppgen.fit(independent, digits.train.x, progress=False)
print(fitted)

# %% [markdown]
# A conditional random field spends nothing on the features: it is $p(\text{labels} \mid \text{features})$
# and no more. Let words of eight digits count upwards, with a jump now and then; every letter is a picture
# of the digit. The field reads a word at once, and the same field with words of one letter cannot know what
# stands beside it. The likelihood is concave, and L-BFGS climbs it.

# %%
pictures = datasets.load("digits")


def words(split, num, seed):
    """Labels (num, 8) that go up by one, or jump with probability 0.3, and a picture of each."""
    with forked_rng(seed):
        labels = [torch.randint(10, (num,))]
        for _ in range(7):
            jump = torch.rand(num) < 0.3
            labels.append(
                torch.where(jump, torch.randint(10, (num,)), (labels[-1] + 1) % 10)
            )
        labels = torch.stack(labels, 1)
        place = torch.rand(labels.shape)
        chosen = torch.zeros_like(labels)
        for k in range(10):
            every = (split.y == k).nonzero()[:, 0]
            at = labels == k
            chosen[at] = every[(place[at] * len(every)).long()]
    return labels.float(), split.x.flatten(1)[chosen]


y, features = words(pictures.train, 60 if small else 150, seed=0)
new_y, new_features = words(pictures.test, 200, seed=1)
reader = LinearChainCRF((8,), num_labels=10, num_features=64)
speller = LinearChainCRF((1,), num_labels=10, num_features=64)
rounds = 25 if small else 40
print(ppgen.fit(reader, (y, features), epochs=rounds, progress=False))
print(
    ppgen.fit(
        speller,
        (y.reshape(-1, 1), features.reshape(-1, 1, 64)),
        epochs=rounds,
        progress=False,
    )
)

# %% [markdown]
# ## Look
#
# ### Digits
#
# First what the field makes of nothing, then what it makes of the upper half of a digit. `condition` draws
# what is missing given what is there, and the draws are exact. It was not trained for it. Neighbours alone
# make strokes, but no digits: what lies further apart is joined only through all that lies between.

# %%
seen = torch.zeros(shape, dtype=torch.bool)
seen[:, :4] = True
half = digits.test.x[:12]
completed = ising.condition(half, seen, seed=0)[0]
assert torch.equal(completed[:, seen], half[:, seen])
image_rows(
    {
        "real": half,
        "drawn": ising.sample(12, seed=0),
        "shown": half.where(seen, 0.5),
        "completed": completed,
    }
)

# %% [markdown]
# ### Labels that hang together
#
# How many letters of new words are read right, and how likely the right labels are, for the whole words and
# letter by letter:

# %%
apart = new_features.reshape(-1, 1, 64)
with torch.no_grad():
    nats = {
        "whole words": reader.log_likelihood(new_y, new_features).value,
        "letter by letter": speller.log_likelihood(new_y.reshape(-1, 1), apart)
        .value.view(-1, 8)
        .sum(1),
    }
    read = {
        "whole words": reader.viterbi(new_features)[0],
        "letter by letter": speller.viterbi(apart)[0].view(-1, 8),
    }
correct = {name: (labels == new_y).float().mean(1) for name, labels in read.items()}
for name in read:
    share, likely = mean_and_error(correct[name]), mean_and_error(nats[name])
    print(
        f"{name:16} {share[0]:.3f} ± {share[1]:.3f} letters right, "
        f"log p(labels | pictures) {likely[0]:.2f} ± {likely[1]:.2f} nats a word"
    )
for found in (correct, nats):
    gain, error = mean_and_error(found["whole words"] - found["letter by letter"])
    assert gain > (2 if small else 4) * error

# %% [markdown]
# A word where the two differ:

# %%
rescued = correct["whole words"] - correct["letter by letter"]
best = int(rescued.argmax())
figure, panels = plt.subplots(1, 8, figsize=(6, 1.35), layout="constrained")
for t, axes in enumerate(panels):
    axes.imshow(new_features[best, t].view(8, 8), cmap="gray_r")
    whole, letter = (int(read[name][best, t]) for name in read)
    axes.set_title(
        f"{whole}" if whole == letter else f"{whole}, not {letter}", fontsize=8
    )
    axes.axis("off")
plt.show()
assert rescued[best] > 0

# %% [markdown]
# ### A field at its critical point
#
# The Ising model on a torus is the oldest field of all. Its couplings at the critical point make patches of
# all sizes, and Gibbs sampling, pixel by pixel, takes long to turn over a large one. Swendsen and Wang flip
# whole clusters. Both leave the same law in place; here both start from all spins up.

# %%
side, num_chains, num_moves = (16, 24, 40) if small else (32, 48, 60)
critical = math.log(1 + math.sqrt(2)) / 2
magnet = MarkovRandomField((side, side), graph="torus", tied=True)
with torch.no_grad():
    magnet.coupling.fill_(critical)
moves = {"Gibbs": magnet.gibbs, "Swendsen–Wang": magnet.swendsen_wang}
magnetisation, states = {}, {}
for name, move in moves.items():
    x = torch.ones(num_chains, side, side)
    trace = []
    for step in range(num_moves):
        x = move(x, 1, seed=step)
        trace.append((2 * x - 1).mean((1, 2)))
    magnetisation[name], states[name] = torch.stack(trace), x
figure, (left, *pictured) = plt.subplots(
    1, 3, figsize=(6.8, 2.4), layout="constrained", width_ratios=(1.5, 1, 1)
)
plain_axes(left, LIGHT)
for (name, trace), colour in zip(
    magnetisation.items(), (LIGHT.first, LIGHT.second), strict=True
):
    left.plot(trace.abs().mean(1), color=colour, label=name)
left.set_xlabel("move", fontsize=9)
left.set_ylabel("mean |magnetisation|", fontsize=9)
left.legend(frameon=False, fontsize=8)
for axes, (name, x) in zip(pictured, states.items(), strict=True):
    axes.imshow(x[0], cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(name, fontsize=9)
    axes.set(xticks=[], yticks=[])
plt.show()

# %%
remembered = {name: mean_and_error(trace[-1]) for name, trace in magnetisation.items()}
for name, (mean, error) in remembered.items():
    print(f"{name:14} after {num_moves} moves: magnetisation {mean:+.3f} ± {error:.3f}")
assert remembered["Gibbs"][0] > 5 * remembered["Gibbs"][1]
assert abs(remembered["Swendsen–Wang"][0]) < 5 * remembered["Swendsen–Wang"][1]

# %% [markdown]
# Up and down are alike in this model, so the mean is 0. Gibbs sampling still remembers where it began.

# %% [markdown]
# ## What its likelihood means
#
# On the binary digits the field's likelihood is exact, in nats a digit. So it can be compared with any other
# exact likelihood of these pixels, such as those of [graphical models](graphical_models.py).

# %%
nats = {}
for name, model in {"independent pixels": independent, "Ising field": ising}.items():
    with torch.no_grad():
        estimate = model.log_likelihood(digits.test.x)
    assert estimate.kind == ppgen.Kind.EXACT
    nats[name] = estimate.value
gain, error = mean_and_error(nats["Ising field"] - nats["independent pixels"])
print(f"the field gains {gain:.2f} ± {error:.2f} nats a digit")
assert gain > 5 * error
table = {name: mean_and_error(values) for name, values in nats.items()}
pd.DataFrame(table, index=["log p", "error"]).T.round(2)

# %% [markdown]
# The gain is the mean of what each digit gains, and its error that of these differences: what makes a digit
# hard for both models alike drops out.

# %% [markdown]
# A field has a likelihood only as far as it has Z. On small grids Z is summed; a larger torus leaves the
# density `unnormalised`: up to a constant, good for comparing two pictures under one model and for nothing
# else. Annealed importance sampling brings it back, from both sides. For the Ising model on a torus Kaufman
# (1949) found Z in closed form, so the two can be held against the truth:


# %%
def kaufman(side, coupling):
    """Log Z of the Ising model without a field on a torus, side an even number."""
    r = torch.arange(2 * side, dtype=torch.float64)
    double = 2 * coupling
    angles = torch.cos(math.pi * r / side)
    gamma = torch.acosh(math.cosh(double) ** 2 / math.sinh(double) - angles)
    gamma[0] = double + math.log(math.tanh(coupling))
    half = side * gamma / 2
    terms, signs = [], []
    for part in (half[1::2], half[::2]):
        terms += [torch.log(2 * torch.cosh(part)).sum()]
        terms += [torch.log(2 * torch.sinh(part).abs()).sum()]
        signs += [1.0, float(torch.sign(part).prod())]
    terms, signs = torch.stack(terms), torch.tensor(signs)
    log_sum = terms.max() + (signs * (terms - terms.max()).exp()).sum().log()
    return float(side**2 / 2 * math.log(2 * math.sinh(double)) - math.log(2) + log_sum)


torus = MarkovRandomField((12, 12), graph="torus", tied=True)
with torch.no_grad():
    torus.coupling.fill_(0.3)
assert torus.density == ppgen.Kind.UNNORMALISED
log_z = torus.log_partition(
    method="ais",
    num_chains=32 if small else 64,
    num_temperatures=100 if small else 200,
    num_gibbs_steps=100,
    seed=0,
)
exact = kaufman(12, 0.3)
print(f"from below {log_z.value:.3f} ± {log_z.std_error:.3f}  ({log_z.kind})")
print(
    f"from above {log_z.upper.value:.3f} ± {log_z.upper.std_error:.3f}  ({log_z.upper.kind})"
)
print(f"Kaufman    {exact:.3f}")
assert float(log_z.value) < exact + 5 * float(log_z.std_error)
assert float(log_z.upper.value) > exact - 5 * float(log_z.upper.std_error)

# %% [markdown]
# The way back begins at draws that are not exact here, only ends of chains. So it is called an `estimate`,
# not a bound. And a log Z from below makes a log-likelihood from *above*: it flatters the model.
#
# The likelihood of a conditional random field is exact, and that of labels *given* features. It says nothing
# of how likely the pictures are.
#
# | family | its number | also says | missing values |
# |---|---|---|---|
# | `LinearChainCRF` | exact, of labels *given* features | labels, likeliest labels | of labels: summed out |
# | `MarkovRandomField` | exact on narrow graphs, else bounds | energies, marginals | drawn by `condition` |
#
# Two things not to do: compare a CRF's likelihood with that of a model of pictures; call an `unnormalised`
# figure a likelihood.
#
# ## When to choose it
#
# - **A CRF** where labels of a sequence are wanted and features are many and overlap. It makes no
#   features, and needs labels (not all).
# - **A Markov random field** where neighbours matter and no direction does: textures, lattices, images as
#   labels.
#
# Where one variable comes before another, or something unseen explains what is seen,
# [graphical models](graphical_models.py) with arrows need no $Z$.
# [](../how-to/choose-a-family.md) has the other families beside these.
#
# ## Exercises
#
# 1. Remove 80 % of the labels in `y` (make them NaN) and fit the CRF again. How much is lost?
# 2. Make the coupling of the torus 0.2 and 0.6. At which does Swendsen–Wang gain least on Gibbs, and why?
# 3. Give the field of the digits the graph `"torus"`, which joins opposite borders. Is its likelihood still
#    exact, and does it gain?
