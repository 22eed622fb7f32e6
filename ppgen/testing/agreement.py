"""Whether samples and an exact density describe one distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to


def compare_on_points(model: Any, draws: Tensor, points: list[Tensor], context: Tensor | None) -> None:
    """Assert that probabilities of all values sum to one and that the draws follow them.

    Args:
        model: has an exact ``log_likelihood``.
        draws: shape ``(N, *event_shape)``.
        points: the values that each coordinate can take, in increasing order.
        context: the same row for every draw, N of them; or ``None``.
    """
    every = torch.cartesian_prod(*points).reshape(-1, *model.event_shape).to(draws.dtype)
    context = None if context is None else context[:1].expand(len(every), *context.shape[1:])
    with torch.no_grad():
        probability = model.log_likelihood(every, context).value.double().exp()
    if not abs(float(probability.sum()) - 1) < 1e-4:
        raise AssertionError(f"probabilities sum to {float(probability.sum()):.6f}")
    codes = torch.zeros(len(draws), dtype=torch.int64)
    for column, values in zip(draws.flatten(1).T.double(), points, strict=True):
        codes = codes * len(values) + (column[:, None] - values).abs().argmin(-1)
    counts = torch.bincount(codes, minlength=len(every)).double()
    often = probability * len(draws) >= 10  # the normal approximation of a count
    error = (probability * (1 - probability) / len(draws)).sqrt()
    assert_close_to(counts[often] / len(draws), probability[often], error[often], "frequencies")


def compare_on_reals(model: Any, draws: Tensor, context: Tensor | None) -> None:
    """Assert that bounded functions have one mean under the draws and under the density.

    The second by importance sampling from a Student t as broad as the draws, with the density as
    weight; the function 1 among them holds the density's integral to one. Arguments as for
    :func:`compare_on_points`.
    """
    flat = draws.double().flatten(1)
    centre, spread = flat.mean(0), torch.cov(flat.T).reshape(flat.shape[1], -1)
    ridge = 1e-6 * torch.eye(len(spread), dtype=spread.dtype) * spread.diagonal().mean()
    factor = torch.linalg.cholesky(1.5 * spread + ridge)
    with forked_rng(8):
        normal = torch.randn(len(flat), flat.shape[1], dtype=torch.float64)
        shrink = (
            torch.distributions.Chi2(torch.tensor(4.0, dtype=torch.float64)).sample((len(flat), 1)) / 4
        ).sqrt()
    proposals = centre + (normal / shrink) @ factor.T
    log_q = _student_log_density(normal / shrink, 4.0) - factor.diagonal().log().sum()
    with torch.no_grad():
        log_p = model.log_likelihood(proposals.to(draws.dtype).reshape(draws.shape), context).value.double()
    weight = (log_p - log_q).exp()[:, None]

    def features(x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(factor, (x - centre).T, upper=False).T
        return torch.cat([torch.ones_like(z[:, :1]), z.tanh(), (z**2).tanh(), (z[:, :1] * z).tanh()], dim=-1)

    ours, theirs = features(flat), weight * features(proposals)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    assert_close_to(theirs.mean(0), ours.mean(0), error, "means under density and samples")


def _student_log_density(x: Tensor, freedom: float) -> Tensor:
    """Log density of the standard multivariate Student t at each row; nats."""
    size = x.shape[1]
    constant = math.lgamma((freedom + size) / 2) - math.lgamma(freedom / 2)
    constant -= size / 2 * math.log(freedom * math.pi)
    return constant - (freedom + size) / 2 * torch.log1p((x**2).sum(-1) / freedom)
