r"""NOTEARS: a linear DAG as a continuous optimum (Zheng, Aragam, Ravikumar & Xing 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.gradient.acyclicity import trace_exponential
from ppgen.inference.structure.gradient.least_squares import LeastSquares
from ppgen.inference.structure.gradient.minimise import minimise
from ppgen.inference.structure.gradient.point_estimate import Optimum, check_point_options, estimate
from ppgen.inference.structure.problem import Learned, Problem

#: largest gradient at which the multiplier is updated, before the last minimisation
_ON_THE_WAY = 1e-3


@dataclass(frozen=True)
class NOTEARS:
    r"""One linear DAG: least squares with an :math:`\ell_1` penalty under a smooth constraint.

    .. math:: \min_W L(W) + \lambda \lVert W \rVert_1 \quad\text{subject to}\quad
        h(W) = \operatorname{tr} e^{W \circ W} - n = 0,

    by the augmented Lagrangian. L is half the mean squared residual of each variable, over the rows in
    which it was not set. Edges are the weights that reach ``threshold``.

    How to use it::

        posterior = structure.learn(frame, method=structure.NOTEARS(penalty=0.05, standardise=True))
        posterior.median_graph()          # the one graph there is

    The answer is a point: its edge probabilities are 0 and 1. On raw columns the method leans on the
    order of the variances, which is real only where all noises are alike (Reisach, Seiler & Weichwald
    2021); it warns where the graph follows that order. Standardised columns remove the crutch, and
    usually much of the accuracy seen on simulated data.

    Attributes:
        penalty: :math:`\lambda`, in units of the loss.
        threshold: the least absolute weight of an edge; raised until there is no cycle.
        standardise: divide each column by its standard deviation first. ``weighted_graph`` is in the
            units of the table either way; threshold and penalty apply to the divided columns.
        max_iterations: updates of the multiplier, each with a minimisation.
        tolerance: h at which the weights count as acyclic.
        max_stiffness: largest factor of :math:`h^2`; the search ends where more is needed.
    """

    penalty: float = 0.1
    threshold: float = 0.3
    standardise: bool = False
    max_iterations: int = 100
    tolerance: float = 1e-8
    max_stiffness: float = 1e16
    name: str = field(default="notears", init=False)

    def __post_init__(self) -> None:
        check_point_options(self.penalty, self.threshold)

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; nothing is random and ``seed`` is not used.

        Ctrl-C ends the search after the step under way, and the weights so far are thresholded.

        Raises:
            ConfigError: a table with categorical columns, interventions that are not perfect, a prior
                other than uniform, or constraints that contradict each other.
            DataError: fewer than two rows; a constant column that is to be standardised.
        """
        return estimate(problem, self, "NOTEARS", self.tolerance)

    def optimise(self, squares: LeastSquares, *, progress: bool = False) -> Optimum:
        """The weights before any threshold."""
        free = torch.zeros(squares.num_free, dtype=torch.float64, device=squares.covariance.device)
        stiffness, multiplier, acyclicity, violation = 1.0, 0.0, float("inf"), float("inf")
        complete = True
        with Interrupts() as interrupts, tqdm(disable=not progress, unit="update", desc="NOTEARS") as bar:
            for _ in range(self.max_iterations):
                while True:
                    objective = _Augmented(squares, stiffness, multiplier)
                    found = minimise(
                        objective,
                        free,
                        squares.penalty,
                        tolerance=_ON_THE_WAY,
                        stop=lambda: interrupts.requested,
                    )
                    h = objective.acyclicity(found.point)
                    if h <= 0.25 * acyclicity or stiffness >= self.max_stiffness or interrupts.requested:
                        break
                    stiffness *= 10
                if h <= self.tolerance or stiffness >= self.max_stiffness:
                    found = minimise(
                        objective, found.point, squares.penalty, stop=lambda: interrupts.requested
                    )
                    h = objective.acyclicity(found.point)
                free, acyclicity, violation = found.point, h, found.violation
                multiplier += stiffness * h
                bar.update()
                bar.set_postfix(h=f"{h:.1e}")
                if interrupts.requested:
                    complete = False
                    break
                if h <= self.tolerance or stiffness >= self.max_stiffness:
                    break
        return Optimum(squares.matrix(free), acyclicity, multiplier, violation, complete)


class _Augmented:
    """Loss + multiplier h + stiffness / 2 h^2, and its gradient."""

    def __init__(self, squares: LeastSquares, stiffness: float, multiplier: float) -> None:
        self.squares, self.stiffness, self.multiplier = squares, stiffness, multiplier

    def acyclicity(self, free: Tensor) -> float:
        return float(trace_exponential(self.squares.walks(self.squares.matrix(free)))[0])

    def __call__(self, free: Tensor) -> tuple[Tensor, Tensor] | None:
        weights = self.squares.matrix(free)
        loss, gradient = self.squares.loss(weights)
        h, slope = trace_exponential(self.squares.walks(weights))
        if not bool(h.isfinite()):
            return None
        pull = self.multiplier + self.stiffness * h
        value = loss + self.multiplier * h + self.stiffness / 2 * h**2
        return value, self.squares.free(gradient + pull * 2 * weights * slope)
