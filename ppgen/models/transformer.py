r"""A transformer decoder over the tokens of a sequence or the pixels of an image.

.. math:: p(x) = \prod_{s=1}^S p(x_s \mid x_1, \dots, x_{s-1})

with the logits of every conditional from a stack of causal self-attention (Vaswani et al. 2017; pre-norm as
in Radford et al. 2019).

.. code-block:: text

    +-- data, n = 1..N -----------------------------+
    |  x_n ~ prod_s Categorical(logits_s(x_{<s}))   |
    +-----------------------------------------------+

Guide: empty, nothing is latent. The density is exact, in one parallel pass. Values lie on a grid of L levels,
stored as :math:`k / (L - 1)`; images are read row by row (Chen et al. 2020, ImageGPT).

Cost of a density: O(N S (S E + E^2)) a block of width E. A draw takes S steps; with the keys and values of
the steps before it kept, a step costs O(N (s E + E^2)), so a draw has the multiplications of one density in S
small pieces, where a sampler without a cache needs S densities.

References:
    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.
    Radford, Wu, Child, Luan, Amodei & Sutskever, *Language Models are Unsupervised Multitask Learners*, 2019.
    Chen et al., *Generative Pretraining from Pixels*, ICML 2020.
    Su, Lu, Pan, Murtadha, Wen & Liu, *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ppgen.contract import Kind, check_count
from ppgen.datasets.values import Values
from ppgen.distributions.heads import make_head
from ppgen.distributions.steps import IndependentStep
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.autoregressive import evaluating
from ppgen.models.family import Family
from ppgen.models.stepwise import Stepwise
from ppgen.nn.transformer import CausalTransformer, Positions, TransformerCache
from ppgen.ops.random import forked_rng


class Transformer(Stepwise):
    """A decoder-only transformer over data on a grid.

    Args:
        event_shape: ``(T,)`` for tokens, ``(C, H, W)`` for images; other shapes are read in the order in
            which they are stored.
        levels: number of levels of a grid, that is the size of the vocabulary.
        num_layers: blocks.
        num_heads: heads of attention.
        dim: width E, a multiple of twice ``num_heads``.
        dropout: share left out in training mode.
        positions: ``learned`` (one vector a position) or ``rotary``.
        ragged: whether sequences may end early, in NaN: see :func:`~ppgen.datasets.sequences`. The likelihood
            of such a sequence is that of what it holds.
        context_dim: number of classes or features that the model is conditioned on; 0 for none. With
            ``context_length``, of each item.
        context_length: length L of a context that is a sequence, of labels ``(N, L)`` or of features
            ``(N, L, context_dim)``; the model reads it before x.
    """

    network: CausalTransformer

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        levels: int = 2,
        num_layers: int = 4,
        num_heads: int = 4,
        dim: int = 128,
        dropout: float = 0.0,
        positions: Positions = "learned",
        ragged: bool = False,
        context_dim: int = 0,
        context_length: int | None = None,
    ) -> None:
        head = make_head("categorical", levels, num_components=1)
        super().__init__(
            event_shape, head, ragged=ragged, context_dim=context_dim, context_length=context_length
        )
        self.levels = levels
        self.step_head = IndependentStep(head, 1)
        self.network = CausalTransformer(
            levels,
            len(self.steps),
            head.num_params,
            num_layers=num_layers,
            num_heads=num_heads,
            dim=dim,
            dropout=dropout,
            positions=positions,
            context_dim=context_dim,
            context_length=context_length,
        )

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor | None = None,
        num: int = 1,
        *,
        num_steps: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        context: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        r"""Sequences of any length that go on from a prompt, sharpened if wanted.

        These are **not draws from the model**: for that there are :meth:`sample` and :meth:`condition`. A
        temperature :math:`\tau \ne 1` replaces each conditional by one in proportion to :math:`p^{1/\tau}`,
        ``top_k`` cuts all but its k most probable levels off, and beyond T steps the model sees a window of
        the last ones alone, taken for a beginning: when T are full, it goes on from the last T / 2. With
        temperature 1, no ``top_k`` and no more than T steps in all, they are draws from p(x | prompt).

        Args:
            prompt: grid values, shape ``(P,)`` for all or ``(num, P)``; of any length P.
            num: how many.
            num_steps: steps to add; by default up to T in all.
            temperature: :math:`\tau`, positive.
            top_k: levels that are kept a step; ``None`` for all.
            context: one row a sequence, where the model is conditional.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Prompt and continuation, shape ``(num, P + num_steps)``, in the order of the steps.

        Raises:
            ConfigError: a temperature or ``top_k`` out of range; a full prompt without ``num_steps``.
            ShapeError: a prompt of another shape.
            DataError: a prompt of other values than the grid's.
        """
        capacity = len(self.steps)
        if not temperature > 0:
            raise ConfigError(f"temperature: expected a positive number, got {temperature}")
        for name, count in (("top_k", top_k), ("num_steps", num_steps)):
            if count is not None:
                check_count(count, name)
        x = self._as_prompt(prompt, num)
        wanted = capacity - x.shape[1] if num_steps is None else num_steps
        if wanted < 1:
            raise ConfigError(
                f"num_steps: nothing to add to a prompt of {x.shape[1]} steps by a model of {capacity}; "
                f"got num_steps={num_steps}, give how many are to follow"
            )
        context = self.checked_context(context, num)
        if context is not None:
            context = self._features(context)
        items = self._items(context)
        total = torch.cat([x, x.new_empty(len(x), wanted, 1)], dim=1)
        with forked_rng(seed, self.device), evaluating(self):
            begin, cache = None, TransformerCache([], 0, None)
            for s in range(x.shape[1], total.shape[1]):
                if begin is None or s - begin >= capacity:
                    begin = max(0, s - (capacity - 1 if begin is None else capacity // 2))
                    params, cache = self.network.begin(total[:, begin:s], items)
                else:
                    params = self.network.step(total[:, s - 1], cache)
                params = _sharpened(params, temperature, top_k)
                noise = self.head.noise((len(x),), params)
                total[:, s] = self.head.draw(params, noise)
        return total[..., 0]

    def _as_prompt(self, prompt: Tensor | None, num: int) -> Tensor:
        """The prompt as steps, ``(num, P, 1)``."""
        check_count(num)
        if prompt is None:
            return self._like.new_zeros(num, 0, 1)
        if not isinstance(prompt, Tensor):
            raise ShapeError(
                f"prompt: expected a tensor of grid values, got {type(prompt).__name__}; a text is turned "
                "into them by vocabulary.encode(prompt)"
            )
        if prompt.ndim not in (1, 2) or (prompt.ndim == 2 and len(prompt) not in (1, num)):
            raise ShapeError(
                f"prompt: expected shape (P,) for all, or ({num}, P) for each of num={num} sequences, got "
                f"{tuple(prompt.shape)}"
            )
        prompt = prompt.to(self._like)
        if prompt.numel():
            self.support.check(prompt, "prompt")
        return prompt.expand(num, prompt.shape[-1])[..., None]


def _sharpened(params: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Parameters of a categorical head at a temperature, all but the ``top_k`` largest logits cut off."""
    params = params / temperature
    num_levels = max(2, params.shape[-1])
    if top_k is None or top_k >= num_levels:
        return params
    if num_levels == 2:  # the logit of the upper one
        return torch.where(params > 0, torch.inf, -torch.inf)
    kept = params.topk(top_k, dim=-1)
    return torch.full_like(params, -torch.inf).scatter(-1, kept.indices, kept.values)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> Transformer:
    return Transformer(event_shape, levels=values.levels or 2, num_layers=3, num_heads=4, dim=64, dropout=0.1)


FAMILY = Family(
    name="transformer",
    group="autoregressive",
    title="Transformer decoder",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=lambda: Transformer((3,), levels=3, num_layers=1, num_heads=2, dim=8),
    conditional_example=lambda: Transformer(
        (1, 2, 2), num_layers=1, num_heads=1, dim=4, positions="rotary", context_dim=3
    ),
    fit_options={
        "max_seconds": 60.0,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "batch_size": 64,
        "clip_norm": 1.0,
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "patience": 30,
    },
    reading="An exact density; each value is predicted from all before it, draws go from value to value.",
    surveyed=False,
)
