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
# # First steps
#
# Fit two generative models to handwritten digits, look at what they make, and compare them by one
# number, with each other and with a trivial model. It takes less than a minute on one core.

# %%
import math
import os

import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen import datasets, metrics
from ppgen.models import VAE, GaussianMixture
from ppgen.ops.random import forked_rng
from ppgen.plots.curves import curves, loss_series
from ppgen.plots.images import tile

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ

# %% [markdown]
# ## Data
#
# The digits come inside scikit-learn. A data set has three splits, and each split knows what its
# values are: here 17 grey levels, stored as $k/16$.

# %%
digits = datasets.load("digits")
digits.description

# %%
print(digits.event_shape, "|", digits.values)
print([len(split) for split in (digits.train, digits.validation, digits.test)])


# %%
def show(images):
    plt.figure(figsize=(5, 2.5))
    plt.imshow(tile(images, columns=16))
    plt.axis("off")


show(digits.test.x[:64])

# %% [markdown]
# ## A mixture of Gaussians
#
# The first argument of every family is the shape of one datum; everything else has a name. A mixture
# trains by expectation-maximisation from a k-means++ start, and `ppgen.fit` knows that. What it keeps at the
# end is the epoch that did best on the validation split, which for data as few as these can be an early one.
#
# A density on the real numbers cannot look at grey levels as they are: it would put infinite density on
# them. So the trainer adds uniform noise within each level, as it does for every such model, and no
# component may be narrower than that noise.

# %%
levels = digits.values.levels
noise_variance = 1 / (12 * levels**2)
mixture = GaussianMixture(
    digits.event_shape, num_components=30, min_variance=noise_variance
)
mixture_fit = ppgen.fit(
    mixture,
    digits.train,
    validation=digits.validation,
    epochs=5 if small else 50,
    progress=False,
)
print(mixture_fit)

# %% [markdown]
# ## A variational autoencoder
#
# The same call fits a VAE, by stochastic gradients on the evidence lower bound. Its likelihood gives each of
# the 17 levels a probability of its own, so it needs no noise. A little dropout on what the encoder sees
# keeps it from learning 1293 digits by heart.

# %%
with forked_rng(0):  # the first weights are drawn
    vae = VAE(
        digits.event_shape,
        latent_dim=16,
        likelihood="categorical",
        levels=levels,
        dropout=0.1,
    )
vae_fit = ppgen.fit(
    vae,
    digits.train,
    validation=digits.validation,
    epochs=30 if small else 100,
    batch_size=64,
    schedule="cosine",
    progress=False,
)
print(vae_fit)

# %% [markdown]
# A fit returns its history, one row an epoch, and `.ok`: whether anything deserves a look.

# %%
assert vae_fit.ok, vae_fit.warnings
figure = curves(loss_series(vae_fit.history), y_label="loss, nats a digit")
figure

# %%
losses = [row["validation_loss"] for row in vae_fit.history]
assert min(losses) < losses[0]

# %% [markdown]
# ## Samples
#
# With a `seed` the draws repeat, and torch's own random numbers go on as if nothing had been drawn.

# %%
show(mixture.sample(64, seed=0))

# %%
show(vae.sample(64, seed=0))

# %%
state = torch.get_rng_state()
again = vae.sample(64, seed=0)
assert torch.equal(again, vae.sample(64, seed=0))
assert torch.equal(state, torch.get_rng_state())

# %% [markdown]
# ## How good are they?
#
# A likelihood is the fair judge: what probability does a model give to digits that it has
# never seen? In bits per pixel it is also the length of the code that one could build from the model.

# %%
bits = {
    "mixture": metrics.bits_per_dim(mixture, digits.test),
    "VAE": metrics.bits_per_dim(vae, digits.test),
}
for name, estimate in bits.items():
    print(f"{name:8}", estimate)

# %% [markdown]
# Each figure says what it is. Both are upper bounds on the bits, for different reasons: the mixture's
# density is exact, but for grey levels it is read through the added noise; the VAE's is a lower bound on
# the likelihood by importance sampling, and so an upper bound on the bits. A bound never passes for the
# number itself.

# %%
assert all(estimate.kind == ppgen.Kind.UPPER_BOUND for estimate in bits.values())

# %% [markdown]
# A figure means little without a trivial model beside it. A uniform guess among 17 levels costs
# $\log_2 17 \approx 4.09$ bits. A much better one counts: for every pixel, how often does it take each
# level in the training split? That model knows nothing of how pixels hang together, and its figure is
# exact. (Every count starts at one, so that nothing is impossible.)

# %%
one_hot = torch.nn.functional.one_hot
counts = 1 + one_hot(digits.values.indices(digits.train.x), levels).sum(0)
bits_of_level = -(counts / counts.sum(-1, keepdim=True)).log2()
seen = one_hot(digits.values.indices(digits.test.x), levels)
costs = (seen * bits_of_level).sum(-1).flatten(1).mean(1)  # of each digit
independent, error = costs.mean().item(), costs.std().item() / math.sqrt(len(costs))
print(f"independent pixels: {independent:.4f} ± {error:.4f} bits a pixel")

# %% [markdown]
# The VAE is the better code. The mixture, by its bound, is not: levels pile up at blank and at full ink,
# which a histogram follows and the bell of a Gaussian does not, and thirty bells win back only part of that.
# Yet the mixture's samples above look like digits, and those of independent pixels below do not. A likelihood
# and the eye judge different things.

# %%
saved = {}
for name, estimate in bits.items():
    saved[name] = independent - estimate.value
    error_saved = math.hypot(error, estimate.std_error)
    print(
        f"{name:8} {saved[name]:+.2f} ± {error_saved:.2f} bits saved on independent pixels"
    )
    assert small or abs(saved[name]) > 5 * error_saved
assert independent < math.log2(levels)
assert small or saved["VAE"] > 0 > saved["mixture"]

# %%
with forked_rng(0):
    drawn = torch.distributions.Categorical(logits=counts.log()).sample((64,))
show(drawn / (levels - 1))

# %% [markdown]
# At full size the VAE's bound is also below the mixture's, by more than five standard errors. That is a
# statement about the two codes, not about the two models: how far each bound lies above its model's
# own figure is not known from these numbers.

# %%
gap = bits["mixture"].value - bits["VAE"].value
error = math.hypot(bits["mixture"].std_error, bits["VAE"].std_error)
print(f"the VAE's bound is {gap:.2f} ± {error:.2f} bits a pixel lower")
assert small or gap > 5 * error

# %% [markdown]
# ## What else a family can do
#
# The VAE is also a code: `encode` gives 16 numbers a digit, `decode` gives the digit back. The first two
# rows are real, the last two are what the code kept of them.

# %%
with torch.no_grad():
    x = digits.test.x[:32]
    rebuilt = vae.decode(vae.encode(x))
show(torch.cat([x, rebuilt]))

# %%
error = (rebuilt - x).square().mean()
spread = (x - digits.train.x.mean(0)).square().mean()
print(f"squared error of a pixel {error:.4f}, variance {spread:.4f}")
assert error < spread

# %% [markdown]
# A mixture has none of that, and instead tells exactly which component a digit comes from:

# %%
with torch.no_grad():
    responsibilities = mixture.responsibilities(digits.test.x[:5])
assert torch.allclose(responsibilities.sum(-1), torch.ones(5), atol=1e-5)
responsibilities.argmax(-1)

# %% [markdown]
# ## Where to go from here
#
# - `ppgen survey` fits every family on the same data and writes one report.
# - [](your_own_model.py) brings a model of your own.
# - [](../explanation/contract.md) says what every model promises.
