r"""Whether float32 is enough for a density.

Samplers accept and reject by differences of energy, so what counts is their absolute error in nats, in
the region where the chains will be: a sum over a million data has an energy whose last bit is worth
.06 nats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.inference.mcmc.density import Density

#: Errors of energy differences above this many nats call for float64.
NOISE_LIMIT = 0.02
_POINTS = 4


def rounding_noise(density: Density, exact: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """Largest error of a difference of energies in float32, in nats, around a point of high density.

    Args:
        density: one part, in float32.
        exact: the same energy, a scalar, at a point (D,) of float64.
        start: where to look for a point of high density (D,), float32.
    """
    centre = _descended(density, start)
    energy = float(density.single(centre)[0][0])
    generator = torch.Generator().manual_seed(0)
    points = [centre]
    for _ in range(_POINTS - 1):
        direction = torch.randn(len(start), generator=generator).to(start)
        points.append(centre + _typical(density, centre, energy, direction) * direction)
    coarse = torch.stack([density.single(point)[0][0].double() for point in points])
    fine = torch.stack([exact(point.double()) for point in points])
    if not bool(fine.isfinite().all()):
        return 0.0 if not bool(coarse.isfinite().all()) else float("inf")
    error = (coarse - coarse[0]) - (fine - fine[0])
    noise = float(error.abs().max())
    return noise if noise == noise else float("inf")


def _descended(density: Density, start: Tensor, steps: int = 25) -> Tensor:
    """A point of higher density: gradient steps, each coordinate with a step length of its own (Rprop)."""
    best, length = start, torch.full_like(start, 0.1)
    value, gradient = density.single(best)
    point, last = best, gradient[0]
    for _ in range(steps):
        point = point - length * gradient[0].sign().nan_to_num()
        new_value, gradient = density.single(point)
        same = gradient[0] * last > 0
        length = torch.where(same, length * 1.3, length * 0.5).clamp(max=1.0)
        last = gradient[0]
        if bool(new_value[0] < value[0]):
            best, value = point, new_value
    return best


def _typical(density: Density, centre: Tensor, energy: float, direction: Tensor) -> float:
    """A length along ``direction`` over which the energy rises by about D / 2, as it does in the bulk."""
    aim, length = len(centre) / 2 + 1.0, 1.0
    for _ in range(20):
        rise = float(density.single(centre + length * direction)[0][0]) - energy
        if rise <= 2 * aim:  # false for NaN
            break
        length *= 0.5
    return length
