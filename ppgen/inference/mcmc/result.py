"""What a run of Markov chain Monte Carlo gives back: draws, statistics, and what to think of them.

.. code-block:: python

    posterior = mcmc.posterior
    posterior.ok, posterior.warnings                # sentences that say what to do
    print(posterior.summary())
    posterior.get_samples(group_by_chain=True)["theta"]        # (C, S, *shape)
    posterior.log_likelihood()["y"]                 # (C, S, *shape), in nats
    posterior.to_arviz()
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from pyro.infer.mcmc.util import select_samples
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.mcmc import diagnostics, faults
from ppgen.ops.random import forked_rng

if TYPE_CHECKING:
    import pandas as pd

_MAX_ROWS = 100


class SiteOfDraws(Protocol):
    """A site of a model, as far as results need to know it."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value."""

    @property
    def dims(self) -> tuple[str | None, ...]:
        """The plate's name of each dimension of ``shape``, or ``None``."""


class Source(Protocol):
    """The model that the draws belong to, with its data; a ``Potential`` is one."""

    @property
    def model(self) -> Callable[..., Any]:
        """The Pyro model."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Its positional arguments."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Its other arguments."""

    @property
    def sites(self) -> Sequence[SiteOfDraws]:
        """The latent sites."""

    @property
    def observed(self) -> Sequence[Any]:
        """The observed sites, with their values; a factor has none."""

    @property
    def deterministics(self) -> Sequence[Any]:
        """The deterministic sites that a draw of the latents determines, each with its ``name``."""


@dataclass(repr=False)
class Posterior:
    """Draws of C chains, S of each, with all that belongs to them.

    Attributes:
        samples: constrained draws ``(C, S, *shape)`` of each latent site.
        statistics: one number a transition, (C, S), under any of the names ``accept_prob`` (a
            probability), ``diverging`` (bool), ``num_steps`` (gradients), ``energy`` (nats), ``tree_depth``,
            ``reached_max_depth`` (bool), ``step_size``, ``lp`` (log joint density of the unconstrained draw,
            in nats), as the sampler has them.
        unconstrained: the same draws as points in R^D, (C, S, D); None where they were not kept.
        potential: the model with its data; None where the draws come from a density without a model.
        attributes: how the run went: ``seed``, ``sampler``, ``versions``, ``dtype``, ``backend``,
            ``compile_seconds``, ``warmup_seconds``, ``sampling_seconds``, ``step_size``, ``scale`` (square
            root of the inverse mass), ``trajectory_length``, ``num_samples`` (draws asked for),
            ``interrupted`` (bool), ``restarted`` (chains that were stuck in warm-up and started again
            elsewhere) and ``left_behind`` (likewise, but perhaps only slow to arrive from far-out starts).
    """

    samples: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    unconstrained: Tensor | None = None
    potential: Source | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """C."""
        return self._shape[0]

    @property
    def num_draws(self) -> int:
        """S, the draws of each chain."""
        return self._shape[1]

    @property
    def _shape(self) -> tuple[int, int]:
        for draws in itertools.chain(self.samples.values(), self.statistics.values()):
            return draws.shape[0], draws.shape[1]
        raise ConfigError("samples: expected the draws of at least one site, got none")

    # -- draws ----------------------------------------------------------------------------

    def get_samples(
        self,
        num_samples: int | None = None,
        group_by_chain: bool = False,
        *,
        deterministic: bool = False,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Draws of each site, as :meth:`pyro.infer.MCMC.get_samples`.

        Args:
            num_samples: resample so many, with replacement; all in order where it is ``None``.
            group_by_chain: keep the dimension of the chains.
            deterministic: add the model's ``pyro.deterministic`` sites.
            seed: of the resampling; without it, torch's global generator is drawn from.

        Returns:
            ``(C * S, *shape)`` of each site, chain after chain, or ``(C, S, *shape)`` grouped; with
            ``num_samples`` N, ``(N, *shape)`` or ``(C, N, *shape)``.
        """
        samples = dict(self.samples)
        if deterministic:
            samples |= self.deterministic()
        with forked_rng(seed):
            return select_samples(samples, num_samples, group_by_chain)

    def deterministic(self) -> dict[str, Tensor]:
        """Values ``(C, S, *shape)`` of the model's ``pyro.deterministic`` sites."""
        from ppgen.inference.mcmc import predictive

        return predictive.deterministic(self)

    def log_likelihood(self) -> dict[str, Tensor]:
        """Log-likelihood of each observation in nats, ``(C, S, *batch shape)`` for each observed site.

        See :func:`ppgen.inference.mcmc.predictive.log_likelihood`.
        """
        from ppgen.inference.mcmc import predictive

        return predictive.log_likelihood(self)

    def predict(
        self,
        *args: Any,
        seed: int | None = None,
        sites: Sequence[str] | None = None,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Posterior predictive draws; see :func:`ppgen.inference.mcmc.predictive.posterior_predictive`."""
        from ppgen.inference.mcmc import predictive

        return predictive.posterior_predictive(
            self, *args, seed=seed, sites=sites, num_samples=num_samples, **kwargs
        )

    # -- judgement ------------------------------------------------------------------------

    @functools.cached_property
    def warnings(self) -> list[str]:
        """What deserves a look, in sentences that say what to do; see :mod:`ppgen.inference.mcmc.faults`."""
        return faults.find(self)

    @property
    def ok(self) -> bool:
        """Whether nothing deserves a look."""
        return not self.warnings

    @functools.cached_property
    def described(self) -> dict[str, dict[str, Tensor]]:
        """:func:`~ppgen.inference.mcmc.diagnostics.describe` of each site, on the CPU.

        Raises:
            ConfigError: there are no draws.
        """
        return self._describe(0.9)

    def _describe(self, prob: float) -> dict[str, dict[str, Tensor]]:
        if self.num_draws == 0:
            raise ConfigError(
                "samples: there are no draws yet, the run ended in warm-up; go on with extend(0)"
            )
        return {
            name: {key: value.cpu() for key, value in diagnostics.describe(draws, prob).items()}
            for name, draws in self.samples.items()
        }

    @property
    def divergences(self) -> Tensor:
        """Where transitions diverged: rows of chain and draw, (N, 2)."""
        diverging = self.statistics.get("diverging")
        return torch.zeros(0, 2, dtype=torch.int64) if diverging is None else diverging.nonzero().cpu()

    def diagnostics(self) -> dict[str, Any]:
        """Figures by site and by chain, under Pyro's names and a few more.

        Returns:
            For each site ``n_eff`` (bulk ESS), ``ess_tail`` and ``r_hat``, each of the site's shape.
            ``divergences``, the draws at which each ``"chain i"`` diverged; ``acceptance rate`` and
            ``e_bfmi``, one number for each, where the sampler has them.
        """
        found: dict[str, Any] = {
            name: OrderedDict(n_eff=d["ess_bulk"], ess_tail=d["ess_tail"], r_hat=d["r_hat"])
            for name, d in self.described.items()
        }
        chains = range(self.num_chains)
        where: dict[int, list[int]] = {chain: [] for chain in chains}
        for chain, draw in self.divergences.tolist():
            where[chain].append(draw)
        found["divergences"] = {f"chain {chain}": where[chain] for chain in chains}
        if "accept_prob" in self.statistics:
            rate = self.statistics["accept_prob"].double().mean(1).tolist()
            found["acceptance rate"] = {f"chain {chain}": rate[chain] for chain in chains}
        if "energy" in self.statistics:
            fraction = diagnostics.bfmi(self.statistics["energy"]).tolist()
            found["e_bfmi"] = {f"chain {chain}": fraction[chain] for chain in chains}
        return found

    def summary(self, prob: float = 0.9) -> Summary:
        """A table with a row for each coordinate of each site.

        Args:
            prob: mass of the interval of highest density.

        Raises:
            ConfigError: ``prob`` is not between 0 and 1.
        """
        described = self.described if prob == 0.9 else self._describe(prob)
        names = {
            "mean": "mean",
            "sd": "sd",
            "median": "median",
            "low": f"{50 * (1 - prob):.1f}%",
            "high": f"{50 * (1 + prob):.1f}%",
            "mcse_mean": "mcse_mean",
            "ess_bulk": "ess_bulk",
            "ess_tail": "ess_tail",
            "r_hat": "r_hat",
        }
        rows = [row for name, draws in self.samples.items() for row in coordinates(name, draws.shape[2:])]
        columns = {
            title: torch.cat([site[key].flatten() for site in described.values()])
            for key, title in names.items()
        }
        return Summary(rows, columns, f"{self.num_chains} chains of {self.num_draws} draws", self.warnings)

    def to_arviz(self, **options: Any) -> Any:
        """Everything as ArviZ wants it; see :func:`ppgen.inference.arviz_adapter.to_arviz`."""
        from ppgen.inference import arviz_adapter

        return arviz_adapter.to_arviz(self, **options)

    def __str__(self) -> str:
        return str(self.summary()) if self.num_draws else repr(self)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {tuple(draws.shape[2:])}" for name, draws in self.samples.items())
        return f"<Posterior: {self.num_chains} chains of {self.num_draws} draws of {sites}>"


@dataclass(repr=False)
class Summary:
    """A table of a posterior.

    Attributes:
        rows: coordinates, such as ``theta[3]``.
        columns: by title, one number a row, float64.
        title: how many draws it is made of.
        warnings: those of the posterior.
    """

    rows: list[str]
    columns: dict[str, Tensor]
    title: str
    warnings: list[str] = field(default_factory=list)

    def to_pandas(self) -> pd.DataFrame:
        """The table with the rows as index."""
        import pandas as pd

        return pd.DataFrame({k: v.numpy() for k, v in self.columns.items()}, index=self.rows)

    def __repr__(self) -> str:
        return f"<Summary of {len(self.rows)} rows: print it, or to_pandas()>"

    def __str__(self) -> str:
        shown = self.rows[:_MAX_ROWS]
        cells = [["", *self.columns]]
        numbers = torch.stack(list(self.columns.values()), 1)[: len(shown)].tolist()
        for row, values in zip(shown, numbers, strict=True):
            cells.append([row, *map(_number, self.columns, values)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
        ]
        if len(self.rows) > len(shown):
            lines.append(f"... and {len(self.rows) - len(shown)} more rows; to_pandas() has them all")
        return "\n".join([self.title, *lines, *(f"warning: {w}" for w in self.warnings)])


def coordinates(name: str, shape: Sequence[int]) -> list[str]:
    """Names of the coordinates of a site: ``theta`` alone, or ``theta[0,0]``, ``theta[0,1]``, ..."""
    if not len(shape):
        return [name]
    places = itertools.product(*map(range, shape))
    return [f"{name}[{','.join(map(str, place))}]" for place in places]


def _number(title: str, value: float) -> str:
    if title.startswith("ess"):
        return f"{value:.0f}"
    return f"{value:.3f}" if title == "r_hat" else f"{value:.4g}"
