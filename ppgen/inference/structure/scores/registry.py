"""Scores by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ppgen.errors import ConfigError
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.bde import BDe
from ppgen.inference.structure.scores.conditional_gaussian import ConditionalGaussianBIC
from ppgen.inference.structure.scores.discrete import AIC, BIC, K2, BDeu
from ppgen.inference.structure.scores.gaussian import BGe, GaussianBIC
from ppgen.inference.structure.table import Table

_SCORES: Mapping[str, Callable[[], Score]] = {
    score.name: score for score in (BDeu, BDe, K2, BIC, AIC, BGe, GaussianBIC, ConditionalGaussianBIC)
}


def score_names() -> tuple[str, ...]:
    """The names that :func:`score_from` knows."""
    return tuple(_SCORES)


def score_from(score: str | Score | None, table: Table) -> Score:
    """The score by this name or object, checked against the table.

    Args:
        score: a name, with default hyperparameters; an object; or ``None`` for BDeu with an equivalent
            sample size of 1 (all columns categorical), BGe (all continuous) or
            ``ConditionalGaussianBIC`` (both).
        table: that is to be scored.

    Raises:
        ConfigError: an unknown name, an object that is no score, or a score that the table does not fit.
        DataError: values that cannot be scored.
    """
    if score is None:
        score = BDeu() if table.is_discrete else BGe() if table.is_continuous else ConditionalGaussianBIC()
    elif isinstance(score, str):
        key = score.lower().replace("-", "_")
        if key not in _SCORES:
            raise ConfigError(f"score: no score is called {score!r}; there are {', '.join(_SCORES)}")
        score = _SCORES[key]()
    elif not isinstance(score, Score) or isinstance(score, type):
        raise ConfigError(
            f"score: expected a name ({', '.join(_SCORES)}) or a score such as BDeu(), got {score!r}"
        )
    score.check(table)
    return score
