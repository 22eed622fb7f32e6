"""What ArviZ gets: groups, names, figures; both of its generations."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.errors import CapabilityError, ConfigError, SamplingWarning, ShapeError
from ppgen.inference import arviz_adapter
from ppgen.inference.mcmc import diagnostics
from ppgen.inference.mcmc.result import Posterior

arviz = arviz_adapter.import_arviz()

SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def eight_schools(sigma: Tensor, y: Tensor | None, *, spread: float = 5.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, spread))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.deterministic("relative", theta - mu)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    pyro.sample("direction", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))


def pooled(sigma: Tensor, y: Tensor | None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(sigma)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


@dataclass
class Observation:
    name: str
    value: Tensor | None


@dataclass
class Model:
    model: Callable[..., Any]
    args: tuple[Any, ...] = (SIGMA, Y)
    kwargs: dict[str, Any] = field(default_factory=dict)
    sites: tuple[Any, ...] = ()
    observed: tuple[Observation, ...] = (Observation("y", Y),)
    deterministics: tuple[Observation, ...] = ()


def gibbs(num_chains: int = 4, num_draws: int = 400) -> Posterior:
    """Draws of eight schools, close to exact: mu and theta given tau are normal, tau is on a grid."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    grid = torch.linspace(0.05, 40, 800)
    variance = SIGMA**2 + grid[:, None] ** 2
    precision = (1 / variance).sum(1) + 1 / 25
    centre = (Y / variance).sum(1) / precision
    log_weight = (
        dist.HalfCauchy(5.0).log_prob(grid)
        + dist.Normal(centre[:, None], variance.sqrt()).log_prob(Y).sum(1)
        + dist.Normal(0.0, 5.0).log_prob(centre)
        - 0.5 * precision.log()
    )
    shape = (num_chains, num_draws)
    place = torch.multinomial(log_weight.softmax(0), num_chains * num_draws, True, generator=generator)
    tau = grid[place].reshape(shape)
    mu = centre[place].reshape(shape) + normal(*shape) / precision[place].sqrt().reshape(shape)
    inverse = 1 / SIGMA**2 + 1 / tau[..., None] ** 2
    mean = (Y / SIGMA**2 + mu[..., None] / tau[..., None] ** 2) / inverse
    theta = mean + normal(*shape, 8) / inverse.sqrt()
    ones = torch.ones(shape)
    return Posterior(
        {"mu": mu, "tau": tau, "theta": theta, "direction": normal(*shape, 2, 3)},
        statistics={
            "accept_prob": 0.8 * ones,
            "diverging": ones < 0,
            "num_steps": (7 * ones).long(),
            "energy": normal(*shape),
            "lp": normal(*shape),
            "tree_depth": (3 * ones).long(),
            "reached_max_depth": ones < 0,
        },
        potential=Model(eight_schools, deterministics=(Observation("relative", None),)),
        attributes={
            "seed": 7,
            "sampler": "NUTS",
            "versions": {"torch": "2.13", "pyro": "1.9.2"},
            "sampling_seconds": 0.5,
            "step_size": torch.full((num_chains,), 0.3),
            "scale": torch.eye(2),
            "interrupted": False,
            "trajectory_length": None,
        },
    )


def test_all_groups_are_there() -> None:
    data = gibbs().to_arviz(prior=50, posterior_predictive=True, seed=0)
    assert isinstance(data, arviz.InferenceData)
    assert set(data.groups()) == {
        "posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive",
        "observed_data", "constant_data",
    }  # fmt: skip
    assert set(data.posterior.data_vars) == {"mu", "tau", "theta", "direction", "relative"}
    assert set(data.sample_stats.data_vars) == {
        "diverging", "lp", "energy", "tree_depth", "reached_max_treedepth", "n_steps", "acceptance_rate",
        "step_size",
    }  # fmt: skip
    assert set(data.prior.data_vars) == {"mu", "tau", "theta", "direction", "relative"}
    assert set(data.prior_predictive.data_vars) == set(data.observed_data.data_vars) == {"y"}
    assert set(data.constant_data.data_vars) == {"sigma"}
    assert data.posterior_predictive["y"].sizes == {"chain": 4, "draw": 400, "school": 8}
    assert data.prior["mu"].sizes == {"chain": 1, "draw": 50}
    np.testing.assert_array_equal(data.observed_data["y"], Y.numpy())
    np.testing.assert_array_equal(data.constant_data["sigma"], SIGMA.numpy())
    np.testing.assert_allclose(data.sample_stats["step_size"], np.full((4, 400), 0.3), rtol=1e-6)


def test_without_a_model_there_are_draws_and_statistics() -> None:
    posterior = gibbs()
    posterior.potential = None
    assert set(posterior.to_arviz().groups()) == {"posterior", "sample_stats"}


def test_dimensions_are_named_after_plates() -> None:
    data = gibbs().to_arviz(coords={"school": list("ABCDEFGH")})
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    assert data.posterior["relative"].dims == ("chain", "draw", "school")
    assert data.log_likelihood["y"].dims == ("chain", "draw", "school")
    assert data.posterior["direction"].dims == ("chain", "draw", "direction_dim_0", "direction_dim_1")
    assert list(data.posterior["school"].values) == list("ABCDEFGH")
    mean = data.posterior["theta"].sel(school="C").mean().item()
    assert mean == pytest.approx(gibbs().samples["theta"][..., 2].double().mean().item(), rel=1e-5)


def test_dimensions_are_named_by_the_user() -> None:
    data = gibbs().to_arviz(dims={"direction": ["row", "column"]}, coords={"row": ["up", "down"]})
    assert data.posterior["direction"].dims == ("chain", "draw", "row", "column")
    assert list(data.posterior["row"].values) == ["up", "down"]


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ShapeError, match="dims: site 'theta' has 1 dimensions"):
        gibbs().to_arviz(dims={"theta": ["a", "b"]})
    with pytest.raises(ShapeError, match="coords: 'school' has 8 places, got 2"):
        gibbs().to_arviz(coords={"school": ["a", "b"]})
    with pytest.raises(ShapeError, match="dimension 'school' has the length"):
        gibbs().to_arviz(dims={"direction": ["school", "column"]})
    with pytest.raises(ConfigError, match="no site 'thta'"):
        gibbs().to_arviz(dims={"thta": ["a"]})


def test_an_argument_may_bear_the_name_of_a_site() -> None:
    def model(y: Tensor, sigma: Tensor) -> None:
        with pyro.plate("school", 2):
            sigma = pyro.sample("sigma", dist.LogNormal(sigma.mean(), 1.0))
        pyro.sample("y", dist.Normal(0.0, sigma.sum()), obs=y)

    prior = torch.tensor([0.1, 0.2, 0.3])
    posterior = Posterior({"sigma": torch.ones(2, 10, 2)}, potential=Model(model, (Y[0], prior), {}, (), ()))
    data = posterior.to_arviz(log_likelihood=False)
    assert data.posterior["sigma"].dims == ("chain", "draw", "school")
    assert data.constant_data["sigma"].shape == (3,)


def test_attributes_tell_how_the_run_went() -> None:
    data = gibbs().to_arviz()
    for attributes in (data.attrs, data.posterior.attrs):
        assert attributes["seed"] == 7
        assert attributes["sampler"] == "NUTS"
        assert attributes["inference_library"] == "ppgen"
        assert json.loads(attributes["versions"]) == {"torch": "2.13", "pyro": "1.9.2"}
        assert json.loads(attributes["scale"]) == [[1.0, 0.0], [0.0, 1.0]]
        assert attributes["interrupted"] == 0
        np.testing.assert_allclose(attributes["step_size"], [0.3] * 4, rtol=1e-6)
        assert "trajectory_length" not in attributes


def test_files_come_back(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    data = gibbs().to_arviz()
    data.to_netcdf(str(tmp_path / "run.nc"))
    again = arviz.from_netcdf(str(tmp_path / "run.nc"))
    assert set(again.groups()) == set(data.groups())
    np.testing.assert_array_equal(again.posterior["theta"], data.posterior["theta"])
    assert again.posterior.attrs["seed"] == 7
    assert json.loads(again.posterior.attrs["scale"]) == [[1.0, 0.0], [0.0, 1.0]]


def test_summary_agrees_with_that_of_arviz() -> None:
    posterior = gibbs()
    # In float32, ArviZ folds with rounding, and ties appear.
    posterior.samples = {name: value.double() for name, value in posterior.samples.items()}
    data = posterior.to_arviz(log_likelihood=False)
    theirs = arviz.summary(data, var_names=["theta"], round_to="none")
    found = diagnostics.describe(posterior.samples["theta"])
    for ours, name in (("r_hat", "r_hat"), ("ess_bulk", "ess_bulk"), ("ess_tail", "ess_tail"), ("sd", "sd")):
        np.testing.assert_allclose(found[ours].numpy(), theirs[name].to_numpy(), rtol=1e-5)


def test_leave_one_out_is_that_of_the_pointwise_densities() -> None:
    posterior = gibbs()
    found = arviz_adapter.loo(posterior, pointwise=True)
    assert found.n_data_points == 8
    # Importance sampling without smoothing, in closed form: the harmonic mean of the densities.
    log_density = posterior.log_likelihood()["y"].double().flatten(0, 1)
    raw = np.log(len(log_density)) - torch.logsumexp(-log_density, 0).numpy()
    np.testing.assert_allclose(found.loo_i, raw, atol=0.1)
    assert float(found.elpd_loo) == pytest.approx(float(found.loo_i.sum()))


@pytest.mark.filterwarnings("ignore:For one or more samples:UserWarning")
def test_models_are_compared() -> None:
    posterior = gibbs()
    other = Posterior({"mu": 30 + posterior.samples["mu"]}, potential=Model(pooled))
    table = arviz_adapter.compare({"shifted": other, "hierarchical": posterior})
    assert list(table.index) == ["hierarchical", "shifted"]
    assert table["weight"]["hierarchical"] > 0.9
    waic = arviz_adapter.compare({"shifted": other, "hierarchical": posterior}, ic="waic")
    assert "elpd_waic" in waic.columns
    with pytest.raises(ConfigError, match="two models"):
        arviz_adapter.compare({"alone": posterior})


def test_hidden_entries_are_not_left_out_one_by_one() -> None:
    mask = torch.BoolTensor([True] * 7 + [False])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("school", 8):
            pyro.sample("y", dist.Normal(mu, SIGMA), obs=Y, obs_mask=mask)

    observed = (Observation("y_observed", Y),)
    samples = {"mu": gibbs().samples["mu"], "y_unobserved": torch.zeros(4, 400, 8)}
    posterior = Posterior(samples, potential=Model(model, (), {}, (), observed))
    assert arviz_adapter.loo(posterior).n_data_points == 7


def test_a_site_must_be_chosen() -> None:
    with pytest.raises(ConfigError, match=r"site: .*\['y'\]"):
        arviz_adapter.loo(gibbs(), "z")


def test_log_likelihoods_that_do_not_exist_are_left_out() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)

    posterior = Posterior({"mu": torch.zeros(2, 10)}, potential=Model(model, (Y,)))
    with pytest.warns(SamplingWarning, match="left out the group log_likelihood.*'k'"):
        data = posterior.to_arviz()
    assert "log_likelihood" not in data.groups()
    with pytest.raises(CapabilityError):
        arviz_adapter.loo(posterior)


class Tree:
    """What ``xarray.DataTree`` is here: datasets by group, and attributes."""

    def __init__(self) -> None:
        self.groups: dict[str, Any] = {}
        self.attrs: dict[str, Any] = {}

    @classmethod
    def from_dict(cls, datasets: Mapping[str, Any]) -> Tree:
        tree = cls()
        tree.groups = dict(datasets)
        return tree


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The functions of ArviZ 1.0 that are used, with its names of arguments."""
    module = types.ModuleType("arviz")

    def dict_to_dataset(
        data: Any, *, attrs: Any = None, coords: Any = None, dims: Any = None, sample_dims: Any = None
    ) -> Any:
        return arviz.dict_to_dataset(data, attrs=attrs, coords=coords, dims=dims, default_dims=sample_dims)

    def compare(compare_dict: Any, method: str = "stacking", var_name: Any = None) -> Any:
        return sorted(compare_dict)

    vars(module).update(
        __version__="1.0.0",
        dict_to_dataset=dict_to_dataset,
        from_dict=lambda data: Tree.from_dict(data),
        compare=compare,
    )
    monkeypatch.setitem(sys.modules, "arviz", module)
    return module


def test_newer_arviz_gets_a_tree(newer: types.ModuleType) -> None:
    tree = gibbs().to_arviz(prior=10)
    old = set(tree.groups)
    assert isinstance(tree, Tree)
    assert {"posterior", "sample_stats", "log_likelihood", "observed_data", "prior"} <= old
    assert tree.groups["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert tree.attrs["seed"] == 7


def test_newer_arviz_compares_by_leaving_out_one(newer: types.ModuleType) -> None:
    assert arviz_adapter.compare({"b": gibbs(), "a": gibbs()}) == ["a", "b"]
    with pytest.raises(ConfigError, match="ic: ArviZ 1.0.0 compares by 'loo' only"):
        arviz_adapter.compare({"b": gibbs(), "a": gibbs()}, ic="waic")


def test_the_daily_announcement_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    announcing = types.ModuleType("arviz")
    _pretend(monkeypatch, announcing, lambda: warnings.warn("today", FutureWarning, stacklevel=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arviz_adapter.import_arviz()
    assert caught == []


def test_a_home_that_cannot_be_written_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "cache")

    _pretend(monkeypatch, types.ModuleType("arviz"), refuse)
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        arviz_adapter.import_arviz()


def _pretend(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, on_import: Callable[[], None]
) -> None:
    """Have ``import arviz`` find ``module``, and do something first."""
    import builtins

    real = builtins.__import__

    def find(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "arviz":
            on_import()
            return module
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", find)
