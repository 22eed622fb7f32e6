r"""A kernel density estimate: a kernel of one width at each training datum (Rosenblatt 1956; Parzen 1962).

.. math::

    p(x, k) = \frac1N \, \frac{1}{\prod_d h_d} K\Big(\frac{x - c_k}{h}\Big), \qquad k = 1, \dots, N

.. code-block:: text

    +-- data ------------------------------------+
    |  k ~ one of the N centres, evenly          |
    |  x = c_k + h * noise from the kernel       |
    +--------------------------------------------+

The centres are summed out, so ``model`` has the one site ``x`` with the exact density, and the guide is
empty; ``centre_model`` is the story with ``k`` as a site. Kernels are spherical after division by the
bandwidths, not products of kernels of one coordinate (the Gaussian is both); see
:mod:`ppgen.distributions.kernel_mixture`.

Fitting is one computation: the training data become the centres, and unless ``bandwidth`` is given, it
maximises the cross-validated likelihood

.. math::

    \sum_n \log \frac{1}{\lvert S_n \rvert} \sum_{m \in S_n} \frac{1}{h^D} K\Big(\frac{x_n - x_m}{h}\Big),

with :math:`S_n` all data but n (leave-one-out, exact), or all data of other folds (Habbema, Hermans & van den
Broek 1974). Exact copies of :math:`x_n` are not in :math:`S_n` either: with them the maximum would be at h =
0. Compact kernels must reach from each datum to another one, so that a single outlier widens them: the
Gaussian is the safer choice.

A density costs O(N D) a datum and a fit O(N^2 D), both in chunks whose memory does not grow with the number
of data. ``condition`` is exact for all kernels.

References: Rosenblatt, Annals of Mathematical Statistics 27, 1956; Parzen, ibid. 33, 1962; Habbema, Hermans &
van den Broek, *A stepwise discriminant analysis program using density estimation*, Compstat 1974; Silverman,
*Density Estimation for Statistics and Data Analysis*, 1986.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.distributions.kernel_mixture import (
    KERNELS,
    KernelMixture,
    KernelName,
    kernel_noise,
    log_kernel_sums,
    log_normaliser,
    log_slice,
)
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.ops.chunks import rows_per_chunk
from ppgen.ops.distances import distance_chunks
from ppgen.ops.random import forked_rng

# Bandwidths tried at first, as powers of two times a rule of thumb; then, again and again, some between the
# neighbours of the best, until they are within a hundredth of each other.
_COARSE = [e / 2 for e in range(-8, 5)]
_REFINEMENTS, _FINE = 3, 9
_MOST_SHIFTS = 20


class KernelDensity(GenerativeModel):
    """Kernels centred on data.

    Args:
        event_shape: shape of one datum.
        kernel: ``"gaussian"``, ``"epanechnikov"`` or ``"uniform"``.
        bandwidth: h, in the units of the data: a number, or one a coordinate. By default fitting finds one
            number by cross-validation. For compact kernels it is the radius, beyond which they are 0.
        scaled: multiply h by each coordinate's standard deviation in the training data, which fitting
            measures.
        folds: number of folds of the cross-validation; leave-one-out by default.
        num_centres: number of centres before the model is fitted, random ones. Training that is to be resumed
            from a checkpoint wants the number of training data here.
    """

    density = Kind.EXACT
    centres: Tensor
    scales: Tensor
    cross_validated: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        kernel: KernelName = "gaussian",
        bandwidth: float | Sequence[float] | None = None,
        scaled: bool = False,
        folds: int | None = None,
        num_centres: int = 1,
    ) -> None:
        super().__init__(event_shape)
        num_dims = self.event_shape.numel()
        if kernel not in KERNELS:
            raise ConfigError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
        widths = torch.as_tensor(1.0 if bandwidth is None else bandwidth, dtype=torch.float64).reshape(-1)
        if not bool(((widths > 0) & widths.isfinite()).all()):
            raise ConfigError(
                f"bandwidth: expected positive numbers, got {bandwidth}; at 0 the density is infinite at the "
                "centres and 0 elsewhere. Leave it out to have it found by cross-validation"
            )
        if len(widths) not in (1, num_dims):
            raise ShapeError(f"bandwidth: expected one number or {num_dims}, got {len(widths)}")
        if folds is not None and folds < 2:
            raise ConfigError(f"folds: expected 2 or more, got {folds}; leave it out for leave-one-out")
        if num_centres < 1:
            raise ConfigError(f"num_centres: expected a positive integer, got {num_centres}")
        self.kernel, self.given, self.scaled, self.folds = kernel, bandwidth is not None, scaled, folds
        self.log_bandwidth = nn.Parameter(widths.log().to(torch.get_default_dtype()))
        self.register_buffer("centres", torch.randn(num_centres, num_dims))
        self.register_buffer("scales", torch.ones(num_dims))
        self.register_buffer("cross_validated", torch.tensor(0.0))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Data, with the centres that they are near to summed out."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(), obs=x)

    def centre_model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The same model with the centre as a site: pick ``k`` (enumerated), then x near it."""
        self.check_event(x)
        self.check_context(context)
        with self.shown_to_pyro(), self.data_plate(x, num, context):
            evenly = dist.Categorical(logits=self.centres.new_zeros(len(self.centres)))
            k = pyro.sample("k", evenly, infer={"enumerate": "parallel"})
            near = KernelMixture(self.centres[k][..., None, :], self.bandwidth, self.kernel, self.event_shape)
            return pyro.sample("x", near, obs=x)

    # -- capabilities ------------------------------------------------------------------------

    @property
    def bandwidth(self) -> Tensor:
        """Bandwidth of each coordinate, shape (D,), in the units of the data."""
        return self.log_bandwidth.exp() * self.scales

    def distribution(self) -> KernelMixture:
        """p(x) as a Pyro distribution."""
        return KernelMixture(self.centres, self.bandwidth, self.kernel, self.event_shape)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x), exact: shape (N,), in nats; ``-inf`` where no kernel reaches. Differentiable."""
        self.check_event(x)
        self.check_context(context)
        return Estimate.of(self.distribution().log_prob(x), Kind.EXACT)

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient of log p(x) by x, shaped as x; for uniform kernels 0 almost everywhere."""
        self.check_event(x)
        self.check_context(context)
        if self.kernel == "uniform":
            return torch.zeros_like(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.distribution().log_prob(x).sum(), x)[0]

    @torch.no_grad()
    def condition(self, x: Tensor, mask: Tensor, num: int = 1, *, seed: int | None = None) -> Tensor:
        """Exact draws of the missing coordinates given the observed ones, for every kernel.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a datum.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            DataError: an observed part that no kernel reaches.
            ShapeError, ConfigError: as in :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        rows = rows_per_chunk(self.centres.numel(), x.device)
        parts = zip(filled.flatten(1).split(rows), mask.flatten(1).split(rows), strict=True)
        with forked_rng(seed, self.device):
            drawn = torch.cat([self._draw_missing(part, given, num) for part, given in parts], 1)
        return torch.where(mask, filled, drawn.view(num, *x.shape))

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit: take training data ``(N, *event_shape)`` as centres and find the bandwidth.

        Random numbers (of the folds alone) come from torch's global generator.

        Raises:
            DataError: data that are not finite, or without two different ones to find a bandwidth from.
            ConfigError: fewer data than folds.
        """
        self.check_event(x)
        self.check_context(context)
        self.support.check(x, "x")
        if self.folds is not None and len(x) < self.folds:
            raise ConfigError(f"folds: {self.folds} folds need as many data or more, got {len(x)}")
        self.centres = x.flatten(1).to(self.centres).clone()
        if self.scaled:
            scales = self.centres.std(0, correction=0)
            # A coordinate that is constant has no scale of its own; the others say what is small.
            self.scales.copy_(scales.where(scales > 0, scales.mean()))
        self._check_spread()
        num = len(x)
        fold = torch.arange(num, device=x.device)
        if self.folds is not None:
            fold = (torch.randperm(num) % self.folds).to(x.device)
        if not self.given:
            self.log_bandwidth.fill_(self._best_bandwidth(fold))
        self.cross_validated.copy_(
            self._cross_validate(self.log_bandwidth.new_zeros(1), fold, self.bandwidth)[0]
        )
        self.initialised.fill_(True)

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """Fit to all data, unless :meth:`initialise` just has; the likelihood is the cross-validated one.

        So each call of :func:`ppgen.fit` starts afresh, on data of its own.
        """
        if not bool(self.initialised):
            self.initialise(x, context)
        self.initialised.fill_(False)
        found = self.cross_validated * len(x)
        if bool(found.isfinite()):
            return EMStep(found, self.log_prior())
        note = (
            "unreached: kernels of the bandwidth given do not reach from each datum to another one, so that "
            "the cross-validated likelihood is 0; take a larger one, or leave it to be found"
        )
        return EMStep(torch.full_like(found, torch.finfo(found.dtype).min / 2), self.log_prior(), (note,))

    def log_prior(self) -> Tensor:
        """There is none: 0."""
        return self.log_bandwidth.new_zeros(())

    def default_objective(self) -> ExpectationMaximisation:
        """One step on all data, which is the fit."""
        return ExpectationMaximisation(epochs=1)

    # -- private -----------------------------------------------------------------------------

    def _draw_missing(self, x: Tensor, mask: Tensor, num: int) -> Tensor:
        """Draws (num, n, D) of flat data given where ``mask`` is True."""
        known = mask.to(x.dtype)
        residuals = (x[:, None] - self.centres) / self.bandwidth * known[:, None]
        squares = residuals.square().sum(-1)
        weights = log_slice(self.kernel, squares, (1 - known).sum(-1, keepdim=True))
        reached = (weights > -torch.inf).any(-1)
        if not bool(reached.all()):
            bad = int((~reached).nonzero()[0])
            raise DataError(
                f"x: what is observed of a datum (row {bad} of its chunk) has density 0, no kernel reaches "
                "it; take a larger bandwidth, or the Gaussian kernel"
            )
        k = dist.Categorical(logits=weights).sample((num,))
        left = 1 - squares.expand(num, -1, -1).gather(-1, k[..., None])[..., 0]
        free = (1 - known).expand(num, *x.shape)
        return self.centres[k] + self.bandwidth * kernel_noise(self.kernel, free, left.clamp_min(0).sqrt())

    def _check_spread(self) -> None:
        """Raise unless there are two different data, where a bandwidth is to be found or a scale was."""
        if (self.given and not self.scaled) or not bool((self.centres == self.centres[0]).all()):
            return
        raise DataError(
            f"x: expected two different data or more, got {len(self.centres)} that are all the same; they "
            "say nothing about a bandwidth: give one"
        )

    def _best_bandwidth(self, fold: Tensor) -> float:
        """Log of the bandwidth h that is best in cross-validation."""
        num, num_dims = self.centres.shape
        spread = (self.centres / self.scales).var(0, correction=0).mean().sqrt()
        # Scott's rule; a compact kernel of radius 1 has this standard deviation in each coordinate.
        radius = {"gaussian": 1.0, "epanechnikov": num_dims + 4.0, "uniform": num_dims + 2.0}[self.kernel]
        thumb = float(spread.log()) - math.log(num) / (num_dims + 4) + math.log(radius) / 2
        options = [thumb + e * math.log(2) for e in _COARSE]
        values = self._values(options, fold)
        for _ in range(_MOST_SHIFTS):
            best = values.index(max(values))
            upwards = best == len(options) - 1 or values[best] == -math.inf
            if not upwards and best > 0:
                break
            step = options[1] - options[0]
            more = [
                options[-1] + step * i if upwards else options[0] - step * i for i in range(1, len(_COARSE))
            ]
            joined = sorted(zip(options + more, values + self._values(more, fold), strict=True))
            options, values = [list(column) for column in zip(*joined, strict=True)]
        for _ in range(_REFINEMENTS):
            best = values.index(max(values))
            low, high = options[max(best - 1, 0)], options[min(best + 1, len(options) - 1)]
            options = [low + (high - low) * i / (_FINE - 1) for i in range(_FINE)]
            values = self._values(options, fold)
        return options[values.index(max(values))]

    def _values(self, log_bandwidths: list[float], fold: Tensor) -> list[float]:
        found: list[float] = self._cross_validate(
            self.centres.new_tensor(log_bandwidths), fold, self.scales
        ).tolist()
        return found

    def _cross_validate(self, log_factors: Tensor, fold: Tensor, widths: Tensor) -> Tensor:
        """Mean log density of centres under those of other folds, (G,), at factors (G,) times widths."""
        points = self.centres / widths
        total, live = log_factors.new_zeros(len(log_factors), dtype=torch.float64), 0
        factors = log_factors.exp().tolist()
        for rows, distances in distance_chunks(points, points):
            # Exact copies are left out with the datum itself.
            keep = (fold[rows, None] != fold) & (distances > 0)
            counts = keep.sum(-1)
            some = counts > 0  # else all others are copies, which say nothing about a bandwidth
            live += int(some.sum())
            squares = distances[some].square_().masked_fill_(~keep[some], torch.inf)
            sums = log_kernel_sums(self.kernel, squares, factors)
            total += (sums - counts[some].to(sums).log()).double().sum(-1)
        num_dims = points.shape[1]
        constant = log_normaliser(self.kernel, num_dims) + widths.log().sum()
        return (total / max(live, 1)).to(log_factors) - num_dims * log_factors - constant

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for as many centres as are there."""
        found = state_dict.get(f"{prefix}centres")
        if isinstance(found, Tensor) and found.shape[1:] == self.centres.shape[1:]:
            self.centres = self.centres.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


FAMILY = Family(
    name="kernel-density",
    group="mixture",
    title="Kernel density estimate",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: KernelDensity(event_shape, scaled=True, num_centres=num_data),
    example=lambda: KernelDensity((2,), num_centres=6),
    reading="Samples are training data with noise of one width on every coordinate, so they look real and "
    "coverage says little; the likelihood on test data is what shows how little that generalises.",
    fit_options={"epochs": 1},
)
