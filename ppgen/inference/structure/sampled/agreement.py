"""Do chains over graphs agree? What to doubt, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.inference.mcmc.diagnostics import MIN_DRAWS, ess, rhat

_RHAT, _ESS_PER_CHAIN, _GAP = 1.01, 100.0, 0.1
_NAMED = 3


def doubts(
    draws: Tensor, chain_edges: Tensor, names: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """What to doubt about chains, and figures of how far they agree.

    An edge that all draws have, or none, has no R-hat and counts as no failure.

    Args:
        draws: edges of the drawn graphs, bool (C, S, n, n).
        chain_edges: probabilities of the edges as each chain sees them, (C, n, n).
        names: of the nodes.

    Returns:
        Sentences, and ``max_rhat``, ``min_ess`` (NaN where there is none) and ``max_chain_gap``.
    """
    num_chains, num_draws, n = draws.shape[:3]
    flat = draws.flatten(2)
    share = flat.double().mean((0, 1))
    varying = ((share > 0) & (share < 1)).nonzero()[:, 0]
    gaps = chain_edges.flatten(1).amax(0) - chain_edges.flatten(1).amin(0)
    figures = {"max_rhat": torch.nan, "min_ess": torch.nan, "max_chain_gap": float(gaps.max())}
    if num_draws < MIN_DRAWS:
        return (f"{num_draws} draws of each chain are too few to say whether they converged",), figures
    sentences = []
    if len(varying):
        sizes = ess(flat[:, :, varying], "mean")
        figures["min_ess"] = float(sizes.min())
        few = varying[sizes < _ESS_PER_CHAIN * num_chains]
        if len(few):
            order = sizes.argsort()[: len(few)]
            sentences.append(
                f"{len(few)} edges have fewer than {_ESS_PER_CHAIN:.0f} effective draws a chain, the fewest "
                f"{_edge(varying[order[0]], n, names)} with {float(sizes.min()):.0f} in all; draw more"
            )
        if num_chains > 1:
            ratios = rhat(flat[:, :, varying])
            figures["max_rhat"] = float(ratios.max())
            order = ratios.argsort(descending=True)
            if bad := int((ratios > _RHAT).sum()):
                worst = ", ".join(
                    f"{_edge(varying[k], n, names)} ({float(ratios[k]):.3f})"
                    for k in order[: min(bad, _NAMED)]
                )
                sentences.insert(
                    0, f"R-hat is above {_RHAT} on {bad} edges: {worst}; draw more, or add temperatures"
                )
    if num_chains == 1:
        sentences.append("one chain alone cannot be checked against others; use num_chains=4 or more")
    elif bad := int((gaps > _GAP).sum()):
        order = gaps.argsort(descending=True)[: min(bad, _NAMED)]
        worst = ", ".join(f"{_edge(k, n, names)} (by {float(gaps[k]):.2f})" for k in order)
        sentences.append(f"chains differ by more than {_GAP} on {bad} edges: {worst}")
    return tuple(sentences), figures


def _edge(pair: Tensor, num_nodes: int, names: Sequence[str]) -> str:
    start, end = divmod(int(pair), num_nodes)
    return f"{names[start]} -> {names[end]}"
