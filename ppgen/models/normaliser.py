"""What families with an energy share: log Z worked out once, and likelihoods that say how it was had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError
from ppgen.inference.partition import PartitionEstimate
from ppgen.models.latent import Method, check_method


def energy_log_likelihood(
    energy: Tensor,
    density: Kind | None,
    log_partition: Callable[..., Estimate],
    method: Method | Literal["exact"] | None,
    options: dict[str, Any],
) -> Estimate:
    """Log p(x) = -E(x) - log Z, one a datum, in nats.

    Args:
        energy: E of the data, shape (N,).
        density: of the family: exact where log Z can be summed.
        log_partition: the family's method of that name.
        method: ``None`` for exact where it can be and else unnormalised; ``"exact"``; or ``"ais"``, an upper
            bound in expectation, whose error all data share. ``"elbo"`` and ``"iwae"`` are ``"exact"``.
        options: of ``"ais"``; the seed is 0 unless given, so that batches share one log Z.

    Raises:
        ConfigError: no such method, or options that belong to another.
    """
    value = -energy
    if method not in (None, "exact"):
        check_method(method)
    if method is None and density is not Kind.EXACT:
        if options:
            raise ConfigError(f"{next(iter(options))}: an argument of method='ais'; give that as well")
        return Estimate.of(value, Kind.UNNORMALISED)
    seeded = {"seed": 0, **options} if method == "ais" else options
    log_z = log_partition(method="ais" if method == "ais" else "exact", **seeded)
    if log_z.kind is Kind.EXACT:
        return Estimate.of(value - log_z.value, Kind.EXACT)
    error = log_z.std_error.to(value)
    value = value - log_z.value.to(value)
    return Estimate(value, Kind.UPPER_BOUND, error.expand_as(value).clone(), error)


class LogPartitionMemory:
    """The last log Z, exact and by annealing, with what it was worked out from.

    Evaluation in batches asks again and again. The values themselves are compared, for tensors can change
    without a trace in their version counters.
    """

    def __init__(self) -> None:
        self._exact: tuple[list[Tensor], Tensor] | None = None
        self._annealed: tuple[list[Tensor], dict[str, Any], PartitionEstimate] | None = None

    def exact(self, tensors: Sequence[Tensor], find: Callable[[], Tensor]) -> Tensor:
        """Log Z by ``find``, or the last one where ``tensors`` are the same and no gradient is due."""
        if torch.is_grad_enabled() or tensors[0].is_meta:
            return find()
        if self._exact is None or not _same(self._exact[0], tensors):
            self._exact = [t.detach().clone() for t in tensors], find()
        return self._exact[1].clone()

    def annealed(
        self, tensors: Sequence[Tensor], options: dict[str, Any], find: Callable[..., PartitionEstimate]
    ) -> PartitionEstimate:
        """``find(**options)``, or the last of it, kept where it has a seed and no tensor in the options."""
        plain = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
        keep, known = options.get("seed") is not None and len(plain) == len(options), self._annealed
        if keep and known is not None and known[1] == plain and _same(known[0], tensors):
            return known[2]
        found = find(**options)
        if keep and not found.interrupted:
            self._annealed = [t.detach().clone() for t in tensors], plain, found
        return found


def _same(known: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    return all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(known, given, strict=True)
    )
