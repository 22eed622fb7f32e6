r"""What a Markov kernel is: three pure functions over a state whose first dimension is the chain.

A *transition* of every chain is

.. code-block:: text

    state = begin(state, params, noise)                   draw momenta, note where the chain stands
    while any chain is active:
        state = advance(state, params, energy, noise)     one evaluation of the density
    state = end(state, params, noise)                     accept or reject

All three are torch programs without branches on values, without writing in place and without
any operation between chains. So they run as they are on a batch of chains, on CPU or CUDA, and an
executor may trace them with one chain and compile them (:mod:`ppgen.inference.mcmc.executor`).
What chains share to adapt (step size, mass matrix, trajectory length) is computed outside, between
transitions.

The density is a sum of P weighted parts, :math:`\log \pi(z) = -\sum_p w_p U_p(z)`: one part with
weight 1 for a posterior, two for the path from a prior to a posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

#: Everything that a chain carries; each tensor has the chain as its first dimension.
State = dict[str, Tensor]
#: What all chains share in a transition; see each kernel.
Params = dict[str, Tensor]
#: Fresh random numbers of one call; each tensor has the chain as its first dimension.
Noise = dict[str, Tensor]


class NoiseSpec(NamedTuple):
    """Random numbers that a function asks for, of ``shape`` for each chain."""

    kind: Literal["normal", "uniform"]
    shape: tuple[int, ...]


class Energy(Protocol):
    """The parts of minus the log density, and their gradients."""

    def __call__(self, z: Tensor, /) -> tuple[Tensor, Tensor]:
        """Parts U_p(z) of shape (C, P) in nats, and their gradients (C, P, D), for z of shape (C, D)."""


class Begin(Protocol):
    """Starts a transition."""

    def __call__(self, state: State, params: Params, noise: Noise) -> State:
        """The state with ``active`` set, ready to advance."""


class Advance(Protocol):
    """Evaluates the density once for every chain."""

    def __call__(self, state: State, params: Params, energy: Energy, noise: Noise) -> State:
        """The state one evaluation later.

        A chain that is not ``active`` must not change, except where ``ends_together`` says that
        the executor never calls on one.
        """


class End(Protocol):
    """Ends a transition."""

    def __call__(self, state: State, params: Params, noise: Noise) -> State:
        """The state with the new ``z``, ``u``, ``g`` and the statistics of the transition."""


class Init(Protocol):
    """Makes the first state."""

    def __call__(self, z: Tensor, energy: Energy, step_size: Tensor) -> State:
        """All entries that the kernel ever uses, with their final shapes and types."""


@dataclass(frozen=True)
class Kernel:
    """A Markov kernel.

    Every state has ``z`` (C, D), the point; ``u`` (C, P) and ``g`` (C, P, D), the parts of the
    energy there and their gradients; ``step_size`` (C,); ``active`` (C,) bool; and the statistics
    of the last transition named in ``statistics``. Types: float tensors of the run's dtype, int64
    and bool.

    Attributes:
        name: for messages.
        init: makes the first state from the starting points.
        begin: starts a transition; ``begin_noise`` says what random numbers it wants.
        advance: evaluates the density once; ``advance_noise`` says what random numbers it wants,
            fresh ones in each call.
        end: ends a transition; ``end_noise`` says what random numbers it wants.
        statistics: entries of the state that describe the last transition, each (C,).
        ends_together: whether all chains of a transition need the same number of calls of
            ``advance``, ``params["num_steps"]``, which the host knows.
    """

    name: str
    init: Init
    begin: Begin
    advance: Advance
    end: End
    begin_noise: Mapping[str, NoiseSpec] = field(default_factory=dict)
    advance_noise: Mapping[str, NoiseSpec] = field(default_factory=dict)
    end_noise: Mapping[str, NoiseSpec] = field(default_factory=dict)
    statistics: tuple[str, ...] = ("accept_prob", "diverging", "num_steps", "energy")
    ends_together: bool = False


def first_state(z: Tensor, energy: Energy, step_size: Tensor) -> State:
    """What the first state of every kernel has at the points z (C, D), no transition made yet."""
    u, g = energy(z)
    zero = torch.zeros_like(z[:, 0])
    count = torch.zeros_like(zero, dtype=torch.int64)
    return {
        "z": z,
        "u": u,
        "g": g,
        "step_size": step_size,
        "active": count > 0,
        "accept_prob": zero,
        "diverging": count > 0,
        "num_steps": count,
        "energy": zero,
    }


def accept_or_reject(state: State, before: Tensor, after: Tensor, uniform: Tensor) -> State:
    r"""Metropolis: take ``new_z``, ``new_u``, ``new_g`` with probability :math:`\min(1, e^{before - after})`.

    Args:
        state: with the proposals.
        before: total energies (C,) where the transition started, in nats.
        after: total energies of the proposals (C,); NaN is never accepted.
        uniform: numbers from [0, 1), (C,).

    Returns:
        The state with ``z``, ``u``, ``g``, ``accept_prob`` and ``energy``, that of the point taken.
    """
    accept_prob = (before - after).nan_to_num(nan=-float("inf")).exp().clamp(max=1.0)
    accepted = uniform < accept_prob
    keep = accepted[:, None]
    return state | {
        "z": torch.where(keep, state["new_z"], state["z"]),
        "u": torch.where(keep, state["new_u"], state["u"]),
        "g": torch.where(keep[:, None], state["new_g"], state["g"]),
        "accept_prob": accept_prob,
        "energy": torch.where(accepted, after, before),
    }


def total(parts: Tensor, params: Params) -> Tensor:
    """The energy: weighted sum of ``parts`` (C, P), with NaN as infinity; (C,)."""
    u = (parts * params["weights"]).sum(1)
    return u.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf"))


def total_gradient(gradients: Tensor, params: Params) -> Tensor:
    """The gradient of the energy: weighted sum of ``gradients`` (C, P, D); (C, D)."""
    return (gradients * params["weights"][:, None]).sum(1)


def scaled(scale: Tensor, vector: Tensor) -> Tensor:
    """``L v`` for each chain: ``scale`` is a diagonal (D,) or lower triangular (D, D); v is (C, D)."""
    return vector * scale if scale.ndim == 1 else vector @ scale.T


def scaled_transpose(scale: Tensor, vector: Tensor) -> Tensor:
    """``L' v`` for each chain; as :func:`scaled`."""
    return vector * scale if scale.ndim == 1 else vector @ scale
