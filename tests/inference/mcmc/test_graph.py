"""Traced programs: plain, functional, small, and the same as what was traced."""

from __future__ import annotations

import operator
import subprocess
import sys
import time
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, EFFECTS, ERRORS, Entry, eight_schools
from torch import Tensor, fx

from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.mcmc import graph
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.program import Program, agrees
from ppgen.ops.random import forked_rng

aten = torch.ops.aten
TRACEABLE = [entry for entry in CATALOGUE if entry.traceable]


def nodes_of(program: Any) -> list[fx.Node]:
    assert isinstance(program, fx.GraphModule)
    return list(program.graph.nodes)


def overloads_of(program: Any) -> list[torch._ops.OpOverload]:
    targets = [node.target for node in nodes_of(program)]
    found = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert found
    return found


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_programs_are_traced_batched_and_plain(entry: Entry) -> None:
    with warnings.catch_warnings():
        if entry.traceable:
            warnings.simplefilter("error", SamplingWarning)
        else:
            warnings.simplefilter("ignore", SamplingWarning)
        potential = Potential(
            entry.model,
            entry.args,
            entry.kwargs,
            dtype=torch.float64,
            max_plate_nesting=entry.max_plate_nesting,
        )
        density = potential.density()
        density.batched(torch.zeros(2, potential.num_dims, dtype=torch.float64))
    assert density.traceable == entry.traceable
    if not entry.traceable:
        return
    for node in nodes_of(density.single):
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        if node.op == "call_function":
            assert node.users
            if node.target is operator.getitem:
                continue
            assert isinstance(node.target, torch._ops.OpOverload)
            assert not node.target._schema.is_mutable
            assert node.target not in (aten.detach.default, aten.alias.default, aten.copy.default)
    retraced = torch.fx.experimental.proxy_tensor.make_fx(lambda z: density.single(z))(
        torch.zeros(potential.num_dims, dtype=torch.float64)
    )
    assert isinstance(retraced, fx.GraphModule)


def test_data_are_buffers_and_never_numbers_in_the_program() -> None:
    first = Potential(eight_schools, (EFFECTS, ERRORS), dtype=torch.float64).density().single
    second = Potential(eight_schools, (EFFECTS + 1.5, ERRORS * 2), dtype=torch.float64).density().single
    assert isinstance(first, fx.GraphModule)
    assert isinstance(second, fx.GraphModule)
    assert first.code == second.code
    assert any(buffer.shape == (8,) for buffer in first.buffers())


def test_constants_are_computed_once() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))

    def function(z: Tensor) -> Tensor:
        gram = (x.T @ x).exp()  # does not depend on z
        return (gram @ z).sum() + (gram @ z).sum()

    program = graph.trace(function, torch.ones(3))
    targets = [node.target for node in nodes_of(program) if node.op == "call_function"]
    assert aten.exp.default not in targets
    assert len([t for t in targets if t in (aten.mul.Tensor, aten.mv.default)]) == 1
    torch.testing.assert_close(program(torch.arange(3.0)), function(torch.arange(3.0)))


def test_writing_in_place_is_taken_out() -> None:
    def function(z: Tensor) -> Tensor:
        table = torch.zeros(2, 3)
        table[0] = z
        table[1, :2] = 2 * z[1:]
        row = table[1]
        row += 1.0  # through a view
        return (table * table).sum()

    program = graph.trace(function, torch.ones(3))
    assert not any(target._schema.is_mutable for target in overloads_of(program))
    z = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(program(z), function(z))


def test_constants_that_change_keep_the_values_that_were_used() -> None:
    def function(z: Tensor) -> Tensor:
        total = torch.zeros(3)
        first = z + total
        total += 1.0
        second = z * total
        row = total[0:2]
        total[1] = 5.0
        return first + second + row.sum() + z * total

    program = graph.trace(function, torch.ones(3))
    z = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(program(z), function(z))


def test_numbers_that_depend_on_data_alone_are_constants() -> None:
    y = torch.tensor([0.0, 2.0, 1.0])

    def function(z: Tensor) -> Tensor:
        size = int(y.max()) + 1
        kept = z[y > 0]
        return kept.sum() * size if bool((y >= 0).all()) else z.sum()

    program = graph.trace(function, torch.ones(3))
    z = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(program(z), torch.tensor(3.0))
    torch.testing.assert_close(graph.batched(program, z[None])(z[None]), torch.tensor([3.0]))


def test_simplified_programs_are_the_same() -> None:
    def function(z: Tensor) -> Tensor:
        same = (z + 0.0) * 1.0
        shifted = torch.zeros_like(z) + same.reshape(4).clone()
        return torch.cat([shifted.pow(1.0)]) - torch.zeros(4)

    program = graph.trace(function, torch.ones(4))
    assert [node.op for node in nodes_of(program)] == ["placeholder", "output"]
    z = torch.arange(4.0)
    assert torch.equal(program(z), function(z))


def test_merging_tells_types_and_values_apart() -> None:
    def function(z: Tensor) -> tuple[Tensor, ...]:
        return z * 2, z * 2.0, z + 1, z + 2, z * 2

    program = graph.trace(function, torch.ones(2))
    z = torch.tensor([3.0, 4.0])
    for a, b in zip(program(z), function(z), strict=True):
        assert torch.equal(a, b)


def test_random_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="random numbers"), forked_rng(0):
        graph.trace(lambda z: z + torch.randn(3), torch.ones(3))


def test_a_program_that_disagrees_elsewhere_is_not_used() -> None:
    calls: list[int] = []

    def function(z: Tensor) -> tuple[Tensor]:
        calls.append(1)  # what tracing cannot see
        return (z * (1.0 if len(calls) == 1 else 2.0),)

    with pytest.warns(SamplingWarning, match="disagrees"):
        program = Program(function, torch.ones(2, 3))
    assert not program.traceable
    assert torch.equal(program.batched(torch.ones(2, 3))[0], 2 * torch.ones(2, 3))


def test_agreement_is_relative_and_knows_nan() -> None:
    points = torch.ones(2, 3)
    assert agrees(lambda z: (z / 0 - z / 0,), lambda z: (z / 0 - z / 0,), points)
    assert agrees(lambda z: (1e6 * z,), lambda z: (1e6 * z + 1,), points)
    assert not agrees(lambda z: (z,), lambda z: (1.1 * z,), points)


def test_batched_follows_the_number_of_chains() -> None:
    density = Potential(eight_schools, (EFFECTS, ERRORS), dtype=torch.float64).density()
    z = torch.randn(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, _ = density.batched(z)
    for num in (1, 3, 7):
        torch.testing.assert_close(density.batched(z[:num])[0], whole[:num])


def test_long_programs_are_traced_in_linear_time() -> None:
    def garch(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0, 1))
        weights = pyro.sample("weights", dist.Uniform(0.0, 0.4).expand([3]).to_event(1))
        variance = torch.tensor(1.0)
        variances = []
        for t in range(len(y)):
            variance = weights[0] + weights[1] * (y[t] - mu) ** 2 + weights[2] * variance
            variances.append(variance)
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()).to_event(1), obs=y)

    def seconds(num: int) -> tuple[float, int]:
        y = torch.randn(num, generator=torch.Generator().manual_seed(0))
        potential = Potential(garch, (y,), dtype=torch.float64)
        start = time.process_time()
        program = potential.density().single
        return time.process_time() - start, len(nodes_of(program))

    seconds(5)
    short, few = seconds(20)
    long, many = seconds(100)
    assert many < 6 * few
    assert long < 12 * short + 0.5  # quadratic passes would take 25 times as long


def test_folding_keeps_repeated_tensors_small() -> None:
    base = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    program = graph.trace(lambda z: (z * base.exp().expand(1000, 4)).sum(0), torch.ones(4))
    assert max(buffer.numel() for buffer in program.buffers()) <= 4000
    assert program(torch.ones(4)).shape == (4,)


_FIRST_USE = """
import sys, torch, pyro, pyro.distributions as dist
from ppgen.inference.mcmc.nuts import nuts_kernel
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.native.trace import trace_kernel

def model(y):
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Uniform(-9.0, 9.0)), scale), obs=y)

density = Potential(model, (torch.randn(8),)).density()
density.evaluate(torch.zeros(4, density.num_dims))
params = {"scale": torch.ones(density.num_dims), "weights": torch.ones(1)}
trace_kernel(nuts_kernel(density.num_dims), density, dtype=torch.float32, params=params)
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_no_compiler_is_imported_to_trace() -> None:
    done = subprocess.run([sys.executable, "-c", _FIRST_USE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
