r"""DiBS as a Pyro model: a latent graph, mechanisms that follow it, and the data (Lorch et al. 2021).

.. math:: Z \sim p(Z) \propto \mathcal N(Z; 0, I / k)\, e^{-\beta h(\sigma(\alpha U V^\top))}, \qquad
    \Theta, v \sim p(\Theta, v), \qquad
    x_{rj} \sim \mathcal N\big(f_j(x_r; G_\alpha(Z), \Theta),\, v_j\big)

with :math:`h` zero where the graph has no cycle. As :math:`\alpha` and :math:`\beta` grow, the soft graph
:math:`G_\alpha(Z)` becomes a DAG. Cells that an experimenter set are not part of the likelihood of their
variable, and enter that of its children as they are.

How to use it with Pyro::

    program = dibs_model(table, alpha=20.0, beta=100.0)
    guide = AutoNormal(program)
    svi = SVI(program, guide, Adam({"lr": 0.01}), Trace_ELBO())          # pyro.infer
    mcmc = MCMC(NUTS(program), 1000, num_chains=8)                       # ppgen.inference or pyro.infer
"""

from __future__ import annotations

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.gradient.checks import check_table, spread
from ppgen.inference.structure.gradient.latent_graph import Edges, cyclicity, soft_graph
from ppgen.inference.structure.gradient.mechanisms import Linear, Mechanism, Network, Noise
from ppgen.inference.structure.prior import Constraints, GraphPrior, compile_prior
from ppgen.inference.structure.table import Table

MechanismName = Literal["linear", "network"]


class DiBSModel:
    """A Pyro program with sites ``z``, ``variance`` (unless fixed), ``noise`` (if relaxed), ``theta``, ``x``.

    Made by :func:`dibs_model`.

    Attributes:
        mechanism: f, with the table in it.
        noise: the prior of v.
        edges: what is known of the edges.
        num_latent: k.
        alpha: inverse temperature of the edges, unless a call says otherwise.
        beta: weight of h, unless a call says otherwise.
        temperature: of a relaxed draw of the graph; ``None`` for edge probabilities as the graph.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        noise: Noise,
        edges: Edges,
        num_latent: int,
        alpha: float,
        beta: float,
        temperature: float | None,
    ) -> None:
        self.mechanism, self.noise, self.edges, self.num_latent = mechanism, noise, edges, num_latent
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def __call__(self, alpha: float | None = None, beta: float | None = None) -> None:
        """The model, at another temperature or weight of cycles if given."""
        alpha, beta = self.alpha if alpha is None else alpha, self.beta if beta is None else beta
        values, n = self.mechanism.values, self.mechanism.num_nodes
        zeros, ones = values.new_zeros, values.new_ones

        z = pyro.sample("z", dist.Normal(zeros(n, self.num_latent, 2), self.latent_scale).to_event(3))
        pyro.factor("acyclic", -beta * cyclicity(z, self.edges, alpha))
        noise = None
        if self.temperature is not None:
            noise = pyro.sample("noise", dist.Logistic(zeros(n, n), ones(n, n)).to_event(2))
        graph = soft_graph(z, self.edges, alpha, noise, self.temperature or 1.0)
        pyro.factor("edges", self.edges.log_prior(graph).sum())

        if self.noise.fixed is None:
            a, b = self.noise.concentration * ones(n), self.noise.rate * ones(n)
            variance = pyro.sample("variance", dist.InverseGamma(a, b).to_event(1))
        else:
            variance = self.noise.fixed**2 * ones(n)
        scale = self.mechanism.prior_scale(variance)
        theta = pyro.sample("theta", dist.Normal(torch.zeros_like(scale), scale).to_event(2))

        with pyro.plate("data", len(values), dim=-1):
            law = dist.Normal(self.mechanism.mean(graph, theta), variance.sqrt())
            pyro.sample("x", law.mask(self.mechanism.free).to_event(1), obs=values)

    @property
    def latent_scale(self) -> float:
        """Prior standard deviation of the entries of Z."""
        return 1 / math.sqrt(self.num_latent)

    def log_prior_z(self, z: Tensor, alpha: float, beta: float) -> Tensor:
        """Log density of ``z`` with its factor for cycles, shape (...), for (..., n, k, 2)."""
        normal = -0.5 * (z / self.latent_scale).square() - math.log(
            self.latent_scale * math.sqrt(2 * math.pi)
        )
        return normal.sum((-3, -2, -1)) - beta * cyclicity(z, self.edges, alpha)

    def log_parameters(self, theta: Tensor, variance: Tensor) -> Tensor:
        """Log prior density of ``theta`` and ``variance``, shape (...)."""
        scale = self.mechanism.prior_scale(variance)
        normal = -0.5 * (theta / scale).square() - (scale * math.sqrt(2 * math.pi)).log()
        return normal.sum((-2, -1)) + self.noise.log_prior(variance)

    def log_likelihood(self, graph: Tensor, theta: Tensor, variance: Tensor) -> Tensor:
        """Log density of each variable's cells that were not set, shape (..., n), for (..., n, n)."""
        squares = self.mechanism.squares(graph, theta)
        return -(self.mechanism.counts * (2 * math.pi * variance).log() + squares / variance) / 2

    def graphs(self, z: Tensor, alpha: float, noise: Tensor | None = None) -> Tensor:
        """Soft graphs, shape (..., n, n)."""
        return soft_graph(z, self.edges, alpha, noise, self.temperature or 1.0)


def dibs_model(
    table: Table,
    *,
    mechanism: MechanismName = "linear",
    prior: GraphPrior | None = None,
    constraints: Constraints | None = None,
    alpha: float = 20.0,
    beta: float = 100.0,
    temperature: float | None = None,
    num_latent: int | None = None,
    num_hidden: int = 8,
    parameter_scale: float = 1.0,
    noise_scale: float | None = None,
    standardise: bool = True,
) -> DiBSModel:
    r"""A Pyro model of a table whose graph is unknown.

    Args:
        table: continuous, with perfect interventions or none.
        mechanism: ``"linear"`` or ``"network"`` (one hidden layer for each variable).
        prior: over graphs: ``edges`` is taken; a preference for numbers of parents is not.
        constraints: hold in every graph; ``max_parents`` only where graphs are made hard.
        alpha: inverse temperature of the edges.
        beta: weight of closed walks.
        temperature: the graph is a relaxed draw at this temperature, with a site ``noise``; ``None``: it
            is the matrix of edge probabilities.
        num_latent: k; n where ``None``, with which every graph can be written.
        num_hidden: units of each network.
        parameter_scale: prior standard deviation of the parameters; of linear coefficients in units of
            the noise of the effect.
        noise_scale: standard deviation of all noises, in units of the table; ``None`` to learn each.
            One known scale for all makes graphs identifiable that are not otherwise (Peters &
            Buehlmann 2014).
        standardise: divide columns by their standard deviation; not with ``noise_scale``.

    Raises:
        ConfigError: a table that does not fit, options out of range, contradictory constraints, or a
            prior that DiBS has no place for.
        DataError: fewer than two rows, or a constant column that is to be standardised.
    """
    check_table(table, "DiBS")
    if mechanism not in ("linear", "network"):
        raise ConfigError(f"mechanism: expected 'linear' or 'network', got {mechanism!r}")
    check_positive(
        alpha=alpha,
        beta=beta,
        temperature=temperature,
        parameter_scale=parameter_scale,
        noise_scale=noise_scale,
    )
    check_whole(num_latent=num_latent, num_hidden=num_hidden)
    prior = GraphPrior() if prior is None else prior
    if prior.kind != "uniform" or prior.fan_in is not None:
        raise ConfigError(
            "prior: DiBS takes a uniform prior with edge probabilities, not an order-modular one nor fan_in; "
            "use GraphPrior(edges=...), Constraints(max_parents=...), or method='order_mcmc'"
        )
    known = compile_prior(prior, Constraints() if constraints is None else constraints, table.names)
    values = table.values.double()
    if standardise and noise_scale is None:
        values = values / spread(table)
    found: Mechanism
    if mechanism == "linear":
        found = Linear(values, table.clamped, parameter_scale)
    else:
        found = Network(values, table.clamped, num_hidden, parameter_scale)
    return DiBSModel(
        found,
        Noise(noise_scale),
        Edges.of(known, values.device),
        table.num_variables if num_latent is None else num_latent,
        alpha,
        beta,
        temperature,
    )


def check_positive(**options: float | None) -> None:
    """Raise where an option that is given is not a finite number above 0."""
    for name, value in options.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}: expected a finite number above 0, got {value!r}")


def check_whole(**options: int | None) -> None:
    """Raise where an option that is given is not a whole number above 0."""
    for name, value in options.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}: expected a whole number above 0, got {value!r}")
