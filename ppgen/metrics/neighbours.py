r"""Precision, recall, density and coverage: fidelity and variety told apart.

The manifold of a sample is the union of balls :math:`B(x_i)` around its points, each reaching
to the k-th nearest neighbour in the same sample.

* *precision*: share of generated data in the manifold of the real ones (fidelity);
* *recall*: share of real data in the manifold of the generated ones (variety);
* *density*: real balls that a generated datum lies in, on average, over k: precision that one
  stray real datum cannot inflate; 1 in expectation for equal distributions, may exceed 1;
* *coverage*: share of real data whose ball holds a generated datum; falls with lost modes.

All depend on the numbers of data, so compare figures of equal numbers and equal k. Cost:
O((N + M)^2 F) time; memory bounded by chunks.

References: Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing
generative models"; Naeem et al. (2020), "Reliable fidelity and diversity metrics".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError, DataError
from ppgen.metrics.features import Features, extract
from ppgen.ops.distances import distance_chunks, neighbour_distances


@dataclass(frozen=True)
class PrecisionRecall:
    """Scalars (float64) of kind ``estimate``; see :mod:`ppgen.metrics.neighbours`.

    The standard errors are those of a share or mean over the counted data, for given balls: the
    sampling of the data that make the balls is not in them.

    Attributes:
        precision: share of generated data near real ones, in [0, 1].
        recall: share of real data near generated ones, in [0, 1].
        density: mean number of real balls around a generated datum, over k.
        coverage: share of real data with a generated datum in their ball, in [0, 1].
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(
    real: Tensor, generated: Tensor, features: Features | None = None, *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall, density and coverage of generated data.

    Args:
        real: data ``(N, *event_shape)``, more than k.
        generated: samples ``(M, *event_shape)``, more than k.
        features: maps data to features ``(N, F)``; ``None`` compares the arguments as they are.
        k: the neighbour that a ball reaches to (3 in the paper on precision and recall).

    Raises:
        ConfigError: k below 1.
        DataError: k data or fewer, or NaN features.
        ShapeError: shapes that do not match.
    """
    if k < 1:
        raise ConfigError(f"k: expected a positive integer, got {k}")
    a, b = extract(real, generated, features)
    for name, x in (("real", a), ("generated", b)):
        if len(x) <= k:
            raise DataError(
                f"{name}: neighbours up to k={k} need {k + 1} data or more, got {len(x)}; "
                "lower k or give more data"
            )
    reach_a, reach_b = neighbour_distances(a, k), neighbour_distances(b, k)
    near_real = torch.zeros(len(b), dtype=torch.float64)  # real balls around each generated datum
    recalled, covered = torch.zeros(len(a), dtype=torch.bool), torch.zeros(len(a), dtype=torch.bool)
    for rows, distances in distance_chunks(a, b):
        in_real_ball = distances <= reach_a[rows, None]
        near_real += in_real_ball.sum(0)
        covered[rows] = in_real_ball.any(1)
        recalled[rows] = (distances <= reach_b).any(1)
    density = Estimate.of(near_real / k, Kind.ESTIMATE).mean()
    return PrecisionRecall(_share(near_real > 0), _share(recalled), density, _share(covered))


def _share(hits: Tensor) -> Estimate:
    """The share of hits, with the posterior standard deviation of its probability (uniform prior).

    That is the binomial standard error but for terms of 1/N, and not 0 when all or none hit.
    """
    num, count = len(hits), int(hits.sum())
    smoothed = (count + 1) / (num + 2)
    std_error = math.sqrt(smoothed * (1 - smoothed) / (num + 3))
    value = torch.tensor(count / num, dtype=torch.float64)
    return Estimate(value, Kind.ESTIMATE, torch.full_like(value, std_error))
