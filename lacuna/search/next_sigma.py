"""Which sigma to search next, by rule from what was measured."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

STRIDE = 3.0
"""How far to go up or down where nothing says how far: half a decade."""

Reason = Literal["peak", "edge", "rising", "rising_to_predicted", "falling", "falling_to_predicted", "no_gain", "lost"]


class NextSigma(NamedTuple):
    """The sigma to search next.

    Attributes:
      sigma: in the unit of the sweep.
      because: `peak`, the gain is largest between two searched sigmas, at the vertex of a parabola; `edge`, it is
        largest at the last sigma of a finite loss, and this is half way to the first without; `rising`, at the
        largest sigma; `falling`, at the smallest (`..._to_predicted` where the theory says how far to go);
        `no_gain`, no sigma gained anything; `lost`, no loss was finite.
    """

    sigma: float
    because: Reason


def next_sigma(sigmas: Sequence[float], gains: Float[np.ndarray, "S"], *, predicted_best: float) -> NextSigma:
    """The sigma to search next: towards the largest gain, as far as the measurement or the theory can see it.

    Args:
      sigmas: those that were searched, ascending.
      gains: the gain of all draws at each of them; NaN where no loss was finite.
      predicted_best: the sigma of the largest predicted gain; infinite where the theory sets no limit.

    Source: ours. A gain is smooth in the logarithm of sigma, so three points around a maximum give its parabola.
    """
    every, finite = np.asarray(sigmas, np.float64), np.isfinite(gains)
    searched, found = every[finite], gains[finite]
    if not np.any(found > 0):
        return NextSigma(float(every[0] / STRIDE), "no_gain" if len(found) else "lost")
    best = int(np.argmax(found))
    at_best = float(searched[best])
    if best == 0 and 0 < predicted_best < at_best:
        return NextSigma(float(predicted_best), "falling_to_predicted")
    if best == len(found) - 1:
        beyond = every[every > at_best]
        if len(beyond):
            return NextSigma(math.sqrt(at_best * beyond[0]), "edge")
        if at_best < predicted_best < STRIDE * at_best:
            return NextSigma(float(predicted_best), "rising_to_predicted")
        return NextSigma(STRIDE * at_best, "rising")
    if best == 0:
        return NextSigma(at_best / STRIDE, "falling")
    return NextSigma(_vertex(searched[best - 1 : best + 2], found[best - 1 : best + 2]), "peak")


def _vertex(sigmas: Float[np.ndarray, "3"], gains: Float[np.ndarray, "3"]) -> float:
    """Where the parabola through three points in (log sigma, gain) is highest; the middle one is the best of them."""
    left, right = np.diff(np.log(sigmas))
    rise, fall = (gains[1] - gains[0]) / left, (gains[1] - gains[2]) / right
    # The slope is `rise` half way to the left and `-fall` half way to the right, and a straight line in between.
    share = rise / (rise + fall)  # never 0 / 0: of equal gains the first is the best, so there is a rise
    return float(sigmas[1] * np.exp(share * (left + right) / 2 - left / 2))
