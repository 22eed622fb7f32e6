r"""Continuous normalising flow: a velocity field carries noise to data; trained by flow matching.

Joint density, with y(1) the datum in standardised coordinates (the first layer) and y(0) = z its noise::

    dy/dt = v(y, t, c)
    p(x | c) = N(z; 0, I) * exp(-integral over t of trace dv/dy) * slope of the first layer

    +- data N --------------------------+
    |  noise z  --v(., t), t: 0..1-->  x |     z is no site: x is a deterministic image of it
    +-----------------------------------+

Guide: empty, nothing is latent. Inverse and density are those of the flow up to the error of the solver,
which ``tolerance`` bounds step by step (with the full trace, the density integrates to 1 up to a small
multiple of it); with Hutchinson's trace the density's logarithm is estimated without
bias. Because of both, its kind is ``estimate``, also where nothing is random and the standard error is 0.

Training regresses the velocity on straight lines from noise to data
(:class:`~ppgen.inference.objectives.flow_matching.FlowMatching`), which never solves the equation. In few
dimensions its noise is averaged out within each batch, so that batches of some hundred data pay. Maximum
likelihood, by ``ppgen.fit(flow, ..., objective=ELBO())``, works too, at many times the cost.

Cost: a training step is one pass of the network. A draw takes one pass an evaluation of v, some tens of
them; a density D + 1 times that with the full trace, P + 1 times with P probes.

References:
    Chen, Rubanova, Bettencourt & Duvenaud, *Neural Ordinary Differential Equations*, NeurIPS 2018.
    Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, *FFJORD*, ICLR 2019 (Hutchinson's trace).
    Lipman, Chen, Ben-Hamu, Nickel & Le, *Flow Matching for Generative Modeling*, ICLR 2023.
    Tong et al., *Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport*,
    TMLR 2024 (the coupling by optimal transport).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.datasets.values import Values
from ppgen.distributions.continuous_flow import ContinuousTransform, Solver, Trace, check_trace
from ppgen.errors import ConfigError
from ppgen.inference.objectives.flow_matching import FlowMatching, Pairing
from ppgen.models.family import Family
from ppgen.models.flow import Flow
from ppgen.nn.velocity import VelocityNetwork

# Up to so many coordinates the trace is summed in full unless told otherwise.
_FULL_TRACE = 128


class ContinuousFlow(Flow):
    """A flow in continuous time.

    Args:
        event_shape: shape of one datum.
        hidden: widths of the velocity's hidden layers, see :class:`~ppgen.nn.velocity.VelocityNetwork`.
        context_dim: number of classes or features that the flow is conditioned on; 0 for none.
        num_bins: for data on [0, 1], such as dequantised levels: bins of the histograms by which the
            first layer makes each margin Gaussian, best as many as levels. ``None`` standardises.
        dropout: share of hidden units left out at random by :meth:`velocity` in training mode; what solves
            the equation uses them all.
        coupling: how training pairs noise with data: ``"independent"``, or ``"optimal_transport"`` within
            the batch, for straighter trajectories, at a cost of the batch's size to the power of three.
        solver: ``"dopri5"``, whose steps follow ``tolerance``, or ``"rk4"`` with ``num_steps`` steps.
        num_steps: steps of ``"rk4"``.
        tolerance: error of one step of ``"dopri5"``, relative to one plus the size of the state.
        trace: how the density finds the log-determinant: ``"full"`` or ``"hutchinson"``; by default in full
            up to 128 coordinates.
        num_probes: random probes a datum of ``"hutchinson"``, 2 or more.
    """

    density = Kind.ESTIMATE

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        hidden: Sequence[int] = (256, 256, 256),
        context_dim: int = 0,
        num_bins: int | None = None,
        dropout: float = 0.0,
        coupling: Pairing = "independent",
        solver: Solver = "dopri5",
        num_steps: int = 20,
        tolerance: float = 1e-5,
        trace: Trace | None = None,
        num_probes: int = 4,
    ) -> None:
        super().__init__(event_shape, num_bins=num_bins, context_dim=context_dim)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
        num_dims = self.event_shape.numel()
        if trace is None:
            trace = "full" if num_dims <= _FULL_TRACE else "hutchinson"
        self.dropout = dropout
        self._objective = FlowMatching(coupling)
        network = VelocityNetwork(num_dims, hidden, context_dim=context_dim)
        self.transforms.append(
            ContinuousTransform(
                network,
                solver=solver,
                num_steps=num_steps,
                tolerance=tolerance,
                trace=trace,
                num_probes=num_probes,
            )
        )

    @property
    def transform(self) -> ContinuousTransform:
        """The layer from noise to standardised data."""
        return cast(ContinuousTransform, self.transforms[1])

    def log_likelihood(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: Trace | None = None,
        num_probes: int | None = None,
        tolerance: float | None = None,
    ) -> Estimate:
        """Log p(x_n | context_n) in nats, value of shape ``(N,)``; differentiable.

        Args:
            x: data, shape ``(N, *event_shape)``.
            context: one row a datum, where the model is conditional.
            method: ``"full"``: no randomness, standard error 0, exact up to the solver's error; or
                ``"hutchinson"``: unbiased up to that error. The constructor's ``trace`` by default.
            num_probes: random probes a datum of ``"hutchinson"``, 2 or more, for the standard error; the
                constructor's by default.
            tolerance: of the solver ``"dopri5"``; the constructor's by default.
        """
        method = method or self.transform.trace
        check_trace(method)
        num_probes = self.transform.num_probes if num_probes is None else num_probes
        if method == "hutchinson" and num_probes < 2:
            raise ConfigError(f"num_probes: a standard error needs 2 probes or more, got {num_probes}")
        num_probes = num_probes if method == "hutchinson" else None
        features = self._given(context).context
        y, log_slope = self.layers[0].pull(x.flatten(1))
        z, log_dets = self.transform.pull_with_trace(y, features, num_probes=num_probes, tolerance=tolerance)
        log_base = -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
        values = log_base + log_slope + log_dets
        error = None if num_probes is None else values.detach().std(0) / math.sqrt(num_probes)
        return Estimate.of(values.mean(0), Kind.ESTIMATE, error)

    def default_objective(self) -> FlowMatching:
        """Flow matching with this model's coupling of noise and data."""
        return self._objective

    def to_path(self, x: Tensor) -> Tensor:
        """Data ``(N, *event_shape)`` as the first layer sees them, ``(N, D)``: where the velocity leads."""
        x = self.check_data(x, values=False)  # values cost a step of training a wait for the device
        return self.layers[0].pull(x.flatten(1))[0]

    def velocity(self, y: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity v(y, t, context), ``(N, D)``, at points ``(N, D)`` and times ``(N,)`` in [0, 1]."""
        self.check_context(context)
        value: Tensor = self.transform.network(y, t, context, dropout=self.dropout if self.training else 0.0)
        return value


def _build(event_shape: torch.Size, values: Values, num_data: int) -> ContinuousFlow:
    # Of many data few probes tell their mean as well as the full trace would, at a fraction of its cost.
    return ContinuousFlow(
        event_shape,
        hidden=(256, 256, 256),
        num_bins=values.levels,
        dropout=0.2,
        tolerance=1e-4,
        trace="full" if event_shape.numel() <= 8 else "hutchinson",
    )


FAMILY = Family(
    name="continuous-flow",
    group="flow",
    title="Continuous flow (flow matching)",
    density=Kind.ESTIMATE,
    view="as_is",
    build=_build,
    example=lambda: ContinuousFlow((2,), hidden=(8, 8), solver="rk4", num_steps=4),
    conditional_example=lambda: ContinuousFlow(
        (2,), hidden=(8, 8), solver="rk4", num_steps=4, context_dim=3, coupling="optimal_transport"
    ),
    fit_options={
        "max_seconds": 20.0,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 100,
    },
    reading="Trained by regression alone; its density and its draws solve an equation, to a tolerance.",
)
