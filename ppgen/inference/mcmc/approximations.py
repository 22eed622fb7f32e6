r"""Quick normal approximations of a density, to draw starting points from.

All chains are fitted at once, each from a point of its own, with batched evaluations of the density.

References: Zhang, Carpenter, Gelman, Vehtari 2022 (*Pathfinder: parallel quasi-Newton variational
inference*); Kucukelbir et al. 2017 (*Automatic differentiation variational inference*).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.inference.mcmc.density import Density

# Pathfinder: steps of the quasi-Newton search, halvings of a step, draws to estimate an ELBO.
_SEARCH_STEPS = 60
_HALVINGS = 12
_ELBO_DRAWS = 8
_HISTORY = 6
# Above this many dimensions only the diagonal is estimated.
_DENSE_LIMIT = 300
# ADVI: steps of Adam, and their length.
_ADAM_STEPS = 300
_ADAM_LENGTH = 0.1


def pathfinder(density: Density, start: Tensor, generator: torch.Generator) -> Tensor:
    r"""One draw a chain of the best normal approximation along a search for a mode (single-path Pathfinder).

    Along the L-BFGS path of each chain, every iterate gives :math:`N(z + \Sigma g, \Sigma)` with g the
    gradient of the log density and :math:`\Sigma` the inverse Hessian estimate: a diagonal, updated as in
    the paper (after Gilbert and Lemarechal 1989), and, up to 300 dimensions, the BFGS updates of its last six
    steps. The approximation with the highest evidence lower bound is kept.

    Args:
        density: one part; weights are one.
        start: points (C, D).
        generator: of the draws, on the CPU.

    Returns:
        Points (C, D).
    """
    search = _Search(density, start)
    best = start
    best_elbo = torch.full_like(start[:, 0], -math.inf)
    for _ in range(_SEARCH_STEPS):
        if not search.step():
            break
        mean, factor = search.normal()
        noise = _normal(generator, (_ELBO_DRAWS, *start.shape), start)
        offset = torch.einsum("cij,kcj->kci", factor, noise)
        draws = mean + offset
        energy = _energy(density, draws)
        log_q = -0.5 * (noise**2).sum(-1) - factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        elbo = (-energy - log_q).mean(0).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        better = (elbo > best_elbo) & search.moved
        best_elbo = torch.where(better, elbo, best_elbo)
        best = torch.where(better[:, None], draws[0], best)
    return best


class _Search:
    """A search for a mode of each chain, by L-BFGS with halved steps."""

    def __init__(self, density: Density, start: Tensor) -> None:
        self._density = density
        self.z = start
        self.energy, self.gradient = _with_gradient(density, start)
        self.diagonal = torch.ones_like(start)
        self.moved = torch.zeros_like(start[:, 0], dtype=torch.bool)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def step(self) -> bool:
        """One step of every chain; whether any moved."""
        direction = -(self.inverse_hessian() @ self.gradient[:, :, None])[:, :, 0]
        downhill = (direction * self.gradient).sum(1) < 0
        direction = torch.where(downhill[:, None], direction, -self.diagonal * self.gradient)
        longest = direction.abs().amax(1, keepdim=True).clamp(min=1e-12)
        direction = direction * (4.0 / longest).clamp(max=1.0)
        slope = (direction * self.gradient).sum(1)
        length = torch.ones_like(self.energy)
        z, energy, gradient = self.z, self.energy, self.gradient
        done = torch.zeros_like(self.moved)
        for _ in range(_HALVINGS):
            new = self.z + length[:, None] * direction
            new_energy, new_gradient = _with_gradient(self._density, new)
            good = (
                (new_energy <= self.energy + 1e-4 * length * slope) & new_gradient.isfinite().all(1) & ~done
            )
            z = torch.where(good[:, None], new, z)
            energy = torch.where(good, new_energy, energy)
            gradient = torch.where(good[:, None], new_gradient, gradient)
            done = done | good
            if bool(done.all()):
                break
            length = torch.where(done, length, length * 0.5)
        gain = self.energy - energy
        self.moved = done & (gain > 1e-6 * (1 + energy.abs()))
        self._update(z - self.z, gradient - self.gradient)
        self.z, self.energy, self.gradient = z, energy, gradient
        return bool(self.moved.any())

    def _update(self, s: Tensor, y: Tensor) -> None:
        curvature = (s * y).sum(1)
        usable = self.moved & (curvature > 1e-12 * (y**2).sum(1).clamp(min=1e-30))
        a = self.diagonal
        yay, sas = (y * a * y).sum(1, keepdim=True), (s / a * s).sum(1, keepdim=True)
        b = curvature[:, None]
        new = 1 / (yay / (b * a) + y**2 / b - yay * s**2 / (b * sas * a**2))
        fits = (usable & new.isfinite().all(1) & (new > 0).all(1))[:, None]
        self.diagonal = torch.where(fits, new, a)
        kept = torch.where(usable[:, None], s, 0.0), torch.where(usable[:, None], y, 0.0)
        self._pairs = [*self._pairs, kept][-_HISTORY:]

    def inverse_hessian(self) -> Tensor:
        """The estimate (C, D, D), by the BFGS recursion over the kept pairs from the diagonal."""
        matrix = self.diagonal.diag_embed()
        if self.z.shape[1] > _DENSE_LIMIT:
            return matrix
        for s, y in self._pairs:
            curvature = (s * y).sum(1)
            rho = torch.where(curvature > 0, 1 / curvature.clamp(min=1e-30), 0.0)[:, None, None]
            hy = (matrix @ y[:, :, None])[:, :, 0]
            across = s[:, :, None] * hy[:, None, :]
            squared = (1 + rho * (y * hy).sum(1)[:, None, None]) * s[:, :, None] * s[:, None, :]
            matrix = matrix - rho * (across + across.mT) + rho * squared
        return matrix

    def normal(self) -> tuple[Tensor, Tensor]:
        """Mean (C, D) and lower Cholesky factor (C, D, D) of the approximation here."""
        matrix = self.inverse_hessian()
        factor, info = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2)
        fallback = self.diagonal.sqrt().diag_embed()
        factor = torch.where((info > 0)[:, None, None], fallback, factor)
        mean = self.z - (factor @ (factor.mT @ self.gradient[:, :, None]))[:, :, 0]
        return mean, factor


def advi(density: Density, start: Tensor, generator: torch.Generator) -> Tensor:
    r"""One draw a chain of a normal approximation with a diagonal covariance, which maximises the ELBO.

    Each chain is fitted by itself, with one draw a step: the gradient with respect to the mean is that of
    the energy at a draw, and with respect to the log scale :math:`g \epsilon \sigma - 1`.

    Args:
        density: one part.
        start: points (C, D), the first means.
        generator: of the draws, on the CPU.

    Returns:
        Points (C, D).
    """
    mean, log_scale = start.clone(), torch.full_like(start, -1.0)
    moments = [torch.zeros_like(start) for _ in range(4)]
    for step in range(1, _ADAM_STEPS + 1):
        noise = _normal(generator, start.shape, start)
        scale = log_scale.exp()
        gradient = _with_gradient(density, mean + scale * noise)[1].nan_to_num(posinf=0.0, neginf=0.0)
        slopes = gradient, gradient * noise * scale - 1.0
        length = _ADAM_LENGTH * (1.0 if 3 * step < 2 * _ADAM_STEPS else 0.1)
        moves = []
        for i, slope in enumerate(slopes):
            moments[i] = 0.9 * moments[i] + 0.1 * slope
            moments[2 + i] = 0.99 * moments[2 + i] + 0.01 * slope**2
            corrected = moments[2 + i] / (1 - 0.99**step)
            moves.append(length * moments[i] / (1 - 0.9**step) / (corrected.sqrt() + 1e-8))
        mean, log_scale = mean - moves[0], log_scale - moves[1]
    return mean + log_scale.exp() * _normal(generator, start.shape, start)


def _with_gradient(density: Density, z: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (C,), infinite where NaN, and gradients (C, D) at points (C, D)."""
    parts, gradients = density.batched(z)
    return parts.sum(1).nan_to_num(nan=math.inf, posinf=math.inf), gradients.sum(1)


def _energy(density: Density, draws: Tensor) -> Tensor:
    """Energies (K, C) of draws (K, C, D), one set of chains at a time."""
    return torch.stack([density.batched(z)[0].sum(1) for z in draws])


def _normal(generator: torch.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
