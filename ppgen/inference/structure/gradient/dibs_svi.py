"""Mean-field variational inference for DiBS, through Pyro."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.optim.optim import PyroOptim
from tqdm import tqdm

from ppgen.errors import SamplingError
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.gradient.dibs_model import DiBSModel
from ppgen.inference.structure.gradient.dibs_stein import Particles
from ppgen.ops.random import forked_rng


def mean_field(
    model: DiBSModel, *, num_particles: int, num_steps: int, learning_rate: float, seed: int, progress: bool
) -> Particles:
    r"""Fit an :class:`pyro.infer.autoguide.AutoNormal` by ``Trace_ELBO``, annealed, and draw from it.

    In step t of T, :math:`\alpha_t = \alpha t / T` and :math:`\beta_t = \beta t / T`. Pyro's parameter
    store and torch's global generators are left as they were.

    Raises:
        SamplingError: the bound is not finite.
    """
    device = model.mechanism.values.device
    steps = 0
    with (
        pyro.get_param_store().scope(),
        forked_rng(seed, device),
        Interrupts() as interrupts,
        tqdm(total=num_steps, disable=not progress, unit="step", desc="DiBS") as bar,
    ):
        pyro.get_param_store().clear()
        # At the median of the prior, zero, the scores of all edges have no gradient.
        guide = AutoNormal(model, init_loc_fn=init_to_sample)
        svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": learning_rate}), Trace_ELBO())
        while steps < num_steps and not interrupts.requested:
            share = (steps + 1) / num_steps
            loss = svi.step(share * model.alpha, share * model.beta)
            if not abs(loss) < float("inf"):
                raise SamplingError(
                    f"DiBS: the bound is {loss} at step {steps}; lower learning_rate ({learning_rate:g}), or "
                    "look for extreme values in the table"
                )
            steps += 1
            bar.update()
        with torch.no_grad():
            draws = [guide() for _ in range(num_particles)]
    variance = None
    if model.noise.fixed is None:
        variance = torch.stack([draw["variance"] for draw in draws])
    return Particles(
        z=torch.stack([draw["z"] for draw in draws]),
        theta=torch.stack([draw["theta"] for draw in draws]),
        variance=variance,
        steps=steps,
        complete=steps == num_steps,
    )
