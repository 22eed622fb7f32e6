r"""What lets a Pyro model, written for one run at a time, be traced, batched and computed in any precision.

Everything here is a context that restores what it found, also after an exception. Inside
:func:`cured`, for the time of one run of a model:

=============================================  ==========================================================
what would break                               what happens instead
=============================================  ==========================================================
validation looks at values (``.all()``)        it is off; one run was validated before
a distribution made outside with validation    its values are not validated either
``torch.tensor([latent, 1.0])``                the entries are stacked, and keep their gradients
``x[mask] = 0.0`` under a mask of latents       filled by the mask, which keeps shapes
a Cholesky factor of an indefinite matrix      NaN in that factor, rather than an exception
``torch.zeros(3)``, ``torch.tensor(0.1)``      made in the precision and on the device of the run
data, parameters, constants of another float   cast where they are used; the objects themselves stay
parameters that require gradients              taken as constants
modules that enter Pyro's parameter store      taken out of it again
random numbers drawn outside of sample sites   drawn from a forked generator
=============================================  ==========================================================
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.ops.random import forked_rng

# Pyro's handler stack and the switches of validation belong to the whole process.
_LOCK = threading.RLock()


@contextlib.contextmanager
def cured(dtype: torch.dtype | None, device: torch.device | None, seed: int) -> Iterator[None]:
    """Run a model inside; see the table above.

    Args:
        dtype: precision of all floats inside; ``None`` leaves each as it is.
        device: where tensors are made and used; ``None`` leaves each where it is.
        seed: of random numbers that the model draws outside of sample sites.
    """
    with _LOCK, forked_rng(seed, device or "cpu"), validation(False), store_kept(), Cures(dtype, device):
        yield


@contextlib.contextmanager
def store_kept() -> Iterator[None]:
    """Take out of Pyro's parameter store what is put in inside; modules do, at each run."""
    store = pyro.get_param_store()
    known = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - known:
            del store[name]


@contextlib.contextmanager
def validation(is_on: bool) -> Iterator[None]:
    """Set every switch of validation, of torch and of Pyro, and also of distributions made before."""
    with _LOCK, pyro.validation_enabled(is_on):
        if is_on:
            yield
            return
        kept = torch.distributions.Distribution._validate_sample
        torch.distributions.Distribution._validate_sample = _no_check  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.distributions.Distribution._validate_sample = kept  # type: ignore[method-assign]


def _no_check(self: object, value: Tensor) -> None:
    pass


# Float tensors that they make are of the default precision unless told otherwise.
_FLOAT_FACTORIES = {
    torch.zeros, torch.ones, torch.empty, torch.eye, torch.linspace, torch.logspace, torch.rand, torch.randn,
}  # fmt: skip
# Precision follows from the values given.
_VALUE_FACTORIES = {torch.tensor, torch.as_tensor, torch.full, torch.arange, torch.scalar_tensor}
_TO_FLOAT = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}
_CHOLESKY = {torch.linalg.cholesky, torch.cholesky, Tensor.cholesky}
_INVERSE = {torch.linalg.inv, torch.inverse, Tensor.inverse}


class Cures(TorchFunctionMode):
    """Every torch function called by a model passes here; see the module's table."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device | None) -> None:
        super().__init__()
        self._dtype, self._device = dtype, device
        # One cast a tensor and run. The originals are kept so that no other gets their id.
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with what the table says."""
        kwargs = kwargs or {}
        if func.__name__ == "__get__":
            return func(*args, **kwargs)
        if func in _VALUE_FACTORIES:
            return self._from_values(func, args, kwargs)
        if func in _FLOAT_FACTORIES:
            return func(*args, **self._placed({"dtype": self._dtype} | kwargs))
        args = tuple(self._cast(arg) for arg in args)
        kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        if func in _TO_FLOAT and self._dtype is not None:
            return args[0]
        if func in _CHOLESKY:
            return _cholesky(*args, **kwargs)
        if func in _INVERSE:
            return _inverse(*args, **kwargs)
        if func is Tensor.__setitem__ and _is_mask(args[1]) and _is_number(args[2]):
            target, mask, value = args
            return target.masked_fill_(mask.reshape(mask.shape + (1,) * (target.ndim - mask.ndim)), value)
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._cast_tensor(value)
        if isinstance(value, torch.dtype):
            return self._dtype if self._dtype is not None and value.is_floating_point else value
        if type(value) in (list, tuple):
            return type(value)(self._cast(v) for v in value)
        return value

    def _cast_tensor(self, value: Tensor) -> Tensor:
        # Thousands of calls a run, nearly all of them with nothing to do.
        if type(value) is Tensor and value.dtype is self._dtype and self._device is None:
            return value
        wants_dtype = self._dtype not in (None, value.dtype) and value.is_floating_point()
        wants_device = self._device is not None and value.device != self._device
        detaches = isinstance(value, torch.nn.Parameter) and value.requires_grad
        if not (wants_dtype or wants_device or detaches):
            return value
        if id(value) in self._casts:
            return self._casts[id(value)][1]
        new = value.detach() if detaches else value
        if wants_dtype or wants_device:
            new = new.to(device=self._device, dtype=self._dtype if wants_dtype else None)
        self._casts[id(value)] = value, new
        return new

    def _placed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        if self._device is not None:
            kwargs["device"] = self._device
        return {name: value for name, value in kwargs.items() if value is not None}

    def _from_values(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = self._placed(kwargs)
        if func in (torch.tensor, torch.as_tensor) and args and _holds_tensors(args[0]):
            value = self._stack(args[0])
            return value.to(kwargs["dtype"]) if "dtype" in kwargs else value
        args = tuple(self._cast(arg) for arg in args)
        made: Tensor = func(*args, **kwargs)
        if "dtype" in kwargs or not made.is_floating_point() or self._dtype in (None, made.dtype):
            return made
        if any(isinstance(arg, Tensor) for arg in args):
            return made.to(self._dtype)
        return func(*args, **kwargs, dtype=self._dtype)  # again, for numbers lose digits on the way

    def _stack(self, values: Any) -> Tensor:
        if isinstance(values, (list, tuple)):
            rows = [self._stack(value) for value in values]
            dtype = rows[0].dtype
            for row in rows[1:]:
                dtype = torch.promote_types(dtype, row.dtype)
            return torch.stack([row.to(dtype) for row in rows])
        value = self._cast(torch.as_tensor(values))
        if isinstance(values, float) and self._dtype is not None:
            value = torch.as_tensor(values, dtype=self._dtype)
        if self._device is not None:
            value = value.to(self._device)
        return value


def _holds_tensors(values: Any) -> bool:
    if isinstance(values, (list, tuple)):
        return any(isinstance(v, Tensor) or _holds_tensors(v) for v in values)
    return False


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)


def _cholesky(matrix: Tensor, upper: bool = False, **options: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info > 0)[..., None, None], torch.nan, factor)


def _inverse(matrix: Tensor, **options: Any) -> Tensor:
    inverse, info = torch.linalg.inv_ex(matrix)
    return torch.where((info > 0)[..., None, None], torch.nan, inverse)
