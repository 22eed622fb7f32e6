"""How a family presents itself to the contract suite, the survey and the docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ppgen.contract import GenerativeModel, Kind
from ppgen.datasets.values import Values


@dataclass(frozen=True)
class Family:
    """One row of the table of generative models.

    Attributes:
        name: short name, as on the command line: ``"vae"``.
        group: short name that related families share: ``"flow"`` stands for all of them.
        title: name as in a textbook.
        density: what the family's ``log_likelihood`` returns; ``None`` for implicit models.
        view: the data that the survey shows it: as they are, or binarised.
        build: a model of sensible size, from the event shape, the values, and the number of training data.
        example: a tiny model, built in milliseconds, that the contract suite is run on.
        conditional_example: the same with a context of 3 classes; ``None`` if the family has none.
        fit_options: arguments of :func:`ppgen.fit` that suit ``build``'s model on small images.
        reading: one line on how to read this family's figures.
        surveyed: whether a survey takes the family unless told otherwise: it suits small images and trains
            in seconds.
    """

    name: str
    title: str
    density: Kind | None
    view: Literal["as_is", "binary"]
    build: Callable[[torch.Size, Values, int], GenerativeModel]
    example: Callable[[], GenerativeModel]
    reading: str
    group: str = ""
    conditional_example: Callable[[], GenerativeModel] | None = None
    fit_options: Mapping[str, Any] = field(default_factory=dict)
    surveyed: bool = True
