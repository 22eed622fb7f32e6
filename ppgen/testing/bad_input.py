"""What a model must refuse, and say why; and what it must take: part of the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppgen.contract import GenerativeModel, HasConditioning, HasLogLikelihood
from ppgen.errors import PpgenError
from ppgen.ops.random import forked_rng

Attempt = tuple[str, Callable[[], Any]]


def check_refusals(model: GenerativeModel, x: Tensor, context: Tensor | None) -> None:
    """Raise :class:`AssertionError` unless each bad argument meets an error of :mod:`ppgen.errors`.

    Args:
        model: a model in evaluation mode.
        x: data that it can produce, shape ``(N, *event_shape)``.
        context: their context, where the model wants one.
    """
    attempts = [*_samples(model, context), *_densities(model, x, context), *_conditions(model, x, context)]
    for name, attempt in attempts:
        try:
            with forked_rng(0):
                attempt()
        except PpgenError:
            continue
        except Exception as error:
            raise AssertionError(f"{name}: no error of ppgen, but {type(error).__name__}: {error}") from error
        raise AssertionError(f"{name} passes without an error")


def check_number_types(model: GenerativeModel, x: Tensor, context: Tensor | None) -> None:
    """Raise :class:`AssertionError` unless whole numbers and float64 count as the same numbers."""
    if not isinstance(model, HasLogLikelihood):
        return
    whole = x[[0, -1]].round() if model.support.levels in (None, 2) else torch.zeros_like(x[:2])
    given = None if context is None else context[[0, -1]]
    if bool(whole.isnan().any()):
        return
    expected = _likelihood(model, whole, given)
    for dtype in (torch.int64, torch.float64):
        found = _likelihood(model, whole.to(dtype), given)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise AssertionError(f"x of type {dtype} has another density than the same numbers in {x.dtype}")


def _likelihood(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    with torch.no_grad(), forked_rng(0):
        value: Tensor = model.log_likelihood(x, context).value
    return value


def _samples(model: GenerativeModel, context: Tensor | None) -> Iterator[Attempt]:
    numbers: tuple[Any, ...] = (0, -1, 1.5, "2", None)
    seeds: tuple[Any, ...] = (-1, 1.5, "a")
    for num in numbers:
        yield f"sample(num={num!r})", partial(model.sample, num, context)
    for seed in seeds:
        yield f"sample(seed={seed!r})", partial(model.sample, 2, _head(context, 2), seed=seed)
    for name, wrong in _contexts(model, context):
        yield f"sample with {name}", partial(model.sample, 12, wrong)


def _densities(model: GenerativeModel, x: Tensor, context: Tensor | None) -> Iterator[Attempt]:
    if not isinstance(model, HasLogLikelihood):
        return
    for name, wrong in _data(model, x):
        given = context if wrong is None or not hasattr(wrong, "__len__") else _head(context, len(wrong))
        yield f"log_likelihood of {name}", partial(model.log_likelihood, wrong, given)
    for name, wrong in _contexts(model, context):
        yield f"log_likelihood with {name}", partial(model.log_likelihood, x, wrong)


def _conditions(model: GenerativeModel, x: Tensor, context: Tensor | None) -> Iterator[Attempt]:
    if not isinstance(model, HasConditioning):
        return
    options: dict[str, Any] = {} if context is None else {"context": context}
    known = torch.ones_like(x, dtype=torch.bool)
    masks: dict[str, Any] = {
        "a mask of numbers": known.float(),
        "a mask for other data": known[:5],
        "a mask that is a list": known.tolist(),
    }
    for name, mask in masks.items():
        yield f"condition with {name}", partial(model.condition, x, mask, **options)
    numbers: tuple[Any, ...] = (0, 1.5)
    for num in numbers:
        yield f"condition(num={num})", partial(model.condition, x, known, num, **options)
    yield "condition of one datum without its batch", partial(model.condition, x[0], known[0], **options)


def _data(model: GenerativeModel, x: Tensor) -> Iterator[tuple[str, Any]]:
    yield "None", None
    yield "a list", x.tolist()
    yield "an array", x.numpy()
    yield "complex numbers", x.to(torch.complex64)
    yield "no data", x[:0]
    yield "one datum without its batch", x[0]
    yield "data with one dimension more", x[:, None]
    broken = {"infinity": torch.inf} if model.support.missing else {"NaN": torch.nan, "infinity": torch.inf}
    if model.support.discrete:
        broken |= {"a value out of support": -1.0, "a value between levels": 0.37}
    for name, value in broken.items():
        wrong = x.clone()
        wrong[(0,) * x.ndim] = value
        yield name, wrong


def _contexts(model: GenerativeModel, context: Tensor | None) -> Iterator[tuple[str, Any]]:
    if context is None:
        return
    yield "no context", None
    yield "a number for a context", 1
    yield "context for 5 of 12 data", context[:5]
    yield "a label beyond the last", context + model.context_dim
    yield "a label below 0", context - 1
    yield "context of another width", torch.zeros(len(context), model.context_dim + 1)
    yield "a column of labels", context[:, None]
    yield "labels that are no integers", context.double()
    if not model.support.missing:
        yield "NaN in the context", torch.full((len(context), model.context_dim), torch.nan)


def _head(context: Tensor | None, num: int) -> Tensor | None:
    return None if context is None else context[:num]
