"""A contrast that the synthetic model can be asked for: which of two digits an answer begins with."""

import jax
import numpy as np
from jaxtyping import Int32

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.contrast import Prompts
from lacuna.tasks.digits import digit_batch

DRAWN_AT_A_TIME, MOST_DRAWN = 2**16, 2**22
"""Rows; from the most, a digit that begins one answer in 16,000 is had about 260 times, in a few seconds."""


def digit_contrast(
    seed: int,
    task_name: str,
    *,
    digits: tuple[int, int] = (2, 7),
    num_rows: int,
    length: int = 8,
    split: str = "train",
) -> Prompts:
    """Rows of a digit task up to the separator, half of whose answers begin with each of two digits.

    They are those of the task's `digit_batch` stream that begin so, each once, in a shuffled order: a pure function of
    the arguments, and the two splits are independent draws. The answer's first digit is uniform for all tasks but
    `sort`, where it is the smallest of the question: 2 in one of 9 rows of eight digits, 7 in one of 16,000, so that
    about 500 rows can be had of the two.

    Args:
      seed: seed of the data.
      task_name: one of `DIGIT_TASKS`.
      digits: that the answers begin with: the answers of every prompt, the first of them the positive one.
      num_rows: B; even.
      length: digits in a question; a prompt has two more tokens.
      split: `train` or `held_out`.

    Raises:
      InvalidInput: an unknown task or split, a seed outside [0, 2^32), digits that are not two different ones, an odd
        number of rows, or one that cannot be filled.
    """
    if len(set(digits)) < 2 or not all(0 <= digit <= 9 for digit in digits):
        raise InvalidInput("digits must be two different ones from 0 to 9", got=digits)
    if num_rows < 2 or num_rows % 2:
        raise InvalidInput("num_rows must be even and at least 2, for half of the rows are of each digit", got=num_rows)
    sides = _sides(seed, task_name, digits, num_rows // 2, length, split)
    order = jax.random.permutation(keys.stream(seed, f"digit_contrast/{task_name}/{split}"), num_rows)
    return Prompts(
        np.concatenate(sides)[order],
        np.full(num_rows, length + 2, np.int32),
        np.tile(np.asarray(digits, np.int32), (num_rows, 1)),
        np.repeat(np.arange(2, dtype=np.int32), num_rows // 2)[order],
    )


def _sides(
    seed: int, task_name: str, digits: tuple[int, int], each: int, length: int, split: str
) -> list[Int32[np.ndarray, "n S"]]:
    """The first different prompts of each digit in the task's stream."""
    sides = [np.zeros((0, length + 2), np.int32) for _ in digits]
    for step in range(MOST_DRAWN // DRAWN_AT_A_TIME):
        batch = digit_batch(seed, task_name, step, batch_size=DRAWN_AT_A_TIME, length=length, split=split)
        prompts, begins = np.split(np.asarray(batch.tokens)[:, : length + 3], [length + 2], axis=1)
        for side, digit in enumerate(digits):
            rows = np.concatenate([sides[side], prompts[begins[:, 0] == digit]])
            first = np.unique(rows, axis=0, return_index=True)[1]
            sides[side] = rows[np.sort(first)[:each]]
        if all(len(rows) == each for rows in sides):
            return sides
    raise InvalidInput(
        f"{each} rows of `{task_name}` are needed whose answers begin with each of {digits[0]} and {digits[1]}",
        got=f"{len(sides[0])} and {len(sides[1])} different ones of {MOST_DRAWN:,}",
        hint="fewer rows, or other digits",
    )
