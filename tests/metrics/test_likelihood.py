"""NLL and bits/dim: closed forms, kinds, dequantisation by quadrature, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import BINARY, REAL, Values, grid
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.metrics import bits_per_dim, log_likelihoods, nll
from ppgen.testing.statistics import assert_close_to, assert_mean


class Factorised(GenerativeModel):
    """Independent coordinates: normal on the reals, else one categorical over the levels."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        support: Values = REAL,
        loc: float = 0.0,
        scale: float = 1.0,
        probs: tuple[float, ...] = (),
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape, support=support)
        self.context_dim = context_dim
        self.loc = nn.Parameter(torch.tensor(loc))
        self.scale = scale
        self.register_buffer("probs", torch.tensor(probs))
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
        self.seen: list[tuple[int, bool, torch.dtype]] = []

    def log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.support.kind == "real":
            loc = self.loc if context is None else self.loc + context.to(x.dtype).reshape(-1, 1)
            each = dist.Normal(loc, self.scale).log_prob(x.flatten(1))
        else:
            each = self.probs.to(x.dtype).log()[self.support.indices(x.flatten(1))]
        return each.sum(1)

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        with self.data_plate(x, num, context):
            return pyro.sample(
                "x", dist.Normal(self.loc, self.scale).expand(self.event_shape).to_event(), obs=x
            )

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        self.seen.append((len(x), any(m.training for m in self.modules()), x.dtype))
        return Estimate.of(self.log_prob(x, context), Kind.EXACT)


class Bounded(Factorised):
    """Gives the log-likelihood less a random gap of mean ``gap``, or as another kind."""

    def __init__(self, event_shape: tuple[int, ...], *, kind: Kind, gap: float = 0.5, **rest: Any) -> None:
        super().__init__(event_shape, **rest)
        self.kind, self.gap = kind, gap

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        num = options.get("num_particles", 4)
        draws = self.log_prob(x, context) - self.gap * torch.rand(num, len(x), dtype=x.dtype) * 2
        return Estimate(draws.mean(0), self.kind, draws.std(0) / math.sqrt(num))


class Implicit(GenerativeModel):
    """Samples without a density."""

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        return torch.zeros(num or 1, *self.event_shape)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _levels(num: int, dims: int, levels: int, seed: int = 0) -> Tensor:
    k = torch.randint(levels, (num, dims), generator=torch.Generator().manual_seed(seed))
    return k / (levels - 1)


# -- closed forms --------------------------------------------------------------------------


def test_uniform_over_17_levels_is_log2_of_17_bits() -> None:
    model = Factorised((1, 8, 8), support=grid(17), probs=(1 / 17,) * 17)
    data = Split(_levels(50, 64, 17).reshape(50, 1, 8, 8), values=grid(17))
    found = bits_per_dim(model, data)
    assert float(found.value) == pytest.approx(math.log2(17), rel=1e-6)
    assert float(found.std_error) == pytest.approx(0.0, abs=1e-6)
    assert found.kind is Kind.EXACT


def test_bernoulli_by_counting() -> None:
    model = Factorised((4,), support=BINARY, probs=(0.75, 0.25))
    x = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    found = nll(model, Split(x, values=BINARY))
    each = [-(4 - ones) * math.log(0.75) - ones * math.log(0.25) for ones in (0, 2, 4)]
    assert float(found.value) == pytest.approx(sum(each) / 3, rel=1e-6)
    assert float(found.std_error) == pytest.approx(float(torch.tensor(each).std()) / math.sqrt(3), rel=1e-5)
    assert found.kind is Kind.EXACT


def test_gaussian_of_known_entropy() -> None:
    model = Factorised((3,), loc=1.0, scale=2.0)
    found = nll(model, 1 + 2 * _normal(5000, 3))
    entropy = 1.5 * math.log(2 * math.pi * math.e * 4)
    assert found.kind is Kind.EXACT
    assert_close_to(found.value, entropy, found.std_error, "entropy")
    # Each nll is 3 log(2 sqrt(2 pi)) + chi2(3) / 2, of variance 6 / 4.
    assert float(found.std_error) == pytest.approx(math.sqrt(1.5 / 5000), rel=0.1)


def test_gaussian_entropy_twin_with_another_scale_is_caught() -> None:
    found = nll(Factorised((3,), loc=1.0, scale=2.0), 1 + 2.2 * _normal(5000, 3))
    with pytest.raises(AssertionError):
        assert_close_to(found.value, 1.5 * math.log(2 * math.pi * math.e * 4), found.std_error)


def test_bits_are_nats_over_dims_and_log_2() -> None:
    model, x = Factorised((2, 3), scale=0.7), _normal(20, 2, 3)
    nats, bits = nll(model, x), bits_per_dim(model, x)
    assert float(bits.value) == pytest.approx(float(nats.value) / 6 / math.log(2), rel=1e-12)
    assert float(bits.std_error) == pytest.approx(float(nats.std_error) / 6 / math.log(2), rel=1e-12)


def test_one_datum() -> None:
    found = nll(Factorised((2,)), torch.zeros(1, 2))
    assert float(found.value) == pytest.approx(math.log(2 * math.pi), rel=1e-6)
    assert float(found.std_error) == 0.0
    noisy = nll(Bounded((2,), kind=Kind.LOWER_BOUND), torch.zeros(1, 2))
    assert float(noisy.std_error) > 0.0


# -- dequantisation ------------------------------------------------------------------------

_L, _LOC, _SCALE = 4, 0.4, 0.25


def _cells(num: int = 2001) -> tuple[Tensor, Tensor]:
    """Per level: E_u log p((k + u) / L) - log L by quadrature, and the true log mass of the cell."""
    normal = torch.distributions.Normal(torch.tensor(_LOC).double(), _SCALE)
    edges = torch.arange(_L + 1).double() / _L
    mass = (normal.cdf(edges[1:]) - normal.cdf(edges[:-1])).log()
    u = (torch.arange(num).double() + 0.5) / num
    y = (torch.arange(_L).double()[:, None] + u) / _L
    return normal.log_prob(y).mean(1) - math.log(_L), mass


def _dequantised(shift: float = 0.0) -> Estimate:
    model = Factorised((1,), loc=_LOC, scale=_SCALE)
    data = Split(torch.arange(_L)[:, None] / (_L - 1), values=grid(_L))
    return log_likelihoods(model, data, num_dequantisations=2000).affine(1.0, shift)


def test_dequantisation_is_the_bound_by_quadrature() -> None:
    found = _dequantised()
    bound, mass = _cells()
    assert found.kind is Kind.LOWER_BOUND
    assert_close_to(found.value, bound, found.std_error, "bound")
    assert bool((bound < mass).all())
    assert bool((found.value < mass).all())


@pytest.mark.parametrize("shift", [math.log(_L), -math.log(_L), math.log(_L) - math.log(_L - 1)])
def test_dequantisation_twins_with_a_wrong_volume_are_caught(shift: float) -> None:
    found = _dequantised(shift)
    with pytest.raises(AssertionError):
        assert_close_to(found.value, _cells()[0], found.std_error, "bound")


def test_dequantised_error_is_the_spread_over_seeds() -> None:
    model = Factorised((1,), loc=_LOC, scale=_SCALE)
    data = Split(torch.zeros(400, 1), values=grid(_L))  # equal data, independent noise
    found = log_likelihoods(model, data, num_dequantisations=8)
    bound, _ = _cells()
    gaps = (found.value - bound[0]) ** 2
    assert_mean(gaps - found.std_error**2, 0.0, "claimed variance")
    with pytest.raises(AssertionError):
        assert_mean(gaps - 8 * found.std_error**2, 0.0, "claimed variance")


def test_dequantised_nll_of_a_flat_density_is_uniform() -> None:
    # A density that is nearly flat on the cube: log p is its constant.
    model = Factorised((5,), loc=0.5, scale=100.0)
    found = bits_per_dim(model, Split(_levels(10, 5, 17), values=grid(17)))
    expected = math.log2(17) + math.log2(100 * math.sqrt(2 * math.pi))
    assert float(found.value) == pytest.approx(expected, rel=1e-4)
    assert found.kind is Kind.UPPER_BOUND


def test_noise_depends_on_the_seed_and_not_on_batches() -> None:
    model, data = Factorised((3,), scale=0.3), Split(_levels(50, 3, 8), values=grid(8))
    whole = log_likelihoods(model, data)
    for size in (1, 7, 50):
        assert torch.equal(log_likelihoods(model, data, batch_size=size).value, whole.value)
    assert not torch.equal(log_likelihoods(model, data, seed=1).value, whole.value)


# -- kinds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "on_real", "dequantised"),
    [
        (Kind.EXACT, Kind.EXACT, Kind.UPPER_BOUND),
        (Kind.LOWER_BOUND, Kind.UPPER_BOUND, Kind.UPPER_BOUND),
        (Kind.ESTIMATE, Kind.ESTIMATE, Kind.UPPER_BOUND),
    ],
)
def test_kinds(kind: Kind, on_real: Kind, dequantised: Kind) -> None:
    model = Bounded((2,), kind=kind)
    data = Split(_levels(6, 2, 4), values=grid(4))
    assert nll(model, data.x).kind is on_real
    assert nll(model, data).kind is dequantised
    assert bits_per_dim(model, data).kind is dequantised


def test_bound_on_a_mass_stays_a_bound() -> None:
    model = Bounded((2,), kind=Kind.LOWER_BOUND, support=BINARY, probs=(0.5, 0.5))
    data = Split(_levels(30, 2, 2), values=BINARY)
    assert nll(model, data).kind is Kind.UPPER_BOUND
    assert log_likelihoods(model, data).kind is Kind.LOWER_BOUND


def test_bound_adds_its_gap_to_the_nll() -> None:
    model, x = Bounded((2,), kind=Kind.LOWER_BOUND, gap=0.5), torch.zeros(3000, 2)
    found = nll(model, x)
    assert_close_to(found.value, math.log(2 * math.pi) + 0.5, found.std_error, "nll")
    with pytest.raises(AssertionError):
        assert_close_to(found.value, math.log(2 * math.pi), found.std_error, "nll")


def test_upper_bound_meets_real_data_only() -> None:
    model, data = Bounded((2,), kind=Kind.UPPER_BOUND), Split(_levels(6, 2, 4), values=grid(4))
    assert nll(model, data.x).kind is Kind.LOWER_BOUND
    with pytest.raises(CapabilityError, match="dequantisation bounds it from below"):
        nll(model, data)


def test_unnormalised_enters_no_likelihood() -> None:
    model, x = Bounded((2,), kind=Kind.UNNORMALISED), _normal(5, 2)
    for metric in (nll, bits_per_dim):
        with pytest.raises(CapabilityError, match='log partition.*method="ais"'):
            metric(model, x)
    assert log_likelihoods(model, x).kind is Kind.UNNORMALISED
    data = Split(_levels(6, 2, 4), values=grid(4))
    assert log_likelihoods(model, data).kind is Kind.UNNORMALISED


def test_implicit_model_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"log_likelihood\(\); Implicit has none"):
        nll(Implicit((2,)), torch.zeros(3, 2))


def test_kinds_must_agree_over_data() -> None:
    class Moody(Factorised):
        def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
            kind = Kind.EXACT if len(x) > 2 else Kind.ESTIMATE
            return Estimate.of(self.log_prob(x, context), kind)

    with pytest.raises(CapabilityError, match="estimate, exact"):
        nll(Moody((2,)), torch.zeros(5, 2), batch_size=3)


# -- how it evaluates ----------------------------------------------------------------------


def test_batches_modes_and_flags() -> None:
    model = Factorised((2,))
    model.train()
    model.layers[1].eval()
    before = [m.training for m in model.modules()]
    found = nll(model, _normal(10, 2), batch_size=4)
    assert [(size, training) for size, training, _ in model.seen] == [(4, False), (4, False), (2, False)]
    assert [m.training for m in model.modules()] == before
    assert not found.value.requires_grad
    assert torch.is_grad_enabled()


def test_flags_come_back_after_an_error() -> None:
    model = Bounded((2,), kind=Kind.UNNORMALISED)
    model.train()
    with pytest.raises(CapabilityError):
        nll(model, _normal(10, 2))
    assert all(m.training for m in model.modules())


def test_deterministic_by_seed_and_silent_towards_the_global_generator() -> None:
    model, x = Bounded((2,), kind=Kind.LOWER_BOUND), _normal(10, 2)
    before = torch.get_rng_state()
    first, again, other = (nll(model, x, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.value == again.value != other.value


def test_options_reach_the_model() -> None:
    model, x = Bounded((2,), kind=Kind.LOWER_BOUND), torch.zeros(50, 2)
    few = log_likelihoods(model, x, num_particles=10).std_error.mean()
    many = log_likelihoods(model, x, num_particles=1000).std_error.mean()
    assert float(many / few) == pytest.approx(0.1, rel=0.3)


def test_data_take_the_dtype_of_the_model() -> None:
    model = Factorised((2,)).double()
    nll(model, Split(_levels(4, 2, 4), values=grid(4)))
    nll(model, torch.zeros(4, 2))
    assert {dtype for _, _, dtype in model.seen} == {torch.float64}
    assert nll(Factorised((2,)), torch.zeros(4, 2).double()).value.dtype == torch.float64


def test_context_goes_with_its_rows() -> None:
    model = Factorised((2,), context_dim=1)
    x, c = _normal(7, 2), torch.arange(7.0)[:, None]
    expected = -torch.distributions.Normal(c, 1.0).log_prob(x).sum(1)
    given = log_likelihoods(model, x, context=c, batch_size=3)
    from_split = log_likelihoods(model, Split(x, c), batch_size=3)
    assert torch.allclose(-given.value, expected.double())
    assert torch.equal(given.value, from_split.value)


def test_labels_are_no_context_for_an_unconditional_model() -> None:
    assert torch.isfinite(nll(Factorised((2,)), Split(_normal(4, 2), torch.arange(4))).value)


# -- bad input -----------------------------------------------------------------------------


def test_bad_shapes() -> None:
    model = Factorised((2,))
    with pytest.raises(ShapeError, match=r"Factorised expects shape \(B, 2\), got \(4, 3\)"):
        nll(model, _normal(4, 3))
    with pytest.raises(CapabilityError, match="unconditional"):
        nll(model, _normal(4, 2), context=torch.zeros(4, 1))
    conditional = Factorised((2,), context_dim=1)
    with pytest.raises(ShapeError, match="conditional"):
        nll(conditional, _normal(4, 2))
    with pytest.raises(ShapeError, match="one row for each of 4 data, got 3"):
        nll(conditional, _normal(4, 2), context=torch.zeros(3, 1))


def test_bad_values() -> None:
    with pytest.raises(DataError, match="the model is for binary values, the data are real"):
        nll(Factorised((2,), support=BINARY, probs=(0.5, 0.5)), Split(_normal(4, 2)))
    with pytest.raises(DataError, match="2 NaN or infinite of 8"):
        nll(Factorised((2,)), torch.tensor([[0.0, 0], [torch.nan, 0], [0, torch.inf], [0, 0]]))
    with pytest.raises(DataError, match="at least one datum"):
        nll(Factorised((2,)), torch.zeros(0, 2))


def test_bad_arguments() -> None:
    model, data = Factorised((2,)), Split(_levels(4, 2, 4), values=grid(4))
    with pytest.raises(ConfigError, match="batch_size"):
        nll(model, data, batch_size=0)
    with pytest.raises(ConfigError, match="num_dequantisations: .* 2 draws or more, got 1"):
        nll(model, data, num_dequantisations=1)
    assert torch.isfinite(nll(model, data.x, num_dequantisations=1).value)  # none needed


def test_nan_results_are_counted() -> None:
    class Broken(Factorised):
        def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
            value = self.log_prob(x, context)
            return Estimate.of(torch.where(x[:, 0] > 0, torch.nan, value), Kind.EXACT)

    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    with pytest.raises(DataError, match=r"Broken gave NaN or \+inf for 2 of 3 data"):
        nll(Broken((2,)), x)


def test_results_of_a_wrong_shape_are_refused() -> None:
    class Loose(Factorised):
        def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
            return Estimate.of(x, Kind.EXACT)

    with pytest.raises(ShapeError, match=r"one number for each of 3 data, got a value of shape \(3, 2\)"):
        nll(Loose((2,)), torch.zeros(3, 2))


def test_zero_probability_is_an_infinite_nll_with_an_infinite_error() -> None:
    model = Factorised((2,), support=BINARY, probs=(1.0, 0.0))
    found = nll(model, Split(_levels(20, 2, 2), values=BINARY))
    assert float(found.value) == float(found.std_error) == math.inf
    assert float(bits_per_dim(model, Split(_levels(20, 2, 2), values=BINARY)).value) == math.inf


def test_a_data_set_is_not_a_split() -> None:
    split = Split(_normal(5, 2))
    model = Factorised((2,))
    whole: Any = DataSet("all", split, split, split)
    array: Any = split.x.numpy()
    with pytest.raises(DataError, match=r"got a DataSet.*data\.test"):
        nll(model, whole)
    with pytest.raises(DataError, match="got a ndarray.*as_split"):
        nll(model, array)
