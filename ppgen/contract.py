r"""The contract that every generative model of ppgen keeps.

A family is a subclass of :class:`GenerativeModel` with two Pyro programs,
``model`` (the generative story :math:`p(x, z)`) and ``guide`` (the recognition
:math:`q(z \mid x)`), and as many *capabilities* as its mathematics allows. Every
number about a density travels as an :class:`Estimate`, which says what it is.

In reading order: :class:`Kind` and :class:`Estimate`; the capabilities, protocols that a
family fulfils by having the method, and :func:`require`, by which a task asks for one;
:class:`GenerativeModel`, which looks at the arguments of its subclasses' programs and methods before they do.

All log-probabilities are in nats.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self, SupportsIndex, TypeVar, cast, runtime_checkable

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppgen.datasets.values import REAL, Values
from ppgen.distributions.data_plate import DataPlate
from ppgen.distributions.parameter_sites import ANNOUNCED, announce
from ppgen.errors import CapabilityError, ConfigError, DataError, DeviceError, ShapeError
from ppgen.ops.random import forked_rng

# --------------------------------------------------------------------------------------
# Estimates
# --------------------------------------------------------------------------------------


class Kind(StrEnum):
    """What a number says about the quantity that it stands for."""

    #: the number itself
    EXACT = "exact"
    #: at or below the number, in expectation
    LOWER_BOUND = "lower_bound"
    #: at or above the number, in expectation
    UPPER_BOUND = "upper_bound"
    #: tends to the number, on neither side for sure
    ESTIMATE = "estimate"
    #: the number up to an unknown constant
    UNNORMALISED = "unnormalised"


# What adding two independent quantities of these kinds gives.
_OPPOSITE = {Kind.LOWER_BOUND: Kind.UPPER_BOUND, Kind.UPPER_BOUND: Kind.LOWER_BOUND}


@dataclass(frozen=True)
class Estimate:
    """A number, or one number a datum, with what it is and how sure it is.

    Attributes:
        value: the estimate; log quantities in nats.
        kind: exact, a bound in expectation, a consistent estimate, or a log density
            that lacks its normaliser.
        std_error: Monte-Carlo standard error of ``value``, same shape; 0 where
            nothing was drawn at random.
        shared_error: the part of ``std_error`` that all values have in common, a scalar, such as that of
            one estimated log normaliser; ``None`` where their errors are independent.
    """

    value: Tensor
    kind: Kind
    std_error: Tensor
    shared_error: Tensor | None = None

    @classmethod
    def of(cls, value: Tensor, kind: Kind | str, std_error: Tensor | None = None) -> Estimate:
        """Build an estimate; ``std_error`` defaults to zero."""
        return Estimate(value, Kind(kind), torch.zeros_like(value) if std_error is None else std_error)

    def mean(self) -> Estimate:
        r"""The mean over data, as an estimate of the population mean.

        The standard error is :math:`s / \sqrt{N}`, with s the standard deviation of the
        values over data; it holds the sampling of the data and, inside it, the
        Monte-Carlo error of each value, which is independent between data. ``shared_error`` shifts
        all values together and is not in s; it is added in quadrature. For N = 1 the error is the
        Monte-Carlo error alone.
        """
        count = self.value.numel()
        if count == 1:
            return Estimate(self.value.mean(), self.kind, self.std_error.mean(), self.shared_error)
        error = self.value.std() / math.sqrt(count)
        if self.shared_error is not None:
            error = torch.hypot(error, self.shared_error.to(error))
        return Estimate(self.value.mean(), self.kind, error, self.shared_error)

    def affine(self, scale: float, shift: float = 0.0) -> Estimate:
        """``scale * self + shift``; a negative scale turns a lower bound into an upper one."""
        kind = _OPPOSITE.get(self.kind, self.kind) if scale < 0 else self.kind
        shared = None if self.shared_error is None else abs(scale) * self.shared_error
        return Estimate(scale * self.value + shift, kind, abs(scale) * self.std_error, shared)

    def __str__(self) -> str:
        if self.value.numel() != 1:
            return f"{self.kind} of shape {tuple(self.value.shape)}, mean {self.mean()}"
        sign = {Kind.LOWER_BOUND: "≥ ", Kind.UPPER_BOUND: "≤ "}.get(self.kind, "")
        return f"{sign}{self.value.item():.4f} ± {self.std_error.item():.4f} ({self.kind})"


# --------------------------------------------------------------------------------------
# Capabilities: a task asks for one; a family has it by having the method
# --------------------------------------------------------------------------------------


@runtime_checkable
class HasLogLikelihood(Protocol):
    """log p(x), exact, bounded or unnormalised, as its estimate says."""

    def log_likelihood(self, x: Tensor, context: Tensor | None = None, **options: Any) -> Estimate:
        """Log-likelihood log p(x_n) of each datum, value of shape (N,), in nats."""


@runtime_checkable
class HasEncoder(Protocol):
    """A map from data to latents."""

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents of x: the posterior mean, or the exact inverse; shape (N, L)."""


@runtime_checkable
class HasDecoder(Protocol):
    """A map from latents to data."""

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The mean of x given z, or the exact image of z; shape ``(N, *event_shape)``."""


@runtime_checkable
class HasScore(Protocol):
    """The gradient of the log density."""

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient d log p(x) / dx; same shape as x."""


@runtime_checkable
class HasEnergy(Protocol):
    """An energy: minus the log density up to a constant."""

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """E(x) with p(x) = exp(-E(x)) / Z; shape (N,), in nats."""


@runtime_checkable
class HasLogPartition(Protocol):
    """The normaliser of an energy."""

    def log_partition(self, **options: Any) -> Estimate:
        """The log normaliser log Z, a scalar, in nats."""


@runtime_checkable
class HasResponsibilities(Protocol):
    """An exact posterior over a discrete latent."""

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x_n); shape (N, K), rows sum to one."""


@runtime_checkable
class HasConditioning(Protocol):
    """Draws of the missing coordinates given the observed ones."""

    def condition(self, x: Tensor, mask: Tensor, num: int = 1, **options: Any) -> Tensor:
        """Draws of x with ``mask`` (True = observed) held fixed; shape ``(num, N, *event_shape)``."""


@runtime_checkable
class HasInitialiser(Protocol):
    """A start that looks at the data (k-means++, biases at the data's means, standardisation)."""

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from training data; the trainer calls it once, before the first step."""


@runtime_checkable
class HasDefaultObjective(Protocol):
    """A family whose objective is not the ELBO (which is maximum likelihood without latents)."""

    def default_objective(self) -> Any:
        """The objective that :func:`ppgen.fit` minimises unless told otherwise."""


def require(model: object, capability: type[Any], purpose: str) -> None:
    """Raise :class:`~ppgen.errors.CapabilityError` unless ``model`` has ``capability``."""
    if not isinstance(model, capability):
        wanted = ", ".join(n for n in vars(capability) if not n.startswith("_"))
        raise CapabilityError(
            f"{purpose} needs a model with {wanted}(); {type(model).__name__} has none. "
            f"ppgen.models.families_with({capability.__name__}) lists the families that have it."
        )


# --------------------------------------------------------------------------------------
# The generative model
# --------------------------------------------------------------------------------------

_COUNTER = itertools.count(1)


def _program(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method a Pyro program: check x, tell Pyro of the parameters, allow priors."""

    @functools.wraps(method)
    def program(
        self: GenerativeModel,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Any:
        self.check_event(x)
        context = self.context_rows(context, num if x is None else len(x))
        # A PyroModule inside would else put its parameters into Pyro's global store.
        if self._has_pyro_parts() or (ANNOUNCED.get() and am_i_wrapped()):
            with self.shown_to_pyro():
                return method(self, x, num=num, context=context)
        return method(self, x, num=num, context=context)

    return program


_Method = TypeVar("_Method", bound=Callable[..., Any])
# What is asked about data, or about latents: a query in every family.
_QUERIES = ("log_likelihood", "encode", "decode", "score", "energy", "responsibilities", "condition")
# Their values are not looked at: what is missing may hold anything; an energy is asked for in inner loops.
_SHAPES_ALONE = ("condition", "energy")


def query(method: _Method) -> _Method:
    """Make a method whose first argument is data ``x`` one that looks at its arguments before they are used.

    ``x`` goes through :meth:`GenerativeModel.check_data`, and ``context``, where the method has it, through
    :meth:`GenerativeModel.checked_context`. The capabilities of this module are queries in every family
    without this decorator; it is for what a family has beside them, such as the likeliest path of states.
    """
    signature = inspect.signature(method)
    first = list(signature.parameters)[1]
    look = method.__name__ not in _SHAPES_ALONE

    @functools.wraps(method)
    def checked(self: GenerativeModel, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        arguments = bound.arguments
        if first == "x":
            arguments["x"] = self.check_data(arguments["x"], values=look)
        else:
            _check_numbers(arguments[first], first)
        if "context" in signature.parameters:
            context = self.checked_context(arguments.get("context"), len(arguments[first]))
            if context is not None:
                arguments["context"] = context
        return method(*bound.args, **bound.kwargs)

    return cast(_Method, checked)


class GenerativeModel(PyroModule):
    """A Pyro model/guide pair with one way to sample, evaluate, fit, save and compare it.

    A subclass calls ``super().__init__(event_shape, support=...)`` and defines

    * ``model(self, x=None, context=None, *, num=None)``: the joint p(z, x | context) as
      Pyro samples in the plate ``data``; the observed site is ``x``, latents are ``z``
      (discrete ones ``k``). It returns x. Given ``x`` (shape ``(B, *event_shape)``), the
      site is observed; without, ``num`` data are generated. Given both, ``x`` is a batch
      of a population of ``num`` and Pyro scales its log-probability by ``num / B``. Under a
      Pyro handler, pass ``context`` by position: handlers have an argument of that name.
    * ``guide`` with the same signature: q(z | x, context); left out where there are no
      latents.

    Both run under Pyro's handlers and algorithms. Everything learnt lives in
    ``state_dict``: parameters are shown to Pyro as ``param`` sites under a name unique to
    the instance, and never enter Pyro's global parameter store, also those of a ``PyroModule``
    inside (only ``JitTrace_ELBO`` and its like, which read that store, cannot be used). A part that
    is a ``PyroSample`` is drawn anew in each run; give such a model to ``pyro.infer`` with a guide
    of its own, such as ``AutoNormal(family.model)``.

    What a subclass's ``model``, ``guide`` and capabilities are given has been looked at: ``x`` is a tensor
    of the event's shape, for capabilities in the model's dtype and of values that its data can have;
    ``context`` has one row a datum, and one row given for all is repeated.

    :func:`ppgen.testing.check_contract` checks all this on a model.

    Attributes:
        event_shape: shape of one datum.
        support: the values that a coordinate of x can take.
        density: kind of what ``log_likelihood`` returns; ``None`` for implicit models.
        context_dim: number of features of the context that the model is conditioned on; 0 for none.
        takes_labels: whether y of the data, where it is classes, is a site ``y`` of this unconditional model:
            then the trainer hands it over in the place of a context, and it is observed there.
        config: the constructor's arguments, which rebuild the model in :func:`ppgen.load`.
    """

    event_shape: torch.Size
    support: Values
    density: Kind | None = None
    context_dim: int = 0
    takes_labels: bool = False
    initialised: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("model", "guide"):
            if name in vars(cls):
                setattr(cls, name, _program(vars(cls)[name]))
        for name in _QUERIES:
            if name in vars(cls):
                setattr(cls, name, query(vars(cls)[name]))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the constructor's arguments and give the instance its name in Pyro traces."""
        self: Self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        arguments.update(arguments.pop("kwargs", {}))
        self.__dict__["config"] = arguments
        self.__dict__["_site_prefix"] = f"{cls.__name__}#{next(_COUNTER)}"
        return self

    def __init__(self, event_shape: tuple[int, ...] | torch.Size, *, support: Values = REAL) -> None:
        super().__init__()
        if not isinstance(event_shape, tuple | list) or not all(
            isinstance(n, int) and n > 0 for n in event_shape
        ):
            raise ShapeError(
                f"event_shape: expected a tuple of positive integers such as (2,) or (1, 28, 28), "
                f"got {event_shape!r}"
            )
        # Made here as PyroModule would with its setting for local parameters switched on.
        self._pyro_context.param_state = {"params": {}, "constraints": {}}
        if isinstance(self, HasInitialiser):
            self.register_buffer("initialised", torch.tensor(False))
        self.event_shape = torch.Size(event_shape)
        self.support = support

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The generative story; see the class."""
        raise TypeError(f"{type(self).__name__} defines no model; a GenerativeModel needs one")

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """No latents, nothing to guess."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Calling the model runs ``model``."""
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def sample(self, num: int = 1, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw ``num`` data from p(x | context); shape ``(num, *event_shape)``.

        Args:
            num: how many.
            context: one row a draw, or one row for all, where the model is conditional.
            seed: for draws that repeat; the global generators are left as they were.
                Without it, torch's global generator is used, as torch does.

        Raises:
            ConfigError: a number that is no positive integer; a seed that is none.
            ShapeError, DataError, CapabilityError: a context that does not fit the model.
        """
        check_count(num)
        context = self.checked_context(context, num)
        with forked_rng(seed, self.device):
            return self.model(num=num, context=context)

    # -- for subclasses -------------------------------------------------------------------

    def data_plate(self, x: Tensor | None, num: int | None, context: Tensor | None = None) -> DataPlate:
        """The plate ``data``, as ``model`` and ``guide`` both need it.

        Its size is the batch, or ``num`` when generating; with both, the batch stands for a
        population of ``num`` and log-probabilities inside are scaled by ``num / B``.
        """
        if x is None:
            size = num if num is not None else 1 if context is None else len(context)
            return DataPlate("data", size, size, self.device)
        batch = x.shape[0]
        if num is not None and num < batch:
            raise ShapeError(f"num: a population holds at least its batch of {batch} data, got num={num}")
        return DataPlate("data", num or batch, batch, x.device)

    def check_event(self, x: Tensor | None) -> None:
        """Raise :class:`~ppgen.errors.ShapeError` unless ``x`` is a tensor of shape ``(B, *event_shape)``."""
        if x is None:
            return
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"x: {type(self).__name__} expects a tensor of shape (B, "
                f"{', '.join(map(str, self.event_shape))}), got {type(x).__name__}; pass torch.as_tensor(x)"
            )
        if x.shape[1:] != self.event_shape:
            raise ShapeError(
                f"x: {type(self).__name__} expects shape (B, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}; one datum needs its batch dimension too: x[None]"
            )

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless ``context`` is a tensor, given exactly where the model is conditional."""
        if context is not None and not isinstance(context, Tensor):
            raise ShapeError(
                f"context: expected a tensor of one row a datum, got {type(context).__name__} {context!r}; "
                "one label for all data is torch.tensor([label])"
            )
        if context is not None and self.context_dim == 0:
            raise CapabilityError(
                f"context: this {type(self).__name__} is unconditional, got a context of shape "
                f"{tuple(context.shape)}; build it with context_dim=... if the family has that argument"
            )
        if context is None and self.context_dim > 0:
            raise ShapeError(
                f"context: this {type(self).__name__} is conditional and expects one row of "
                f"{self.context_dim} features (or one integer label) a datum, got None"
            )

    def check_data(self, x: Tensor, *, values: bool = True) -> Tensor:
        """The data x in the model's dtype, once they have been found to be data of this model.

        Every method that is asked about data (``log_likelihood``, ``encode``, ``score``, ...) is given them
        by way of this one.

        Args:
            x: data, shape ``(N, *event_shape)``; numbers of any real type, also booleans.
            values: whether to look at the values, and not at their shape, type and device alone.

        Raises:
            ShapeError: no tensor, or another event shape.
            DataError: no data; complex numbers; values that the model's data cannot have, such as NaN.
            DeviceError: data elsewhere than the parameters.
        """
        if x is None:
            raise ShapeError(f"x: {type(self).__name__} expects a tensor of data, got None")
        self.check_event(x)
        if len(x) == 0:
            raise DataError(f"x: expected one datum or more, got none, shape {tuple(x.shape)}")
        own = next(
            (t for t in itertools.chain(self.parameters(), self.buffers()) if t.is_floating_point()), x
        )
        if x.is_complex():
            raise DataError(
                f"x: expected real numbers, got {x.dtype}; pass x.real, or both parts side by side"
            )
        if x.device != own.device:
            raise DeviceError(
                f"x: the model's parameters are on {own.device}, x is on {x.device}; pass x.to(model.device)"
            )
        x = x.to(own.dtype)
        if values and not x.is_meta:
            self.support.check(x, "x")
        return x

    def context_rows(self, context: Tensor | None, num: int | None) -> Tensor | None:
        """The context of ``num`` data, one row each; a single row is that of all.

        Raises:
            CapabilityError, ShapeError: as :meth:`check_context` does; another number of rows.
        """
        self.check_context(context)
        if context is None or not (self.context_dim or self.takes_labels):
            return context
        if context.ndim < 1 + context.is_floating_point():
            raise ShapeError(
                f"context: {type(self).__name__} expects one row a datum, integer labels of shape (N,) or "
                f"features of shape (N, {self.context_dim}), got {context.dtype} of shape "
                f"{tuple(context.shape)}; give labels as integers, and one row for all data as row[None]"
            )
        if num is None or len(context) == num:
            return context
        if len(context) != 1:
            raise ShapeError(
                f"context: expected one row for each of {num} data, or one row for all, got {len(context)}"
            )
        return context.expand(num, *context.shape[1:])

    def checked_context(self, context: Tensor | None, num: int | None = None) -> Tensor | None:
        """:meth:`context_rows`, once its values have been looked at too."""
        context = self.context_rows(context, num)
        if context is not None:
            self.check_context_values(context)
        return context

    def check_context_values(self, context: Tensor) -> None:
        """Raise :class:`~ppgen.errors.DataError` for NaN in a context, where it has no meaning."""
        if not self.support.missing and not context.is_meta:
            _check_numbers(context, "context")

    @property
    def device(self) -> torch.device:
        """Where the parameters are; ``cpu`` for a model without any."""
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def num_parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(p.numel() for p in self.parameters())

    @property
    def has_priors(self) -> bool:
        """Whether some part of the model is a ``PyroSample``, drawn anew in each run of a program."""
        return any(isinstance(m, PyroModule) and m._pyro_samples for m in self.modules())

    @contextlib.contextmanager
    def shown_to_pyro(self) -> Iterator[None]:
        """Show parameters to Pyro without its global store, and let PyroSample priors work."""
        with pyro.settings.context(module_local_params=True):
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    announce(f"{self._site_prefix}.{name}", parameter)
            # Marked, not entered: entering swaps Pyro's global store for a moment, which strips
            # what other parts of a program, such as an automatic guide, keep in it.
            contexts: dict[int, Any] = {
                id(m._pyro_context): m._pyro_context for m in self.modules() if _is_pyro_part(m, self)
            }
            for found in contexts.values():
                found.active += 1
                found.used = True
            try:
                yield
            finally:
                for found in contexts.values():
                    found.active -= 1
                    if not found.active:
                        found.cache.clear()

    def _has_pyro_parts(self) -> bool:
        """Whether any module inside is one of :func:`_is_pyro_part`; asked in every run, so it is lean."""
        if self._pyro_samples or self._pyro_params:
            return True
        rest = list(self._modules.values())
        while rest:
            module = rest.pop()
            if isinstance(module, PyroModule):
                return True
            if module is not None:
                rest.extend(module._modules.values())
        return False


def _is_pyro_part(module: Any, root: GenerativeModel) -> bool:
    """Whether Pyro itself watches the attributes of this module for parameters and priors."""
    if not isinstance(module, PyroModule):
        return False
    return module is not root or bool(module._pyro_samples or module._pyro_params)


def check_count(num: Any, name: str = "num") -> None:
    """Raise :class:`~ppgen.errors.ConfigError` unless ``num`` is a positive integer."""
    if isinstance(num, bool) or not isinstance(num, SupportsIndex) or operator.index(num) < 1:
        raise ConfigError(f"{name}: expected a positive integer, got {num!r}")


def _check_numbers(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{name}: expected a tensor, got {type(value).__name__}; pass torch.as_tensor({name})"
        )
    if value.is_meta:
        return
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        raise DataError(
            f"{name}: expected finite numbers, got {int(bad.sum())} NaN or infinite of {value.numel()}"
        )
