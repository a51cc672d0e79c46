"""How much of what gradients of several tasks differ by is the tasks, and in how many directions.

The gradients come as a Gram matrix. The batches of each task are in two disjoint halves: in the products of task means
from different halves the noise of the batches cancels on average, and what is left is the scatter between tasks. Its
null permutes the labels of the tasks over the batches, within each half.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Gram = Float[np.ndarray, "rows rows"]
Labels = Int[np.ndarray, "rows"]


class Scatter(NamedTuple):
    """The scatter between tasks.

    Attributes:
      energy: by direction, strongest first, as a share of all energy of the gradients; where there is nothing but
        noise as many are negative as positive.
      p_value: that labels at random scatter as much.
      null: energies by direction, in their order, of labels at random.
    """

    energy: Float[np.ndarray, "tasks"]
    p_value: float
    null: Float[np.ndarray, "n tasks"]

    @property
    def share(self) -> float:
        """Of all energy."""
        return float(self.energy.sum())

    @property
    def participation_ratio(self) -> float:
        """Of the positive energies; 0 where none is."""
        return participation_ratio(self.energy)


def participation_ratio(values: Float[np.ndarray, "n"]) -> float:
    """`(sum v)^2 / sum v^2` of the positive values; 0 where none is."""
    positive = np.maximum(values, 0)
    return float(positive.sum() ** 2 / np.sum(positive**2)) if positive.any() else 0.0


def halves(num_tasks: int, num_batches: int) -> tuple[Labels, Labels]:
    """Task and half of each row: all batches of a task one after the other, in either half by turns."""
    return np.repeat(np.arange(num_tasks), num_batches), np.tile(np.arange(num_batches) % 2, num_tasks)


def between_tasks(gram: Gram, labels: Labels, half: Labels) -> Float[np.ndarray, "tasks"]:
    """Eigenvalues, descending, of the symmetrised between-task scatter of two halves.

    Args:
      gram: inner products of all gradients.
      labels: task of each row.
      half: 0 or 1 for each row.
    """
    means, centre = _means(labels, half)
    cross = centre @ means[0] @ gram @ means[1].T @ centre
    return np.sort(np.linalg.eigvalsh((cross + cross.T) / 2))[::-1]


def share_along(gram: Gram, labels: Labels, half: Labels, contrast: Float[np.ndarray, "tasks"]) -> float:
    """The share of the scatter between tasks that lies along one contrast of them, given up to its mean and length."""
    means, centre = _means(labels, half)
    unit = centre @ contrast / np.linalg.norm(centre @ contrast)
    along = unit @ means[0] @ gram @ means[1].T @ unit
    return float(along / np.sum(_weights(labels, half) * gram))


def _means(labels: Labels, half: Labels) -> tuple[Float[np.ndarray, "2 tasks rows"], Float[np.ndarray, "tasks tasks"]]:
    """What makes the means of all tasks in either half, and what centres them."""
    num_tasks = labels.max() + 1
    means = np.zeros((2, num_tasks, len(labels)))
    for h in (0, 1):
        for task in range(num_tasks):
            members = (labels == task) & (half == h)
            means[h, task, members] = 1 / members.sum()
    return means, np.eye(num_tasks) - 1 / num_tasks


def _weights(labels: Labels, half: Labels) -> Gram:
    """W, so that the eigenvalues of `between_tasks` add up to `sum(W * gram)`."""
    means, centre = _means(labels, half)
    return means[0].T @ centre @ means[1]


def permuted(labels: Labels, half: Labels, rng: np.random.Generator) -> Labels:
    """The labels shuffled within each half, so that halves keep as many batches of each task."""
    shuffled = labels.copy()
    for h in (0, 1):
        shuffled[half == h] = rng.permutation(labels[half == h])
    return shuffled


def resampled(labels: Labels, half: Labels, rng: np.random.Generator) -> Labels:
    """Rows drawn again with replacement from those of the same task and half, in whose place they stand.

    No batch comes into both halves, so their noise stays independent.
    """
    rows = np.arange(len(labels))
    for task in range(labels.max() + 1):
        for h in (0, 1):
            members = np.flatnonzero((labels == task) & (half == h))
            rows[members] = rng.choice(members, len(members))
    return rows


def normalised(gram: Gram) -> Gram:
    """Inner products of the rows scaled to length one; rows of length zero stay."""
    lengths = np.sqrt(np.diag(gram))
    lengths = np.where(lengths > 0, lengths, 1.0)
    return gram / np.outer(lengths, lengths)


def scatter(gram: Gram, labels: Labels, half: Labels, shuffles: list[Labels]) -> Scatter:
    """The scatter between tasks beside that of shuffled labels."""
    scale = len(labels) / (labels.max() + 1) / np.trace(gram)
    energy = scale * between_tasks(gram, labels, half)
    null = scale * np.asarray([between_tasks(gram, shuffled, half) for shuffled in shuffles])
    return Scatter(energy, float((1 + np.sum(null.sum(axis=1) >= energy.sum())) / (1 + len(null))), null)


def bootstrap(
    gram: Gram, labels: Labels, half: Labels, rng: np.random.Generator, *, num: int
) -> tuple[Float[np.ndarray, "num"], Float[np.ndarray, "num"]]:
    """Participation ratios and shares of energy of batches drawn again."""
    ratios, shares = [], []
    for _ in range(num):
        rows = resampled(labels, half, rng)
        again = gram[np.ix_(rows, rows)]
        values = between_tasks(again, labels, half)
        ratios.append(participation_ratio(values))
        shares.append(values.sum() * len(labels) / (labels.max() + 1) / np.trace(again))
    return np.asarray(ratios), np.asarray(shares)


class Parts(NamedTuple):
    """The scatter between tasks within each of several parts of the gradients.

    Attributes:
      share: of a part's own energy.
      participation_ratio: of its directions.
      p_value: of each part by itself.
      p_adjusted: that any of the parts scatters as much at random.
    """

    share: Float[np.ndarray, "parts"]
    participation_ratio: Float[np.ndarray, "parts"]
    p_value: Float[np.ndarray, "parts"]
    p_adjusted: Float[np.ndarray, "parts"]


def scatter_of_parts(
    grams: Float[np.ndarray, "parts rows rows"], labels: Labels, half: Labels, shuffles: list[Labels]
) -> Parts:
    """The scatter within each part, under the same shuffles for all, so that the parts can be judged together."""
    weights = np.stack([_weights(one, half) for one in (labels, *shuffles)])
    sums = np.tensordot(weights, grams, ([1, 2], [1, 2]))
    traces = np.trace(grams, axis1=1, axis2=2)
    share = sums[0] * len(labels) / (labels.max() + 1) / np.where(traces > 0, traces, 1.0)
    ratios = [participation_ratio(between_tasks(gram, labels, half)) for gram in grams]
    p_value = (1 + np.sum(sums[1:] >= sums[0], axis=0)) / len(sums)
    return Parts(share, np.asarray(ratios), p_value, max_statistic(sums))


def max_statistic(sums: Float[np.ndarray, "n parts"]) -> Float[np.ndarray, "parts"]:
    """p values of the first row, corrected for how many parts there are.

    Each part is put on the scale of its own permutations, the true labels among them, and is compared with the
    largest of all parts under each: parts that go together cost nothing more.

    Source: Westfall and Young (1993).
    """
    spread = sums.std(axis=0)
    z = (sums - sums.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return (1 + np.sum(z[1:].max(axis=1)[:, None] >= z[0], axis=0)) / len(sums)
