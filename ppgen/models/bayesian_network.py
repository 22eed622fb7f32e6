r"""A Bayesian network: variables that follow, each, from their parents in a directed acyclic graph.

.. math:: p(x, k) = \pi_k \prod_v p(x_v \mid x_{P_v(k)})

.. code-block:: text

    +-- data, n = 1..N -------------------------------------------+
    |  k_n ~ Categorical(pi)    the graph, where there are more   |
    |                           than one (enumerated)             |
    |  for v in topological order of graph k_n:                   |
    |      x_nv ~ p(. | x_n[parents of v])                        |
    +-------------------------------------------------------------+

Variables with levels follow tables; continuous ones are linear in their continuous parents with Gaussian
noise, with a regression for each configuration of their discrete parents. Graphs share the families that
they have in common. The row is one site ``x``; :meth:`BayesianNetwork.node_model` is the same program with
one site a variable. The guide is the exact posterior of ``k``; the likelihood is exact, also of rows with
gaps (NaN). A mixture over graphs drawn from a posterior is the posterior predictive of a row.

Without a graph the model learns a tree: that of Chow & Liu (1968). Parameters are posterior means, see
:mod:`ppgen.distributions.network.posterior`; with complete rows one iteration of EM finds them.
Cost of complete rows: O(N F) for F families; of a gap: the largest table of its elimination.

References: Koller & Friedman, *Probabilistic Graphical Models*, 2009; Pearl, *Causality*, 2009; Lauritzen
1992 (conditional Gaussian networks); Thiesson, Meek, Chickering & Heckerman 1998 (mixtures of DAGs).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.datasets.values import Values
from ppgen.distributions.network.mechanisms import Discrete, Gaussian
from ppgen.distributions.network.row import NetworkRow
from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.mechanism_cells import disturbed_cells, graphs_and_agents, table_behind
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.inference.structure.table import Table
from ppgen.models.conditioning import observed_part
from ppgen.models.counterfactuals import Assumption, NoisyFunction, abduct, indexed
from ppgen.models.family import Family
from ppgen.models.latent import Method, check_method
from ppgen.models.network import Network
from ppgen.models.network_graphs import Which, graphs_of
from ppgen.ops.random import forked_rng


class BayesianNetwork(Network):
    """A Bayesian network, or a mixture of several over the same variables.

    Args:
        event_shape: shape of one row: ``(n,)``, or any other, whose coordinates are the variables.
        graph: ``None`` for a tree that is learnt; else a DAG, as a bool adjacency matrix (n, n) with [i, j]
            the edge i -> j, a networkx DiGraph over the names, or pairs (from, to) of names or numbers; or
            a mixture, as adjacency matrices (K, n, n).
        cardinalities: one number: values are on the grid of so many levels (2: binary; 0: real numbers); or
            the number of levels of each variable, 0 for continuous ones: x holds level numbers.
        names: of the variables; ``x0``, ``x1``, ... by default.
        levels: names of the levels of each variable, ``None`` for a continuous one; numbers by default.
        equivalent_sample_size: strength of the prior on the parameters, in rows.
        interventions: pairs (variable number, value) of what is set; see :meth:`do`.
    """

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Pick a graph, then draw the variables along it."""
        with self.data_plate(x, num, context):
            k = torch.zeros((), dtype=torch.int64, device=self.device)
            if self.num_graphs > 1:
                weights = dist.Categorical(logits=self.graph_logits)
                k = pyro.sample("k", weights, infer={"enumerate": "parallel"})
            return pyro.sample("x", NetworkRow(self.rows(), k, self.event_shape), obs=x)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The exact posterior of the graph; its prior where there is no x."""
        if self.num_graphs == 1:
            return
        with self.data_plate(x, num, context):
            logits = self.graph_logits if x is None or x.is_meta else self._log_joint(x)
            weights = dist.Categorical(logits=logits.detach().to(self.graph_logits.dtype))
            pyro.sample("k", weights, infer={"enumerate": "parallel"})

    def node_model(
        self,
        x: Mapping[str, Tensor] | None = None,
        *,
        num: int | None = None,
        graph: int = 0,
        parameters: Literal["mean", "prior"] = "mean",
    ) -> dict[str, Tensor]:
        """The program of one graph with a site for each variable, named as it is, in topological order.

        Values are level numbers (int64) and numbers in the units of the data.

        Args:
            x: observed columns by name, shape (B,); others are drawn.
            num: rows to draw where nothing is observed.
            graph: which graph of a mixture.
            parameters: ``"mean"``: posterior means; ``"prior"``: sites of their own, outside the plate, so
                that inference on this program is fully Bayesian: ``NAME.table`` (Dirichlet), or, in
                standardised units, ``NAME.variance`` (inverse gamma) and ``NAME.weights`` (normal given it).

        Returns:
            All columns by name.
        """
        x = {} if x is None else x
        for name in x:
            self.labels.node(name)
        if parameters not in ("mean", "prior"):
            raise ConfigError(f"parameters: expected 'mean' or 'prior', got {parameters!r}")
        structure, names, held = self.structure, self.labels.names, dict(self.interventions)
        known = next(iter(x.values()), None)
        size = num if num is not None else 1 if known is None else len(known)
        numbers = structure.graphs[graph]
        free = [node for node in structure.orders[graph] if node not in held]
        centres, rates = self.centres.double(), self.rates.double()
        found: dict[int, Tensor] = {}
        with self.shown_to_pyro():
            if parameters == "mean":
                every = self.network().mechanisms
                mechanisms = {node: every[numbers[node]] for node in free}
            else:
                mechanisms = {node: self._prior_mechanism(numbers[node], node) for node in free}
            with pyro.plate("data", size, device=str(self.device)):
                for node in structure.orders[graph]:
                    if node in held:
                        value = torch.full((size,), held[node], dtype=torch.float64, device=self.device)
                        value = value.long() if self._cardinalities[node] else value
                        found[node] = pyro.deterministic(names[node], value)
                        continue
                    mechanism, observed = mechanisms[node], x.get(names[node])
                    at = tuple(found[p].long() for p in structure.discrete_parents(numbers[node]))
                    if isinstance(mechanism, Discrete):
                        choice = dist.Categorical(logits=mechanism.log_table[at])
                        found[node] = pyro.sample(names[node], choice, obs=observed)
                        continue
                    inputs = structure.continuous_parents(numbers[node])
                    parts = [(found[p] - centres[p]) * rates[p] for p in inputs]
                    ones = torch.ones(size, dtype=torch.float64, device=self.device)
                    mean, scale = mechanism.moments(torch.stack([ones, *parts], -1), at)
                    normal = dist.Normal(centres[node] + mean / rates[node], scale / rates[node])
                    found[node] = pyro.sample(names[node], normal, obs=observed)
        return {name: found[node] for node, name in enumerate(names)}

    def _prior_mechanism(self, number: int, node: int) -> Discrete | Gaussian:
        """A mechanism whose parameters are sites, with the priors that :meth:`learn` assumes."""
        name, strength = self.labels.names[node], self.equivalent_sample_size
        configurations, levels = self.structure.configurations(number), self._cardinalities[node]
        ones = torch.ones(configurations, dtype=torch.float64, device=self.device)
        if levels:
            concentration = (
                ones[..., None].expand(*configurations, levels) * strength / (ones.numel() * levels)
            )
            prior = dist.Dirichlet(concentration).to_event(len(configurations))
            return Discrete(pyro.sample(f"{name}.table", prior).log())
        noise = dist.InverseGamma((1 + strength / 2) * ones, strength / 2 * ones)
        variance = pyro.sample(f"{name}.variance", noise.to_event(len(configurations)))
        spread = (variance / strength).sqrt()[..., None]
        size = 1 + len(self.structure.continuous_parents(number))
        weights = dist.Normal(torch.zeros_like(spread), spread).expand([*configurations, size])
        drawn = pyro.sample(f"{name}.weights", weights.to_event(len(configurations) + 1))
        return Gaussian.regression(drawn, 0.5 * variance.log())

    # -- capabilities ------------------------------------------------------------------------

    def log_likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: Method = "iwae",
        clamped: Tensor | None = None,
    ) -> Estimate:
        """Log p of what is known of each row, exact: shape ``(N,)``, in nats.

        Args:
            x: rows; NaN where a value is unknown, which is summed out.
            context: none.
            method: each method of models with latents gives the same, exact, number.
            clamped: bool, shape of x: what was set by intervention; the density is then that of the
                rest given that it was set.

        Raises:
            DataError: values that are none of the variables', or a value that was set and is unknown.
            ConfigError: the unknown values of a row need a table too large.
        """
        check_method(method)
        self.check_context(context)
        is_set = self._checked(x, clamped)
        found = (self.rows().log_prob(x, is_set) + self._log_weights()).logsumexp(-1)
        return Estimate.of(found.to(self.logits.dtype), Kind.EXACT)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior of the graph that a row came from, exact: shape ``(N, K)``."""
        self._checked(x)
        return self._log_joint(x).softmax(-1).to(self.logits.dtype)

    @torch.no_grad()
    def condition(
        self, x: Tensor, mask: Tensor | None = None, num: int = 1, *, seed: int | None = None
    ) -> Tensor:
        """Exact draws of what is unknown given what is known.

        Args:
            x: rows, shape ``(N, *event_shape)``; what is unknown may hold anything, NaN too.
            mask: bool, True where known; broadcasts to the shape of ``x``; by default all that is not NaN.
            num: draws a row.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where known.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`; DataError also for a row that is impossible.
        """
        known = ~x.isnan() if mask is None else mask
        filled, known = observed_part(self, x, known, num)
        with forked_rng(seed, self.device):
            drawn, _ = self._draw_rows(torch.where(known, filled, math.nan), num)
        return torch.where(known, filled, self.rows().decode(drawn).to(filled.dtype))

    @torch.no_grad()
    def counterfactual(
        self,
        evidence: Any,
        do: Mapping[str, Any],
        *,
        num: int = 1,
        assumption: Assumption | None = None,
        functions: Mapping[str, NoisyFunction] | None = None,
        seed: int | None = None,
    ) -> Any:
        """What rows would have been, had variables been set; see :mod:`ppgen.models.counterfactuals`.

        Draws of a row are all the same where nothing is left open: one graph, no gaps, continuous variables.

        Args:
            evidence: what happened: rows ``(N, *event_shape)`` or a DataFrame, NaN where unknown, or one row
                as a mapping of what is known by name.
            do: what would have been set, by name.
            num: draws a row.
            assumption: how variables with levels answer: ``"monotone"`` or ``"gumbel-max"``.
            functions: structural equations of variables with levels, by name.
            seed: for draws that repeat; with one seed, different ``do`` meet the same noise.

        Returns:
            Shape ``(num, N, *event_shape)``; for a frame or mapping a DataFrame, indexed by draw and row for
            ``num`` above 1.

        Raises:
            ConfigError: unknown names or levels, nothing set, a variable with levels that follows from what
                is set and of which neither its equation nor an assumption is given.
            ShapeError, DataError: rows that are none, or impossible.
        """
        if not do:
            raise ConfigError("do: expected one or more variables with their values, got none")
        frame = not isinstance(evidence, Tensor)
        x = self._from_codes(self.labels.codes_of(evidence).to(self.device)) if frame else evidence
        x = self.check_data(x, values=False)
        filled, known = observed_part(self, x, ~x.isnan(), num)
        rows, held = self.rows(), self.do(do).rows().held
        with forked_rng(seed, self.device):
            drawn, graphs = self._draw_rows(torch.where(known, filled, math.nan), num)
            behind = abduct(rows, drawn.flatten(0, 1), graphs.flatten(), self.labels, assumption, functions)
        found = behind.predict(held, self.labels).reshape(drawn.shape)
        same = (found == drawn).reshape(num, *x.shape) & known
        answer = torch.where(same, filled, rows.decode(found).to(filled.dtype))
        return indexed(self.to_frame(answer.flatten(0, 1)), num, evidence) if frame else answer

    def query(
        self,
        targets: str | Sequence[str],
        evidence: Mapping[str, Any] | None = None,
        do: Mapping[str, Any] | None = None,
    ) -> Any:
        """The exact p(targets given evidence, do) as a pandas Series over their levels.

        Args:
            targets: names of variables with levels.
            evidence: what was seen, by name.
            do: what is set, by name.

        Raises:
            ConfigError: unknown names or levels, continuous targets, a name given twice, a table too large.
            DataError: evidence of probability 0.
        """
        import pandas

        targets = [targets] if isinstance(targets, str) else list(targets)
        table = self.query_table(targets, evidence, do)
        levels = [self.labels.levels[self.labels.node(name)] or () for name in targets]
        if len(targets) > 1:
            index = pandas.MultiIndex.from_product(levels, names=targets)
        else:
            index = pandas.Index(levels[0], name=targets[0])
        return pandas.Series(table.reshape(-1).detach().cpu().numpy(), index=index, name="probability")

    @torch.no_grad()
    def query_table(
        self,
        targets: Sequence[str],
        evidence: Mapping[str, Any] | None = None,
        do: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """As :meth:`query`, as a tensor with a dimension for each target, float64."""
        if do:
            return self.do(do).query_table(targets, evidence)
        nodes = [self.labels.node(name) for name in targets]
        seen = self.labels.assigned({} if evidence is None else evidence, "evidence")
        held = dict(self.interventions)
        twice = [self.labels.names[v] for v in nodes if v in seen or v in held or nodes.count(v) > 1]
        twice += [self.labels.names[v] for v in seen if v in held]
        if twice or not nodes:
            raise ConfigError(
                "targets: expected one or more names, each once among targets, evidence and do, got "
                f"{twice[:1]} twice"
            )
        if any(not self._cardinalities[v] for v in nodes):
            raise ConfigError(
                "targets: expected variables with levels, got a continuous one; draw it with condition() or "
                "do(...).sample()"
            )
        rows = self.rows()
        x = torch.full((1, len(self._cardinalities)), math.nan, dtype=torch.float64, device=self.device)
        for node, value in seen.items():
            x[0, node] = (
                value if self._cardinalities[node] else (value - rows.centres[node]) * rows.rates[node]
            )
        values, is_set, _ = rows.apply_held(x, None)
        is_set = torch.zeros_like(x, dtype=torch.bool) if is_set is None else is_set
        log_table = rows.network.log_table(values, is_set, nodes)[:, 0]
        weights = self._log_weights().reshape(-1, *(1,) * len(nodes))
        joint = (log_table + weights).logsumexp(0)
        if bool(joint.isneginf().all()):
            raise DataError(
                f"evidence: {self._describe(values[0])} has probability 0, so nothing follows from it; "
                "check it against the tables"
            )
        return joint.reshape(-1).softmax(0).reshape(joint.shape)

    def do(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Self:
        """The network in which variables are set by intervention: their parents have no say in them.

        Names of variables that are no identifiers of Python go into a dict: ``do({"p38 MAPK": "high"})``.

        Returns:
            A copy. Mixture weights stay: setting a value is no evidence about the graph.

        Raises:
            ConfigError: unknown variables or levels, with those that are spelt alike.
        """
        given = self.labels.assigned({} if values is None else values, "do")
        given |= self.labels.assigned(named, "do")
        changed = copy.deepcopy(self)
        changed.interventions = tuple(sorted({**dict(self.interventions), **given}.items()))
        changed.__dict__["config"] = {**self.config, "interventions": changed.interventions}
        return changed

    def to_frame(self, x: Tensor) -> Any:
        """Rows ``(N, *event_shape)`` as a DataFrame with the names of variables and levels."""
        self.check_event(x)
        rows = self.rows()
        flat, codes = x.reshape(len(x), -1).double(), rows.encode(x)
        return self.labels.to_frame(torch.where(rows.discrete, codes, flat))

    def from_frame(self, frame: Any) -> Tensor:
        """Rows of a DataFrame with the variables as columns; missing values become NaN.

        Raises:
            DataError: a column that is not there, or a value that is no level.
        """
        return self._from_codes(self.labels.from_frame(frame).to(self.device))

    # -- from others, and to them ------------------------------------------------------------

    @classmethod
    def from_posterior(
        cls,
        posterior: Any,
        table: Any,
        *,
        interventions: Any = None,
        graphs: Which = "sample",
        num_graphs: int = 100,
        equivalent_sample_size: float = 1.0,
        seed: int | None = None,
    ) -> Self:
        """A mixture over graphs drawn from a posterior, or a point estimate, with parameters from the table.

        Args:
            posterior: a :class:`~ppgen.inference.structure.posterior.GraphPosterior`, or its source.
            table: the rows that it was learnt from, a Table or what
                :func:`~ppgen.inference.structure.reading.read_table` reads; cells that were set by
                intervention say nothing about their variable, and neither do those that an agent probably
                acts on.
            interventions: what was set in each row, where ``table`` does not say it.
            graphs: ``"sample"``, ``"map"`` or ``"median"`` (edges of probability above one half).
            num_graphs: how many to draw; those that are alike become one.
            equivalent_sample_size: strength of the prior on the parameters, in rows.
            seed: for draws that repeat.

        Raises:
            ConfigError: a median graph with a cycle; take ``"map"`` instead.
        """
        table = table_behind(posterior, table, interventions)
        source, agents = graphs_and_agents(posterior, table)
        adjacency, log_weights = graphs_of(source, graphs, num_graphs, seed)
        clamped = disturbed_cells(table, agents)
        made = cls._fitted(adjacency, table, clamped, equivalent_sample_size)
        if made.num_graphs > 1:
            with torch.no_grad():
                made.graph_logits.copy_(log_weights)
        return made

    @classmethod
    def from_graph(cls, graph: Any, data: Any, *, equivalent_sample_size: float = 1.0) -> Self:
        """One graph, with parameters from data.

        Args:
            graph: as for the class.
            data: a :class:`~ppgen.inference.structure.table.Table` (with what was set by intervention), or a
                mapping from names to levels (``None``: continuous) for a network whose parameters are still
                to be learnt.
            equivalent_sample_size: strength of the prior on the parameters, in rows.
        """
        if isinstance(data, Table):
            return cls._fitted(graph, data, disturbed_cells(data, None), equivalent_sample_size)
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"data: expected a Table (structure.read_table makes one) or levels by name, got "
                f"{type(data).__name__}"
            )
        levels = list(data.values())
        return cls(
            (len(levels),),
            graph=graph,
            cardinalities=[0 if one is None else len(one) for one in levels],
            names=list(data),
            levels=levels,
            equivalent_sample_size=equivalent_sample_size,
        ).double()

    @classmethod
    def from_network(cls, network: DiscreteNetwork) -> Self:
        """From tables as plain data."""
        made = cls(
            (network.num_nodes,),
            graph=network.adjacency,
            cardinalities=network.cardinalities,
            names=network.names,
            levels=network.levels,
        ).double()
        with torch.no_grad():
            for node, view in made._views(made.structure):
                parents = network.parents[node]
                order = [parents.index(p) for p in sorted(parents)]
                table = network.tables[node].permute(*order, len(parents))
                view["logits"].copy_(table.reshape(view["logits"].shape).log())
        made.initialised.fill_(True)
        return made

    def to_network(self, graph: int = 0) -> DiscreteNetwork:
        """One graph and its tables as plain data; what is set by :meth:`do` has a table of one certain level.

        Raises:
            ConfigError: continuous variables.
        """
        if not all(self._cardinalities):
            raise ConfigError("network: has continuous variables, and only tables can be handed on")
        held, tables, parents = dict(self.interventions), list[Tensor](), list[tuple[int, ...]]()
        for node, name in enumerate(self.labels.names):
            if node in held:
                tables.append(torch.eye(self._cardinalities[node], dtype=torch.float64)[int(held[node])])
                parents.append(())
            else:
                tables.append(self.table(name, graph).cpu())
                parents.append(self.structure.parents(graph, node))
        levels = tuple(one or () for one in self.labels.levels)
        return DiscreteNetwork(self.labels.names, levels, tuple(parents), tuple(tables))

    @classmethod
    def from_pgmpy(cls, model: Any) -> Self:
        """From a ``pgmpy.models.DiscreteBayesianNetwork``, its tables checked."""
        from ppgen.inference import pgmpy_adapter

        return cls.from_network(pgmpy_adapter.from_pgmpy(model))

    def to_pgmpy(self, graph: int = 0) -> Any:
        """One graph and its tables as a ``pgmpy.models.DiscreteBayesianNetwork``."""
        from ppgen.inference import pgmpy_adapter

        return pgmpy_adapter.to_pgmpy(self.to_network(graph))

    @property
    def adjacency(self) -> Tensor:
        """The graphs, bool, shape (K, n, n); edges into what is set by :meth:`do` are cut."""
        structure = self.structure
        found = torch.zeros(structure.num_graphs, structure.num_nodes, structure.num_nodes, dtype=torch.bool)
        held = {v for v, _ in self.interventions}
        for graph in range(structure.num_graphs):
            for node in set(range(structure.num_nodes)) - held:
                found[graph, list(structure.parents(graph, node)), node] = True
        return found

    def to_networkx(self, graph: int = 0) -> Any:
        """One of the graphs as a networkx DiGraph over the names."""
        import networkx

        names, made = self.labels.names, networkx.DiGraph()
        made.add_nodes_from(names)
        made.add_edges_from((names[i], names[j]) for i, j in self.adjacency[graph].nonzero().tolist())
        return made

    # -- private -----------------------------------------------------------------------------

    def _draw_rows(self, given: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Complete rows, float64 ``(num, N, n)`` in the network's units, and their graphs ``(num, N)``."""
        rows = self.rows()
        values, is_set, _ = rows.apply_held(rows.encode(given), None)
        log_joint = rows.log_prob(given) + self._log_weights()
        impossible = log_joint.logsumexp(-1).isneginf()
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0, 0])
            raise DataError(
                f"x: row {row} has probability 0 ({self._describe(values[row])}), nothing "
                "can be drawn given it"
            )
        graphs = dist.Categorical(logits=log_joint).sample(torch.Size([num]))
        return rows.network.draw_unknown(values, is_set, graphs), graphs

    @classmethod
    def _fitted(cls, graph: Any, table: Table, clamped: Tensor, strength: float) -> Self:
        made = cls(
            (table.num_variables,),
            graph=graph,
            cardinalities=table.cardinalities,
            names=table.names,
            levels=[v.levels for v in table.variables],
            equivalent_sample_size=strength,
        ).to(device=table.device, dtype=torch.float64)
        made.learn(made._from_codes(table.values), clamped=clamped if bool(clamped.any()) else None)
        return made

    def _log_joint(self, x: Tensor) -> Tensor:
        return self.rows().log_prob(x) + self._log_weights()

    def _from_codes(self, codes: Tensor) -> Tensor:
        """Rows of level numbers and numbers in the units of the data as x."""
        rows = self.rows()
        return rows.decode(torch.where(rows.discrete, codes, (codes - rows.centres) * rows.rates))

    def _describe(self, values: Tensor) -> str:
        """What is known of a row, with names and levels."""
        parts = []
        for node, value in enumerate(values.tolist()):
            levels, name = self.labels.levels[node], self.labels.names[node]
            if not math.isnan(value):
                shown = (
                    value / float(self.rates[node]) + float(self.centres[node])
                    if levels is None
                    else levels[int(value)]
                )
                parts.append(f"{name}={shown!r}")
        return ", ".join(parts)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> BayesianNetwork:
    return BayesianNetwork(event_shape, cardinalities=values.levels or 0)


def _example() -> BayesianNetwork:
    chain = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    collider = [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    return BayesianNetwork((3,), graph=torch.tensor([chain, collider], dtype=torch.bool))


FAMILY = Family(
    name="bayesian-network",
    title="Bayesian network (Chow-Liu tree)",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=_example,
    reading="Each pixel follows from one other, along the tree that explains most; the likelihood is exact, "
    "and samples keep neighbours alike but no shape as a whole.",
    fit_options={"epochs": 2},
)
