r"""Maximum pseudo-likelihood: each coordinate is predicted from all others, and no log Z is needed.

.. math:: \ell(x) = \sum_d \log p(x_d \mid x_{-d})

Its maximiser tends to the true parameters as data grow (it is consistent), with more variance than the
maximum of the likelihood has where couplings are strong. It is no likelihood, and never stands for one.

References: Besag 1975; Hyvärinen 2006 (consistency for fully visible Boltzmann machines).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol, runtime_checkable

from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppgen.errors import CapabilityError
from ppgen.inference.objectives.base import Objective, Program, owner


@runtime_checkable
class HasPseudoLikelihood(Protocol):
    """A model whose coordinates have tractable conditionals given all others."""

    def pseudo_log_likelihood(self, x: Tensor, *context: Tensor) -> Tensor:
        """Sum of the log conditionals of the coordinates, nats, shape (N,)."""


class PseudoLikelihood(Objective):
    """Minus the log pseudo-likelihood; for models with ``pseudo_log_likelihood``."""

    additive = True
    loss_name = "minus log pseudo-likelihood"

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        """A total over the data, nats.

        Args:
            model: the ``model`` method of the family.
            guide: its ``guide`` method; not used.
            x: data, shape ``(B, *event_shape)``.
            context: one row a datum, where the model is conditional.
            num: size of the population that the batch stands for; the batch itself by default.

        Raises:
            CapabilityError: the family has no pseudo-likelihood.
        """
        family = owner(model, "PseudoLikelihood")
        if not isinstance(family, HasPseudoLikelihood):
            raise CapabilityError(
                f"model: {type(family).__name__} has no pseudo_log_likelihood(); train it with ELBO()"
            )
        family.check_context(context)
        given = () if context is None else (context,)
        # pyro.infer.SVI learns of the parameters by watching.
        with family.shown_to_pyro() if am_i_wrapped() else nullcontext():
            return -family.pseudo_log_likelihood(x, *given).sum() * ((num or len(x)) / len(x))
