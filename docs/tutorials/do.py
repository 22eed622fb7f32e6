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
# # From a graph to do()
#
# Seeing is not doing. Among patients, those who take a medicine may fare worse because the sick take it; that
# says nothing of what the medicine does. This page starts from a table, learns a posterior over causal
# graphs, turns it into a Pyro model, and asks the model what would happen *if*. Every answer is checked
# against a truth that made the data.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import torch

from ppgen.inference import structure
from ppgen.inference.pgmpy_adapter import example_network
from ppgen.models import BayesianNetwork

# The tests run this page at a small size, to see that it runs and that its claims hold.
small = "PPGEN_DOCS_SMALL" in os.environ

# %% [markdown]
# ## A truth with a trap
#
# Whether one is sick decides both whether one takes the medicine and, more than the medicine, how one fares.
# `DiscreteNetwork` holds names, levels, parents and tables; the last dimension of a table is the variable's
# own.

# %%
truth = structure.DiscreteNetwork(
    names=("sick", "medicine", "fares_well"),
    levels=(("no", "yes"), ("no", "yes"), ("no", "yes")),
    parents=((), (0,), (0, 1)),
    tables=(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
        torch.tensor(
            [[[0.2, 0.8], [0.1, 0.9]], [[0.8, 0.2], [0.6, 0.4]]], dtype=torch.float64
        ),
    ),
)
world = BayesianNetwork.from_network(truth)
seeing = [world.query("fares_well", {"medicine": m})["yes"] for m in ("no", "yes")]
doing = [world.query("fares_well", do={"medicine": m})["yes"] for m in ("no", "yes")]
pd.DataFrame(
    {"seen": seeing, "done": doing}, index=pd.Index(["no", "yes"], name="medicine")
).round(3)

# %% [markdown]
# Of those seen with the medicine fewer fare well; but giving it helps. The two columns differ because `do`
# cuts the arrow into the variable that it sets:

# %%
assert seeing[1] < seeing[0]
assert doing[1] > doing[0]
world.do(medicine="yes").to_networkx().edges

# %% [markdown]
# ## From a table alone
#
# Now forget the truth, and keep 4000 rows that it made. Nothing was set in them.

# %%
rows = world.to_frame(world.sample(4000, seed=0))
watched = structure.learn(
    rows, score=structure.BDeu(equivalent_sample_size=1.0), progress=False
)
watched.edge_probabilities.round(2)

# %% [markdown]
# All three are connected, and every direction is as good as any other: the six graphs of three joined
# variables are one equivalence class. Averaged over them, the effect of the medicine is a mixture of
# "helps a little" (where being sick comes first), "harms" (where it does not) and "does nothing" (where the
# medicine is the effect). The honest answer is wide:

# %%
score = structure.BDeu(equivalent_sample_size=1.0)
effect = structure.causal_effect(
    watched, rows, "medicine", "fares_well", num_draws=2000, seed=0
)
effect.to_frame().round(3)

# %% [markdown]
# ## One experiment
#
# Give the medicine, or withhold it, by a coin: a column names the variable that was set in the row. A few
# hundred such rows decide the directions, because setting a variable moves what is behind it and nothing
# before it.

# %%
trials = []
for number, choice in enumerate(("no", "yes")):
    arm = world.do(medicine=choice)
    trials.append(arm.to_frame(arm.sample(300, seed=number + 1)).assign(set="medicine"))
mixed = pd.concat([rows.assign(set=""), *trials], ignore_index=True)
posterior = structure.learn(mixed, interventions="set", score=score, progress=False)
posterior.edge_probabilities.round(2)

# %%
after = structure.causal_effect(
    posterior, mixed, "medicine", "fares_well", num_draws=2000, seed=0
)
benefit = {"from watching": effect, "after the experiment": after}
differences = {name: e.contrast("yes", "no")[:, 1] for name, e in benefit.items()}
figure, axes = plt.subplots(figsize=(6, 2.8))
for name, draws in differences.items():
    axes.hist(
        draws.numpy(), bins=60, range=(-0.5, 0.2), density=True, alpha=0.6, label=name
    )
axes.axvline(
    doing[1] - doing[0], color="black", linewidth=1, linestyle="dashed", label="truth"
)
axes.set_xlabel("p(fares well | do(medicine)) - p(fares well | do(none))")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %%
draws = differences["after the experiment"]
assert abs(float(draws.mean()) - (doing[1] - doing[0])) < 5 * float(draws.std())
assert float(draws.std()) < float(differences["from watching"].std()) / 3

# %% [markdown]
# ## IDA: all effects that a class allows
#
# Where no experiment is at hand, `ida` lists the possible effects over the graphs of one equivalence class
# (Maathuis, Kalisch and Bühlmann 2009) instead of averaging them.

# %%
cpdag = watched.cpdag()
possible = structure.ida(cpdag, rows, "medicine", "fares_well")
for option in possible:
    print(
        f"parents of medicine: {option.parents}, p(fares well) {option.value[:, 1].numpy().round(2)}"
    )
assert len(possible) >= 2

# %% [markdown]
# ## The posterior as a Pyro model
#
# `BayesianNetwork.from_posterior` makes a mixture over graphs drawn from the posterior, with Dirichlet
# posteriors over the tables of each. It is a generative model like every other of ppgen: a Pyro pair, with an
# exact likelihood.

# %%
network = BayesianNetwork.from_posterior(posterior, mixed, seed=0)
x = network.from_frame(rows.head(5))
print(network.log_likelihood(x).value)
trace = pyro.poutine.trace(network.node_model).get_trace(num=3)
print(trace.format_shapes())

# %% [markdown]
# Missing cells are summed out exactly, and `condition` draws them:

# %%
gaps = x.clone()
gaps[:, 0] = float("nan")
filled = network.condition(gaps, num=1000 if small else 10_000, seed=0)
share = (filled[..., 0] == x.new_tensor(1.0)).double().mean(0)
exact = torch.tensor(
    [
        network.query("sick", dict(row))["yes"]
        for row in rows.head(5).drop(columns="sick").to_dict("records")
    ]
)
error = (exact * (1 - exact) / len(filled)).sqrt()
assert bool(((share - exact).abs() <= 5 * error + 1e-3).all())
pd.DataFrame({"drawn": share, "exact": exact}).round(3)

# %% [markdown]
# ## Eleven proteins
#
# The same on the network of [Discovering the Sachs network](sachs.py): cells simulated from a known truth,
# in which PKA, Akt, PKC, PIP2 and Mek are set in turn. What would setting Erk, which nobody set, do to Akt?

# %%
cell = BayesianNetwork.from_network(example_network("sachs"))
size = 300 if small else 600
settings = [
    {},
    {"PKA": "HIGH"},
    {"Akt": "LOW"},
    {"PKC": "LOW"},
    {"PIP2": "LOW"},
    {"Mek": "LOW"},
    {"PKC": "HIGH"},
]
blocks = []
for number, setting in enumerate(settings):
    model = cell.do(setting) if setting else cell
    target = next(iter(setting), "")
    blocks.append(model.to_frame(model.sample(size, seed=number)).assign(INT=target))
cells = pd.concat(blocks, ignore_index=True)
learned = structure.learn(cells, interventions="INT", score=score, progress=False)
akt = structure.causal_effect(
    learned, cells, "Erk", "Akt", num_draws=200, num_graphs=20, seed=0
)
akt.to_frame().round(3)

# %%
levels = ("LOW", "AVG", "HIGH")
true_akt = torch.stack(
    [
        torch.tensor(cell.query("Akt", do={"Erk": e})[list(levels)].to_numpy())
        for e in levels
    ]
)
order = [akt.effect_levels.index(level) for level in levels]
found = akt.mean[order][:, order]
print(torch.stack([found, true_akt]).numpy().round(2))
assert float((found - true_akt).abs().max()) < 0.15

# %% [markdown]
# ## Numbers instead of levels
#
# Continuous columns are linear in their parents with Gaussian noise; the score is BGe, the effect a slope.

# %%
with torch.random.fork_rng():
    torch.manual_seed(0)
    dose = torch.randn(500)
    marker = 0.8 * dose + 0.5 * torch.randn(500)
    outcome = -1.5 * marker + 0.7 * dose + torch.randn(500)
numbers = pd.DataFrame({"dose": dose, "marker": marker, "outcome": outcome})
linear = structure.learn(
    numbers,
    score=structure.BGe(),
    constraints=structure.Constraints(tiers=[["dose"], ["marker"], ["outcome"]]),
    progress=False,
)
slope = structure.causal_effect(
    linear, numbers, "dose", "outcome", num_draws=2000, seed=0
)
print(
    f"slope {float(slope.mean):.2f} ± {float(slope.spread):.2f}, the truth is {-1.5 * 0.8 + 0.7:.2f}"
)
assert abs(float(slope.mean) - (-0.5)) < 5 * float(slope.spread)

# %% [markdown]
# The tiers say what is known of time: doses come before markers, markers before outcomes. Constraints are
# honoured by every learner.
#
# ## What to doubt
#
# - An effect averaged over graphs is only as good as the set of graphs: no hidden causes, no loops.
# - The uncertainty of an effect has two parts, which graph and which numbers. With much data the second goes
#   away; the first needs experiments.
# - Rows in which other variables were set are used where the mathematics allows; `causal_effect` says which
#   in its documentation.
#
# ## Exercises
#
# 1. How many experimental rows does the medicine need before the benefit is sure to be above 0?
# 2. Set `sick` instead of `medicine` in the experiment. Which directions does it decide?
# 3. Replace `causal_effect` by `network.query(..., do=...)`. What is the same, and what is lost?
#
# ## References
#
# Pearl, *Causality*, 2009. Maathuis, Kalisch & Bühlmann, *Estimating high-dimensional intervention effects
# from observational data*, Annals of Statistics 37:3133, 2009.
