"""Which sigma to search next, by rule from what was measured."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

STRIDE = 3.0
"""How far to go up or down where nothing says how far: half a decade."""

Reason = Literal[
    "peak", "edge", "rising", "rising_to_predicted", "falling", "falling_to_predicted", "no_gain", "unresolved", "lost"
]


class NextSigma(NamedTuple):
    """The sigma to search next.

    Attributes:
      sigma: in the unit of the sweep.
      because: `peak`, the gain is largest between two searched sigmas, at the vertex of a parabola; `edge`, it is
        largest beside a sigma without a finite loss, and this is half way to that; `rising`, at the largest sigma;
        `falling`, at the smallest (`..._to_predicted` where the theory's best is near: this is it); `no_gain`, no sigma
        gained anything; `unresolved`, none changed the loss at all; `lost`, no loss was finite.
    """

    sigma: float
    because: Reason


def next_sigma(sigmas: Sequence[float], gains: Float[np.ndarray, "S"], *, predicted_best: float) -> NextSigma:
    """The sigma to search next: towards the largest gain, as far as the measurement or the theory can see it.

    Args:
      sigmas: those that were searched, ascending.
      gains: the gain of all draws at each of them; NaN where no loss was finite.
      predicted_best: the sigma of the largest predicted gain; infinite where the theory sets no limit.

    Returns:
      A sigma in their unit and the range of float32, at most half a decade beyond those that were searched.

    Source: ours. A gain is smooth in the logarithm of sigma, so three points around a maximum give its parabola.
    """
    sigma, because = _next(np.asarray(sigmas, np.float64), gains, predicted_best)
    limits = np.finfo(np.float32)
    return NextSigma(float(np.clip(sigma, limits.tiny, limits.max)), because)


def _next(every: Float[np.ndarray, "S"], gains: Float[np.ndarray, "S"], predicted_best: float) -> tuple[float, Reason]:
    finite = np.isfinite(gains)
    searched, found = every[finite], gains[finite]
    if not len(found):
        return every[0] / STRIDE, "lost"
    if not np.any(found):
        return every[-1] * STRIDE, "unresolved"
    if not np.any(found > 0):
        return every[0] / STRIDE, "no_gain"
    best = int(np.argmax(found))
    at_best = searched[best]
    last, first = best == len(found) - 1, best == 0
    if last and at_best < every[-1]:
        return math.sqrt(at_best * every[every > at_best][0]), "edge"
    if first and at_best > every[0]:
        return math.sqrt(at_best * every[every < at_best][-1]), "edge"
    # The theory's best is on the way out, or short of the next one in.
    if first and at_best / STRIDE < predicted_best < (at_best if last else searched[1]):
        return predicted_best, "falling_to_predicted"
    if last and (at_best if first else searched[-2]) < predicted_best < STRIDE * at_best:
        return predicted_best, "rising_to_predicted"
    if last:
        return STRIDE * at_best, "rising"
    if first:
        return at_best / STRIDE, "falling"
    return _vertex(searched[best - 1 : best + 2], found[best - 1 : best + 2]), "peak"


def _vertex(sigmas: Float[np.ndarray, "3"], gains: Float[np.ndarray, "3"]) -> float:
    """Where the parabola through three points in (log sigma, gain) is highest; the middle one is the best of them."""
    left, right = np.diff(np.log(sigmas))
    rise, fall = (gains[1] - gains[0]) / left, (gains[1] - gains[2]) / right
    # The slope is `rise` half way to the left and `-fall` half way to the right, and a straight line in between.
    share = rise / (rise + fall)  # never 0 / 0: of equal gains the first is the best, so there is a rise
    return float(sigmas[1] * np.exp(share * (left + right) / 2 - left / 2))
