"""The flat density equals Pyro's own, or a closed form, on every model of the catalogue."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, EFFECTS, ERRORS, MASK, Entry, X, Y, eight_schools, linear_regression, mixture
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppgen.errors import ConfigError, DataError, SamplingWarning, ShapeError
from ppgen.inference.mcmc.potential import Potential, potential_from_function
from ppgen.inference.mcmc.transforms import bijection
from ppgen.ops.random import forked_rng
from tests.posteriordb.extra import EXTRA

pytestmark = pytest.mark.filterwarnings("ignore::ppgen.errors.SamplingWarning")


@functools.cache
def potential_named(name: str) -> Potential:
    entry = next(entry for entry in CATALOGUE if entry.name == name)
    return Potential(
        entry.model,
        entry.args,
        entry.kwargs,
        dtype=torch.float64,
        max_plate_nesting=entry.max_plate_nesting,
    )


def potential_of(entry: Entry) -> Potential:
    """Made once for all tests of this file."""
    return potential_named(entry.name)


def points(num: int, num_dims: int, seed: int = 0) -> Tensor:
    return torch.randn(num, num_dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pyros_energy(entry: Entry, potential: Potential) -> Callable[[Tensor], Tensor]:
    """Pyro's potential as a function of the flat z; all its tensors in float64."""
    from ppgen.inference.mcmc.cures import Cures

    store = pyro.get_param_store()
    with forked_rng(0), Cures(torch.float64, None), store.scope():
        _, energy, transforms, _ = initialize_model(
            entry.model, entry.args, dict(entry.kwargs), max_plate_nesting=entry.max_plate_nesting
        )
    assert set(transforms) == {site.name for site in potential.sites}

    def at(z: Tensor) -> Tensor:
        values = {s.name: z[s.slice].reshape(s.unconstrained_shape) for s in potential.sites}
        with Cures(torch.float64, None), store.scope(), pyro.validation_enabled(False):
            return energy(values)

    return at


def closed_form(entry: Entry, potential: Potential) -> Callable[[Tensor], Tensor]:
    """The energy from the log density of constrained values, with Jacobians by autograd."""
    assert entry.log_density is not None

    def at(z: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        log_jacobian: Tensor | float = 0.0
        for site in potential.sites:
            support = site.support
            if site.depends:  # the only one: Uniform(low, low + 3)
                support = torch.distributions.constraints.interval(values["low"], values["low"] + 3)
            transform = bijection(support, site.name)
            piece = z[site.slice].reshape(site.unconstrained_shape)
            value = transform(piece)
            log_jacobian = log_jacobian + transform.log_abs_det_jacobian(piece, value).sum()
            values[site.name] = value
        return -(entry.log_density(values) + log_jacobian)

    return at


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_density_and_gradient_equal_the_oracle(entry: Entry) -> None:
    potential = potential_of(entry)
    oracle = pyros_energy(entry, potential) if entry.pyro else closed_form(entry, potential)
    density = potential.density()
    z = points(4, potential.num_dims)
    u, g = density.batched(z)
    assert u.shape == (4, 1)
    assert g.shape == (4, 1, potential.num_dims)
    for i, point in enumerate(z):
        leaf = point.clone().requires_grad_()
        expected = oracle(leaf)
        (gradient,) = torch.autograd.grad(expected, leaf)
        for value, slope in (density.single(point), (u[i], g[i])):
            torch.testing.assert_close(value[0], expected.detach(), rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(slope[0], gradient, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(-potential.log_parts(point).sum(), expected.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_parts_and_transforms(entry: Entry) -> None:
    potential = potential_of(entry)
    z = points(3, potential.num_dims, seed=1)
    both, _ = potential.density(path=True).batched(z)
    joint, _ = potential.density().batched(z)
    assert both.shape == (3, 2)
    torch.testing.assert_close(both.sum(1), joint[:, 0])
    torch.testing.assert_close(-both[0], potential.log_parts(z[0]))
    values = potential.constrain(z)
    assert {name: tuple(v.shape[1:]) for name, v in values.items()} == {
        s.name: s.shape for s in potential.sites
    }
    again = potential.unconstrain({name: value[1] for name, value in values.items()})
    torch.testing.assert_close(again, z[1], rtol=1e-6, atol=1e-6)
    nested = potential.constrain(z.reshape(3, 1, -1))
    for name, value in values.items():
        torch.testing.assert_close(nested[name][:, 0], value)


@pytest.mark.parametrize("support", [constraints.lower_cholesky, constraints.positive_definite], ids=str)
def test_matrix_bijections(support: Any) -> None:
    transform = bijection(support, "matrix")
    x = points(4, 6)
    matrices = transform(x)
    assert matrices.shape == (4, 3, 3)
    assert bool(support.check(matrices).all())
    assert transform.forward_shape((4, 6)) == (4, 3, 3)
    assert transform.inverse_shape((4, 3, 3)) == (4, 6)
    torch.testing.assert_close(transform.inv(matrices), x)
    rows, columns = torch.tril_indices(3, 3)
    for point, log_det in zip(x, transform.log_abs_det_jacobian(x, matrices), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: transform(p)[rows, columns], point)
        torch.testing.assert_close(jacobian.det().abs().log(), log_det)


def test_catalogue_is_wide() -> None:
    assert len(CATALOGUE) >= 25
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


def test_sites_plates_and_deterministics() -> None:
    potential = Potential(eight_schools, (EFFECTS, ERRORS), dtype=torch.float64)
    assert [site.name for site in potential.sites] == ["mu", "tau", "effect"]
    assert potential.sites[2].dims == ("schools",)
    assert [(site.name, site.shape) for site in potential.deterministics] == [("theta", (8,))]
    assert potential.deterministics[0].dims == ("schools",)
    assert [site.name for site in potential.observed] == ["y"]
    z = points(5, 10)
    values, theta = potential.constrain(z), potential.deterministic(z)["theta"]
    torch.testing.assert_close(theta, values["mu"][:, None] + values["tau"][:, None] * values["effect"])
    expected = dist.Normal(theta[0], ERRORS).log_prob(EFFECTS).sum()
    torch.testing.assert_close(potential.log_parts(z[0])[1], expected)


def test_only_missing_entries_are_coordinates() -> None:
    entry = next(entry for entry in CATALOGUE if entry.name == "missing")
    with_nan = torch.where(MASK, Y, torch.nan)
    potential = Potential(entry.model, (with_nan, MASK), dtype=torch.float64)
    assert potential.num_dims == 1 + int((~MASK).sum())
    z = points(2, potential.num_dims)
    u, g = potential.density().batched(z)
    assert bool(g.isfinite().all())
    torch.testing.assert_close(u, potential_of(entry).density().batched(z)[0])
    filled = potential.deterministic(z)["y"]
    torch.testing.assert_close(filled[:, MASK], Y[MASK].expand(2, -1))
    torch.testing.assert_close(filled[:, ~MASK], z[:, 1:])


def test_parameters_and_store_stay_as_they_were() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, y: Tensor) -> None:
            pyro.module("net", self)
            rate = pyro.param("rate", torch.tensor(0.5), constraint=dist.constraints.positive)
            z = pyro.sample("z", dist.Normal(0.0, self.scale * rate))
            pyro.sample("y", dist.Normal(z, 1.0).expand([20]).to_event(1), obs=y)

    model, y = Model(), Y.float()
    scale, before = model.scale, copy.deepcopy(model.state_dict())
    potential = Potential(model, (y,), dtype=torch.float64)
    potential.density().batched(points(2, 1))
    assert model.scale is scale
    assert scale.dtype == torch.float32
    assert scale.requires_grad
    torch.testing.assert_close(model.state_dict(), before)
    assert y.dtype == torch.float32
    assert not list(pyro.get_param_store().keys())


def test_float64_inside_a_float32_model() -> None:
    constant = torch.tensor([1.0, 2.0, 0.5])

    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), constant).to_event(1))
        pyro.sample("y", dist.Normal(x @ weight, 0.1 * torch.ones(20)).to_event(1), obs=y)

    potential = Potential(model, (X.float(), Y.float()), dtype=torch.float64)
    z = points(1, 3)[0]
    u, g = potential.density().single(z)
    assert u.dtype == g.dtype == torch.float64
    mean = X.float().double() @ z
    expected = dist.Normal(torch.zeros(3, dtype=torch.float64), constant.double()).log_prob(z).sum()
    tenth = torch.tensor(0.1, dtype=torch.float64)
    expected = expected + dist.Normal(mean, tenth).log_prob(Y.float().double()).sum()
    torch.testing.assert_close(u[0], -expected, rtol=1e-12, atol=0)


def test_precision_is_chosen_by_rounding_noise() -> None:
    small = Potential(eight_schools, (EFFECTS.float(), ERRORS.float()))
    assert small.dtype == torch.float32
    assert "nats" in small.dtype_reason

    def large(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1e6))
        pyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]).to_event(1), obs=y)

    y = 1e5 + torch.randn(20000, generator=torch.Generator().manual_seed(0))
    precise = Potential(large, (y,))
    assert precise.dtype == torch.float64
    assert Potential(large, (y.double(),)).dtype_reason == "the model, or its data, are in float64"


def test_global_state_and_arguments_stay(recwarn: pytest.WarningsRecorder) -> None:
    state, x = torch.get_rng_state(), X.clone()
    with pyro.validation_enabled(True):
        Potential(linear_regression, (X, Y)).density()
        assert pyro.poutine.util.is_validation_enabled()
        assert torch.distributions.Distribution._validate_args
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, X)
    assert torch.get_default_dtype() == torch.float32


def _raises_inside(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0, 1))
    raise KeyError("mine")


def test_an_error_of_the_model_is_the_users_own_and_all_is_restored() -> None:
    before = pyro.settings.get()
    with pytest.raises(KeyError, match="mine"):
        Potential(_raises_inside, (Y,))
    assert pyro.settings.get() == before
    assert not pyro.poutine.runtime._PYRO_STACK


def _poisson_latent(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1, 1))
    count = pyro.sample("count", dist.Poisson(rate))
    pyro.sample("y", dist.Normal(count, 1), obs=y[0])


def _discrete_only(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k, 1), obs=y[0])


def _nothing(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(0, 1).expand([20]).to_event(1), obs=y)


def _subsampled(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    with pyro.plate("rows", 20, subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(z, 1), obs=y[rows])


def _changing(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    if z > 0.01:
        pyro.sample("more", dist.Normal(0, 1))
    if z < -0.01:
        pyro.sample("other", dist.Normal(0, 1))


def _sphere(y: Tensor) -> None:
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def _random(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0, 1))
    pyro.sample("y", dist.Normal(z, 1 + torch.rand(())).expand([20]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_poisson_latent, "'count' cannot be summed out.*infinitely"),
        (_discrete_only, "all its latent sites are discrete.*k"),
        (_nothing, "no latent sites"),
        (_subsampled, "'rows' takes a subsample of 5 of 20"),
        (_changing, "'(more|other)' was .*there in the first run"),
        (_sphere, "'direction' has the support"),
        (_random, "draws random numbers"),
    ],
    ids=["infinite", "all-discrete", "no-latents", "subsample", "changing-sites", "sphere", "random"],
)
def test_models_that_cannot_work(model: Callable[..., Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Potential(model, (Y,)).density()


def _rates(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1, 1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_bad_data_are_named_and_counted() -> None:
    holes = Y.clone()
    holes[[2, 5]] = torch.nan
    with pytest.raises(DataError, match="site 'y': 2 of 20 observed values are NaN"):
        Potential(linear_regression, (X, holes))
    with pytest.raises(
        DataError, match="site 'y': 3 of 4 observed values are outside of the support of Poisson"
    ):
        Potential(_rates, (torch.tensor([1.0, -1.0, 0.5, -2.0]),))
    covariates = X.clone()
    covariates[0, 1] = torch.nan
    with pytest.raises(DataError, match=r"args\[0\]: 1 of 60 values are NaN"):
        Potential(linear_regression, (covariates, Y))


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="model: expected a Pyro program, got int"):
        Potential(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dtype: expected"):
        Potential(linear_regression, (X, Y), dtype=torch.int64)
    potential = Potential(linear_regression, (X, Y))
    with pytest.raises(ShapeError, match=r"z: expected the shape \(5,\), got \(4,\)"):
        potential.log_parts(torch.zeros(4))
    with pytest.raises(ConfigError, match="'weight' has none"):
        potential.unconstrain({})
    with pytest.raises(ShapeError, match="'weight' needs the shape"):
        potential.unconstrain({"weight": torch.zeros(2)})


def test_untraceable_models_warn_once_and_name_the_line() -> None:
    entry = next(entry for entry in CATALOGUE if entry.name == "branching")
    with pytest.warns(SamplingWarning, match=r"catalogue.py:\d+: scale = 1.0 if z > 0"):
        density = Potential(entry.model, entry.args, dtype=torch.float64).density()
    assert not density.traceable


def test_closed_form_of_a_mixture() -> None:
    potential = Potential(mixture, (Y,), dtype=torch.float64)
    z = points(1, potential.num_dims)[0]
    values = potential.constrain(z)
    terms = dist.Normal(values["mean"], values["scale"]).log_prob(Y[:, None]) + values["weights"].log()
    torch.testing.assert_close(potential.log_parts(z)[1], terms.logsumexp(1).sum(), rtol=1e-10, atol=0)
    prior = dist.Dirichlet(torch.ones(2, dtype=torch.float64)).log_prob(values["weights"])
    one = torch.ones((), dtype=torch.float64)
    prior = prior + dist.Normal(0 * one, 3 * one).log_prob(values["mean"]).sum()
    prior = prior + dist.LogNormal(0 * one, one).log_prob(values["scale"]).sum()
    jacobian = values["scale"].log().sum()
    stick = biject_to(dist.constraints.simplex)
    jacobian = jacobian + stick.log_abs_det_jacobian(z[:1], values["weights"])
    torch.testing.assert_close(potential.log_parts(z)[0], prior + jacobian, rtol=1e-10, atol=0)


def test_a_function_of_unconstrained_values() -> None:
    def energy(values: dict[str, Tensor]) -> Tensor:
        return 0.5 * (values["a"] ** 2).sum() + (values["b"] - values["a"].sum()) ** 2

    start = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    potential = potential_from_function(energy, start)
    assert potential.num_dims == 3
    z = points(4, 3)
    u, g = potential.density().batched(z)
    expected = 0.5 * (z[:, :2] ** 2).sum(1) + (z[:, 2] - z[:, :2].sum(1)) ** 2
    torch.testing.assert_close(u[:, 0], expected)
    torch.testing.assert_close(g[:, 0, 2], 2 * (z[:, 2] - z[:, :2].sum(1)))
    assert potential.density(path=True).batched(z)[0].shape == (4, 2)
    values = potential.constrain(z)
    torch.testing.assert_close(potential.unconstrain({name: v[0] for name, v in values.items()}), z[0])
    with pytest.raises(ConfigError, match="initial_params"):
        potential_from_function(energy, {})


def test_handlers_around_the_model_count() -> None:
    z = points(1, 5)[0]
    whole = Potential(linear_regression, (X, Y), dtype=torch.float64)
    half = Potential(poutine.scale(linear_regression, 0.5), (X, Y), dtype=torch.float64)
    jacobian = z[4]  # of sigma, which is not scaled
    expected = 0.5 * (whole.log_parts(z) - torch.stack([jacobian, 0 * jacobian]))
    torch.testing.assert_close(half.log_parts(z), expected + torch.stack([jacobian, 0 * jacobian]))


@pytest.mark.parametrize("name", sorted(EXTRA))
def test_densities_of_more_models(name: str) -> None:
    extra = EXTRA[name]
    entry = Entry(name, extra.model, extra.simulate(0))
    potential = Potential(entry.model, entry.args, dtype=torch.float64)
    density = potential.density()
    assert density.traceable
    z = 0.5 * points(4, potential.num_dims)
    singles = [density.single(point) for point in z]
    values, gradients = (torch.stack(part) for part in zip(*singles, strict=True))
    assert bool(gradients.isfinite().all())
    if all(site.missing is None for site in potential.sites):  # Pyro has a coordinate for data, too
        energy = pyros_energy(entry, potential)
        torch.testing.assert_close(values[:, 0], torch.stack([energy(point).detach() for point in z]))
    for found in (density.batched(z), density.evaluate(z)):
        torch.testing.assert_close(found[0], values)
        torch.testing.assert_close(found[1], gradients)


def test_deterministics_of_discrete_latents_are_left_out() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.deterministic("centre", mu[k.long()])
            pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y)

    potential = Potential(model, (Y,), dtype=torch.float64)
    z = points(3, 2)
    assert [site.name for site in potential.deterministics] == ["twice"]
    torch.testing.assert_close(potential.deterministic(z), {"twice": 2 * z})


def test_the_model_and_its_arguments_are_kept() -> None:
    potential = Potential(linear_regression, (X,), {"y": Y}, dtype=torch.float64)
    assert potential.model is linear_regression
    assert potential.args[0] is X
    assert potential.kwargs["y"] is Y
