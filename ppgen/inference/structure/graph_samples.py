r"""A distribution over DAGs as a collection of graphs: draws of chains, resamples, particles, or one graph.

Memory: each different graph is kept once, a bit an edge, n²/8 bytes; draws are numbers of graphs. 16 chains
of 1000 draws on 60 variables take at most 7 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError, ConfigError, ShapeError
from ppgen.inference.mcmc.diagnostics import MIN_DRAWS, ess, mcse
from ppgen.inference.structure.problem import WeightedGraphs
from ppgen.ops.dags import closure, unique_graphs

# Numbers held at once: graphs times pairs of nodes, and draws times pairs.
_CHUNK = 2**23


class SampledSource:
    r"""Probabilities as weighted frequencies of graphs.

    A :class:`~ppgen.inference.structure.problem.GraphSource`. Standard errors respect what the draws are.
    Those of chains (a leading dimension of chains) follow from their effective sample size within and
    between chains. Independent graphs have :math:`\sqrt{\sum_s w_s^2 (x_s - \hat p)^2}`. Where all draws
    agree, that would be 0, as if nothing else were possible: there it is :math:`\sqrt{p (1 - p) / N}` at
    :math:`p = (N \hat p + 1/2) / (N + 1)`, N the effective number of draws. One graph alone, or graphs that
    are ``listed``, have no such errors: 0.

    Args:
        adjacency: bool, shape (S, n, n), independent graphs, or (C, S, n, n), draws of C chains.
        log_weights: shape (S,), of independent graphs, up to a constant; by default all alike.
        log_scores: log score of each graph, shape (S,) or (C, S), up to a constant: :meth:`map_graph` is then
            the graph with the highest, else the one with the highest weight.
        edge_means: probabilities of the edges given the states of the chains, averaged over B successive
            batches of draws, shape (C, B, n, n). They replace frequencies, with far less noise
            (Rao-Blackwell).
        log_evidence: of the data, where it is known.
        listed: whether the graphs are not draws but all that there are, with their probabilities.

    Raises:
        ShapeError: tensors that do not fit together.
        ConfigError: weights of chains, weights that are all zero or not a number.
    """

    def __init__(
        self,
        adjacency: Tensor,
        log_weights: Tensor | None = None,
        *,
        log_scores: Tensor | None = None,
        edge_means: Tensor | None = None,
        log_evidence: Estimate | None = None,
        listed: bool = False,
    ) -> None:
        shape = adjacency.shape
        if adjacency.ndim not in (3, 4) or shape[-1] != shape[-2] or not adjacency.numel():
            raise ShapeError(f"adjacency: expected (S, n, n) or (C, S, n, n), not empty, got {tuple(shape)}")
        unique, number = unique_graphs(adjacency.bool().flatten(0, -3))
        self._setup(
            _pack(unique), number.reshape(shape[:-2]), shape[-1], log_weights, log_scores, edge_means, listed
        )
        self.log_evidence = log_evidence

    def _setup(
        self,
        packed: Tensor,
        number: Tensor,
        num_nodes: int,
        log_weights: Tensor | None,
        log_scores: Tensor | None,
        edge_means: Tensor | None,
        listed: bool,
    ) -> None:
        draws, n = number.shape, num_nodes
        if log_weights is not None:
            if number.ndim == 2:
                raise ConfigError("log_weights: draws of chains have none; give independent graphs (S, n, n)")
            _check("log_weights", log_weights.shape, draws)
            total = log_weights.double().logsumexp(0)
            if not bool(total.isfinite()):
                raise ConfigError("log_weights: expected finite weights that are not all zero")
            log_weights = log_weights.double() - total
        if log_scores is not None:
            _check("log_scores", log_scores.shape, draws)
        if edge_means is not None and (
            number.ndim != 2 or edge_means.shape != (len(number), edge_means.shape[1], n, n)
        ):
            raise ShapeError(
                f"edge_means: expected (C, B, n, n) beside draws of C chains, got {tuple(edge_means.shape)}"
            )
        self.num_nodes = n
        self._packed, self._number = packed, number
        self._log_weights, self._log_scores, self._edge_means = log_weights, log_scores, edge_means
        self._listed = listed
        self._edges: tuple[Tensor, Tensor] | None = None
        self._paths: Estimate | None = None

    @property
    def num_draws(self) -> int:
        """Number of graphs, with repeats, over all chains."""
        return self._number.numel()

    def edge_probabilities(self) -> Tensor:
        """p(i -> j | D), shape (n, n)."""
        return self._edge_estimate()[0]

    def edge_errors(self) -> Tensor:
        """Monte-Carlo standard errors of :meth:`edge_probabilities`, shape (n, n)."""
        return self._edge_estimate()[1]

    def path_probabilities(self) -> Estimate:
        """Probability of a directed path from i to j, shape (n, n), with standard errors."""
        if self._paths is None:
            parts = [_pack(closure(self._graphs(part))) for part in self._parts()]
            value, error = self._estimate(torch.cat(parts))
            kind = Kind.EXACT if self._listed or self.num_draws == 1 else Kind.ESTIMATE
            self._paths = Estimate(value, kind, error)
        return self._paths

    def parent_sets(self, node: int) -> tuple[Tensor, Tensor]:
        """Parent sets of a node seen in the graphs, bool (F, n), and their shares (F,), largest first."""
        if not 0 <= node < self.num_nodes:
            raise ConfigError(f"node: expected 0 to {self.num_nodes - 1}, got {node}")
        columns = torch.cat([self._graphs(part)[:, :, node] for part in self._parts()])
        sets, number = columns.unique(dim=0, return_inverse=True)
        shares = self._unique_weights().new_zeros(len(sets)).index_add_(0, number, self._unique_weights())
        order = shares.argsort(descending=True, stable=True)
        return sets[order], shares[order]

    def map_graph(self) -> Tensor:
        """The graph with the highest score of those seen, or else with the highest weight, shape (n, n)."""
        if self._log_scores is not None:
            best = self._number.flatten()[self._log_scores.argmax()]
        else:
            best = self._unique_weights().argmax()
        return self._graphs(best[None])[0]

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        """Draw from the graphs: without repeats where they are draws that weigh alike and suffice.

        Raises:
            ConfigError: ``num`` is not positive.
        """
        if num < 1:
            raise ConfigError(f"num: expected a positive integer, got {num}")
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        total = self.num_draws
        if self._log_weights is not None:
            chosen = torch.multinomial(self._log_weights.exp().cpu(), num, True, generator=generator)
        elif num <= total and not self._listed:
            chosen = torch.randperm(total, generator=generator)[:num]
        else:
            chosen = torch.randint(total, (num,), generator=generator)
        numbers = self._number.flatten()[chosen.to(self._number.device)]
        graphs = self._graphs(numbers)
        even = torch.full((num,), -math.log(num), dtype=torch.float64, device=graphs.device)
        return WeightedGraphs(graphs, even)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values from which :meth:`from_state` makes the source again."""
        tensors = {"packed": self._packed, "number": self._number}
        optional = {
            "log_weights": self._log_weights,
            "log_scores": self._log_scores,
            "edge_means": self._edge_means,
        }
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        plain: dict[str, Any] = {"num_nodes": self.num_nodes, "listed": self._listed, "evidence_kind": None}
        if self.log_evidence is not None:
            tensors["log_evidence"] = self.log_evidence.value
            tensors["log_evidence_error"] = self.log_evidence.std_error
            plain["evidence_kind"] = str(self.log_evidence.kind)
        return tensors, plain

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Self:
        """The source that :meth:`state` was asked of.

        Raises:
            CheckpointError: tensors or values that do not fit together.
        """
        source = cls.__new__(cls)
        try:
            packed, number, n = tensors["packed"], tensors["number"], int(plain["num_nodes"])
            if packed.shape[1:] != (-(-n * n // 8),) or not 0 <= int(number.min()) <= int(number.max()) < len(
                packed
            ):
                raise CheckpointError(f"graphs of {n} nodes are damaged; the file is not whole")
            weights, scores, means = map(tensors.get, ("log_weights", "log_scores", "edge_means"))
            source._setup(packed, number, n, weights, scores, means, bool(plain["listed"]))
            source.log_evidence = None
            if plain["evidence_kind"] is not None:
                source.log_evidence = Estimate(
                    tensors["log_evidence"], Kind(plain["evidence_kind"]), tensors["log_evidence_error"]
                )
        except (KeyError, ShapeError, ConfigError, IndexError) as error:
            raise CheckpointError(
                f"graphs could not be read ({error}); the file is of another version"
            ) from error
        return source

    def _edge_estimate(self) -> tuple[Tensor, Tensor]:
        if self._edges is None:
            if self._edge_means is None:
                self._edges = self._estimate(self._packed)
            else:
                value, error = self._edge_means.mean((0, 1)), mcse(self._edge_means)
                # Too few batches for an effective sample size: draws tell the errors.
                few = self._edge_means.shape[1] < MIN_DRAWS
                self._edges = (value, self._estimate(self._packed)[1] if few else error)
        return self._edges

    def _estimate(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the pairs of nodes that are set in packed relations (U, .), and their errors, (n, n)."""
        n = self.num_nodes
        weights = self._unique_weights()
        value, error = weights.new_zeros(n * n), weights.new_zeros(n * n)
        for part in self._parts():
            value += weights[part] @ _unpack(packed[part], n).flatten(1).double()
        value = value.clamp(0.0, 1.0)
        if self._listed or self.num_draws == 1:
            return value.reshape(n, n), error.reshape(n, n)
        varying = ((value > 0) & (value < 1 - 1e-12)).nonzero()[:, 0]
        effective = weights.new_full((), float(self.num_draws))
        if self._log_weights is not None:
            squares = self._log_weights.exp().square()
            effective = 1 / squares.sum()
        sizes = []
        for columns in varying.split(max(1, _CHUNK // self.num_draws)):
            x = torch.cat([_unpack(packed[part], n).flatten(1)[:, columns] for part in self._parts()])
            if self._number.ndim == 2:
                draws = x[self._number].double()
                if draws.shape[1] < MIN_DRAWS:
                    draws = draws.flatten(0, 1)[None]  # too few for autocorrelations
                if draws.shape[1] < MIN_DRAWS:
                    error[columns] = (value[columns] * (1 - value[columns]) / self.num_draws).sqrt()
                    continue
                error[columns] = mcse(draws)
                sizes.append(ess(draws, "mean"))
            else:
                gaps = (x.double() - value[columns]).square()[self._number]
                even = weights.new_full((self.num_draws,), 1 / self.num_draws**2)
                squares = even if self._log_weights is None else self._log_weights.exp().square()
                error[columns] = (squares @ gaps).sqrt()
        if sizes:
            effective = torch.cat(sizes).median().clamp(max=effective)
        shrunk = (effective * value.round() + 0.5) / (effective + 1)
        constant = torch.ones_like(value, dtype=torch.bool)
        constant[varying] = False
        error = torch.where(constant, (shrunk * (1 - shrunk) / effective).sqrt(), error)
        error = error.reshape(n, n)
        return value.reshape(n, n), error.fill_diagonal_(0.0)

    def _unique_weights(self) -> Tensor:
        """Weights of the different graphs, (U,), float64."""
        flat = self._number.flatten()
        even = torch.full_like(flat, 1 / len(flat), dtype=torch.float64)
        weights = even if self._log_weights is None else self._log_weights.exp()
        return weights.new_zeros(len(self._packed)).index_add_(0, flat, weights)

    def _parts(self) -> Iterator[Tensor]:
        """Numbers of the different graphs, in chunks."""
        numbers = torch.arange(len(self._packed), device=self._packed.device)
        yield from numbers.split(max(1, _CHUNK // self.num_nodes**2))

    def _graphs(self, numbers: Tensor) -> Tensor:
        return _unpack(self._packed[numbers], self.num_nodes)


def _check(name: str, shape: torch.Size, expected: torch.Size) -> None:
    if shape != expected:
        raise ShapeError(f"{name}: expected {tuple(expected)}, one for each graph, got {tuple(shape)}")


def _pack(adjacency: Tensor) -> Tensor:
    """Graphs (U, n, n) as bytes (U, ceil(n² / 8)), the first pair in the lowest bit."""
    bits = adjacency.flatten(1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits.to(torch.uint8) << places).sum(2, dtype=torch.uint8)


def _unpack(packed: Tensor, num_nodes: int) -> Tensor:
    """What :func:`_pack` packed, bool (U, n, n)."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = ((packed[..., None] >> places) & 1).flatten(1) > 0
    return bits[:, : num_nodes**2].unflatten(1, (num_nodes, num_nodes))
