"""Measured runs of samplers on posteriors; ours and the peers' behind one signature.

Each function runs one sampler on one posterior, once from nothing (compilation and all) and then
once for each seed with everything compiled. The smallest bulk effective sample size over the
coordinates of the latents (constrained) is computed by one function for all samplers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.mcmc import problems
from benchmarks.mcmc.numpyro_programs import PROGRAMS
from ppgen.inference.mcmc.diagnostics import ess

_COLD_SEED = 1000


@dataclass(frozen=True)
class Phases:
    """One warm run: seconds of warm-up and of sampling, and the smallest bulk and tail ESS of its draws."""

    warm_up: float
    sampling: float
    ess: float
    tail: float


@dataclass(frozen=True)
class Measured:
    """A sampler on a posterior.

    Attributes:
        first: seconds of the first run: tracing, compilation, warm-up, draws.
        runs: one warm run a seed.
    """

    first: float
    runs: tuple[Phases, ...]

    @property
    def rate(self) -> float:
        """Effective samples a second of sampling, the median over seeds."""
        return statistics.median(run.ess / run.sampling for run in self.runs)

    @property
    def rate_with_tails(self) -> float:
        """Effective samples a second of sampling by bulk or tail ESS, whichever is smaller."""
        return statistics.median(min(run.ess, run.tail) / run.sampling for run in self.runs)

    @property
    def rate_with_warm_up(self) -> float:
        """Effective samples a second of warm-up and sampling, the median over seeds."""
        return statistics.median(run.ess / (run.warm_up + run.sampling) for run in self.runs)

    @property
    def cold(self) -> float:
        """Seconds from nothing to 1000 effective samples."""
        return self.first - statistics.median(run.sampling for run in self.runs) + 1000 / self.rate


def smallest_ess(draws: dict[str, Any], kind: Literal["bulk", "tail"] = "bulk") -> float:
    """The smallest ESS over the coordinates of draws, each (C, S, ...); constant ones aside."""
    smallest = np.inf
    for values in draws.values():
        tensor = torch.as_tensor(np.array(values)).double()
        tensor = tensor.reshape(*tensor.shape[:2], -1)
        moving = tensor.flatten(0, 1).std(0) > 0
        if bool(moving.any()):
            smallest = min(smallest, float(ess(tensor[..., moving], kind).min()))
    return smallest


def _phases(warm_up: float, sampling: float, draws: dict[str, Any]) -> Phases:
    return Phases(warm_up, sampling, smallest_ess(draws), smallest_ess(draws, "tail"))


def ours(
    name: str, seeds: Sequence[int], kernel: str, num_chains: int, warmup: int, num_samples: int
) -> Measured:
    """A sampler of ppgen: ``kernel`` is the name of its class."""
    from ppgen import inference

    model, arguments = problems.pyro_program(name)

    def run(seed: int) -> tuple[Any, float]:
        mcmc = inference.MCMC(
            getattr(inference, kernel)(model),
            num_samples=num_samples,
            warmup_steps=warmup,
            num_chains=num_chains,
            disable_progbar=True,
            seed=seed,
            compile="native",
        )
        start = time.perf_counter()
        mcmc.run(*arguments)
        return mcmc, time.perf_counter() - start

    _, first = run(_COLD_SEED)
    runs = []
    for seed in seeds:
        mcmc, _ = run(seed)
        measured = mcmc.posterior.attributes
        warm_up = float(measured["warmup_seconds"]) - float(measured["trace_seconds"])
        sampling = float(measured["sampling_seconds"])
        runs.append(_phases(warm_up, sampling, mcmc.get_samples(group_by_chain=True)))
    return Measured(first, tuple(runs))


def pyro_nuts(name: str, seeds: Sequence[int], num_chains: int, warmup: int, num_samples: int) -> Measured:
    """``pyro.infer.NUTS``, chains one after the other in this process.

    It cannot begin where a prior is improper: there it gets a very wide proper one.
    """
    model, arguments = problems.pyro_program(name)
    model = problems.with_proper_priors(model)
    runs = []
    for seed in seeds:
        chains = [
            _pyro_chain(model, arguments, 100 * seed + c, warmup, num_samples) for c in range(num_chains)
        ]
        stacked = {site: torch.stack([draws[site] for draws, _, _ in chains]) for site in chains[0][0]}
        runs.append(_phases(sum(c[1] for c in chains), sum(c[2] for c in chains), stacked))
    first = statistics.median(run.warm_up + run.sampling for run in runs)  # nothing is compiled
    return Measured(first, tuple(runs))


def _pyro_chain(
    model: Callable[..., Any], arguments: tuple[Any, ...], seed: int, warmup: int, num_samples: int
) -> tuple[dict[str, torch.Tensor], float, float]:
    """Draws of one chain, and the seconds of warm-up and of sampling."""
    import pyro
    from pyro.infer import MCMC, NUTS

    marks: list[float] = []

    def hook(kernel: Any, sample: Any, stage: str, i: int) -> None:
        del kernel, sample, i
        if stage.lower().startswith("sample") and not marks:
            marks.append(time.perf_counter())

    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        mcmc = MCMC(
            NUTS(model), num_samples=num_samples, warmup_steps=warmup, disable_progbar=True, hook_fn=hook
        )
        start = time.perf_counter()
        mcmc.run(*arguments)
        finish = time.perf_counter()
    # The hook first calls after the first draw, which is counted as a mean one.
    per_draw = (finish - marks[0]) / (num_samples - 1)
    return mcmc.get_samples(), marks[0] - start - per_draw, finish - marks[0] + per_draw


def numpyro_nuts(
    name: str, seeds: Sequence[int], method: str, num_chains: int, warmup: int, num_samples: int
) -> Measured:
    """NumPyro's NUTS through its functional interface, each phase one compiled program.

    (Its class ``MCMC`` compiles anew in each run of this benchmark, so it would look far slower.)
    ``method``: ``sequential`` maps over the chains, ``vectorised`` batches them.
    """
    import jax
    from numpyro.infer.hmc import hmc
    from numpyro.infer.util import initialize_model

    info = initialize_model(jax.random.PRNGKey(0), PROGRAMS[name](problems.load(name)))
    init_kernel, sample_kernel = hmc(info.potential_fn, algo="NUTS")

    def warm(key: Any, z: Any) -> Any:
        state = init_kernel(z, warmup, target_accept_prob=0.8, rng_key=key)
        return jax.lax.fori_loop(0, warmup, lambda _, s: sample_kernel(s), state)

    def sample(state: Any) -> Any:
        def one(state: Any, _: None) -> tuple[Any, Any]:
            state = sample_kernel(state)
            return state, state.z

        return jax.lax.scan(one, state, None, length=num_samples)[1]

    def over_chains(function: Callable[..., Any]) -> Callable[..., Any]:
        if method == "vectorised":
            return jax.jit(jax.vmap(function))
        return jax.jit(lambda *batch: jax.lax.map(lambda one: function(*one), batch))

    jit_warm, jit_sample = over_chains(warm), over_chains(sample)

    def clock(seed: int) -> Phases:
        keys = jax.random.split(jax.random.PRNGKey(seed), num_chains)
        points = _numpyro_starts(info.param_info.z, num_chains, seed)
        start = time.perf_counter()
        state = jax.block_until_ready(jit_warm(keys, points))
        middle = time.perf_counter()
        positions = jax.block_until_ready(jit_sample(state))
        finish = time.perf_counter()
        return _phases(middle - start, finish - middle, _numpyro_latents(info, positions))

    first = clock(_COLD_SEED)
    return Measured(first.warm_up + first.sampling, tuple(clock(seed) for seed in seeds))


def blackjax_chees(
    name: str, seeds: Sequence[int], num_chains: int, warmup: int, num_samples: int
) -> Measured:
    """ChEES-HMC of blackjax with its own adaptation, on NumPyro's potential of the model."""
    import blackjax
    import jax
    import optax
    from jax import numpy as jnp
    from numpyro.infer.util import initialize_model

    info = initialize_model(jax.random.PRNGKey(0), PROGRAMS[name](problems.load(name)))

    def log_density(z: Any) -> Any:
        return -info.potential_fn(z)

    def adapt(key: Any, positions: Any, num_steps: int) -> Any:
        adaptation = blackjax.chees_adaptation(log_density, num_chains=num_chains)
        return adaptation.run(key, positions, 0.1, optax.adam(0.05), num_steps=num_steps)[0]

    # The adaptation also returns functions, which no compiled program can: taken once, outside.
    points = _numpyro_starts(info.param_info.z, num_chains, 1)
    functions = {k: v for k, v in adapt(jax.random.PRNGKey(0), points, 1)[1].items() if callable(v)}

    def warm(key: Any, positions: Any) -> Any:
        states, parameters = adapt(key, positions, warmup)
        return states, {k: v for k, v in parameters.items() if not callable(v)}

    def sample(key: Any, states: Any, parameters: Any) -> Any:
        kernel = blackjax.dynamic_hmc(log_density, **parameters, **functions).step

        def one(states: Any, key: Any) -> tuple[Any, Any]:
            states, _ = jax.vmap(kernel)(jax.random.split(key, num_chains), states)
            return states, states.position

        return jax.lax.scan(one, states, jax.random.split(key, num_samples))[1]

    jit_warm, jit_sample = jax.jit(warm), jax.jit(sample)

    def clock(seed: int) -> Phases:
        keys = jax.random.split(jax.random.PRNGKey(seed), 2)
        points = _numpyro_starts(info.param_info.z, num_chains, seed)
        start = time.perf_counter()
        states, tuned = jax.block_until_ready(jit_warm(keys[0], points))
        middle = time.perf_counter()
        positions = jax.block_until_ready(jit_sample(keys[1], states, tuned))
        finish = time.perf_counter()
        by_chain = jax.tree_util.tree_map(lambda values: jnp.swapaxes(values, 0, 1), positions)
        return _phases(middle - start, finish - middle, _numpyro_latents(info, by_chain))

    first = clock(_COLD_SEED)
    return Measured(first.warm_up + first.sampling, tuple(clock(seed) for seed in seeds))


def _numpyro_starts(example: Any, num_chains: int, seed: int) -> Any:
    """Starting points uniform on (-2, 2), unconstrained, as all samplers here begin."""
    import jax

    leaves, tree = jax.tree_util.tree_flatten(example)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    drawn = [
        jax.random.uniform(key, (num_chains, *leaf.shape), minval=-2.0, maxval=2.0)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, drawn)


def _numpyro_latents(info: Any, positions: Any) -> dict[str, Any]:
    """Constrained values of the latent sites, each (C, S, ...)."""
    import jax

    values = jax.jit(jax.vmap(jax.vmap(info.postprocess_fn)))(positions)
    return {site: array for site, array in values.items() if site in info.param_info.z}


Sampler = Callable[[str, Sequence[int]], Measured]

#: What is compared, each with the budget that suits it.
SAMPLERS: dict[str, Sampler] = {
    "ppgen ChEES-64": lambda name, seeds: ours(name, seeds, "ChEES", 64, 300, 1000),
    "ppgen ChEES-256": lambda name, seeds: ours(name, seeds, "ChEES", 256, 300, 500),
    "ppgen NUTS-64": lambda name, seeds: ours(name, seeds, "NUTS", 64, 300, 1000),
    "NumPyro NUTS sequential-4": lambda name, seeds: numpyro_nuts(name, seeds, "sequential", 4, 1000, 1000),
    "NumPyro NUTS vectorised-64": lambda name, seeds: numpyro_nuts(name, seeds, "vectorised", 64, 500, 500),
    "blackjax ChEES-64": lambda name, seeds: blackjax_chees(name, seeds, 64, 500, 1000),
    "blackjax ChEES-256": lambda name, seeds: blackjax_chees(name, seeds, 256, 500, 500),
    "Pyro NUTS": lambda name, seeds: pyro_nuts(name, seeds, 1, 150, 150),
}
