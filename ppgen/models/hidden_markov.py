r"""A hidden Markov model: a chain of K unseen states, each of which emits one step of a sequence.

.. math::

    p(x, z) = \pi_{z_1} p(x_1 \mid z_1) \prod_{t=2}^T A_{z_{t-1} z_t} \, p(x_t \mid z_t)

.. code-block:: text

    +-- data, n = 1..N ----------------------------------+
    |  z_1 ~ Categorical(pi)                             |
    |  z_t ~ Categorical(A[z_(t-1)]),  t = 2..T          |
    |  x_t ~ emission(z_t),            t = 1..T          |
    +----------------------------------------------------+

The initial state emits first (Rabiner 1989). The states are summed out exactly, so ``model`` has the one site
``x`` with that density and the guide is empty; ``path_model`` is the story as it stands above, with every
state and every step as a site, for Pyro's ``TraceEnum_ELBO``, which gives the same number (and takes a
hundred times as long).

Sequences of different lengths are padded at their end with NaN (:func:`ppgen.datasets.sequences`); NaN before
that is a missing coordinate. Both are summed out exactly in likelihoods, EM, smoothing and draws.

EM (Baum & Welch) maximises the likelihood, or with ``smoothing`` s > 0 the posterior density under
:math:`\mathrm{Dirichlet}(1 + s)` priors on :math:`\pi`, the rows of A, and the emission's own parameters. It
finds a local maximum: start it more than once.

With a context c (class or features), :math:`\log\pi` and :math:`\log A` are shifted by linear functions of c
before they are normalised (an input-driven chain); emissions are shared. There is no closed M-step then, and
the default objective is maximum likelihood by gradients.

Cost: O(N T K^2) for likelihoods and posteriors, plus the emission's, usually O(N T K D). On the CPU in
compiled code, one matrix of transitions or one a sequence. On CUDA, forward, backward, Viterbi and draws of
paths are scans over time in O(log T) rounds, at O(N T K^3), where that is less than a loop waits for.

References: Rabiner, *A tutorial on hidden Markov models*, Proceedings of the IEEE 77, 1989; Baum, Petrie,
Soules & Weiss, Annals of Mathematical Statistics 41, 1970; Scott, *Bayesian methods for hidden Markov
models*, JASA 2002 (draws of paths); Bengio & Frasconi, *An input output HMM architecture*, NIPS 1995.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count, query
from ppgen.datasets.values import Values
from ppgen.distributions import hidden_markov
from ppgen.distributions.hidden_markov import StateObservation, lengths_of
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.inference.objectives.base import Objective
from ppgen.inference.objectives.elbo import ELBO
from ppgen.models.conditioning import observed_part
from ppgen.models.emissions import (
    BernoulliEmission,
    CategoricalEmission,
    Emission,
    EmissionName,
    PoissonEmission,
    log_shares,
)
from ppgen.models.family import Family
from ppgen.models.gaussian_emission import GaussianEmission
from ppgen.nn.context import context_features
from ppgen.ops import chains
from ppgen.ops.random import forked_rng


class HiddenMarkov(GenerativeModel):
    """K states and what they emit.

    Args:
        event_shape: (T,), or (T, D), or any shape whose first dimension is time; an image (1, H, W) is read
            row by row, with T = H.
        num_states: K.
        emission: ``"gaussian"``, ``"mixture"`` (of Gaussians), ``"categorical"``, ``"bernoulli"``,
            ``"poisson"``, or an :class:`~ppgen.models.emissions.Emission` of the user's own.
        levels: number of levels L of categorical emissions, stored as k / (L - 1).
        covariance: of Gaussians, ``"diagonal"`` or ``"full"``.
        num_components: Gaussians a state of ``"mixture"``.
        min_variance: least variance of a Gaussian in any direction, in squared units of the data.
        smoothing: s pseudo-counts at every probability in EM; 0 is maximum likelihood.
        context_dim: number of classes or features of a context; 0 for none.
    """

    density = Kind.EXACT

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_states: int = 4,
        emission: EmissionName | Emission = "gaussian",
        levels: int | None = None,
        covariance: str = "diagonal",
        num_components: int = 2,
        min_variance: float = 1e-6,
        smoothing: float = 0.1,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape)
        check_count(num_states, "num_states")
        if not self.event_shape:
            raise ConfigError("event_shape: expected (T,), or (T, ...) with one step or more, got ()")
        if not smoothing >= 0:
            raise ConfigError(f"smoothing: expected a pseudo-count of 0 or more, got {smoothing}")
        if context_dim < 0:
            raise ConfigError(f"context_dim: expected 0 or more features, got {context_dim}")
        self.num_states, self.smoothing, self.context_dim = num_states, smoothing, context_dim
        is_image = len(self.event_shape) == 3 and self.event_shape[0] == 1
        self.num_steps, *step_shape = self.event_shape[1:] if is_image else self.event_shape
        self.step_shape = torch.Size(step_shape)
        self.num_dims = self.step_shape.numel()
        self.emission: Emission
        if levels is not None and emission != "categorical":
            raise ConfigError(f"levels: categorical emissions have them, got {levels} beside {emission!r}")
        if covariance != "diagonal" and emission not in ("gaussian", "mixture"):
            raise ConfigError(
                f"covariance: Gaussian emissions have one, got {covariance!r} beside {emission!r}"
            )
        if isinstance(emission, Emission):
            self.emission = emission
        elif emission == "categorical":
            if levels is None:
                raise ConfigError("levels: categorical emissions need the number of levels, got None")
            self.emission = CategoricalEmission(num_states, self.num_dims, levels=levels, smoothing=smoothing)
        elif emission == "bernoulli":
            self.emission = BernoulliEmission(num_states, self.num_dims, smoothing=smoothing)
        elif emission == "poisson":
            self.emission = PoissonEmission(num_states, self.num_dims, smoothing=smoothing)
        elif emission in ("gaussian", "mixture"):
            self.emission = GaussianEmission(
                num_states,
                self.num_dims,
                covariance=covariance,
                num_components=num_components if emission == "mixture" else 1,
                min_variance=min_variance,
                smoothing=smoothing,
            )
        else:
            raise ConfigError(
                "emission: expected 'gaussian', 'mixture', 'categorical', 'bernoulli', 'poisson' or an "
                f"Emission, got {emission!r}"
            )
        if (self.emission.num_states, self.emission.num_dims) != (num_states, self.num_dims):
            raise ShapeError(
                f"emission: expected {num_states} states and {self.num_dims} coordinates a step, got "
                f"{self.emission.num_states} and {self.emission.num_dims}"
            )
        self.support: Values = self.emission.values
        self.initial_logits = nn.Parameter(0.1 * torch.randn(num_states))
        # States that last a while: a start that tells them apart from a mixture.
        stay = torch.eye(num_states) + 0.1 * torch.randn(num_states, num_states)
        self.transition_logits = nn.Parameter(stay)
        if context_dim:
            self.initial_shift = nn.Parameter(0.1 * torch.randn(context_dim, num_states))
            self.transition_shift = nn.Parameter(0.1 * torch.randn(context_dim, *stay.shape))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Sequences, with their states summed out."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    def path_model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The same model with sites ``z_1``, ``x_1``, ``z_2``, ...; shape of x (B, T, D) flattened a step."""
        self.check_event(x)
        self.check_context(context)
        flat = None if x is None else self._steps(x)
        with self.shown_to_pyro():
            found = self.distribution(context)
            transitions = Vindex(found.transition_logits)
            steps, z = [], None
            with self.data_plate(x, num, context):
                for t in pyro.markov(range(self.num_steps)):
                    logits = found.initial_logits if z is None else transitions[..., z, :]
                    state = dist.Categorical(logits=logits)
                    z = pyro.sample(f"z_{t + 1}", state, infer={"enumerate": "parallel"})
                    emitted = StateObservation(self.emission, z, self.num_dims)
                    seen = None if flat is None else flat[:, t]
                    steps.append(pyro.sample(f"x_{t + 1}", emitted, obs=seen))
        return torch.stack(steps, -2)

    def bayesian_model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The model with priors in place of parameters, for :class:`ppgen.inference.MCMC`.

        Sites: ``initial`` (K,) and the rows of ``transitions`` (K, K) are uniform over the simplex;
        ``emission.*`` as the emission says. Priors are centred by :meth:`initialise`, or by a fit. Names of
        states are exchangeable (label switching): chains may differ by a permutation of them, R-hat is then
        large, and only what is free of names (likelihoods, sorted parameters) may be averaged over chains.

        Raises:
            CapabilityError: a conditional model, or an emission without priors.
        """
        self.check_event(x)
        if self.context_dim:
            raise CapabilityError(
                "bayesian_model: there are no priors on the shifts by context; leave it out"
            )
        ones = torch.ones_like(self.transition_logits)
        initial = pyro.sample("initial", dist.Dirichlet(ones[0]))
        transitions = pyro.sample("transitions", dist.Dirichlet(ones).to_event(1))
        emitted = self.emission.draw_from_prior()
        found = hidden_markov.HiddenMarkov(
            initial.log(), transitions.log(), emitted, self.event_shape, num_steps=self.num_steps
        )
        with self.data_plate(x, num):
            return pyro.sample("x", found, obs=x)

    # -- capabilities ------------------------------------------------------------------------

    @property
    def initial(self) -> Tensor:
        """Probabilities of the first state, shape (K,); without the shift by context."""
        return self.initial_logits.softmax(-1)

    @property
    def transitions(self) -> Tensor:
        """Probabilities of the next state (columns) by state (rows), (K, K); without the shift by context."""
        return self.transition_logits.softmax(-1)

    @torch.no_grad()
    def set_chain(self, initial: Tensor, transitions: Tensor) -> None:
        """Write the tables of the chain, for models that are known beforehand; zeros forbid.

        Raises:
            ShapeError: tables of other shapes than (K,) and (K, K).
            ConfigError: rows that are not probabilities.
        """
        size = self.num_states
        for name, table, shape in (
            ("initial", initial, (size,)),
            ("transitions", transitions, (size, size)),
        ):
            if tuple(table.shape) != shape:
                raise ShapeError(f"{name}: expected shape {shape}, got {tuple(table.shape)}")
            sums = table.sum(-1)
            if not bool((table >= 0).all()) or not bool(((sums - 1).abs() < 1e-4).all()):
                raise ConfigError(
                    f"{name}: expected probabilities of 0 or more, with rows that sum to 1; the least is "
                    f"{float(table.min()):.4g}, the sums are {sums.flatten().tolist()[:5]}; normalise "
                    "the table"
                )
        self.initial_logits.copy_(initial.to(self.initial_logits).log())
        self.transition_logits.copy_(transitions.to(self.transition_logits).log())

    def distribution(self, context: Tensor | None = None) -> hidden_markov.HiddenMarkov:
        """p(x | context) as a Pyro distribution; batch shape () or, with context, (N,)."""
        initial: Tensor = self.initial_logits
        transitions: Tensor = self.transition_logits
        if context is not None and self.context_dim:
            features = context_features(context, self.context_dim, like=initial)
            initial = initial + features @ self.initial_shift
            transitions = transitions + torch.tensordot(features, self.transition_shift, 1)
        return hidden_markov.HiddenMarkov(
            initial, transitions, self.emission, self.event_shape, num_steps=self.num_steps
        )

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x), the sum over all paths: shape (N,), in nats; differentiable in the parameters."""
        quick = None if torch.is_grad_enabled() or self.context_dim or x.is_meta else self._forward_sum(x)
        found = chains.log_partition(*self.distribution(context).potentials(x)) if quick is None else quick
        return Estimate.of(found, Kind.EXACT)

    @query
    @torch.no_grad()
    def smooth(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """p(z_t = k | x), exact: shape (N, T, K); 0 beyond a sequence's end."""
        found = chains.expectations(*self._potentials(x, context))
        _check_possible(found.log_z)
        return found.nodes

    @query
    @torch.no_grad()
    def filter(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """p(z_t = k | x_1, ..., x_t), exact: shape (N, T, K); 0 beyond a sequence's end."""
        potentials = self._potentials(x, context)
        _check_possible(chains.log_partition(*potentials))
        return chains.filtered(*potentials)

    @query
    @torch.no_grad()
    def viterbi(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The likeliest path, int64 (N, T), -1 beyond the end, and log p(x, path), (N,), in nats."""
        path, weight = chains.viterbi(*self._potentials(x, context))
        _check_possible(weight)
        return path, weight

    @query
    @torch.no_grad()
    def posterior_paths(
        self, x: Tensor, num: int = 1, context: Tensor | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Independent draws of z given x, int64, shape (num, N, T); -1 beyond a sequence's end."""
        check_count(num)
        with forked_rng(seed, self.device):
            return chains.sample_paths(*self._potentials(x, context), num=num)

    @torch.no_grad()
    def condition(
        self, x: Tensor, mask: Tensor, num: int = 1, *, context: Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """Exact draws of missing coordinates and steps given the observed ones.

        Args:
            x: sequences, shape (N, T, ...); what is missing may hold anything. NaN where ``mask`` is True is
                neither used nor drawn.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum.
            context: one row a sequence, where the model is conditional.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, *x.shape)``, equal to ``x`` where observed.

        Raises:
            ShapeError, ConfigError: as in :func:`~ppgen.models.conditioning.observed_part`.
            DataError: observed values that are impossible, or not of the model's.
        """
        filled, mask = observed_part(self, x, mask, num)
        known = filled.masked_fill(~mask, torch.nan)
        with forked_rng(seed, self.device):
            unary, pairwise, _ = self._potentials(known, context)
            states = chains.sample_paths(unary, pairwise, num=num)
            drawn = self.emission.complete(self._steps(known).flatten(0, 1), states.flatten(1))
        return torch.where(mask, filled, drawn.view(num, *x.shape))

    @query
    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        num_steps: int,
        num: int = 1,
        context: Tensor | None = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Draws of how sequences go on after their end, shape ``(num, N, num_steps, ...)``."""
        check_count(num)
        check_count(num_steps, "num_steps")
        with forked_rng(seed, self.device):
            unary, pairwise, lengths = self._potentials(x, context)
            paths = chains.sample_paths(unary, pairwise, lengths, num=num)
            ends = torch.full((len(x),), self.num_steps, device=x.device) if lengths is None else lengths
            last = paths.gather(-1, (ends - 1).expand(num, -1)[..., None])[..., 0]
            found = self.distribution(context)
            states = found.sample_states(torch.Size(last.shape), num_steps, before=last)
            return self.emission.sample(states).reshape(num, len(x), num_steps, *self.step_shape)

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start from data: clusters of steps (categorical: random shares) and how they follow each other.

        Random numbers come from torch's global generator.

        Raises:
            ConfigError: fewer observed steps than states.
            DataError: data that are not of the model's values.
        """
        x = self.check_data(x)
        rows = self._steps(x).flatten(0, 1)
        self.emission.prepare(rows)
        if self.emission.has_m_step:
            shares = self.emission.start(rows)
            self.emission.maximise(rows, shares)
            nodes = shares.view(len(x), self.num_steps, self.num_states)
            follow = torch.einsum("nti,ntj->ij", nodes[:, :-1], nodes[:, 1:])
            # One more of each: a start must forbid nothing.
            self.transition_logits.copy_((follow + 1).log() - (follow + 1).sum(-1, keepdim=True).log())
            first = nodes[:, 0].sum(0) + 1
            self.initial_logits.copy_((first / first.sum()).log())
        self.initialised.fill_(True)

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One iteration of Baum and Welch on all sequences, in place.

        A state that is responsible for less than a thousandth of a step keeps its parameters.

        Raises:
            CapabilityError: a conditional model, or an emission without an M-step.
            DataError: no finite likelihood, for data that are not of the model's values. The parameters stay
                as they were.
        """
        x = self.check_data(x, values=False)
        self.check_context(context)
        if self.context_dim:
            raise CapabilityError(
                "em_step: the shifts by context have no closed M-step; fit by gradients, which is this "
                "model's default objective"
            )
        log_prior = self.log_prior()
        rows = x.reshape(len(x) * self.num_steps, self.num_dims)
        obs, shift, ends = self._linear(x)
        transitions = self.transitions
        found = chains.forward_backward(obs, transitions, ends)
        if found is None:
            shift = torch.zeros_like(shift)
            found = chains.expectations(*self.distribution().potentials(x))
        log_likelihood = found.log_z.sum() + shift.sum()
        if not bool(torch.isfinite(log_likelihood)):
            self.support.check(x, "x")
            return EMStep(log_likelihood, log_prior)
        notes = self.emission.maximise(rows, found.nodes.reshape(len(rows), self.num_states))
        self.initial_logits.copy_(log_shares(found.nodes[:, 0].sum(0) + self.smoothing, self.initial_logits))
        self.transition_logits.copy_(log_shares(found.edges + self.smoothing, self.transition_logits))
        return EMStep(log_likelihood, log_prior, notes)

    def log_prior(self) -> Tensor:
        """Log prior density of the parameters, up to a constant, in nats; 0 without smoothing."""
        if self.smoothing == 0:
            return self.initial_logits.new_zeros(()) + self.emission.log_prior()
        chain = self.initial_logits.log_softmax(-1).sum() + self.transition_logits.log_softmax(-1).sum()
        return self.smoothing * chain + self.emission.log_prior()

    def default_objective(self) -> Objective:
        """EM; gradients of the likelihood for conditional models and emissions without an M-step."""
        return ELBO() if self.context_dim or not self.emission.has_m_step else ExpectationMaximisation()

    def check_context_values(self, context: Tensor) -> None:
        """Raise :class:`~ppgen.errors.DataError` unless a context is finite: only steps may be missing."""
        if not context.is_meta and not bool(context.isfinite().all()):
            raise DataError(
                "context: expected finite numbers, got NaN or infinite ones; steps of x may be missing, a "
                "context may not"
            )

    # -- private -----------------------------------------------------------------------------

    def _steps(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.num_steps, self.num_dims)

    def _linear(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Densities (N, T, K), at t = 1 times pi; the logarithms that they lack, (N,); lengths (N,)."""
        densities, shift = self.emission.potentials(x.reshape(len(x) * self.num_steps, self.num_dims))
        obs = densities.view(len(x), self.num_steps, self.num_states)
        obs[:, 0] *= self.initial
        lengths = lengths_of(self._steps(x))
        ends = torch.full((len(x),), self.num_steps, device=x.device) if lengths is None else lengths
        return obs, shift.expand(len(obs.view(-1, self.num_states))).view(len(x), -1).sum(1), ends

    def _forward_sum(self, x: Tensor) -> Tensor | None:
        """Log p(x) from densities that are no logarithms, where that is possible."""
        obs, shift, ends = self._linear(x)
        found = chains.forward_sum(obs, self.transitions, ends)
        return None if found is None else found + shift

    def _potentials(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.distribution(context).potentials(x)


def _check_possible(log_z: Tensor) -> None:
    possible = torch.isfinite(log_z)
    if not bool(possible.all()):
        bad = int((~possible).nonzero()[0])
        raise DataError(
            f"x: sequence {bad} has probability 0 under the model, so that nothing follows from it; "
            "smoothing > 0 in EM keeps what was never seen from being impossible"
        )


def _build(event_shape: torch.Size, values: Values, num_data: int) -> HiddenMarkov:
    emission: EmissionName = "bernoulli" if values.kind == "binary" else "gaussian"
    floor = 1e-6 if values.levels is None else 1 / (12 * values.levels**2)
    return HiddenMarkov(event_shape, num_states=10, emission=emission, min_variance=floor)


FAMILY = Family(
    name="hmm",
    group="sequence",
    title="Hidden Markov model",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: HiddenMarkov((3,), num_states=2, emission="categorical", levels=3),
    conditional_example=lambda: HiddenMarkov(
        (6,), num_states=3, emission="categorical", levels=3, context_dim=3
    ),
    reading="States follow each other and each emits one step; the likelihood is exact, and what lies "
    "further apart than the states remember is independent.",
    fit_options={"epochs": 100, "patience": 20},
    surveyed=False,
)
