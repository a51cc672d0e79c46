"""Gradients of many tasks: what T of them cost beside one gradient of all the rows, for T from 1 to 64.

    python -m benchmarks task_gradients

Questions: does the time of `task_gradients` grow as the number of tasks, and no faster? What does it cost beside a loop
of T calls of a compiled gradient, and beside the one gradient of all the rows together, which is what the gradients of
all tasks must take at least (goal: at most 1.15 of either)? The synthetic transformer of half a million parameters,
random weights, 16 rows of 17 tokens a task. The floor is three products with every weight at this machine's rate for a
square one.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, timed
from lacuna import trees
from lacuna.derivatives import task_gradients
from lacuna.models.synthetic import SyntheticSpec, synthetic
from lacuna.tasks import digits

NUM_TASKS = (1, 4, 16, 64)
NUM_ROWS = 16
TOLERANCE = 1e-4
"""Of gradients, relative to their largest number: the same float32 sums in other orders."""


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def measure() -> Iterator[Row]:
    """The rows."""
    model = synthetic(SyntheticSpec(digits.vocab_size))
    params = model.init(jax.random.key(0))
    task = digits.digit_task("sort", model.apply, seed=0, batch_size=NUM_ROWS)
    loss = task.objective.loss
    single = jax.jit(jax.grad(loss))
    floor_one = harness.rates().floor_s(flop=6 * trees.size(params) * NUM_ROWS * (digits.row_length(8) - 1))
    for num in NUM_TASKS:
        parts = [task.train(i) for i in range(num)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        found, looped = task_gradients(loss, params, stacked), [single(params, part) for part in parts]
        each = harness.check_same(
            "gradients of tasks",
            flat(found),
            flat(jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)),
            tolerance=TOLERANCE,
        )
        mean = flat(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found))
        whole = harness.check_same("their mean", mean, flat(single(params, together)), tolerance=TOLERANCE)
        ours, loop, one = harness.interleave(
            lambda s=stacked: task_gradients(loss, params, s),
            lambda p=parts: [single(params, part) for part in p],
            lambda t=together: single(params, t),
        )
        yield timed(f"gradients of {num} tasks", ours, floor=num * floor_one)
        yield compared(
            f"beside a loop of {num} calls", harness.ratio(ours.wall_s, loop.wall_s), goal="<= 1.15", note=each
        )
        yield compared(f"beside one gradient of all rows of {num} tasks", harness.ratio(ours.wall_s, one.wall_s),
                       goal="<= 1.15", note=whole)  # fmt: skip
