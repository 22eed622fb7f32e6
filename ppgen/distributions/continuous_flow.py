r"""Continuous normalising flows: noise carried to data by an ordinary differential equation.

.. math:: \frac{dy}{dt} = v(y, t, c), \qquad y(0) = z, \quad y(1) = x, \qquad
    \log\left|\det \frac{\partial x}{\partial z}\right|
    = \int_0^1 \operatorname{tr} \frac{\partial v}{\partial y}\, dt

(Chen, Rubanova, Bettencourt & Duvenaud 2018). The trace is summed in full, by one derivative a
coordinate, or estimated without bias by :math:`\epsilon^T \frac{\partial v}{\partial y} \epsilon` with random
signs :math:`\epsilon` (Hutchinson 1990; Grathwohl et al. 2019). All log-determinants are in nats.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ppgen.distributions.flow import FlowTransform
from ppgen.errors import ConfigError
from ppgen.ops.ode import Field, dormand_prince, runge_kutta

Solver = Literal["dopri5", "rk4"]
Trace = Literal["full", "hutchinson"]
# Rows that the network is given at once for the full trace.
_MOST_ROWS = 16384


class ContinuousTransform(FlowTransform):
    """The flow of a velocity field from time 0 (noise) to time 1 (data).

    Inverse and log-determinant are exact up to the error of the solver. As any layer's, gradients reach the
    weights, through every step of the solver.

    Args:
        network: the velocity: a module called with points ``(N, D)``, times ``(N,)`` and features of the
            context ``(N, C)`` or ``None``; gives ``(N, D)``.
        solver: ``"dopri5"``, whose steps follow ``tolerance``, or ``"rk4"`` with ``num_steps`` steps.
        num_steps: steps of ``"rk4"``.
        tolerance: error of one step of ``"dopri5"``.
        trace: how the log-determinant is found: ``"full"``, or ``"hutchinson"`` with probes drawn anew at
            each call.
        num_probes: probes a datum of ``"hutchinson"``, 2 or more, so that their spread shows their error.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        solver: Solver = "dopri5",
        num_steps: int = 20,
        tolerance: float = 1e-5,
        trace: Trace = "full",
        num_probes: int = 4,
    ) -> None:
        super().__init__()
        if solver not in get_args(Solver):
            raise ConfigError(f"solver: expected one of {', '.join(get_args(Solver))}, got {solver!r}")
        for name, count, least in (("num_steps", num_steps, 1), ("num_probes", num_probes, 2)):
            if count < least:
                raise ConfigError(f"{name}: expected {least} or more, got {count}")
        if not 0 < tolerance < 1:
            raise ConfigError(f"tolerance: expected a number between 0 and 1, got {tolerance}")
        check_trace(trace)
        self.network = network
        self.solver, self.num_steps, self.tolerance = solver, num_steps, tolerance
        self.trace, self.num_probes = trace, num_probes

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data: the equation forwards in time."""
        y, context, shape = _rows(z, context)

        def field(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return self._velocity(t, y, _of(context, rows))

        return self._integrate(field, y, 0.0, 1.0, self.tolerance).reshape(shape)

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise and the log-determinant, by the ``trace`` of the constructor."""
        probes = None if self.trace == "full" else self.num_probes
        z, log_det = self.pull_with_trace(x, context, num_probes=probes)
        return z, log_det.mean(0)

    def pull_with_trace(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num_probes: int | None = None,
        tolerance: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Data to noise, with the full trace or with independent estimates of it.

        Args:
            x: data ``(..., D)``.
            context: features, as for :meth:`pull`.
            num_probes: number P of Hutchinson's probes; ``None`` for the full trace.
            tolerance: of ``"dopri5"``; the constructor's by default.

        Returns:
            Noise ``(..., D)``, and ``log |det dz/dx|`` of shape ``(P, ...)``, one by each probe; P is 1 for
            the full trace.
        """
        y, context, shape = _rows(x, context)
        num_rows, num_dims = y.shape
        if num_probes is None:
            signs = None
            identity = torch.eye(num_dims, dtype=y.dtype, device=y.device)[:, None]
        else:
            signs = 2 * torch.randint(2, (num_probes, *y.shape), device=y.device).to(y.dtype) - 1

        def field(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            known = _of(context, rows)
            y = state[:, :num_dims]
            if signs is None:
                # In parts, for memory: a pass of the network on N D rows would need much.
                parts = identity.expand(-1, len(y), -1).split(max(1, _MOST_ROWS // max(1, len(y))))
                found = [self._slopes(t, y, known, part) for part in parts]
                slope = found[0][0]
                change = torch.cat([c for _, c in found])
                trace = change.diagonal(dim1=0, dim2=2).sum(-1)[:, None]
            else:
                directions = signs[:, rows]
                slope, change = self._slopes(t, y, known, directions)
                trace = (change * directions).sum(-1).T
            return torch.cat([slope, trace], dim=-1)

        state = torch.cat([y, y.new_zeros(num_rows, num_probes or 1)], dim=-1)
        end = self._integrate(field, state, 1.0, 0.0, self.tolerance if tolerance is None else tolerance)
        z, log_det = end[:, :num_dims], end[:, num_dims:].T
        return z.reshape(shape), log_det.reshape(-1, *shape[:-1])

    def _slopes(
        self, t: Tensor, y: Tensor, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities ``(N, D)``, and :math:`J^T u` of shape ``(P, N, D)`` for directions u, ``(P, N, D)``."""
        num, graph = len(directions), torch.is_grad_enabled()
        many = y.repeat(num, 1)
        known = None if context is None else context.repeat(num, 1)
        with torch.enable_grad():
            if not many.requires_grad:
                many.requires_grad_()
            values = self._velocity(t.repeat(num), many, known)
            (change,) = torch.autograd.grad(values, many, directions.flatten(0, 1), create_graph=graph)
        value = values[: len(y)]
        return value if graph else value.detach(), change.view_as(directions)

    def _velocity(self, t: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        value: Tensor = self.network(y, t, context)
        return value

    def _integrate(self, field: Field, y: Tensor, start: float, stop: float, tolerance: float) -> Tensor:
        if self.solver == "rk4":
            return runge_kutta(field, y, start, stop, num_steps=self.num_steps)
        return dormand_prince(field, y, start, stop, tolerance=tolerance)


def check_trace(trace: str) -> None:
    """Raise :class:`~ppgen.errors.ConfigError` for a way to find the trace that there is not."""
    if trace not in get_args(Trace):
        raise ConfigError(f"trace: expected one of {', '.join(get_args(Trace))}, got {trace!r}")


def _rows(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Points and context as rows ``(N, ...)``, and the shape of the points."""
    shape = x.shape
    if context is not None:
        context = context.expand(*shape[:-1], -1).reshape(-1, context.shape[-1])
    return x.reshape(-1, shape[-1]), context, shape


def _of(context: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if context is None else context[rows]
