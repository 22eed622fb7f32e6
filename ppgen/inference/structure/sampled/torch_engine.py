"""The chains of ``program/`` by tensor operations: all chains in one batch, on any device.

The law is the same, the moves are fewer (relocations, and partitions by way of orders), and the speed is
that of tensor operations over all families. It serves where there is no compiler, and as a check of the
compiled code. In a move all chains relocate the same random node, each to a place of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.structure.sampled.engine import COUNTS, Drawn, Space
from ppgen.inference.structure.sampled.packing import PackedFamilies
from ppgen.inference.structure.sampled.starts import layers

# By way of orders: graphs at either end, and the share of the moves.
_TRIES, _JUMPS = 16, 0.2


class TorchEngine:
    """Runs chains; see :class:`~ppgen.inference.structure.sampled.engine.Engine`.

    Args:
        families: the families.
        space: of the chains.
        places: where the nodes start, shape (C, T, n), int64: positions, or numbers of elements.
        temperatures: T of them, the first is 1.
        sweeps: sweeps of n moves between two draws.
        seed: of the random numbers.
        device: where to work.
    """

    def __init__(
        self,
        families: PackedFamilies,
        space: Space,
        places: Tensor,
        temperatures: Sequence[float],
        *,
        sweeps: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._space, self._sweeps = space, sweeps
        self._n = families.num_nodes
        self._shape = (places.shape[0], places.shape[1])
        self._generator = torch.Generator(device).manual_seed(seed)
        betas = 1 / torch.tensor(list(temperatures), dtype=torch.float64, device=device)
        self._betas = betas.repeat(len(places))
        self._cold = torch.arange(len(places), device=device) * len(betas)
        self._places = places.to(device).flatten(0, 1).clone()
        # (n, F, k) with n for no member, and (n, F)
        rows = max(len(s) for s in families.log_scores)
        width = max(1, *(p.shape[1] for p in families.parents))
        self._parents = torch.full((self._n, rows, width), self._n, device=device)
        self._scores = torch.full((self._n, rows), -torch.inf, dtype=torch.float64, device=device)
        for v, (sets, scores) in enumerate(zip(families.parents, families.log_scores, strict=True)):
            self._parents[v, : len(sets), : sets.shape[1]] = sets.where(sets >= 0, self._n).to(device)
            self._scores[v, : len(sets)] = scores.to(device)
        self.counts = torch.zeros(len(places), len(COUNTS), dtype=torch.float64)

    @property
    def places(self) -> Tensor:
        """Where the nodes are now, (C, T, n)."""
        return self._places.unflatten(0, self._shape)

    @property
    def node_scores(self) -> Tensor:
        """Log scores of the nodes in the present states, (C, T, n)."""
        return self._logits(self._places, self._space).logsumexp(2).unflatten(0, self._shape)

    def advance(self, num_draws: int, *, keep: bool) -> Drawn | None:
        """Go on by ``num_draws`` draws; ``None`` where graphs are not kept."""
        n, device = self._n, self._places.device
        edges = torch.zeros(self._shape[0], n, n, dtype=torch.float64, device=device)
        rows, log_scores = [], []
        for _ in range(num_draws):
            for _ in range(self._sweeps):
                for _ in range(n):
                    self._move()
                self._exchange()
            if keep:
                logits = self._logits(self._places[self._cold], self._space)
                drawn = self._draw(logits, 1)[:, 0]
                rows.append(drawn.int())
                log_scores.append(self._scores[torch.arange(n, device=device), drawn].sum(1))
                edges += self._edges(logits.softmax(2))
        if not keep:
            return None
        return Drawn(torch.stack(rows, 1), torch.stack(log_scores, 1), edges)

    def state(self) -> dict[str, Any]:
        """Everything that decides how the chains go on."""
        random = self._generator.get_state()
        return {"engine": "torch", "places": self._places, "random": random, "counts": self.counts}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._places = state["places"].to(self._places.device).clone()
        self._generator.set_state(state["random"].cpu())
        self.counts = state["counts"].clone()

    # ----------------------------------------------------------------------------------
    # Scores of states
    # ----------------------------------------------------------------------------------

    def _highest(self, places: Tensor, sets: Tensor) -> Tensor:
        """The highest place of the members of sets (..., k): (K, ...); -1 of the empty set."""
        known = torch.nn.functional.pad(places, (0, 1), value=-1)
        return known[:, sets.flatten(0, -2)].amax(-1).unflatten(1, sets.shape[:-1])

    def _logits(self, places: Tensor, space: Space) -> Tensor:
        """Scores (K, n, F) of the families that fit the states, ``-inf`` of others."""
        highest, own = self._highest(places, self._parents), places[:, :, None]
        fits = highest < own if space == "order" else highest == own - 1
        return torch.where(fits, self._scores, -torch.inf)

    def _draw(self, logits: Tensor, num: int) -> Tensor:
        """Rows of families, (K, num, n)."""
        drawn = torch.multinomial(logits.softmax(2).flatten(0, 1), num, True, generator=self._generator)
        return drawn.unflatten(0, logits.shape[:2]).transpose(1, 2)

    def _edges(self, shares: Tensor) -> Tensor:
        """Probabilities of edges (K, n, n) from those of families (K, n, F)."""
        edges = shares.new_zeros(len(shares), self._n, self._n + 1)
        for k in range(self._parents.shape[2]):
            edges.scatter_add_(2, self._parents[None, :, :, k].expand(shares.shape), shares)
        return edges[:, :, :-1].transpose(1, 2)

    def _graphs(self, rows: Tensor) -> Tensor:
        """Graphs (..., n, n) of rows of families (..., n)."""
        members = self._parents[torch.arange(self._n, device=rows.device), rows.long()]
        marked = torch.zeros(*rows.shape, self._n + 1, dtype=torch.bool, device=rows.device)
        return marked.scatter_(-1, members, True)[..., :-1].transpose(-1, -2)

    # ----------------------------------------------------------------------------------
    # Moves
    # ----------------------------------------------------------------------------------

    def _uniform(self, *shape: int) -> Tensor:
        device = self._places.device
        return torch.rand(*shape, generator=self._generator, device=device, dtype=torch.float64)

    def _integer(self, limit: int) -> int:
        return min(int(float(self._uniform(1)) * limit), limit - 1)

    def _move(self) -> None:
        if self._space == "order":
            self._places = self._relocate_order(self._places, self._betas)
        elif float(self._uniform(1)) < _JUMPS:
            taken = self._by_order(int((2 * self._n) ** float(self._uniform(1))))
            self.counts[:, COUNTS.index("jumps")] += 1
            self.counts[:, COUNTS.index("jumps_taken")] += taken.cpu()
            return
        else:
            self._relocate_partition()
        self.counts[:, COUNTS.index("relocations")] += 1

    def _choose(self, logits: Tensor) -> Tensor:
        noise = -(-self._uniform(*logits.shape).clamp(min=1e-300).log()).log()
        return (logits + noise).argmax(1, keepdim=True)

    def _relocate_order(self, places: Tensor, betas: Tensor) -> Tensor:
        """Gibbs: one node to any position, given the order of the others."""
        n, v = self._n, self._integer(self._n)
        rest = places - (places > places[:, v : v + 1]).long()
        rest[:, v] = -1
        highest = self._highest(rest, self._parents)
        fits, has = highest < rest[:, :, None], (self._parents == v).any(2)
        without = torch.where(fits & ~has, self._scores, -torch.inf).logsumexp(2)
        after = torch.where(fits, self._scores, -torch.inf).logsumexp(2)
        choice = torch.arange(n, device=places.device)
        terms = torch.where(choice <= rest[:, :, None], after[:, :, None], without[:, :, None])
        terms[:, v] = torch.where(
            highest[:, v, None, :] < choice[:, None], self._scores[v], -torch.inf
        ).logsumexp(2)
        chosen = self._choose(betas[:, None] * terms.sum(1))
        return (rest + (rest >= chosen)).scatter(1, torch.full_like(chosen, v), chosen)

    def _relocate_partition(self) -> None:
        """Gibbs: one node into any element or a new one; choices 2 i + 1 and 2 i, as in ``partition.hpp``."""
        n, v, places = self._n, self._integer(self._n), self._places
        own = places[:, v : v + 1]
        alone = (places == own).sum(1, keepdim=True) == 1
        rest = places - (alone & (places > own)).long()
        rest[:, v] = -1
        highest, level = self._highest(rest, self._parents), rest[:, :, None]
        has = (self._parents == v).any(2)
        last = highest == level - 1

        def total(kept: Tensor) -> Tensor:
            return torch.where(kept, self._scores, -torch.inf).logsumexp(2)[:, :, None]

        absent, far = total(last & ~has), total(last)
        following = total((highest < level) & has)
        joined = torch.logaddexp(absent, following)
        choice = torch.arange(2 * n - 1, device=places.device)
        gap = choice - 2 * level
        terms = torch.where(
            gap > 0, absent, torch.where(gap == 0, following, torch.where(gap == -1, joined, far))
        )
        terms[:, v] = torch.where(
            highest[:, v, None, :] == choice[:, None] // 2 - 1, self._scores[v], -torch.inf
        ).logsumexp(2)
        inside = choice <= 2 * (rest.amax(1, keepdim=True) + 1)
        logits = torch.where(inside, terms.sum(1), -torch.inf)
        chosen = self._choose(self._betas[:, None] * logits)
        moved = rest + ((chosen % 2 == 0) & (rest >= chosen // 2))
        self._places = moved.scatter(1, torch.full_like(chosen, v), chosen // 2)

    def _by_order(self, steps: int) -> Tensor:
        """Far moves of the chains at temperature 1, as in ``partition.hpp``; which were taken, (C,)."""
        places = self._places[self._cold]
        graph = self._graphs(self._draw(self._logits(places, "partition"), 1)[:, 0])
        order = self._extension(graph)
        here = self._graphs(self._draw(self._logits(order, "order"), _TRIES))
        here[:, 0] = graph
        before = _log_extension(here, order[:, None]).logsumexp(1)
        one = torch.ones(len(order), dtype=torch.float64, device=order.device)
        for _ in range(steps):
            order = self._relocate_order(order, one)
        there = self._graphs(self._draw(self._logits(order, "order"), _TRIES))
        weights = _log_extension(there, order[:, None])
        taken = self._uniform(len(order)).log() < weights.logsumexp(1) - before
        chosen = self._choose(weights)[:, :, None, None].expand(-1, 1, self._n, self._n)
        moved = layers(there.gather(1, chosen)[:, 0])
        self._places[self._cold] = torch.where(taken[:, None], moved, places)
        return taken

    def _extension(self, graphs: Tensor) -> Tensor:
        """A random order of each DAG, near to uniform: positions (K, n)."""
        mass = _masses(graphs)
        waiting = torch.ones(graphs.shape[:2], dtype=torch.bool, device=graphs.device)
        positions = torch.zeros(graphs.shape[:2], dtype=torch.int64, device=graphs.device)
        for step in range(self._n):
            free = waiting & ~(graphs & waiting[:, :, None]).any(1)
            chosen = torch.multinomial(mass * free, 1, generator=self._generator)
            positions.scatter_(1, chosen, step)
            waiting = waiting.scatter(1, chosen, False)
        return positions

    def _exchange(self) -> None:
        num_chains, num = self._shape
        if num == 1:
            return
        scores = self._logits(self._places, self._space).logsumexp(2).sum(1).unflatten(0, self._shape)
        places, betas = self.places.clone(), self._betas[:num]
        for t in range(num - 1):
            gain = (betas[t] - betas[t + 1]) * (scores[:, t + 1] - scores[:, t])
            taken = self._uniform(num_chains).log() < gain
            pair = torch.stack([t + taken.long(), t + 1 - taken.long()], 1)
            places[:, t : t + 2] = places.gather(1, pair[:, :, None].expand(-1, -1, self._n))
            scores[:, t : t + 2] = scores.gather(1, pair)
            self.counts[:, COUNTS.index("exchanges")] += 1
            self.counts[:, COUNTS.index("exchanges_taken")] += taken.cpu()
        self._places = places.flatten(0, 1)


def _masses(graphs: Tensor) -> Tensor:
    """1 and the masses of the children, each shared among its parents: (..., n) of DAGs (..., n, n)."""
    share = graphs / graphs.sum(-2, keepdim=True).clamp(min=1)
    mass = torch.ones(graphs.shape[:-1], dtype=torch.float64, device=graphs.device)
    for _ in range(int(layers(graphs).max())):
        mass = 1 + (share.double() @ mass[..., None])[..., 0]
    return mass


def _log_extension(graphs: Tensor, positions: Tensor) -> Tensor:
    """Log probability of orders (positions, (..., n)) of DAGs (..., n, n), as ``_extension`` draws them."""
    mass = _masses(graphs)
    opened = torch.where(graphs, positions[..., :, None] + 1, 0).amax(-2)
    step = torch.arange(graphs.shape[-1], device=graphs.device)
    is_free = (opened[..., None, :] <= step[:, None]) & (step[:, None] <= positions[..., None, :])
    total = torch.where(is_free, mass[..., None, :], 0.0).sum(-1)
    return (mass.log() - total.log()).sum(-1)
