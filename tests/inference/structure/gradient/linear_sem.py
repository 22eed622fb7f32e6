"""Linear-Gaussian tables with a known graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Problem
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.ops.dags import random_dag, topological_order


@dataclass(frozen=True)
class SEM:
    adjacency: Tensor
    weights: Tensor
    table: Table


def as_table(values: Tensor, clamped: Tensor | None = None) -> Table:
    variables = tuple(Variable(f"x{i}") for i in range(values.shape[1]))
    if clamped is None:
        return Table(variables, values, torch.zeros_like(values, dtype=torch.bool))
    return Table(variables, values, clamped, Intervention.PERFECT)


def simulate(adjacency: Tensor, num: int, seed: int, clamped: Tensor | None = None) -> SEM:
    """Weights of size .5 to 2, unit noises; set cells are normal with standard deviation 2."""
    n = len(adjacency)
    generator = torch.Generator().manual_seed(seed)
    size = 0.5 + 1.5 * torch.rand(n, n, generator=generator, dtype=torch.float64)
    sign = 1 - 2 * torch.randint(0, 2, (n, n), generator=generator)
    weights = size * sign * adjacency
    noise = torch.randn(num, n, generator=generator, dtype=torch.float64)
    x = torch.zeros_like(noise)
    for j in topological_order(adjacency):
        x[:, j] = x @ weights[:, j] + noise[:, j]
        if clamped is not None:
            x[:, j] = torch.where(clamped[:, j], 2 * noise[:, j], x[:, j])
    return SEM(adjacency, weights, as_table(x, clamped))


def random_sem(num_nodes: int, degree: float, num: int, seed: int) -> SEM:
    """A random DAG with this number of edges at a node on average."""
    generator = torch.Generator().manual_seed(seed)
    return simulate(random_dag(num_nodes, degree / (num_nodes - 1), generator), num, seed)


def problem(table: Table, constraints: Constraints | None = None, prior: GraphPrior | None = None) -> Problem:
    return Problem(table, None, prior or GraphPrior(), constraints or Constraints(), progress=False)
