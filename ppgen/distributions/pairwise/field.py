r"""Energies of pairwise fields, what each site does given its neighbours, and exact sums.

With states :math:`x_i \in \{0, \dots, q - 1\}` of S sites and E edges,

.. math:: -E(x) = \sum_i \theta_i(x_i) + \sum_{(i, j)} \theta_{ij}(x_i, x_j), \qquad p(x) = e^{-E(x)} / Z .

Log Z, its gradient (the marginals), and independent draws come from variable elimination
(:mod:`ppgen.ops.elimination`), at the cost of its tables: q^(w + 1) entries for a graph of treewidth w in the
order that was found. States are level numbers, int64.

References: Besag 1974 and 1975 (pseudo-likelihood); Koller & Friedman, *Probabilistic Graphical Models*,
2009, chapters 4 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ppgen.distributions.pairwise.graph import SiteGraph
from ppgen.ops.elimination import Factor, categorical, draw, eliminate

# Entries of the largest temporary of a chunk of rows.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class PairwiseField:
    r"""The parameters of a pairwise field and what follows from them.

    Attributes:
        graph: the sites and edges.
        unary: :math:`\theta_i(a)`, shape ``(S, q)``; or ``(B, S, q)`` where B rows differ in them.
        pair: :math:`\theta_{ij}(a, b)`, the first end's state first, shape ``(E, q, q)``.
    """

    graph: SiteGraph
    unary: Tensor
    pair: Tensor

    @property
    def num_states(self) -> int:
        """Q, the number of states of a site."""
        return self.unary.shape[-1]

    def at_temperature(self, beta: float, base: Tensor | None = None) -> PairwiseField:
        """The field whose log density is ``beta`` times this one's, plus 1 - beta times that of ``base``.

        Args:
            beta: the inverse temperature.
            base: logits of independent sites, shape ``(S, q)``; uniform by default.
        """
        unary = beta * self.unary
        return replace(
            self, unary=unary if base is None else unary + (1 - beta) * base, pair=beta * self.pair
        )

    # -- energies and conditionals -----------------------------------------------------------

    def energy(self, codes: Tensor) -> Tensor:
        """E of states ``(N, S)``, in nats, shape (N,); differentiable in the parameters."""
        first, second = self.graph.ends.to(codes.device).unbind(-1)
        single = self.unary.expand(*codes.shape, -1).gather(-1, codes[..., None])[..., 0].sum(-1)
        if not self.graph.edges:
            return -single
        edges = torch.arange(len(first), device=codes.device)
        return -single - self.pair[edges, codes[:, first], codes[:, second]].sum(-1)

    def messages(self) -> Tensor:
        r"""What a neighbour in state b adds to a site's log-weights, shape ``((2 E + 1) q, q)``.

        Row ``d q + b`` belongs to directed edge d as :attr:`SiteGraph.incidence` numbers them; the last q
        rows, for padding, are zero.
        """
        nothing = torch.zeros_like(self.unary[..., :1, :]).reshape(-1, 1, self.num_states)[:1]
        nothing = nothing.expand(-1, self.num_states, -1)
        return torch.cat([self.pair.mT, self.pair, nothing]).reshape(-1, self.num_states)

    def site_logits(
        self, codes: Tensor, sites: Tensor | None = None, messages: Tensor | None = None
    ) -> Tensor:
        """Log-weights of the states of each site given all others of ``(N, S)``.

        Args:
            codes: states.
            sites: which sites, int64 (n,); all by default.
            messages: :meth:`messages`, where they are at hand.

        Returns:
            Shape ``(N, n, q)``, up to a constant a site.
        """
        neighbours, edges = (t.to(codes.device) for t in self.graph.incidence)
        unary = self.unary
        if sites is not None:
            neighbours, edges, unary = neighbours[sites], edges[sites], unary[..., sites, :]
        messages = self.messages() if messages is None else messages
        rows = edges * self.num_states + codes[:, neighbours]
        bags = functional.embedding_bag(rows.flatten(0, 1), messages, mode="sum")
        return unary + bags.reshape(len(codes), -1, self.num_states)

    def pseudo_log_likelihood(self, codes: Tensor) -> Tensor:
        r"""Sum over sites of :math:`\log p(x_i \mid x_{-i})` of states ``(N, S)``, in nats, shape (N,)."""
        logits = self.site_logits(codes).log_softmax(-1)
        return logits.gather(-1, codes[..., None])[..., 0].sum(-1)

    # -- exact sums ----------------------------------------------------------------------------

    def log_partition(self, order: tuple[int, ...]) -> Tensor:
        """Log Z in nats, shape ``()``, or (B,) where rows differ; differentiable.

        Args:
            order: of elimination, see :meth:`SiteGraph.elimination`.
        """
        left, _ = eliminate(self._factors(), order)
        found = left.log_values.to(self.unary.dtype)
        return found[0] if self.unary.ndim == 2 else found.expand(len(self.unary))

    def marginals(self, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Probabilities of states, ``(S, q)``, and of pairs of them along edges, ``(E, q, q)``."""
        with torch.enable_grad():
            unary, pair = (t.detach().requires_grad_() for t in (self.unary, self.pair))
            log_z = replace(self, unary=unary, pair=pair).log_partition(order)
            first, second = torch.autograd.grad(log_z, (unary, pair), allow_unused=True)
        return first, torch.zeros_like(pair) if second is None else second

    @torch.no_grad()
    def sample_exact(self, num: int, order: tuple[int, ...], entries: int) -> Tensor:
        """Independent draws from torch's global generator.

        Args:
            num: draws, of each row where rows differ.
            order: of elimination.
            entries: of its largest table, by which rows are cut into chunks.

        Returns:
            States, int64, ``(num, S)``, or ``(num, B, S)`` where rows differ.
        """
        if self.unary.ndim == 2:
            _, steps = eliminate(self._factors(), order)
            return self._drawn(draw(steps, torch.zeros(num, dtype=torch.int64, device=self.unary.device)))
        parts = []
        for unary in self.unary.split(max(1, _CHUNK_ENTRIES // entries)):
            _, steps = eliminate(replace(self, unary=unary)._factors(), order)
            rows = torch.arange(len(unary), device=unary.device).repeat(num)
            parts.append(self._drawn(draw(steps, rows)).reshape(num, len(unary), -1))
        return torch.cat(parts, 1)

    def given(self, codes: Tensor, unknown: list[int]) -> PairwiseField:
        """The field of the unknown sites given the others, one row a datum.

        Args:
            codes: states ``(N, S)``; those of unknown sites may be anything.
            unknown: the sites that are left, in increasing order; U of them.

        Returns:
            A field over U sites with ``unary`` of shape ``(N, U, q)``.
        """
        place = {site: k for k, site in enumerate(unknown)}
        graph, kept = self.graph.induced(unknown)
        unary = self.unary[..., unknown, :].expand(len(codes), -1, -1).clone()
        for e, (i, j) in enumerate(self.graph.edges):
            if i in place and j not in place:
                unary[:, place[i]] += self.pair[e].mT[codes[:, j]]
            elif j in place and i not in place:
                unary[:, place[j]] += self.pair[e][codes[:, i]]
        return PairwiseField(graph, unary, self.pair[kept.to(self.pair.device)])

    # -- Gibbs ---------------------------------------------------------------------------------

    @torch.no_grad()
    def gibbs(self, codes: Tensor, num_steps: int, *, fixed: Tensor | None = None) -> Tensor:
        """Sweeps of Gibbs sampling, colour by colour; sites of one colour are drawn together.

        Args:
            codes: states of C chains, ``(C, S)``.
            num_steps: sweeps.
            fixed: True where a site is held, bool, ``(C, S)``.

        Returns:
            The states after the last sweep.
        """
        codes, messages = codes.clone(), self.messages()
        colours = [sites.to(codes.device) for sites in self.graph.colours]
        for _ in range(num_steps):
            for sites in colours:
                drawn = draw_states(self.site_logits(codes, sites, messages))
                codes[:, sites] = (
                    drawn if fixed is None else torch.where(fixed[:, sites], codes[:, sites], drawn)
                )
        return codes

    # -- private -------------------------------------------------------------------------------

    def _factors(self) -> list[Factor]:
        unary = (self.unary if self.unary.ndim == 3 else self.unary[None]).double()
        pair = self.pair.double()
        factors = [Factor((), unary.new_zeros(1))]
        factors += [Factor((site,), unary[:, site]) for site in range(self.graph.num_sites)]
        factors += [Factor(edge, pair[e][None]) for e, edge in enumerate(self.graph.edges)]
        return factors

    def _drawn(self, found: dict[int, Tensor]) -> Tensor:
        return torch.stack([found[site] for site in range(self.graph.num_sites)], -1)


def draw_states(logits: Tensor) -> Tensor:
    """One state from log-weights ``(..., q)``, int64 ``(...)``, from torch's global generator."""
    if logits.shape[-1] == 2:
        odds = logits[..., 1] - logits[..., 0]
        return torch.gt(odds.sigmoid(), torch.rand_like(odds)).long()
    return categorical(logits.softmax(-1).reshape(-1, logits.shape[-1])).reshape(logits.shape[:-1])
