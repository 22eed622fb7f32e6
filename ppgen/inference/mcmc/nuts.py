r"""The no-U-turn sampler: trajectories that double until they turn back, one leapfrog step a call.

A trajectory grows by doublings, each a run of :math:`2^d` leapfrog steps from one of its two ends.
It stops when its ends begin to approach each other, when a run of steps turns back within itself
(that run is then left out), when the energy diverges, or after ``max_tree_depth`` doublings. The
draw is one of its points: within a run with the probability
:math:`\exp(-H)/\sum \exp(-H)`, between the run and the trajectory so far in favour of the run
(biased progressive sampling).

*Turning.* For the points between two ends, with the sum :math:`\rho` of their momenta (whitened, so
that products need no mass matrix), the trajectory turns when

.. math:: \rho^\top p_{first} \le 0 \quad\text{or}\quad \rho^\top p_{last} \le 0.

This is asked of every block of :math:`2^j` steps of the run that starts at a multiple of
:math:`2^j`, and of the whole; and of each half of a block together with the nearest point of the
other half, which sees the turns that two halves hide from each other by symmetry.

*Without recursion.* The host calls ``advance`` once for each leapfrog step, and all the above is
masks. For each level j the state keeps where the newest block of :math:`2^j` steps began:
``first`` (the momentum there), ``last`` (the momentum one step before) and ``before`` (the sum of the
run's momenta before it): memory O(max_tree_depth D) a chain. A chain that is not active does not
change.

``params``: ``scale`` L, diagonal (D,) or (D, D); ``weights`` (P,).

References: Hoffman & Gelman 2014; Betancourt 2017 (*A conceptual introduction to Hamiltonian Monte
Carlo*, multinomial sampling and the criterion for general metrics); Lao & Dillon 2019 and Phan et al.
2019 (iteration by checkpoints); Stan's ``base_nuts`` for the checks between halves.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.hmc import DIVERGENCE_THRESHOLD, kinetic, leapfrog
from ppgen.inference.mcmc.kernel import (
    Energy,
    Kernel,
    Noise,
    NoiseSpec,
    Params,
    State,
    first_state,
    total,
)


def nuts_kernel(num_dims: int, max_tree_depth: int = 10) -> Kernel:
    """The kernel; a transition takes at most ``2**max_tree_depth - 1`` leapfrog steps.

    Statistics beside the usual: ``tree_depth``, the doublings that were completed, and
    ``reached_max_depth``, whether the trajectory was cut off. ``accept_prob`` is the mean of
    min(1, exp(H before - H)) over all the steps taken.

    Raises:
        ConfigError: ``max_tree_depth`` below 1 or above 20.
    """
    if not 1 <= max_tree_depth <= 20:
        raise ConfigError(f"max_tree_depth: expected an integer from 1 to 20, got {max_tree_depth}")
    uniform = NoiseSpec("uniform", ())
    return Kernel(
        name="NUTS",
        init=partial(init, max_tree_depth=max_tree_depth),
        begin=begin,
        advance=partial(advance, max_tree_depth=max_tree_depth),
        end=partial(end, max_tree_depth=max_tree_depth),
        begin_noise={"momentum": NoiseSpec("normal", (num_dims,)), "direction": uniform},
        advance_noise={"step": uniform, "run": uniform},
        statistics=(
            "accept_prob",
            "diverging",
            "num_steps",
            "energy",
            "tree_depth",
            "reached_max_depth",
        ),
    )


def init(z: Tensor, energy: Energy, step_size: Tensor, *, max_tree_depth: int) -> State:
    """The state at the points z (C, D)."""
    state = first_state(z, energy, step_size)
    u, g, zero, count = state["u"], state["g"], torch.zeros_like(z[:, 0]), state["num_steps"]
    checkpoints = z.new_zeros(len(z), max(max_tree_depth - 1, 1), z.shape[1])
    return state | {
        # The end that grows, and the other one.
        "front_z": z,
        "front_p": torch.zeros_like(z),
        "front_g": g,
        "back_z": z,
        "back_p": torch.zeros_like(z),
        "back_g": g,
        "direction": zero,
        # The trajectory: sum of momenta, log sum of weights relative to the start.
        "start": zero,
        "rho": torch.zeros_like(z),
        "log_weight": zero,
        # The run of steps that is being added to it, and the point drawn from it.
        "run_size": count,
        "run_z": z,
        "run_u": u,
        "run_g": g,
        "run_energy": zero,
        "run_rho": torch.zeros_like(z),
        "run_log_weight": zero,
        "run_turned": count > 0,
        "first": checkpoints,
        "last": checkpoints,
        "before": checkpoints,
        "accept_sum": zero,
        "tree_depth": count,
        "reached_max_depth": count > 0,
    }


def begin(state: State, params: Params, noise: Noise) -> State:
    """Draw momenta and the first direction; the trajectory is one point."""
    momentum = noise["momentum"]
    start = total(state["u"], params) + kinetic(momentum)
    zero, count = torch.zeros_like(start), torch.zeros_like(state["num_steps"])
    return state | {
        "active": count == 0,
        "front_z": state["z"],
        "front_p": momentum,
        "front_g": state["g"],
        "back_z": state["z"],
        "back_p": momentum,
        "back_g": state["g"],
        "direction": _sign(noise["direction"]),
        "start": start,
        "rho": momentum,
        "log_weight": zero,
        "run_size": count + 1,
        "accept_sum": zero,
        "diverging": count > 0,
        "num_steps": count,
        "energy": start,
        "tree_depth": count,
    }


def advance(state: State, params: Params, energy: Energy, noise: Noise, *, max_tree_depth: int) -> State:
    """One leapfrog step at the front, and all that follows from it."""
    active = state["active"]
    z, p, u, g = leapfrog(
        state["front_z"],
        state["front_p"],
        state["front_g"],
        state["step_size"] * state["direction"],
        params,
        energy,
    )
    after = total(u, params) + kinetic(p)
    log_weight = (state["start"] - after).nan_to_num(nan=-float("inf"))
    diverged = log_weight < -DIVERGENCE_THRESHOLD
    log_weight = log_weight.clamp(min=-DIVERGENCE_THRESHOLD)

    index = state["num_steps"] - (state["run_size"] - 1)  # of this step in its run, from 0
    is_first, is_last = index == 0, index + 1 == state["run_size"]

    # Does the run turn, within itself or where it meets the trajectory?
    run_rho = torch.where(is_first[:, None], p, state["run_rho"] + p)
    blocks, turned, turned_across = _blocks(state, index, p, run_rho)
    # The whole is asked about where a run begins, as the second half of the check, and where it ends.
    turns = (is_first | is_last) & _turns(state["back_p"], p, state["rho"] + run_rho)
    turned_at_start = torch.where(is_first, turns, state["run_turned"])

    # Draw this step's point from those of the run so far, with its share of their weights.
    gap = torch.where(is_first, -float("inf"), state["run_log_weight"] - log_weight)
    ratio = (-gap.abs()).exp()
    drawn = active & (noise["step"] * (1 + ratio) < torch.where(gap > 0, ratio, 1.0))
    run_log_weight = torch.where(gap > 0, state["run_log_weight"], log_weight) + (1 + ratio).log()
    run_z = _where(drawn, z, state["run_z"])
    run_u = _where(drawn, u, state["run_u"])
    run_g = _where(drawn, g, state["run_g"])
    run_energy = torch.where(drawn, after, state["run_energy"])

    # A run that is complete joins the trajectory. One uniform number says whether its point becomes
    # the draw and, by the half that it lies in, where the next run goes.
    joined = active & is_last & ~turned & ~diverged
    direction = torch.where(joined, _sign(noise["run"]), state["direction"])
    within_half = 2 * noise["run"] - (noise["run"] >= 0.5).to(z.dtype)
    gap = state["log_weight"] - run_log_weight
    ratio = (-gap.abs()).exp()
    taken = joined & (within_half < torch.where(gap > 0, ratio, 1.0))
    joint_log_weight = torch.where(gap > 0, state["log_weight"], run_log_weight) + (1 + ratio).log()
    depth = state["tree_depth"] + joined.to(torch.int64)
    ended = turned | diverged | (joined & (turns | turned_at_start | turned_across))
    ended = ended | (depth >= max_tree_depth)
    swapped = direction != state["direction"]

    return state | {
        "z": _where(taken, run_z, state["z"]),
        "u": _where(taken, run_u, state["u"]),
        "g": _where(taken, run_g, state["g"]),
        "active": active & ~ended,
        "front_z": _where(active, _where(swapped, state["back_z"], z), state["front_z"]),
        "front_p": _where(active, _where(swapped, state["back_p"], p), state["front_p"]),
        "front_g": _where(active, _where(swapped, state["back_g"], g), state["front_g"]),
        "back_z": _where(swapped, z, state["back_z"]),
        "back_p": _where(swapped, p, state["back_p"]),
        "back_g": _where(swapped, g, state["back_g"]),
        "direction": direction,
        "rho": _where(joined, state["rho"] + run_rho, state["rho"]),
        "log_weight": torch.where(joined, joint_log_weight, state["log_weight"]),
        "run_size": torch.where(joined, 2 * state["run_size"], state["run_size"]),
        "run_z": run_z,
        "run_u": run_u,
        "run_g": run_g,
        "run_energy": run_energy,
        "run_rho": _where(active, run_rho, state["run_rho"]),
        "run_log_weight": torch.where(active, run_log_weight, state["run_log_weight"]),
        "run_turned": torch.where(active, turned_at_start, state["run_turned"]),
        **blocks,
        "accept_sum": state["accept_sum"] + torch.where(active, log_weight.clamp(max=0.0).exp(), 0.0),
        "diverging": state["diverging"] | (active & diverged),
        "num_steps": state["num_steps"] + active.to(torch.int64),
        "energy": torch.where(taken, run_energy, state["energy"]),
        "tree_depth": depth,
    }


def end(state: State, params: Params, noise: Noise, *, max_tree_depth: int) -> State:
    """The draw stands already in ``z``; sum up."""
    return state | {
        "accept_prob": state["accept_sum"] / state["num_steps"].to(state["z"].dtype),
        "reached_max_depth": state["tree_depth"] >= max_tree_depth,
    }


def _blocks(state: State, index: Tensor, p: Tensor, rho: Tensor) -> tuple[State, Tensor, Tensor]:
    """Note where blocks begin, and find those that turn.

    Args:
        state: the state.
        index: (C,), of the step in its run.
        p: (C, D), the momentum after it.
        rho: (C, D), the sum of the run's momenta up to it.

    Returns:
        The checkpoints; whether the run turns within itself (C,); and, where the run is complete,
        whether it turns together with the last point of the trajectory that it was added to (C,).
    """
    levels = state["first"].shape[1]
    size = 2 ** torch.arange(1, levels + 1, device=p.device)
    position = index[:, None] & (size - 1)
    # Larger blocks than the run have no use for a beginning.
    fits = state["active"][:, None] & (size <= state["run_size"][:, None])
    begins = (fits & (position == 0))[..., None]
    first = torch.where(begins, p[:, None], state["first"])
    last = torch.where(begins, state["front_p"][:, None], state["last"])
    before = torch.where(begins, (rho - p)[:, None], state["before"])

    block = rho[:, None] - before  # the sum of the momenta since the block began
    turns = _turns(first, p[:, None], block)
    turns_across = _turns(last, p[:, None], block + last)
    complete = position == size - 1
    # A block that began as the second half of a larger one meets the end of the first half when both end.
    second_half = (index[:, None] & size) != 0
    whole_run = size == state["run_size"][:, None]
    turned = ((complete | (position == size // 2)) & turns) | (complete & second_half & turns_across)
    return (
        {"first": first, "last": last, "before": before},
        turned.any(1),
        (complete & whole_run & turns_across).any(1),
    )


def _turns(first: Tensor, last: Tensor, rho: Tensor) -> Tensor:
    """Whether a stretch with these momenta at its ends, ``(..., D)``, and this sum turns; (...)."""
    return ((rho * first).sum(-1) <= 0) | ((rho * last).sum(-1) <= 0)


def _sign(uniform: Tensor) -> Tensor:
    one = torch.ones_like(uniform)
    return torch.where(uniform < 0.5, -one, one)


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """:func:`torch.where` with one condition (C,) for each chain."""
    return torch.where(condition.view(-1, *[1] * (yes.ndim - 1)), yes, no)
