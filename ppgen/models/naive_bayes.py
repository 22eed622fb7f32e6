r"""Naive Bayes: a class, and coordinates that are independent given the class.

.. math::

    p(x, y) = \pi_y \prod_{d=1}^D p(x_d \mid y)

.. code-block:: text

    +-- data, n = 1..N ------------------------------------+
    |  y_n ~ Categorical(pi)             (enumerated)      |
    |  x_nd ~ Bernoulli, categorical, Gaussian or Poisson  |
    |         of class y_n,  d = 1..D                      |
    +------------------------------------------------------+

A *generative* classifier: it models x as well, so that it classifies with coordinates missing, finds data
unlike all classes, draws data of a class, and learns from data without labels.

Labels are data, not a condition: they are the observed values of the site ``y``. They stand where other
families take a context: whole numbers from 0, -1 where a label is not known. ``log_likelihood(x)`` is
:math:`\log p(x) = \log \sum_y p(x, y)`, ``log_likelihood(x, y)`` is :math:`\log p(x, y)`; the guide is the
exact posterior :math:`p(y \mid x)`, which is also the classifier.

Fitting is one computation where all labels are known (counts and moments of each class); where some or all
are not, it is EM on the likelihood of what is known. ``smoothing`` s > 0 maximises the posterior density
under :math:`\mathrm{Beta}(1 + s, 1 + s)` or :math:`\mathrm{Dirichlet}(1 + s)` priors on the probabilities of
each column (s = 1 is Laplace's rule); the shares of the classes are those of the data. NaN is a missing
coordinate and is left out of every sum, which is exact.

Tables of pandas, with text, categories, booleans, numbers and gaps, and classes with names, go in and out by
:meth:`NaiveBayes.of_frame`, :meth:`~NaiveBayes.from_frame` and :meth:`~NaiveBayes.to_frame`; what
:meth:`~NaiveBayes.predict` and :meth:`~NaiveBayes.classify` say of a frame has its names.

Cost: O(N K D).

References: Maron, *Automatic indexing: an experimental inquiry*, Journal of the ACM 8, 1961; Nigam, McCallum,
Thrun & Mitchell, *Text classification from labeled and unlabeled documents using EM*, Machine Learning 39,
2000.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, query
from ppgen.datasets.split import Split
from ppgen.datasets.values import Values
from ppgen.distributions.class_conditional import ClassConditional
from ppgen.distributions.network.labels import Labels, plain
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.em import EMStep, ExpectationMaximisation
from ppgen.models.column_emission import ColumnEmission, ColumnKind
from ppgen.models.conditioning import observed_part
from ppgen.models.emissions import EMPTY, log_shares
from ppgen.models.family import Family
from ppgen.models.labelled_columns import DeclaredLevels, LabelledColumns, is_table
from ppgen.models.network_graphs import levels_of
from ppgen.ops.random import forked_rng

# Log-probability of classes that a label rules out: as good as impossible, and its product with 0 is 0.
_RULED_OUT = -1e6


class NaiveBayes(GenerativeModel):
    """K classes of independent columns.

    Args:
        event_shape: shape of one datum.
        num_classes: K.
        columns: ``"gaussian"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"`` for all coordinates; or
            of each coordinate the number of its levels, which are numbered from 0, and 0 for real ones.
        levels: number of levels L of ``"categorical"`` coordinates, stored as k / (L - 1).
        smoothing: pseudo-counts at every probability (and of the mean rate, at every rate).
        min_variance: least variance of Gaussian coordinates, in squared units of the data; by default
            :math:`10^{-9}` of the variance that the coordinate has in the training data, so that units do not
            matter.
        names: of the columns, where ``columns`` are numbers of levels; see :meth:`of_frame`.
        level_names: names of the levels of each column, ``None`` for a real one; numbers by default.
        class_names: names of the classes; numbers by default.
        label: name of the column of a frame that holds the classes.
    """

    density = Kind.EXACT
    takes_labels = True

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_classes: int,
        columns: ColumnKind | Sequence[int] = "gaussian",
        levels: int | None = None,
        smoothing: float = 1.0,
        min_variance: float | None = None,
        names: Sequence[str] | None = None,
        level_names: Sequence[Sequence[Hashable] | None] | None = None,
        class_names: Sequence[Hashable] | None = None,
        label: str = "class",
    ) -> None:
        super().__init__(event_shape)
        if num_classes < 1:
            raise ConfigError(f"num_classes: expected a positive integer, got {num_classes}")
        if not smoothing >= 0:
            raise ConfigError(f"smoothing: expected a pseudo-count of 0 or more, got {smoothing}")
        self.num_classes = num_classes
        self.class_names = plain(range(num_classes) if class_names is None else class_names)
        if len(self.class_names) != num_classes:
            raise ConfigError(
                f"class_names: expected {num_classes}, one a class, got {list(self.class_names)}"
            )
        self.table: LabelledColumns | None = None
        if names is not None:
            if isinstance(columns, str):
                raise ConfigError(f"columns: those with names are numbers of levels, got {columns!r}")
            given = [range(s) if s else None for s in columns] if level_names is None else level_names
            named = Labels(tuple(names), levels_of(given, columns))
            self.table = LabelledColumns(named, Labels((label,), (self.class_names,)))
        self.emission = ColumnEmission(
            num_classes,
            self.event_shape.numel(),
            columns,
            levels=levels,
            min_variance=min_variance,
            smoothing=smoothing,
            names=names,
            classes=self.class_names,
        )
        self.support = self.emission.values
        self.class_logits = nn.Parameter(torch.zeros(num_classes))

    @classmethod
    def of_values(
        cls,
        event_shape: tuple[int, ...] | torch.Size,
        values: Values,
        *,
        num_classes: int,
        smoothing: float = 1.0,
        min_variance: float | None = None,
    ) -> Self:
        """The model whose columns are what a data set says its values are (``dataset.values``)."""
        kinds: dict[str, ColumnKind] = {
            "real": "gaussian",
            "binary": "bernoulli",
            "grid": "categorical",
            "count": "poisson",
        }
        return cls(
            event_shape,
            num_classes=num_classes,
            columns=values.cardinalities if values.kind == "table" else kinds[values.kind],
            levels=values.levels if values.kind == "grid" else None,
            smoothing=smoothing,
            min_variance=min_variance,
        )

    @classmethod
    def of_frame(
        cls,
        frame: Any,
        *,
        label: str,
        levels: DeclaredLevels | None = None,
        smoothing: float = 1.0,
        min_variance: float | None = None,
    ) -> Self:
        """The model of the columns of a DataFrame, and of the classes that one of them holds.

        Numbers are Gaussian, booleans Bernoulli, text and categories categorical. Names and levels stay with
        the model and its checkpoints. It is yet to be fitted, to rows as :meth:`from_frame` reads them:

        .. code-block:: python

            model = NaiveBayes.of_frame(frame, label="species")
            ppgen.fit(model, model.from_frame(frame))
            model.predict(others)

        Args:
            frame: the DataFrame; cells may be missing, also labels.
            label: name of the column of classes: text, categories, booleans, or whole numbers, of which no
                more than ten differ.
            levels: what is to be read otherwise, by name: the values of a column (also of ``label``), those
                included that the frame does not have, or ``None`` for numbers that are Gaussian although they
                come as booleans or categories.
            smoothing: as for the class.
            min_variance: as for the class.

        Raises:
            DataError: no DataFrame, columns of one name, of mixed types or without any value, infinite
                numbers, values beside the declared levels.
            ConfigError: names that are no columns; labels that are no classes.
        """
        found = LabelledColumns.read(frame, label, levels)
        return cls(
            (len(found.columns.names),),
            num_classes=len(found.classes.levels[0] or ()),
            columns=[0 if one is None else len(one) for one in found.columns.levels],
            smoothing=smoothing,
            min_variance=min_variance,
            names=list(found.columns.names),
            level_names=[None if one is None else list(one) for one in found.columns.levels],
            class_names=list(found.classes.levels[0] or ()),
            label=label,
        )

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """Pick a class, then draw each coordinate; ``context`` is the classes, where they are known."""
        with self.data_plate(x, num, context):
            y = self._class_site(context)
            return pyro.sample("x", ClassConditional(self.emission, y, self.event_shape), obs=x)

    def guide(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> None:
        """The exact posterior of the class, where it is not known; its prior where there is no x."""
        if context is not None and bool((context >= 0).all()):
            return
        with self.data_plate(x, num, context):
            logits = self.class_logits if x is None else self._log_joint(x)
            logits = _ruled_out(logits, context).detach()
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    # -- capabilities ------------------------------------------------------------------------

    @property
    def class_probs(self) -> Tensor:
        """Shares of the classes, shape (K,)."""
        return self.class_logits.softmax(-1)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Log p(x), or log p(x, y) where labels are given (and not -1); exact, shape (N,), in nats."""
        return Estimate.of(self._log_evidence(self.log_joint(x), context), Kind.EXACT)

    @query
    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(x_n, y = k) for every class k, shape (N, K), in nats."""
        return self._log_joint(x)

    def classify(self, x: Any) -> Any:
        """p(y = k | x_n), exact: shape (N, K), rows sum to one; coordinates that are NaN are summed out.

        Of a DataFrame, or of one row as a mapping of what is known by name, it is a DataFrame with a column
        for each class; errors are those of :meth:`from_frame`.
        """
        if not is_table(x):
            return self.log_joint(x).softmax(-1)
        return self._named().shares(x, self.classify(self._rows_of(x)).detach())

    @torch.no_grad()
    def predict(self, x: Any) -> Any:
        """The likeliest class of each datum, int64, shape (N,).

        Of a DataFrame, or of one row as a mapping of what is known by name, it is a Series of classes.
        """
        if not is_table(x):
            return self.log_joint(x).argmax(-1)
        return self._named().named(x, self.predict(self._rows_of(x)))

    def responsibilities(self, x: Tensor) -> Tensor:
        """What mixtures call :meth:`classify`."""
        return self.log_joint(x).softmax(-1)

    def from_frame(self, frame: Any) -> Split:
        """Rows of a DataFrame as data to fit, or to find the likelihood of; missing cells become NaN.

        Args:
            frame: a DataFrame with the model's columns; with that of the classes, these are y, and -1 where
                one is missing. Other columns are left out.

        Raises:
            ConfigError: the model's columns have no names; see :meth:`of_frame`.
            DataError: a column that is not there, or a value that is no level, or no number, with its row.
        """
        y = self._named().labels(frame)
        return Split(self._rows_of(frame), None if y is None else y.to(self.device), self.support, "frame")

    def to_frame(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Data, and the numbers of their classes (N,) where given, as a DataFrame with names and levels.

        Raises:
            ConfigError: the model's columns have no names.
            ShapeError, DataError: data of another shape; labels that are none of the model's.
        """
        self.check_event(x)
        return self._named().to_frame(x.flatten(1), self.context_rows(y, len(x)))

    @torch.no_grad()
    def condition(
        self, x: Tensor, mask: Tensor, num: int = 1, *, context: Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """Exact draws of the missing coordinates given the observed ones, and the labels that are known.

        Args:
            x: data, shape ``(N, *event_shape)``; what is missing may hold anything, NaN too.
            mask: bool, True where observed; broadcasts to the shape of ``x``. NaN that is said to be observed
                is neither used nor drawn.
            num: draws a datum.
            context: labels, shape (N,), -1 where they are not known.
            seed: for draws that repeat; without it torch's global generator is used.

        Returns:
            Shape ``(num, N, *event_shape)``, equal to ``x`` where observed.

        Raises:
            ShapeError, ConfigError, DataError: as in
                :func:`~ppgen.models.conditioning.observed_part`.
        """
        filled, mask = observed_part(self, x, mask, num)
        self.check_context(context)
        known = filled.masked_fill(~mask, torch.nan)
        logits = _ruled_out(self._log_joint(known), context)
        with forked_rng(seed, self.device):
            y = dist.Categorical(logits=logits).sample((num,))
            drawn = self.emission.complete(known.flatten(1), y)
        return torch.where(mask, filled, drawn.view(num, *x.shape))

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit to the data with labels; without any, start from k-means clusters.

        Random numbers come from torch's global generator.

        Raises:
            ConfigError: fewer data than classes where there are no labels.
            DataError: data that are not of the model's values, or labels out of range.
        """
        self.check_event(x)
        self.check_context(context)
        self.support.check(x, "x")
        rows = x.flatten(1)
        self.emission.prepare(rows)
        if context is None or not bool((context >= 0).any()):
            shares = self.emission.start(rows)
        else:
            shares = _one_hot(context, self.num_classes, rows)
            if bool((shares.sum(0) == 0).any()):  # a class that no label names is among the rest
                rest = torch.rand(len(x), self.num_classes, dtype=x.dtype, device=x.device)
                shares = torch.where((context < 0)[:, None], rest / rest.sum(-1, keepdim=True), shares)
        self._maximise(rows, shares)
        self.initialised.fill_(True)

    @torch.no_grad()
    def em_step(self, x: Tensor, context: Tensor | None = None) -> EMStep:
        """One EM iteration on all data, in place; with all labels known, one is all it takes.

        Raises:
            DataError: no finite likelihood, for data that are not of the model's values, or labels out of
                range. The parameters stay as they were.
        """
        self.check_event(x)
        self.check_context(context)
        joint, log_prior = self._log_joint(x), self.log_prior()
        log_likelihood = self._log_evidence(joint, context).sum()
        if not bool(torch.isfinite(log_likelihood)):
            self.support.check(x, "x")
            return EMStep(log_likelihood, log_prior)
        shares = joint.softmax(-1)
        if context is not None:
            given = _one_hot(context, self.num_classes, shares)
            shares = torch.where((context >= 0)[:, None], given, shares)
        return EMStep(log_likelihood, log_prior, self._maximise(x.flatten(1), shares))

    def log_prior(self) -> Tensor:
        """Log prior density of the columns' parameters, up to a constant, in nats; 0 without smoothing."""
        return self.emission.log_prior()

    def default_objective(self) -> ExpectationMaximisation:
        """EM, which ends after one step where all labels are known."""
        return ExpectationMaximisation()

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless ``context`` is labels, one a datum, or ``None``.

        Raises:
            ShapeError: of another shape, or not whole numbers.
            DataError: a label out of -1 .. K - 1.
        """
        if context is None:
            return
        if not isinstance(context, Tensor) or context.is_floating_point() or context.ndim != 1:
            came: object = context
            if isinstance(context, Tensor):
                came = f"{context.dtype} of shape {tuple(context.shape)}"
            raise ShapeError(
                f"context: {type(self).__name__} takes the labels y there, whole numbers of shape (N,), got "
                f"{came}; one label for all data is torch.tensor([label])"
            )
        if context.is_meta or not len(context):
            return
        low, high = int(context.min()), int(context.max())
        if low < -1 or high >= self.num_classes:
            raise DataError(
                f"y: expected labels 0 to {self.num_classes - 1}, or -1 where one is not known, got a range "
                f"of {low}..{high}; build the model with a larger num_classes, or number the classes from 0"
            )

    # -- private -----------------------------------------------------------------------------

    def _named(self) -> LabelledColumns:
        if self.table is None:
            raise ConfigError(
                "names: the columns of this model have none, and frames go by them; build it with "
                "NaiveBayes.of_frame"
            )
        return self.table

    def _rows_of(self, table: Any) -> Tensor:
        return self._named().rows(table).to(self.class_logits).view(-1, *self.event_shape)

    def _class_site(self, labels: Tensor | None) -> Tensor:
        if labels is None or not bool((labels < 0).any()):
            share = dist.Categorical(logits=self.class_logits)
            return pyro.sample("y", share, obs=labels, infer={"enumerate": "parallel"})
        # Some are known: the site is certain of these, and the factor holds their probabilities.
        restricted = dist.Categorical(logits=_ruled_out(self.class_logits, labels))
        y = pyro.sample("y", restricted, infer={"enumerate": "parallel"})
        known = self.class_logits.log_softmax(-1)[labels.clamp_min(0)]
        pyro.factor("known_y", torch.where(labels >= 0, known, 0.0))
        return y

    def _log_joint(self, x: Tensor) -> Tensor:
        return self.emission.log_prob(x.flatten(1)) + self.class_logits.log_softmax(-1)

    def _log_evidence(self, joint: Tensor, labels: Tensor | None) -> Tensor:
        self.check_context(labels)
        marginal = joint.logsumexp(-1)
        if labels is None:
            return marginal
        if labels.shape != joint.shape[:1]:
            raise ShapeError(f"context: expected a label for each of {len(joint)} data, got {len(labels)}")
        of_label = joint.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
        return torch.where(labels >= 0, of_label, marginal)

    def _maximise(self, rows: Tensor, shares: Tensor) -> tuple[str, ...]:
        """Write the best parameters for responsibilities (N, K); remarks on repairs."""
        notes = self.emission.maximise(rows, shares)
        mass = shares.sum(0)
        self.class_logits.copy_(log_shares(mass, self.class_logits))
        empty = mass <= EMPTY
        if bool(empty.any()):
            notes += (
                f"empty: classes {[self.class_names[k] for k in empty.nonzero()[:, 0].tolist()]} have no "
                "data and got no share; build the model with fewer classes",
            )
        return notes


def _one_hot(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Indicators (N, K) of labels, rows of 0 where they are -1."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(like.dtype)


def _ruled_out(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Logits, (K,) or (N, K), and where the class is known those of certainty."""
    if labels is None:
        return logits
    classes = torch.arange(logits.shape[-1], device=labels.device)
    certain = torch.where(labels[:, None] == classes, 0.0, _RULED_OUT).to(logits.dtype)
    return torch.where(labels[:, None] >= 0, certain, logits)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> NaiveBayes:
    floor = None if values.levels is None else 1 / (12 * values.levels**2)
    return NaiveBayes.of_values(event_shape, values, num_classes=10, min_variance=floor)


FAMILY = Family(
    name="naive-bayes",
    group="mixture",
    title="Naive Bayes",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: NaiveBayes((3,), num_classes=2, columns=(2, 3, 4)),
    reading="One table or Gaussian a coordinate and class: samples look like the class on average, with "
    "independent noise; its use is to classify, also with coordinates missing.",
    fit_options={"epochs": 20},
    surveyed=False,
)
