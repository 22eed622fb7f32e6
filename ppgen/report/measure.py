"""What is measured of a model, and of the references that need no training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppgen import metrics
from ppgen.contract import Estimate, GenerativeModel, HasLogLikelihood, HasResponsibilities, Kind
from ppgen.datasets.split import DataSet, Split
from ppgen.errors import PpgenError
from ppgen.ops.random import forked_rng
from ppgen.report.table import Number, Row

# Below this many coordinates the features are the coordinates, standardised: anything learnt
# would only throw information away.
_FEW_DIMS = 16
# As many features as half the test data, within these limits: a Fréchet distance needs a covariance.
_FEWEST_FEATURES, _MOST_FEATURES = 8, 64
_SAMPLE_CHUNK = 1000
_COMPARED = ("fid", "kid", "precision", "recall", "density_score", "coverage")


@dataclass(frozen=True)
class View:
    """Data as some families see them, with the features that their samples are compared in.

    Attributes:
        data: the splits.
        features: a map of data, shape ``(N, *event_shape)``, to features ``(N, F)``.
        description: what the features are.
        real: the test data that samples are compared with.
    """

    data: DataSet
    features: Callable[[Tensor], Tensor]
    description: str
    real: Tensor

    @classmethod
    def of(cls, data: DataSet, *, num_samples: int, seed: int) -> View:
        """Choose features: a classifier's or principal components, the coordinates where they are few.

        Small test splits get fewer features, so that these have a covariance.
        """
        real = data.test.x[:num_samples]
        if data.train.num_dims < _FEW_DIMS:
            features = metrics.standardised_features(data.train)
        else:
            num_features = max(_FEWEST_FEATURES, min(_MOST_FEATURES, len(real) // 2))
            features = metrics.classifier_features(
                data.train, held_out=data.validation, num_features=num_features, seed=seed
            )
        return cls(data, features, features.description, real)


@dataclass
class Measured:
    """Figures of one row, and draws to look at.

    Attributes:
        figures: fields of :class:`~ppgen.report.table.Row`.
        notes: measure to the reason why it has no number.
        samples: draws in the values of the data.
        test_nll: negative log-likelihood of each test datum in nats, shape (N,), where known.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    samples: Tensor | None = None
    test_nll: Tensor | None = None

    def put(self, name: str, compute: Callable[[], Estimate]) -> None:
        """Store a figure, or why it cannot be had: a figure that is refused hides no other."""
        try:
            number = Number.of(compute())
        except PpgenError as error:
            self.notes[name] = str(error)
            return
        if number.kind == Kind.UNNORMALISED:
            self.notes[name] = "unnormalised: the log normaliser is not known, so there is no number to show"
        elif not math.isfinite(number.value):
            self.notes[name] = f"the figure is {number.value}"
        else:
            self.figures[name] = number

    def put_likelihood(self, each: Estimate, num_dims: int) -> None:
        """Store the two forms of the mean of log-likelihoods, and the values one by one."""
        mean = each.mean()
        self.put("nll", lambda: mean.affine(-1.0))
        self.put("bits_per_dim", lambda: mean.affine(-1.0 / (num_dims * math.log(2))))
        if "nll" in self.figures:
            self.test_nll = -each.value.cpu()


def measure_model(model: GenerativeModel, view: View, *, num_samples: int = 1000, seed: int = 0) -> Measured:
    """Every figure of a trained model: likelihood on the test split, samples, their time and quality."""
    found = Measured()
    test = view.data.test
    if isinstance(model, HasLogLikelihood) and model.density is not None:
        try:
            found.put_likelihood(metrics.log_likelihoods(model, test, seed=seed), test.num_dims)
        except PpgenError as error:
            found.notes["nll"] = found.notes["bits_per_dim"] = str(error)
    else:
        found.notes["nll"] = found.notes["bits_per_dim"] = "none (implicit)"
    found.figures["latent_dim"], found.figures["latent_unit"] = _latent_size(model)
    found.figures["num_parameters"] = model.num_parameters
    found.figures["has_components"] = isinstance(model, HasResponsibilities)
    draws, seconds = _timed_draws(model, num_samples, seed)
    found.figures["sample_seconds"] = seconds * 1000 / num_samples
    try:
        found.samples = metrics.to_data_space(draws, model.support, view.data.values).cpu()
    except PpgenError as error:
        found.notes.update(dict.fromkeys(_COMPARED, str(error)))
        return found
    _compare(found, found.samples, view)
    return found


def reference_rows(view: View, *, seed: int = 0) -> list[tuple[Row, Tensor | None]]:
    r"""The rows that put the others into proportion, each with the test data's losses where it has some.

    For discrete data: the uniform distribution, :math:`\log_2 L` bits a coordinate. Always: the
    best factorised model (a smoothed histogram a coordinate, or a Gaussian), the training
    data in the place of samples, and for toys the true distribution.
    """
    data = view.data
    base: dict[str, Any] = {"group": "reference", "values": str(data.values), "density": str(Kind.EXACT)}
    rows: list[tuple[Row, Tensor | None]] = []
    if data.values.levels is not None:
        bits = Number(math.log2(data.values.levels), 0.0, Kind.EXACT)
        nats = Number(data.train.num_dims * math.log(data.values.levels), 0.0, Kind.EXACT)
        uniform = Row("uniform", "Uniform", **base, bits_per_dim=bits, nll=nats, reading=_READINGS["uniform"])
        rows.append((uniform, None))
    with forked_rng(seed):
        log_density, draws = _factorised(data.train, data.test, len(view.real))
        rows.append(_density_row("factorised", "Independent coordinates", log_density, draws, view, base))
        if data.truth is not None:
            truth = data.truth.log_prob(data.test.x)
            draws = data.truth.sample(torch.Size([len(view.real)]))
            rows.append(_density_row("truth", "True distribution", truth, draws, view, base))
        order = torch.randperm(len(data.train))[: len(view.real)]
    found = Measured(notes={"nll": "none (data)", "bits_per_dim": "none (data)"})
    _compare(found, data.train.x[order], view)
    training = Row(
        "training_data",
        "Training data",
        **{**base, "density": "data"},
        **found.figures,
        notes=found.notes,
        reading=_READINGS["training_data"],
    )
    return [*rows, (training, None)]


_READINGS = {
    "uniform": "Every level equally likely: what a model knows of the data is what it saves from here.",
    "factorised": "The best that a model can do which sees each coordinate alone.",
    "truth": "The distribution that the data were drawn from: no model can be better on average.",
    "training_data": "Real data in the place of samples: what the sample figures are when nothing is wrong.",
}


def _density_row(
    name: str, title: str, log_density: Tensor | None, draws: Tensor, view: View, base: dict[str, Any]
) -> tuple[Row, Tensor | None]:
    """A reference row from its exact log density of the test data, if it has one, and its draws."""
    found = Measured()
    if log_density is None:
        found.notes["nll"] = found.notes["bits_per_dim"] = _NO_SPREAD
    else:
        found.put_likelihood(Estimate.of(log_density.double(), Kind.EXACT), view.data.train.num_dims)
    _compare(found, draws, view)
    return Row(
        name, title, **base, **found.figures, notes=found.notes, reading=_READINGS[name]
    ), found.test_nll


_NO_SPREAD = "a coordinate is constant over the training split, so no density of it is bounded"


def _factorised(train: Split, test: Split, num: int) -> tuple[Tensor | None, Tensor]:
    """Log density of the test data under independent coordinates, shape (N,), and ``num`` draws.

    Histograms with one pseudo-count a level for discrete data, else a Gaussian a coordinate; no
    density where one of those Gaussians has no spread.
    """
    x, held_out = train.x.flatten(1).double(), test.x.flatten(1).double()
    levels = train.values.levels
    log_density: Tensor | None
    if levels is None:
        spread = x.std(0, correction=0)
        draws = x.mean(0) + spread * torch.randn(num, x.shape[1], dtype=x.dtype)
        if bool((x == x[0]).all(0).any()):
            log_density = None
        else:
            log_density = torch.distributions.Normal(x.mean(0), spread).log_prob(held_out).sum(-1)
    else:
        num_dims = x.shape[1]
        # One bin for each level of each coordinate; a one-hot code would hold levels times the data.
        bins = train.values.indices(x) + levels * torch.arange(num_dims)
        counts = bins.flatten().bincount(minlength=num_dims * levels).reshape(num_dims, levels) + 1.0
        histogram = torch.distributions.Categorical(counts)
        draws = histogram.sample(torch.Size([num])) / (levels - 1)
        log_density = histogram.log_prob(train.values.indices(held_out)).sum(-1)
    return log_density, draws.to(train.x.dtype).reshape(num, *train.event_shape)


def _compare(found: Measured, samples: Tensor, view: View) -> None:
    """Put the figures that compare as many samples as there are real data, in feature space."""
    real, generated = view.real, samples[: len(view.real)]
    found.put("fid", lambda: metrics.frechet_distance(real, generated, view.features))
    found.put("kid", lambda: metrics.kernel_distance(real, generated, view.features))
    try:
        manifolds = metrics.precision_recall(real, generated, view.features)
    except PpgenError as error:
        found.notes.update(dict.fromkeys(_COMPARED[2:], str(error)))
        return
    found.put("precision", lambda: manifolds.precision)
    found.put("recall", lambda: manifolds.recall)
    found.put("density_score", lambda: manifolds.density)
    found.put("coverage", lambda: manifolds.coverage)


def _timed_draws(model: GenerativeModel, num: int, seed: int) -> tuple[Tensor, float]:
    """``num`` draws and the seconds they took, after a first small draw that pays for set-up."""
    model.sample(2, seed=seed)
    _wait_for(model.device)
    started = time.perf_counter()
    chunks = [
        model.sample(min(_SAMPLE_CHUNK, num - start), seed=seed + start)
        for start in range(0, num, _SAMPLE_CHUNK)
    ]
    _wait_for(model.device)
    return torch.cat(chunks), time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _latent_size(model: GenerativeModel) -> tuple[int | None, str | None]:
    """Size of the latent and what is counted; ``None`` for both where there is none."""
    units = {"latent_dim": "dims", "num_hidden": "units", "num_components": "components"}
    for name, unit in units.items():
        size = getattr(model, name, None)
        if isinstance(size, int):
            return size, unit
    return None, None
