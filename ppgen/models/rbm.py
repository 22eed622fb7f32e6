r"""Restricted Boltzmann machine: binary or Gaussian visible units, binary hidden units.

.. math::
   p(x, h) = e^{-E(x, h)} / Z, \qquad
   -E = x^\top b + c^\top h + x^\top W h
   \;\text{or}\; -\tfrac12 |u|^2 + c^\top h + u^\top W h, \quad u_d = (x_d - b_d) / \sigma_d

As a directed story for Pyro the joint is written p(z) p(x | z), with z the hidden units:

.. code-block:: text

    plate data (N)
        z ~ BoltzmannMarginal(W, b, c)              z in {0, 1}^H
        x ~ Bernoulli(logits = b + W z)             binary visible units
        x ~ Normal(b + sigma * W z, sigma)          Gaussian visible units
    guide
        z ~ Bernoulli(logits = c + W' x)            (u in place of x for Gaussian units)

The guide is the exact posterior, so :math:`\log p(x, z) - \log q(z \mid x)` is
:math:`\log p(x)` for every z: the ELBO is the log-likelihood, with no variance.

What is exact: the posterior of the hidden units and the free energy always; log Z, the
likelihood and independent draws where the side that can be enumerated (the smaller one for
binary visible units, the hidden one for Gaussian) has at most 20 units. Otherwise log Z is
taken as 0, ``density`` is ``unnormalised``, draws are the ends of block Gibbs chains, and an
ELBO, whose gradient then lacks that of log Z, does not train the machine (it warns). Annealed
importance sampling estimates log Z, and with it the likelihood, for any size: ``method="ais"``.

Cost: free energy N D H; log Z :math:`2^{n} D H` for n enumerated units, in chunks; a Gibbs
sweep of M chains 2 M D H; annealing over T temperatures 2 M T D H.

References: Smolensky 1986; Hinton 2002; Welling, Rosen-Zvi & Hinton 2005 (Gaussian units);
Hinton 2010 (*A practical guide*, starting weights and biases); Salakhutdinov & Murray 2008 (annealing).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count, query
from ppgen.datasets.values import BINARY, REAL, Values
from ppgen.distributions.boltzmann import BoltzmannMarginal, Harmonium
from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.partition import PartitionEstimate, harmonium_log_partition
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.models.latent import Method
from ppgen.models.normaliser import LogPartitionMemory, energy_log_likelihood
from ppgen.ops.binary import sample_bernoulli
from ppgen.ops.random import forked_rng

Visible = Literal["binary", "gaussian"]


class RBM(GenerativeModel):
    """A restricted Boltzmann machine over data of any shape.

    With binary units, plain stochastic gradient descent on small batches with a rate that falls
    to zero suits it better than Adam, and is faster:

    .. code-block:: python

        ppgen.fit(rbm, data, batch_size=10, learning_rate=0.1, schedule="cosine",
                  optimizer=torch.optim.SGD)

    With Gaussian units, whose deviations are learnt, keep to Adam: plain descent runs away easily.

    Args:
        event_shape: shape of one datum; it is flattened to D visible units.
        num_hidden: number H of hidden units. Up to 20 keep the likelihood exact.
        visible: ``"binary"`` for data of zeros and ones, ``"gaussian"`` for real data.
        num_gibbs_steps: sweeps of block Gibbs behind a draw where draws are not exact.

    Attributes:
        weight: W, shape ``(D, H)``.
        visible_bias: b, shape ``(D,)``.
        hidden_bias: c, shape ``(H,)``.
        log_scale: log of the standard deviations of Gaussian units, shape ``(D,)``; ``None`` else.
        start_mean: mean of the visible units that chains start from, shape ``(D,)``: the data's.
        density: ``exact`` or ``unnormalised``, by the number of units.

    Raises:
        ConfigError: a number that is not positive, or an unknown kind of visible units.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_hidden: int = 64,
        visible: Visible = "binary",
        num_gibbs_steps: int = 1000,
    ) -> None:
        if visible not in get_args(Visible):
            raise ConfigError(f"visible: expected 'binary' or 'gaussian', got {visible!r}")
        check_count(num_hidden, "num_hidden")
        check_count(num_gibbs_steps, "num_gibbs_steps")
        super().__init__(event_shape, support=BINARY if visible == "binary" else REAL)
        num_visible = self.event_shape.numel()
        self.visible, self.num_hidden, self.num_gibbs_steps = visible, num_hidden, num_gibbs_steps
        # Small random weights break the symmetry of the hidden units; see Hinton 2010, section 8.
        self.weight = nn.Parameter(0.01 * torch.randn(num_visible, num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.log_scale = nn.Parameter(torch.zeros(num_visible)) if visible == "gaussian" else None
        self.register_buffer("start_mean", torch.full((num_visible,), 0.5 if visible == "binary" else 0.0))
        self.density = Kind.EXACT if self.harmonium().enumerable else Kind.UNNORMALISED
        self._known = LogPartitionMemory()

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Draws z from the machine's marginal over hidden units, then x given z."""
        machine = self.harmonium()
        with self.data_plate(x, num, context):
            z = pyro.sample("z", self._marginal(machine))
            return pyro.sample("x", self._emission(machine, z), obs=x)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The exact posterior of z given x; the marginal of z where there is no x."""
        machine = self.harmonium()
        with self.data_plate(x, num, context):
            if x is None:
                pyro.sample("z", self._marginal(machine))
            else:
                logits = machine.hidden_logits(x.flatten(1))
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    # -- capabilities -----------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num: int = 1,
        context: Tensor | None = None,
        *,
        num_steps: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw ``num`` data; shape ``(num, *event_shape)``.

        Independent draws where the machine can be enumerated, and the ends of ``num`` separate
        block Gibbs chains elsewhere or where ``num_steps`` is given.

        Args:
            num: how many.
            context: none; for the error that says so.
            num_steps: sweeps of the chains, which start from independent units with the data's
                means.
            seed: for draws that repeat.
        """
        if num_steps is None:
            return super().sample(num, context, seed=seed)
        self.check_context(context)
        check_count(num)
        machine = self.harmonium()
        with forked_rng(seed, self.device):
            z = self._marginal(machine, num_steps).sample((num,))
            return machine.sample_visible(z).unflatten(-1, self.event_shape)

    def log_likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: Method | Literal["exact"] | None = None,
        **options: Any,
    ) -> Estimate:
        """Log-likelihood log p(x) in nats, shape (N,).

        Args:
            x: data, shape ``(N, *event_shape)``.
            context: none; for the error that says so.
            method: how log Z is had, see :meth:`log_partition`. By default exact where it can be, else not
                at all: the density is then unnormalised (minus the free energy). By ``"ais"``, whose log Z
                is a lower bound in expectation, the log-likelihood is an *upper* bound in expectation;
                its error is that of log Z, shared by all data (``shared_error``). ``"elbo"`` and
                ``"iwae"`` are ``"exact"``, for the guide is the exact posterior.
            **options: of :meth:`log_partition`. The seed is 0 unless given, so that batches of data
                are held against one estimate of log Z.
        """
        return energy_log_likelihood(self.energy(x), self.density, self.log_partition, method, options)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Probabilities that the hidden units are on, given x; shape ``(N, H)``."""
        return self.harmonium().hidden_logits(x.flatten(1)).sigmoid()

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean of x given hidden units (states or probabilities) ``(N, H)``; ``(N, *event_shape)``."""
        if z.shape[-1:] != (self.num_hidden,):
            raise ShapeError(f"z: expected shape (N, {self.num_hidden}), got {tuple(z.shape)}")
        return self.harmonium().visible_mean(z).unflatten(-1, self.event_shape)

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Gradient of log p(x) for Gaussian units, :math:`(-u + W\,E[h \mid x]) / \sigma`; like x.

        Raises:
            CapabilityError: binary visible units, which have no gradient.
        """
        machine = self.harmonium()
        if machine.scale is None:
            raise CapabilityError("score: binary data have no gradient; build RBM(..., visible='gaussian')")
        hidden = machine.hidden_logits(x.flatten(1)).sigmoid()
        u = machine.standardised(x.flatten(1))
        return ((hidden @ machine.weight.mT - u) / machine.scale).reshape(x.shape)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Free energy F(x) in nats, shape (N,): p(x) = exp(-F(x)) / Z with the hidden units summed out."""
        return self.harmonium().free_energy(x.flatten(1))

    def log_partition(self, *, method: Literal["exact", "ais"] = "exact", **options: Any) -> Estimate:
        """The log normaliser log Z, a scalar in nats.

        Args:
            method: ``"exact"``, by enumeration; or ``"ais"``, annealing from independent visible units with
                the means ``start_mean`` (the data's, once trained): a
                :class:`~ppgen.inference.partition.PartitionEstimate`, with a bound from below, one from
                above (an estimate only, where exact draws cannot be had), and their gap.
            **options: for ``"ais"``: ``num_chains``, ``num_temperatures``, ``schedule``, ``reverse``,
                ``start_mean``, ``search_start`` (by default for a machine that saw no data, whose
                ``start_mean`` says nothing), ``num_gibbs_steps``, ``seed``, ``progress``; see
                :func:`~ppgen.inference.partition.harmonium_log_partition`. With a ``seed``, the last result
                is kept for as long as parameters and options are the same.

        Raises:
            CapabilityError: ``"exact"`` for more than 20 units on the side that is enumerated.
            ConfigError: no such method, or options that make no sense.
        """
        if method == "ais":
            return self._annealed_log_partition(options)
        if method != "exact":
            raise ConfigError(f"method: expected 'exact' or 'ais', got {method!r}")
        if options:
            raise ConfigError(f"{next(iter(options))}: an argument of method='ais'; enumeration has none")
        machine = self.harmonium()
        found = self._known.exact(_tensors(machine), machine.log_partition)
        return Estimate.of(found, Kind.EXACT)

    @torch.no_grad()
    def condition(
        self,
        x: Tensor,
        mask: Tensor,
        num: int = 1,
        *,
        num_steps: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draws of x with its observed coordinates held fixed, by block Gibbs with clamped units.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum, one chain each.
            num_steps: sweeps of each chain; ``num_gibbs_steps`` unless given.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        machine, known = self.harmonium(), mask.flatten(1)
        clamped = torch.where(known, filled.flatten(1), self.start_mean).expand(num, -1, -1)
        with forked_rng(seed, self.device):
            start = clamped if machine.scale is not None else sample_bernoulli(clamped)
            h = machine.sample_hidden(torch.where(known, clamped, start))
            steps = self.num_gibbs_steps if num_steps is None else num_steps
            v, _ = machine.gibbs(h, steps, clamped=clamped, mask=known)
        return v.unflatten(-1, self.event_shape)

    @query
    def gibbs(self, x: Tensor, num_steps: int = 1, *, seed: int | None = None) -> Tensor:
        """Data ``num_steps`` sweeps of block Gibbs (h given x, then x given h) further on; like x."""
        machine = self.harmonium()
        with forked_rng(seed, self.device):
            v, _ = machine.gibbs(machine.sample_hidden(x.flatten(1)), num_steps)
        return v.reshape(x.shape)

    @query
    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        r"""Log pseudo-likelihood :math:`\sum_d \log p(x_d \mid x_{-d})` of binary data, nats, shape (N,).

        The sum over all D coordinates, each conditional exact: no random coordinate, no factor D
        and no mean over coordinates. It needs no log Z, and is not a log-likelihood.

        Raises:
            CapabilityError: Gaussian visible units.
        """
        return self.harmonium().pseudo_log_likelihood(x.flatten(1))

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Visible biases (and scales) that match the data's means (and deviations) without weights."""
        v = self.check_data(x).flatten(1)
        with torch.no_grad():
            if self.log_scale is None:
                # One datum of each value more, so that constant pixels keep finite log-odds.
                mean = (v.sum(0) + 1) / (len(v) + 2)
                self.visible_bias.copy_(mean.logit())
            else:
                mean = v.mean(0)
                self.visible_bias.copy_(mean)
                self.log_scale.copy_(v.std(0, correction=0).clamp_min(1e-3).log())
            self.start_mean.copy_(mean)
            self.initialised.fill_(True)

    def default_objective(self) -> ContrastiveDivergence:
        """Persistent contrastive divergence: 100 chains, one sweep a step."""
        return ContrastiveDivergence(k=1, persistent=True, num_chains=100)

    def harmonium(self) -> Harmonium:
        """The machine over the flattened datum, holding the parameters themselves."""
        scale = None if self.log_scale is None else self.log_scale.exp()
        return Harmonium(self.weight, self.visible_bias, self.hidden_bias, scale)

    # -- private ------------------------------------------------------------------------------

    def _annealed_log_partition(self, options: dict[str, Any]) -> PartitionEstimate:
        machine = self.harmonium()
        # Of a machine that saw no data, start_mean is a placeholder.
        chosen = {
            "num_gibbs_steps": self.num_gibbs_steps,
            "search_start": not bool(self.initialised) and "start_mean" not in options,
            **options,
        }
        tensors = [*_tensors(machine), self.start_mean]
        find = partial(harmonium_log_partition, machine, start_mean=self.start_mean)
        return self._known.annealed(tensors, chosen, find)

    def _marginal(self, machine: Harmonium, num_steps: int | None = None) -> BoltzmannMarginal:
        if num_steps is None and not machine.enumerable:
            num_steps = self.num_gibbs_steps
        return BoltzmannMarginal(machine, start_mean=self.start_mean, num_steps=num_steps)

    def _emission(self, machine: Harmonium, z: Tensor) -> dist.TorchDistribution:
        means = machine.visible_logits(z).unflatten(-1, self.event_shape)
        dims = len(self.event_shape)
        if machine.scale is None:
            return dist.Bernoulli(logits=means).to_event(dims)
        return dist.Normal(means, machine.scale.view(self.event_shape)).to_event(dims)


def _tensors(machine: Harmonium) -> list[Tensor]:
    tensors = [machine.weight, machine.visible_bias, machine.hidden_bias]
    return tensors if machine.scale is None else [*tensors, machine.scale]


def _build(event_shape: torch.Size, values: Values, num_data: int) -> RBM:
    return RBM(event_shape, num_hidden=16, visible="binary" if values == BINARY else "gaussian")


FAMILY = Family(
    name="rbm",
    title="Restricted Boltzmann machine",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=lambda: RBM((2, 2), num_hidden=3),
    reading="The likelihood is exact: its 16 hidden units allow log Z by enumeration. It sees binary pixels.",
    fit_options={
        "epochs": 150,
        "batch_size": 10,
        "learning_rate": 0.1,
        "schedule": "cosine",
        "optimizer": torch.optim.SGD,
    },
)
