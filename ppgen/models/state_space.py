r"""A linear-Gaussian state-space model: a hidden Markov model whose state is a vector.

.. math::

    z_1 \sim N(m_0, P_0), \qquad z_t = A z_{t-1} + N(0, Q), \qquad x_t = C z_t + d + N(0, \mathrm{diag}(r))

.. code-block:: text

    +-- data, n = 1..N --------------------------------+
    |  z_1 ~ N(m0, P0)                                 |
    |  z_t ~ N(A z_(t-1), Q),          t = 2..T        |
    |  x_t ~ N(C z_t + d, diag(r)),    t = 1..T        |
    +--------------------------------------------------+

The states are integrated out exactly, so ``model`` has the one site ``x`` and the guide is empty. The initial
state emits first. (Pyro's ``GaussianHMM`` has a transition before the first step and knows no missing values;
the likelihood here is that of a Kalman filter of our own, and ``gaussian_hmm`` gives the same model in Pyro's
class.) NaN is a missing coordinate, at the end of a sequence the padding of :func:`ppgen.datasets.sequences`;
both are integrated out exactly in likelihoods, EM, smoothing and draws.

EM (Shumway & Stoffer) maximises the likelihood, with no variance below ``min_variance`` in any direction.
Parameters are known up to a change of basis of z.

Cost: O(T (L^3 + D L^2)) once for all sequences where nothing is missing, else for each sequence, plus
O(N T L (L + D)); in O(log T) rounds of batched operations, see :mod:`ppgen.ops.kalman`.

References: Shumway & Stoffer, Journal of Time Series Analysis 3, 1982; Ghahramani & Hinton, *Parameter
estimation for linear dynamical systems*, Toronto 1996.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count, query
from ppgen.datasets.values import Values
from ppgen.distributions.hidden_markov import lengths_of
from ppgen.distributions.state_space import LinearGaussianSequence
from ppgen.errors import ConfigError, DataError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.ops.gaussian import floored_tril
from ppgen.ops.kalman import Filtered, LinearGaussian, Smoothed, kalman_filter, sample_paths, smooth
from ppgen.ops.random import forked_rng

# A variance of exactly the floor has no finite logarithm above it; this is as near as it gets.
_ABOVE_FLOOR = 1e-6


class LinearGaussianStateSpace(GenerativeModel):
    """Sequences of real vectors that follow a linear dynamical system.

    Args:
        event_shape: (T,) or (T, D); an image (1, H, W) is read row by row, with T = H.
        latent_dim: L, coordinates of the state.
        min_variance: least variance of any noise in any direction, in squared units of the data; for the
            noise of the states in those of the states, which start with variances of about one.
    """

    density = Kind.EXACT

    def __init__(
        self, event_shape: tuple[int, ...] | torch.Size, *, latent_dim: int = 2, min_variance: float = 1e-6
    ) -> None:
        super().__init__(event_shape, support=Values("real", missing=True))
        check_count(latent_dim, "latent_dim")
        if not self.event_shape:
            raise ConfigError("event_shape: expected (T,), or (T, D) with one step or more, got ()")
        if not min_variance > 0:
            raise ConfigError(f"min_variance: expected a positive number, got {min_variance}")
        self.latent_dim, self.min_variance = latent_dim, min_variance
        is_image = len(self.event_shape) == 3 and self.event_shape[0] == 1
        self.num_steps, *step_shape = self.event_shape[1:] if is_image else self.event_shape
        self.step_shape = torch.Size(step_shape)
        self.num_dims = self.step_shape.numel()
        below = latent_dim * (latent_dim - 1) // 2
        self.initial_loc = nn.Parameter(torch.zeros(latent_dim))
        self.initial_log_scales = nn.Parameter(torch.zeros(latent_dim))
        self.initial_below = nn.Parameter(torch.zeros(below))
        self.transition = nn.Parameter(0.9 * torch.eye(latent_dim))
        self.transition_log_scales = nn.Parameter(torch.full((latent_dim,), -0.5))
        self.transition_below = nn.Parameter(torch.zeros(below))
        self.loading = nn.Parameter(torch.randn(self.num_dims, latent_dim))
        self.offset = nn.Parameter(torch.zeros(self.num_dims))
        self.noise_log_scales = nn.Parameter(torch.full((self.num_dims,), -0.5))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Sequences, with their states integrated out."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(), obs=x)

    # -- capabilities ------------------------------------------------------------------------

    @property
    def chain(self) -> LinearGaussian:
        """The parameters as matrices."""
        return LinearGaussian(
            self.initial_loc,
            self._tril(self.initial_log_scales, self.initial_below),
            self.transition,
            self._tril(self.transition_log_scales, self.transition_below),
            self.loading,
            self.offset,
            self._scales(self.noise_log_scales),
        )

    def distribution(self) -> LinearGaussianSequence:
        """p(x) as a Pyro distribution."""
        return LinearGaussianSequence(self.chain, self.event_shape, num_steps=self.num_steps)

    def gaussian_hmm(self) -> dist.GaussianHMM:
        """The same model as Pyro's class, event shape (T, D), for sequences without missing values."""
        chain, steps, dim = self.chain, self.num_steps, self.latent_dim
        # Pyro's first transition is from a state before: one that forgets it gives the initial state.
        onward = torch.cat(
            [torch.zeros_like(chain.transition)[None], chain.transition.T.expand(steps - 1, -1, -1)]
        )
        locs = torch.cat([chain.initial_loc[None], chain.initial_loc.new_zeros(steps - 1, dim)])
        trils = torch.cat([chain.initial_tril[None], chain.transition_tril.expand(steps - 1, -1, -1)])
        unit = torch.eye(dim, dtype=locs.dtype, device=locs.device)
        return dist.GaussianHMM(
            dist.MultivariateNormal(torch.zeros_like(chain.initial_loc), unit),
            onward,
            dist.MultivariateNormal(locs, scale_tril=trils),
            chain.loading.T,
            dist.Normal(chain.offset, chain.noise_scale).expand([steps, self.num_dims]).to_event(1),
            duration=steps,
        )

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x), exact: shape (N,), in nats; differentiable."""
        return Estimate.of(self._filter(x).log_prob.to(self.loading.dtype), Kind.EXACT)

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Posterior means of the states, flattened: shape (N, T L)."""
        return self.smooth(x)[0].flatten(1)

    @query
    @torch.no_grad()
    def filter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, T, L) and covariances (N, T, L, L) of z_t given x_1..x_t."""
        return self._moments(self._filter(x))

    @query
    @torch.no_grad()
    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, T, L) and covariances (N, T, L, L) of z_t given all of x."""
        return self._moments(smooth(self._filter(x), self.chain))

    @query
    @torch.no_grad()
    def posterior_paths(self, x: Tensor, num: int = 1, *, seed: int | None = None) -> Tensor:
        """Independent draws of z given x, shape (num, N, T, L)."""
        check_count(num)
        with forked_rng(seed, self.device):
            return sample_paths(self._filter(x), self.chain, num).to(self.loading.dtype)

    @torch.no_grad()
    def condition(self, x: Tensor, mask: Tensor, num: int = 1, *, seed: int | None = None) -> Tensor:
        """Exact draws of missing coordinates and steps given the observed ones.

        Args:
            x: sequences, shape (N, T, ...); what is missing may hold anything. NaN where ``mask`` is True is
                neither used nor drawn.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, *x.shape)``, equal to ``x`` where observed.
        """
        filled, mask = observed_part(self, x, mask, num)
        with forked_rng(seed, self.device):
            found = self._filter(filled.masked_fill(~mask, torch.nan))
            drawn = self.distribution().emit(sample_paths(found, self.chain, num).to(filled.dtype))
        return torch.where(mask, filled, drawn.reshape(num, *x.shape))

    @query
    @torch.no_grad()
    def predict(self, x: Tensor, num_steps: int, num: int = 1, *, seed: int | None = None) -> Tensor:
        """Draws of how sequences go on after their end, shape ``(num, N, num_steps, ...)``."""
        check_count(num)
        check_count(num_steps, "num_steps")
        lengths = lengths_of(self._steps(x))
        with forked_rng(seed, self.device):
            found = self._filter(x)
            ends = torch.full((len(x),), self.num_steps, device=x.device) if lengths is None else lengths
            rows = torch.arange(len(x), device=x.device)
            covariances = found.covariances.expand(len(x), -1, -1, -1)[rows, ends - 1]
            last = dist.MultivariateNormal(found.means[rows, ends - 1], covariances).sample((num,))
            return self._go_on(last.to(self.loading.dtype), num_steps)

    @query
    @torch.no_grad()
    def forecast(self, x: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """What follows the ends of sequences: exact moments of what :meth:`predict` draws.

        Returns:
            Means (N, num_steps, ...) and, for each step, covariances of its D coordinates
            (N, num_steps, D, D), the noise of observation included.
        """
        check_count(num_steps, "num_steps")
        steps, chain = self._steps(x), self.chain.double()
        lengths = lengths_of(steps)
        ends = torch.full((len(x),), self.num_steps, device=x.device) if lengths is None else lengths
        found = self._filter(nn.functional.pad(steps, (0, 0, 0, num_steps), value=torch.nan))
        rows = torch.arange(len(x), device=x.device)[:, None]
        ahead = ends[:, None] + torch.arange(num_steps, device=x.device)
        means = found.means[rows, ahead] @ chain.loading.T + chain.offset
        covariances = chain.loading @ found.covariances[rows, ahead] @ chain.loading.T
        covariances = covariances + chain.noise_scale.square().diag()
        means = means.reshape(len(x), num_steps, *self.step_shape)
        return means.to(self.loading.dtype), covariances.to(self.loading.dtype)

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start from data: principal components of the steps, and a regression of each on the one before.

        Raises:
            DataError: data that are not real numbers, or of which nothing is observed.
        """
        x = self.check_data(x)
        steps = self._steps(x).double()
        known = ~steps.isnan()
        count = known.sum((0, 1)).clamp_min(1)
        mean = torch.where(known, steps, 0.0).sum((0, 1)) / count
        centred = torch.where(known, steps - mean, 0.0)
        variance = (centred.square().sum((0, 1)) / count).clamp_min(self.min_variance)
        live = known.any(-1)
        if not bool(live.any()):
            raise DataError("x: nothing is observed, all is NaN")
        _, singular, axes = torch.linalg.svd(centred[live], full_matrices=False)
        rank = min(self.latent_dim, len(singular))
        scale = (singular[:rank] / live.sum().sqrt()).clamp_min(self.min_variance**0.5)
        loading = 0.1 * variance.sqrt()[:, None] * torch.randn_like(self.loading).double()
        loading[:, :rank] = axes[:rank].T * scale
        # States of unit variance; what lies beyond the data's rank starts as noise.
        states = torch.randn(*steps.shape[:2], self.latent_dim, dtype=steps.dtype, device=x.device)
        states[..., :rank] = centred @ axes[:rank].T / scale
        pairs = live[:, 1:] & live[:, :-1]
        before, after = states[:, :-1][pairs], states[:, 1:][pairs]
        ridge = torch.eye(self.latent_dim, dtype=steps.dtype, device=x.device) * max(1, len(before)) * 1e-3
        transition = torch.linalg.solve(before.T @ before + ridge, before.T @ after).T
        spread = (after - before @ transition.T).square().mean(0) if len(after) else torch.ones_like(scale)
        self.transition.copy_(transition)
        self.transition_log_scales.copy_(self._log_scales(spread.clamp_min(0.05)))
        self.transition_below.zero_()
        first = live[:, 0].sum().clamp_min(1)
        self.initial_loc.copy_((states[:, 0] * live[:, 0, None]).sum(0) / first)
        self.initial_log_scales.zero_()
        self.initial_below.zero_()
        self.loading.copy_(loading)
        self.offset.copy_(mean)
        left = (variance - loading.square().sum(-1)).clamp_min(0.05 * variance)
        self.noise_log_scales.copy_(self._log_scales(left))
        self.initialised.fill_(True)

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One EM iteration on all sequences, in place.

        Raises:
            DataError: no finite likelihood, for data that are not the model's. The parameters stay as they
                were.
        """
        x = self.check_data(x, values=False)
        chain, steps = self.chain, self._steps(x).double()
        found = kalman_filter(steps, chain)
        log_likelihood, log_prior = found.log_prob.sum(), self.log_prior()
        if not bool(torch.isfinite(log_likelihood)):
            self.support.check(x, "x")
            return EMStep(log_likelihood, log_prior)
        posterior = smooth(found, chain)
        lengths = lengths_of(steps)
        ends = torch.full((len(x),), self.num_steps, device=x.device) if lengths is None else lengths
        self._maximise_chain(posterior, ends)
        self._maximise_loading(posterior, steps)
        return EMStep(log_likelihood, log_prior)

    def log_prior(self) -> Tensor:
        """0: maximum likelihood."""
        return self.initial_loc.new_zeros(())

    def default_objective(self) -> ExpectationMaximisation:
        """EM."""
        return ExpectationMaximisation()

    # -- private -----------------------------------------------------------------------------

    def _steps(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.num_steps, self.num_dims)

    def _filter(self, x: Tensor) -> Filtered:
        found = kalman_filter(x.reshape(len(x), -1, self.num_dims), self.chain)
        lost = 0 if x.is_meta else int((~found.log_prob.isfinite()).sum())
        if lost:
            raise DataError(
                f"x: {lost} of {len(x)} sequences have no finite density, with values of up to "
                f"{float(x.detach().nan_to_num().abs().max()):.3g}: float64 does not hold the model's "
                "covariances; rescale the data to about one, and fit again"
            )
        return found

    def _moments(self, found: Filtered | Smoothed) -> tuple[Tensor, Tensor]:
        size = len(found.means)
        covariances = found.covariances.to(self.loading.dtype).expand(size, -1, -1, -1)
        return found.means.to(self.loading.dtype), covariances

    def _go_on(self, last: Tensor, num_steps: int) -> Tensor:
        """Draws of the steps after states (S, N, L)."""
        found = self.distribution()
        states = found.sample_states(torch.Size(last.shape[:-1]), num_steps, before=last)
        return found.emit(states).reshape(*last.shape[:-1], num_steps, *self.step_shape)

    def _maximise_chain(self, posterior: Smoothed, ends: Tensor) -> None:
        """The best initial state and dynamics; steps beyond the end of a sequence do not count."""
        mean, size = posterior.means, len(posterior.means)
        covariance = posterior.covariances.expand(size, -1, -1, -1)
        lagged = posterior.lagged.expand(size, -1, -1, -1)
        first = mean[:, 0]
        self.initial_loc.copy_(first.mean(0))
        spread = torch.cov(first.T, correction=0).reshape(self.latent_dim, self.latent_dim)
        self._write("initial", covariance[:, 0].mean(0) + spread)
        live = (torch.arange(1, self.num_steps, device=mean.device) < ends[:, None]).to(mean.dtype)
        total = live.sum()
        if not bool(total > 0):
            return
        before, after = mean[:, :-1], mean[:, 1:]

        def expected(left: Tensor, right: Tensor, shared: Tensor) -> Tensor:
            products = torch.einsum("nt,nti,ntj->ij", live, left, right)
            return products + torch.einsum("nt,ntij->ij", live, shared)

        past = expected(before, before, covariance[:, :-1])
        cross = expected(after, before, lagged)
        now = expected(after, after, covariance[:, 1:])
        transition = torch.linalg.solve(past, cross.T).T
        left = now - transition @ cross.T
        self.transition.copy_(transition)
        self._write("transition", (left + left.T) / (2 * total))

    def _maximise_loading(self, posterior: Smoothed, steps: Tensor) -> None:
        """The best regression of each coordinate on the states where it is observed."""
        mean, size = posterior.means, len(posterior.means)
        covariance = posterior.covariances.expand(size, -1, -1, -1)
        unknown = steps.isnan()
        known = (~unknown).to(mean.dtype)
        filled = steps.masked_fill(unknown, 0.0)
        extended = torch.cat([mean, torch.ones_like(mean[..., :1])], -1)
        wide = nn.functional.pad(covariance, (0, 1, 0, 1))
        second = extended[..., :, None] * extended[..., None, :] + wide
        gram = torch.einsum("ntd,ntij->dij", known, second)
        cross = torch.einsum("ntd,nti->di", filled, extended)
        mass = known.sum((0, 1))
        seen = mass > self.latent_dim
        identity = torch.eye(self.latent_dim + 1, dtype=mean.dtype, device=mean.device)
        solved = torch.linalg.solve(torch.where(seen[:, None, None], gram, identity), cross)
        square = filled.square().sum((0, 1))
        left = square - 2 * (solved * cross).sum(-1) + torch.einsum("di,dij,dj->d", solved, gram, solved)
        variance = left / mass.clamp_min(1)
        self.loading.copy_(torch.where(seen[:, None], solved[:, :-1], self.loading))
        self.offset.copy_(torch.where(seen, solved[:, -1], self.offset))
        scales = self._log_scales(variance)
        self.noise_log_scales.copy_(torch.where(seen, scales, self.noise_log_scales))

    def _write(self, name: str, covariance: Tensor) -> None:
        tril = floored_tril(covariance[None], self.min_variance * (1 + _ABOVE_FLOOR))[0][0]
        rows, columns = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=tril.device)
        getattr(self, f"{name}_log_scales").copy_(self._log_scales(tril.diagonal().square()))
        getattr(self, f"{name}_below").copy_(tril[rows, columns])

    def _log_scales(self, variances: Tensor) -> Tensor:
        excess = (variances - self.min_variance).clamp_min(_ABOVE_FLOOR * self.min_variance)
        return excess.log() / 2

    def _scales(self, log_scales: Tensor) -> Tensor:
        # Variances of data of 1e20 are beyond float32, standard deviations are not.
        return torch.hypot(log_scales.exp(), log_scales.new_tensor(self.min_variance**0.5))

    def _tril(self, log_scales: Tensor, below: Tensor) -> Tensor:
        scales = self._scales(log_scales)
        rows, columns = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=scales.device)
        return torch.diag(scales).index_put((rows, columns), below)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> LinearGaussianStateSpace:
    floor = 1e-6 if values.levels is None else 1 / (12 * values.levels**2)
    return LinearGaussianStateSpace(event_shape, latent_dim=4, min_variance=floor)


FAMILY = Family(
    name="state-space",
    group="sequence",
    title="Linear-Gaussian state-space model",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: LinearGaussianStateSpace((3, 2), latent_dim=2),
    reading="A linear dynamical system with Gaussian noise: smooth paths, exact likelihoods, and nothing "
    "that a Gaussian of all steps would not have.",
    fit_options={"epochs": 50, "patience": 20},
    surveyed=False,
)
