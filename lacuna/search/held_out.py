"""What survives of a sweep's gains on data that the search did not see."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.reports.records import Record
from lacuna.search.analysis import EXPERIMENT
from lacuna.search.candidates import rescore
from lacuna.search.evaluate import score
from lacuna.search.select import Candidate
from lacuna.search.sweep import SweepResult
from lacuna.types import Batch, Loss, Objective, Params

SHRINKAGE_LEVEL = 0.95
"""Of the interval of what is left of a gain."""


LEAST_GAIN = 0.01
"""Of the winner's: a smaller gain is nothing of which a share could be left."""


def held_out_records(
    result: SweepResult, loss: Loss | Objective, params: Params, batch: Batch, held_out: Batch | Sequence[Batch]
) -> list[Record]:
    """How much of the winners' gain survives on data that the search did not see.

    The top K stand beside K draws at the winner's sigma that were never searched, so nobody selected them.
    Each group's figure is the mean gain of those of its members whose loss is finite on every batch; their
    number is recorded beside it. The winner is a group of its own.

    Shrinkage is the held-out gain divided by the gain on the search batch: 1 where nothing was owed to the
    batch that was searched on. The search gain is a known number, given the table; the held-out gain is a mean over
    batches, so the interval is Student's t over them. It says how well the held-out gain is known, not how another
    search batch would have chosen. Candidates that gained nothing on the search batch, less than a hundredth of
    the winner's gain or no more than rounding, have no share of it to keep: theirs is NaN.

    Args:
      result: the finished sweep.
      loss: the sweep's loss.
      params: its base point.
      batch: the batch it scored.
      held_out: batches of the same kind that it did not, of equal weight; or one, and then there is no interval.

    Raises:
      InvalidInput: `held_out` is neither a batch of the structure of `batch` nor some of them.
    """
    batches = _batches(held_out, like=batch)
    if result.best is None:
        return []
    groups = _groups(result, result.best)
    everyone = tuple(candidate for members in groups.values() for candidate in members)
    group_of = np.repeat(list(groups), [len(members) for members in groups.values()])
    base = np.asarray([float(score(loss, params, rows)) for rows in (batch, *batches)])
    scores = np.stack([rescore(loss, params, rows, result.sweep, everyone) for rows in (batch, *batches)])
    gains = base[:, None] - scores.astype(np.float64)
    finite = np.isfinite(gains).all(axis=0)
    least = max(float(np.spacing(np.float32(abs(base[0])))), LEAST_GAIN * (base[0] - result.best.score))
    found = []
    for group, members in groups.items():
        counted = gains[:, (group_of == group) & finite]
        where = {"group": group, "size": len(members), "num_finite": counted.shape[1], "num_batches": len(batches)}
        of_batch = counted.mean(axis=1) if counted.size else np.full(len(gains), np.nan)
        search_gain, held_out_gain = of_batch[0], of_batch[1:].mean()
        divisor = search_gain if search_gain > least else np.nan
        low, high = (end / divisor for end in _interval(of_batch[1:]))
        found += [
            Record(EXPERIMENT, "search_gain", float(search_gain), "loss", where),
            Record(EXPERIMENT, "held_out_gain", float(held_out_gain), "loss", where),
            Record(EXPERIMENT, "shrinkage", float(held_out_gain / divisor), "1", where),
            Record(EXPERIMENT, "shrinkage_low", float(low), "1", where | {"level": SHRINKAGE_LEVEL}),
            Record(EXPERIMENT, "shrinkage_high", float(high), "1", where | {"level": SHRINKAGE_LEVEL}),
        ]
    return found


def _batches(held_out: Batch | Sequence[Batch], *, like: Batch) -> list[Batch]:
    """The held-out batches as a list."""

    def kind(tree: Batch) -> tuple[str, ...]:
        """Structure and numbers of axes: batches may differ in rows and in padding, but no sequence of them is one."""
        return str(jax.tree.structure(tree)), *(f"{np.ndim(leaf)} axes" for leaf in jax.tree.leaves(tree))

    if kind(held_out) == kind(like):
        return [held_out]
    if isinstance(held_out, Sequence) and held_out and all(kind(batch) == kind(like) for batch in held_out):
        return list(held_out)
    raise InvalidInput(
        f"held_out must be a batch as the one that was searched on, {' '.join(kind(like))}, or a sequence of them",
        got=" ".join(kind(held_out)),
    )


def _groups(result: SweepResult, best: Candidate) -> dict[str, tuple[Candidate, ...]]:
    """The candidates that are scored again, by the name of their group."""
    num_top = len(result.top_k)
    unsearched = [(result.sweep.num_candidates + i) % keys.SEED_LIMIT for i in range(num_top)]
    return {
        "winner": result.top_k[:1],
        f"top {num_top}, mean": result.top_k,
        f"{num_top} random draws at the winner's σ, mean": tuple(
            Candidate(index, best.sigma, 1, np.nan) for index in unsearched
        ),
    }


def _interval(gains: Float[np.ndarray, "batches"]) -> tuple[float, float]:
    """Student's interval of a mean over batches; NaN for one batch alone."""
    from scipy.special import stdtrit

    num_batches = len(gains)
    if num_batches == 1:
        return np.nan, np.nan
    half_width = stdtrit(num_batches - 1, (1 + SHRINKAGE_LEVEL) / 2) * gains.std(ddof=1) / np.sqrt(num_batches)
    return gains.mean() - half_width, gains.mean() + half_width
