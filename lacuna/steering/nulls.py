"""A statistic beside what it is when labels are shuffled: where that null lies, and how far off the true labels are.

Source: permutation tests after Fisher (1935); the maximum over levels after Westfall and Young (1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class Null:
    """A statistic at every level and place, and what it is for shuffled labels.

    Attributes:
      observed: with the true labels.
      values: with each of N shuffled labellings.
    """

    observed: Float[np.ndarray, "levels Q"]
    values: Float[np.ndarray, "N levels Q"]

    @property
    def mean(self) -> Float[np.ndarray, "levels Q"]:
        """Of the shuffled ones: it need not be zero."""
        return self.values.mean(axis=0)

    @property
    def deviation(self) -> Float[np.ndarray, "levels Q"]:
        """Standard deviation of the shuffled ones."""
        return self.values.std(axis=0, ddof=1)

    @property
    def middle(self) -> Float[np.ndarray, "2 levels Q"]:
        """Between which two values the middle 95 % of the shuffled ones lie: a cosine's null may have two humps, or an
        end at 1, where mean and deviation mislead."""
        return np.quantile(self.values, (0.025, 0.975), axis=0)

    @property
    def z(self) -> Float[np.ndarray, "levels Q"]:
        """(observed - mean) / deviation, signed; NaN where the shuffled ones do not vary."""
        return self._standardised(self.observed)

    @property
    def p(self) -> Float[np.ndarray, "levels Q"]:
        """(1 + number of shuffled at least as far from their mean) / (1 + N), at each level and place by itself."""
        far = ~(np.abs(self.values - self.mean) < np.abs(self.observed - self.mean))  # an undefined one counts as far
        return (1 + far.sum(axis=0)) / (1 + len(self.values))

    def p_of_maximum(self, levels: Sequence[int] | None = None) -> Float[np.ndarray, "Q"]:
        """The same for the largest |z| over levels, at each place: it pays for having looked at all of them.

        Args:
          levels: that were looked at; None for all.

        Raises:
          InvalidInput: none, or a level that there is not.
        """
        last = self.observed.shape[0] - 1
        chosen = np.arange(last + 1) if levels is None else np.asarray(levels, int)
        if not chosen.size or chosen.min() < 0 or chosen.max() > last:
            raise InvalidInput(f"levels must be of those from 0 to {last}, at least one of them", got=chosen.tolist())
        # Where nothing moves there is nothing to be far from.
        largest = np.nan_to_num(np.abs(self._standardised(self.values)))[:, chosen].max(axis=1)
        seen = np.nan_to_num(np.abs(self.z))[chosen].max(axis=0)
        return (1 + (largest >= seen).sum(axis=0)) / (1 + len(self.values))

    def _standardised(self, values: Float[np.ndarray, "... levels Q"]) -> Float[np.ndarray, "... levels Q"]:
        deviation = self.deviation
        return (values - self.mean) / np.where(deviation > 0, deviation, np.nan)


def shuffled_labels(
    positive: Bool[np.ndarray, "n"], num: int, *, seed: int, groups: Int[np.ndarray, "n"] | None = None
) -> Bool[np.ndarray, "N n"]:
    """The labels in `num` random orders.

    Args:
      positive: the true labels.
      num: N.
      seed: of the orders.
      groups: of each prompt the group that it belongs to, such as the template it was made from. The prompts of a group
        are alike and have one label, so they are no independent evidence: labels are then shuffled over groups. None:
        every prompt is one of its own.

    Raises:
      InvalidInput: a group with both labels; names it.
    """
    groups = np.arange(len(positive)) if groups is None else groups
    names, of_prompt = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of_prompt)
    num_positive = np.bincount(of_prompt, weights=positive).astype(int)
    mixed = np.flatnonzero((num_positive > 0) & (num_positive < sizes))
    if len(mixed):
        raise InvalidInput(
            "the prompts of a group must have one label",
            got=f"{num_positive[mixed[0]]} positive of {sizes[mixed[0]]} in group {names[mixed[0]]}",
        )
    random = np.random.default_rng(seed)
    return random.permuted(np.broadcast_to(num_positive > 0, (num, len(sizes))), axis=1)[:, of_prompt]
