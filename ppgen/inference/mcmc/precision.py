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
_MOST_STEPS, _MOST_IDLE = 25, 3
_HALVINGS = 20


def rounding_noise(density: Density, exact: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """Largest error of a difference of energies in float32, in nats, around a point of high density.

    Args:
        density: one part, in float32.
        exact: the same energy, a scalar, at a point (D,) of float64.
        start: where to look for a point of high density (D,), float32.
    """
    centre, energy = _descended(density, start)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(_POINTS - 1, len(start), generator=generator).to(start)
    points = [centre, *_typical(density, centre, energy, directions)]
    coarse = torch.stack([density.single(point)[0][0].double() for point in points])
    fine = torch.stack([exact(point.double()) for point in points])
    if not bool(fine.isfinite().all()):
        return 0.0 if not bool(coarse.isfinite().all()) else float("inf")
    error = (coarse - coarse[0]) - (fine - fine[0])
    noise = float(error.abs().max())
    return noise if noise == noise else float("inf")


def _descended(density: Density, start: Tensor) -> tuple[Tensor, float]:
    """A point of higher density, and its energy: each coordinate has a step length of its own (Rprop)."""
    best, length = start, torch.full_like(start, 0.1)
    value, gradient = _at(density, best)
    point, last, idle = best, gradient, 0
    for _ in range(_MOST_STEPS):
        point = point - length * gradient.sign().nan_to_num()
        new_value, gradient = _at(density, point)
        length = torch.where(gradient * last > 0, length * 1.3, length * 0.5).clamp(max=1.0)
        last = gradient
        # As deep as the bulk is wide is deep enough.
        idle = 0 if new_value < value - _bulk(start) / 2 else idle + 1
        if new_value < value:
            best, value = point, new_value
        if idle > _MOST_IDLE:
            break
    return best, value


def _at(density: Density, point: Tensor) -> tuple[float, Tensor]:
    parts, gradients = density.single(point)
    return float(parts[0]), gradients[0]


def _bulk(point: Tensor) -> float:
    """By how much, in nats, energies in the bulk are above the lowest, about."""
    return len(point) / 2 + 1.0


def _typical(density: Density, centre: Tensor, energy: float, directions: Tensor) -> Tensor:
    """The points (K, D) along ``directions`` (K, D) where the energy has risen as it does in the bulk."""
    lengths = 0.5 ** torch.arange(_HALVINGS, dtype=centre.dtype, device=centre.device)
    points = centre + lengths[:, None, None] * directions
    energies = density.evaluate(points.flatten(0, 1))[0][:, 0].view(points.shape[:2])
    # The first that is low enough, or else the last; NaN is not low enough.
    is_low = energies - energy <= 2 * _bulk(centre)
    is_low[-1] = True
    return points[is_low.int().argmax(0), torch.arange(len(directions), device=centre.device)]
