r"""Hamiltonian Monte Carlo with a number of leapfrog steps that all chains share.

In whitened momenta :math:`\tilde p = L^\top p` with mass :math:`M^{-1} = L L^\top`, so that
:math:`\tilde p \sim N(0, I)` and the kinetic energy is :math:`|\tilde p|^2 / 2`:

.. code-block:: text

    p ~ Normal(0, I)
    num_steps times:   p -= eps/2 L' grad U(z);   z += eps L p;   p -= eps/2 L' grad U(z)
    accept with probability min(1, exp(H before - H after))

``params``: ``scale`` L, diagonal (D,) or (D, D); ``weights`` (P,); ``num_steps``, an int64 scalar.

References: Duane et al. 1987; Neal 2011 (*MCMC using Hamiltonian dynamics*).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.mcmc.kernel import (
    Energy,
    Kernel,
    Noise,
    NoiseSpec,
    Params,
    State,
    accept_or_reject,
    first_state,
    scaled,
    scaled_transpose,
    total,
    total_gradient,
)

#: An energy that rises by more than this many nats within a transition counts as divergent (Stan's).
DIVERGENCE_THRESHOLD = 1000.0


def hmc_kernel(num_dims: int) -> Kernel:
    """The kernel; its state adds ``momentum`` and the proposal's ``new_z``, ``new_u``, ``new_g``."""
    return Kernel(
        name="HMC",
        init=init,
        begin=begin,
        advance=advance,
        end=end,
        begin_noise={"momentum": NoiseSpec("normal", (num_dims,))},
        end_noise={"accept": NoiseSpec("uniform", ())},
        ends_together=True,
    )


def init(z: Tensor, energy: Energy, step_size: Tensor) -> State:
    """The state at the points z (C, D)."""
    state = first_state(z, energy, step_size)
    proposal = {"new_z": z, "new_u": state["u"], "new_g": state["g"]}
    return state | proposal | {"momentum": torch.zeros_like(z), "start": torch.zeros_like(z[:, 0])}


def begin(state: State, params: Params, noise: Noise) -> State:
    """Draw momenta; the proposal starts where the chain stands."""
    momentum = noise["momentum"]
    return state | {
        "momentum": momentum,
        "new_z": state["z"],
        "new_u": state["u"],
        "new_g": state["g"],
        "start": total(state["u"], params) + kinetic(momentum),
        "num_steps": torch.zeros_like(state["num_steps"]),
        "active": (params["num_steps"] > 0).expand_as(state["active"]),
    }


def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
    """One leapfrog step."""
    z, momentum, u, g = leapfrog(
        state["new_z"], state["momentum"], state["new_g"], state["step_size"], params, energy
    )
    num_steps = state["num_steps"] + 1
    return state | {
        "new_z": z,
        "momentum": momentum,
        "new_u": u,
        "new_g": g,
        "num_steps": num_steps,
        "active": num_steps < params["num_steps"],
    }


def end(state: State, params: Params, noise: Noise) -> State:
    """Accept or reject the proposal (Metropolis)."""
    before, after = state["start"], total(state["new_u"], params) + kinetic(state["momentum"])
    rise = (after - before).nan_to_num(nan=float("inf"))
    diverging = {"diverging": rise > DIVERGENCE_THRESHOLD}
    return accept_or_reject(state, before, after, noise["accept"]) | diverging


def leapfrog(
    z: Tensor, momentum: Tensor, g: Tensor, step_size: Tensor, params: Params, energy: Energy
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One leapfrog step of size ``step_size`` (C,), negative to go back: z, momentum, u and g after it."""
    scale, eps = params["scale"], step_size[:, None]
    momentum = momentum - 0.5 * eps * scaled_transpose(scale, total_gradient(g, params))
    z = z + eps * scaled(scale, momentum)
    u, g = energy(z)
    momentum = momentum - 0.5 * eps * scaled_transpose(scale, total_gradient(g, params))
    return z, momentum, u, g


def kinetic(momentum: Tensor) -> Tensor:
    """Kinetic energy of whitened momenta (C, D), in nats; (C,)."""
    return 0.5 * (momentum**2).sum(1)
