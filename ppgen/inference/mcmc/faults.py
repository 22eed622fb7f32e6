r"""What may be wrong with a run, in sentences that say what to do about it.

A run is fine where none of these is true:

=====================  =====================================================================================
unfinished             it was interrupted before its last draw
not finite             some draw is NaN or infinite
frozen                 all draws of some chain are the same, or nearly all
apart                  some chain stays where the others do not go, or at another level of log density
restarted              warm-up found stuck chains and started them again elsewhere
disagreement           rank-normalised R-hat above 1.01 in some coordinate
few effective draws    bulk or tail ESS below 100 a chain, for fewer than 16 chains; below 400 in all for 16
                       or more, where each chain may be short: 400 independent draws give a mean to a
                       twentieth of its standard deviation, and quantiles of the tails
divergences            some transition diverged
tree depth             more than 5% of the transitions of NUTS stopped at its maximal depth
energy                 E-BFMI below 0.3 in some chain
=====================  =====================================================================================

A single stuck chain among hundreds leaves R-hat near 1. So chains are also looked at one by one: by the
mean and the standard deviation of the normal scores of the ranks of their draws, which for chains that
agree lie around 0 and 1 whatever the posterior. The log density of the draws is looked at in the same way:
chains that are caught in a mode of much lower density stand out there first.

References: Vehtari et al. 2021 (R-hat, ESS); Betancourt 2016 and 2017 (E-BFMI, divergences).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppgen.inference.mcmc import diagnostics
from ppgen.inference.mcmc.diagnostics import MIN_DRAWS

if TYPE_CHECKING:
    from ppgen.inference.mcmc.result import Posterior

#: R-hat above this is disagreement.
MAX_RHAT = 1.01
#: Effective draws that each of few chains must be worth, and that many chains must be worth together.
MIN_ESS_A_CHAIN, MIN_ESS_IN_ALL, MANY_CHAINS = 100, 400, 16
#: A larger share of transitions at the maximal tree depth is worth a look.
MAX_SATURATION = 0.05
#: A chain with a smaller fraction of missing information explores its energies too slowly.
MIN_BFMI = 0.3

# A chain that moves in fewer transitions than this share of what the median chain does is frozen.
_FROZEN_SHARE = 0.02
# Normal scores: apart by more than one standard deviation of all draws, and by more than 7 of the
# spread among chains; R-hat's message names chains that are half a deviation away.
_APART, _APART_SPREADS, _ASIDE, _NARROW = 1.0, 7.0, 0.5, 0.05
_SHOWN = 5
# Samplers whose energy is not that of fresh momenta along a trajectory.
_WITHOUT_TRAJECTORIES = {"MALA", "RandomWalk"}


def find(posterior: Posterior) -> list[str]:
    """Everything that deserves a look in a posterior, the gravest first."""
    if posterior.num_draws == 0:
        return ["there are no draws: the run ended in warm-up; go on with extend(0) or run it again"]
    return [
        *_unfinished(posterior),
        *_not_finite(posterior),
        *_frozen(posterior),
        *_apart(posterior, posterior.described | _described_density(posterior)),
        *_restarted(posterior),
        *_disagreement(posterior),
        *_few_effective_draws(posterior),
        *_divergences(posterior, gathering=True),
        *_tree_depth(posterior),
        *_energy(posterior),
    ]


def find_at_once(posterior: Posterior) -> list[str]:
    """Those of :func:`find` that cost a look at each transition, rather than at each coordinate."""
    if posterior.num_draws == 0:
        return []
    return [
        *_not_finite(posterior),
        *_frozen(posterior),
        *_apart(posterior, _described_density(posterior)),
        *_divergences(posterior, gathering=False),
        *_tree_depth(posterior),
        *_energy(posterior),
    ]


def _unfinished(posterior: Posterior) -> Iterator[str]:
    if posterior.attributes.get("interrupted"):
        asked = posterior.attributes.get("num_samples")
        of = f" of {asked}" if asked else ""
        yield (
            f"the run was interrupted after {posterior.num_draws}{of} draws of each chain; extend(0) goes on "
            "with the rest"
        )


def _not_finite(posterior: Posterior) -> Iterator[str]:
    for name, draws in posterior.samples.items():
        bad = ~_flat(draws).isfinite().all(2)
        if bool(bad.any()):
            yield (
                f"site '{name}': {int(bad.sum())} of {bad.numel()} draws are NaN or infinite (in "
                f"{_chains(bad.any(1))}); run in float64, or keep the site away from the edge of its support"
            )


def _frozen(posterior: Posterior) -> Iterator[str]:
    if posterior.num_draws < 2:
        return
    moves = _moves(posterior)
    still, slow = moves == 0, (moves > 0) & (moves < _FROZEN_SHARE * moves.median())
    cure = "leave them out, take other starts (init_strategy), a smaller step size, or float64"
    if bool(still.any()):
        yield f"{_chains(still)} of {len(moves)} never moved: all their draws are the same; {cure}"
    if bool(slow.any()):
        yield (
            f"{_chains(slow)} of {len(moves)} hardly moved: in less than {100 * _FROZEN_SHARE:.0f}% of the "
            f"transitions that moved the others; {cure}"
        )


def _moves(posterior: Posterior) -> Tensor:
    """Share of transitions after which each chain stood elsewhere, (C,)."""
    moved = None
    arrays = posterior.samples.values() if posterior.unconstrained is None else [posterior.unconstrained]
    for draws in arrays:
        changed = _flat(draws[:, 1:] != draws[:, :-1]).any(2)
        moved = changed if moved is None else moved | changed
    if moved is None:
        return torch.ones(posterior.num_chains)
    return moved.double().mean(1).cpu()


def _described_density(posterior: Posterior) -> dict[str, dict[str, Tensor]]:
    """The log density of the draws, described as a site is."""
    lp = posterior.statistics.get("lp")
    return {} if lp is None else {"lp": {k: v.cpu() for k, v in diagnostics.describe(lp).items()}}


def _apart(posterior: Posterior, described: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    if posterior.num_chains < 3 or posterior.num_draws < MIN_DRAWS:
        return
    everywhere = torch.zeros(posterior.num_chains, dtype=torch.bool)
    worst, where = -1.0, ""
    for name, found in described.items():
        location, spread = found["chain_location"], found["chain_spread"]
        away = (location - location.median(-1, keepdim=True).values).abs()
        usual = 1.4826 * away.median(-1, keepdim=True).values
        constant = found["sd"][..., None] == 0
        narrow = spread < _NARROW * spread.median(-1, keepdim=True).values
        apart = ((away > _APART) & (away > _APART_SPREADS * usual) | narrow) & ~constant
        if not bool(apart.any()):
            continue
        everywhere |= _rows(apart).any(0)
        furthest = _rows(torch.where(apart, away, -1.0)).amax(1)
        if float(furthest.max()) > worst:
            worst, where = float(furthest.max()), _coordinate(name, found["sd"], int(furthest.argmax()))
    if bool(everywhere.any()):
        yield (
            f"{_chains(everywhere)} of {posterior.num_chains} stay where the others do not go, most of all "
            f"in '{where}': a stuck chain or another mode. Look at get_samples(group_by_chain=True), take "
            "longer warm-up or other starts; if the modes are real, their weights are not to be trusted"
        )


def _restarted(posterior: Posterior) -> Iterator[str]:
    chains = list(posterior.attributes.get("restarted") or ())
    if chains:
        mask = torch.zeros(posterior.num_chains, dtype=torch.bool)
        mask[[int(chain) for chain in chains]] = True
        yield (
            f"{_chains(mask)} of {posterior.num_chains} were stuck in warm-up and started again beside the "
            "others: a mode of its own there would be missed; try other starts (init_strategy) to see"
        )


def _disagreement(posterior: Posterior) -> Iterator[str]:
    if posterior.num_chains < 2:
        return
    value, name, place = _extreme(posterior, "r_hat", largest=True)
    if not value > MAX_RHAT:
        return
    location = _rows(posterior.described[name]["chain_location"])[place]
    aside = (location - location.median()).abs() > _ASIDE
    # Half of the chains on each side of nothing: their median is one of them.
    aside = aside if bool(aside.any()) else location.abs() > _ASIDE
    who = f"; {_chains(aside)} stand aside" if bool(aside.any()) else ""
    where = _coordinate(name, posterior.described[name]["sd"], place)
    yield (
        f"R-hat of '{where}' is {value:.3f}, above {MAX_RHAT}: the chains disagree{who}. Take longer warm-up "
        "and longer chains; if it stays, look for several modes or rewrite the model"
    )


def _few_effective_draws(posterior: Posterior) -> Iterator[str]:
    chains = posterior.num_chains
    few = chains < MANY_CHAINS
    needed = MIN_ESS_A_CHAIN * chains if few else MIN_ESS_IN_ALL
    if posterior.num_draws < MIN_DRAWS:
        yield (
            f"{posterior.num_draws} draws of each chain are too few to judge them; take {MIN_ESS_A_CHAIN} or "
            "more"
        )
        return
    for key, what in (("ess_bulk", "bulk"), ("ess_tail", "tail")):
        value, name, place = _extreme(posterior, key, largest=False)
        if value < needed:
            where = _coordinate(name, posterior.described[name]["sd"], place)
            rule = f"{MIN_ESS_A_CHAIN} a chain" if few else "in all"
            yield (
                f"{what} effective sample size of '{where}' is {value:.0f}, below {needed} ({rule}): draw "
                f"{max(2, -(-needed // max(1, int(value))))} times as many (extend), or take more chains"
            )
            return


def _divergences(posterior: Posterior, *, gathering: bool) -> Iterator[str]:
    diverging = posterior.statistics.get("diverging")
    if diverging is None or not bool(diverging.any()):
        return
    where = _chains(diverging.any(1)) + (_gathering(posterior, diverging) if gathering else "")
    yield (
        f"{int(diverging.sum())} of {diverging.numel()} transitions diverged, in {where}: draws are missing "
        "there. Raise target_accept_prob (0.95, 0.99), or take a non-centred parametrisation "
        "(pyro.infer.reparam) of scales that become small"
    )


def _gathering(posterior: Posterior, diverging: Tensor) -> str:
    """Where divergences gather: the coordinate in which their mean is furthest from that of all draws."""
    if int(diverging.sum()) < _SHOWN:
        return ""
    best = (1.0, "")
    for name, draws in posterior.samples.items():
        flat = _flat(draws.detach().double())
        mean, sd = posterior.described[name]["mean"].flatten(), posterior.described[name]["sd"].flatten()
        shift = ((flat[diverging].mean(0).cpu() - mean) / sd).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        place = int(shift.abs().argmax()) if len(shift) else 0
        if len(shift) and float(shift[place].abs()) > best[0]:
            side = "small" if float(shift[place]) < 0 else "large"
            where = _coordinate(name, posterior.described[name]["sd"], place)
            best = float(shift[place].abs()), f", mostly at {side} '{where}'"
    return best[1]


def _tree_depth(posterior: Posterior) -> Iterator[str]:
    reached = posterior.statistics.get("reached_max_depth")
    if reached is None:
        return
    share = float(reached.double().mean())
    if share > MAX_SATURATION:
        yield (
            f"{100 * share:.0f}% of the transitions stopped at the maximal tree depth, more than "
            f"{100 * MAX_SATURATION:.0f}%: draws cost much and say little. Raise max_tree_depth, take "
            "full_mass=True, or bring the latents to one scale"
        )


def _energy(posterior: Posterior) -> Iterator[str]:
    energy = posterior.statistics.get("energy")
    if energy is None or posterior.attributes.get("sampler") in _WITHOUT_TRAJECTORIES:
        return
    fraction = diagnostics.bfmi(energy)
    low = fraction < MIN_BFMI
    if bool(low.any()):
        yield (
            f"E-BFMI is below {MIN_BFMI} in {_chains(low)} (lowest {float(fraction[low].min()):.2f}): the "
            "tails are explored slowly. Take a non-centred parametrisation, or lighter tails in the priors"
        )


def _extreme(posterior: Posterior, key: str, *, largest: bool) -> tuple[float, str, int]:
    """The extreme figure over all coordinates: value, site, place; NaN of constants left out."""
    worst = -torch.inf if largest else torch.inf
    found = worst, "", 0
    for name, described in posterior.described.items():
        flat = described[key].flatten().nan_to_num(nan=worst)
        if not len(flat):
            continue
        place = int(flat.argmax() if largest else flat.argmin())
        value = float(flat[place])
        if (value > found[0]) if largest else (value < found[0]):
            found = value, name, place
    return found


def _coordinate(name: str, like: Tensor, place: int) -> str:
    """Name of the coordinate at the flat index ``place`` of a site shaped as ``like``."""
    if not like.ndim:
        return name
    indices = torch.unravel_index(torch.tensor(place), like.shape)
    return f"{name}[{','.join(str(int(i)) for i in indices)}]"


def _flat(draws: Tensor) -> Tensor:
    """``(C, S, *shape)`` as (C, S, K)."""
    return draws.reshape(*draws.shape[:2], -1)


def _rows(figures: Tensor) -> Tensor:
    """``(*shape, C)`` as (K, C)."""
    return figures.reshape(-1, figures.shape[-1])


def _chains(mask: Tensor) -> str:
    """Name the chains that a mask (C,) marks: chain 3; chains 3, 5; chains 3, 5, 6, 8, 9 and 2 more."""
    numbers = mask.nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = len(numbers) - _SHOWN
    return f"chain{'s' if len(numbers) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")
