r"""DiBS: a posterior over DAGs by gradients (Lorch, Rothfuss, Schoelkopf & Krause 2021)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import ConfigError, SamplingWarning
from ppgen.inference.annealing.path_ends import fresh_seed
from ppgen.inference.structure.gradient.dibs_model import (
    DiBSModel,
    MechanismName,
    check_positive,
    check_whole,
    dibs_model,
)
from ppgen.inference.structure.gradient.dibs_stein import Estimator, Particles, stein
from ppgen.inference.structure.gradient.dibs_svi import mean_field
from ppgen.inference.structure.gradient.latent_graph import HardGraphs, hard_graphs
from ppgen.inference.structure.gradient.mechanisms import Linear
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.warned import warn


@dataclass(frozen=True)
class DiBS:
    r"""A posterior over DAGs of continuous variables, by gradients on latent graphs.

    The model is :func:`~ppgen.inference.structure.gradient.dibs_model.dibs_model`: latents Z score the
    edges, mechanisms follow the edges, the data follow the mechanisms. Particles of Z move by Stein
    variational gradients while the edges harden and cycles become costly; the graph of a particle has the
    edges of positive score, and the weakest edge of a cycle that is left is taken out.

    How to use it::

        posterior = structure.learn(frame, method=structure.DiBS(num_particles=50), interventions=mask)
        posterior = structure.learn(frame, method="dibs", mechanism="network")

    What to know:

    * It approximates: particles sit on modes, and the mass between them is not seen. Where there are at
      most 20 variables and relations are linear, ``method="exact"`` with BGe has the posterior itself; with
      more, ``"order_mcmc"`` says by R-hat whether to trust it. DiBS is for mechanisms that have no
      closed form, and for a model that goes on into other Pyro programs.
    * With ``weights="posterior"`` (DiBS+) different graphs are weighted by their unnormalised posterior,
      with ``"equal"`` (DiBS) each particle counts the same.
    * Perfect interventions: cells that were set are left out of their own variable's likelihood.

    Attributes:
        inference: ``"stein"``, or ``"svi"``: a mean-field normal guide, fitted by Pyro's ``Trace_ELBO``,
            from which particles are drawn.
        mechanism: ``"linear"``, or ``"network"``: one hidden layer for each variable.
        marginal: whether parameters are integrated out in closed form, for linear mechanisms under Stein
            inference; ``None``: where that can be done.
        estimator: of Stein gradients: ``"score"``, on hard graphs, or ``"reparam"``, on relaxed ones.
        num_particles: graphs.
        num_steps: steps of Adam.
        num_draws: graphs drawn from each particle in each step.
        learning_rate: of Adam.
        alpha: inverse temperature of the edges at the end.
        beta: weight of closed walks at the end.
        temperature: of relaxed graphs, for ``"reparam"`` and ``"svi"``; ``None``: the matrix of edge
            probabilities in place of draws.
        num_latent: dimension of the latents; the number of variables where ``None``.
        num_hidden: units of each network.
        parameter_scale: prior standard deviation of parameters; of linear coefficients in units of the
            noise.
        noise_scale: standard deviation of all noises in units of the table, where known; else each is learnt.
        standardise: divide each column by its standard deviation; not with ``noise_scale``.
        weights: ``"posterior"`` or ``"equal"``; ``None``: ``"posterior"`` for linear mechanisms, where
            the evidence of a graph is exact, else ``"equal"``.
        bandwidths: of the kernel on latents and on parameters; ``None`` for the median rule.
    """

    inference: Literal["stein", "svi"] = "stein"
    mechanism: MechanismName = "linear"
    marginal: bool | None = None
    estimator: Estimator = "score"
    num_particles: int = 32
    num_steps: int = 600
    num_draws: int = 32
    learning_rate: float = 0.05
    alpha: float = 50.0
    beta: float = 1000.0
    temperature: float | None = 0.3
    num_latent: int | None = None
    num_hidden: int = 8
    parameter_scale: float = 1.0
    noise_scale: float | None = None
    standardise: bool = True
    weights: Literal["posterior", "equal"] | None = None
    bandwidths: tuple[float | None, float | None] = (None, None)
    name: str = field(default="dibs", init=False)

    def __post_init__(self) -> None:
        for option, value, known in (
            ("inference", self.inference, ("stein", "svi")),
            ("mechanism", self.mechanism, ("linear", "network")),
            ("estimator", self.estimator, ("score", "reparam")),
            ("weights", self.weights, ("posterior", "equal", None)),
        ):
            if value not in known:
                raise ConfigError(f"{option}: expected one of {', '.join(map(repr, known))}, got {value!r}")
        if self.marginal and (self.mechanism != "linear" or self.inference != "stein"):
            raise ConfigError(
                "marginal: only the parameters of mechanism='linear' can be integrated out, with "
                f"inference='stein'; got {self.mechanism!r} and {self.inference!r}"
            )
        check_whole(
            num_particles=self.num_particles,
            num_steps=self.num_steps,
            num_draws=self.num_draws,
            num_latent=self.num_latent,
            num_hidden=self.num_hidden,
        )
        h_z, h_theta = self.bandwidths
        check_positive(
            learning_rate=self.learning_rate,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            parameter_scale=self.parameter_scale,
            noise_scale=self.noise_scale,
            bandwidths=h_z,
        )
        check_positive(bandwidths=h_theta)

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn.

        Ctrl-C ends inference after the step under way; the graphs of the particles so far come back, with
        a warning.

        Raises:
            ConfigError: a table with categorical columns, interventions that are not perfect, a prior that
                prefers numbers of parents or orders, or constraints that contradict each other.
            DataError: fewer than two rows; a constant column that is to be standardised.
            SamplingError: a gradient or bound that is not finite.
        """
        start = time.perf_counter()
        model = self.model(problem)
        seed = fresh_seed(seed)
        particles = self._infer(model, seed, problem.progress)
        graphs = hard_graphs(particles.z, model.edges)
        source, num_unique = self._source(model, particles, graphs)
        repaired = int(graphs.repaired.sum())
        doubts = []
        if not particles.complete:
            doubts.append(
                f"DiBS was interrupted after {particles.steps} of {self.num_steps} steps: graphs are those "
                "of particles that had not settled"
            )
        if repaired:
            doubts.append(
                f"{repaired} of {self.num_particles} particles had a cycle, whose weakest edge was taken "
                "out; a larger beta or more steps may leave fewer"
            )
        if num_unique == 1 < self.num_particles:
            doubts.append("all particles have the same graph: probabilities of 0 and 1 may be too sure")
        for doubt in doubts:
            warn(doubt, SamplingWarning)
        attributes = {
            "seconds": time.perf_counter() - start,
            "steps": particles.steps,
            "num_particles": self.num_particles,
            "num_different_graphs": num_unique,
            "num_repaired": repaired,
            "interrupted": not particles.complete,
            "seed": seed,
        }
        return Learned(source=source, warnings=tuple(doubts), attributes=attributes)

    def model(self, problem: Problem) -> DiBSModel:
        """The Pyro model of a problem, with these options."""
        relaxed = self.inference == "svi" or self.estimator == "reparam"
        return dibs_model(
            problem.table,
            mechanism=self.mechanism,
            prior=problem.prior,
            constraints=problem.constraints,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature if relaxed else None,
            num_latent=self.num_latent,
            num_hidden=self.num_hidden,
            parameter_scale=self.parameter_scale,
            noise_scale=self.noise_scale,
            standardise=self.standardise,
        )

    def _infer(self, model: DiBSModel, seed: int, progress: bool) -> Particles:
        if self.inference == "svi":
            return mean_field(
                model,
                num_particles=self.num_particles,
                num_steps=self.num_steps,
                learning_rate=self.learning_rate,
                seed=seed,
                progress=progress,
            )
        return stein(
            model,
            num_particles=self.num_particles,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            marginal=self.mechanism == "linear" if self.marginal is None else self.marginal,
            estimator=self.estimator,
            num_draws=self.num_draws,
            bandwidths=self.bandwidths,
            generator=torch.Generator(model.mechanism.values.device).manual_seed(seed),
            progress=progress,
        )

    def _source(
        self, model: DiBSModel, particles: Particles, graphs: HardGraphs
    ) -> tuple[SampledSource, int]:
        """The graphs with their weights, and how many different ones there are."""
        exact = isinstance(model.mechanism, Linear)
        unique, place = graphs.adjacency.unique(dim=0, return_inverse=True)
        log_joint = log_evidence(model, unique) if exact else _log_joint(model, particles, graphs.adjacency)
        posterior = self.weights == "posterior" or (self.weights is None and exact)
        if posterior and exact:  # the evidence of a graph, however many particles found it
            return SampledSource(unique, log_joint, log_scores=log_joint), len(unique)
        if exact:
            return SampledSource(graphs.adjacency, log_scores=log_joint[place]), len(unique)
        log_weights = log_joint if posterior else None
        return SampledSource(graphs.adjacency, log_weights, log_scores=log_joint), len(unique)


def log_evidence(model: DiBSModel, graphs: Tensor) -> Tensor:
    r""":math:`\log p(D, G)` of hard graphs, shape (S,), up to a constant, for linear mechanisms."""
    if not isinstance(model.mechanism, Linear):
        raise ConfigError("mechanism: only linear mechanisms have an evidence in closed form")
    hard = graphs.double()
    return (model.mechanism.log_evidence_of_draws(hard, model.noise) + model.edges.log_prior(hard)).sum(-1)


def _log_joint(model: DiBSModel, particles: Particles, graphs: Tensor) -> Tensor:
    """Log density of data, graphs and the parameters that matter under them, shape (S,)."""
    mechanism, theta, variance = model.mechanism, particles.theta, particles.variance
    if theta is None:
        raise ConfigError("marginal: the parameters of networks cannot be integrated out")
    if variance is None:
        variance = theta.new_full((len(theta), mechanism.num_nodes), (model.noise.fixed or 1.0) ** 2)
    hard = graphs.double()
    scale = mechanism.prior_scale(variance)
    prior = torch.distributions.Normal(0.0, scale, validate_args=False).log_prob(theta)
    by_node = model.log_likelihood(hard, theta, variance) + model.edges.log_prior(hard)
    return by_node.sum(-1) + (prior * mechanism.used(hard)).sum((-2, -1)) + model.noise.log_prior(variance)
