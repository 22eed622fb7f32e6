"""Tiny families for the survey's tests, and a page checker."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import REAL, Values, grid
from ppgen.models.family import Family
from ppgen.ops.random import forked_rng

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Normal(GenerativeModel):
    """Independent Gaussians: an exact density."""

    density: Kind | None = Kind.EXACT

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(event_shape, support=REAL)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        with self.data_plate(x, num, context):
            return pyro.sample("x", self._normal(), obs=x)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        self.check_event(x)
        return Estimate.of(self._normal().log_prob(x), self.density or Kind.EXACT)

    def _normal(self) -> Any:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(len(self.event_shape))


class Unnormalised(Normal):
    """The same, without its normaliser."""

    density = Kind.UNNORMALISED


class Implicit(Normal):
    """The same, with no density at hand."""

    density = None


class Wild(Normal):
    """Its draws are not numbers."""

    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        return torch.full((num, *self.event_shape), torch.nan)


def family(name: str, cls: type[Normal] = Normal, **options: Any) -> Family:
    """A family of one of the classes above."""
    given: dict[str, Any] = {
        "title": f"Stub {name}",
        "density": cls.density,
        "view": "as_is",
        "build": lambda shape, values, num_data: cls(tuple(shape)),
        "example": lambda: cls((2,)),
        "reading": f"How to read {name} & <others>.",
        "fit_options": {"epochs": 3, "learning_rate": 0.05},
    }
    return Family(name, **{**given, **options})


def broken(shape: torch.Size, values: Values, num_data: int) -> GenerativeModel:
    """A build that fails."""
    raise ValueError("no network for <this> shape")


def images(num: int = 60) -> DataSet:
    """Labelled images of 4 by 4 pixels on 5 levels."""

    def split(name: str, count: int, seed: int) -> Split:
        with forked_rng(seed):
            y = torch.arange(count) % 2
            centre = torch.where(y == 0, 1.0, 3.0)[:, None, None, None]
            x = (centre + torch.randn(count, 1, 4, 4)).round().clamp(0, 4) / 4
        return Split(x, y, grid(5), name)

    return DataSet(
        "stripes",
        split("train", num, 0),
        split("validation", 20, 1),
        split("test", 40, 2),
        "Made up & small.",
    )


def points(num: int = 60) -> DataSet:
    """Points in the plane, with the distribution that they come from."""
    truth = dist.Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])).to_event(1)

    def split(name: str, count: int, seed: int) -> Split:
        with forked_rng(seed):
            return Split(truth.sample(torch.Size([count])), None, REAL, name)

    return DataSet(
        "cloud", split("train", num, 0), split("validation", 20, 1), split("test", 40, 2), "A cloud.", truth
    )


class PageChecker(HTMLParser):
    """Reads a page, and notes elements that do not nest, its pictures, links, ids and table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        if self.open:
            self.faults.append(f"left open: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(found)
        if tag == "tr":
            self.rows.append("")
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.urls += [str(found[key]) for key in ("src", "srcset") if found.get(key)]
        if tag == "a":
            self.links.append(str(found["href"]))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self.open:
            self.rows[-1] += data + " "
