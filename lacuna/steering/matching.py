"""Strengths at which arms cost the same: those whose KL divergence on plain text reaches a target.

Source: ours.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lacuna.errors import InvalidInput

PERCENTILE = 95.0
"""Of the divergence over tokens: a mean would let a few broken tokens hide among many untouched ones."""

TOLERANCE = 0.05
"""Relative, of the target: a strength is then known to 2.5 % where the divergence grows as its square."""

NUM_RUNGS = 7
"""Strengths at which every arm is looked at first, evenly spaced by their logarithm."""


class MatchStatus(IntEnum):
    """How a search for a strength ended.

    Attributes:
      MATCHED: within `TOLERANCE` of the target.
      BEYOND: all strengths within the bounds cost less than the target, or all of them more.
      UNSETTLED: the target is passed within the bounds, and more rounds are needed (or the cost jumps over it).
    """

    MATCHED = 0
    BEYOND = 1
    UNSETTLED = 2


class Matched(NamedTuple):
    """Strengths of A arms that cost the same.

    Attributes:
      strength: that came closest to the target.
      kl: the percentile reached there, in nats; infinite where the arm gave no number.
      status: a `MatchStatus`.
    """

    strength: Float[np.ndarray, "A"]
    kl: Float[np.ndarray, "A"]
    status: Int[np.ndarray, "A"]


def match_kl(
    cost: Callable[[Float[np.ndarray, "A"]], Any],
    target: Float[np.ndarray, "A"],
    *,
    bounds: tuple[float, float] = (1e-3, 10.0),
    num_rounds: int = 8,
) -> Matched:
    """For each arm the least strength at which the 95th percentile of its divergence by token is the target.

    All arms are searched at once, each by strengths of its own, so that every round is one call of `cost`: first
    `NUM_RUNGS` of them over the bounds, then up to `num_rounds` between the first rung that passes the target and
    the one before. Those go by the straight line through both in logarithms, on which a divergence lies that grows as
    a power of the strength.

    Args:
      cost: `cost(strengths f32[A]) -> kl [A, ...]` on development text. For vectors
        `lambda s: steered_text(model, params, text, vectors, arms._replace(strength=s)).kl`; for a step of the
        weights `lambda s: stepped_text(model, params, delta, s, text).kl`.
      target: nats, of each arm.
      bounds: least and largest strength.
      num_rounds: calls at most after the first `NUM_RUNGS`; none is made once all arms are settled.

    Raises:
      InvalidInput: bounds that are not positive and ascending, a target that is not positive, or a cost of other arms.
    """
    if not 0 < bounds[0] < bounds[1]:
        raise InvalidInput("bounds must be positive and ascending", got=bounds)
    if not target.size or not (target > 0).all():
        raise InvalidInput("target must be a positive number of nats for each arm", got=target)
    num_arms = target.size

    def gap(log_strength: Float[np.ndarray, "A"]) -> Float[np.ndarray, "A"]:
        """Logarithm of what is reached over the target; infinite where the model is broken."""
        kl = np.asarray(cost(np.exp(log_strength).astype(np.float32)), np.float64)
        if kl.shape[:1] != (num_arms,):
            raise InvalidInput(f"cost must give the divergence of {num_arms} arms", got=f"shape {list(kl.shape)}")
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.percentile(kl.reshape(num_arms, -1), PERCENTILE, axis=1)
            return np.where(np.isfinite(found), np.log(np.maximum(found, 0) / target), np.inf)

    arm = np.arange(num_arms)
    rungs = np.log(np.geomspace(bounds[0], bounds[1], NUM_RUNGS))
    gaps = np.stack([gap(np.full(num_arms, rung)) for rung in rungs])
    passes = gaps >= 0
    above = np.argmax(passes, axis=0)
    inside = passes.any(axis=0) & (above > 0)
    below = np.maximum(above - 1, 0)
    beyond = np.arange(NUM_RUNGS)[:, None] > np.where(inside, above, NUM_RUNGS)  # where it may come back to the target
    nearest = np.argmin(np.where(beyond, np.inf, np.abs(gaps)), axis=0)
    best, best_gap = rungs[nearest], gaps[nearest, arm]
    low, high = rungs[below], rungs[above]
    low_gap, high_gap = gaps[below, arm], gaps[above, arm]
    last_side = np.zeros(num_arms, int)
    for _ in range(num_rounds):
        open_arms = inside & ~_close(best_gap)
        if not open_arms.any():
            break
        tried = np.where(open_arms, low + _share(low_gap, high_gap) * (high - low), best)
        found = gap(tried)
        nearer = open_arms & (np.abs(found) < np.abs(best_gap))
        best, best_gap = np.where(nearer, tried, best), np.where(nearer, found, best_gap)
        # Where the same end moves twice, the other's gap counts half (Illinois): no end stays for ever.
        side = np.where(found >= 0, 1, -1)
        again = side == last_side
        low_gap = np.where(side < 0, found, np.where(again, low_gap / 2, low_gap))
        high_gap = np.where(side > 0, found, np.where(again, high_gap / 2, high_gap))
        low, high = np.where(side < 0, tried, low), np.where(side > 0, tried, high)
        last_side = side
    status = np.where(_close(best_gap), MatchStatus.MATCHED, MatchStatus.UNSETTLED)
    status = np.where(inside | _close(best_gap), status, MatchStatus.BEYOND)
    kl = target * np.exp(best_gap)
    return Matched(np.exp(best).astype(np.float32), kl.astype(np.float32), status.astype(np.int32))


def _close(gap: Float[np.ndarray, "A"]) -> np.ndarray:
    return np.abs(np.expm1(gap)) <= TOLERANCE


def _share(low_gap: Float[np.ndarray, "A"], high_gap: Float[np.ndarray, "A"]) -> Float[np.ndarray, "A"]:
    """Where between its ends the line through both gaps passes zero; the middle where an end has no logarithm."""
    finite = np.isfinite(low_gap) & np.isfinite(high_gap)
    low, high = np.where(finite, low_gap, -1.0), np.where(finite, high_gap, 1.0)
    return np.clip(low / np.minimum(low - high, -1e-12), 0.05, 0.95)
