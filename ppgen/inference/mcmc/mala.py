r"""The Metropolis-adjusted Langevin algorithm: one leapfrog step with fresh momenta.

The Langevin diffusion :math:`dz = \tfrac12 \nabla\log\pi(z)\,dt + dW`, preconditioned by
:math:`M^{-1} = L L^\top` and discretised with time step :math:`\epsilon^2`, proposes

.. math:: z' = z - \tfrac{\epsilon^2}{2} M^{-1} \nabla U(z) + \epsilon L p, \qquad p \sim N(0, I).

That is the position after one leapfrog step of size :math:`\epsilon`, and the Metropolis-Hastings ratio
of the two normal proposal densities is :math:`\exp(H(z, p) - H(z', p'))` with the leapfrog's momentum
:math:`p'`. So the transition is that of :mod:`ppgen.inference.mcmc.hmc` with one step.

``params``: ``scale`` L, diagonal (D,) or (D, D); ``weights`` (P,); ``num_steps``, which is 1.

References: Rossky, Doll & Friedman 1978; Roberts & Tweedie 1996; Roberts & Rosenthal 1998 (acceptance .574).
"""

from __future__ import annotations

from ppgen.inference.mcmc import hmc
from ppgen.inference.mcmc.kernel import Kernel, NoiseSpec


def mala_kernel(num_dims: int) -> Kernel:
    """The kernel; its state is that of HMC."""
    return Kernel(
        name="MALA",
        init=hmc.init,
        begin=hmc.begin,
        advance=hmc.advance,
        end=hmc.end,
        begin_noise={"momentum": NoiseSpec("normal", (num_dims,))},
        end_noise={"accept": NoiseSpec("uniform", ())},
        ends_together=True,
    )
