r"""Chains that are stuck in warm-up: found, and started again where a healthy chain stands.

One chain far out in a tail, or in a pocket where every proposal is rejected, spoils what is learnt from
all chains, and would never have become a draw. Only in warm-up, and always reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.mcmc.kernel import State

#: Fewer chains cannot outvote one of them.
FEWEST_CHAINS = 4


@dataclass(frozen=True)
class Restart:
    """Chains that were given the place of others.

    Attributes:
        transition: of warm-up, after which it happened.
        chains: which, and ``donors`` whose places they took.
        donors: see ``chains``.
        reason: why.
    """

    transition: int
    chains: list[int]
    donors: list[int]
    reason: str


def stuck_chains(u: Tensor, accept_prob: Tensor, num_dims: int) -> dict[str, Tensor]:
    r"""Chains that are far from the others, or stand still; each (C,) bool, by reason.

    *Far*: an energy above the median by more than
    :math:`30 + 10\sqrt D + 20 \operatorname{median}|u - \operatorname{median} u|`. Draws from one
    distribution do not come near it: their energies spread by about :math:`\sqrt{D/2}`.

    *Still*: a mean acceptance below .01 where half of the chains have above .2.

    Args:
        u: energies (C,), in nats.
        accept_prob: mean acceptance of each chain over the window (C,).
        num_dims: D.
    """
    finite = torch.isfinite(u)
    if len(u) < FEWEST_CHAINS or not bool(finite.any()):
        return {}
    centre = u[finite].median()
    spread = (u[finite] - centre).abs().median()
    far = ~(u <= centre + 30.0 + 10.0 * num_dims**0.5 + 20.0 * spread)
    still = (accept_prob < 0.01) & (accept_prob.median() > 0.2)
    return {"far above the others in energy": far, "rejecting every proposal": still & ~far}


def restart(state: State, stuck: Tensor, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
    """The state with each ``stuck`` chain, (C,) bool, in the place of a healthy one drawn at random.

    Returns:
        The state, the stuck chains and their donors (int64).
    """
    chains = stuck.nonzero()[:, 0]
    healthy = (~stuck).nonzero()[:, 0]
    donors = healthy[torch.randint(len(healthy), (len(chains),), generator=generator)]
    source = torch.arange(len(stuck))
    source[chains] = donors
    device = state["z"].device
    return {name: value[source.to(device)] for name, value in state.items()}, chains, donors
