"""Features: what sample metrics compare instead of raw coordinates.

A feature function maps data ``(N, *event_shape)`` to features ``(N, F)``. The metrics take
any; :func:`classifier_features` makes one from the training data alone, without downloads.
Figures on different features do not compare, so a :class:`FeatureMap` describes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import Values, bridge
from ppgen.errors import ConfigError, DataError, ShapeError

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureMap:
    """A feature function that says what it is.

    Attributes:
        network: affine layers (and ReLUs) on flattened data, in float64.
        event_shape: shape of one datum.
        num_features: width F of the result.
        description: a phrase for reports: what the features are and what they were made from.
    """

    network: nn.Sequential = field(repr=False)
    event_shape: torch.Size
    num_features: int
    description: str

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features of data, ``(N, *event_shape)`` to ``(N, F)``; float64, on the CPU.

        Raises:
            ShapeError: data of another event shape.
        """
        if x.shape[1:] != self.event_shape:
            raise ShapeError(
                f"x: these features are of data of shape (N, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return self.network(x.detach().cpu().double().flatten(1))


def classifier_features(
    train: Split,
    *,
    held_out: Split | None = None,
    num_features: int = 64,
    epochs: int = 30,
    max_data: int = 10_000,
    seed: int = 0,
) -> FeatureMap:
    """Features that tell the classes of the data apart: the last hidden layer of a small classifier.

    The classifier is a perceptron with two hidden layers of ReLUs (scikit-learn's, Adam), trained
    on the labels of ``train`` only. Where there are no class labels, the features are the leading
    principal components of the standardised training data instead, and the description says so.

    Args:
        train: the training split; its ``y`` counts as class labels if it is a vector of integers
            with two values or more.
        held_out: a labelled split on which the accuracy in the description is measured.
        num_features: width of the last hidden layer, or the largest number of components.
        epochs: passes over the training data.
        max_data: train on a random subset of this many, where there are more.
        seed: of the subset, the start and the order of the batches. No global generator is used.

    Raises:
        ConfigError: an argument below 1, or a seed outside 0 .. 2**32 - 1.
        DataError: fewer than 2 training data, or something else than a split.
    """
    _require_split(train, "train")
    if held_out is not None:
        _require_split(held_out, "held_out")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed}")
    for name, number in (("num_features", num_features), ("epochs", epochs), ("max_data", max_data)):
        if number < 1:
            raise ConfigError(f"{name}: expected a positive integer, got {number}")
    if len(train) < 2:
        raise DataError(f"train: features need 2 data or more, got {len(train)}")
    if len(train) > max_data:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        train = train.take(order[:max_data].to(train.x.device))
    standardise = _standardise(train)
    if not _has_classes(train):
        return _components(train, standardise, num_features)
    return _classifier(train, held_out, standardise, num_features, epochs, seed)


def standardised_features(train: Split) -> FeatureMap:
    """All coordinates, with the training split's mean 0 and standard deviation 1.

    So that no column of a table rules the distances by its unit. Coordinates of discrete data
    share one unit, hence one deviation; constant ones are centred alone.

    Args:
        train: the training split.

    Raises:
        DataError: fewer than 2 training data, or something else than a split.
    """
    _require_split(train, "train")
    if len(train) < 2:
        raise DataError(f"train: features need 2 data or more, got {len(train)}")
    description = f"the {train.num_dims} standardised coordinates"
    return FeatureMap(nn.Sequential(_standardise(train)), train.event_shape, train.num_dims, description)


def to_data_space(samples: Tensor, support: Values, values: Values) -> Tensor:
    """Samples of a model of values ``support`` as data of values ``values``, same shape.

    Draws of a density that was fitted to dequantised data are put back on the data's grid; where
    both agree, nothing changes.

    Raises:
        DataError: NaN or infinite samples, or a model of discrete values beside data of others.
    """
    bad = int((~torch.isfinite(samples)).sum())
    if bad:
        raise DataError(
            f"samples: expected finite numbers, got {bad} NaN or infinite of {samples.numel()}; "
            "the model has likely diverged"
        )
    bridge(values, support)  # raises where the model is for other values
    return samples if values.within(support) else values.quantise(samples)


def extract(real: Tensor, generated: Tensor, features: Features | None) -> tuple[Tensor, Tensor]:
    """Features ``(N, F)`` and ``(M, F)`` of both samples, float64, finite, on the CPU.

    Args:
        real: data, or their features.
        generated: samples, or their features.
        features: the feature function; ``None`` takes the (flattened) arguments as features.

    Raises:
        DataError: no data, or NaN or infinite features.
        ShapeError: shapes that do not match.
    """
    for name, sample in (("real", real), ("generated", generated)):
        if not isinstance(sample, Tensor):
            hint = "its .x" if isinstance(sample, Split) else "torch.as_tensor(...) of an array, or split.x"
            raise DataError(f"{name}: expected a tensor, got a {type(sample).__name__}; pass {hint}")
    if real.shape[1:] != generated.shape[1:] or real.ndim == 0:
        raise ShapeError(
            f"generated: expected data of the shape of the real ones, {tuple(real.shape[1:])} each, "
            f"got {tuple(generated.shape[1:])}"
        )
    both = _extract_one(real, features, "real"), _extract_one(generated, features, "generated")
    if both[0].shape[1] != both[1].shape[1]:
        raise ShapeError(
            f"features: gave {both[0].shape[1]} features for the real data and "
            f"{both[1].shape[1]} for the generated ones; they must be as many"
        )
    return both


@torch.no_grad()
def _extract_one(x: Tensor, features: Features | None, name: str, batch_size: int = 1024) -> Tensor:
    if len(x) == 0:
        raise DataError(f"{name}: expected at least one datum, got none")
    found = x if features is None else torch.cat([features(part) for part in x.split(batch_size)])
    if found.ndim == 0 or len(found) != len(x):
        raise ShapeError(
            f"features: expected one row for each of the {len(x)} {name} data, "
            f"got the shape {tuple(found.shape)}"
        )
    found = found.detach().cpu().double().reshape(len(x), -1)
    bad = int((~torch.isfinite(found)).sum())
    if bad:
        rows = int((~torch.isfinite(found)).any(1).sum())
        raise DataError(
            f"features: expected finite numbers, got {bad} NaN or infinite of {found.numel()} for the "
            f"{name} data ({rows} of {len(x)} rows); check the data and the feature function"
        )
    return found


def _has_classes(split: Split) -> bool:
    y = split.y
    return y is not None and y.ndim == 1 and not y.is_floating_point() and len(y.unique()) > 1


def _require_split(split: object, name: str) -> None:
    if not isinstance(split, Split):
        hint = "give one of its splits" if isinstance(split, DataSet) else "see datasets.as_split"
        raise DataError(f"{name}: expected a Split, got a {type(split).__name__}; {hint}")


def _standardise(train: Split) -> nn.Linear:
    """The layer that centres and scales flattened data as the training split wants it."""
    x = train.x.detach().cpu().double().flatten(1)
    # Coordinates of discrete data share one unit; those of a table each have their own.
    spread = x.std() if train.values.discrete else x.std(0)
    scale = torch.where(spread > 0, spread, 1.0).expand(x.shape[1])
    return _affine(torch.diag(1 / scale), -x.mean(0) / scale)


def _affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer x -> weight x + bias, not to be trained."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer.requires_grad_(False)


def _components(train: Split, standardise: nn.Linear, num_features: int) -> FeatureMap:
    """Leading principal components, or all standardised coordinates where they are few."""
    num_dims = train.num_dims
    if num_dims <= num_features:
        description = f"the {num_dims} standardised coordinates (the data have no class labels)"
        return FeatureMap(nn.Sequential(standardise), train.event_shape, num_dims, description)
    z = standardise(train.x.detach().cpu().double().flatten(1))
    num_features = min(num_features, len(z) - 1)
    directions = torch.linalg.svd(z, full_matrices=False).Vh[:num_features]
    share = float((z @ directions.T).var(0).sum() / z.var(0).sum())
    description = (
        f"the first {num_features} principal components of the standardised training split, "
        f"{share:.0%} of its variance (the data have no class labels)"
    )
    network = nn.Sequential(standardise, _affine(directions, directions.new_zeros(num_features)))
    return FeatureMap(network, train.event_shape, num_features, description)


def _classifier(
    train: Split, held_out: Split | None, standardise: nn.Linear, num_features: int, epochs: int, seed: int
) -> FeatureMap:
    """Penultimate activations of scikit-learn's perceptron, as torch layers."""
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=(2 * num_features, num_features),
        batch_size=min(64, len(train)),
        random_state=np.random.RandomState(seed),
    )
    x, y = _inputs_and_labels(train, standardise, "train")
    classes = np.unique(y)
    for _ in range(epochs):  # one pass each; unlike fit, it does not warn when the passes are over
        classifier.partial_fit(x, y, classes=classes)
    layers: list[nn.Module] = [standardise]
    for weight, bias in zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True):
        layers += [_affine(torch.from_numpy(weight.T), torch.from_numpy(bias)), nn.ReLU()]
    measured, name = (train, "training") if held_out is None else (held_out, held_out.name)
    accuracy = classifier.score(*_inputs_and_labels(measured, standardise, "held_out"))
    description = (
        f"the last hidden layer ({num_features} units) of a small classifier trained on the labels of "
        f"{len(train)} data of the training split, {name} accuracy {accuracy:.1%}"
    )
    return FeatureMap(nn.Sequential(*layers), train.event_shape, num_features, description)


def _inputs_and_labels(split: Split, standardise: nn.Linear, name: str) -> tuple[Any, Any]:
    """Standardised data and labels as numpy arrays."""
    if split.y is None:
        raise DataError(f"{name}: expected class labels y beside x, got none; leave {name} out")
    return standardise(split.x.detach().cpu().double().flatten(1)).numpy(), split.y.cpu().numpy()
