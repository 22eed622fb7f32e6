r"""Simulation-based calibration of any method that draws from posteriors.

Draw :math:`\theta \sim p(\theta)` and :math:`x \sim p(x \mid \theta)`, and L posterior draws given x.
The rank of each parameter of :math:`\theta` among them is uniform on 0, ..., L if the draws are
independent and the method is right. What a wrong rank says:

* ranks too low: posterior draws too large; too high: too small (``bias``);
* ranks in the middle: posteriors too wide; at both ends: too narrow, or draws correlated (``spread``).

Power with 1,024 simulations: a shift of 0.2 posterior sd, a spread wrong by a fifth.

References: Cook, Gelman & Rubin 2006; Talts, Betancourt, Simpson, Vehtari & Gelman 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.testing.statistics import FALSE_ALARM_RATE

#: N parameters ``(N, P)``, and data for each in whatever form ``posterior_draws`` takes.
Simulate = Callable[[int, torch.Generator], tuple[Tensor, Any]]
#: Posterior draws for the data of all simulations, ``(N, L, P)``.
PosteriorDraws = Callable[[Any, torch.Generator], Tensor]


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true parameters among posterior draws.

    Attributes:
        ranks: ``(N, P)``, integers from 0 to ``num_draws``.
        num_draws: posterior draws L of each simulation.
        names: of the P parameters.
        num_bins: cells of the test of uniformity.
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    num_bins: int = 16

    @property
    def bias(self) -> Tensor:
        """z-scores (P,) of the mean rank; positive where posterior draws are too small."""
        share = (self.ranks.double() + 0.5) / (self.num_draws + 1)
        return (share.mean(0) - 0.5) / (self._moment(2) / len(share)) ** 0.5

    @property
    def spread(self) -> Tensor:
        """z-scores (P,) of the mean squared distance from the middle; positive: draws too narrow."""
        share = (self.ranks.double() + 0.5) / (self.num_draws + 1)
        second, fourth = self._moment(2), self._moment(4)
        error = ((fourth - second**2) / len(share)) ** 0.5
        return (((share - 0.5) ** 2).mean(0) - second) / error

    @property
    def p_values(self) -> Tensor:
        """Three p-values a parameter, (P, 3): of bias, spread and uniformity (chi-square)."""
        two_sided = [torch.special.erfc(z.abs() / math.sqrt(2)) for z in (self.bias, self.spread)]
        return torch.stack([*two_sided, self._uniformity()], 1)

    def check(self) -> None:
        """Assert that all ranks are uniform, with the false-alarm rate of all statistical checks.

        Raises:
            AssertionError: a method that is not calibrated, with the report.
        """
        p_values = self.p_values
        if bool((p_values < FALSE_ALARM_RATE / p_values.numel()).any()):
            raise AssertionError(f"not calibrated\n{self.report()}")

    def report(self) -> str:
        """A line for each parameter: z-scores of bias and spread, the p-value of uniformity."""
        width = max(len(name) for name in self.names)
        rows = zip(
            self.names, self.bias.tolist(), self.spread.tolist(), self._uniformity().tolist(), strict=True
        )
        return "\n".join(
            [f"{len(self.ranks)} simulations, ranks among {self.num_draws} draws"]
            + [
                f"{n:{width}}  bias z {b:+6.1f}  spread z {s:+6.1f}  uniformity p {p:.2g}"
                for n, b, s, p in rows
            ]
        )

    def _moment(self, power: int) -> float:
        """Central moment of a uniform rank, as a share of 0 to 1."""
        levels = (torch.arange(self.num_draws + 1, dtype=torch.float64) + 0.5) / (self.num_draws + 1)
        return float(((levels - 0.5) ** power).mean())

    def _uniformity(self) -> Tensor:
        """Chi-square p-values (P,)."""
        cells = min(self.num_bins, self.num_draws + 1)
        of_rank = torch.arange(self.num_draws + 1) * cells // (self.num_draws + 1)
        expected = torch.bincount(of_rank, minlength=cells) * len(self.ranks) / (self.num_draws + 1)
        counts = torch.stack([torch.bincount(of_rank[r], minlength=cells) for r in self.ranks.T])
        statistic = ((counts - expected) ** 2 / expected).double().sum(1)
        return torch.special.gammaincc(torch.tensor((cells - 1) / 2, dtype=torch.float64), statistic / 2)


def sbc(
    simulate: Simulate,
    posterior_draws: PosteriorDraws,
    *,
    num_simulations: int = 1024,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Ranks of simulated parameters among posterior draws given their data.

    Args:
        simulate: draws parameters from the prior, and data given each.
        posterior_draws: draws of the method under test, nearly independent, for all data at once; see
            :func:`one_by_one` for a method that takes one data set at a time.
        num_simulations: N.
        names: of the parameters; ``p0, p1, ...`` unless given.
        seed: of the generator that both functions get.

    Raises:
        ConfigError: fewer than 100 simulations, for which the normal approximation does not hold.
        DataError: draws of a wrong shape, or not finite.
    """
    if num_simulations < 100:
        raise ConfigError(f"num_simulations: expected 100 or more, got {num_simulations}")
    generator = torch.Generator().manual_seed(seed)
    truth, data = simulate(num_simulations, generator)
    draws = posterior_draws(data, generator)
    if draws.ndim != 3 or (len(draws), draws.shape[2]) != (num_simulations, truth.shape[1]):
        raise DataError(
            "posterior_draws: expected (simulations, draws, parameters) = "
            f"({num_simulations}, L, {truth.shape[1]}), got {tuple(draws.shape)}"
        )
    if not bool(draws.isfinite().all()):
        raise DataError(f"posterior_draws: {int((~draws.isfinite()).sum())} numbers are not finite")
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    # A tie counts as less or more by chance, so that discrete parameters have uniform ranks, too.
    lot = torch.rand(ties.shape, generator=generator, dtype=torch.float64)
    ranks = below + (lot * (ties + 1)).floor().to(below.dtype)
    return Calibration(
        ranks, draws.shape[1], tuple(names or (f"p{index}" for index in range(truth.shape[1])))
    )


def one_by_one(infer: Callable[[Any, int], Tensor]) -> PosteriorDraws:
    """Calibrate a method that takes one data set at a time.

    Args:
        infer: draws ``(L, P)`` from one data set and a seed.
    """

    def posterior_draws(data: Any, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(2**62, (len(data),), generator=generator).tolist()
        return torch.stack([infer(one, seed) for one, seed in zip(data, seeds, strict=True)])

    return posterior_draws
