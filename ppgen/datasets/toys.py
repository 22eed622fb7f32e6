"""Toy data in the plane, drawn from a distribution whose density is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import (
    Categorical,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    VonMises,
)
from torch import Tensor
from torch.distributions import Distribution

from ppgen.datasets.planar import Banana, Checkerboard, Funnel, Polar, Twisted, full_circle
from ppgen.datasets.split import DataSet, Split
from ppgen.errors import ConfigError
from ppgen.ops.random import forked_rng


def two_moons(
    *, spread: float = 0.12, concentration: float = 3.0, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Two facing arcs of radius 1: log-normal radii, von Mises angles.

    Args:
        spread: standard deviation of the log radius.
        concentration: of the angle; larger is a shorter arc.
        dtype: floating-point type.
    """
    centre = torch.tensor([[-0.5, -0.25], [0.5, 0.25]], dtype=dtype)
    middle = torch.tensor([math.pi / 2, -math.pi / 2], dtype=dtype)
    radius = LogNormal(torch.zeros_like(middle), torch.full_like(middle, spread))
    angle = VonMises(middle, torch.full_like(middle, concentration))
    return MixtureSameFamily(_evenly(2, dtype), Polar(radius, angle, centre))


def eight_gaussians(
    *, radius: float = 2.0, scale: float = 0.2, num_components: int = 8, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Round Gaussians evenly on a circle.

    Args:
        radius: of the circle.
        scale: standard deviation of each Gaussian.
        num_components: how many.
        dtype: floating-point type.
    """
    evenly = _evenly(num_components, dtype)
    angle = torch.arange(num_components, dtype=dtype) * (2 * math.pi / num_components)
    centre = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return MixtureSameFamily(evenly, Independent(Normal(centre, torch.full_like(centre, scale)), 1))


def rings(
    *, num_components: int = 3, spread: float = 0.08, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Concentric rings of radii 1, 2, ...

    Args:
        num_components: how many rings.
        spread: width of a ring, the standard deviation of its radius to first order.
        dtype: floating-point type.
    """
    middle = torch.arange(1, num_components + 1, dtype=dtype)
    radius = LogNormal(middle.log(), spread / middle)
    centre = torch.zeros(num_components, 2, dtype=dtype)
    return MixtureSameFamily(_evenly(num_components, dtype), Polar(radius, full_circle(middle), centre))


def pinwheel(
    *, num_components: int = 5, rate: float = 0.6, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Long Gaussians pointing outwards, their ends turned: a pinwheel.

    Args:
        num_components: how many arms.
        rate: turn, radians a unit of distance.
        dtype: floating-point type.
    """
    evenly = _evenly(num_components, dtype)
    angle = torch.arange(num_components, dtype=dtype) * (2 * math.pi / num_components)
    outwards = torch.stack([angle.cos(), angle.sin()], -1)
    across = torch.stack([-angle.sin(), angle.cos()], -1)
    arms = torch.stack([0.4 * outwards, 0.1 * across], -1)
    gaussians = MultivariateNormal(1.5 * outwards, covariance_matrix=arms @ arms.mT)
    return Twisted(MixtureSameFamily(evenly, gaussians), rate)


def checkerboard(
    *, squares: int = 4, half_width: float = 2.0, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Uniform on every second square of a board.

    Args:
        squares: squares a side.
        half_width: half the width of the board.
        dtype: floating-point type.
    """
    return Checkerboard(squares, half_width, dtype)


def funnel(*, dims: int = 2, scale: float = 1.5, dtype: torch.dtype = torch.float32) -> Distribution:
    """Neal's funnel; its own scale is 3, with draws as far as 100 from the origin.

    Args:
        dims: number of coordinates.
        scale: standard deviation of the first coordinate, the log variance of the others.
        dtype: floating-point type.
    """
    return Funnel(dims, scale, dtype)


def banana(
    *, bend: float = 0.5, scale: float = 1.5, width: float = 0.5, dtype: torch.dtype = torch.float32
) -> Distribution:
    """A bent Gaussian.

    Args:
        bend: curvature of the middle line.
        scale: standard deviation along the first axis.
        width: standard deviation across.
        dtype: floating-point type.
    """
    return Banana(bend, scale, width, dtype)


TOYS: dict[str, tuple[Callable[..., Distribution], str]] = {
    "two-moons": (two_moons, "Two facing arcs in the plane, with soft ends."),
    "eight-gaussians": (eight_gaussians, "Eight round Gaussians on a circle."),
    "rings": (rings, "Three concentric rings."),
    "pinwheel": (pinwheel, "Five long Gaussians, turned into a pinwheel."),
    "checkerboard": (checkerboard, "Every second square of a 4 x 4 board, uniformly."),
    "funnel": (funnel, "Neal's funnel: the first coordinate is the log variance of the second."),
    "banana": (banana, "A bent Gaussian."),
}


def load_toy(
    name: str,
    *,
    num_train: int = 10_000,
    num_validation: int = 1_000,
    num_test: int = 5_000,
    seed: int = 0,
    **shape: Any,
) -> DataSet:
    """Draws from the toy ``name``, with the distribution itself as ``truth``.

    Args:
        name: a key of :data:`TOYS`.
        num_train: number of training draws.
        num_validation: number of validation draws.
        num_test: number of test draws.
        seed: of the draws; test and validation do not depend on ``num_train``.
        **shape: arguments of the toy: ``dtype``, ``scale``, ...; see its function.

    Returns:
        x of shape ``(N, 2)``, real; y (int64) is the component where the truth is a mixture.

    Raises:
        ConfigError: a size that is not positive.
    """
    for argument, size in (
        ("num_train", num_train),
        ("num_validation", num_validation),
        ("num_test", num_test),
    ):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{argument}: expected a positive integer, got {size!r}")
    build, what = TOYS[name]
    truth = build(**shape)
    splits = {}
    with forked_rng(seed):
        for role, size in (("test", num_test), ("validation", num_validation), ("train", num_train)):
            x, y = _draw(truth, size)
            splits[role] = Split(x, y, name=f"{name} {role}")
    sizes = f"{num_train} train, {num_validation} validation, {num_test} test draws (seed {seed})"
    return DataSet(
        name=name, **splits, description=f"{what} {sizes}; the true density is known.", truth=truth
    )


def _draw(truth: Distribution, num: int) -> tuple[Tensor, Tensor | None]:
    """``num`` draws, and the component of each where the truth is a mixture."""
    if isinstance(truth, Twisted):
        x, y = _draw(truth.base, num)
        return truth.forward(x), y
    if isinstance(truth, MixtureSameFamily):
        y = truth.mixture_distribution.sample((num,))
        return truth.component_distribution.sample((num,))[torch.arange(num), y], y
    return truth.sample((num,)), None


def _evenly(num: int, dtype: torch.dtype) -> Categorical:
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise ConfigError(f"num_components: expected a positive integer, got {num!r}")
    return Categorical(torch.full((num,), 1 / num, dtype=dtype))
