r"""A linear-chain conditional random field: labels of a sequence, given its features (Lafferty et al. 2001).

With labels :math:`y_1, \dots, y_T` of K kinds and features :math:`f_1, \dots, f_T` of F numbers each,

.. math::

    p(y \mid f) = \frac{1}{Z(f)} \exp\Big( a(y_1) + b(y_T) + \sum_{t=1}^T u_t(y_t) + \sum_{t=2}^T V(y_{t-1},
    y_t) \Big), \qquad u_t = W f_t + c

or :math:`u` from any network that maps features (N, T, F) to potentials (N, T, K).

.. code-block:: text

    +-- data, n = 1..N ------------------------------------+
    |  features f_n (the context, given)                   |
    |  x_n = y_n ~ the chain with factors u_t(y_t), V      |
    +------------------------------------------------------+

The datum is the label sequence, the site ``x``, and the features are the context:
``crf.log_likelihood(labels, features)``, ``ppgen.fit(crf, (labels, features))``. Labels are the numbers 0 ..
K - 1 (or k / (K - 1) with ``on_grid``, as images have them). NaN is a label that is not known, which is
summed out exactly, so that partly labelled sequences train as well. Features of sequences that end early are
padded at their end with NaN, and so are their labels.

Features are numbers (N, T, F), or whole numbers (N, T) below F that stand for symbols. One row of features
(N, F), or one class (N,), holds for all steps.

The likelihood, its gradient (observed minus expected features), the likeliest labels, marginals and draws are
exact; there are no latents and the guide is empty. For linear features and known labels the likelihood is
concave: :func:`ppgen.fit` finds its maximum by L-BFGS, or that of the posterior density under a normal prior,
:math:`\log p(\theta) = -\tfrac\lambda2 \lVert\theta\rVert^2` with ``penalty`` λ. A network is fitted by
stochastic gradients of the likelihood.

Cost: O(N T (K F + K^2)).

References: Lafferty, McCallum & Pereira, *Conditional random fields: probabilistic models for segmenting and
labeling sequence data*, ICML 2001; Sutton & McCallum, *An introduction to conditional random fields*,
Foundations and Trends in Machine Learning 4, 2012.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count
from ppgen.datasets.values import Values
from ppgen.distributions.hidden_markov import lengths_of
from ppgen.distributions.linear_chain import LinearChain
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.objectives.base import Objective
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.objectives.penalised import PenalisedLikelihood
from ppgen.models.conditioning import observed_part
from ppgen.models.family import Family
from ppgen.nn.context import context_features
from ppgen.ops.random import forked_rng


class LinearChainCRF(GenerativeModel):
    """Labels given features.

    Args:
        event_shape: (T,), of a label sequence; other shapes are read in the order of their coordinates.
        num_labels: K.
        num_features: F.
        network: maps features (N, T, F) to potentials (N, T, K); linear by default. It sees 0 beyond the end
            of a sequence. A model with a network is saved by its ``state_dict``.
        penalty: λ, the precision of a normal prior on every weight of a linear model, 1 by default; a network
            is regularised by its optimiser, such as AdamW, or by dropout.
        on_grid: labels are stored as k / (K - 1), not as k.
    """

    density = Kind.EXACT

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_labels: int,
        num_features: int,
        network: nn.Module | None = None,
        penalty: float | None = None,
        on_grid: bool = False,
    ) -> None:
        super().__init__(event_shape)
        if num_labels < 2:
            raise ConfigError(f"num_labels: expected 2 or more, got {num_labels}")
        check_count(num_features, "num_features")
        if penalty is not None and not penalty >= 0:
            raise ConfigError(f"penalty: expected 0 or more, got {penalty}")
        if penalty and network is not None:
            raise ConfigError(
                f"penalty: the prior is on the weights of a linear model, got {penalty} beside a network; "
                "regularise that by its optimiser, such as optimizer=torch.optim.AdamW"
            )
        self.num_steps = self.event_shape.numel()
        self.num_labels, self.context_dim = num_labels, num_features
        self.penalty = (1.0 if network is None else 0.0) if penalty is None else penalty
        if on_grid:
            self.support = Values("binary" if num_labels == 2 else "grid", num_labels, missing=True)
        else:
            self.support = Values("table", cardinalities=(num_labels,) * self.num_steps, missing=True)
        self.unit = 1 / (num_labels - 1) if on_grid else 1.0
        self.network = network
        if network is None:
            self.weights = nn.Parameter(torch.zeros(num_labels, num_features))
            self.biases = nn.Parameter(torch.zeros(num_labels))
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.first = nn.Parameter(torch.zeros(num_labels))
        self.last = nn.Parameter(torch.zeros(num_labels))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Label sequences, each given its features."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    # -- capabilities ------------------------------------------------------------------------

    def distribution(self, context: Tensor | None) -> LinearChain:
        """p(labels | features) as a Pyro distribution, batch shape (N,).

        Raises:
            ShapeError: features of another shape, or potentials of a network that are.
            DataError: features that are not finite before the end of a sequence, or symbols out of range.
        """
        features, lengths = self._read(context)
        if self.network is None:
            unary = features @ self.weights.T + self.biases
        else:
            unary = self.network(features)
            wanted = (len(features), self.num_steps, self.num_labels)
            if tuple(unary.shape) != wanted:
                raise ShapeError(
                    f"network: expected potentials of shape {wanted} from features of shape "
                    f"{tuple(features.shape)}, got {tuple(unary.shape)}"
                )
        steps = torch.arange(self.num_steps, device=unary.device)
        ends = torch.full_like(steps[:1], self.num_steps) if lengths is None else lengths
        is_first, is_last = steps == 0, steps == ends[:, None] - 1
        unary = unary + is_first[:, None] * self.first + is_last[..., None] * self.last
        return LinearChain(unary, self.transitions, lengths, unit=self.unit, event_shape=self.event_shape)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(labels | features), exact: shape (N,), in nats; labels that are NaN are summed out.

        Raises:
            DataError: labels that are none, or that go on after the features have ended.
        """
        return Estimate.of(self._checked(x, context).log_prob(x), Kind.EXACT)

    @torch.no_grad()
    def viterbi(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest labels, int64 (N, T), -1 beyond the end, and their log-probability (N,), in nats."""
        return self.distribution(features).likeliest()

    @torch.no_grad()
    def marginals(self, features: Tensor) -> Tensor:
        """p(y_t = k | features), exact: shape (N, T, K); 0 beyond the end."""
        return self.distribution(features).marginals()

    @torch.no_grad()
    def condition(
        self,
        x: Tensor,
        mask: Tensor,
        num: int = 1,
        *,
        context: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Exact draws of the missing labels given the observed ones and the features.

        Args:
            x: labels, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``.
            num: draws a sequence.
            context: the features.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed, NaN beyond a sequence's end.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        known = self._checked(filled.masked_fill(~mask, torch.nan), context)
        with forked_rng(seed, self.device):
            drawn = known.given(filled.masked_fill(~mask, torch.nan)).sample(torch.Size([num]))
        return torch.where(mask, filled, drawn)

    def log_prior(self) -> Tensor:
        """Log prior density of the weights, up to a constant: a scalar, in nats; 0 without a penalty."""
        total = self.transitions.new_zeros(())
        if self.penalty:
            for parameter in self.parameters():
                total = total - 0.5 * self.penalty * parameter.square().sum()
        return total

    def default_objective(self) -> Objective:
        """L-BFGS on the penalised likelihood; for a network, stochastic gradients of the likelihood."""
        return PenalisedLikelihood() if self.network is None else ELBO()

    def check_context(self, context: Tensor | None) -> None:
        """Raise :class:`~ppgen.errors.ShapeError` unless ``context`` is features of a shape allowed."""
        super().check_context(context)
        if context is None:
            return
        features, steps = self.context_dim, self.num_steps
        tail = tuple(context.shape[1:])
        allowed = ((features,), (steps, features)) if context.is_floating_point() else ((), (steps,))
        if context.ndim == 0 or tail not in allowed:
            raise ShapeError(
                f"context: this {type(self).__name__} takes features (N, {steps}, {features}) or (N, "
                f"{features}), or whole numbers (N, {steps}) or (N,), got {context.dtype} of shape "
                f"{tuple(context.shape)}"
            )

    # -- private -----------------------------------------------------------------------------

    def _read(self, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features (N, T, F), 0 beyond the end, and the lengths of the sequences if not all are T."""
        self.check_context(context)
        if context is None:  # check_context has raised
            raise ShapeError("context: expected features, got None")
        if not context.is_floating_point():
            # Flat, so that no table of symbols passes for features.
            flat = context_features(context.reshape(-1), self.context_dim, like=self.transitions)
            features = flat.view(*context.shape, self.context_dim)
        else:
            features = context.to(self.transitions)
        if features.ndim == 2:
            features = features[:, None].expand(-1, self.num_steps, -1)
        if not features.is_meta and bool(features.isinf().any()):
            row, step, _ = features.isinf().nonzero()[0].tolist()
            raise DataError(f"context: the features of sequence {row} are infinite at step {step}")
        lengths = lengths_of(features)
        if lengths is None:
            return features, None
        steps = torch.arange(self.num_steps, device=features.device)
        features = features.masked_fill((steps >= lengths[:, None])[..., None], 0.0)
        if bool(features.isnan().any()):
            row, step, _ = features.isnan().nonzero()[0].tolist()
            raise DataError(
                f"context: the features of sequence {row} are NaN at step {step}, before its end; a "
                "conditional model has no density of features to sum them out: impute them first"
            )
        return features, lengths

    def _checked(self, x: Tensor, context: Tensor | None) -> LinearChain:
        """The distribution, once the labels have been found to end where the features do."""
        found = self.distribution(context)
        if found.lengths is not None and not x.is_meta:
            beyond = torch.arange(self.num_steps, device=x.device) >= found.lengths[:, None]
            wrong = (beyond & ~x.flatten(1).isnan()).any(-1)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise DataError(
                    f"x: sequence {row} has labels after step {int(found.lengths[row])}, where its features "
                    "end; pad both with NaN from the same step on"
                )
        return found


def _build(event_shape: torch.Size, values: Values, num_data: int) -> LinearChainCRF:
    if values.levels is None:
        raise ConfigError(f"values: labels are one of some levels, got {values} values; build it for a grid")
    return LinearChainCRF(event_shape, num_labels=values.levels, num_features=10, on_grid=True)


FAMILY = Family(
    name="linear-chain-crf",
    group="sequence",
    title="Linear-chain CRF",
    density=Kind.EXACT,
    view="binary",
    build=_build,
    example=lambda: LinearChainCRF((4,), num_labels=3, num_features=3),
    conditional_example=lambda: LinearChainCRF((3,), num_labels=2, num_features=4, on_grid=True),
    reading="A conditional model: its likelihood is that of labels given features, and is not comparable "
    "with those of models without.",
    fit_options={"epochs": 100},
    surveyed=False,
)
