"""What the survey measures, against figures worked out another way."""

import math
from dataclasses import replace

import pytest
import torch

from ppgen.datasets.split import DataSet, Split
from ppgen.models import GaussianMixture
from ppgen.ops.random import forked_rng
from ppgen.report.measure import View, measure_model, reference_rows
from ppgen.report.table import Row
from tests.report.stubs import Implicit, Normal, Unnormalised, Wild, images, points


@pytest.fixture(name="view", scope="module")
def view_of_images() -> View:
    return View.of(images(), num_samples=40, seed=0)


def references(view: View) -> dict[str, Row]:
    return {row.name: row for row, _ in reference_rows(view)}


def test_independent_coordinates_by_counting(view: View) -> None:
    data = view.data
    levels = data.train.values.indices(data.train.x).flatten(1)
    total = 0.0
    for image in data.values.indices(data.test.x).flatten(1):
        for d, level in enumerate(image.tolist()):
            count = int((levels[:, d] == level).sum())
            total -= math.log((count + 1) / (len(levels) + 5))
    row = references(view)["factorised"]
    assert row.nll is not None
    assert row.bits_per_dim is not None
    assert row.nll.kind == "exact"
    assert row.nll.value == pytest.approx(total / len(data.test), rel=1e-5)
    assert row.bits_per_dim.value == pytest.approx(row.nll.value / (16 * math.log(2)))


def test_uniform_and_training_data(view: View) -> None:
    rows = references(view)
    uniform, training = rows["uniform"], rows["training_data"]
    assert uniform.bits_per_dim is not None
    assert uniform.nll is not None
    assert uniform.bits_per_dim.value == math.log2(5)
    assert uniform.nll.value == pytest.approx(16 * math.log(5))
    assert training.bits_per_dim is None
    assert training.kid is not None
    independent = rows["factorised"].kid
    assert independent is not None
    # Real data are nearer to real data than coordinates torn apart.
    assert training.kid.value < independent.value


def test_the_truth_of_a_toy_is_a_row() -> None:
    view = View.of(points(), num_samples=40, seed=0)
    rows = references(view)
    truth = view.data.truth
    assert truth is not None
    assert rows["truth"].nll is not None
    assert rows["truth"].nll.value == pytest.approx(-float(truth.log_prob(view.data.test.x).mean()), rel=1e-6)
    assert "uniform" not in rows
    assert view.description == "the 2 standardised coordinates"


def test_a_density_on_levels_becomes_a_bound(view: View) -> None:
    found = measure_model(Normal((1, 4, 4)), view, num_samples=40)
    bits, nats = found.figures["bits_per_dim"], found.figures["nll"]
    assert bits.kind == nats.kind == "upper_bound"
    assert bits.value == pytest.approx(nats.value / (16 * math.log(2)))
    # -log N(y; 0, 1) + log 5 a coordinate, with y = (k + u) / 5 and E u = 1/2, E u^2 = 1/3.
    k = view.data.values.indices(view.data.test.x).double()
    square = (k**2 + k + 1 / 3) / 25
    expected = (0.5 * square + 0.5 * math.log(2 * math.pi) + math.log(5)).flatten(1).sum(-1).mean()
    assert nats.value == pytest.approx(float(expected), abs=0.1)
    assert found.test_nll is not None
    assert found.test_nll.shape == (40,)
    assert float(found.test_nll.mean()) == pytest.approx(nats.value)
    assert found.samples is not None
    view.data.values.check(found.samples)
    assert found.figures["num_parameters"] == 32
    assert found.figures["sample_seconds"] > 0
    assert found.figures["has_components"] is False


def test_what_has_no_likelihood_shows_no_number(view: View) -> None:
    implicit = measure_model(Implicit((1, 4, 4)), view, num_samples=40)
    assert implicit.notes["bits_per_dim"] == "none (implicit)"
    unnormalised = measure_model(Unnormalised((1, 4, 4)), view, num_samples=40)
    assert unnormalised.notes["bits_per_dim"].startswith("unnormalised")
    for found in (implicit, unnormalised):
        assert found.test_nll is None
        assert "nll" not in found.figures
        assert "bits_per_dim" not in found.figures
        assert "fid" in found.figures or "fid" in found.notes
        assert "kid" in found.figures


def test_draws_that_are_no_numbers_spoil_only_the_sample_figures(view: View) -> None:
    found = measure_model(Wild((1, 4, 4)), view, num_samples=40)
    assert "bits_per_dim" in found.figures
    assert found.samples is None
    assert "NaN" in found.notes["fid"]
    assert "NaN" in found.notes["coverage"]


def test_the_unit_of_a_column_does_not_rule_the_sample_figures() -> None:
    data = replace(points(), truth=None)
    scaled = _times(data, torch.tensor([1.0, 1000.0]))
    for name in ("kid", "fid", "precision"):
        one, other = (
            getattr(references(View.of(d, num_samples=40, seed=0))["training_data"], name)
            for d in (data, scaled)
        )
        assert one.value == pytest.approx(other.value, rel=1e-4, abs=1e-9), name


def test_a_constant_column_gives_no_reference_density() -> None:
    constant = _times(replace(points(), truth=None), torch.tensor([1.0, 0.0]))
    row = references(View.of(constant, num_samples=40, seed=0))["factorised"]
    assert row.bits_per_dim is None
    assert "constant" in row.notes["bits_per_dim"]
    assert row.kid is not None


def test_independent_coordinates_need_no_one_hot_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a one-hot code of 60000 images on 256 levels has 96 GB")

    monkeypatch.setattr(torch.nn.functional, "one_hot", refuse)
    assert references(View.of(images(), num_samples=40, seed=0))["factorised"].nll is not None


def test_few_test_data_get_few_features() -> None:
    data = images()
    large = replace(
        data, train=_repeated(data.train), validation=_repeated(data.validation), test=_repeated(data.test)
    )
    assert View.of(large, num_samples=40, seed=0).features(large.test.x).shape == (40, 20)
    assert View.of(large, num_samples=30, seed=0).features(large.test.x).shape == (40, 15)


def _times(data: DataSet, factor: torch.Tensor) -> DataSet:
    def times(split: Split) -> Split:
        return replace(split, x=split.x * factor)

    return replace(data, train=times(data.train), validation=times(data.validation), test=times(data.test))


def _repeated(split: Split) -> Split:
    return replace(split, x=split.x.repeat(1, 1, 2, 2))


def test_latent_sizes_say_what_they_count(view: View) -> None:
    with forked_rng(0):
        mixture = GaussianMixture((1, 4, 4), num_components=3, covariance="diagonal")
        mixture.initialise(view.data.train.x)
    found = measure_model(mixture, view, num_samples=40)
    assert (found.figures["latent_dim"], found.figures["latent_unit"]) == (3, "components")
    plain = measure_model(Normal((1, 4, 4)), view, num_samples=40)
    assert (plain.figures["latent_dim"], plain.figures["latent_unit"]) == (None, None)


def test_too_few_data_for_a_metric_leave_a_note() -> None:
    data = images()
    view = View.of(replace(data, test=data.test.take(slice(0, 3))), num_samples=40, seed=0)
    found = measure_model(Normal((1, 4, 4)), view, num_samples=40)
    assert "bits_per_dim" in found.figures
    assert "fid" not in found.figures
    assert "more" in found.notes["fid"]
