"""What answers are worth, from their log odds, and whether one arm's are better than another's: on the host.

A metric takes log odds of the positive answer (of two), and which rows are positive. By `weights` it takes rows as
often as they are drawn, for many draws at once: that is how the bootstrap calls it.

Source: the bootstrap of Efron (1979) and the test of McNemar (1947).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lacuna.errors import InvalidInput

LogOdds = Float[np.ndarray, "B"]
Positive = Bool[np.ndarray, "B"]
Weights = Float[np.ndarray, "R B"]
Value = np.floating | Float[np.ndarray, "R"]
"""One number, or one for each row of weights."""

Metric = Callable[..., Value]
"""`metric(log_odds, positive, weights)`."""


class Interval(NamedTuple):
    """Ends of an interval of confidence, in the unit of the metric.

    Attributes:
      low: its lower end.
      high: its upper end.
    """

    low: float
    high: float


def accuracy(log_odds: LogOdds, positive: Positive, weights: Weights | None = None, *, threshold: float = 0.0) -> Value:
    """Share of the rows that are told right: positive from the threshold on.

    With prompts of which one answer is right more often than not, a push towards that answer alone raises it.

    Args:
      log_odds: of the positive answer, in nats, float[B].
      positive: which rows are.
      weights: how often each row counts, [B] or [R, B] for R draws at once; None: once.
      threshold: log odds from which on a row is told positive.
    """
    return _mean(_told_right(log_odds, positive, threshold), weights)


def balanced_accuracy(
    log_odds: LogOdds, positive: Positive, weights: Weights | None = None, *, threshold: float = 0.0
) -> Value:
    """Mean of the accuracies on positive rows and on the others; NaN for a draw that lacks one of them.

    Args:
      log_odds: of the positive answer.
      positive: which rows are.
      weights: how often each row counts.
      threshold: of `balanced_threshold` on development rows, so that a mere bias counts nothing.

    Raises:
      InvalidInput: the rows are all positive, or none is.
    """
    _check_both(positive)
    told = _told_right(log_odds, positive, threshold)
    shares = [_mean(told, part * (1.0 if weights is None else weights)) for part in (positive, ~positive)]
    return (shares[0] + shares[1]) / 2


def auroc(log_odds: LogOdds, positive: Positive, weights: Weights | None = None) -> Value:
    """Probability that a positive row has higher log odds than another, ties counting half: no bias changes it.

    Raises:
      InvalidInput: the rows are all positive, or none is.
    """
    _check_both(positive)
    order = np.argsort(log_odds)
    ranked, hit = log_odds[order], positive[order]
    count = (np.ones(len(ranked)) if weights is None else weights)[..., order]
    firsts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    wins, losses = (np.add.reduceat(count * part, firsts, axis=-1) for part in (hit, ~hit))
    beaten = np.cumsum(losses, axis=-1) - losses / 2
    found = _ratio(np.sum(wins * beaten, axis=-1), wins.sum(axis=-1) * losses.sum(axis=-1))
    return found + np.nan if np.isnan(log_odds).any() else found


def signed_log_odds(log_odds: LogOdds, positive: Positive, weights: Weights | None = None) -> Value:
    """Mean log odds of the right answer: positive rows as they are, the others with their sign turned."""
    return _mean(np.where(positive, log_odds, -log_odds).astype(np.float64), weights)


def balanced_threshold(log_odds: LogOdds, positive: Positive) -> float:
    """The threshold of highest balanced accuracy, to be chosen on development rows; of several the nearest to zero.

    Raises:
      InvalidInput: the rows are all positive, or none is, or log odds that are not finite.
    """
    _check_both(positive)
    if not np.isfinite(log_odds).all():
        raise InvalidInput("a threshold needs finite log odds", got=f"{np.sum(~np.isfinite(log_odds))} that are not")
    levels = np.unique(log_odds.astype(np.float64))
    cuts = np.concatenate([[0.0], [levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    below = [np.searchsorted(np.sort(log_odds[part].astype(np.float64)), cuts) for part in (positive, ~positive)]
    balanced = below[1] / np.sum(~positive) - below[0] / np.sum(positive)
    best = cuts[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best))])


def paired_bootstrap(
    metric: Metric,
    base: LogOdds,
    steered: LogOdds,
    positive: Positive,
    *,
    groups: Int[np.ndarray, "B"] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of `metric(steered) - metric(base)`, both on the same rows, drawn with replacement.

    A draw that lacks one kind of rows, of which AUROC has no value, is left out. Where arms have thresholds of their
    own, give log odds less their threshold.

    Args:
      metric: one of this module's, or another that takes weights.
      base: log odds of the model itself.
      steered: of an arm.
      positive: which rows are.
      groups: of each row the group that it belongs to, such as the event it is told of. Rows of a group are alike and
        no independent evidence: whole groups are then drawn. None: every row is one of its own.
      num_resamples: draws of all rows.
      seed: of the draws: arms that share it are compared on the same ones.
      confidence: of the interval.

    Raises:
      InvalidInput: no draw, or a confidence outside (0, 1).
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise InvalidInput(
            "a bootstrap needs draws, and a confidence between 0 and 1", got=f"{num_resamples} and {confidence}"
        )
    names, of_row = np.unique(np.arange(len(positive)) if groups is None else groups, return_inverse=True)
    rng, num_drawn = np.random.default_rng(seed), len(names)
    at_a_time = max(1, 2**17 // len(positive))  # 1 MiB of weights, which a cache holds: twice as fast as all at once
    found = []
    for first in range(0, num_resamples, at_a_time):
        num_draws = min(at_a_time, num_resamples - first)
        drawn = rng.integers(0, num_drawn, (num_draws, num_drawn)) + num_drawn * np.arange(num_draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num_draws * num_drawn)
        weights = counts.reshape(num_draws, num_drawn).astype(np.float64)
        weights = weights if groups is None else weights[:, of_row]
        found.append(metric(steered, positive, weights) - metric(base, positive, weights))
    differences = np.concatenate(found)
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return Interval(np.nan, np.nan)
    tail = (1 - confidence) / 2
    return Interval(*map(float, np.quantile(differences, [tail, 1 - tail])))


def mcnemar(base_right: Bool[np.ndarray, "B"], steered_right: Bool[np.ndarray, "B"]) -> float:
    """Exact two-sided p-value that the rows on which just one of the two is right fall to either alike (McNemar)."""
    from scipy.stats import binomtest

    gained, lost = int(np.sum(~base_right & steered_right)), int(np.sum(base_right & ~steered_right))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _told_right(log_odds: LogOdds, positive: Positive, threshold: float) -> Float[np.ndarray, "B"]:
    """1 or 0; NaN where there are no log odds."""
    return np.where(np.isnan(log_odds), np.nan, (log_odds.astype(np.float64) >= threshold) == positive)


def _mean(values: Float[np.ndarray, "B"], weights: Float[np.ndarray, "*R B"] | None) -> Value:
    weights = np.ones(len(values)) if weights is None else weights
    return _ratio(weights @ values, weights.sum(axis=-1))


def _ratio(over: Value, under: Value) -> Value:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(over, under)


def _check_both(positive: Positive) -> None:
    if positive.all() or not positive.any():
        raise InvalidInput(
            "this metric needs positive rows and others", got=f"{np.sum(positive)} of {len(positive)} positive"
        )
