r"""What finite mixtures share: the plate, the exact posterior over components, the EM iteration.

.. math:: p(x, k) = \pi_k \, p(x \mid k)

.. code-block:: text

    +-- data, n = 1..N --------------------------+
    |  k_n ~ Categorical(pi)   (enumerated)      |
    |  x_n ~ p(. | k_n)                          |
    +--------------------------------------------+
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.values import Values
from ppgen.errors import ConfigError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.conditioning import observed_part
from ppgen.models.latent import Method, check_method
from ppgen.ops.gaussian import Moments
from ppgen.ops.kmeans import kmeans
from ppgen.ops.random import forked_rng

# Below a thousandth of a datum a component says nothing about its parameters.
_EMPTY = 1e-3
_LLOYD_STEPS = 10


class Mixture(GenerativeModel):
    r"""A finite mixture with an exact density. Abstract: a family adds its components.

    The guide is the exact posterior :math:`p(k \mid x)` under the present parameters, with no
    gradient of its own. So every draw of ``k`` gives
    :math:`\log p(x, k) - \log q(k \mid x) = \log p(x)`, the bound of ``Trace_ELBO`` is tight,
    and by Fisher's identity :math:`\nabla \log p(x) = E_{p(k \mid x)}[\nabla \log p(x, k)]` its
    gradient is unbiased; ``TraceEnum_ELBO``, with this guide or with an empty one, sums over
    ``k`` and has the exact gradient.
    """

    density = Kind.EXACT

    def __init__(
        self, event_shape: tuple[int, ...] | torch.Size, num_components: int, support: Values
    ) -> None:
        super().__init__(event_shape, support=support)
        if num_components < 1:
            raise ConfigError(f"num_components: expected a positive integer, got {num_components}")
        self.num_components = num_components
        self.num_dims = self.event_shape.numel()
        self.logits = nn.Parameter(torch.zeros(num_components))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Pick a component, then draw x from it."""
        with self.data_plate(x, num, context):
            weights = dist.Categorical(logits=self.logits)
            k = pyro.sample("k", weights, infer={"enumerate": "parallel"})
            return pyro.sample("x", self.emission(k), obs=x)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The exact posterior of the component; its prior where there is no x."""
        with self.data_plate(x, num, context):
            logits = self.logits if x is None else self._log_joint(self._flat(x))
            weights = dist.Categorical(logits=logits.detach())
            pyro.sample("k", weights, infer={"enumerate": "parallel"})

    # -- what a family adds ------------------------------------------------------------------

    @abstractmethod
    def emission(self, k: Tensor) -> dist.TorchDistribution:
        """p(x | k): batch shape that of ``k``, event shape that of a datum."""

    @abstractmethod
    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_n | k) of flat data ``(N, D)``, shape ``(N, K)``, in nats; values are not checked."""

    @abstractmethod
    def _moments(self, x: Tensor, assign: Callable[[Tensor], Tensor]) -> Moments:
        """Moments of flat data, gathered in chunks.

        ``assign`` turns the log densities of a chunk under each component, shape ``(K, n)``, into
        responsibilities of that shape; it is called in the order of the rows.
        """

    @abstractmethod
    def _maximise(self, moments: Moments, keep: Tensor) -> int:
        """Write the best component parameters under ``moments``; count those that had collapsed.

        Components of the mask ``keep``, shape ``(K,)``, are left as they are.
        """

    @abstractmethod
    def _start(self, x: Tensor, centres: Tensor, assign: Callable[[Tensor], Tensor]) -> Tensor:
        """Write parameters that start EM from a partition of flat data with these centres.

        Returns the mass of each part, shape ``(K,)``.
        """

    @abstractmethod
    def _draw_missing(self, x: Tensor, mask: Tensor, num: int) -> Tensor:
        """``num`` draws of flat data given where ``mask`` is True, shape ``(num, N, D)``."""

    # -- capabilities ------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components, shape ``(K,)``."""
        return self.logits.softmax(-1)

    def log_likelihood(
        self, x: Tensor, context: Tensor | None = None, *, method: Method = "iwae"
    ) -> Estimate:
        """Log p(x), exact: shape ``(N,)``, in nats; differentiable in x and the parameters.

        Each ``method`` of models with latents gives it, for the guide is the exact posterior.
        """
        check_method(method)
        return Estimate.of(self._log_joint(self._checked(x, context)).logsumexp(-1), Kind.EXACT)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x_n), exact: shape ``(N, K)``."""
        return self._log_joint(self._checked(x)).softmax(-1)

    @torch.no_grad()
    def condition(self, x: Tensor, mask: Tensor, num: int = 1, *, seed: int | None = None) -> Tensor:
        """Exact draws of the missing coordinates given the observed ones.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        with forked_rng(seed, self.device):
            drawn = self._draw_missing(self._flat(filled), self._flat(mask), num)
        return torch.where(mask, filled, drawn.reshape(num, *x.shape))

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start from data: k-means++ seeds, some Lloyd steps, and the moments of the clusters.

        Random numbers come from torch's global generator.

        Raises:
            ConfigError: fewer data than components.
            DataError: data that are not finite, not of the model's values, or too large to square.
        """
        flat = self._checked(x, context)
        if len(flat) < self.num_components:
            raise ConfigError(
                f"num_components: {self.num_components} components need as many data or more, "
                f"got {len(flat)}; build the model with fewer components"
            )
        centres, labels = kmeans(flat, self.num_components, num_steps=_LLOYD_STEPS)
        position = 0

        def assign(log_prob: Tensor) -> Tensor:
            nonlocal position
            rows = labels[position : position + log_prob.shape[1]]
            position += log_prob.shape[1]
            return torch.zeros_like(log_prob).scatter_(0, rows[None], 1.0)

        self._set_weights(self._start(flat, centres, assign))
        self.initialised.fill_(True)

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One EM iteration on all data, in place; memory does not grow with N times K times D.

        A component that is responsible for less than a thousandth of a datum keeps its
        parameters and loses its weight, which still cannot lower the likelihood.

        Raises:
            DataError: no finite likelihood, for data that are not finite, or not of the model's
                values. The parameters stay as they were.
        """
        self.check_event(x)
        self.check_context(context)
        log_weights = self.logits.log_softmax(-1)[:, None]
        totals: list[Tensor] = []
        # Responsibilities below this are as good as none, and products of subnormal numbers are slow.
        least = math.log(torch.finfo(x.dtype).tiny) / 2

        def assign(log_prob: Tensor) -> Tensor:
            log_joint = log_prob.add_(log_weights)
            largest = log_joint.amax(0)
            ratios = log_joint.sub_(largest).clamp_min_(least).exp_()
            sums = ratios.sum(0)
            totals.append((sums.log() + largest).sum())
            return ratios.div_(sums)

        flat = self._flat(x)
        moments = self._moments(flat, assign)
        log_likelihood, log_prior = torch.stack(totals).sum(), self.log_prior()
        if not bool(torch.isfinite(log_likelihood)):
            self.support.check(x, "x")
            return EMStep(log_likelihood, log_prior)
        empty = moments.mass < _EMPTY
        collapsed = self._maximise(moments, empty)
        self._set_weights(moments.mass)
        notes = []
        if collapsed:
            notes.append(
                f"collapsed: {collapsed} of {self.num_components} components shrank to a singular "
                "covariance and were held at min_variance; use fewer components or raise min_variance"
            )
        if bool(empty.any()):
            notes.append(
                f"empty: {int(empty.sum())} of {self.num_components} components explain no datum and "
                "lost their weight; use fewer components or another seed"
            )
        # A single component is responsible for all data, whatever its parameters.
        return EMStep(log_likelihood, log_prior, tuple(notes), final=self.num_components == 1)

    def log_prior(self) -> Tensor:
        """Log prior density of the parameters, up to a constant; 0 here: maximum likelihood."""
        return self.logits.new_zeros(())

    def default_objective(self) -> ExpectationMaximisation:
        """EM."""
        return ExpectationMaximisation()

    # -- private -----------------------------------------------------------------------------

    def _checked(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_event(x)
        self.check_context(context)
        if not x.is_meta:
            self.support.check(x, "x")
        return self._flat(x)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.num_dims)

    def _log_joint(self, x: Tensor) -> Tensor:
        return self.component_log_prob(x) + self.logits.log_softmax(-1)

    def _set_weights(self, mass: Tensor) -> None:
        shares = mass / mass.sum()
        self.logits.copy_(shares.clamp_min(torch.finfo(shares.dtype).tiny).log())
