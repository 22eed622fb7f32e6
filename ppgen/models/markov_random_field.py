r"""Markov random field: sites on an undirected graph, with an energy of each site and of each edge.

.. math::
   p(x) = \frac1Z \exp\Bigl(\sum_i \theta_i(x_i) + \sum_{(i, j)} \theta_{ij}(x_i, x_j)\Bigr),
   \qquad x_i \in \{0, \dots, q - 1\}

.. code-block:: text

    plate data (N)
        x ~ PairwiseMarkov(graph, theta)            no latents, no guide

Three interactions, by their parameters:

* ``"ising"`` (q = 2), with spins :math:`s_i = 2 x_i - 1`: :math:`\sum_i h_i s_i + \sum_{ij} J_{ij} s_i s_j`;
* ``"potts"``: :math:`\sum_i h_i(x_i) + \sum_{ij} J_{ij} [x_i = x_j]`;
* ``"pairwise"``: a table of q x q numbers for each edge.

With a context c the fields are linear in it, :math:`h_i + V_i c`: a conditional random field, whose Z
depends on c.

What is exact: energies, conditionals and the pseudo-likelihood always; log Z, the likelihood, its gradient,
marginals and independent draws where variable elimination needs no table above ``max_entries``: trees
of any size, grids of up to 15 binary sites across. Otherwise log Z is taken as 0, ``density`` is
``unnormalised``, draws are the ends of Markov chains, and training goes by pseudo-likelihood or contrastive
divergence. Annealed importance sampling bounds log Z for any size: ``method="ais"``.

Cost: an energy N (S + E); log Z and a draw, S tables of up to q^(w + 1) entries for an elimination of
width w; a Gibbs sweep of M chains M (S + E) q in as many steps as the graph has colours; a Swendsen-Wang
move about the same, in a few tens of steps.

References: Ising 1925; Potts 1952; Besag 1974 (*Spatial interaction*) and 1975 (pseudo-likelihood); Geman &
Geman 1984; Swendsen & Wang 1987; Lafferty, McCallum & Pereira 2001 (conditional random fields).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import pyro
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count, query
from ppgen.datasets.values import Values, grid
from ppgen.distributions.pairwise.clusters import Sampler, move, swendsen_wang
from ppgen.distributions.pairwise.conditional import ConditionalSites
from ppgen.distributions.pairwise.distribution import PairwiseMarkov
from ppgen.distributions.pairwise.field import PairwiseField
from ppgen.distributions.pairwise.graph import MAX_ALL_ENTRIES, describe_entries, site_graph
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.field_partition import pairwise_log_partition
from ppgen.inference.objectives.base import Objective
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.pseudo_likelihood import PseudoLikelihood
from ppgen.inference.partition import PartitionEstimate
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.models.latent import Method
from ppgen.models.normaliser import LogPartitionMemory, energy_log_likelihood
from ppgen.nn.context import context_features
from ppgen.ops.elimination import Plan
from ppgen.ops.random import forked_rng

Interaction = Literal["ising", "potts", "pairwise"]


class MarkovRandomField(GenerativeModel):
    """A pairwise Markov random field over binary data, or data on a grid of levels.

    .. code-block:: python

        ising = MarkovRandomField((16, 16), graph="torus", tied=True)
        ising.coupling.data.fill_(0.4407)                 # the critical point of the square lattice
        ising.sample(10, sampler="swendsen-wang", num_steps=100)

    Args:
        event_shape: shape of one datum; its S coordinates are the sites, in row-major order.
        graph: ``"grid"`` (nearest neighbours along each dimension, the default), ``"torus"`` (the same with
            opposite borders joined; a side of 2 has one edge, not two), ``"complete"``, an undirected
            networkx graph over numbers or coordinates of sites (of other nodes, ``list(graph)[i]`` is site i;
            weights of its edges are not read), a symmetric adjacency matrix, or pairs.
        num_states: number q of states of a site; data are on the grid of so many levels.
        interaction: ``"ising"``, ``"potts"`` or ``"pairwise"``; by default Ising for two states, else Potts.
        tied: one field for all sites and one coupling for all edges.
        context_dim: number of classes or features that the fields depend on; 0 for none.
        num_gibbs_steps: sweeps behind a draw where draws are not exact.
        max_entries: of the largest table of an elimination; with more, sums are not exact.

    Attributes:
        graph: the :class:`~ppgen.distributions.pairwise.graph.SiteGraph`.
        field: h: shape ``(S,)`` for Ising, ``(S, q)`` else; the first dimension is missing where ``tied``.
        coupling: J, shape ``(E,)``, or the tables ``(E, q, q)``, the state of the lower site first; the
            first dimension is missing where ``tied``.
        context_weight: V, shape ``(context_dim, *field.shape)``, where there is a context.
        start_logits: of the independent sites that chains and annealing start from, ``(S, q)``: the logs of
            the data's frequencies, once trained.
        density: ``exact`` or ``unnormalised``, by the graph.

    Raises:
        ConfigError: a number that is not positive, an unknown interaction, Ising with more than two
            states, a graph that is none, or a context where sums are not exact.
        ShapeError: a graph with another number of nodes.
    """

    start_logits: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        graph: Any = None,
        num_states: int = 2,
        interaction: Interaction | None = None,
        tied: bool = False,
        context_dim: int = 0,
        num_gibbs_steps: int = 1000,
        max_entries: int = 2**16,
    ) -> None:
        if num_states < 2:
            raise ConfigError(f"num_states: expected 2 or more, got {num_states}")
        chosen = interaction or ("ising" if num_states == 2 else "potts")
        if chosen not in get_args(Interaction):
            raise ConfigError(
                f"interaction: expected one of {', '.join(get_args(Interaction))}, got {chosen!r}"
            )
        if chosen == "ising" and num_states != 2:
            raise ConfigError(
                f"interaction: an Ising site has 2 states, got num_states={num_states}; take 'potts'"
            )
        check_count(num_gibbs_steps, "num_gibbs_steps")
        check_count(max_entries, "max_entries")
        super().__init__(event_shape, support=grid(num_states))
        self.graph = site_graph(graph, self.event_shape)
        # Saved with the model: names as they are, any other graph as its edges.
        self.config["graph"] = (
            graph if graph is None or isinstance(graph, str) else [list(e) for e in self.graph.edges]
        )
        self.num_states, self.tied, self.num_gibbs_steps = num_states, tied, num_gibbs_steps
        self.interaction: Interaction = chosen
        self.max_entries, self.context_dim = max_entries, context_dim
        sites = () if tied else (self.graph.num_sites,)
        edges = () if tied else (len(self.graph.edges),)
        states = () if chosen == "ising" else (num_states,)
        self.field = nn.Parameter(torch.zeros((*sites, *states)))
        table = (num_states, num_states) if chosen == "pairwise" else ()
        self.coupling = nn.Parameter(torch.zeros((*edges, *table)))
        self.context_weight = (
            nn.Parameter(0.01 * torch.randn((context_dim, *sites, *states))) if context_dim else None
        )
        self.register_buffer("start_logits", torch.zeros(self.graph.num_sites, num_states))
        found = self.graph.elimination(num_states)
        self._cost, self._plan = found.plan.entries, found.plan if found.fits(max_entries) else None
        self.density = Kind.UNNORMALISED if self._plan is None else Kind.EXACT
        if context_dim and self._plan is None:
            raise ConfigError(
                f"context_dim: Z depends on the context and must be summed exactly; {self._too_much()}"
            )
        self._known = LogPartitionMemory()

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """All sites at once, from the joint law."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    def distribution(
        self,
        context: Tensor | None = None,
        *,
        num_steps: int | None = None,
        sampler: Sampler | None = None,
    ) -> PairwiseMarkov:
        """p(x | context) as a Pyro distribution; its batch shape is the context's, ``()`` without one."""
        field = self.pairwise_field(context)
        if num_steps is None and self._plan is None:
            num_steps = self.num_gibbs_steps
        return PairwiseMarkov(
            field,
            self.event_shape,
            plan=self._plan,
            log_partition=partial(self._log_z, field),
            start=self.start_logits,
            num_steps=num_steps,
            sampler=sampler,
            batch_shape=field.unary.shape[:-2],
        )

    # -- capabilities ------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        num: int = 1,
        context: Tensor | None = None,
        *,
        num_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw ``num`` data; shape ``(num, *event_shape)``.

        Independent draws where sums are exact, and the ends of ``num`` separate chains elsewhere or where
        ``num_steps`` or ``sampler`` is given. Chains start from independent sites with the data's
        frequencies.

        Args:
            num: how many.
            context: one row a draw, where the model is conditional.
            num_steps: moves of each chain, all of them burn-in; ``num_gibbs_steps`` unless given.
            sampler: ``"gibbs"`` or ``"swendsen-wang"`` (Ising or Potts with couplings of 0 or more); by
                default both in turn where the second can be had.
            seed: for draws that repeat.

        Raises:
            CapabilityError: Swendsen-Wang for couplings below 0 or general tables.
        """
        if num_steps is None and sampler is None:
            return super().sample(num, context, seed=seed)
        check_count(num)
        context = self.checked_context(context, num)
        steps = self.num_gibbs_steps if num_steps is None else num_steps
        with forked_rng(seed, self.device):
            law = self.distribution(context, num_steps=steps, sampler=sampler)
            return law.sample(() if context is not None else (num,))

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
            context: one row a datum, where the model is conditional.
            method: how log Z is had, see :meth:`log_partition`. By default exact where it can be, else not at
                all: the density is then unnormalised (minus the energy). By ``"ais"``, whose log Z is a lower
                bound in expectation, the log-likelihood is an *upper* bound in expectation; its error is
                that of log Z, shared by all data (``shared_error``). ``"elbo"`` and ``"iwae"`` are
                ``"exact"``, for there are no latents.
            **options: of :meth:`log_partition`. The seed is 0 unless given, so that batches of data are
                held against one estimate of log Z.
        """
        log_partition = self.log_partition if context is None else partial(self.log_partition, context)
        energy = self.pairwise_field(context).energy(self._codes(x))
        return energy_log_likelihood(energy, self.density, log_partition, method, options)

    @query
    def pseudo_log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Log pseudo-likelihood :math:`\sum_i \log p(x_i \mid x_{-i})`, nats, shape (N,).

        All conditionals, each exact. It needs no log Z, and is not a log-likelihood.
        """
        return self.pairwise_field(context).pseudo_log_likelihood(self._codes(x))

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """E(x) in nats, shape (N,): p(x) = exp(-E(x)) / Z."""
        if not x.is_meta:
            self.support.check(x, "x")
        return self.pairwise_field(context).energy(self._codes(x))

    def log_partition(
        self,
        context: Tensor | None = None,
        *,
        method: Literal["exact", "ais"] = "exact",
        **options: Any,
    ) -> Estimate:
        """The log normaliser log Z in nats: a scalar, or (B,) for a context of B rows.

        Args:
            context: one row a number, where the model is conditional.
            method: ``"exact"``, by variable elimination; or ``"ais"``, annealing from independent sites with
                ``start_logits``: a :class:`~ppgen.inference.partition.PartitionEstimate`, with a bound
                from below, one from above (an estimate only, where exact draws cannot be had), and their gap.
            **options: for ``"ais"``: ``num_chains``, ``num_temperatures``, ``schedule``, ``sampler``,
                ``reverse``, ``start``, ``num_gibbs_steps``, ``seed``, ``progress``; see
                :func:`~ppgen.inference.field_partition.pairwise_log_partition`. With a ``seed``, the last
                result is kept for as long as parameters and options are the same.

        Raises:
            CapabilityError: ``"exact"`` where the tables are too large; ``"ais"`` with a context.
            ConfigError: no such method, or options that make no sense.
        """
        context = self.checked_context(context)
        if method == "ais":
            return self._annealed_log_partition(context, options)
        if method != "exact":
            raise ConfigError(f"method: expected 'exact' or 'ais', got {method!r}")
        if options:
            raise ConfigError(f"{next(iter(options))}: an argument of method='ais'; elimination has none")
        self._order("log Z")
        return Estimate.of(self._log_z(self.pairwise_field(context)), Kind.EXACT)

    @torch.no_grad()
    def condition(
        self,
        x: Tensor,
        mask: Tensor,
        num: int = 1,
        *,
        context: Tensor | None = None,
        num_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draws of x with its observed coordinates held fixed.

        Exact by elimination where the graph of the *unknown* sites allows it, which may be so where that of
        all sites does not; else, or where ``num_steps`` or ``sampler`` is given, the ends of chains with
        clamped sites.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum, of chains one each.
            context: one row a datum, where the model is conditional.
            num_steps: moves of each chain; ``num_gibbs_steps`` unless given.
            sampler: as for :meth:`sample`.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        chains = None if num_steps is None and sampler is None else num_steps or self.num_gibbs_steps
        sites = ConditionalSites(
            self.pairwise_field(context),
            mask.flatten(1),
            whole=self._plan,
            start=self.start_logits,
            num_steps=self.num_gibbs_steps if chains is None else chains,
            sampler=sampler,
            max_entries=self.max_entries if chains is None else 0,
        )
        with forked_rng(seed, self.device):
            found = sites.draw(self.support.indices(filled.flatten(1)), num)
        drawn = found.to(self.field.dtype) / (self.num_states - 1)
        return torch.where(mask, filled, drawn.unflatten(-1, self.event_shape).to(filled.dtype))

    def marginals(self, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Exact probabilities of the states of sites and of edges.

        Args:
            context: one row, ``(1, context_dim)`` or a label (1,), where the model is conditional.

        Returns:
            Shapes ``(S, q)`` and ``(E, q, q)``; edges in the order of ``graph.edges``, the lower site first.

        Raises:
            CapabilityError: tables that are too large.
        """
        field = self.pairwise_field(self.checked_context(context))
        if field.unary.ndim == 3:
            if len(field.unary) != 1:
                raise ConfigError(f"context: marginals are of one row, got {len(field.unary)}")
            field = PairwiseField(field.graph, field.unary[0], field.pair)
        return field.marginals(self._order("marginals").order)

    @query
    def gibbs(self, x: Tensor, num_steps: int = 1, *, seed: int | None = None) -> Tensor:
        """Data ``num_steps`` sweeps of Gibbs sampling further on; like x."""
        return self._moved(x, num_steps, seed, partial(move, sampler="gibbs"))

    @query
    def swendsen_wang(self, x: Tensor, num_steps: int = 1, *, seed: int | None = None) -> Tensor:
        """Data ``num_steps`` moves of all clusters further on; like x.

        Raises:
            CapabilityError: couplings below 0, or general tables.
        """
        return self._moved(x, num_steps, seed, swendsen_wang)

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fields that match the data's frequencies without couplings."""
        codes = self._codes(self.check_data(x))
        counts = nn.functional.one_hot(codes, self.num_states).to(self.field.dtype).sum(0)
        # One datum of each state more, so that constant sites keep finite fields.
        logits = ((counts + 1) / (len(x) + self.num_states)).log()
        self.start_logits.copy_(logits)
        wanted = (counts.sum(0) + 1).log() if self.tied else logits
        wanted = wanted - wanted.mean(-1, keepdim=True)
        self.field.copy_(wanted[..., 1] if self.interaction == "ising" else wanted)
        self.initialised.fill_(True)

    def default_objective(self) -> Objective:
        """Maximum likelihood where sums are exact, else maximum pseudo-likelihood."""
        return PseudoLikelihood() if self._plan is None else ELBO()

    def pairwise_field(self, context: Tensor | None = None) -> PairwiseField:
        """The field over the flattened datum, as log-weights of states and of pairs of states."""
        num, edges = self.graph.num_sites, len(self.graph.edges)
        unary: Tensor = self.field
        pair: Tensor = self.coupling
        if context is not None and self.context_weight is not None:
            features = context_features(context, self.context_dim, like=self.field)
            unary = unary + torch.tensordot(features, self.context_weight, 1)
        batch = () if context is None else (len(context),)
        if self.interaction == "potts":
            alike = torch.eye(self.num_states, dtype=unary.dtype, device=unary.device)
            pair = pair[..., None, None] * alike
        elif self.interaction == "ising":
            spins = torch.tensor([-1.0, 1.0], dtype=unary.dtype, device=unary.device)
            unary = unary[..., None] * spins
            pair = pair[..., None, None] * (spins[:, None] * spins)
        if self.tied:
            unary = unary.unsqueeze(-2)
        shape = (*batch, num, self.num_states)
        return PairwiseField(
            self.graph, unary.expand(shape), pair.expand(edges, self.num_states, self.num_states)
        )

    # -- private -------------------------------------------------------------------------------

    def _codes(self, x: Tensor) -> Tensor:
        """Level numbers of data, int64, ``(N, S)``."""
        return self.support.indices(x.flatten(1))

    def _order(self, purpose: str) -> Plan:
        if self._plan is None:
            raise CapabilityError(f"{purpose}: {self._too_much()}, or method='ais' for bounds on log Z")
        return self._plan

    def _too_much(self) -> str:
        return (
            f"variable elimination on this graph of {self.graph.num_sites} sites needs a table of "
            f"{describe_entries(self._cost)} entries, or too many tables (limit {self.max_entries:.3g} a "
            f"table, {MAX_ALL_ENTRIES:.3g} in all); take a sparser graph, fewer states, a larger max_entries"
        )

    def _log_z(self, field: PairwiseField) -> Tensor:
        order = self._order("log Z").order
        return self._known.exact([field.unary, field.pair], lambda: field.log_partition(order))

    def _annealed_log_partition(self, context: Tensor | None, options: dict[str, Any]) -> PartitionEstimate:
        if context is not None:
            raise CapabilityError(
                "log_partition: annealing is for one field, not for one a context; use 'exact'"
            )
        field = self.pairwise_field()
        find = partial(pairwise_log_partition, field, plan=self._plan, start=self.start_logits)
        chosen = {"num_gibbs_steps": self.num_gibbs_steps, **options}
        return self._known.annealed([field.unary, field.pair, self.start_logits], chosen, find)

    def _moved(self, x: Tensor, num_steps: int, seed: int | None, how: Any) -> Tensor:
        self.check_context(None)
        codes = self._codes(x)
        with torch.no_grad(), forked_rng(seed, self.device):
            codes = how(self.pairwise_field(), codes, num_steps)
        return (codes.to(x.dtype) / (self.num_states - 1)).reshape(x.shape)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> MarkovRandomField:
    return MarkovRandomField(event_shape, num_states=values.levels or 2)


FAMILY = Family(
    name="mrf",
    title="Markov random field (Ising grid)",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=lambda: MarkovRandomField((2, 2)),
    conditional_example=lambda: MarkovRandomField((2, 2), num_states=3, context_dim=3),
    reading="Each pixel leans on its nearest neighbours; the likelihood is exact up to 15 pixels across.",
    fit_options={"epochs": 60, "batch_size": 200, "learning_rate": 0.05},
    surveyed=False,
)
