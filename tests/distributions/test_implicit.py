"""The implicit distribution: draws and gradients as Pyro needs them, and a density refused."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.distributions.implicit import Implicit
from ppgen.errors import CapabilityError, ShapeError
from ppgen.ops.random import forked_rng


def cube() -> Tensor:
    return torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("event_dim", [0, 1, 2, 3])
def test_shapes_split_at_the_event(event_dim: int) -> None:
    implicit = Implicit(cube(), event_dim)
    assert implicit.batch_shape + implicit.event_shape == (2, 3, 4)
    assert len(implicit.event_shape) == event_dim
    assert implicit.support.event_dim == event_dim


@pytest.mark.parametrize("event_dim", [-1, 4])
def test_an_event_larger_than_the_value_is_refused(event_dim: int) -> None:
    with pytest.raises(ShapeError, match=r"event_dim: expected 0 to 3 .* got"):
        Implicit(cube(), event_dim)


def test_draws_are_the_value() -> None:
    implicit = Implicit(cube(), 2)
    assert torch.equal(implicit.sample(), cube())
    assert torch.equal(implicit.rsample((5,)), cube().expand(5, 2, 3, 4))
    assert torch.equal(implicit(), cube())
    assert torch.equal(implicit.mean, cube())
    assert torch.equal(implicit.variance, torch.zeros(2, 3, 4))


def test_gradients_flow_through_rsample_and_not_through_sample() -> None:
    value = cube().requires_grad_()
    implicit = Implicit(2 * value, 1)
    implicit.rsample((3,)).sum().backward()
    assert value.grad is not None
    assert torch.equal(value.grad, torch.full((2, 3, 4), 6.0))
    assert not implicit.sample().requires_grad


def test_expand_repeats_the_values_over_a_larger_batch() -> None:
    implicit = Implicit(cube(), 2).expand([7, 2])
    assert isinstance(implicit, Implicit)
    assert implicit.batch_shape == (7, 2)
    assert implicit.event_shape == (3, 4)
    assert torch.equal(implicit.sample((3,)), cube().expand(3, 7, 2, 3, 4))
    assert Implicit(cube(), 1).to_event(1).event_shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_those_of_the_value(dtype: torch.dtype) -> None:
    implicit = Implicit(torch.empty(4, 2, dtype=dtype, device="meta"), 1).expand((3, 4))
    assert implicit.sample().dtype == dtype
    assert implicit.sample().device.type == "meta"


def test_log_prob_says_what_to_use_instead() -> None:
    with pytest.raises(CapabilityError, match=r"no density.*FID.*Adversarial"):
        Implicit(cube(), 2).log_prob(cube())
    with pytest.raises(TypeError):
        Implicit(cube(), 2).log_prob(cube())


def simulator(x: Tensor | None = None) -> Tensor:
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        return pyro.sample("x", Implicit(z.exp(), 1), obs=x)


def prior(x: Tensor | None = None) -> None:
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))


def test_a_site_is_traced_replayed_and_conditioned() -> None:
    with forked_rng(0):
        trace: Any = poutine.trace(simulator).get_trace()
    z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    assert torch.equal(x, z.exp())
    assert torch.equal(poutine.replay(simulator, trace=trace)(), x)
    assert torch.equal(poutine.condition(simulator, {"z": torch.zeros(4, 2)})(), torch.ones(4, 2))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_it(parallel: bool) -> None:
    with forked_rng(0):
        draws = Predictive(simulator, num_samples=6, parallel=parallel)()
    assert draws["x"].shape == (6, 4, 2)
    assert torch.equal(draws["x"], draws["z"].reshape(6, 4, 2).exp())


def test_an_elbo_is_refused_by_name() -> None:
    svi = SVI(simulator, prior, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), Trace_ELBO())
    with forked_rng(0), pytest.raises(CapabilityError, match="no density"):
        svi.evaluate_loss(torch.ones(4, 2))
