"""Who won, and what best-of-N would have given for every smaller N.

Order is total: by score, then index, then position of the sigma, then sign. Ties are common with
accuracies, and without a rule the winner would depend on the chunk.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lacuna.errors import InvalidInput


class Candidate(NamedTuple):
    """One scored point of a sweep.

    Attributes:
      index: of the draw.
      sigma: its scale per coordinate, > 0.
      sign: +1 or -1.
      score: its loss in the sweep.
    """

    index: int
    sigma: float
    sign: int
    score: float


class TopK:
    """The K best candidates of a stream of score blocks, in memory of size K.

    Scores that are not finite never enter.
    """

    def __init__(self, k: int):
        self._k = k
        self._scores = np.zeros(0, np.float32)
        self._places = np.zeros(0, np.int64)  # flat position in the table [N, sigmas, signs]: ties fall in table order

    def add(self, start: int, scores: Float[np.ndarray, "n sigmas signs"]) -> None:
        """Add the block of draws `start, start + 1, ...`; blocks may come in any order, each once."""
        flat = scores.reshape(-1)
        worst = self._scores[-1] if len(self._scores) == self._k else np.float32(np.inf)
        entering = np.flatnonzero(np.isfinite(flat) & (flat <= worst))
        all_scores = np.concatenate([self._scores, flat[entering]])
        all_places = np.concatenate([self._places, entering + start * (scores[0].size if len(scores) else 1)])
        best = np.lexsort((all_places, all_scores))[: self._k]
        self._scores, self._places = all_scores[best], all_places[best]

    def best(self, sigmas: tuple[float, ...], num_signs: int) -> tuple[Candidate, ...]:
        """The candidates kept so far, best first."""
        candidates = []
        for score, place in zip(self._scores, self._places, strict=True):
            index, rest = divmod(int(place), len(sigmas) * num_signs)
            column, sign = divmod(rest, num_signs)
            candidates.append(Candidate(index, sigmas[column], 1 - 2 * sign, float(score)))
        return tuple(candidates)


def subset_sizes(n: int, *, per_octave: int = 2) -> Int[np.ndarray, "sizes"]:
    """Sizes N' at which a best-of-N' curve is drawn: 1, ..., n, evenly spaced in the logarithm.

    >>> subset_sizes(16).tolist()
    [1, 2, 3, 4, 6, 8, 11, 16]
    """
    exponents = np.linspace(0.0, math.log2(n), max(2, round(per_octave * math.log2(n)) + 1)) if n > 1 else [0.0]
    return np.unique(np.rint(np.exp2(exponents)).astype(np.int64))


DEPTH = 41
"""Order-statistic weights are summed down to e^-DEPTH of the whole, well below what float64 resolves of it."""


def expected_best(
    gains: Float[np.ndarray, "N *columns"], sizes: Int[np.ndarray, "sizes"] | None = None
) -> Float[np.ndarray, "sizes *columns"]:
    """Exact mean of the largest gain over all subsets of each size: the measured best-of-N' curve.

    The j-th value from the top (the largest is the 0th) is the largest of a subset of size N' with the probability
    `w_j = C(N-1-j, N'-1) / C(N, N')`: `w_0 = N'/N`, `w_(j+1) / w_j = (N-N'-j) / (N-1-j)`. No resampling, no noise
    beyond that of the draws themselves. From the j-th on they are less than `exp(-j N'/N)` together, so about 41 N/N'
    values count, and the whole curve, every N' from 1 to N, takes about 41 N ln N operations. What is left out is
    below rounding beside the largest |gain|.

    A draw whose gain is not finite takes part and never wins, as in the sweep itself: the mean is over the
    subsets that hold at least one finite gain.

    Args:
      gains: one gain a draw, in one column or in several, each of which has its own curve.
      sizes: N', each at least 1. Default: every one from 1 to N.

    Returns:
      float64, one mean for each size; NaN where N' exceeds N, and everywhere if no gain is finite.

    Raises:
      InvalidInput: there is no draw at all.
    """
    n = len(gains)
    if not n:
        raise InvalidInput("expected_best needs the gain of one draw or more", got="none")
    sizes = np.arange(1, n + 1) if sizes is None else np.asarray(sizes)
    columns = gains.reshape(n, -1)
    finite = np.isfinite(columns)
    # Lost draws go last and weigh nothing; `present` tells where each column has a value.
    ordered = -np.sort(np.where(finite, -columns.astype(np.float64), np.inf), axis=0)
    present = np.isfinite(ordered)
    ordered[~present] = 0.0
    whole = np.all(present)
    steps = np.arange(n)
    means = np.full((len(sizes), columns.shape[1]), np.nan)
    for position, size in enumerate(sizes.tolist()):
        if not 1 <= size <= n:
            continue
        count = min(n - size + 1, math.ceil(DEPTH * n / size))
        weights = np.empty(count)
        weights[0] = size / n
        np.divide(n - size - steps[: count - 1], n - 1 - steps[: count - 1], out=weights[1:])
        np.cumprod(weights, out=weights)
        means[position] = weights @ ordered[:count]
        if not whole:
            share = weights @ present[:count]
            means[position] /= np.where(share > 0, share, np.nan)
    return means.reshape(len(sizes), *gains.shape[1:])


def measured_curves(
    base_score: float, scores: Float[np.ndarray, "N sigmas signs"], sizes: Int[np.ndarray, "sizes"] | None = None
) -> dict[str, Float[np.ndarray, "sizes sigmas"]]:
    """The measured best-of-N' curves of a table of losses: one for each sigma and each choice of signs.

    Args:
      base_score: the loss at the base point.
      scores: losses; those that are not finite take part and never win.
      sizes: N' in draws, each at least 1. Default: every one from 1 to N.

    Returns:
      Mean gains over all subsets of N' draws, float64, in the unit of the loss: `+` from the draws as they are, and
      where the table holds their opposites `-` from those and `both` from the better of the two.
    """
    gains = base_score - scores.astype(np.float64)
    kinds = {"+": gains[..., 0]}
    if scores.shape[2] == 2:
        better = np.where(np.isfinite(gains), gains, -np.inf).max(axis=2)  # -inf where both are lost: so is the draw
        kinds |= {"-": gains[..., 1], "both": better}
    return {sign: expected_best(of_draw, sizes) for sign, of_draw in kinds.items()}
