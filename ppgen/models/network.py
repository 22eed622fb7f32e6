r"""What a Bayesian network is made of, and how its parameters are learnt.

The parameters of all families lie end to end in a few tensors, so that graphs that share a family share its
parameters. Learning is expectation-maximisation on expected statistics; with complete rows its first
iteration is the answer. See :mod:`ppgen.models.bayesian_network` for the model itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ppgen.contract import GenerativeModel, Kind
from ppgen.datasets.values import Values, table_values
from ppgen.distributions.network.density import NetworkDensity
from ppgen.distributions.network.labels import Labels
from ppgen.distributions.network.mechanisms import Discrete, Gaussian, Mechanism
from ppgen.distributions.network.posterior import RegressionPosterior, TablePosterior, log_penalty
from ppgen.distributions.network.row import DataRows
from ppgen.distributions.network.structure import NetworkStructure
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.network_graphs import levels_of, parents_of
from ppgen.ops.random import forked_rng
from ppgen.ops.trees import chow_liu

# Rows whose terms are held at once.
_CHUNK_ROWS = 4096


class Network(GenerativeModel):
    """Graphs, the parameters of their families, and learning. Abstract: a family adds the programs.

    Arguments are those of :class:`~ppgen.models.bayesian_network.BayesianNetwork`.
    """

    centres: Tensor
    rates: Tensor
    tree: Tensor

    density = Kind.EXACT

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        graph: Any = None,
        cardinalities: int | Sequence[int] = 2,
        names: Sequence[str] | None = None,
        levels: Sequence[Sequence[Hashable] | None] | None = None,
        equivalent_sample_size: float = 1.0,
        interventions: Sequence[tuple[int, float]] = (),
    ) -> None:
        super().__init__(event_shape)
        if not equivalent_sample_size > 0:
            raise ConfigError(
                f"equivalent_sample_size: expected a positive number of rows, got {equivalent_sample_size}"
            )
        num = self.event_shape.numel()
        on_grid = isinstance(cardinalities, int)
        sizes = (cardinalities,) * num if isinstance(cardinalities, int) else tuple(cardinalities)
        if len(sizes) != num:
            raise ShapeError(
                f"cardinalities: expected {num} numbers, one a variable of {tuple(self.event_shape)}, "
                f"got {len(sizes)}"
            )
        self.support: Values = replace(table_values(sizes, on_grid), missing=True)
        self.equivalent_sample_size = float(equivalent_sample_size)
        self.labels = Labels(
            tuple(names) if names is not None else tuple(f"x{i}" for i in range(num)),
            tuple(tuple(range(s)) if s else None for s in sizes)
            if levels is None
            else levels_of(levels, sizes),
        )
        self.interventions = tuple((int(v), float(value)) for v, value in interventions)
        parents = None if graph is None else parents_of(graph, self.labels)
        self._fixed = None if parents is None else NetworkStructure.of(sizes, parents, self.labels.names)
        self.config.update(
            graph=None if self._fixed is None else self._fixed.to_json(),
            cardinalities=cardinalities if on_grid else list(sizes),
            names=None if names is None else list(names),
            levels=None
            if levels is None
            else [None if one is None else list(one) for one in self.labels.levels],
            interventions=[list(one) for one in self.interventions],
        )
        self._cardinalities = sizes
        rates = [float(s - 1) if on_grid and s > 1 else 1.0 for s in sizes]
        self.register_buffer("centres", torch.zeros(num))
        self.register_buffer("rates", torch.tensor(rates))
        if self._fixed is None:
            self.register_buffer("tree", torch.full((num,), -1, dtype=torch.int64))
        self._make_parameters()

    def _make_parameters(self) -> None:
        """Parameters of all families end to end; each has a slot of rows (configurations) by width."""
        sizes, slots = self._cardinalities, list[tuple[int, int, int]]()
        if self._fixed is None:
            largest = max(1, *sizes)
            slots = [(v, largest, sizes[v] or 2) for v in range(len(sizes))]
        else:
            for number, (node, _) in enumerate(self._fixed.families):
                width = sizes[node] or 1 + len(self._fixed.continuous_parents(number))
                slots.append((node, math.prod(self._fixed.configurations(number)), width))
        self._slots = tuple((rows, width) for _, rows, width in slots)
        tables = sum(rows * width for v, rows, width in slots if sizes[v])
        regressions = [(rows, width) for v, rows, width in slots if not sizes[v]]
        coefficients, noises = sum(r * w for r, w in regressions), sum(r for r, _ in regressions)
        self.logits = nn.Parameter(torch.zeros(tables))
        self.weights = nn.Parameter(torch.zeros(coefficients))
        self.log_scales = nn.Parameter(torch.zeros(noises))
        num_graphs = 1 if self._fixed is None else self._fixed.num_graphs
        self.graph_logits = nn.Parameter(torch.zeros(num_graphs if num_graphs > 1 else 0))
        # What the posteriors of the parameters are known by; see :meth:`draw_parameters`.
        self.register_buffer("counts", torch.zeros(tables))
        self.register_buffer("precisions", torch.zeros(sum(r * w * w for r, w in regressions)))
        self.register_buffer("regression_counts", torch.zeros(noises))

    # -- what it is made of ------------------------------------------------------------------

    @property
    def structure(self) -> NetworkStructure:
        """The graphs and their families; without those given, the tree that was learnt."""
        if self._fixed is not None:
            return self._fixed
        tree = [-1] * len(self.tree) if self.tree.is_meta else self.tree.tolist()
        parents = [[p] if p >= 0 else [] for p in tree]
        families = tuple((v, tuple(found)) for v, found in enumerate(parents))
        return NetworkStructure(self._cardinalities, families, (tuple(range(len(families))),))

    @property
    def num_graphs(self) -> int:
        """K."""
        return 1 if self._fixed is None else self._fixed.num_graphs

    @property
    def weights_of_graphs(self) -> Tensor:
        """Probabilities of the graphs, shape (K,)."""
        return self._log_weights().exp()

    def network(self) -> NetworkDensity:
        """Densities of rows in level numbers and standardised units, differentiable in the parameters."""
        structure, mechanisms = self.structure, list[Mechanism]()
        for number, (node, parts) in enumerate(self._views(structure)):
            configurations = structure.configurations(number)
            if self._cardinalities[node]:
                table = parts["logits"].double().log_softmax(-1)
                mechanisms.append(Discrete(table.reshape(*configurations, -1)))
            else:
                weights = parts["weights"].double().reshape(*configurations, -1)
                mechanisms.append(
                    Gaussian.regression(weights, parts["log_scales"].double().reshape(configurations))
                )
        return NetworkDensity(structure, tuple(mechanisms), self._log_weights())

    def rows(self) -> DataRows:
        """Densities and draws of rows in the units of the data."""
        centres, rates = self.centres.double(), self.rates.double()
        units = (
            []
            if self.logits.is_meta
            else [(float(centres[v]), float(rates[v])) for v, _ in self.interventions]
        )
        held = {
            v: value if self._cardinalities[v] else (value - centre) * rate
            for (v, value), (centre, rate) in zip(self.interventions, units, strict=False)
        }
        return DataRows(self.network(), self.event_shape, centres, rates, held, self.logits.dtype)

    def table(self, node: str, graph: int = 0) -> Tensor:
        """Posterior mean of p(node given parents), shape (levels of the parents, ..., levels of the node).

        Parents come in the order of the variables.
        """
        number = self.structure.graphs[graph][self.labels.node(node)]
        mechanism = self.network().mechanisms[number]
        if not isinstance(mechanism, Discrete):
            raise ConfigError(f"node: {node!r} is continuous and has no table; see regression()")
        return mechanism.log_table.exp().detach()

    def regression(self, node: str, graph: int = 0) -> tuple[Tensor, Tensor]:
        """Intercept and coefficients ``(..., 1 + d)``, standard deviation ``(...)``, in units of the data.

        Leading dimensions are levels of the discrete parents; parents come in the order of the variables.
        """
        v = self.labels.node(node)
        number = self.structure.graphs[graph][v]
        mechanism = self.network().mechanisms[number]
        if not isinstance(mechanism, Gaussian):
            raise ConfigError(f"node: {node!r} has levels and no regression; see table()")
        centres, rates = self.centres.double(), self.rates.double()
        parents = list(self.structure.continuous_parents(number))
        precision = mechanism.form[..., -1, -1]
        weights = -mechanism.form[..., -1, :-1] / precision[..., None]
        slopes = weights[..., 1:] * rates[parents] / rates[v]
        intercept = (
            centres[v] + weights[..., :1] / rates[v] - (slopes * centres[parents]).sum(-1, keepdim=True)
        )
        return torch.cat([intercept, slopes], -1).detach(), (precision.rsqrt() / rates[v]).detach()

    # -- learning ----------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise by the data, learn the tree where no graph was given, set parameters by complete rows.

        Raises:
            DataError: no complete row.
        """
        self.check_context(context)
        self._may_learn()
        self._checked(x)
        self._prepare(x.reshape(len(x), -1).double(), None)
        self.initialised.fill_(True)

    @torch.no_grad()
    def learn(
        self,
        x: Tensor,
        *,
        clamped: Tensor | None = None,
        max_steps: int = 200,
        tolerance: float = 1e-6,
    ) -> list[float]:
        """Set the posterior of the parameters of every graph from one and the same rows.

        Complete rows give it at once; with gaps, expectation-maximisation by exact expected counts. In a
        mixture each graph is fitted to all rows (as a posterior over graphs means it), and weights stay as
        they are; :func:`ppgen.fit` instead fits the mixture of rows, weights included.

        Args:
            x: rows, NaN where unknown.
            clamped: bool, shape of x: what was set by intervention, and says nothing about its variable.
            max_steps: iterations at most.
            tolerance: iterations end when the objective rises by less than this a row, in nats.

        Returns:
            The log-likelihood plus log prior before each iteration, in nats; it never falls.

        Raises:
            DataError: values that are none of the variables', or that were set and are unknown.
        """
        self._may_learn()
        is_set = self._checked(x, clamped)
        flat = x.reshape(len(x), -1).double()
        self._prepare(flat, is_set)
        self.initialised.fill_(True)
        values = self.rows().encode(x)
        if not bool(values.isnan().any()):
            return []  # complete rows: what _prepare set is the answer
        trace: list[float] = []
        for _ in range(max_steps):
            log_likelihood, found, _ = self._expectations(values, is_set, by_row=False)
            trace.append(float(log_likelihood + self._log_prior(self._family_shares())))
            if len(trace) > 1 and trace[-1] - trace[-2] < tolerance * len(x):
                break
            self._maximise(*found)
        return trace

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One EM iteration on rows, complete or not, in place; of a mixture the weights of graphs too."""
        self.check_context(context)
        self._may_learn()
        self._checked(x)
        log_prior = self.log_prior()
        log_likelihood, found, mass = self._expectations(self.rows().encode(x), None, by_row=True)
        if bool(torch.isfinite(log_likelihood)):
            self._maximise(*found)
            if self.num_graphs > 1:
                self.graph_logits.copy_(
                    (mass / mass.sum()).clamp_min(torch.finfo(self.logits.dtype).tiny).log()
                )
        return EMStep(log_likelihood, log_prior)

    def log_prior(self) -> Tensor:
        """Log prior density of the parameters, up to a constant; a scalar, in nats."""
        return self._log_prior(None).to(self.logits.dtype)

    def default_objective(self) -> ExpectationMaximisation:
        """EM; with complete rows its first iteration is the exact answer."""
        return ExpectationMaximisation()

    @torch.no_grad()
    def draw_parameters(self, seed: int | None = None) -> Self:
        """A copy with parameters drawn from their posterior (Dirichlet, normal-inverse-gamma)."""
        drawn = copy.deepcopy(self)
        with forked_rng(seed, self.device):
            for (node, view), (_, into) in zip(
                self._views(self.structure), drawn._views(self.structure), strict=True
            ):
                if self._cardinalities[node]:
                    counts = view["counts"].double()
                    into["logits"].copy_(TablePosterior.of(counts, self.equivalent_sample_size).log_draw())
                    continue
                counts = view["regression_counts"].double()
                strength = self.equivalent_sample_size
                shape = 1 + 0.5 * (strength + counts)
                rate = (2 * view["log_scales"].double()).exp() * (shape - 1)
                precision = view["precisions"].double()
                precision = precision.reshape(*view["weights"].shape, -1)
                eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
                posterior = RegressionPosterior(
                    view["weights"].double(), precision + strength * eye, shape, rate
                )
                weights, log_scales = posterior.draw()
                into["weights"].copy_(weights)
                into["log_scales"].copy_(log_scales)
        return drawn

    def _may_learn(self) -> None:
        if self.interventions:
            raise ConfigError(
                "interventions: parameters are learnt before do(), as what is set says nothing about its "
                "causes; learn with the network that do() was called on"
            )

    def _prepare(self, flat: Tensor, is_set: Tensor | None) -> None:
        """Standardise, learn the tree, set parameters from complete rows; ``flat`` in units of the data."""
        continuous = torch.tensor([size == 0 for size in self._cardinalities], device=flat.device)
        for v in torch.nonzero(continuous)[:, 0].tolist():
            free = ~flat[:, v].isnan() if is_set is None else ~flat[:, v].isnan() & ~is_set[:, v]
            seen = flat[free, v]
            spread = seen.std(correction=0) if len(seen) > 1 else seen.new_tensor(1.0)
            self.centres[v] = seen.mean() if len(seen) else 0.0
            self.rates[v] = 1 / spread if float(spread) > 0 else 1.0
        values = self.rows().encode(flat.reshape(len(flat), *self.event_shape))
        complete = ~values.isnan().any(-1)
        chosen, held = values[complete], None if is_set is None else is_set[complete]
        if not len(chosen):
            if self._fixed is None:
                raise DataError(
                    "x: no row is complete, and a tree is learnt from complete rows; give a graph"
                )
            return
        if self._fixed is None:
            self.tree.copy_(chow_liu(chosen, self._cardinalities))
        self._maximise(*self._expectations(chosen, held, by_row=False)[1])

    def _expectations(
        self, values: Tensor, is_set: Tensor | None, *, by_row: bool
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]], Tensor]:
        """The log-likelihood, expected statistics of each family, and the mass of each graph.

        The statistics are gradients of the log-likelihood: see :mod:`ppgen.distributions.network.mechanisms`.
        """
        network = self.network()
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor) -> Tensor:
            leaves.append(tensor.detach().requires_grad_())
            return leaves[-1]

        mechanisms = tuple(
            Discrete(leaf(m.log_table))
            if isinstance(m, Discrete)
            else Gaussian(leaf(m.form), leaf(m.constant))
            for m in network.mechanisms
        )
        log_weights = leaf(network.log_weights)
        free = NetworkDensity(network.structure, mechanisms, log_weights)
        total = log_weights.detach().new_zeros(())
        sums = [torch.zeros_like(one) for one in leaves]
        complete = not bool(values.isnan().any())
        for start in range(0, len(values), _CHUNK_ROWS):
            rows = values[start : start + _CHUNK_ROWS]
            held = None if is_set is None else is_set[start : start + _CHUNK_ROWS]
            with torch.enable_grad():
                if by_row:
                    goal = (free.log_prob(rows, held) + log_weights).logsumexp(-1).sum()
                elif complete:
                    goal = free.family_terms(rows, held).sum()
                else:
                    goal = (free.log_prob(rows, held).sum(0) * network.log_weights.detach().exp()).sum()
            found = torch.autograd.grad(goal, leaves, allow_unused=True)
            total = total + goal.detach()
            for one, part in zip(sums, found, strict=True):
                if part is not None:
                    one += part
        mass = sums.pop()
        counts, squares = list[Tensor](), list[Tensor]()
        shares = self._family_shares() if not by_row and not complete else None
        left = iter(sums)
        for number, mechanism in enumerate(mechanisms):
            share = 1.0 if shares is None else float(shares[number])
            first = next(left) / share
            if isinstance(mechanism, Discrete):
                counts.append(first)
                squares.append(first)
            else:
                squares.append(-(first + first.mT))
                counts.append(next(left) / share)
        extra = self._volume(values, is_set)
        return total + extra, (counts, squares), mass

    def _maximise(self, counts: list[Tensor], squares: list[Tensor]) -> None:
        """Write posterior means, and what the posteriors are known by."""
        strength = self.equivalent_sample_size
        for number, (node, view) in enumerate(self._views(self.structure)):
            if self._cardinalities[node]:
                table = counts[number].reshape(view["logits"].shape)
                view["counts"].copy_(table)
                view["logits"].copy_(TablePosterior.of(table, strength).log_mean)
                continue
            size = squares[number].shape[-1]
            square = squares[number].reshape(-1, size, size)
            count = counts[number].reshape(-1)
            posterior = RegressionPosterior.of(count, square, strength)
            view["weights"].copy_(posterior.mean)
            view["log_scales"].copy_(posterior.log_scale)
            view["regression_counts"].copy_(count)
            view["precisions"].copy_(square[:, :-1, :-1].reshape(view["precisions"].shape))

    # -- private -----------------------------------------------------------------------------

    def _views(self, structure: NetworkStructure) -> list[tuple[int, dict[str, Tensor]]]:
        """The part of each flat tensor that belongs to a family, with its configurations as rows."""
        found, start = [], dict.fromkeys(("logits", "weights", "log_scales", "precisions"), 0)
        for number, (node, _) in enumerate(structure.families):
            rows, width = self._slots[number]
            used = math.prod(structure.configurations(number))

            def part(name: str, like: str, size: int, used: int = used, rows: int = rows) -> Tensor:
                flat = getattr(self, name)[start[like] : start[like] + rows * size]
                return flat.reshape(rows, size)[:used]

            if self._cardinalities[node]:
                views = {name: part(name, "logits", width) for name in ("logits", "counts")}
                start["logits"] += rows * width
            else:
                size = 1 + len(structure.continuous_parents(number))
                views = {
                    "weights": part("weights", "weights", width)[:, :size],
                    "log_scales": part("log_scales", "log_scales", 1)[:, 0],
                    "regression_counts": part("regression_counts", "log_scales", 1)[:, 0],
                    "precisions": part("precisions", "precisions", width * width)[:, : size * size],
                }
                start["weights"] += rows * width
                start["log_scales"] += rows
                start["precisions"] += rows * width * width
            found.append((node, views))
        return found

    def _log_prior(self, shares: Tensor | None) -> Tensor:
        """Log prior of the parameters, each family counted by its share."""
        terms = [log_penalty(m, self.equivalent_sample_size) for m in self.network().mechanisms]
        stacked = torch.stack(terms)
        return (stacked if shares is None else stacked * shares).sum()

    def _family_shares(self) -> Tensor:
        """Probability that the graph has each family, shape (F,)."""
        weights = self.weights_of_graphs.detach()
        shares = weights.new_zeros(len(self.structure.families))
        for graph, weight in zip(self.structure.graphs, weights, strict=True):
            shares[list(graph)] += weight
        return shares.clamp_min(torch.finfo(shares.dtype).tiny)

    def _volume(self, values: Tensor, is_set: Tensor | None) -> Tensor:
        """What standardising adds to the log-likelihood of rows."""
        continuous = torch.tensor([size == 0 for size in self._cardinalities], device=values.device)
        counted = ~values.isnan() & continuous
        counted = counted if is_set is None else counted & ~is_set
        return torch.where(counted, self.rates.double().log(), 0.0).sum()

    def _log_weights(self) -> Tensor:
        """Log-probabilities of the graphs, float64 (K,)."""
        if self.num_graphs == 1:
            return torch.zeros(1, dtype=torch.float64, device=self.device)
        return self.graph_logits.double().log_softmax(-1)

    def _checked(self, x: Tensor, clamped: Tensor | None = None) -> Tensor | None:
        """Check rows, NaN allowed, and what was set in them; as (N, n) booleans."""
        self.check_data(x)
        if clamped is None or x.is_meta:
            return None
        if clamped.shape != x.shape or clamped.dtype != torch.bool:
            raise ShapeError(
                f"clamped: expected booleans of shape {tuple(x.shape)}, the shape of x, got "
                f"{clamped.dtype} of {tuple(clamped.shape)}"
            )
        gone = x.isnan() & clamped
        if bool(gone.any()):
            raise DataError(
                f"clamped: {int(gone.sum())} values were set by intervention and are unknown; fill them in, "
                "or drop those rows"
            )
        return clamped.reshape(len(x), -1)
