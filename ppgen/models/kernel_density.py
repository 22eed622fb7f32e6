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
Gaussian is the safer choice. But it has thin tails as well, and an outlier tens of bandwidths away from all
others rules the sum, and widens the kernels of all (Schuster & Gregory 1981): drop it, or give ``bandwidth``.

A density costs O(N D) a datum and a fit O(N^2 D), both in chunks whose memory does not grow with the number
of data. The search for a bandwidth begins with the cross-validated densities of about a thousand of the data,
and is finished with those of all. ``condition`` is exact for all kernels.

References: Rosenblatt, Annals of Mathematical Statistics 27, 1956; Parzen, ibid. 33, 1962; Habbema, Hermans &
van den Broek, *A stepwise discriminant analysis program using density estimation*, Compstat 1974; Silverman,
*Density Estimation for Statistics and Data Analysis*, 1986; Schuster & Gregory, *On the nonconsistency of
maximum likelihood nonparametric density estimators*, Computer Science and Statistics 13, 1981.
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
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.ops.chunks import rows_per_chunk
from ppgen.ops.distances import distance_chunks
from ppgen.ops.random import forked_rng

# Powers of two of a rule of thumb that are tried first, and, near the best of a part of the data, next; then,
# again and again, points that cut the intervals beside the best into _PARTS, until a hundredth or two apart.
_COARSE, _NEAR = [e / 2 for e in range(-8, 5)], [-1 / 8, 0.0, 1 / 8]
_PARTS = 4
_MOST_SHIFTS, _SHIFT = 20, 4
# Data whose densities are looked at in the first search.
_FEW = 1024


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
        num_centres: number of centres, random ones, before the model is fitted; without any it has no density
            until then. Training that is to be resumed from a checkpoint wants the number of training data.
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
        num_centres: int = 0,
    ) -> None:
        super().__init__(event_shape)
        num_dims = self.event_shape.numel()
        if kernel not in KERNELS:
            raise ConfigError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
        try:
            widths = torch.as_tensor(1.0 if bandwidth is None else bandwidth, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError):
            widths = torch.tensor([torch.nan])
        if not bool(((widths > 0) & widths.isfinite()).all()):
            raise ConfigError(
                f"bandwidth: expected positive numbers, got {bandwidth!r}; at 0 the density is infinite at "
                "the centres and 0 elsewhere. Leave it out to have it found by cross-validation"
            )
        if len(widths) not in (1, num_dims):
            raise ShapeError(f"bandwidth: expected one number or {num_dims}, got {len(widths)}")
        if folds is not None and folds < 2:
            raise ConfigError(f"folds: expected 2 or more, got {folds}; leave it out for leave-one-out")
        if num_centres < 0:
            raise ConfigError(f"num_centres: expected 0 or more, got {num_centres}")
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
        self._check_fitted()
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
        """p(x) as a Pyro distribution.

        Raises:
            CapabilityError: there are no centres yet.
        """
        self._check_fitted()
        return KernelMixture(self.centres, self.bandwidth, self.kernel, self.event_shape)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x), exact: shape (N,), in nats; ``-inf`` where no kernel reaches. Differentiable."""
        return Estimate.of(self.distribution().log_prob(x), Kind.EXACT)

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient of log p(x) by x, shaped as x; for uniform kernels 0 almost everywhere."""
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
        self._check_fitted()
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
        x = self.check_data(x)
        self.check_context(context)
        if self.folds is not None and len(x) < self.folds:
            raise ConfigError(f"folds: {self.folds} folds need as many data or more, got {len(x)}")
        self.centres = x.flatten(1).clone()
        if self.scaled:
            scales = _deviations(self.centres)
            # A coordinate that is constant has no scale of its own; the others say what is small.
            self.scales.copy_(scales.where(scales > 0, scales.mean()))
        self._check_spread()
        fold = None if self.folds is None else (torch.randperm(len(x)) % self.folds).to(x.device)
        if self.given:
            found = self._values([0.0], self.bandwidth, fold, torch.arange(len(x)))[0]
        else:
            log_bandwidth, found = self._best_bandwidth(fold)
            self.log_bandwidth.fill_(log_bandwidth)
        self.cross_validated.fill_(found)
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
        return ExpectationMaximisation()

    # -- private -----------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        if not len(self.centres):
            raise CapabilityError(
                "KernelDensity: has no centres yet, and so no density; fit it first, ppgen.fit(model, data)"
            )

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

    def _best_bandwidth(self, fold: Tensor | None) -> tuple[float, float]:
        """Log of the bandwidth h that is best in cross-validation, and what it reaches there."""
        num, num_dims = self.centres.shape
        deviations = _deviations(self.centres / self.scales)
        unit = deviations.amax()
        unit = unit * (deviations / unit).square().mean().sqrt()
        # Scott's rule; a compact kernel of radius 1 has this standard deviation in each coordinate.
        radius = {"gaussian": 1.0, "epanechnikov": num_dims + 4.0, "uniform": num_dims + 2.0}[self.kernel]
        start = math.log(radius) / 2 - math.log(num) / (num_dims + 4)
        widths, every = self.scales * unit, torch.arange(num)
        if num > _FEW:
            few = every[:: -(-num // _FEW)]
            start, _ = self._climb([start + e * math.log(2) for e in _COARSE], 1, widths, fold, few)
            best, value = self._climb([start + e * math.log(2) for e in _NEAR], 1, widths, fold, every)
        else:
            best, value = self._climb([start + e * math.log(2) for e in _COARSE], 3, widths, fold, every)
        return best + float(unit.log()), value

    def _climb(
        self,
        options: list[float],
        refinements: int,
        widths: Tensor,
        fold: Tensor | None,
        rows: Tensor,
    ) -> tuple[float, float]:
        """The log factor on ``widths`` that is best, searched from evenly spaced ones, and its value."""
        values, step = self._values(options, widths, fold, rows), options[1] - options[0]
        shifts, cuts = range(1, _SHIFT + 1), range(1, _PARTS)
        for _ in range(_MOST_SHIFTS + refinements):
            best = values.index(max(values))
            if best == len(options) - 1 or values[best] == -math.inf:
                more = [options[-1] + step * i for i in shifts]
            elif best == 0:
                more = [options[0] - step * i for i in shifts]
            elif refinements == 0:
                break
            else:
                low, middle, high = options[best - 1 : best + 2]
                more = [low + (middle - low) * i / _PARTS for i in cuts]
                more += [middle + (high - middle) * i / _PARTS for i in cuts]
                refinements -= 1
            values += self._values(more, widths, fold, rows)
            joined = sorted(zip(options + more, values, strict=True))
            options, values = [list(column) for column in zip(*joined, strict=True)]
        best = values.index(max(values))
        return options[best], values[best]

    def _values(
        self, log_factors: list[float], widths: Tensor, fold: Tensor | None, rows: Tensor
    ) -> list[float]:
        """Mean log density of some centres (rows) under those of other folds, at factors times widths."""
        points, factors = self.centres / widths, [math.exp(f) for f in log_factors]
        total, live = points.new_zeros(len(factors), dtype=torch.float64), 0
        rows = rows.to(points.device)
        for part, distances in distance_chunks(points[rows], points):
            # The datum itself, and exact copies with it.
            left_out = distances == 0
            if fold is not None:
                left_out |= fold[rows[part], None] == fold
            squares = distances.square_().masked_fill_(left_out, torch.inf)
            counts = len(points) - left_out.sum(-1)
            some = counts > 0  # else all others are copies, which say nothing about a bandwidth
            if not bool(some.all()):
                squares, counts = squares[some], counts[some]
            live += len(counts)
            sums = log_kernel_sums(self.kernel, squares, factors)
            total += (sums - counts.to(sums).log()).double().sum(-1)
        num_dims = points.shape[1]
        constant = log_normaliser(self.kernel, num_dims) + float(widths.detach().double().log().sum())
        means = (total / max(live, 1)).tolist()
        return [mean - num_dims * f - constant for mean, f in zip(means, log_factors, strict=True)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for as many centres as are there."""
        found = state_dict.get(f"{prefix}centres")
        if isinstance(found, Tensor) and found.shape[1:] == self.centres.shape[1:]:
            self.centres = self.centres.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _deviations(x: Tensor) -> Tensor:
    """Standard deviations of columns, also where their squares are too small or large for the type."""
    unit = x.abs().amax(0).clamp_min(torch.finfo(x.dtype).tiny)
    return unit * (x / unit).std(0, correction=0)


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
