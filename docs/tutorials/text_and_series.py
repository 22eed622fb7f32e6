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
# # Autoregressive models of text and series
#
# A series has an order of its own: what comes next depends on what was before. Two families of ppgen are made
# for this, WaveNet for series and the transformer for text. This page fits each to data whose true density
# is known, so that what was learnt can be held against the truth. The idea, and the families for digits
# and tables, are in [Autoregressive models](autoregressive.py).

# %%
import itertools
import lzma
import math
import os
import time

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import torch
from pyro.infer import Trace_ELBO

import ppgen
from ppgen import datasets, metrics
from ppgen.models import HiddenMarkov, Transformer, WaveNet
from ppgen.ops.random import forked_rng
from ppgen.plots.canvas import LIGHT, plain_axes

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ


def mean_and_error(values):
    """The mean of independent values, and its standard error."""
    values = values.detach().double().flatten()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


# %% [markdown]
# ## The story
#
# $$ p(x) = p(x_1)\, p(x_2 \mid x_1) \cdots = \prod_t p(x_t \mid x_1, \dots, x_{t-1}) $$
#
# is true of every distribution. One network gives all these conditionals in one pass, and in it nothing may
# look ahead:
#
# | family | what keeps it from looking ahead | how far it sees | suits |
# |---|---|---|---|
# | `WaveNet` | convolutions over the past | each layer twice as far as the one below | series, sound |
# | `Transformer` | attention to what came before | to the beginning | text, anything with few levels |
#
# What a conditional is, is a separate choice: here one probability a character for text, and a mixture of
# Gaussians for the real numbers of a series.

# %% [markdown]
# ## The pair
#
# Nothing is latent, so the Pyro `model` has the one site `x` and the guide is empty. The ELBO is then the
# log-likelihood itself. Here are both families with weights at random, on series of four steps and three
# levels:

# %%
with forked_rng(0):
    toys = {
        "WaveNet": WaveNet((4,), levels=3, dilations=(1, 2), channels=4),
        "Transformer": Transformer((4,), levels=3, num_layers=1, num_heads=2, dim=8),
    }
    with torch.no_grad():  # noise on the weights: a uniform start would prove nothing
        for model in toys.values():
            for weight in model.eval().parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    trace = pyro.poutine.trace(toys["WaveNet"].model).get_trace(num=5)
print(trace.stochastic_nodes, tuple(trace.nodes["x"]["value"].shape))

# %% [markdown]
# There are $3^4 = 81$ such series. Their probabilities must sum to 1, and the sampler must draw each as
# often as its probability says. Of all series that should come up twenty times or more, `worst` is the one
# that is furthest off, in standard errors of its frequency:

# %%
every = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4)))
num_draws = 5_000 if small else 20_000
for name, model in toys.items():
    with torch.no_grad():
        found = model.log_likelihood(every)
        elbo = -Trace_ELBO().loss(model.model, model.guide, every)
    p = found.value.double().exp()
    levels = (2 * model.sample(num_draws, seed=1)).round().long()
    number = levels @ torch.tensor([27, 9, 3, 1])  # the row of `every`
    share = number.bincount(minlength=81).double() / num_draws
    away = (share - p).abs() / (p * (1 - p) / num_draws).sqrt()
    worst = float(away[p * num_draws > 20].max())
    print(f"{name:12}{found.kind.value}, sum {p.sum():.7f}, worst {worst:.1f}")
    assert abs(float(p.sum()) - 1) < 1e-5
    assert abs(elbo - float(found.value.sum())) < 1e-2
    assert worst < 6

# %% [markdown]
# ## Fit
#
# One call trains both, by maximum likelihood.


# %%
def fit(model, data, **options):
    """Train with steps that shrink to nothing."""
    result = ppgen.fit(
        model,
        data.train,
        validation=data.validation,
        schedule="cosine",
        progress=False,
        **options,
    )
    print(f"{type(model).__name__:12}{result}")


# %% [markdown]
# ### A series
#
# Waves of a random phase and size, of period 8 or 20, with noise. Which period it is one sees only after a
# while. For each period the series is Gaussian with a known covariance, so the true density is a mixture of
# two Gaussians in 48 dimensions, and what WaveNet learns can be held against it.

# %%
num_steps, noise = 48, 0.2
steps = torch.arange(num_steps, dtype=torch.float64)
covariances = torch.stack(
    [
        torch.cos(2 * math.pi / period * (steps[:, None] - steps))
        + noise**2 * torch.eye(num_steps, dtype=torch.float64)
        for period in (8, 20)
    ]
)
waves_truth = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)),
    torch.distributions.MultivariateNormal(
        torch.zeros(num_steps, dtype=torch.float64), covariances
    ),
)
with forked_rng(0):
    drawn = waves_truth.sample((600 if small else 1600,)).float()
    wavenet = WaveNet(
        (num_steps,),
        dilations=(1, 2, 4, 8, 16),
        channels=16,
        skip_channels=32,
        num_components=2,
    )
waves = datasets.from_arrays(drawn, test=0.3)
print(waves.description, "Each step sees", wavenet.receptive_field, "before it.")
fit(wavenet, waves, epochs=3 if small else 16, batch_size=64, learning_rate=8e-3)

# %% [markdown]
# ### A text
#
# Any plain text will do: `datasets.text` takes a string or the path of a file. This one is made by a small
# grammar, in which verbs agree with their nouns. For each symbol it says what may be written, how probable
# that is, and which symbol comes next:

# %%
nouns = {"cat": 0.4, "dog": 0.3, "bird": 0.2, "cow": 0.1}
verbs = {"sleep": 0.4, "sing": 0.3, "run": 0.2, "eat": 0.1}
places = {"near a hill ": 0.25, "by the trees ": 0.25}


def phrases(number, noun_ending, verb_ending):
    """What is written for a noun in the singular or the plural, and all that follows to the verb."""
    acts = [(p, verb + verb_ending, "end") for verb, p in verbs.items()]
    where = [(p, words, f"{number} verb") for words, p in places.items()]
    at_once = 1 - sum(places.values())
    return {
        number: [
            (p, noun + noun_ending, f"{number} said") for noun, p in nouns.items()
        ],
        f"{number} said": where + [(at_once * p, *rest) for p, *rest in acts],
        f"{number} verb": acts,
    }


grammar = {
    "start": [(0.3, "a ", "one"), (0.3, "the ", "one"), (0.4, "the ", "many")],
    **phrases("one", " ", "s"),
    **phrases("many", "s ", ""),
    "end": [(0.7, ". ", "start"), (0.3, " again. ", "start")],
}

# %% [markdown]
# A character at a time, the grammar is a chain of states, each of which writes one character: a hidden
# Markov model whose tables are known. So the truth is a model of ppgen too. It writes the text, and it
# gives the exact probability of any window of it, in whatever word the window starts.

# %%
states = [
    (symbol, rule, place)
    for symbol, rules in grammar.items()
    for rule, (_, words, _) in enumerate(rules)
    for place in range(len(words))
]
number_of = {state: k for k, state in enumerate(states)}
alphabet = datasets.Vocabulary(
    "".join(words for rules in grammar.values() for _, words, _ in rules)
)
onward = torch.zeros(len(states), len(states), dtype=torch.float64)
writes = torch.full((len(states), 1, len(alphabet)), -torch.inf, dtype=torch.float64)
for (symbol, rule, place), k in number_of.items():
    _, words, then = grammar[symbol][rule]
    writes[k, 0, alphabet.characters.index(words[place])] = 0.0
    if place + 1 < len(words):
        onward[k, number_of[symbol, rule, place + 1]] = 1.0
    else:
        for other, (p, _, _) in enumerate(grammar[then]):
            onward[k, number_of[then, other, 0]] = p
# How often each state is visited in the long run: the stationary law of the chain.
balance = torch.cat([onward.T - torch.eye(len(states)), torch.ones(1, len(states))])
target = torch.tensor([0.0] * len(states) + [1.0], dtype=torch.float64)
visited = torch.linalg.lstsq(balance, target[:, None]).solution[:, 0].clamp(min=0)


def author(length):
    """The grammar as a model of texts of a length that start anywhere."""
    model = HiddenMarkov(
        (length,),
        num_states=len(states),
        emission="categorical",
        levels=len(alphabet),
    ).double()
    model.set_chain(visited, onward)
    with torch.no_grad():
        model.emission.logits.copy_(writes)
    return model


length = 64
written = alphabet.decode(author(10_000 if small else 80_000).sample(1, seed=0)[0])
text = datasets.text(written, length=length, vocabulary=alphabet, test=0.2)
print(text.description)
print("..." + written[:150] + "...")

# %%
with forked_rng(0):
    sizes = {"num_layers": 2, "num_heads": 2, "dim": 32, "positions": "rotary"}
    reader = Transformer((length,), levels=len(alphabet), **sizes)
options = {"batch_size": 16, "learning_rate": 5e-3, "clip_norm": 1.0}
fit(reader, text, epochs=2 if small else 10, **options)

# %% [markdown]
# ## Look
#
# ### Waves
#
# What comes first can be given, and the rest drawn: that is only the sampler, started later, and the draws
# are exact. Here are 20 ways to go on, in blue, from beginnings of two lengths. After two
# steps neither the period nor the size is known, and the draws go many ways; after 24 they agree but for
# noise.

# %%
some = waves.test.x[:40]
one = int(some.abs().amax(1).argmax())  # a large wave is seen best
figure, panels = plt.subplots(
    1, 2, figsize=(6.6, 2.6), sharey=True, layout="constrained"
)
spread = {}
for axes, begin in zip(panels, (2, 24), strict=True):
    known = torch.arange(num_steps) < begin
    futures = wavenet.condition(some, known, num=20, seed=0)
    spread[begin] = futures[:, :, 24:].var(0).mean(1)  # of each series
    drawn = axes.plot(futures[:, one].T, color=LIGHT.first, alpha=0.25, linewidth=0.8)
    drawn[0].set_label("20 draws")
    axes.plot(some[one], color=LIGHT.second, linewidth=1.4, label="what came")
    axes.axvline(begin - 0.5, color=LIGHT.muted, linestyle="dashed", linewidth=0.8)
    axes.set_title(f"{begin} steps given", fontsize=9.5)
    axes.set_xlabel("step", fontsize=9.5)
    plain_axes(axes, LIGHT)
panels[0].set_ylabel("value", fontsize=9.5)
handles, names = panels[0].get_legend_handles_labels()
legend = figure.legend(
    handles, names, frameon=False, fontsize=8, ncols=2, loc="outside upper right"
)
for line in legend.get_lines():
    line.set_alpha(1)
plt.show()
narrower, error = mean_and_error(spread[2] - spread[24])
print({begin: f"variance {float(v.mean()):.3f}" for begin, v in spread.items()})
assert small or narrower > 5 * error

# %% [markdown]
# ### Text
#
# A prompt is a beginning like any other. Where the prompt has a plural noun, the verb should have no *s*, and
# the tree or hill in between should not matter. Mostly it has learnt that.

# %%
prompts = {"one": ". the bird near a hill sing", "many": ". the birds near a hill sing"}
ends_in_s = {}
for number, prompt in prompts.items():
    x = torch.nn.functional.pad(
        alphabet.encode(prompt), (0, length - len(prompt)), value=torch.nan
    )
    drawn = reader.condition(x[None], ~x.isnan(), num=200, seed=0)[:, 0]
    for row in drawn[:3]:
        print(alphabet.decode(row))
    following = torch.tensor(
        [alphabet.decode(row)[len(prompt)] == "s" for row in drawn]
    )
    ends_in_s[number] = mean_and_error(following.double())
print({number: f"{p:.2f} ± {e:.2f} with s" for number, (p, e) in ends_in_s.items()})
error = math.hypot(ends_in_s["one"][1], ends_in_s["many"][1])
assert small or ends_in_s["one"][0] - ends_in_s["many"][0] > 5 * error

# %% [markdown]
# ### Why it can be drawn quickly
#
# The next character needs the activations of all characters before it, and these do not change any more. So
# they are kept. `unroll` can do without, which gives the same text and takes longer:

# %%
seconds, drawn = {}, {}
blank = torch.zeros(32, length)
for cached in (True, False):
    start = time.perf_counter()
    with forked_rng(0):
        drawn[cached] = reader.unroll(blank, blank > 0, cached=cached)
    seconds[cached] = time.perf_counter() - start
print(
    f"32 texts: {seconds[True]:.2f} s with activations kept, {seconds[False]:.2f} s without"
)
assert torch.equal(drawn[True], drawn[False])

# %% [markdown]
# ## What its likelihood means
#
# ### Waves: against the truth
#
# For real numbers a density has a unit, and its logarithm may have any sign. What can be read off are
# differences. No model is better than the truth on average, and the gap is the Kullback–Leibler divergence.

# %%
x = waves.test.x
with torch.no_grad():
    learnt = wavenet.log_likelihood(x).value.double()
true = waves_truth.log_prob(x.double())
spread = math.sqrt(1 + noise**2)
apart = torch.distributions.Normal(0.0, spread).log_prob(x.double()).sum(1)
lost, error = mean_and_error((true - learnt) / num_steps)
print(
    f"nats a step: truth {-true.mean() / num_steps:.3f}, WaveNet {-learnt.mean() / num_steps:.3f}, "
    f"steps apart {-apart.mean() / num_steps:.3f}; WaveNet loses {lost:.3f} ± {error:.3f}"
)
gain, gain_error = mean_and_error((learnt - apart) / num_steps)
assert lost > -5 * error
assert gain > 5 * gain_error

# %% [markdown]
# ### Text: nats, bits, perplexity
#
# A likelihood is a code. Who knows $p(x)$ can write x down in $-\log_2 p(x)$ bits, and one more for the
# whole text (arithmetic coding). By the character, that is *nats per step*, divided by $\log 2$ *bits per
# character*, and its exponential is the *perplexity*: a uniform guess among so many characters would be as
# good.

# %%
entropy = float(visited @ torch.special.entr(onward).sum(1))
count = torch.stack(
    [alphabet.values.indices(text.train.x) == k for k in range(len(alphabet))]
)
frequency = (count.sum((1, 2)) + 1) / (count.sum() + len(alphabet))
apart = -frequency.log()[alphabet.values.indices(text.test.x)].mean()
truth_rate = metrics.nats_per_step(author(length), text.test.x.double())
reader_rate = metrics.nats_per_step(reader, text.test)
print(metrics.perplexity(reader, text.test))
packed = 8 * len(lzma.compress(written.encode())) / len(written)
rates = {
    "uniform guess": math.log(len(alphabet)),
    "how often each occurs": float(apart),
    "lzma, on all the text": packed * math.log(2),
    "transformer": float(reader_rate.value),
    "the grammar, in windows": float(truth_rate.value),
    "the grammar, in the long run": entropy,
}
table = pd.DataFrame({"nats": rates})
table["bits"] = table["nats"] / math.log(2)
table["perplexity"] = table["nats"].map(math.exp)
table.round(3)

# %% [markdown]
# Two rows are the truth. In the long run a character of this grammar costs its *entropy rate*, which
# follows from its tables. In windows of 64 it costs more, since each window starts in the middle of a word
# and one has to find out where. The transformer is given windows, so that the second last row is the one
# that it cannot beat. (`lzma` knows nothing beforehand, and the transformer's weights would have to be sent
# too: a code for one text is not a fair race.)

# %%
with torch.no_grad():
    of_reader = reader.log_likelihood(text.test.x).value.double()
    of_truth = author(length).log_likelihood(text.test.x.double()).value
gap, gap_error = mean_and_error(of_truth - of_reader)
print(f"the transformer loses {gap:.2f} ± {gap_error:.2f} nats in a window of {length}")
assert gap > -5 * gap_error
assert float(reader_rate.value) < float(apart)
assert float(truth_rate.value) > entropy - 5 * float(truth_rate.std_error)
assert small or float(reader_rate.value) < rates["lzma, on all the text"]

# %% [markdown]
# ### What it does not say
#
# *Whether samples are right.* The grammar gives a text with a single mistake probability 0, and so tells
# which samples have one. If a share $\epsilon$ of a model's mass lies on such texts, it must lose at least
# $-\log(1 - \epsilon)$ nats a window on the true ones, and need not lose more. Spread over 64 characters that
# is little, even where every fourth text has a mistake.

# %%
texts = reader.sample(200 if small else 1000, seed=0)
able = (visited > 0).double().expand(len(texts), -1)  # states that may come next
for codes in alphabet.values.indices(texts).T:
    able = ((able * writes[:, 0, codes].T.exp()) @ onward > 0).double()
possible = able.any(1)
with torch.no_grad():  # the slow way, on a few: the exact probability
    check = author(length).log_likelihood(texts[:10].double()).value.isfinite()
assert torch.equal(check, possible[:10])
mistaken, error = mean_and_error(~possible)
print(f"{mistaken:.2f} ± {error:.2f} of the texts drawn have a mistake")
for row in texts[~possible][:3]:
    print(repr(alphabet.decode(row)))
if mistaken < 1:
    price = -math.log(1 - mistaken)
    print(
        f"the price is {price:.2f} nats a window; the gap is {gap:.2f} ± {gap_error:.2f}"
    )
    assert gap > price - 5 * math.hypot(gap_error, error / (1 - mistaken))

# %% [markdown]
# *What is typical.* The most probable text is not like a text. Taking the likeliest character every time
# (`generate` with `top_k=1`) says the same again and again, and that is more probable than texts are on
# average. `generate` is there for such things; its results are not draws from the model.

# %%
prompt = alphabet.encode(". ")
same = reader.generate(prompt, top_k=1)
with torch.no_grad():
    greedy = -float(reader.log_likelihood(same).value) / length
print(alphabet.decode(same[0]))
print(f"{greedy:.3f} nats a character; texts have {-of_reader.mean() / length:.3f}")
assert greedy < float(-of_reader.mean()) / length

# %% [markdown]
# ## When to choose it
#
# - **Choose it** for the best likelihood on series and tokens, where an exact density is wanted for comparing
#   or compressing, and where what is given always comes first: forecasts and prompts.
# - `WaveNet` for series, real or companded (`datasets.mu_law`); `Transformer` for text.
# - For vectors, tables and images take `MADE`, `PixelCNN` or `PixelRNN`:
#   [Autoregressive models](autoregressive.py).
# - **Choose something else** if draws must be quick (these go step by step), if a state behind the series is
#   wanted (`HiddenMarkov`), if any part may be missing ([graphical models](graphical_models.py)), or if data
#   are few: these networks learn by heart, so keep a validation split.
#
# ## Exercises
#
# 1. Give the transformer windows of 16 and of 128. How do its nats per character and the grammar's change,
#    and why?
# 2. Take the dilations (1, 2) for WaveNet. What becomes of the likelihood, and how can one see it in the
#    draws?
# 3. Raise the `temperature` of `generate` from 0.5 to 1.5, and plot the share of texts with a mistake.
#
# ## References
#
# Van den Oord et al., *WaveNet*, 2016. Vaswani et al., *Attention is all you need*, NeurIPS 2017. In full
# under [References](../references.md).
