r"""Densities of latents that belong to one datum each: every (particle, datum) is a chain with its own x.

Where all latents stand in the data plate, :math:`p(x, z) = \prod_n p(x_n, z_n)`, and annealing gives
:math:`\log p(x_n)` for each datum. The P particles of B data are P B rows: the data are repeated, the
model runs once on all of them, and its networks see one batch. That run and its gradient are recorded
once as a program of plain tensor operations, so no Python handler is called while particles move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppgen.errors import CapabilityError
from ppgen.inference.mcmc.graph import trace
from ppgen.inference.mcmc.kernel import Energy
from ppgen.inference.objectives.elbo import SiteRecorder, site_log_prob
from ppgen.ops.random import forked_rng

#: Parts of an energy, each (C,) in nats, at points (C, D).
Parts = Callable[[Tensor], tuple[Tensor, Tensor]]

_MOST_STATES = 2**26  # joint states times particles times data of a chunk: 256 MB


class PerDatum:
    r"""The latents of each of B data as chains.

    The path starts at the guide, :math:`U_0 = -\log q(z \mid x)`, or at the prior; in both cases it ends at
    :math:`p(x, z)`. Latents are mapped to real numbers by the bijection of their support.

    Args:
        model: p(x, z), with data and latents in one plate at dimension -1.
        guide: q(z | x) of the same latents; ``None`` to start from the prior.
        x: data, shape (B, ...).
        context: rows passed along with x.
        enumerates: whether the model has discrete latents marked for enumeration; they are summed out.

    Attributes:
        names: of the latents.
        num_dims: D, coordinates of the latents of one datum.

    Raises:
        CapabilityError: no continuous latents; a discrete one that is not summed out; a site outside the
            data plate.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        x: Tensor,
        context: Tensor | None = None,
        *,
        enumerates: bool = False,
    ) -> None:
        self._model, self._guide, self._x, self._context = model, guide, x, context
        self._enumerates = enumerates
        self._rows: dict[int, tuple[Tensor, Tensor | None]] = {}
        with torch.no_grad(), forked_rng(0, x.device):
            values, sites = self._drawn(1)
        self.names = list(values)
        self._transforms = {name: biject_to(sites[name]["fn"].support) for name in values}
        flat = {name: self._transforms[name].inv(values[name]).reshape(len(x), -1) for name in values}
        self._widths = [piece.shape[1] for piece in flat.values()]
        self._shapes = [self._transforms[n].inv(values[n]).shape[1:] for n in values]
        self.num_dims = sum(self._widths)
        self._dtype = next(iter(flat.values())).dtype

    def draw(self, num: int, seed: int) -> Tensor:
        """Draws of the path's start for ``num`` particles of each datum, shape (P B, D)."""
        with torch.no_grad(), forked_rng(seed, self._x.device):
            return self.unconstrain(self._drawn(num)[0])

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """Points (rows, D) of latents ``(rows, ...)``."""
        pieces = [self._transforms[name].inv(values[name]) for name in self.names]
        return torch.cat([piece.reshape(len(piece), -1) for piece in pieces], 1)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Latents at points (rows, D)."""
        return {name: transform(piece) for name, transform, piece in self._pieces(z)}

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Minus log of the start and what the target adds to it, each (P B,) in nats, at z (P B, D)."""
        num = len(z) // len(self._x)
        values, log_jacobian = {}, torch.zeros_like(z[:, 0])
        for name, transform, piece in self._pieces(z):
            values[name] = transform(piece)
            change = transform.log_abs_det_jacobian(piece, values[name])
            log_jacobian = log_jacobian + change.reshape(len(z), -1).sum(1)
        nothing = torch.zeros_like(log_jacobian)
        model = poutine.enum(self._model, first_available_dim=-2) if self._enumerates else self._model
        with pyro.validation_enabled(False):
            with SiteRecorder(values) as p:
                model(*self._repeated(num))
            latent = {n: s for n, s in p.sites.items() if not s["is_observed"]}
            if self._guide is not None:
                with SiteRecorder(values) as q:
                    self._guide(*self._repeated(num))
                start = sum_of_sites(q.sites, nothing, False) + log_jacobian
                joint = self._total(p.sites, nothing) + log_jacobian
                return -start, start - joint
            if self._enumerates:
                prior = self._total(latent, nothing)
                return -(prior + log_jacobian), prior - self._total(p.sites, nothing)
            prior = sum_of_sites(latent, nothing, False)
            seen = {n: s for n, s in p.sites.items() if s["is_observed"]}
            return -(prior + log_jacobian), -sum_of_sites(seen, nothing, False)

    def _total(self, sites: dict[str, Any], nothing: Tensor) -> Tensor:
        total = sum_of_sites(sites, nothing, self._enumerates)
        return total.flatten(0, -2).logsumexp(0) if total.ndim > 1 else total

    def _pieces(self, z: Tensor) -> list[tuple[str, Any, Tensor]]:
        pieces = z.split(self._widths, 1)
        return [
            (name, self._transforms[name], piece.reshape(len(z), *shape))
            for name, piece, shape in zip(self.names, pieces, self._shapes, strict=True)
        ]

    def _repeated(self, num: int) -> tuple[Tensor, Tensor | None]:
        """Data and context for ``num`` particles; particle p of datum b is row p B + b."""
        if num not in self._rows:
            context = self._context
            x = self._x.repeat(num, *[1] * (self._x.ndim - 1))
            repeated = None if context is None else context.repeat(num, *[1] * (context.ndim - 1))
            self._rows = {num: (x, repeated)}
        return self._rows[num]

    def _drawn(self, num: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Values and sites of the continuous latents in a run of the start, ``num`` times the rows."""
        rows = num * len(self._x)
        with pyro.validation_enabled(False), SiteRecorder() as recorder:
            (self._guide or self._model)(*self._repeated(num))
        values, sites = {}, {}
        for name, site in recorder.sites.items():
            if site["is_observed"] or site["infer"].get("_deterministic"):
                continue
            fn = site["fn"]
            if fn.has_enumerate_support or getattr(fn.support, "is_discrete", False):
                if self._enumerates and self._guide is None and site["infer"].get("enumerate") == "parallel":
                    continue
                raise CapabilityError(
                    f"log_likelihood: annealing moves continuous latents, and site '{name}' is discrete; "
                    "mark it infer={'enumerate': 'parallel'} in the model and leave it out of the guide, or "
                    "use method='iwae'"
                )
            if tuple(fn.batch_shape) != (rows,) or type(fn).__name__ == "Delta":
                raise CapabilityError(
                    f"log_likelihood: site '{name}' is no density in the data plate alone (batch shape "
                    f"{tuple(fn.batch_shape)} for {rows} rows); use method='iwae', or ppgen.inference.AIS on "
                    "all data together"
                )
            values[name], sites[name] = site["value"].detach(), site
        if not values:
            raise CapabilityError(
                "log_likelihood: annealing needs continuous latents, and the model has none; "
                "leave method= out"
            )
        return values, sites


def sum_of_sites(sites: dict[str, Any], total: Tensor, enumerates: bool) -> Tensor:
    """``total``, zeros of shape (P, B) or (rows,), plus the log-probabilities of all sites.

    Returns:
        Shape of ``total``, with dimensions of enumerated states before it.

    Raises:
        CapabilityError: a site that is not in the data plate alone, or too many joint states.
    """
    width = total.ndim
    for name, site in sites.items():
        if site["infer"].get("_deterministic"):
            continue
        term = site_log_prob(site)
        if term.shape[-1:] != total.shape[-1:] or (term.ndim > width and not enumerates):
            raise CapabilityError(
                f"log_likelihood: site '{name}' has batch shape {tuple(term.shape)}, which is not one value "
                f"for each of {total.shape[-1]} data; per-datum estimates need all sites in the data plate"
            )
        if math.prod(torch.broadcast_shapes(total.shape, term.shape)) > _MOST_STATES:
            raise CapabilityError(
                f"log_likelihood: the discrete latents up to site '{name}' have too many joint states to "
                "list; sample some of them in a guide, or use pyro.infer.TraceEnum_ELBO, which eliminates "
                "them one by one, for the total over the data"
            )
        total = total + term
    return total


# -- energies of chains that are written as a batch -------------------------------------------------


def batched_energy(parts: Parts) -> Energy:
    """Two parts (C, 2) and their gradients (C, 2, D), where ``parts`` treats rows apart."""

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            values = parts(point)
            rows = [
                torch.autograd.grad(value.sum(), point, retain_graph=True, allow_unused=True)[0]
                if value.requires_grad
                else None
                for value in values
            ]
        filled = [torch.zeros_like(z) if row is None else row for row in rows]
        return torch.stack(values, 1).detach(), torch.stack(filled, 1).detach()

    return energy


class RecordedEnergy:
    """An energy that is recorded as a program of tensor operations, once for each number of chains.

    Where it cannot be recorded, for it looks at values, it is run as it is.

    Args:
        parts: as for :func:`batched_energy`.
    """

    def __init__(self, parts: Parts) -> None:
        self._energy = batched_energy(parts)
        self._programs: dict[torch.Size, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Parts (C, 2) and gradients (C, 2, D) at z (C, D)."""
        program = self._programs.get(z.shape)
        if program is None:
            self._energy(z)  # so that what is wrong with the model itself is said by the model
            try:
                # What does not depend on z, such as an encoder, is computed while it is recorded.
                program = trace(self._energy, z, rules={})
            except RuntimeError:
                program = self._energy
            self._programs[z.shape] = program
        with torch.no_grad():
            return program(z)
