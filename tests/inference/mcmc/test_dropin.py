"""A script written for ``pyro.infer`` runs with its import changed, and gives what it gave."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

from ppgen import inference
from ppgen.ops.random import forked_rng

MODULES = [pyro.infer, inference]


def regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("a_sigma", dist.HalfNormal(1.0))
    pyro.deterministic("twice", 2 * bias)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights + bias, sigma), obs=y)


def groups(x: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("group", 2):
        effect = pyro.sample("effect", dist.Normal(0.0, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(effect[0] + effect[1] * share[0], 1.0), obs=y)


def script(module: ModuleType, model: Any, num_chains: int = 1, **options: Any) -> Any:
    """What a user wrote."""
    with forked_rng(0):
        x = torch.randn(20, 2)
        y = x @ torch.tensor([1.0, -1.0]) + 0.5 + 0.3 * torch.randn(20)
        kernel = module.NUTS(model, step_size=0.1, jit_compile=False, max_tree_depth=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pyro's of processors, ours of short runs
            mcmc = module.MCMC(
                kernel,
                num_samples=6,
                warmup_steps=4,
                num_chains=num_chains,
                mp_context="spawn",
                disable_progbar=True,
                **options,
            )
            mcmc.run(x, y)
    return mcmc


@pytest.mark.parametrize("model", [regression, groups])
@pytest.mark.parametrize("group_by_chain", [False, True], ids=["flat", "grouped"])
def test_samples_have_the_same_keys_shapes_and_types(model: Any, group_by_chain: bool) -> None:
    theirs, ours = (
        {
            name: (tuple(value.shape), value.dtype, value.device)
            for name, value in script(module, model).get_samples(group_by_chain=group_by_chain).items()
        }
        for module in MODULES
    )
    assert ours == theirs
    assert list(ours) == list(theirs)


def test_resampling() -> None:
    for module in MODULES:
        mcmc = script(module, regression)
        with forked_rng(1):
            assert mcmc.get_samples(num_samples=7)["weights"].shape == (7, 2)
            assert mcmc.get_samples(num_samples=7, group_by_chain=True)["weights"].shape == (1, 7, 2)


def test_several_chains() -> None:
    # Two of Pyro's chains are two processes; only the shapes are of interest here.
    mcmc = script(inference, regression, num_chains=3)
    assert mcmc.get_samples()["weights"].shape == (18, 2)
    assert mcmc.get_samples(group_by_chain=True)["weights"].shape == (3, 6, 2)
    found = mcmc.diagnostics()
    assert list(found["divergences"]) == ["chain 0", "chain 1", "chain 2"]


def test_diagnostics_have_pyros_keys() -> None:
    theirs, ours = (script(module, regression).diagnostics() for module in MODULES)
    for name, figures in theirs.items():
        assert set(figures) <= set(ours[name])
        if name in ("divergences", "acceptance rate"):
            assert type(ours[name]["chain 0"]) is type(figures["chain 0"])
        else:
            assert {k: v.shape for k, v in figures.items()} == {k: ours[name][k].shape for k in figures}


def test_summary_prints_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(module: ModuleType) -> set[str]:
        script(module, groups).summary(prob=0.8)
        shown = capsys.readouterr().out
        assert "10.0%" in shown
        assert "90.0%" in shown
        return {word for line in shown.splitlines() for word in line.split()[:1] if word[0].isalpha()}

    assert {"tau", "share[0]", "share[2]", "effect[1]"} <= rows(pyro.infer) & rows(inference)


def test_initial_params_and_saved_sites() -> None:
    initial = {"weights": torch.zeros(2), "bias": torch.tensor(0.1), "a_sigma": torch.tensor(-1.0)}
    for module in MODULES:
        found = script(module, regression, initial_params=dict(initial), save_params=["bias"]).get_samples()
        assert {name: tuple(value.shape) for name, value in found.items()} == {"bias": (6,)}


def test_hooks_get_what_pyros_get() -> None:
    def calls(module: ModuleType) -> list[tuple[dict[str, Any], str, int]]:
        seen: list[tuple[dict[str, Any], str, int]] = []

        def hook(kernel: Any, samples: dict[str, Tensor], stage: str, i: int) -> None:
            shapes = {name: tuple(value.shape) for name, value in samples.items()}
            seen.append((shapes, stage, i))

        script(module, groups, hook_fn=hook)
        return seen

    assert calls(inference) == calls(pyro.infer)


def test_a_potential_function() -> None:
    for module in MODULES:
        with forked_rng(0):
            kernel = module.HMC(
                potential_fn=lambda values: (values["x"] ** 2).sum() / 2, step_size=0.5, num_steps=4
            )
            mcmc = module.MCMC(
                kernel, 10, 10, {"x": torch.tensor([0.5, 1.0])}, transforms={}, disable_progbar=True
            )
            mcmc.run()
        assert mcmc.get_samples()["x"].shape == (10, 2)


def test_arviz_reads_what_a_pyro_user_reads() -> None:
    pytest.importorskip("arviz")
    found = script(inference, regression, num_chains=2).to_arviz()
    assert found.posterior["weights"].shape == (2, 6, 2)
