r"""Geweke's joint distribution test of a Markov kernel, for thousands of chains at once.

Each chain starts at an exact draw :math:`(\theta, x)` of the joint distribution and alternates

.. code-block:: text

    theta <- transitions of the kernel on p(theta | x), each chain with data of its own
    x     <- fresh data, x ~ p(x | theta)

If the kernel leaves every posterior invariant, the chains have the joint distribution at any time;
if not, they drift from it, the further the longer. The chains at the end are compared with fresh draws:
no autocorrelation, no burn-in, and every chain is an independent replication. Without a sampler of the
data, theta moves on the first data, which is as valid and somewhat weaker.

References: Geweke 2004 (*Getting it right*); Gandy & Scott 2020 (many short chains).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc.kernel import Kernel, Params
from ppgen.testing.joint import Joint, MakeExecutor, eager, run_on_parameters
from ppgen.testing.statistics import assert_close_to, assert_same_distribution


def assert_leaves_invariant(
    make_kernel: Callable[[int], Kernel],
    joint: Joint,
    *,
    step_size: float,
    params: Params | None = None,
    schedule: Params | None = None,
    num_chains: int = 8000,
    num_alternations: int = 5,
    num_transitions: int = 10,
    seed: int = 0,
    make_executor: MakeExecutor = eager,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Assert that a kernel leaves the posteriors of a joint distribution invariant.

    Compared are all coordinates of theta and x, and the log joint density: means, variances and
    covariances of their normal scores, and whole distributions (Kolmogorov-Smirnov).

    Args:
        make_kernel: the kernel for a number of dimensions.
        joint: the joint distribution.
        step_size: of all chains; large enough that proposals are rejected now and then, or what follows
            from acceptance is not tested.
        params: what all chains share, beside ``scale`` and ``weights``, which are 1 unless given.
        schedule: params that change with the transition, each ``(num_transitions, ...)``.
        num_chains: replications.
        num_alternations: how often data are drawn anew.
        num_transitions: between two draws of the data.
        seed: of everything.
        make_executor: how the kernel is run.
        dtype: of the points.

    Raises:
        AssertionError: the distribution has changed.
        ConfigError: more than half of the chains did not move before data were drawn anew: the test would
            pass without having seen anything.
    """
    generator = torch.Generator().manual_seed(seed)
    v = joint.draw(num_chains, generator).to(dtype)
    for alternation in range(num_alternations):
        before, v = (
            v,
            run_on_parameters(
                make_kernel,
                joint,
                v,
                step_size=step_size,
                params=params,
                num=num_transitions,
                seed=seed + 1 + alternation,
                make_executor=make_executor,
            ),
        )
        moved = (v != before)[:, joint.moves].any(1).double().mean()
        if alternation == 0 and moved < 0.5:
            raise ConfigError(
                f"step_size: expected one with which chains move, got {step_size} and {moved:.0%} of the "
                "chains moved; take a smaller one"
            )
        if joint.redraw_data is not None:
            v = joint.redraw_data(v, generator).to(dtype)
    fresh, yardstick = (joint.draw(4 * num_chains, generator).to(dtype) for _ in range(2))
    assert_same_scores(_views(joint, v), _views(joint, fresh), _views(joint, yardstick), seed=seed)


def assert_same_scores(first: Tensor, second: Tensor, yardstick: Tensor, seed: int = 0) -> None:
    """Assert that draws ``(N, K)`` and ``(M, K)`` have one distribution, by means and by shape.

    Each coordinate becomes a normal score: the normal quantile of its rank among the ``yardstick``,
    draws that are independent of both. So heavy tails do no harm, and units do not matter.

    Raises:
        AssertionError: they differ.
    """
    a, b = _normal_scores(first, yardstick), _normal_scores(second, yardstick)
    rows, columns = torch.triu_indices(a.shape[1], a.shape[1])
    one, other = (torch.cat([s, s[:, rows] * s[:, columns]], 1) for s in (a, b))
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert_close_to(one.mean(0) - other.mean(0), 0.0, error, "means and second moments of normal scores")
    assert_same_distribution(a, b, "normal scores", seed)


def _views(joint: Joint, v: Tensor) -> Tensor:
    """What is compared of points (N, E): (N, E + 1), the energy as the last."""
    return torch.cat([v, joint.density.batched(v)[0].sum(1, keepdim=True)], 1).double()


def _normal_scores(values: Tensor, yardstick: Tensor) -> Tensor:
    """Normal quantiles of the ranks of (N, K) among (M, K), column by column; ties at mid-rank."""
    ordered, columns = yardstick.T.contiguous().sort().values, values.T.contiguous()
    below = torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)
    share = (below.double() / 2 + 0.5) / (len(yardstick) + 1)
    return (math.sqrt(2.0) * torch.erfinv(2 * share - 1)).T.contiguous()
