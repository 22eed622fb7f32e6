"""Where chains start: scattered states that the constraints allow."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import SamplingError
from ppgen.inference.structure.sampled.packing import PackedFamilies


def scattered_orders(families: PackedFamilies, shape: tuple[int, int], seed: int) -> Tensor:
    """Positions of the nodes in random orders, int64, shape ``(*shape, n)``.

    An order is drawn node by node among those that have an allowed family in what came before.

    Raises:
        SamplingError: no graph fits the constraints.
    """
    generator = torch.Generator().manual_seed(seed)
    positions = torch.empty(*shape, families.num_nodes, dtype=torch.int64)
    for one in positions.flatten(0, 1):
        one[_order(families, generator)] = torch.arange(families.num_nodes)
    return positions


def layers(graphs: Tensor) -> Tensor:
    """Layers of the nodes of DAGs (..., n, n), the lengths of the longest paths to them: (..., n)."""
    layer = torch.zeros(graphs.shape[:-1], dtype=torch.int64, device=graphs.device)
    for _ in range(graphs.shape[-1] - 1):
        layer = torch.where(graphs, layer[..., :, None] + 1, 0).amax(-2)
    return layer


def _order(families: PackedFamilies, generator: torch.Generator) -> list[int]:
    n = families.num_nodes
    waiting: list[int] = torch.randperm(n, generator=generator).tolist()
    placed = torch.zeros(n + 1, dtype=torch.bool)
    placed[n] = True  # what stands for no member, -1, is always there
    order: list[int] = []
    while waiting:
        for node in waiting:
            if bool(families.empty[node].isfinite()) or bool(placed[families.parents[node]].all(1).any()):
                break
        else:
            raise SamplingError(
                f"constraints: no graph fits them; variables {sorted(waiting)} need parents that cannot "
                "come before them; relax required or forbidden edges, tiers, max_parents or candidates"
            )
        waiting.remove(node)
        order.append(node)
        placed[node] = True
    return order
