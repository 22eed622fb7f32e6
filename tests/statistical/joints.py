"""Joint distributions with constrained parameters, and kernels with a planted defect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ppgen.inference.mcmc import hmc, nuts
from ppgen.inference.mcmc.kernel import (
    Energy,
    Kernel,
    Noise,
    Params,
    State,
    scaled,
    scaled_transpose,
    total_gradient,
)
from ppgen.testing.joint import Joint, joint_from_functions

_TRIALS = 10


def _normal(x: Tensor, mean: Tensor | float, sd: Tensor | float) -> Tensor:
    sd = torch.as_tensor(sd, dtype=x.dtype)
    return -0.5 * ((x - mean) / sd) ** 2 - sd.log()


def constrained_joint(*, jacobian: bool = True) -> Joint:
    """A location, a scale > 0 and a probability: z = (mu, log sigma, logit p).

    sigma ~ Gamma(6, 6), mu ~ Normal(0, sigma), p ~ Beta(2, 2); data: three values of Normal(mu, sigma) and a
    count of Binomial(10, p).

    Args:
        jacobian: whether the log density has the log Jacobian; without it is a planted defect.
    """

    def log_joint(z: Tensor, x: Tensor) -> Tensor:
        mu, log_sigma, logit = z.unbind()
        sigma = log_sigma.exp()
        prior = 5 * log_sigma - 6 * sigma + _normal(mu, 0.0, sigma) + logsigmoid(logit) + logsigmoid(-logit)
        jacobian_term = log_sigma + logsigmoid(logit) + logsigmoid(-logit)
        likelihood = _normal(x[:3], mu, sigma).sum() + x[3] * logit - _TRIALS * softplus(logit)
        return prior + likelihood + (jacobian_term if jacobian else 0.0)

    def prior(num: int, generator: torch.Generator) -> Tensor:
        sigma = _gamma(6, num, generator) / 6
        one, other = _gamma(2, num, generator), _gamma(2, num, generator)
        mu = sigma * torch.randn(num, generator=generator, dtype=torch.float64)
        return torch.stack([mu, sigma.log(), (one / other).log()], 1)

    def data(z: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(z), 3, generator=generator, dtype=torch.float64)
        uniform = torch.rand(len(z), _TRIALS, generator=generator, dtype=torch.float64)
        count = (uniform < z[:, 2:].double().sigmoid()).double().sum(1, keepdim=True)
        return torch.cat([z[:, :1] + z[:, 1:2].exp() * noise, count.to(z.dtype)], 1)

    return joint_from_functions(log_joint, prior, data)


def _gamma(shape: int, num: int, generator: torch.Generator) -> Tensor:
    """A sum of exponentials."""
    uniform = torch.rand(num, shape, generator=generator, dtype=torch.float64)
    return -(1 - uniform).log().sum(1)


def one_sided(kernel: Kernel) -> Kernel:
    """A kernel that integrates with the symplectic Euler method: it keeps volumes, but is not reversible."""

    def euler(
        z: Tensor, momentum: Tensor, g: Tensor, step_size: Tensor, params: Params, energy: Energy
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, eps = params["scale"], step_size[:, None]
        momentum = momentum - eps * scaled_transpose(scale, total_gradient(g, params))
        z = z + eps * scaled(scale, momentum)
        return z, momentum, *energy(z)

    def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
        with patch.object(hmc, "leapfrog", euler), patch.object(nuts, "leapfrog", euler):
            return kernel.advance(state, params, energy, noise)

    return dataclasses.replace(kernel, advance=advance)


def with_begin_noise(kernel: Kernel, change: Callable[[Noise], Noise]) -> Kernel:
    """The kernel with other random numbers at the beginning."""

    def begin(state: State, params: Params, noise: Noise) -> State:
        return kernel.begin(state, params, noise | change(noise))

    return dataclasses.replace(kernel, begin=begin)


def with_end_noise(kernel: Kernel, change: Callable[[Noise], Noise]) -> Kernel:
    """The kernel with other random numbers at the end."""

    def end(state: State, params: Params, noise: Noise) -> State:
        return kernel.end(state, params, noise | change(noise))

    return dataclasses.replace(kernel, end=end)


def accepting_squared(kernel: Kernel) -> Kernel:
    """A Metropolis kernel that accepts with the square of the right probability."""
    return with_end_noise(kernel, lambda noise: {"accept": noise["accept"].sqrt()})


def drifting(kernel: Kernel) -> Kernel:
    """A random walk that prefers one direction, and does not correct for it."""
    return with_begin_noise(kernel, lambda noise: {"step": noise["step"] + 0.5})


def accepting_runs_squared(kernel: Kernel) -> Kernel:
    """NUTS that accepts the point of a new run with the square of the right probability."""

    def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
        # One number serves twice: its half is the direction, its place within the half the choice.
        half = (noise["run"] >= 0.5).to(noise["run"].dtype) / 2
        place = 2 * (noise["run"] - half)
        return kernel.advance(state, params, energy, noise | {"run": half + place.sqrt() / 2})

    return dataclasses.replace(kernel, advance=advance)


def turning_at_swaps(kernel: Kernel) -> Kernel:
    """NUTS that turns the momentum round when it goes on at the other end: it retraces its way."""

    def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
        after = kernel.advance(state, params, energy, noise)
        swapped = (after["direction"] != state["direction"])[:, None]
        return after | {"front_p": torch.where(swapped, -after["front_p"], after["front_p"])}

    return dataclasses.replace(kernel, advance=advance)
