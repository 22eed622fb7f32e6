r"""Flow matching: a velocity learnt by regression, without solving its differential equation.

Noise :math:`z \sim N(0, I)` and data y are joined by straight lines
:math:`y_t = (1 - t) z + t y`, whose velocity is :math:`y - z`. The loss

.. math:: E_{t \sim U(0, 1)}\, E_{z, y} \left\| v(y_t, t, c) - (y - z) \right\|^2

is smallest for :math:`v(y, t, c) = E[y - z \mid y_t = y, c]`, whose flow carries the noise at time 0 to the
data at time 1. It is no likelihood. Noise and data may be paired

- independently. Then the target at :math:`y_t` need not be the velocity of the one line that it was made
  from: it is the mean over the lines from all data of the batch through that point,
  :math:`\sum_j w_j (y_j - z_j)` with :math:`z_j = (y_t - t y_j) / (1 - t)` and
  :math:`w_j \propto N(z_j; 0, I)`. Given the batch, that is the expectation of the line's velocity, so the
  loss is lowered by a constant and its gradient stays unbiased, with far less noise where lines cross (Xu,
  Tong & Jaakkola 2023 for diffusions). In many dimensions all weight is on the line itself;
- by the assignment of least total squared distance within the batch, which straightens the trajectories.

Neither leaves a group of data with one and the same context: the noise must stay independent of it.

References:
    Lipman, Chen, Ben-Hamu, Nickel & Le, *Flow Matching for Generative Modeling*, ICLR 2023.
    Liu, Gong & Liu, *Flow Straight and Fast*, ICLR 2023.
    Tong et al., *Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport*,
    TMLR 2024.
    Xu, Tong & Jaakkola, *Stable Target Field for Reduced Variance Score Estimation in Diffusion Models*, ICLR
    2023.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast, get_args, runtime_checkable

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppgen.contract import GenerativeModel
from ppgen.errors import CapabilityError, ConfigError
from ppgen.inference.objectives.base import Objective, Program, owner
from ppgen.ops.random import forked_rng

Pairing = Literal["independent", "optimal_transport"]
_VALIDATION_SEED = 0
# Data that share their lines: the cost is their number squared.
_MOST_LINES = 256


@runtime_checkable
class HasVelocity(Protocol):
    """A model whose data are the end of a flow in time."""

    def to_path(self, x: Tensor) -> Tensor:
        """Data ``(N, *event_shape)`` as the points ``(N, D)`` where the flow ends."""

    def velocity(self, y: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity ``(N, D)`` at points ``(N, D)`` and times ``(N,)`` in [0, 1]."""


class FlowMatching(Objective):
    """The squared error of a velocity along straight lines from noise to data.

    It runs under :func:`ppgen.fit` and as ``pyro.infer.SVI(flow.model, flow.guide, optim,
    loss=FlowMatching())``.

    Args:
        coupling: how noise and data are paired: ``"independent"``, or ``"optimal_transport"`` within the
            batch (a cost of the batch's size to the power of three, on the CPU).

    Raises:
        ConfigError: another coupling.
    """

    additive = True  # in expectation: parts of a batch pair, or average, within themselves

    def __init__(self, coupling: Pairing = "independent") -> None:
        if coupling not in get_args(Pairing):
            raise ConfigError(f"coupling: expected one of {', '.join(get_args(Pairing))}, got {coupling!r}")
        self.coupling = coupling

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        """The squared error, a total over the data; each datum with one noise and one time.

        Its smallest value is not zero, and without optimal transport falls as batches grow.

        Args:
            model: the ``model`` method of a family with a ``velocity``.
            guide: not used; nothing is latent.
            x: data, shape ``(B, *event_shape)``.
            context: one row a datum, where the model is conditional.
            num: size of the population that the batch stands for; the batch itself by default.

        Raises:
            CapabilityError: the model has no velocity.
        """
        family, field = _field(model)
        family.check_event(x)
        family.check_context(context)
        if not am_i_wrapped():
            return self.errors(field, x, context).sum() * ((num or len(x)) / len(x))
        with family.shown_to_pyro():  # pyro.infer.SVI learns of the parameters by watching
            return self.errors(field, x, context).sum() * ((num or len(x)) / len(x))

    def validation_loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor | None:
        """The same error, a total over the batch, on noise and times that are the same at each call."""
        with forked_rng(_VALIDATION_SEED, x.device):
            return self.loss(model, guide, x, context, num=num)

    def errors(self, field: HasVelocity, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The squared error at a point of each datum's line, shape ``(B,)``."""
        y = field.to_path(x)
        z = torch.randn_like(y)
        if self.coupling == "optimal_transport":
            z = z[assignment(z, y, context)]
        # One time in each of B equal parts of [0, 1], in random order: uniform, and the sum varies less.
        parts = torch.randperm(len(y), device=y.device).to(y.dtype)
        t = (parts + torch.rand_like(parts)) / len(y)
        y_t = torch.lerp(z, y, t[:, None])
        target = y - z if self.coupling == "optimal_transport" else mean_velocity(z, y, t, context)
        return (field.velocity(y_t, t, context) - target).square().sum(-1)


@torch.no_grad()
def mean_velocity(z: Tensor, y: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    """The mean velocity of the lines from all data through a point of each datum's line.

    Args:
        z: noise ``(B, D)``.
        y: data ``(B, D)``.
        t: times ``(B,)``; the points are ``(1 - t) z + t y``.
        context: labels ``(B,)`` or features ``(B, C)``; the lines are those from data of equal context.

    Returns:
        Shape ``(B, D)``.
    """
    rows = None if context is None else context.reshape(len(y), -1).to(y.dtype)
    parts = [slice(start, start + _MOST_LINES) for start in range(0, len(y), _MOST_LINES)]
    with torch.autocast(y.device.type, enabled=False):
        return torch.cat([_mean_velocity(z[p], y[p], t[p], None if rows is None else rows[p]) for p in parts])


def _mean_velocity(z: Tensor, y: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
    # z_j = z + r (y - y_j): all is measured from the line itself, whose terms are exactly zero.
    rest = (1 - t).clamp_min(1e-6)
    r = (t / rest)[:, None]
    along, products = z @ y.mT, y @ y.mT
    sizes = products.diagonal()
    apart = sizes[:, None] + sizes - 2 * products
    logits = r * (along - along.diagonal()[:, None]) - 0.5 * r.square() * apart
    if rows is not None:
        logits = logits.masked_fill(torch.cdist(rows, rows, p=torch.inf) > 0, -torch.inf)
    return y - z + (logits.softmax(-1) @ y - y) / rest[:, None]


@torch.no_grad()
def assignment(z: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
    """For each row of y the row of z that it is paired with: least total squared distance.

    Args:
        z: shape ``(B, D)``.
        y: shape ``(B, D)``.
        context: labels ``(B,)`` or features ``(B, C)``; pairs are exchanged between rows of equal context
            alone.

    Returns:
        A permutation of 0..B-1, shape ``(B,)``.
    """
    from scipy.optimize import linear_sum_assignment

    partner = torch.arange(len(y))
    group = torch.zeros(len(y), dtype=torch.long)
    if context is not None:
        group = torch.unique(context.reshape(len(y), -1).cpu(), dim=0, return_inverse=True)[1]
    distance = torch.cdist(y, z).square().cpu()
    for number in range(int(group.max()) + 1):
        members = (group == number).nonzero()[:, 0]
        _, columns = linear_sum_assignment(distance[members][:, members].numpy())
        partner[members] = members[torch.from_numpy(columns)]
    return partner.to(y.device)


def _field(model: Program) -> tuple[GenerativeModel, HasVelocity]:
    family = owner(model, "FlowMatching")
    if not isinstance(family, HasVelocity):
        raise CapabilityError(
            f"model: FlowMatching needs a model with velocity() and to_path(); {type(family).__name__} has "
            "none. Train it with the family's own objective"
        )
    return family, cast(HasVelocity, family)
