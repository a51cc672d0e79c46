"""Who won, and what best-of-N would have given for every smaller N.

Order is total: by score, then index, then position of the sigma, then sign. Ties are common with
accuracies, and without a rule the winner would depend on the chunk.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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
    """Sizes N' at which a best-of-N' curve is drawn: 1, ..., n, evenly spaced in the logarithm."""
    exponents = np.linspace(0.0, math.log2(n), max(2, round(per_octave * math.log2(n)) + 1)) if n > 1 else [0.0]
    return np.unique(np.rint(np.exp2(exponents)).astype(np.int64))


def expected_best(gains: Float[np.ndarray, "N"], sizes: Int[np.ndarray, "sizes"]) -> Float[np.ndarray, "sizes"]:
    """Exact mean of the largest gain over all subsets of each size: the measured best-of-N' curve.

    The i-th smallest of N values is the largest of `C(i-1, N'-1)` subsets out of `C(N, N')`; no resampling,
    no noise beyond that of the draws themselves.

    A draw whose gain is not finite takes part and never wins, as in the sweep itself: the mean is over the
    subsets that hold at least one finite gain.

    Args:
      gains: one gain a draw.
      sizes: N', each at least 1.

    Returns:
      float64, one mean for each size; NaN where N' exceeds N, and everywhere if no gain is finite.
    """
    ordered = np.sort(np.where(np.isfinite(gains), gains, -np.inf).astype(np.float64))
    n, num_lost = len(gains), int(np.isneginf(ordered).sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    means = np.full(len(sizes), np.nan)
    for position, size in enumerate(int(s) for s in sizes):
        if 1 <= size <= n > num_lost:
            below = np.arange(max(size - 1, num_lost), n)  # how many values lie below each possible maximum
            log_subsets = log_factorial[below] - log_factorial[size - 1] - log_factorial[below - size + 1]
            weights = np.exp(log_subsets - log_subsets.max())
            means[position] = weights @ ordered[below] / weights.sum()
    return means
