"""Densities that can be drawn from exactly, and a run of a kernel on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.mcmc.executor import EagerExecutor
from ppgen.inference.mcmc.kernel import Energy, Kernel, Params, State

DOUBLE = torch.float64


@dataclass(frozen=True)
class Gaussian:
    """Normal with mean 0; ``wrong`` scales its gradient: a planted bug."""

    covariance: Tensor
    wrong: float = 1.0

    @property
    def num_dims(self) -> int:
        return len(self.covariance)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        g = z @ torch.linalg.inv(self.covariance)
        return 0.5 * (z * g).sum(1, keepdim=True), self.wrong * g[:, None]

    def draw(self, num: int, seed: int) -> Tensor:
        noise = torch.randn(num, self.num_dims, generator=generator(seed), dtype=DOUBLE)
        return noise @ torch.linalg.cholesky(self.covariance).T


@dataclass(frozen=True)
class LogGamma:
    """Logarithms of gamma variables: skewed, U = sum(exp(z) - a z).

    ``without_jacobian`` leaves out the Jacobian of the logarithm: a planted bug.
    """

    shapes: Tensor
    without_jacobian: bool = False

    @property
    def num_dims(self) -> int:
        return len(self.shapes)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a = self.shapes - 1.0 if self.without_jacobian else self.shapes
        return (z.exp() - a * z).sum(1, keepdim=True), (z.exp() - a)[:, None]

    def draw(self, num: int, seed: int) -> Tensor:
        # A gamma variable with whole shape is a sum of exponential ones.
        columns = []
        for i, shape in enumerate(self.shapes.tolist()):
            uniform = torch.rand(num, int(shape), generator=generator(seed + i), dtype=DOUBLE)
            columns.append((-uniform.log()).sum(1).log())
        return torch.stack(columns, 1)


def correlated(wrong: float = 1.0) -> Gaussian:
    """Three dimensions, correlated, with standard deviations .5, 1 and 3."""
    sd = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE)
    correlation = torch.tensor([[1, 0.7, -0.3], [0.7, 1, 0.2], [-0.3, 0.2, 1]], dtype=DOUBLE)
    return Gaussian(sd[:, None] * correlation * sd, wrong)


def skewed(*, without_jacobian: bool = False) -> LogGamma:
    """Three dimensions with shapes 2, 3 and 6."""
    return LogGamma(torch.tensor([2.0, 3.0, 6.0], dtype=DOUBLE), without_jacobian)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_params(num_dims: int, **others: Tensor) -> Params:
    return {
        "scale": torch.ones(num_dims, dtype=DOUBLE),
        "weights": torch.ones(1, dtype=DOUBLE),
        **others,
    }


def run(
    kernel: Kernel,
    energy: Energy,
    z: Tensor,
    *,
    step_size: float,
    num: int,
    params: Params | None = None,
    record: tuple[str, ...] = (),
    seed: int = 0,
) -> tuple[State, Mapping[str, Tensor]]:
    """``num`` transitions from the points z (C, D)."""
    executor = EagerExecutor(kernel, energy, seed=seed)
    state = executor.init(z, torch.full((len(z),), step_size, dtype=z.dtype))
    return executor.run(state, params or make_params(z.shape[1]), num=num, record=record)
