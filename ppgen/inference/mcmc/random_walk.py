r"""Random-walk Metropolis: a normal step, accepted or not.

.. math:: z' = z + \epsilon L p, \quad p \sim N(0, I), \qquad
    \text{accepted with probability } \min(1, e^{U(z) - U(z')}).

It does not use the gradient, so it also samples densities that have kinks or jumps; where gradients help,
every other kernel needs far fewer evaluations in more than a few dimensions.

``params``: ``scale`` L, diagonal (D,) or (D, D); ``weights`` (P,); ``num_steps``, which is 1.

References: Metropolis et al. 1953; Roberts, Gelman & Gilks 1997 (acceptance .234).
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
    total,
)


def random_walk_kernel(num_dims: int) -> Kernel:
    """The kernel; its state adds the proposal's ``new_z``, ``new_u``, ``new_g``."""
    return Kernel(
        name="random walk",
        init=init,
        begin=begin,
        advance=advance,
        end=end,
        begin_noise={"step": NoiseSpec("normal", (num_dims,))},
        end_noise={"accept": NoiseSpec("uniform", ())},
        ends_together=True,
    )


def init(z: Tensor, energy: Energy, step_size: Tensor) -> State:
    """The state at the points z (C, D)."""
    state = first_state(z, energy, step_size)
    return state | {"new_z": z, "new_u": state["u"], "new_g": state["g"]}


def begin(state: State, params: Params, noise: Noise) -> State:
    """Propose."""
    step = state["step_size"][:, None] * scaled(params["scale"], noise["step"])
    count = torch.zeros_like(state["num_steps"])
    return state | {"new_z": state["z"] + step, "num_steps": count, "active": count == 0}


def advance(state: State, params: Params, energy: Energy, noise: Noise) -> State:
    """Evaluate the proposal."""
    u, g = energy(state["new_z"])
    num_steps = state["num_steps"] + 1
    return state | {"new_u": u, "new_g": g, "num_steps": num_steps, "active": num_steps < 1}


def end(state: State, params: Params, noise: Noise) -> State:
    """Accept or reject (Metropolis). ``energy`` is that of the point; nothing diverges."""
    return accept_or_reject(state, total(state["u"], params), total(state["new_u"], params), noise["accept"])
