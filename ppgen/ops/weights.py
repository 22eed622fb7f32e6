r"""Importance weights in the log domain: their mean and its error, effective sizes, resampling.

All functions take log weights whose first dimension is the particle, ``(P, ...)``, and treat every
other position as a set of weights of its own. A weight of zero is ``-inf``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean_weight(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""The log of the mean of independent weights, and the jackknife's standard error of it.

    .. math::
       \theta = \log \frac1P \sum_i w_i, \qquad
       \mathrm{se}^2 = \frac{P - 1}{P} \sum_i (\theta_{-i} - \bar\theta)^2

    with :math:`\theta_{-i}` the value without particle i. Where the weights are even it is the
    delta method's :math:`s / (\bar w \sqrt P)`. Where one weight outgrows the others it tells so: the
    delta method's error never exceeds 1 nat, the jackknife's grows with the log of the ratio.

    Args:
        log_weights: shape ``(P, ...)``.

    Returns:
        Value and standard error, each of shape ``(...)``. The error is infinite where fewer than two
        weights are positive, and 0 for P = 1, where it is not known.
    """
    num = log_weights.shape[0]
    log_sum = log_weights.logsumexp(0)
    value = log_sum - math.log(num)
    if num == 1:
        return value, torch.zeros_like(value)
    top = log_weights.argmax(0, keepdim=True)
    rest = log_weights.scatter(0, top, -math.inf).logsumexp(0, keepdim=True)
    share = (log_weights - log_sum).exp()
    # Without the largest weight the subtraction would cancel, so its rest is summed afresh.
    without = torch.log1p(-share.scatter(0, top, 0.0)).scatter(0, top, rest - log_sum)
    spread = (without - without.mean(0)).square().sum(0) * ((num - 1) / num)
    return value, spread.sqrt().nan_to_num(nan=math.inf)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Kong's effective sample size :math:`(\sum w)^2 / \sum w^2`, from 1 to P; 0 where all weights are 0."""
    ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    return ess.nan_to_num(nan=0.0)


def conditional_ess(log_weights: Tensor, log_ratios: Tensor) -> Tensor:
    r"""Share of the current particles that the next step of a ladder leaves effective, in [0, 1].

    .. math:: \frac{(\sum_i W_i v_i)^2}{\sum_i W_i v_i^2}, \qquad W_i = w_i / \sum_j w_j

    with incremental weights v (Zhou, Johansen & Aston 2016, equation 13, divided by P).

    Args:
        log_weights: of the particles so far, shape ``(P, ...)``.
        log_ratios: log incremental weights, same shape.
    """
    normalised = log_weights - log_weights.logsumexp(0)
    first = (normalised + log_ratios).logsumexp(0)
    second = (normalised + 2 * log_ratios).logsumexp(0)
    return (2 * first - second).exp().nan_to_num(nan=0.0)


def systematic_resample(log_weights: Tensor, points: Tensor, num: int | None = None) -> Tensor:
    r"""Ancestors by systematic resampling: evenly spaced points with one random offset a set.

    Of N descendants particle i has :math:`\lfloor N W_i \rfloor` or one more, N W_i on average.

    Args:
        log_weights: shape (P, G), at least one positive weight in each column.
        points: uniform numbers, shape (G,).
        num: number N of descendants; P by default.

    Returns:
        Indices of the ancestors, shape (N, G), int64, in ascending order.
    """
    num = num or len(log_weights)
    cumulative = log_weights.softmax(0).cumsum(0).T.contiguous()
    steps = torch.arange(num, device=points.device, dtype=cumulative.dtype)
    wanted = (steps + points[:, None].to(cumulative)) / num * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).clamp(max=len(log_weights) - 1).T
