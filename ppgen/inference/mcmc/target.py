"""What chains walk on: the potential of a sampler's model or ``potential_fn``, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, SamplingError
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.potential import Potential, Target, potential_from_function
from ppgen.inference.mcmc.samplers import Sampler
from ppgen.inference.memory import is_out_of_memory


def make_potential(
    sampler: Sampler,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    initial_params: Mapping[str, Tensor] | None,
    num_chains: int,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    seed: int,
) -> Target:
    """The potential of the sampler's model on its data, or of its ``potential_fn``.

    Raises:
        ConfigError: a ``potential_fn`` without ``initial_params``.
    """
    if sampler.model is not None:
        return Potential(
            sampler.model,
            args,
            kwargs,
            dtype=dtype,
            device=device,
            max_plate_nesting=sampler.max_plate_nesting,
            seed=seed,
        )
    if sampler.potential_fn is None or initial_params is None:
        raise ConfigError("initial_params: a potential_fn needs them; give unconstrained values of all names")
    if args or kwargs:
        raise ConfigError("run: a potential_fn takes no arguments; leave them out")
    first = {name: v if num_chains == 1 else v[0] for name, v in initial_params.items()}
    return potential_from_function(
        sampler.potential_fn,
        {name: torch.as_tensor(v).to(device=device, dtype=dtype) for name, v in first.items()},
    )


class InParts:
    """A potential whose density is evaluated on at most ``num`` chains at a time; all else is unchanged.

    Args:
        potential: the potential.
        num: chains at a time.
    """

    def __init__(self, potential: Target, num: int) -> None:
        self._potential, self._num = potential, num

    def __getattr__(self, name: str) -> Any:
        return getattr(self._potential, name)

    def density(self, path: bool = False) -> Density:
        """See :class:`~ppgen.inference.mcmc.potential.Potential`."""
        density = self._potential.density(path)
        return replace(
            density,
            batched=split_energy(density.batched, self._num),
            occasional=split_energy(density.evaluate, self._num),
        )


def split_energy(
    energy: Callable[[Tensor], tuple[Tensor, Tensor]], num: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """``energy``, evaluated on at most ``num`` chains at a time, and on fewer as memory runs out.

    Args:
        energy: parts (C, P) and gradients (C, P, D) at points (C, D).
        num: chains at a time.

    Returns:
        A function of the same values. It raises :class:`~ppgen.errors.SamplingError` where one chain
        alone does not fit.
    """
    size = max(1, num)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal size
        while True:
            try:
                parts = [energy(some) for some in z.split(size)]
                return torch.cat([u for u, _ in parts]), torch.cat([g for _, g in parts])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise SamplingError(
                        f"out of memory on {z.device} with one chain at a time; use less data, a smaller "
                        "dtype or a larger device"
                    ) from error
                size = -(-min(size, len(z)) // 2)

    return evaluate


def unflatten(potential: Target, z: Tensor, *, squeeze: bool) -> dict[str, Tensor]:
    """Unconstrained values of every site, ``(C, ...)``, from z (C, D).

    Args:
        potential: whose sites.
        z: the points.
        squeeze: leave the first dimension, of one chain, out.
    """
    pieces = {s.name: z[:, s.slice].reshape(len(z), *s.unconstrained_shape) for s in potential.sites}
    return {name: value[0] for name, value in pieces.items()} if squeeze else pieces
