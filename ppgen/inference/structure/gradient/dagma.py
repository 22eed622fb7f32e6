r"""DAGMA: a linear DAG along a central path of log-determinants (Bello, Aragam & Ravikumar 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.errors import ConfigError
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.gradient.acyclicity import log_determinant
from ppgen.inference.structure.gradient.least_squares import LeastSquares
from ppgen.inference.structure.gradient.minimise import minimise
from ppgen.inference.structure.gradient.point_estimate import Optimum, check_point_options, estimate
from ppgen.inference.structure.problem import Learned, Problem


@dataclass(frozen=True)
class DAGMA:
    r"""One linear DAG: least squares with an :math:`\ell_1` penalty and a log-determinant barrier.

    .. math:: \min_W \mu \big(L(W) + \lambda \lVert W \rVert_1\big) + h_s(W), \qquad
        h_s(W) = -\log\det(s I - W \circ W) + n \log s,

    for :math:`\mu` and s decreasing, each problem begun where the last one ended. L is half the mean
    squared residual of each variable, over the rows in which it was not set. The inner problems are
    solved by a quasi-Newton method that makes weights exactly zero, where the paper's program uses Adam.

    How to use it, and what to doubt: see :class:`~ppgen.inference.structure.gradient.notears.NOTEARS`.

    Attributes:
        penalty: :math:`\lambda`, in units of the loss.
        threshold: the least absolute weight of an edge; raised until there is no cycle.
        standardise: divide each column by its standard deviation first.
        path: the values of :math:`\mu`.
        radii: the values of s, as many; a radius too small for the weights before it is passed over.
    """

    penalty: float = 0.05
    threshold: float = 0.3
    standardise: bool = False
    path: Sequence[float] = (1.0, 0.1, 0.01, 0.001, 0.0001)
    radii: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6)
    name: str = field(default="dagma", init=False)

    def __post_init__(self) -> None:
        check_point_options(self.penalty, self.threshold)
        if not self.path or len(self.path) != len(self.radii):
            raise ConfigError(
                f"radii: expected one for each of the {len(self.path)} values of path (1 or more), got "
                f"{len(self.radii)}"
            )
        if min(*self.path, *self.radii) <= 0:
            raise ConfigError("path: expected path and radii above 0")

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; nothing is random and ``seed`` is not used.

        Ctrl-C ends the search after the step under way, and the weights so far are thresholded.

        Raises:
            ConfigError: a table with categorical columns, interventions that are not perfect, a prior
                other than uniform, or constraints that contradict each other.
            DataError: fewer than two rows; a constant column that is to be standardised.
        """
        return estimate(problem, self, "DAGMA")

    def optimise(self, squares: LeastSquares, *, progress: bool = False) -> Optimum:
        r"""The weights before any threshold; the multiplier of h is :math:`1 / \mu` at the end."""
        free = torch.zeros(squares.num_free, dtype=torch.float64, device=squares.covariance.device)
        h, violation, radius, multiplier = 0.0, float("inf"), self.radii[0], 1 / self.path[0]
        with Interrupts() as interrupts, tqdm(self.path, disable=not progress, desc="DAGMA") as bar:
            for mu, smaller in zip(bar, self.radii, strict=True):
                if log_determinant(squares.walks(squares.matrix(free)), smaller) is not None:
                    radius = smaller
                multiplier = 1 / mu
                found = minimise(
                    _Barrier(squares, radius, multiplier),
                    free,
                    squares.penalty,
                    rounding=1e-15 * len(squares.required) * multiplier,  # of the logarithms of n pivots
                    stop=lambda: interrupts.requested,
                )
                free, violation = found.point, found.violation
                ended = log_determinant(squares.walks(squares.matrix(free)), radius)
                h = float("inf") if ended is None else float(ended[0])
                bar.set_postfix(h=f"{h:.1e}")
                if interrupts.requested:
                    return Optimum(squares.matrix(free), h, multiplier, violation, False)
        return Optimum(squares.matrix(free), h, multiplier, violation, True)


class _Barrier:
    """Loss + multiplier h, and its gradient; nothing outside of the domain of h."""

    def __init__(self, squares: LeastSquares, radius: float, multiplier: float) -> None:
        self.squares, self.radius, self.multiplier = squares, radius, multiplier

    def __call__(self, free: Tensor) -> tuple[Tensor, Tensor] | None:
        weights = self.squares.matrix(free)
        loss, gradient = self.squares.loss(weights)
        found = log_determinant(self.squares.walks(weights), self.radius)
        if found is None:
            return None
        h, slope = found
        total = gradient + self.multiplier * 2 * weights * slope
        return loss + self.multiplier * h, self.squares.free(total)
