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
        stuck: whether they stood still, or were there in the second half of warm-up. Else they may only have
            been slow to arrive from starting points far out.
    """

    transition: int
    chains: list[int]
    donors: list[int]
    reason: str
    stuck: bool


def stuck_chains(
    u: Tensor, accept_prob: Tensor, num_dims: int, lowest: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Chains that are far from the others, in a worse mode, or stand still; each (C,) bool, by reason.

    *Far*: an energy above the median by more than
    :math:`30 + 10\sqrt D + 20 \operatorname{median}|u - \operatorname{median} u|`. Draws from one
    distribution do not come near it: their energies spread by about :math:`\sqrt{D/2}`.

    *Worse*: for the whole of a window, an energy of more than :math:`20 + \max(10, D)` above the median of
    the better half of the chains. A mode of so much lower density has no part in the posterior, unless
    its volume is larger by as much. Modes of equal weight, as those of a mixture with its labels
    exchanged, have equal energies and stay.

    *Still*: a mean acceptance below .01 where half of the chains have above .2.

    Args:
        u: energies (C,), in nats.
        accept_prob: mean acceptance of each chain over the window (C,).
        num_dims: D.
        lowest: lowest energy of each chain in the window (C,), in nats; by default ``u``.
    """
    finite = torch.isfinite(u)
    if len(u) < FEWEST_CHAINS or not bool(finite.any()):
        return {}
    centre = u[finite].median()
    spread = (u[finite] - centre).abs().median()
    far = ~(u <= centre + 30.0 + 10.0 * num_dims**0.5 + 20.0 * spread)
    lowest = u if lowest is None else lowest
    better = lowest.sort().values[: (len(lowest) + 1) // 2]
    worse = (lowest > better.median() + 20.0 + max(10, num_dims)) & ~far
    still = (accept_prob < 0.01) & (accept_prob.median() > 0.2) & ~far & ~worse
    return {
        "far above the others in energy": far,
        "in a mode of much lower density": worse,
        "rejecting every proposal": still,
    }


def restart(
    state: State, stuck: Tensor, healthy: Tensor, generator: torch.Generator
) -> tuple[State, Tensor, Tensor]:
    """The state with each ``stuck`` chain in the place of a ``healthy`` one drawn at random; (C,) bool each.

    Returns:
        The state, the stuck chains and their donors (int64).
    """
    chains, places = stuck.nonzero()[:, 0], healthy.nonzero()[:, 0]
    donors = places[torch.randint(len(places), (len(chains),), generator=generator)]
    source = torch.arange(len(stuck))
    source[chains] = donors
    device = state["z"].device
    return {name: value[source.to(device)] for name, value in state.items()}, chains, donors
