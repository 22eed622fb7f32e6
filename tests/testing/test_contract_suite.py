"""The contract suite catches what it is for: one planted defect a promise, and the check that must see it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.values import BINARY
from ppgen.distributions.data_plate import DataPlate
from ppgen.models.latent import importance_log_likelihood
from ppgen.nn.context import with_context
from ppgen.ops.random import forked_rng
from ppgen.testing import CHECKS, check_contract


class Bell(GenerativeModel):
    """Independent Gaussians, whose mean a context of three classes may shift: right in every way."""

    density = Kind.EXACT

    def __init__(self, event_shape: tuple[int, ...], *, context_dim: int = 0) -> None:
        super().__init__(event_shape)
        self.context_dim = context_dim
        self.mean = nn.Linear(1 + context_dim, event_shape[0])
        self.log_scale = nn.Parameter(torch.zeros(event_shape))
        self.register_buffer("one", torch.ones(1))

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.bell(context), obs=x)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        self.check_event(x)
        self.check_context(context)
        return Estimate.of(self.bell(context).log_prob(x), Kind.EXACT)

    def bell(self, context: Tensor | None) -> Any:
        lead = () if context is None else context.shape[:1]
        h = with_context(self.one.expand(*lead, 1), context, self.context_dim)
        return dist.Normal(self.mean(h), self.log_scale.exp()).to_event(1)


class Coins(Bell):
    """Independent bits."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.support = BINARY
        del self.log_scale

    def bell(self, context: Tensor | None) -> Any:
        return dist.Bernoulli(logits=self.mean(self.one)).to_event(1)


class Factors(GenerativeModel):
    """A latent Gaussian and a linear guide: right in every way."""

    density = Kind.LOWER_BOUND

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.up = nn.Linear(2, event_shape[0])
        self.down = nn.Linear(event_shape[0], 2)
        self.register_buffer("origin", torch.zeros(2))

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        with self.data_plate(x, num, context):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.up(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Any = None, context: Any = None, *, num: int | None = None) -> None:
        with self.data_plate(x, num, context):
            pyro.sample("z", dist.Normal(self.down(x), 0.7).to_event(1))

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        return importance_log_likelihood(self.model, self.guide, x, context, **options)


class Stale(Bell):
    """Remembers the density of a tensor that it has seen."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        seen = self.__dict__.setdefault("seen", {})
        if id(x) not in seen:
            seen[id(x)] = super().log_likelihood(x, context), x
        return seen[id(x)][0]


class StaleScale(Bell):
    """Computes its scale once, the mean anew: the density changes with the weights, by too little."""

    def bell(self, context: Tensor | None) -> Any:
        if "scale" not in self.__dict__:
            self.__dict__["scale"] = self.log_scale.exp().detach()
        return dist.Normal(self.mean(self.one) + 0 * self.log_scale, self.__dict__["scale"]).to_event(1)


class Unregistered(Bell):
    """Keeps a constant as a plain tensor, which stays where it was made."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.__dict__["shift"] = torch.ones(event_shape)

    def bell(self, context: Tensor | None) -> Any:
        base = super().bell(context).base_dist
        return dist.Normal(base.loc + self.__dict__["shift"], base.scale).to_event(1)


class SinglePrecision(Bell):
    """Computes in float32 whatever its parameters are."""

    def bell(self, context: Tensor | None) -> Any:
        base = super().bell(context).base_dist
        return dist.Normal(base.loc.float(), base.scale.float()).to_event(1)


class Unscaled(Bell):
    """Ignores the size of the population."""

    def data_plate(self, x: Tensor | None, num: int | None, context: Tensor | None = None) -> DataPlate:
        return super().data_plate(x, num if x is None else None, context)


class UnscaledGuide(Factors):
    def guide(self, x: Any = None, context: Any = None, *, num: int | None = None) -> None:
        super().guide(x, context)


class Idle(Bell):
    """Has a parameter that nothing depends on."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.idle = nn.Parameter(torch.zeros(2))


class Narrow(Bell):
    """Samples with a scale that is a tenth too small, in the model program too."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        drawn = self.bell(context)
        if x is None:
            drawn = dist.Normal(drawn.base_dist.loc, 0.9 * drawn.base_dist.scale).to_event(1)
        with self.data_plate(x, num, context):
            return pyro.sample("x", drawn, obs=x)


class BiasedCoins(Coins):
    """Samples bits more often than their probability."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        drawn = self.bell(context)
        if x is None:
            drawn = dist.Bernoulli(logits=drawn.base_dist.logits + 0.3).to_event(1)
        with self.data_plate(x, num, context):
            return pyro.sample("x", drawn, obs=x)


class WrongForOneClass(Bell):
    """Right for the first class, and samples with another spread for the others."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        drawn = self.bell(context)
        if x is None:
            wrong = 1 + 0.2 * (context > 0)[:, None]
            drawn = dist.Normal(drawn.base_dist.loc, wrong * drawn.base_dist.scale).to_event(1)
        with self.data_plate(x, num, context):
            return pyro.sample("x", drawn, obs=x)


class OwnSampler(Factors):
    """Has a sampler of its own, which forgets the noise on x."""

    @torch.no_grad()
    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        with forked_rng(seed or 0):
            return self.up(torch.randn_like(self.origin.expand(num, 2)))


class OtherDensity(Bell):
    """Evaluates a density without its normaliser."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        found = super().log_likelihood(x, context)
        return found.affine(1.0, 0.5)


class Announced(Bell):
    """Puts its network into Pyro's global store."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        pyro.module("network", self.mean)
        return super().model(x, context, num=num)


class Deaf(Bell):
    """Takes a context and does not listen."""

    def bell(self, context: Tensor | None) -> Any:
        return super().bell(None if context is None else torch.zeros_like(context))


class DeafDensity(Bell):
    """Listens when it samples, not when it evaluates."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        return super().log_likelihood(x, None if context is None else torch.zeros_like(context))


class Seeding(Bell):
    """Sets the global generator in place of a forked one."""

    @torch.no_grad()
    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        return self.model(num=num, context=context)


class Unpicklable(Bell):
    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.__dict__["activation"] = lambda h: h


class Shared(Bell):
    """Keeps a parameter on the class."""

    common = nn.Parameter(torch.zeros(3))

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.log_scale = self.common


class Misnamed(Bell):
    """Has its data in a plate of another name."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        batch = num or 1 if x is None else len(x)
        with pyro.plate("rows", num or batch, subsample_size=batch):
            return pyro.sample("x", self.bell(context), obs=x)


class Flat(Bell):
    """Has its coordinates in a plate: they are no event."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        batch = num or 1 if x is None else len(x)
        with pyro.plate("data", batch, dim=-2), pyro.plate("coordinates", 3, dim=-1):
            return pyro.sample("x", self.bell(context).base_dist, obs=x)


class Batched(Factors):
    """Standardises each batch by its own mean before the encoder."""

    def guide(self, x: Any = None, context: Any = None, *, num: int | None = None) -> None:
        with self.data_plate(x, num, context):
            pyro.sample("z", dist.Normal(self.down(x - x.mean(-2, keepdim=True)), 0.7).to_event(1))


class BatchedDensity(Bell):
    """Subtracts the batch's mean from the log-likelihoods."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        return super().log_likelihood(x, context).affine(1.0, 0.01 * float(x.mean()))


class Unsaved(Bell):
    """Learns a shift of the data that is in no state_dict."""

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        self.__dict__["shift"] = x.mean(0)

    def bell(self, context: Tensor | None) -> Any:
        base = super().bell(context).base_dist
        shift = self.__dict__.get("shift", 0 * base.loc)
        return dist.Normal(base.loc + shift.to(base.loc), base.scale).to_event(1)


class NotANumber(Bell):
    """Diverges in training."""

    def bell(self, context: Tensor | None) -> Any:
        base = super().bell(context).base_dist
        scale = base.scale * (float("nan") if self.training else 1.0)
        return dist.Normal(base.loc, scale, validate_args=False).to_event(1)


class HeldLatent(Factors):
    """Feeds x from a draw of its own, so that handlers on z have no effect."""

    def model(self, x: Tensor | None = None, context: Any = None, *, num: int | None = None) -> Tensor:
        with self.data_plate(x, num, context):
            pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            z = torch.randn_like(self.origin.expand((num or 1) if x is None else len(x), 2))
            return pyro.sample("x", dist.Normal(self.up(z), 0.5).to_event(1), obs=x)


class Credulous(Bell):
    """Takes any data for its own."""

    def check_data(self, x: Tensor, *, values: bool = True) -> Tensor:
        return x.to(self.log_scale.dtype)


class DeafToOneRow(Bell):
    """Takes one row of context for that of the first datum alone."""

    def context_rows(self, context: Tensor | None, num: int | None) -> Tensor | None:
        rows = super().context_rows(context, num)
        if rows is None or rows is context:
            return rows
        return torch.cat([rows[:1], torch.ones_like(rows[1:])])


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def failures(make: Callable[[], GenerativeModel]) -> set[str]:
    """Names of the checks that a model fails; nothing but AssertionError may come."""
    found = set()
    for name, check in CHECKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(make)
            except AssertionError:
                found.add(name)
    return found


@pytest.mark.parametrize(
    "make",
    [lambda: Bell((3,)), lambda: Bell((3,), context_dim=3), lambda: Factors((3,)), lambda: Coins((3,))],
    ids=["exact", "conditional", "latent", "grid"],
)
def test_right_models_pass(make: Callable[[], GenerativeModel]) -> None:
    assert failures(make) == set()
    check_contract(make)


Maker = Callable[[], GenerativeModel]
# What is planted, and exactly the checks that see it.
DEFECTS: list[tuple[Maker, set[str]]] = [
    (lambda: Stale((3,)), {"fresh_density_after_update"}),
    (
        lambda: StaleScale((3,)),
        {"fresh_density_after_update", "state_round_trip", "device_walk", "gradients"},
    ),
    (lambda: Unregistered((3,)), {"device_walk"}),
    (lambda: SinglePrecision((3,)), {"float64"}),
    (lambda: Unscaled((3,)), {"subsampled_plate"}),
    (lambda: UnscaledGuide((3,)), {"subsampled_plate"}),
    (lambda: Idle((3,)), {"gradients"}),
    (lambda: Narrow((3,)), {"sampling_agrees_with_density"}),
    (lambda: BiasedCoins((3,)), {"sampling_agrees_with_density"}),
    (lambda: WrongForOneClass((3,), context_dim=3), {"sampling_agrees_with_density"}),
    (lambda: OwnSampler((3,)), {"sampling_agrees_with_model", "bad_input"}),
    (lambda: OtherDensity((3,)), {"pair_agrees_with_density", "sampling_agrees_with_density"}),
    (lambda: Announced((3,)), {"legal_under_pyro"}),
    (lambda: Deaf((3,), context_dim=3), {"context", "bad_input"}),
    (
        lambda: DeafDensity((3,), context_dim=3),
        {"context", "bad_input", "pair_agrees_with_density", "sampling_agrees_with_density"},
    ),
    (lambda: Seeding((3,)), {"seeds", "bad_input"}),
    (lambda: Unpicklable((3,)), {"state_round_trip"}),
    (lambda: Shared((3,)), {"instances_stay_apart"}),
    (lambda: Misnamed((3,)), {"shapes"}),
    (
        lambda: Flat((3,)),
        {
            "legal_under_pyro",
            "handlers",
            "pair_agrees_with_density",
            "shapes",
            "batch_of_one",
            "state_round_trip",
            "subsampled_plate",
        },
    ),
    (lambda: Batched((3,)), {"batch_of_one"}),
    (lambda: BatchedDensity((3,)), {"batch_of_one", "pair_agrees_with_density"}),
    (lambda: Unsaved((3,)), {"state_round_trip"}),
    (lambda: NotANumber((3,)), {"trains", "state_round_trip"}),
    (lambda: Credulous((3,)), {"bad_input"}),
    (lambda: DeafToOneRow((3,), context_dim=3), {"context"}),
    (lambda: HeldLatent((3,)), {"handlers", "batch_of_one", "subsampled_plate"}),
]


@pytest.mark.parametrize(("make", "expected"), DEFECTS, ids=range(len(DEFECTS)))
def test_a_planted_defect_fails_its_check(make: Maker, expected: set[str]) -> None:
    assert failures(make) == expected
    with pytest.raises(AssertionError):
        check_contract(make)


def test_every_check_has_a_defect_that_it_catches() -> None:
    assert {check for _, caught in DEFECTS for check in caught} == set(CHECKS)


def test_checks_can_be_left_out() -> None:
    check_contract(lambda: Idle((3,)), skip=("gradients",))
