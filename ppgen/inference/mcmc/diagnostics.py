r"""Have the chains converged, and how many independent draws are they worth?

Rank-normalised split R-hat, bulk and tail effective sample size, Monte-Carlo standard errors and
the energy's Bayesian fraction of missing information, of draws ``(C, S, ...)`` from C chains. Each
coordinate is treated on its own; everything is computed in float64 on the device of the draws, a few
coordinates at a time. The numbers are those of ArviZ.

Each chain is cut into halves (the middle one of an odd number of draws falls away), M = 2C chains of n
draws. With W the mean variance within a half and B/n the variance of the halves' means,

.. math::

    \hat R = \sqrt{\frac{B / W + n - 1}{n}}, \qquad
    \mathrm{ESS} = \frac{M n}{-1 + 2 \sum_k \hat P_k + \hat\rho_{2 k^*}},

where :math:`\hat P_k = \hat\rho_{2k} + \hat\rho_{2k+1}` are sums of neighbouring autocorrelations,
taken while positive and made monotone.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021 (*Rank-normalization, folding, and
localization: an improved R-hat*); Geyer 1992; Betancourt 2016 (E-BFMI).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError

#: Fewer draws a chain than this have no R-hat and no effective sample size: NaN.
MIN_DRAWS = 4

# Numbers in one chunk of coordinates: a few MiB, which stay in a processor's cache.
_CHUNK = 2**19
# Pairs of autocovariances computed one by one, before the Fourier transform that gives all of them:
# of chains that mix, the first few are enough.
_PAIRS_BY_HAND = 16
# A range below this is rounding: the coordinate is constant.
_CONSTANT = 1e-15
_TAILS = (0.05, 0.95)

EssMethod = Literal["bulk", "tail", "mean", "sd"]
McseMethod = Literal["mean", "sd"]


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger one of bulk and tail (folded).

    Args:
        draws: ``(C, S, ...)``.

    Returns:
        Shape ``(...)``, float64; NaN for one chain, fewer than 4 draws, draws that are not finite, and
        coordinates that are constant.
    """
    return _each(draws, lambda x: {"rhat": x.rhat})["rhat"]


def ess(draws: Tensor, method: EssMethod = "bulk") -> Tensor:
    """Effective sample size of all chains together.

    Args:
        draws: ``(C, S, ...)``.
        method: of the bulk (of the normalised ranks), of the tails (the smaller one of the two events
            below the 5% and the 95% quantile), of the mean or of the standard deviation.

    Returns:
        Shape ``(...)``, float64; NaN for fewer than 4 draws or draws that are not finite. A constant
        coordinate counts as independent draws, which estimate it without error.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in ("bulk", "tail", "mean", "sd"):
        raise ConfigError(f"method: expected 'bulk', 'tail', 'mean' or 'sd', got {method!r}")
    return _each(draws, lambda x: {method: getattr(x, f"ess_{method}")})[method]


def mcse(draws: Tensor, method: McseMethod = "mean") -> Tensor:
    """Monte-Carlo standard error of the posterior's mean or standard deviation.

    Args:
        draws: ``(C, S, ...)``.
        method: "mean" or "sd".

    Returns:
        Shape ``(...)``, float64, in units of the draws; NaN as for :func:`ess`.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in ("mean", "sd"):
        raise ConfigError(f"method: expected 'mean' or 'sd', got {method!r}")
    return _each(draws, lambda x: {method: getattr(x, f"mcse_{method}")})[method]


def bfmi(energy: Tensor) -> Tensor:
    """Bayesian fraction of missing information of each chain.

    How far fresh momenta move the energy, against how far it has to move: below 0.3, the sampler
    walks through the levels of energy too slowly to explore the tails.

    Args:
        energy: total energies (C, S) at the ends of the transitions, in nats.

    Returns:
        Shape (C,), float64; NaN for chains of constant energy or with fewer than 2 draws.
    """
    energy = energy.double()
    if energy.shape[1] < 2:
        return energy.new_full((len(energy),), torch.nan)
    return energy.diff(dim=1).square().mean(1) / energy.var(1)


def describe(draws: Tensor, prob: float = 0.9) -> dict[str, Tensor]:
    """Everything that a summary wants, with one sort of each coordinate.

    Args:
        draws: ``(C, S, ...)``.
        prob: mass of the interval of highest density, over (0, 1).

    Returns:
        ``mean, sd, median, low, high, mcse_mean, ess_bulk, ess_tail, r_hat``, each ``(...)``, float64.
        ``low`` and ``high`` end the narrowest interval that holds ``prob`` of the draws. And
        ``chain_location`` and ``chain_spread``, each ``(..., C)``: mean and standard deviation of the normal
        scores of the ranks of each chain's draws among all draws; about 0 and 1 where chains agree.

    Raises:
        ConfigError: ``prob`` is no probability between 0 and 1.
    """
    if not 0 < prob < 1:
        raise ConfigError(f"prob: expected a number between 0 and 1, got {prob}")

    def read(x: _Coordinates) -> dict[str, Tensor]:
        low, high = x.interval(prob)
        return {
            "mean": x.mean,
            "sd": x.sd,
            "median": x.quantile(0.5),
            "low": low,
            "high": high,
            "mcse_mean": x.mcse_mean,
            "ess_bulk": x.ess_bulk,
            "ess_tail": x.ess_tail,
            "r_hat": x.rhat,
            "chain_location": x.chain_location,
            "chain_spread": x.chain_spread,
        }

    return _each(draws, read)


def _each(draws: Tensor, read: Callable[[_Coordinates], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Apply ``read`` to chunks of coordinates and put its answers together."""
    if draws.ndim < 2:
        raise ShapeError(f"draws: expected shape (C, S, ...), chains by draws, got {tuple(draws.shape)}")
    if not draws.shape[0] or not draws.shape[1]:
        raise ShapeError(f"draws: expected at least one chain and one draw, got {tuple(draws.shape)}")
    shape = draws.shape[2:]
    if not shape.numel():
        one = read(_Coordinates(torch.zeros(1, *draws.shape[1::-1], dtype=torch.float64)))
        return {name: value[:0].reshape((*shape, *value.shape[1:])) for name, value in one.items()}
    parts = [read(_Coordinates(chunk)) for chunk in _chunks(draws)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: value.reshape((*shape, *value.shape[1:])) for name, value in whole.items()}


def _chunks(draws: Tensor) -> Iterator[Tensor]:
    """The coordinates as ``(K, S, C)``, K at a time: neighbours in memory are chains of one draw."""
    num_chains, num_draws = draws.shape[:2]
    flat = draws.detach().flatten(2) if draws.ndim > 2 else draws.detach()[..., None]
    size = max(1, _CHUNK // (num_chains * num_draws))
    for chunk in flat.split(size, dim=2):
        yield chunk.double().permute(2, 1, 0).contiguous()


class _Coordinates:
    """K coordinates of the draws, ``(K, S, C)`` in float64, and what is computed of them, once each."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.num_draws, self.num_chains = x.shape[1:]
        self.valid = x.flatten(1).isfinite().all(1)

    @functools.cached_property
    def mean(self) -> Tensor:
        return self.x.flatten(1).mean(1)

    @functools.cached_property
    def sd(self) -> Tensor:
        squares = self._squares.flatten(1)
        return (squares.sum(1) / (squares.shape[1] - 1)).sqrt()

    @functools.cached_property
    def ess_bulk(self) -> Tensor:
        return self._guarded(lambda: _ess(self._scores))

    @functools.cached_property
    def ess_tail(self) -> Tensor:
        low, high = _TAILS
        return self._guarded(lambda: torch.minimum(_ess(self._below(low)), _ess(self._below(high))))

    @functools.cached_property
    def ess_mean(self) -> Tensor:
        return self._guarded(lambda: _ess(_split(self.x)))

    @functools.cached_property
    def ess_sd(self) -> Tensor:
        return self._guarded(lambda: _ess(_split(self._squares)))

    @functools.cached_property
    def mcse_mean(self) -> Tensor:
        return self.sd / self.ess_mean.sqrt()

    @functools.cached_property
    def mcse_sd(self) -> Tensor:
        # Delta method: the variance of the mean of squares, over (2 sd)^2.
        squares = self._squares.flatten(1)
        variance = squares.mean(1)
        spread = (squares.square().mean(1) - variance.square()) / self.ess_sd
        return (spread / variance / 4).sqrt()

    @functools.cached_property
    def rhat(self) -> Tensor:
        if self.num_chains < 2:
            return self.mean.new_full(self.mean.shape, torch.nan)
        return self._guarded(self._rank_rhat)

    @functools.cached_property
    def chain_location(self) -> Tensor:
        """Mean normal score of each chain, (K, C)."""
        return self._guarded(lambda: self._scores.mean(1).unflatten(1, (2, -1)).mean(1), self.num_chains)

    @functools.cached_property
    def chain_spread(self) -> Tensor:
        """Standard deviation of the normal scores of each chain, (K, C)."""

        def compute() -> Tensor:
            squares = self._scores.square().mean(1).unflatten(1, (2, -1)).mean(1)
            return (squares - self.chain_location.square()).clamp(min=0.0).sqrt()

        return self._guarded(compute, self.num_chains)

    def quantile(self, prob: float) -> Tensor:
        """Quantiles (K,), interpolated between neighbours as R and NumPy do."""
        ordered = self._sorted_all
        size = ordered.shape[1]
        place = size * prob + (1 - prob)
        below = min(max(int(place), 1), size - 1) if size > 1 else 1
        share = min(max(place - below, 0.0), 1.0)
        upper = ordered[:, min(below, size - 1)]
        value = (1 - share) * ordered[:, below - 1] + share * upper
        return torch.where(self.valid, value, torch.nan)

    def interval(self, prob: float) -> tuple[Tensor, Tensor]:
        """Ends of the narrowest interval with a share ``prob`` of the draws, each (K,)."""
        ordered = self._sorted_all
        length = int(prob * ordered.shape[1])
        left, right = ordered[:, : ordered.shape[1] - length], ordered[:, length:]
        start = (right - left).nan_to_num(nan=torch.inf).argmin(1, keepdim=True)
        low, high = left.gather(1, start)[:, 0], right.gather(1, start)[:, 0]
        return torch.where(self.valid, low, torch.nan), torch.where(self.valid, high, torch.nan)

    def _guarded(self, compute: Callable[[], Tensor], *shape: int) -> Tensor:
        """What ``compute`` gives, ``(K, *shape)``, with NaN where there is nothing to compute from."""
        if self.num_draws < MIN_DRAWS:
            return self.x.new_full((len(self.x), *shape), torch.nan)
        value = compute()
        return torch.where(self.valid.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan)

    def _rank_rhat(self) -> Tensor:
        order, values = self._sorted_split
        bulk = _rhat(self._scores)
        # Distances to the median fall, then rise, along the sorted draws: a sort of two runs is quick.
        middle = values.shape[1] // 2
        median = (values[:, middle - 1 : middle] + values[:, middle : middle + 1]) / 2
        distances, again = _sort((values - median).abs(), nearly_sorted=True)
        tail = _rhat(self._unsorted(order.gather(1, again), distances))
        return torch.maximum(bulk, tail)

    def _unsorted(self, order: Tensor, values: Tensor) -> Tensor:
        """Normal scores (K, n, M) of split draws whose sorted ``values`` came from the places ``order``."""
        scores = torch.empty_like(values).scatter_(1, order, _normal_scores(values))
        return scores.view(len(scores), -1, 2 * self.num_chains)

    def _below(self, prob: float) -> Tensor:
        return _split((self.x <= self.quantile(prob)[:, None, None]).double())

    @functools.cached_property
    def _scores(self) -> Tensor:
        return self._unsorted(*self._sorted_split)

    @functools.cached_property
    def _squares(self) -> Tensor:
        return (self.x - self.mean[:, None, None]).square()

    @functools.cached_property
    def _sorted_split(self) -> tuple[Tensor, Tensor]:
        """Places in the split draws in their order, and the ordered values; each (K, n M)."""
        values, order = _sort(_split(self.x).flatten(1))
        return order, values

    @functools.cached_property
    def _sorted_all(self) -> Tensor:
        if self.num_draws % 2 == 0:
            return self._sorted_split[1]
        return _sort(self.x.flatten(1))[0]


def _split(x: Tensor) -> Tensor:
    """Both halves of every chain side by side: (K, S, C) to (K, S // 2, 2C)."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, x.shape[1] - half :]], dim=2)


def _sort(x: Tensor, *, nearly_sorted: bool = False) -> tuple[Tensor, Tensor]:
    """Sorted rows and the places that they came from; ties in any order."""
    if x.device.type == "cpu":
        # NumPy's sorts: vectorised, or one that merges the runs that it finds. Both beat torch's.
        order = torch.from_numpy(x.numpy().argsort(axis=1, kind="stable" if nearly_sorted else None))
        return x.gather(1, order), order
    found = x.sort(dim=1)
    return found.values, found.indices


def _normal_scores(ordered: Tensor) -> Tensor:
    """Normal quantiles of the ranks of sorted rows (K, N), ties at their mean rank (Blom's offset)."""
    num = ordered.shape[1]
    # Twice the rank is an integer, also of ties: one table serves all rows.
    doubled = torch.arange(2 * num + 1, dtype=torch.float64, device=ordered.device)
    table = torch.special.ndtri((doubled / 2 - 0.375) / (num + 0.25))
    tied = ordered[:, 1:] == ordered[:, :-1]
    if not bool(tied.any()):
        return table[2::2].expand_as(ordered)
    place = torch.arange(num, device=ordered.device).expand_as(ordered)
    edge = torch.ones_like(tied[:, :1])
    first = torch.where(torch.cat([edge, ~tied], 1), place, 0).cummax(1).values
    last = torch.where(torch.cat([~tied, edge], 1), place, num).flip(1).cummin(1).values.flip(1)
    return table[first + last + 2]


def _rhat(x: Tensor) -> Tensor:
    """R-hat (K,) of chains (K, n, M)."""
    num = x.shape[1]
    within = x.var(1).mean(1)
    between = num * x.mean(1).var(1)
    return ((between / within + num - 1) / num).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size (K,) of chains (K, n, M)."""
    _, num, num_chains = x.shape
    size = num * num_chains
    means = x.mean(1, keepdim=True)
    centred = x - means
    variance = centred.square().mean((1, 2))
    within = variance * num / (num - 1)
    total = variance + means[:, 0].var(1)

    def correlation(covariance: Tensor) -> Tensor:
        return 1 - (within - covariance) / total

    # The last pair of lags that may be looked at, whatever the correlations are.
    last = max(0, (num - 3) // 2)
    flat = centred.flatten(1)
    even, both = [], []
    positive = torch.ones_like(variance, dtype=torch.bool)
    for pair in range(min(last + 1, _PAIRS_BY_HAND)):
        even.append(correlation(_covariance(flat, 2 * pair, num, num_chains)) if pair else variance**0)
        both.append(even[-1] + correlation(_covariance(flat, 2 * pair + 1, num, num_chains)))
        positive &= both[-1] > 0
        if not bool(positive.any()):
            break
    tau = _geyer(torch.stack(even, 1), torch.stack(both, 1))
    if len(both) <= last and bool(positive.any()):
        rows = positive.nonzero()[:, 0]
        rho = 1 - (within[rows, None] - _covariances(centred[rows])) / total[rows, None]
        rho[:, 0] = 1.0
        rho = rho[:, : 2 * last + 2]
        tau[rows] = _geyer(rho[:, ::2], rho[:, ::2] + rho[:, 1::2])
    # Antithetic chains are worth more than independent draws, but not without end.
    result = size / tau.clamp(min=1 / math.log10(size))
    constant = x.amax((1, 2)) - x.amin((1, 2)) < _CONSTANT
    return torch.where(constant, float(size), result)


def _geyer(even: Tensor, both: Tensor) -> Tensor:
    """Integrated autocorrelation times (K,) by Geyer's initial monotone sequence.

    Args:
        even: autocorrelations of even lags, (K, P).
        both: their sums with those of the next odd lags, (K, P).
    """
    place = torch.arange(both.shape[1], device=both.device)
    stop = torch.where(both <= 0, place, both.shape[1] - 1).amin(1, keepdim=True)
    inside = torch.where(place < stop, both.cummin(1).values, 0.0).sum(1)
    end_even, end_both = even.gather(1, stop)[:, 0], both.gather(1, stop)[:, 0]
    return -1 + 2 * inside + torch.where((end_even > 0) | (end_both >= 0), end_even, 0.0)


def _covariance(flat: Tensor, lag: int, num: int, num_chains: int) -> Tensor:
    """Autocovariance (K,) at one lag, the mean over the chains, of centred draws (K, n M)."""
    shift = lag * num_chains
    return torch.linalg.vecdot(flat[:, shift:], flat[:, : flat.shape[1] - shift]) / (num * num_chains)


def _covariances(centred: Tensor) -> Tensor:
    """Autocovariances (K, n) at all lags, means over the chains, of centred draws (K, n, M)."""
    num = centred.shape[1]
    length = 2 ** math.ceil(math.log2(2 * num))
    spectrum = torch.view_as_real(torch.fft.rfft(centred, n=length, dim=1))
    power = spectrum.square().sum(3).mean(2)
    return torch.fft.irfft(power, n=length, dim=1)[:, :num] / num
