r"""Joint distributions of parameters and data, whose posteriors are exact by construction.

Draw :math:`\theta \sim p(\theta)` and :math:`x \sim p(x \mid \theta)`: then :math:`\theta` is one
exact draw of the posterior given this x. Thousands of such pairs, each with data of its own, test a
Markov kernel in one batch: a kernel that leaves :math:`p(\theta \mid x)` invariant, run from there,
leaves the joint distribution as it was (:mod:`ppgen.testing.geweke`).

Data ride along as coordinates that do not move, so that a kernel and an executor need to know
nothing of them: a point is :math:`v = (\theta, x)` of shape ``(E,)``, the gradient and the noise
of the coordinates of x are zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import Predictive
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.executor import EagerExecutor, Executor
from ppgen.inference.mcmc.kernel import Kernel, Noise, Params, State
from ppgen.inference.mcmc.potential import Potential
from ppgen.inference.mcmc.transforms import bijection
from ppgen.ops.random import forked_rng

#: Makes the executor of a kernel on a density, for chains that start at points (C, E), with a seed.
MakeExecutor = Callable[[Kernel, Density, Tensor, int], Executor]


@dataclass(frozen=True)
class Joint:
    r"""A joint distribution p(theta, x) in unconstrained coordinates.

    Attributes:
        density: minus the log joint density on points ``(E,)``, with the log Jacobian of theta's
            coordinates; its gradient is zero where ``moves`` is not.
        moves: which coordinates are theta, ``(E,)`` bool; the others are data.
        draw: independent draws ``(N, E)`` of the joint distribution.
        redraw_data: ``(N, E)`` with fresh data given theta, or None where it is not at hand.
    """

    density: Density
    moves: Tensor
    draw: Callable[[int, torch.Generator], Tensor]
    redraw_data: Callable[[Tensor, torch.Generator], Tensor] | None = None


def joint_from_functions(
    log_joint: Callable[[Tensor, Tensor], Tensor],
    prior: Callable[[int, torch.Generator], Tensor],
    data: Callable[[Tensor, torch.Generator], Tensor],
) -> Joint:
    r"""A joint distribution written by hand; its data may be discrete.

    Args:
        log_joint: log p(theta, x) plus the log Jacobian of theta's coordinates, up to a constant, in
            nats, for one theta ``(D,)`` and one x ``(X,)``; plain tensor operations.
        prior: N draws of theta, ``(N, D)``, unconstrained.
        data: one x for each theta: ``(N, X)`` from ``(N, D)``.
    """
    probe = torch.Generator().manual_seed(0)
    theta = prior(1, probe)
    num_params, num_data = theta.shape[1], data(theta, probe).shape[1]
    value_and_gradient = torch.func.grad_and_value(lambda theta, x: -log_joint(theta, x))

    def single(v: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = value_and_gradient(v[:num_params], v[num_params:])
        still = torch.zeros_like(v[num_params:])
        return value[None], torch.cat([gradient, still])[None]

    def redraw(v: Tensor, generator: torch.Generator) -> Tensor:
        theta = v[:, :num_params]
        return torch.cat([theta, data(theta, generator)], 1)

    def draw(num: int, generator: torch.Generator) -> Tensor:
        theta = prior(num, generator)
        return torch.cat([theta, data(theta, generator)], 1)

    total = num_params + num_data
    return Joint(
        density=Density(total, 1, single, torch.func.vmap(single)),
        moves=torch.arange(total) < num_params,
        draw=draw,
        redraw_data=redraw,
    )


def joint_from_model(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    data: Collection[str],
    parallel: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Joint:
    """The joint distribution of a Pyro model that is called without its data.

    Args:
        model: a Pyro program with proper priors, all of whose sites are continuous.
        args: its arguments, which leave the sites of the data unobserved.
        data: names of these sites.
        parallel: draw from the model in one vectorised run, for which it must be written; otherwise one
            after the other.
        dtype: of the points.

    Raises:
        ConfigError: the model has no such sites, discrete ones, or a support that changes with other latents.
    """
    potential = Potential(model, args, dtype=dtype)
    names = [site.name for site in potential.sites]
    unknown, depend = set(data) - set(names), [site.name for site in potential.sites if site.depends]
    if unknown or depend or potential.discrete:
        raise ConfigError(
            f"model: expected continuous sites {sorted(data)} among {names}, with fixed supports; "
            f"missing {sorted(unknown)}, discrete {list(potential.discrete)}, depending {depend}"
        )
    moves = torch.ones(potential.num_dims, dtype=torch.bool)
    for site in potential.sites:
        moves[site.slice] = site.name not in data
    full = potential.density()

    def only_moving(function: Callable[[Tensor], tuple[Tensor, Tensor]], v: Tensor) -> tuple[Tensor, Tensor]:
        parts, gradients = function(v)
        return parts, gradients * moves.to(gradients.dtype)

    def draw(num: int, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        with forked_rng(seed), torch.no_grad():
            drawn = Predictive(model, num_samples=num, parallel=parallel, return_sites=names)(*args)
        pieces = [
            bijection(site.support, site.name).inv(drawn[site.name].to(dtype).reshape(num, *site.shape))
            for site in potential.sites
        ]
        return torch.cat([piece.reshape(num, -1) for piece in pieces], 1)

    return Joint(
        density=Density(
            full.num_dims,
            full.num_parts,
            partial(only_moving, full.single),
            partial(only_moving, full.batched),
            traceable=full.traceable,
        ),
        moves=moves,
        draw=draw,
    )


def eager(kernel: Kernel, density: Density, start: Tensor, seed: int) -> Executor:
    """The executor that runs a kernel as it is."""
    return EagerExecutor(kernel, density.batched, seed=seed, device=start.device)


def on_parameters(kernel: Kernel, joint: Joint) -> Kernel:
    """The kernel on points (theta, x), made for ``num_dims`` E, with noise for theta only.

    Without noise and gradient a coordinate has no momentum and no part in kinetic energies or
    U-turns: the kernel is the one that theta alone would have.
    """
    width = tuple(joint.moves.shape)
    noisy = [name for name, spec in kernel.begin_noise.items() if spec.shape[-1:] == width]

    def begin(state: State, params: Params, noise: Noise) -> State:
        still = joint.moves.to(state["z"].dtype)
        return kernel.begin(state, params, noise | {name: noise[name] * still for name in noisy})

    return dataclasses.replace(kernel, begin=begin)


def run_on_parameters(
    make_kernel: Callable[[int], Kernel],
    joint: Joint,
    start: Tensor,
    *,
    step_size: float,
    params: Params | None = None,
    num: int,
    record: bool = False,
    seed: int = 0,
    make_executor: MakeExecutor = eager,
    schedule: Params | None = None,
) -> Tensor:
    """Run ``num`` transitions of theta for each row of ``start`` (N, E), each with its own data.

    Args:
        make_kernel: the kernel for a number of dimensions.
        joint: the joint distribution.
        start: where the chains start.
        step_size: of all chains.
        params: what all chains share, beside ``scale`` and ``weights``, which are 1 unless given.
        num: number of transitions.
        record: whether to keep the points after each transition.
        seed: of the executor.
        make_executor: how the kernel is run.
        schedule: params that change with the transition, each ``(num, ...)``.

    Returns:
        The points at the end, ``(N, E)``, or all of them, ``(num, N, E)``.
    """
    executor = make_executor(on_parameters(make_kernel(start.shape[1]), joint), joint.density, start, seed)
    shared = {"scale": torch.ones_like(start[0]), "weights": start.new_ones(1), **(params or {})}
    state = executor.init(start, start.new_full((len(start),), step_size))
    state, kept = executor.run(state, shared, num=num, schedule=schedule, record=["z"] if record else [])
    return kept["z"] if record else state["z"]
