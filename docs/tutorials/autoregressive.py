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
# # Autoregressive models
#
# Say what comes first, then what comes next given that, and so on to the end. Any distribution can be
# written like this, the density is exact, and it takes one pass of a network. The price is paid in
# sampling, which goes step by step. Five families of ppgen are of this kind. This page fits three of them to
# digits; [Autoregressive models of text and series](text_and_series.py) has the other two, on data whose
# true density is known.

# %%
import itertools
import math
import os

import pandas as pd
import pyro
import torch
from pyro.infer import Trace_ELBO

import ppgen
from ppgen import datasets
from ppgen.errors import CapabilityError
from ppgen.models import MADE, PixelCNN, PixelRNN
from ppgen.ops.random import forked_rng
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
# $$ p(x) = p(x_1)\, p(x_2 \mid x_1) \cdots = \prod_i p(x_i \mid x_1, \dots, x_{i-1}) $$
#
# is true of every distribution and in every order. A family is a way to get all these conditionals out of one
# network, in which nothing may look ahead:
#
# | family | what keeps it from looking ahead | suits |
# |---|---|---|
# | `MADE` | masks on the weights of a perceptron; several orders, averaged | vectors, rows of a table |
# | `PixelCNN` | convolutions that see above and to the left | images |
# | `PixelRNN` | a memory that runs over the image, by rows or by diagonals | small images |
# | `WaveNet` | convolutions that see the past, each layer twice as far | series, sound |
# | `Transformer` | attention to what came before | text, anything with few levels |
#
# The last two are on the page on [text and series](text_and_series.py).
#
# What a conditional is, is a separate choice: one probability a level, a mixture of logistics cut into many
# levels, or a mixture of Gaussians for real numbers.

# %% [markdown]
# ## The pair
#
# Nothing is latent, so the Pyro `model` has the one site `x` and the guide is empty. The ELBO is then the
# log-likelihood itself. Here are three families with weights at random, on images of 2 × 2 pixels and
# three levels:


# %%
def shaken(model, scale=0.3):
    """The model with noise on its weights: some families start out uniform, which proves nothing."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn_like(weight))
    return model.eval()


tiny = (1, 2, 2)
with forked_rng(0):
    toys = {
        "MADE": MADE(tiny, hidden=(8,), levels=3),
        "MADE, 4 orders": MADE(tiny, hidden=(8,), levels=3, num_orders=4),
        "PixelCNN": PixelCNN(tiny, levels=3, num_layers=2, num_channels=4),
        "PixelRNN": PixelRNN(tiny, levels=3, layout="diagonal", num_channels=4),
    }
    toys = {name: shaken(model) for name, model in toys.items()}
    trace = pyro.poutine.trace(toys["PixelCNN"].model).get_trace(num=5)
print(trace.stochastic_nodes, tuple(trace.nodes["x"]["value"].shape))

# %% [markdown]
# There are $3^4 = 81$ such images. A density is one if it sums to 1, and here that can be seen, for one order
# and for the average of several:

# %%
images = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4)))
masses = {}
for name, model in toys.items():
    x = images.view(-1, *model.event_shape)
    with torch.no_grad():
        found = model.log_likelihood(x)
        elbo = -Trace_ELBO().loss(model.model, model.guide, x)
    masses[name] = found.value.double().exp()
    print(
        f"{name:15}{found.kind.value}, {masses[name].min():.5f} to {masses[name].max():.3f}, "
        f"sum {masses[name].sum():.7f}"
    )
    assert abs(float(masses[name].sum()) - 1) < 1e-5
    assert abs(elbo - float(found.value.sum())) < 1e-2

# %% [markdown]
# And the sampler draws from that very density. Of all images that should come up twenty times or more,
# the one that is furthest off, in standard errors of its frequency:

# %%
num_draws = 5_000 if small else 20_000
worst = {}
for name, model in toys.items():
    levels = (2 * model.sample(num_draws, seed=1)).round().long().flatten(1)
    number = levels @ torch.tensor([27, 9, 3, 1])  # the row of `images`
    share = number.bincount(minlength=81).double() / num_draws
    p = masses[name]
    away = (share - p).abs() / (p * (1 - p) / num_draws).sqrt()
    worst[name] = float(away[p * num_draws > 20].max())
    assert worst[name] < 6
{name: round(value, 1) for name, value in worst.items()}

# %% [markdown]
# ## Fit
#
# ### Digits of two levels
#
# One call trains each, by maximum likelihood. MADE comes twice: in the order of the pixels, and with
# eight orders, of which each batch is given one at random.

# %%
digits = datasets.load("digits")
binary = digits.binarised()
shape = binary.event_shape


def fit(model, data, *, batch_size=64, **options):
    """Train with steps that shrink to nothing."""
    result = ppgen.fit(
        model,
        data.train,
        validation=data.validation,
        batch_size=batch_size,
        schedule="cosine",
        progress=False,
        **options,
    )
    print(f"{type(model).__name__:12}{result}")


with forked_rng(0):  # the first weights are drawn
    models = {
        "MADE": MADE(shape, hidden=(300,), dropout=0.2),
        "MADE, 8 orders": MADE(shape, hidden=(500,), num_orders=8, dropout=0.2),
        "PixelCNN": PixelCNN(shape, num_layers=3, num_channels=16, dropout=0.1),
        "PixelRNN": PixelRNN(shape, layout="row", num_layers=2),
    }
fit(models["MADE"], binary, epochs=6 if small else 40, learning_rate=3e-3)
fit(models["MADE, 8 orders"], binary, epochs=6 if small else 60, learning_rate=3e-3)
for name, epochs in (("PixelCNN", 8), ("PixelRNN", 6)):
    fit(
        models[name],
        binary,
        batch_size=32,
        epochs=1 if small else epochs,
        learning_rate=1e-2,
    )

# %% [markdown]
# ### Digits of 17 levels, given their class
#
# With `context_dim=10` all conditionals are given the label too. `fit` finds it in `digits.train.y`.

# %%
with forked_rng(0):
    by_class = PixelCNN(
        shape, levels=17, num_layers=3, num_channels=16, dropout=0.1, context_dim=10
    )
fit(by_class, digits, batch_size=32, epochs=1 if small else 8, learning_rate=1e-2)

# %% [markdown]
# ## Look
#
# ### Digits

# %%
samples = {name: model.sample(12, seed=0) for name, model in models.items()}
image_rows({"real": binary.test.x[:12], **samples})

# %% [markdown]
# Given the class, 0 to 9, in 17 levels:

# %%
classes = torch.arange(10)
image_rows(
    {f"draw {i + 1}": by_class.sample(10, context=classes, seed=i) for i in range(3)}
)

# %% [markdown]
# What is drawn for a class must be of that class. Bayes' rule makes a classifier of ten densities,
# $p(y \mid x) \propto p(x \mid y)$:

# %%
tested = digits.test.x[:100] if small else digits.test.x
label = digits.test.y[: len(tested)]
with torch.no_grad():
    each = [
        by_class.log_likelihood(tested, torch.full((len(tested),), y)).value
        for y in range(10)
    ]
right, error = mean_and_error(torch.stack(each, 1).argmax(1) == label)
print(f"{right:.3f} ± {error:.3f} of the test digits are given their class")
assert small or right - 5 * error > 0.5

# %% [markdown]
# ### The rest of a digit
#
# What comes first in the order can be given, and the rest drawn: that is only the sampler, started later, and
# the draws are exact. The upper half comes first in the order of the pixels.

# %%
upper = torch.zeros(shape, dtype=torch.bool)
upper[:, :4] = True
half = binary.test.x[:12]
ends = {"MADE": 1, "PixelCNN": 3, "PixelRNN": 1}
completed = {
    name if num == 1 else f"{name} {i + 1}": drawn
    for name, num in ends.items()
    for i, drawn in enumerate(models[name].condition(half, upper, num=num, seed=0))
}
image_rows({"real": half, "shown": half.where(upper, 0.5), **completed})

# %% [markdown]
# Completions should be nearer to the true lower half than lower halves drawn without looking:

# %%
seen = binary.test.x[:100] if small else binary.test.x
looking = models["PixelCNN"].condition(seen, upper, num=4, seed=0)
blind = models["PixelCNN"].sample(4 * len(seen), seed=1).view_as(looking)
wrong = [
    (drawn - seen)[..., 4:, :].abs().mean((0, 2, 3, 4)) for drawn in (looking, blind)
]
gain, error = mean_and_error(wrong[1] - wrong[0])
print(
    f"wrong pixels: {wrong[0].mean():.3f} with the upper half, {wrong[1].mean():.3f} without"
)
assert bool((looking == seen)[..., :4, :].all())
assert small or gain > 5 * error

# %% [markdown]
# The other way round, the upper half from the lower, is not a beginning. It would need a sum over all
# $2^{32}$ upper halves, and is refused rather than guessed. So is a half for a model that averages orders:
# no part comes first in all of them.

# %%
for name, mask in (("PixelCNN", ~upper), ("MADE, 8 orders", upper)):
    try:
        models[name].condition(half, mask)
    except CapabilityError as refusal:
        print(f"{name}: {str(refusal).split(';')[0]}")
    else:
        raise AssertionError(f"{name} conditions on what is no beginning")

# %% [markdown]
# ### A hole in a digit
#
# A few missing pixels are another matter, wherever they are. Eight of them have $2^8 = 256$ values, and the
# density of each is known. All are tried, and one is drawn in proportion, which is exact again:

# %%
hole = torch.zeros(shape, dtype=torch.bool)
hole[:, 3:5, 2:6] = True
mended = {
    name: models[name].condition(half, ~hole, seed=0)[0]
    for name in ("MADE, 8 orders", "PixelCNN")
}
image_rows({"real": half, "shown": half.where(~hole, 0.5), **mended})

# %%
orders = models["MADE, 8 orders"]
looking = orders.condition(seen, ~hole, num=4, seed=0)
blind = orders.sample(4 * len(seen), seed=1).view_as(looking)
wrong = [(drawn - seen)[..., hole].abs().mean((0, 2)) for drawn in (looking, blind)]
gain, error = mean_and_error(wrong[1] - wrong[0])
print(
    f"wrong pixels: {wrong[0].mean():.3f} given what is around, {wrong[1].mean():.3f} not"
)
assert bool((looking == seen)[..., ~hole].all())
assert small or gain > 5 * error

# %% [markdown]
# ### An image as a context
#
# The upper half from the lower can be learnt, if it is what one wants. With `context_channels=1` a model is
# given an image beside each x, and each pixel is told what is around it there, on all sides. Let the context
# be the lower half, and grey where it is not known:


# %%
def lower_half(x):
    return x.where(~upper, 0.5)


with forked_rng(0):
    upwards = PixelCNN(
        shape, num_layers=3, num_channels=16, dropout=0.1, context_channels=1
    )
told = {
    part: (split.x, lower_half(split.x))
    for part, split in (("train", binary.train), ("validation", binary.validation))
}
result = ppgen.fit(
    upwards,
    told["train"],
    validation=told["validation"],
    batch_size=32,
    epochs=1 if small else 8,
    learning_rate=1e-2,
    schedule="cosine",
    progress=False,
)
print(result)
image_rows(
    {
        "real": half,
        "shown": lower_half(half),
        **{
            f"draw {i + 1}": upwards.sample(12, lower_half(half), seed=i)
            for i in range(3)
        },
    }
)

# %%
looking = upwards.sample(len(seen), lower_half(seen), seed=0)
blind = models["PixelCNN"].sample(len(seen), seed=1)
wrong = [(drawn - seen)[:, upper].abs().mean(1) for drawn in (looking, blind)]
gain, error = mean_and_error(wrong[1] - wrong[0])
print(
    f"wrong pixels: {wrong[0].mean():.3f} with the lower half, {wrong[1].mean():.3f} without"
)
assert small or gain > 5 * error

# %% [markdown]
# ## What its likelihood means
#
# ### Digits
#
# The likelihood is exact, so that figures of different families stand in one table without a word of caution.
# Beside them the trivial model, in which every pixel has its own share of ink and knows of no other.

# %%
inked = (binary.train.x.sum(0) + 1) / (len(binary.train) + 2)
each = {
    "independent pixels": -torch.distributions.Bernoulli(inked).log_prob(binary.test.x)
}
each = {name: values.flatten(1).sum(1) for name, values in each.items()}
for name, model in models.items():
    with torch.no_grad():
        each[name] = -model.log_likelihood(binary.test.x).value
rows = {}
for name, values in each.items():
    better, error = mean_and_error(each["independent pixels"] - values)
    rows[name] = [*mean_and_error(values), better, error]
    assert small or name == "independent pixels" or better > 5 * error
pd.DataFrame(
    rows, index=["nats a digit", "±", "better than independent by", "± "]
).T.round(2)

# %% [markdown]
# Differences on the same digits have smaller errors than the figures themselves, because hard digits are hard
# for all.
#
# ### Order matters
#
# The chain rule holds in every order. But a network is not equally good at all of them, and each order is a
# model of its own:

# %%
with torch.no_grad():
    by_order = -orders.log_prob_by_order(binary.test.x)  # (orders, digits)
together = each["MADE, 8 orders"]
for number, values in enumerate(by_order):
    mean, error = mean_and_error(values - together)
    name = "pixels in turn" if number == 0 else f"shuffled {number}"
    print(
        f"{name:15}{values.mean():.2f} nats, {mean:.2f} ± {error:.2f} above the average of all"
    )
assert bool((together <= by_order.mean(0) + 1e-3).all())
assert mean_and_error(by_order.mean(0) - together)[0] > 0

# %% [markdown]
# Averaging the *probabilities* of all orders is again a density, and for each single digit it is at least as
# good as the orders' average figure (Jensen's inequality). It need not beat the luckiest order. Orders differ
# by far more than the errors:

# %%
means = by_order.mean(1)
apart, error = mean_and_error(by_order[means.argmax()] - by_order[means.argmin()])
print(f"worst and best order are {apart:.2f} ± {error:.2f} nats apart")
assert apart > 5 * error

# %% [markdown]
# ### What it does not say
#
# *Whether samples are good.* Let a model be the class-conditional PixelCNN once in a
# hundred draws and uniform noise the other 99 times. Its likelihood is worse by $\log 100 \approx 4.6$ nats
# at most, of some eighty that a digit costs, and nearly all its samples are noise ([Theis, van den Oord and
# Bethge 2016](../references.md)).

# %%
with torch.no_grad():
    good = by_class.log_likelihood(tested, label).value.double()
noise_log_prob = -64 * math.log(17)
bad = torch.logaddexp(
    good - math.log(100), torch.full_like(good, math.log(0.99) + noise_log_prob)
)
print(
    f"PixelCNN {-good.mean():.1f} nats a digit, noise in 99 of 100 draws {-bad.mean():.1f}"
)
assert bool((good - bad <= math.log(100) + 1e-9).all())

# %% [markdown]
# The other way round, a model that misses the true density by little may err in many of its samples: the page
# on [text and series](text_and_series.py) counts them.
#
# ## When to choose it
#
# - **Choose it** for the best likelihood on levels, where an exact density is wanted for comparing or
#   compressing, and where what is given always comes first, as upper halves do.
# - `MADE` for vectors and tables, in seconds. Average orders if only the density counts; keep one to
#   condition.
# - `PixelCNN` for images; `PixelRNN` where they are small and each pixel should see all before it.
# - `WaveNet` for series and `Transformer` for text: see [text and series](text_and_series.py).
# - **Choose something else** if draws must be quick (a VAE or a coupling flow draws all pixels at once), if
#   a code of the datum is wanted (a VAE), if large parts anywhere may be missing (mixtures, and
#   [graphical models](graphical_models.py)), or if data are few: these networks learn by heart, so keep a
#   validation split.
#
# ## Exercises
#
# 1. Turn the digits upside down before training, and complete upper halves from lower ones. Which direction
#    costs fewer nats? Must they differ?
# 2. Train `MADE` with 2 orders and with 32. How far are the worst and the best order apart, and how far is
#    their average from the best?
# 3. `upwards` draws the lower half too, and must have learnt to copy it. How many of these pixels are wrong?
#    What does the likelihood of x given its lower half say that of x alone does not?
# 4. Fit `PixelCNN` with one layer and with five. What becomes of the likelihood, and how can one see it in
#    the draws?
#
# ## References
#
# Germain, Gregor, Murray & Larochelle, *MADE*, ICML 2015. Van den Oord, Kalchbrenner & Kavukcuoglu, *Pixel
# recurrent neural networks*, ICML 2016. Theis, van den Oord & Bethge, *A note on the evaluation of generative
# models*, ICLR 2016. In full under [References](../references.md).
