"""Saved runs of MCMC: what goes on to the same draws, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, CheckpointWarning, ConfigError, SamplingWarning
from ppgen.inference import HMC, MALA, MCMC, NUTS, ChEES, RandomWalk
from ppgen.inference.checkpoint import write_bundle
from ppgen.inference.mcmc import saving
from ppgen.inference.mcmc.samplers import Sampler

Y = torch.tensor([1.2, 0.3, 2.2])
quiet: dict[str, Any] = {"disable_progbar": True, "compile": False}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def model(y: Tensor, width: float = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, width).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(mu[0] + mu[1], 1.0).expand([3]).to_event(1), obs=y)


def other_names(y: Tensor, width: float = 1.0) -> None:
    pyro.sample("nu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def other_shapes(y: Tensor, width: float = 1.0) -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def make(sampler: Sampler | None = None, num: int = 20, **options: Any) -> MCMC:
    options = {"warmup_steps": 20, "num_chains": 4, "seed": 5, **quiet, **options}
    return MCMC(sampler or HMC(model, num_steps=2), num, **options)


def run(sampler: Sampler | None = None, num: int = 20, **options: Any) -> MCMC:
    mcmc = make(sampler, num, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # of short warm-ups and interruptions
        mcmc.run(Y, width=2.0)
    return mcmc


def resume(*args: Any, **kwargs: Any) -> MCMC:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        return MCMC.resume(*args, **kwargs)


def check_same(first: MCMC, second: MCMC) -> None:
    a, b = first.posterior, second.posterior
    assert a.num_draws == b.num_draws
    for name in a.samples:
        assert torch.equal(a.samples[name], b.samples[name])
    for name in a.statistics:
        assert torch.equal(a.statistics[name], b.statistics[name])


def stopping(stage: str, i: int) -> Any:
    def hook(sampler: Sampler, values: dict[str, Tensor], at: str, number: int) -> None:
        if (at, number) == (stage, i):
            signal.raise_signal(signal.SIGTERM)

    return hook


# -- going on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", [("Warmup", 2), ("Warmup", 14), ("Sample", 3)], ids=lambda w: f"{w[0]}-{w[1]}"
)
@pytest.mark.parametrize("cls", [NUTS, HMC, ChEES, MALA, RandomWalk])
def test_an_interrupted_run_resumes_to_the_same_draws(
    cls: type[Sampler], where: tuple[str, int], tmp_path: Path
) -> None:
    whole = run(cls(model))  # type: ignore[call-arg]
    part = run(cls(model), hook_fn=stopping(*where))  # type: ignore[call-arg]
    assert part.posterior.num_draws < 20
    part.save(tmp_path / "run")
    again = resume(tmp_path / "run", model)
    check_same(whole, again)
    again.extend(5)
    whole.extend(5)
    check_same(whole, again)


@needs_compiler
@pytest.mark.parametrize("where", [("Warmup", 8), ("Sample", 3)], ids=lambda w: f"{w[0]}-{w[1]}")
def test_a_compiled_run_resumes_to_the_same_draws(where: tuple[str, int], tmp_path: Path) -> None:
    # Three chains leave lanes of the vector to spare.
    options: dict[str, Any] = {"compile": "native", "num_chains": 3}
    whole = run(**options)
    part = run(hook_fn=stopping(*where), **options)
    assert part.posterior.num_draws < 20
    assert part.posterior.attributes["backend"] == "native"
    part.save(tmp_path / "run")
    again = resume(tmp_path / "run", model)
    assert again.posterior.attributes["backend"] == "native"
    check_same(whole, again)
    again.extend(5)
    check_same(run(num=25, **options), again)


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    whole = run()
    whole.save(tmp_path / "run")
    again = resume(tmp_path / "run", HMC(model, num_steps=2))
    check_same(whole, again)
    assert again.posterior.attributes["seed"] == 5
    assert again.num_samples == 20


@pytest.mark.parametrize(
    "sampler",
    [NUTS(model, full_mass=[("mu",)], max_tree_depth=3), HMC(model, adapt_step_size=False, step_size=0.3)],
    ids=["blocks", "fixed step"],
)
def test_the_sampler_is_rebuilt_with_its_arguments(sampler: Sampler, tmp_path: Path) -> None:
    part = run(sampler, hook_fn=stopping("Sample", 0))
    part.save(tmp_path / "run")
    check_same(run(sampler), resume(tmp_path / "run", model))


def test_saved_sites_and_precision_are_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_params": ["mu"], "dtype": torch.float64}
    part = run(hook_fn=stopping("Sample", 0), **options)
    part.save(tmp_path / "run")
    check_same(run(**options), resume(tmp_path / "run", model))


def test_a_potential_function_resumes(tmp_path: Path) -> None:
    def potential(values: dict[str, Tensor]) -> Tensor:
        return (values["x"] ** 2).sum() / 2

    options: dict[str, Any] = {"initial_params": {"x": torch.arange(8.0).reshape(4, 2)}}
    mcmc = make(HMC(potential_fn=potential), hook_fn=stopping("Sample", 0), **options)
    whole = make(HMC(potential_fn=potential), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        mcmc.run()
        whole.run()
    mcmc.save(tmp_path / "run")
    check_same(whole, resume(tmp_path / "run", potential))


def test_checkpoints_of_a_run_are_taken_up(tmp_path: Path) -> None:
    whole = run()
    run(hook_fn=stopping("Sample", 0), checkpoint=tmp_path / "run")
    again = run(checkpoint=tmp_path / "run")
    check_same(whole, again)
    longer = run(checkpoint=tmp_path / "run", num=30)
    check_same(run(num=30), longer)
    check_same(longer, resume(tmp_path / "run", model))


def test_checkpoints_are_written_as_time_goes_by(tmp_path: Path) -> None:
    written: list[str] = []

    def hook(sampler: Sampler, values: dict[str, Tensor], at: str, number: int) -> None:
        written.extend(p.name for p in (tmp_path / "run").glob("step-*"))

    run(hook_fn=hook, checkpoint=tmp_path / "run", checkpoint_seconds=1e-9)
    assert {"step-0000000001", "step-0000000019", "step-0000000028"} <= set(written)
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_data_of_many_kinds_are_saved() -> None:
    args = (Y, np.arange(3.0), [1, (2.5, None)], {"a": True, 3: "x"})
    encoded = saving.encode_data(args, {"b": Y})
    assert encoded is not None
    again, named = saving.decode_data(encoded)
    assert torch.equal(again[0], Y)
    assert np.array_equal(again[1], np.arange(3.0))
    assert again[2:] == args[2:]
    assert torch.equal(named["b"], Y)
    assert saving.digest_of_data(args, {"b": Y}) == saving.digest_of_data(again, named)
    assert saving.digest_of_data(args, {"b": Y + 1}) != saving.digest_of_data(again, named)


def test_data_that_cannot_be_saved_are_given_again(tmp_path: Path) -> None:
    class Table:
        values = Y

    def of_table(table: Table) -> None:
        model(table.values)

    mcmc = make(HMC(of_table, num_steps=2))
    mcmc.run(Table())
    mcmc.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="args: .* give them to resume"):
        resume(tmp_path / "run", of_table)
    check_same(mcmc, resume(tmp_path / "run", of_table, Table()))


# -- what is refused ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run().save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_names, "sites: .*'mu'.*'nu'"),
        (other_shapes, r"sites: .*\[2\].*\[3\]"),
        (NUTS(model), "sampler: the saved run has HMC, this one NUTS"),
        (HMC(model, num_steps=7), "sampler_arguments: "),
    ],
    ids=["names", "shapes", "sampler", "arguments"],
)
def test_another_model_or_sampler(saved: Path, other: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resume(saved, other)


def test_other_data(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="data: "):
        resume(saved, model, Y + 1, width=2.0)


@pytest.mark.parametrize(
    ("option", "name"),
    [({"seed": 6}, "seed"), ({"num_chains": 3}, "num_chains"), ({"warmup_steps": 4}, "warmup_steps")],
    ids=["seed", "chains", "warm-up"],
)
def test_checkpoints_of_another_run(option: dict[str, Any], name: str, tmp_path: Path) -> None:
    run(checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"{name}: the saved run has"):
        run(checkpoint=tmp_path / "run", **option)


def test_a_damaged_run(saved: Path) -> None:
    file = saved / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        resume(saved, model)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(checkpoint=path, num=10)
    run(checkpoint=path, num=20)
    newest = sorted(path.glob("step-*"))[-1]
    (newest / "state.json").write_text("{}")
    with pytest.warns(CheckpointWarning, match="passed over"):
        again = run(checkpoint=path, num=20)
    check_same(run(), again)


def test_something_else_than_a_run(tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", {"kind": "model"})
    with pytest.raises(CheckpointError, match="something else than a run"):
        resume(tmp_path / "other", model)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        resume(tmp_path / "nothing", model)


def test_a_newer_format(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        resume(saved, model)


def test_nothing_to_save() -> None:
    with pytest.raises(ConfigError, match=r"call run\(\.\.\.\) first"):
        make().save("nowhere")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run(checkpoint=tmp_path / "file" / "run")
    mcmc = run()
    with pytest.raises(CheckpointError, match="could not write"):
        mcmc.save(tmp_path / "file" / "run")


def test_a_disk_that_fills_up_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise CheckpointError("path: could not write: the disk is full")

    monkeypatch.setattr("ppgen.inference.checkpoint.write_bundle", full)
    with pytest.warns(CheckpointWarning, match="the disk is full"):
        mcmc = run(checkpoint=tmp_path / "run")
    assert mcmc.posterior.num_draws == 20
