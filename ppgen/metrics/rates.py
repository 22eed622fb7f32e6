r"""How well sequences are predicted, by the step: nats, and perplexity.

A step is one index of the first dimension of an event: a character of a text ``(T,)``, all D coordinates of
a series ``(T, D)`` at one time. With :math:`T_n` the steps of datum n,

.. math::

    r = -\frac{\sum_n \log p(x_n)}{\sum_n T_n}, \qquad \mathrm{perplexity} = e^r .

An image has no such steps, and its rate is :func:`~ppgen.metrics.likelihood.bits_per_dim`.

A perplexity of k is that of a uniform guess among k values of a step. Divided by :math:`\log 2`, r is the
length in bits of the best code of a step: bits per character, which for texts of one length is
:func:`~ppgen.metrics.likelihood.bits_per_dim`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.split import Split
from ppgen.errors import CapabilityError, DataError, ShapeError
from ppgen.metrics.likelihood import log_likelihoods


def nats_per_step(model: GenerativeModel, data: Split | Tensor, **options: Any) -> Estimate:
    r"""Mean negative log-likelihood of a step, in nats: of a character, or of all coordinates at one time.

    Sequences of different lengths, padded with NaN, count as many steps as they hold.

    Args:
        model: a model of sequences with ``log_likelihood``.
        data: a split, or a tensor ``(N, T)`` or ``(N, T, D)`` of the model's own values.
        **options: as for :func:`~ppgen.metrics.likelihood.log_likelihoods`: ``context``, ``batch_size``,
            ``seed``, ...

    Returns:
        A scalar (float64); an upper bound where the likelihood is a lower one. The standard error is that of
        a ratio of two means over data, which are taken for independent; for a single datum it is its
        Monte-Carlo error.

    Raises:
        ShapeError: data that are no sequences, such as images.
        CapabilityError, DataError: as :func:`~ppgen.metrics.likelihood.nll`.
    """
    steps = _num_steps(data.x if isinstance(data, Split) else data)
    each = log_likelihoods(model, data, **options)
    if each.kind is Kind.UNNORMALISED:
        raise CapabilityError(
            f"log_likelihood: {type(model).__name__} gives an unnormalised log density, and a rate needs a "
            'likelihood; pass method="ais", which estimates its log partition, where the family has it'
        )
    steps = steps.to(each.value)
    total = steps.sum()
    rate = -each.value.sum() / total
    if len(steps) == 1:
        error = each.std_error.sum() / total
    else:
        residual = -each.value - rate * steps
        error = (residual.square().sum() * len(steps) / (len(steps) - 1)).sqrt() / total
    if each.shared_error is not None:
        error = torch.hypot(error, each.shared_error * len(steps) / total)
    error = error if bool(torch.isfinite(rate)) else torch.full_like(rate, torch.inf)
    return Estimate(-rate, each.kind, error).affine(-1.0)


def perplexity(model: GenerativeModel, data: Split | Tensor, **options: Any) -> Estimate:
    """Exponential of :func:`nats_per_step`: how many values a uniform guess as good would choose among.

    Arguments and errors are those of :func:`nats_per_step`; an upper bound stays one. The standard error is
    that of the exponential, to first order.

    Raises:
        DataError: real data, of which a density has a unit and its exponential no meaning as a number of
            values.
    """
    if not model.support.discrete:
        raise DataError(
            f"data: a perplexity counts values, and {type(model).__name__} has a density of {model.support} "
            "values; see metrics.nats_per_step"
        )
    rate = nats_per_step(model, data, **options)
    value = rate.value.exp()
    return Estimate(value, rate.kind, value * rate.std_error)


def _num_steps(x: Tensor) -> Tensor:
    """Steps that each datum ``(N, T)`` or ``(N, T, D)`` holds, up to its last known one, shape ``(N,)``."""
    if x.ndim not in (2, 3):
        raise ShapeError(
            f"data: a step is one index of T in sequences (N, T) or (N, T, D), got shape {tuple(x.shape)}; "
            "for images see metrics.bits_per_dim"
        )
    known = ~x.isnan().flatten(2).all(-1) if x.ndim > 2 else ~x.isnan()
    return (known * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(-1)
