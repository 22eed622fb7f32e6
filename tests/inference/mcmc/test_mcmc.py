"""The face of MCMC: what is drawn, from what, and that nothing else changes."""

from __future__ import annotations

import math
import shutil
import signal
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from ppgen.errors import SamplingWarning
from ppgen.inference import HMC, MALA, MCMC, NUTS, ChEES, RandomWalk
from ppgen.inference.mcmc import run as running
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.diagnostics import ess
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.samplers import Sampler
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

Y = torch.tensor([1.2, 0.3, 2.2, 0.9, 1.4])
quiet: dict[str, Any] = {"disable_progbar": True, "compile": False}
SAMPLERS = [NUTS, HMC, ChEES, MALA, RandomWalk]


def model(y: Tensor) -> None:
    """Sites of several shapes; the posterior of mu is N(5 / 6 mean(y), 1 / 6), of the others the prior."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def draw(sampler: Sampler | None = None, num: int = 12, **options: Any) -> MCMC:
    """A short run, 4 chains unless told."""
    options = {"warmup_steps": 12, "num_chains": 4, "seed": 1, **quiet, **options}
    mcmc = MCMC(sampler or HMC(model, num_steps=3), num, **options)
    mcmc.run(Y)
    return mcmc


def same(first: MCMC, second: MCMC) -> bool:
    a, b = first.get_samples(group_by_chain=True), second.get_samples(group_by_chain=True)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is drawn ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SAMPLERS)
def test_the_posterior_is_exact(cls: type[Sampler]) -> None:
    sampler = HMC(model, trajectory_length=1.5) if cls is HMC else cls(model)  # type: ignore[call-arg]
    num = 1000 if cls is RandomWalk else 200
    mcmc = MCMC(sampler, num, 150, num_chains=32, seed=3, dtype=torch.float64, disable_progbar=True)
    mcmc.run(Y)
    samples = mcmc.get_samples(group_by_chain=True)
    exact = {
        "mu": (float(Y.sum()) / 6, 1 / 6),
        "scale": (2 * math.sqrt(2 / math.pi), 4 * (1 - 2 / math.pi)),
    }
    for name, (mean, variance) in exact.items():
        draws = samples[name]
        assert draws.shape == (32, num)
        sizes = ess(draws), ess((draws - mean) ** 2)
        assert min(map(float, sizes)) > 200
        assert_close_to(draws.mean(), mean, draws.std() / sizes[0].sqrt(), name)
        squares = (draws - mean) ** 2
        assert_close_to(squares.mean(), variance, squares.std() / sizes[1].sqrt(), f"{name} squared")


def test_shapes_and_supports() -> None:
    mcmc = draw()
    flat, grouped = mcmc.get_samples(), mcmc.get_samples(group_by_chain=True)
    assert {name: tuple(v.shape) for name, v in grouped.items()} == {
        "mu": (4, 12),
        "scale": (4, 12),
        "weights": (4, 12, 3),
    }
    assert all(torch.equal(flat[name], v.flatten(0, 1)) for name, v in grouped.items())
    assert bool((grouped["scale"] > 0).all())
    torch.testing.assert_close(grouped["weights"].sum(-1), torch.ones(4, 12))
    assert mcmc.posterior.unconstrained is not None
    assert mcmc.posterior.unconstrained.shape == (4, 12, 4)


def test_one_chain_is_the_default() -> None:
    mcmc = MCMC(NUTS(model), 5, seed=0, **quiet)
    assert (mcmc.num_chains, mcmc.warmup_steps) == (1, 5)
    mcmc.run(Y)
    assert mcmc.get_samples()["weights"].shape == (5, 3)
    assert mcmc.get_samples(group_by_chain=True)["weights"].shape == (1, 5, 3)


def test_log_joint_density_of_each_draw() -> None:
    posterior = draw(dtype=torch.float64).posterior
    mu, scale, weights = (posterior.samples[name] for name in ("mu", "scale", "weights"))
    expected = dist.Normal(0.0, 1.0).log_prob(mu) + dist.HalfNormal(2.0).log_prob(scale) + scale.log()
    expected = expected + dist.Normal(mu[..., None], 1.0).log_prob(Y).sum(-1)
    # The Jacobian of Pyro's stick breaking is the product of the weights.
    expected = (
        expected + dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])).log_prob(weights) + weights.log().sum(-1)
    )
    torch.testing.assert_close(posterior.statistics["lp"], expected.to(torch.float64), rtol=1e-5, atol=1e-4)


def test_attributes_say_how_it_was_made() -> None:
    found = draw().posterior.attributes
    assert (found["sampler"], found["seed"], found["dtype"], found["num_samples"]) == (
        "HMC",
        1,
        "float32",
        12,
    )
    assert found["backend"] == "eager"
    assert set(found["versions"]) == {"ppgen", "torch", "pyro-ppl"}
    assert found["step_size"] > 0
    assert found["scale"].shape == (4,)
    assert found["sampling_seconds"] > 0


def test_named_arguments_and_handlers_around() -> None:
    mcmc = MCMC(HMC(poutine.scale(model, scale=0.5)), 4, num_chains=2, seed=0, **quiet)
    with poutine.trace() as outside:
        mcmc.run(y=Y)
    assert len(outside.trace.nodes) == 0
    assert mcmc.get_samples()["mu"].shape == (8,)


def test_a_second_run_starts_afresh() -> None:
    mcmc = draw()
    first = mcmc.get_samples()["mu"]
    mcmc.run(Y + 1)
    assert not torch.equal(mcmc.get_samples()["mu"], first)
    mcmc.run(Y)
    assert torch.equal(mcmc.get_samples()["mu"], first)


# -- seeds and chunks ---------------------------------------------------------------------


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_seed_gives_the_same_draws_whatever_the_chunks(
    cls: type[Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draw(cls(model))  # type: ignore[call-arg]
    monkeypatch.setattr(running, "_FIRST_CHUNK", 5)
    monkeypatch.setattr(running, "_CHUNK_SECONDS", 1e-9)
    assert same(first, draw(cls(model)))  # type: ignore[call-arg]
    assert not same(first, draw(cls(model), seed=2))  # type: ignore[call-arg]


def test_a_seed_leaves_the_global_generator() -> None:
    with forked_rng(0):
        before = torch.get_rng_state()
        draw()
        assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides() -> None:
    runs = []
    for seed in (0, 0, 1):
        with forked_rng(seed):
            runs.append(draw(seed=None))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    again = draw(seed=runs[0].posterior.attributes["seed"])
    assert same(runs[0], again)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_draws_of_a_compiled_chain_do_not_depend_on_how_many_there_are() -> None:
    """Chains fill vectors; those to spare must change nothing. Without warm-up, chains share nothing."""
    start = torch.linspace(-1.0, 1.0, 19)
    given = {"mu": start, "scale": start / 2, "weights": torch.stack([start, -start], 1)}
    fixed = HMC(model, step_size=0.2, num_steps=3)
    draws = [
        draw(
            fixed,
            compile="native",
            num_chains=num,
            warmup_steps=0,
            initial_params={name: value[:num] for name, value in given.items()},
        ).get_samples(group_by_chain=True)
        for num in (3, 16, 19)
    ]
    for few in draws[:2]:
        for name, value in few.items():
            assert torch.equal(value, draws[2][name][: len(value)])


# -- options ------------------------------------------------------------------------------


def test_where_chains_start() -> None:
    given = {
        "mu": torch.tensor([10.0, 20.0]),
        "scale": torch.tensor([0.5, -0.5]),
        "weights": torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    }
    options: dict[str, Any] = {"num": 1, "num_chains": 2, "warmup_steps": 0}
    frozen = HMC(model, step_size=1e-6, num_steps=1, adapt_step_size=False)
    samples = draw(frozen, initial_params=given, **options).get_samples()
    torch.testing.assert_close(samples["mu"], given["mu"], rtol=1e-3, atol=0)
    torch.testing.assert_close(samples["scale"], given["scale"].exp(), rtol=1e-3, atol=0)
    one = {name: value[0] for name, value in given.items()}
    samples = draw(frozen, initial_params=one, **options | {"num_chains": 1}).get_samples()
    torch.testing.assert_close(samples["mu"], given["mu"][:1], rtol=1e-3, atol=0)

    strategy = init_to_value(values={"mu": torch.tensor(7.0)}, fallback=init_to_median)
    frozen = HMC(model, step_size=1e-6, num_steps=1, adapt_step_size=False, init_strategy=strategy)
    samples = draw(frozen, **options).get_samples()
    torch.testing.assert_close(samples["mu"], torch.full((2,), 7.0), rtol=1e-3, atol=0)


def test_float64_without_a_global_switch() -> None:
    samples = draw(dtype=torch.float64).get_samples()
    assert {value.dtype for value in samples.values()} == {torch.float64}


def test_saved_sites_are_those_asked_for_and_the_same() -> None:
    whole, part = draw(), draw(save_params=["weights", "mu"])
    assert list(part.get_samples()) == ["mu", "weights"]
    assert part.posterior.unconstrained is None
    for name, value in part.get_samples().items():
        torch.testing.assert_close(value, whole.get_samples()[name])
    whole.extend(3)
    part.extend(3)
    torch.testing.assert_close(part.get_samples()["mu"], whole.get_samples()["mu"])


@pytest.mark.parametrize("num_chains", [1, 3])
def test_the_hook_sees_every_transition_in_order(num_chains: int) -> None:
    seen: list[tuple[str, int]] = []
    drawn: list[Tensor] = []

    def hook(sampler: Sampler, values: dict[str, Tensor], stage: str, i: int) -> None:
        assert isinstance(sampler, HMC)
        assert values["weights"].shape == ((2,) if num_chains == 1 else (num_chains, 2))
        seen.append((stage, i))
        if stage == "Sample":
            drawn.append(values["mu"])

    mcmc = draw(num=20, warmup_steps=6, num_chains=num_chains, hook_fn=hook)
    assert seen == [("Warmup", i) for i in range(6)] + [("Sample", i) for i in range(20)]
    expected = mcmc.get_samples(group_by_chain=True)["mu"]
    assert torch.equal(torch.stack(drawn, -1).reshape(num_chains, 20), expected)


def test_a_potential_function_with_transforms() -> None:
    def potential(values: dict[str, Tensor]) -> Tensor:
        # log x ~ N(1, 0.5^2) in each coordinate, and a correlated pair.
        first = 0.5 * ((values["x"] - 1) / 0.5) ** 2
        second = (values["pair"] ** 2).sum() / 2 + values["pair"].prod() / 2
        return first.sum() + second

    start = {"x": torch.zeros(8, 2), "pair": torch.randn(8, 2, generator=torch.Generator().manual_seed(0))}
    mcmc = MCMC(
        NUTS(potential_fn=potential),
        300,
        150,
        initial_params=start,
        num_chains=8,
        transforms={"x": ExpTransform().inv},
        seed=0,
        dtype=torch.float64,
        **quiet,
    )
    mcmc.run()
    samples = mcmc.get_samples(group_by_chain=True)
    logs = samples["x"].log()
    size = ess(logs)
    assert float(size.min()) > 200
    assert_close_to(logs.flatten(0, 1).mean(0), 1.0, 0.5 / size.sqrt(), "log x")
    product = samples["pair"].prod(-1)
    assert_close_to(product.mean(), -2 / 3, product.std() / ess(product).sqrt(), "covariance")


# -- more draws, and fewer ----------------------------------------------------------------


@pytest.mark.parametrize("cls", SAMPLERS)
def test_more_draws_are_those_of_a_longer_run(cls: type[Sampler]) -> None:
    longer = draw(cls(model), num=25)  # type: ignore[call-arg]
    grown = draw(cls(model), num=12)  # type: ignore[call-arg]
    grown.posterior.get_samples()
    grown.extend(0)
    grown.extend(13)
    assert same(longer, grown)
    assert grown.posterior.num_draws == grown.num_samples == 25


def _stop_at(stage: str, i: int, times: int = 1) -> Any:
    def hook(sampler: Sampler, values: dict[str, Tensor], at: str, number: int) -> None:
        if (at, number) == (stage, i):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return hook


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("stage", ["Warmup", "Sample"])
def test_an_interrupted_run_keeps_its_draws_and_goes_on(stage: str, times: int) -> None:
    whole = draw(num=40)
    with pytest.warns(SamplingWarning, match="interrupted"):
        part = draw(num=40, hook_fn=_stop_at(stage, 5, times))
    assert not part.ok
    assert part.posterior.num_draws == (0 if stage == "Warmup" else 8)
    for name, value in part.get_samples(group_by_chain=True).items():
        assert torch.equal(value, whole.get_samples(group_by_chain=True)[name][:, : part.posterior.num_draws])
    if times == 1 or stage == "Sample":  # a warm-up that was cut short begins again, and meets the hook
        part.extend(0)
        assert same(whole, part)
        assert not part.posterior.attributes["interrupted"]


def test_a_hook_that_raises_leaves_the_draws() -> None:
    def hook(sampler: Sampler, values: dict[str, Tensor], stage: str, i: int) -> None:
        if (stage, i) == ("Sample", 9):
            raise ValueError("enough")

    mcmc = MCMC(HMC(model), 40, 5, num_chains=2, seed=0, hook_fn=hook, **quiet)
    with pytest.raises(ValueError, match="enough"):
        mcmc.run(Y)
    assert mcmc.posterior.num_draws > 9


# -- memory -------------------------------------------------------------------------------


def _too_many(num: int) -> Any:
    """A density that does not fit in memory with ``num`` chains at once or more."""

    def density(self: Any, path: bool = False) -> Density:
        whole = plain(self, path)

        def batched(z: Tensor) -> tuple[Tensor, Tensor]:
            if len(z) >= num:
                raise MemoryError
            return whole.batched(z)

        return Density(whole.num_dims, whole.num_parts, whole.single, batched)

    plain = Potential.density
    return density


def test_chains_that_do_not_fit_run_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(NUTS(model), num_chains=8, dtype=torch.float64)
    monkeypatch.setattr(Potential, "density", _too_many(3))
    with pytest.warns(SamplingWarning, match="memory ran out on cpu with 8 chains at once"):
        parts = draw(NUTS(model), num_chains=8, dtype=torch.float64)
    for name, value in whole.get_samples().items():
        torch.testing.assert_close(parts.get_samples()[name], value)


# -- what is said -------------------------------------------------------------------------


def funnel() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(0.0, (x / 2).exp()).expand([9]).to_event(1))


def test_divergences_are_said_when_the_run_ends() -> None:
    sampler = HMC(funnel, step_size=0.9, num_steps=8, adapt_step_size=False)
    mcmc = MCMC(sampler, 100, 0, num_chains=4, seed=0, **quiet)
    with pytest.warns(SamplingWarning, match=r"of 400 transitions diverged, in chain.*target_accept_prob"):
        mcmc.run()
    assert any("transitions diverged" in warning for warning in mcmc.posterior.warnings)


def test_a_chain_in_a_worse_mode_is_said_when_the_run_ends() -> None:
    def potential(values: dict[str, Tensor]) -> Tensor:
        x = values["x"]
        return -torch.logsumexp(torch.stack([-((x - 20) ** 2) / 2 - 25, -(x**2) / 2]), 0)

    start = {"x": torch.tensor([0.0, 0.5, 20.0, -0.5, 1.0, -1.0])}
    sampler = HMC(potential_fn=potential, step_size=0.5, num_steps=3, adapt_step_size=False)
    mcmc = MCMC(sampler, 100, 0, initial_params=start, num_chains=6, seed=0, **quiet)
    with pytest.warns(SamplingWarning, match="^chain 2 of 6 stay where the others do not go.*'lp'"):
        mcmc.run()
    assert not mcmc.ok


def test_nothing_is_said_of_a_healthy_run() -> None:
    mcmc = MCMC(HMC(model, trajectory_length=1.5), 200, 100, num_chains=16, seed=0, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplingWarning)
        mcmc.run(Y)


def test_deterministic_sites_come_back_on_request() -> None:
    def doubled(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mu)
        pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    mcmc = draw(HMC(doubled, num_steps=2))
    assert set(mcmc.get_samples()) == {"mu"}
    found = mcmc.get_samples(group_by_chain=True, deterministic=True)
    assert torch.equal(found["twice"], 2 * found["mu"])
    some = [mcmc.get_samples(5, seed=seed)["mu"] for seed in (1, 1, 2)]
    assert torch.equal(some[0], some[1])
    assert not torch.equal(some[0], some[2])


# -- what is shown ------------------------------------------------------------------------


def test_progress_shows_chains_step_size_acceptance_divergences(capfd: pytest.CaptureFixture[str]) -> None:
    mcmc = draw(disable_progbar=False)
    shown = capfd.readouterr().err
    assert "Sample: 100%" in shown
    for word in ("Warmup", "24/24", "4 chains", "step size", "acc. prob", "divergences"):
        assert word in shown
    mcmc.extend(0)
    draw()
    assert capfd.readouterr().err.count("chains") <= 1


def test_summary_is_written_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    table = draw(num=30).summary()
    shown = capsys.readouterr().out
    assert str(table) in shown
    for row in ("mu", "scale", "weights[0]", "weights[2]", "r_hat", "5.0%", "95.0%"):
        assert row in shown
