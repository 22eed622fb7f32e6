r"""Standard errors by the delete-a-group jackknife.

The data are dealt into G groups; the figure is computed G times, each time without one
group. With :math:`\theta_g` those replicates,

.. math:: \mathrm{se}^2 = \frac{G - 1}{G} \sum_g (\theta_g - \bar\theta)^2 .

For a figure of two samples, group g of both is left out together: to first order the
replicates add up the errors of both.

Reference: Shao and Tu (1995), "The Jackknife and Bootstrap", section 2.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.errors import ConfigError


def deal(num: int, num_groups: int, generator: torch.Generator) -> list[Tensor]:
    """Indices 0 .. num - 1 in random groups whose sizes differ by one at most."""
    order = torch.randperm(num, generator=generator)
    return [order[g::num_groups] for g in range(num_groups)]


def deal_both(first: int, second: int, num_groups: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Groups of two samples of ``first`` and ``second`` points, as many for both.

    Raises:
        ConfigError: fewer than 2 groups.
    """
    if num_groups < 2:
        raise ConfigError(f"num_groups: a jackknife needs 2 groups or more, got {num_groups}")
    num_groups = min(num_groups, first, second)
    generator = torch.Generator().manual_seed(seed)
    return deal(first, num_groups, generator), deal(second, num_groups, generator)


def jackknife_std_error(replicates: Tensor) -> Tensor:
    """Standard error from the replicates, shape ``(G,)``, each without one group."""
    num = len(replicates)
    return replicates.std(correction=0) * math.sqrt(num - 1)
