r"""A mixture of independent Bernoullis: latent classes over binary data.

.. math::

    p(x, k) = \pi_k \prod_d p_{kd}^{x_d} (1 - p_{kd})^{1 - x_d}

.. code-block:: text

    +-- data, n = 1..N -------------------------------+
    |  k_n ~ Categorical(pi)   (enumerated)           |
    |  x_n ~ Bernoulli(p[k_n]), all D coordinates     |
    +-------------------------------------------------+

The guide is the exact posterior of ``k``; the likelihood is exact. EM maximises the
likelihood, or with ``smoothing`` s > 0 the posterior density under independent
:math:`\mathrm{Beta}(1 + s, 1 + s)` priors on every :math:`p_{kd}`:

.. math:: p_{kd} = \frac{\sum_n r_{nk} x_{nd} + s}{\sum_n r_{nk} + 2 s} ,

which keeps a pixel that a component has never seen lit from being impossible.
Cost of an EM iteration: O(N K D) in two matrix products.

References: Lazarsfeld & Henry, *Latent Structure Analysis*, 1968; Bishop, *Pattern
Recognition and Machine Learning*, 2006, section 9.3.3.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppgen.contract import Kind
from ppgen.datasets.values import BINARY, Values
from ppgen.errors import ConfigError
from ppgen.models.family import Family
from ppgen.models.mixture import Mixture
from ppgen.ops.binary import softplus
from ppgen.ops.chunks import rows_per_chunk
from ppgen.ops.gaussian import Moments


class BernoulliMixture(Mixture):
    """K components of independent Bernoullis over binary data.

    Args:
        event_shape: shape of one datum.
        num_components: K.
        smoothing: pseudo-counts s of ones, and as many of zeros, at every probability in EM;
            0 is maximum likelihood.
    """

    def __init__(
        self, event_shape: tuple[int, ...] | torch.Size, *, num_components: int = 10, smoothing: float = 0.5
    ) -> None:
        super().__init__(event_shape, num_components, BINARY)
        if not smoothing >= 0:
            raise ConfigError(f"smoothing: expected a pseudo-count of 0 or more, got {smoothing}")
        self.smoothing = smoothing
        self.pixel_logits = nn.Parameter(0.5 * torch.randn(num_components, self.num_dims))

    @property
    def probs(self) -> Tensor:
        """Probability of a one by component and coordinate, shape ``(K, *event_shape)``."""
        return self.pixel_logits.sigmoid().view(-1, *self.event_shape)

    def emission(self, k: Tensor) -> dist.TorchDistribution:
        """Independent Bernoullis of component ``k``."""
        logits = self.pixel_logits.view(-1, *self.event_shape)[k]
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_n | k) of flat data, shape ``(N, K)``, in nats."""
        return torch.addmm(-softplus(self.pixel_logits).sum(-1), x, self.pixel_logits.T)

    def log_prior(self) -> Tensor:
        r"""Sum of :math:`s (\log p_{kd} + \log(1 - p_{kd}))`, a scalar, in nats."""
        logits = self.pixel_logits
        return self.smoothing * (logsigmoid(logits) + logsigmoid(-logits)).sum()

    def _moments(self, x: Tensor, assign: Callable[[Tensor], Tensor]) -> Moments:
        mass, first = x.new_zeros(self.num_components), torch.zeros_like(self.pixel_logits)
        bias = -softplus(self.pixel_logits).sum(-1, keepdim=True)
        for part in x.split(rows_per_chunk(max(self.num_components, self.num_dims), x.device)):
            responsibilities = assign(torch.addmm(bias, self.pixel_logits, part.T))
            mass += responsibilities.sum(-1)
            first += responsibilities @ part
        means = first / mass.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
        return Moments(mass, means, means * (1 - means))

    def _maximise(self, moments: Moments, keep: Tensor) -> int:
        mass = moments.mass[:, None]
        ones, zeros = (mass * moments.means + self.smoothing, mass * (1 - moments.means) + self.smoothing)
        # The likelihood is unimodal in each probability, so that the best in a range is at its end.
        smallest = torch.finfo(ones.dtype).eps
        total = (ones + zeros).clamp_min(torch.finfo(ones.dtype).tiny)
        probs = (ones / total).clamp(smallest, 1 - smallest)
        self.pixel_logits.copy_(torch.where(keep[:, None], self.pixel_logits, probs.logit()))
        return 0

    def _start(self, x: Tensor, centres: Tensor, assign: Callable[[Tensor], Tensor]) -> Tensor:
        moments = self._moments(x, assign)
        self._maximise(moments, torch.zeros_like(moments.mass, dtype=torch.bool))
        return moments.mass

    def _draw_missing(self, x: Tensor, mask: Tensor, num: int) -> Tensor:
        known = mask.to(x.dtype)
        log_evidence = (x * known) @ self.pixel_logits.T - known @ softplus(self.pixel_logits).T
        k = dist.Categorical(logits=log_evidence + self.logits.log_softmax(-1)).sample((num,))
        return torch.bernoulli(self.pixel_logits.sigmoid()[k])


def _build(event_shape: torch.Size, values: Values, num_data: int) -> BernoulliMixture:
    num_components = max(1, min(100, num_data // 10))  # ten data a component, on average
    return BernoulliMixture(event_shape, num_components=num_components, smoothing=0.25)


FAMILY = Family(
    name="bernoulli-mixture",
    group="mixture",
    title="Mixture of Bernoullis",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=lambda: BernoulliMixture((2, 3), num_components=3),
    reading="Each component is a picture of pixel probabilities; pixels are independent given it, "
    "so samples are speckled where a component is unsure.",
    fit_options={"epochs": 100, "patience": 20},
)
