"""What a posterior of posteriordb is to the tests and the benchmarks: program, data, reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Data = Mapping[str, Any]
Arguments = tuple[Any, ...]
Values = dict[str, Tensor]


def tensor(data: Data, name: str, dtype: torch.dtype) -> Tensor:
    """An entry of the data as a tensor of reals."""
    return torch.tensor(data[name], dtype=dtype)


@dataclass(frozen=True)
class Posterior:
    """A Pyro model with the density of a Stan program, up to a constant.

    Attributes:
        name: of the posterior in posteriordb, and of its folder.
        model: the Pyro model.
        arguments: the model's arguments from the data; does what Stan's ``transformed data`` does.
        parameters: what the reference draws hold, in their order; a name of a site unless
            ``to_reference`` makes it.
        to_reference: adds to a model's draws the parameters that are no sites of it.
        from_reference: adds to the reference's parameters the sites that are none of them.
        sampler: arguments of the sampler that suit this posterior.
        mcmc: arguments of the run that suit this posterior.
        loops: has a loop in time, which makes a large graph.
        slow: takes more than a few seconds to sample.
    """

    name: str
    model: Callable[..., None]
    arguments: Callable[[Data, torch.dtype], Arguments]
    parameters: tuple[str, ...]
    to_reference: Callable[[Values], Values] = lambda values: values
    from_reference: Callable[[Values], Values] = lambda values: values
    sampler: Mapping[str, Any] = field(default_factory=dict)
    mcmc: Mapping[str, Any] = field(default_factory=dict)
    loops: bool = False
    slow: bool = False

    def flat(self, values: Values, batch_dims: int) -> Tensor:
        """Draws as the reference has them: ``(..., parameters)`` from sites ``(..., *shape)``."""
        values = self.to_reference(values)
        columns = [
            values[name].flatten(batch_dims) if values[name].ndim > batch_dims else values[name].unsqueeze(-1)
            for name in self.parameters
        ]
        return torch.cat(columns, -1)


@dataclass(frozen=True)
class Reference:
    """Reference draws of a posterior and their summary.

    Attributes:
        data: of the Stan program.
        names: of the P scalar parameters.
        sizes: number of scalars of each parameter.
        draws: ``(chains, draws, P)``, thinned to be all but independent.
        mean, sd: of all draws, (P,).
        mcse_mean, mcse_sd: their Monte-Carlo standard errors, (P,).
    """

    data: Data
    names: tuple[str, ...]
    sizes: Mapping[str, int]
    draws: Tensor
    mean: Tensor
    sd: Tensor
    mcse_mean: Tensor
    mcse_sd: Tensor

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read a posterior's folder."""
        summary = json.loads((folder / "summary.json").read_text())
        with np.load(folder / "draws_thin.npz", allow_pickle=False) as arrays:
            names, draws = tuple(map(str, arrays["names"])), torch.tensor(arrays["draws"])
        figures = {
            key: torch.tensor([summary["parameters"][name][key] for name in names], dtype=torch.float64)
            for key in ("mean", "sd", "mcse_mean", "mcse_sd")
        }
        return cls(
            data=json.loads((folder / "data.json").read_text()),
            names=names,
            sizes=summary["dimensions"],
            draws=draws,
            **figures,
        )

    def values(self) -> Values:
        """The draws by parameter, ``(draws, size)``, or ``(draws,)`` where it is a scalar."""
        pieces = self.draws.flatten(0, 1).split(list(self.sizes.values()), dim=1)
        scalars = {name.partition("[")[0] for name in self.names if "[" not in name}
        return {
            name: piece.squeeze(1) if name in scalars else piece
            for name, piece in zip(self.sizes, pieces, strict=True)
        }
