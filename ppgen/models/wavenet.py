r"""WaveNet: dilated causal convolutions over a series (van den Oord et al. 2016).

.. math:: p(x) = \prod_{t=1}^T p(x_t \mid x_1, \dots, x_{t-1})

.. code-block:: text

    +-- data, n = 1..N --------------------------+
    |  x_n ~ prod_t Head(parameters_t(x_{<t}))   |
    +--------------------------------------------+

Guide: empty, nothing is latent. The density is exact, in one parallel pass. Step t depends on the
:math:`1 + \sum_l d_l` steps before it, where :math:`d_l` are the dilations.

The D coordinates of a step :math:`x_t` are either independent given the past (``within="independent"``:
cheap, and wrong where they move together, such as the notes of a chord), or follow a chain rule of their own
(``within="autoregressive"``): a masked perceptron whose context is what the convolutions say about the past.

Cost of a density: O(N T C^2) a layer of C channels. A draw takes T steps; each layer keeps the last
:math:`d_l` values that it has read in a ring buffer, so that a step computes every unit once (Le Paine et al.
2016), where a sampler without a cache reads all the past anew.

References:
    Van den Oord et al., *WaveNet: A Generative Model for Raw Audio*, 2016.
    Le Paine et al., *Fast Wavenet Generation Algorithm*, 2016.
    Salimans, Karpathy, Chen & Kingma, *PixelCNN++*, ICLR 2017 (mixtures of discretised logistics).
    Boulanger-Lewandowski, Bengio & Vincent, *Modeling Temporal Dependencies in High-Dimensional Sequences*,
    ICML 2012 (a chain rule within a step of polyphonic music).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ppgen.contract import Kind
from ppgen.datasets.values import Values
from ppgen.distributions.heads import HeadName, make_head
from ppgen.distributions.steps import ChainedStep, IndependentStep, StandardisedStep
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.family import Family
from ppgen.models.stepwise import Stepwise
from ppgen.nn.wavenet import DilatedCausalStack


class WaveNet(Stepwise):
    """Dilated causal convolutions over a series on a grid or of real numbers.

    Args:
        event_shape: ``(T,)`` or ``(T, D)``.
        levels: number of levels of a grid, 2 for binary data, ``None`` for real data; sound is best companded
            to 256 levels by :func:`~ppgen.datasets.mu_law`.
        head: what a coordinate's conditional is: ``categorical``, ``logistic_mixture`` (for many levels) or
            ``gaussian_mixture`` (for real data); by default the first for a grid, the last for real data.
        num_components: components of the mixtures.
        within: how the D coordinates of a step hang together, given the past: ``independent`` or
            ``autoregressive``.
        num_blocks: blocks of layers, each with dilations 1, 2, 4, ..., ``2 ** (num_layers - 1)``.
        num_layers: layers of a block.
        dilations: the dilations of all layers, in place of ``num_blocks`` and ``num_layers``.
        channels: width of the layers.
        skip_channels: width of the layers' sum; four times ``channels`` by default.
        dropout: share of the inputs of each layer left out in training mode.
        ragged: whether sequences may end early, in steps of NaN: see :func:`~ppgen.datasets.sequences`. The
            likelihood of such a sequence is that of what it holds.
        context_dim: number of classes or features that the model is conditioned on; 0 for none.
        local_context: whether the context has a label or a row of features for each step, shape ``(N, T)`` or
            ``(N, T, context_dim)``, rather than one for the whole series. Step t depends on the rows up to t.
    """

    network: DilatedCausalStack

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        levels: int | None = None,
        head: HeadName | None = None,
        num_components: int = 5,
        within: Literal["independent", "autoregressive"] = "independent",
        num_blocks: int = 2,
        num_layers: int = 6,
        dilations: Sequence[int] | None = None,
        channels: int = 32,
        skip_channels: int | None = None,
        dropout: float = 0.0,
        ragged: bool = False,
        context_dim: int = 0,
        local_context: bool = False,
    ) -> None:
        if len(event_shape) not in (1, 2):
            raise ShapeError(
                f"event_shape: expected a series (T,) or (T, D), got {tuple(event_shape)}; for images take "
                "PixelCNN"
            )
        if within not in ("independent", "autoregressive"):
            raise ConfigError(f"within: expected 'independent' or 'autoregressive', got {within!r}")
        if dilations is None and (num_blocks < 1 or num_layers < 1):
            raise ConfigError(
                f"num_blocks, num_layers: expected positive integers, got {num_blocks}, {num_layers}"
            )
        made_head = make_head(head, levels, num_components)
        num_dims = event_shape[1] if len(event_shape) == 2 else 1
        super().__init__(
            event_shape,
            made_head,
            per_step=num_dims,
            ragged=ragged,
            context_dim=context_dim,
            context_length=event_shape[0] if local_context else None,
        )
        skip = 4 * channels if skip_channels is None else skip_channels
        chained = within == "autoregressive" and num_dims > 1
        inner = (
            ChainedStep(made_head, num_dims, channels, (4 * channels,))
            if chained
            else IndependentStep(made_head, num_dims)
        )
        self.step_head: nn.Module = inner if levels is not None else StandardisedStep(inner, num_dims)
        self.network = DilatedCausalStack(
            num_dims,
            inner.num_params,
            dilations=[2**k for k in range(num_layers)] * num_blocks if dilations is None else dilations,
            channels=channels,
            skip_channels=skip,
            levels=levels,
            context_dim=context_dim,
            dropout=dropout,
        )
        if not chained:
            self.network.start_from(made_head.start().repeat(num_dims))

    @property
    def receptive_field(self) -> int:
        """How many steps before its own a step depends on."""
        return self.network.receptive_field

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start from the margins of training data ``(N, *event_shape)``, of each coordinate of a step.

        Real data: mean and scale are noted, and inputs and outputs are in their units. Binary data: inputs
        are standardised, and the model begins as independent coordinates of the right frequencies.
        """
        steps = self.steps.split(self.check_data(x)).flatten(0, 1)
        steps = steps[~steps.isnan().any(-1)]
        if len(steps) and self.head.levels in (None, 2):
            scale = steps.std(0, correction=0)
            # A value that is hardly ever seen is no reason for huge inputs.
            scale = torch.where(scale > 0, scale if self.head.levels is None else scale.clamp_min(0.1), 1.0)
            embedding, head = self.network.embedding, self.step_head
            embedding.loc.copy_(steps.mean(0))
            embedding.scale.copy_(scale)
            if isinstance(head, StandardisedStep):
                head.loc.copy_(embedding.loc)
                head.scale.copy_(scale)
            else:
                logits = ((steps.sum(0) + 0.5) / (len(steps) + 1)).logit()
                (head if isinstance(head, ChainedStep) else self.network).start_from(logits)
        self.initialised.fill_(True)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> WaveNet:
    return WaveNet(event_shape, levels=values.levels, num_blocks=1, num_layers=6, channels=32, dropout=0.1)


FAMILY = Family(
    name="wavenet",
    group="autoregressive",
    title="WaveNet",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: WaveNet((3,), levels=3, dilations=(1, 2), channels=4),
    conditional_example=lambda: WaveNet(
        (2,), num_components=2, dilations=(1,), channels=4, skip_channels=8, context_dim=3
    ),
    fit_options={
        "max_seconds": 60.0,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "patience": 30,
    },
    reading="An exact density; each step is predicted from a window of those before it.",
    surveyed=False,
)
