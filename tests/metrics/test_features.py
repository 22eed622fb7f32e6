"""Feature maps: what they compute, say and refuse; samples put back on the grid of the data."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppgen import metrics
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import BINARY, REAL, grid
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.metrics import (
    FeatureMap,
    classifier_features,
    kernel_distance,
    standardised_features,
    to_data_space,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    """Scikit-learn's digits: first 1437 for training, last 360 for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.data / 16).float().reshape(-1, 1, 8, 8)
    y = torch.from_numpy(bunch.target)
    return Split(x[:1437], y[:1437], grid(17), "train"), Split(x[1437:], y[1437:], grid(17), "test")


@pytest.fixture(scope="module")
def features(digits: tuple[Split, Split]) -> FeatureMap:
    """Features of the digits, with the accuracy on the test split."""
    return classifier_features(digits[0], held_out=digits[1])


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_features_of_digits_tell_the_classes_apart(digits: tuple[Split, Split], features: FeatureMap) -> None:
    from sklearn.linear_model import LogisticRegression

    (train, test), both = digits, [features(s.x) for s in digits]
    assert both[1].shape == (360, 64)
    assert both[1].dtype == torch.float64
    assert train.y is not None
    assert test.y is not None
    linear = LogisticRegression(max_iter=2000).fit(both[0].numpy(), train.y.numpy())
    assert linear.score(both[1].numpy(), test.y.numpy()) > 0.9


def test_description_names_the_features_and_their_source(features: FeatureMap) -> None:
    assert "last hidden layer (64 units)" in features.description
    assert "1437 data of the training split" in features.description
    assert "test accuracy 9" in features.description
    assert features.num_features == 64


def test_without_a_held_out_split_the_training_accuracy_is_named(digits: tuple[Split, Split]) -> None:
    found = classifier_features(digits[0].take(slice(200)), num_features=8, epochs=3)
    assert "training accuracy" in found.description
    assert found(digits[1].x).shape == (360, 8)


def test_layers_are_those_of_the_classifier() -> None:
    """With a linear readout of the features, scikit-learn's own classifier predicts the same."""
    from sklearn.neural_network import MLPClassifier

    x, y = _normal(60, 3).double(), torch.arange(60) % 3
    found = classifier_features(Split(x, y), num_features=5, epochs=4, seed=2)
    mean, scale = x.mean(0), x.std(0)
    peer = MLPClassifier(hidden_layer_sizes=(10, 5), batch_size=60, random_state=np.random.RandomState(2))
    for _ in range(4):
        peer.partial_fit(((x - mean) / scale).numpy(), y.numpy(), classes=[0, 1, 2])
    h = ((x - mean) / scale).numpy()
    for weight, bias in zip(peer.coefs_[:2], peer.intercepts_[:2], strict=True):
        h = np.maximum(h @ weight + bias, 0)
    assert np.allclose(found(x).numpy(), h, atol=1e-10)


def test_deterministic_by_seed_and_silent_towards_global_generators(digits: tuple[Split, Split]) -> None:
    few = digits[0].take(slice(150))
    torch_state, numpy_state = torch.get_rng_state(), repr(np.random.get_state(legacy=False))
    first, again, other = (classifier_features(few, num_features=8, epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert repr(np.random.get_state(legacy=False)) == numpy_state
    assert torch.equal(first(few.x), again(few.x))
    assert not torch.equal(first(few.x), other(few.x))


def test_uses_a_random_subset_of_large_data(digits: tuple[Split, Split]) -> None:
    found = classifier_features(digits[0], num_features=8, epochs=2, max_data=300)
    assert "300 data" in found.description


def test_without_labels_few_coordinates_are_standardised() -> None:
    x = _normal(50, 3) * torch.tensor([1.0, 10.0, 0.0]) + 5
    found = classifier_features(Split(x))
    z = found(x)
    assert found.description == "the 3 standardised coordinates (the data have no class labels)"
    assert torch.allclose(z.mean(0), torch.zeros(3).double(), atol=1e-6)
    assert torch.allclose(z.std(0)[:2], torch.ones(2).double())
    assert torch.equal(z[:, 2], torch.zeros(50).double())


def test_without_labels_many_coordinates_become_principal_components(digits: tuple[Split, Split]) -> None:
    from sklearn.decomposition import PCA

    train = Split(digits[0].x, None, grid(17))
    found = classifier_features(train, num_features=10)
    x = train.x.double().flatten(1)
    expected = torch.from_numpy(PCA(10, svd_solver="full").fit_transform(x.numpy())) / x.std()
    z = found(train.x)
    assert torch.allclose(z.abs(), expected.abs(), atol=1e-6)  # signs are free
    assert "first 10 principal components" in found.description
    assert "74% of its variance" in found.description


@pytest.mark.parametrize("y", [_normal(50), torch.zeros(50, dtype=torch.long), _normal(50, 2)])
def test_what_is_no_class_label_is_not_learnt(y: Tensor) -> None:
    assert "no class labels" in classifier_features(Split(_normal(50, 2), y)).description


def test_features_refuse_other_shapes_and_settings(features: FeatureMap, digits: tuple[Split, Split]) -> None:
    with pytest.raises(ShapeError, match=r"\(N, 1, 8, 8\), got \(5, 64\)"):
        features(torch.zeros(5, 64))
    with pytest.raises(ConfigError, match="num_features: expected a positive integer, got 0"):
        classifier_features(digits[0], num_features=0)
    with pytest.raises(ConfigError, match="epochs: expected a positive integer, got 0"):
        classifier_features(digits[0], epochs=0)
    with pytest.raises(ConfigError, match="max_data: expected a positive integer, got -1"):
        classifier_features(digits[0], max_data=-1)
    with pytest.raises(DataError, match="2 data or more, got 1"):
        classifier_features(Split(torch.zeros(1, 2)))
    with pytest.raises(DataError, match="held_out: expected class labels"):
        classifier_features(digits[0].take(slice(50)), held_out=Split(digits[1].x, None, grid(17)), epochs=1)


def test_metrics_on_digits_rank_data_before_noise(digits: tuple[Split, Split], features: FeatureMap) -> None:
    train, test = digits
    noise = grid(17).quantise(torch.rand(test.x.shape, generator=torch.Generator().manual_seed(0)))
    for metric in (metrics.frechet_distance, metrics.kernel_distance):
        close, far = metric(test.x, train.x, features), metric(test.x, noise, features)
        assert float(far.value - far.std_error) > 5 * float(close.value + close.std_error)
    good, bad = (metrics.precision_recall(test.x, x, features) for x in (train.x[:360], noise))
    for name in ("precision", "recall", "density", "coverage"):
        assert float(getattr(good, name).value) > float(getattr(bad, name).value) + 0.3


def test_samples_of_a_density_go_back_to_the_grid() -> None:
    samples = torch.tensor([[-0.3, 0.1, 0.26, 0.5, 0.999, 1.7]])
    found = to_data_space(samples, REAL, grid(4))
    assert torch.equal(found * 3, torch.tensor([[0.0, 0, 1, 2, 3, 3]]))
    grid(4).check(found)


def test_samples_of_the_values_of_the_data_are_left_alone() -> None:
    for values in (REAL, BINARY, grid(5)):
        x = torch.tensor([[0.0, 1.0]])
        assert to_data_space(x, values, values) is x


def test_samples_that_cannot_be_data_are_refused() -> None:
    with pytest.raises(DataError, match="the model is for binary values"):
        to_data_space(torch.zeros(2, 2), BINARY, grid(17))
    with pytest.raises(DataError, match="samples: expected finite numbers, got 1 NaN or infinite of 4"):
        to_data_space(torch.tensor([[0.0, torch.nan], [0, 0]]), REAL, grid(17))


def test_the_face_is_lazy_and_whole() -> None:
    for name in metrics.__all__:
        assert callable(getattr(metrics, name)), name
    with pytest.raises(AttributeError, match="inception"):
        _ = metrics.inception
    code = "import sys, ppgen.metrics; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_function_has_the_name_of_a_module() -> None:
    # Importing a submodule binds its name on the package, and would hide the function.
    modules = {info.name for info in pkgutil.iter_modules(metrics.__path__)}
    assert modules >= {"likelihood", "frechet", "kernel", "neighbours", "features"}
    assert not modules & set(metrics.__all__)


def test_standardised_features_know_no_unit() -> None:
    x = _normal(50, 3)
    scaled = x * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, 5.0, 2.0])
    found = standardised_features(Split(scaled))(scaled)
    expected = (x - x.mean(0)).double() / x.double().std(0)
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-5, rtol=1e-5)
    assert bool((found[:, 2] == 0).all())
    # Levels share one unit, hence one deviation.
    levels = Split(torch.tensor([[0.0, 0.0], [1.0, 0.25], [0.0, 0.25]]), None, grid(5))
    apart = standardised_features(levels)(levels.x).std(0)
    assert float(apart[0] / apart[1]) == pytest.approx(4.0)
    with pytest.raises(DataError, match="2 data or more"):
        standardised_features(Split(x[:1]))


def test_what_is_no_split_or_no_tensor_is_named() -> None:
    split = Split(_normal(20, 2))
    whole: Any = DataSet("all", split, split, split)
    array: Any = split.x.numpy()
    with pytest.raises(DataError, match="train: expected a Split, got a DataSet"):
        classifier_features(whole)
    with pytest.raises(DataError, match="train: expected a Split, got a Tensor"):
        standardised_features(whole.train.x)
    with pytest.raises(DataError, match="held_out: expected a Split"):
        classifier_features(split, held_out=whole)
    with pytest.raises(DataError, match=r"real: expected a tensor, got a Split; pass its \.x"):
        kernel_distance(whole.train, split.x)
    with pytest.raises(DataError, match="generated: expected a tensor, got a ndarray"):
        kernel_distance(split.x, array)
    with pytest.raises(ConfigError, match="seed"):
        classifier_features(split, seed=-1)


def test_dir_lists_the_metrics() -> None:
    assert set(metrics.__all__) <= set(dir(metrics))
