r"""The prior of families, :math:`\log \rho_v(P)`, as learners read it: by column number, with constraints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

_CHUNK = 1 << 14


@dataclass(frozen=True)
class FamilyPrior:
    r""":math:`\log \rho_v(P)` of every family, constraints included, by column numbers.

    The weights are not normalised: learners that give an evidence divide by the sum over graphs. All
    methods answer on the device of their argument.

    Attributes:
        names: the variables.
        kind: of the prior over DAGs, for w(G), which is not part of the families.
        allowed_edges: shape (n, n), bool: edges that some graph may have; none on the diagonal, none that
            would close a cycle with required ones.
        required_edges: shape (n, n), bool: edges that every graph has.
        max_parents: no node has more.
        log_present: shape (n, n): log factor of an edge that is there; ``-inf`` where it is not allowed.
        log_absent: shape (n, n): log factor of an edge that is not there; ``-inf`` where it is required.
        log_fan_in: shape (n,): log factor of each number of parents 0..n-1.
    """

    names: tuple[str, ...]
    kind: Literal["uniform", "order"]
    allowed_edges: Tensor
    required_edges: Tensor
    max_parents: int
    log_present: Tensor = field(repr=False)
    log_absent: Tensor = field(repr=False)
    log_fan_in: Tensor = field(repr=False)

    @property
    def num_nodes(self) -> int:
        """Number of variables, n."""
        return len(self.names)

    @property
    def is_flat(self) -> bool:
        """Whether every family has log weight 0, so that learners may leave the prior out."""
        n = self.num_nodes
        off = ~torch.eye(n, dtype=torch.bool)
        return not (self.log_present[off].any() or self.log_absent.any() or self.log_fan_in.any())

    def log_family_prior(self, node: int, sets: Tensor) -> Tensor:
        r""":math:`\log \rho_v(P)` for sets given by their members.

        Args:
            node: v.
            sets: shape (F, n), bool.

        Returns:
            Shape (F,), float64; ``-inf`` for families that are not allowed.
        """
        present, absent, fan_in = self._column(node, sets.device)
        return torch.cat(
            [
                torch.where(chunk, present, absent).sum(-1) + fan_in[chunk.sum(-1)]
                for chunk in sets.bool().split(_CHUNK)
            ]
        )

    def log_dense_prior(self, node: int, device: torch.device | str | None = None) -> Tensor:
        r""":math:`\log \rho_v(P)` for all sets, in the columns of ``DenseScores``.

        Built by doubling: time and memory of the answer, :math:`2^{n-1}`.

        Returns:
            Shape (2^(n-1),), float64.
        """
        present, absent, fan_in = self._column(node, device)
        result = torch.zeros(1, dtype=torch.float64, device=device)
        count = torch.zeros(1, dtype=torch.uint8, device=device)
        for other in range(self.num_nodes):
            if other != node:
                result = torch.cat([result + absent[other], result + present[other]])
                count = torch.cat([count, count + 1])
        if fan_in.any():
            for chunk, size in zip(result.split(_CHUNK), count.split(_CHUNK), strict=True):
                chunk += fan_in[size.long()]
        return result

    def log_listed_prior(self, node: int, parents: Tensor) -> Tensor:
        r""":math:`\log \rho_v(P)` for sets given by lists of members, as in ``ListedScores``.

        Args:
            node: v.
            parents: shape (F, k), int64, members of each set, filled up with -1.

        Returns:
            Shape (F,), float64.
        """
        n = self.num_nodes
        real = parents >= 0
        result = torch.empty(len(parents), dtype=torch.float64, device=parents.device)
        for rows in torch.arange(len(parents), device=parents.device).split(_CHUNK):
            sets = torch.zeros(len(rows), n + 1, dtype=torch.bool, device=parents.device)
            sets.scatter_(1, torch.where(real[rows], parents[rows], n), True)
            result[rows] = self.log_family_prior(node, sets[:, :n])
        return result

    def log_graph_prior(self, adjacency: Tensor) -> Tensor:
        r""":math:`\sum_v \log \rho_v(P_v)` of whole graphs, w(G) not included.

        Args:
            adjacency: shape ``(*, n, n)``, bool, ``[i, j]`` the edge i -> j.

        Returns:
            Shape ``(*,)``, float64; ``-inf`` for graphs that break a constraint. Cycles are not looked for.
        """
        device = adjacency.device
        edges = torch.where(adjacency, self.log_present.to(device), self.log_absent.to(device)).sum((-2, -1))
        return edges + self.log_fan_in.to(device)[adjacency.sum(-2)].sum(-1)

    def allows(self, adjacency: Tensor) -> Tensor:
        """Whether graphs, ``(*, n, n)``, have positive weight; shape ``(*,)``, bool.

        Cycles are not looked for.
        """
        return self.log_graph_prior(adjacency).isfinite()

    def _column(self, node: int, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor]:
        columns = self.log_present[:, node], self.log_absent[:, node], self.log_fan_in
        return columns[0].to(device), columns[1].to(device), columns[2].to(device)
