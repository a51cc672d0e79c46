"""Nine operations on digit sequences: small tasks of which one transformer can hold all.

A row is `[task token] d_1 .. d_n [separator] a_1 .. a_n`: the question's digits, then the answer's, so a row
of n digits has 2n + 2 tokens. Tokens 0 to 9 are the digits themselves.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.losses import answer_accuracy, answer_cross_entropy
from lacuna.tasks.task import Apply, Batch, Step, Task, step_index
from lacuna.types import Key, Objective, Params

Digits = Int[Array, "B n"]
Operation = Callable[[Digits], Digits]


def copy(d: Digits) -> Digits:
    """The digits as they are."""
    return d


def reverse(d: Digits) -> Digits:
    """The digits from last to first."""
    return d[:, ::-1]


def sort(d: Digits) -> Digits:
    """The digits in ascending order."""
    return jnp.sort(d, axis=1)


def add(d: Digits) -> Digits:
    """Every digit plus three, modulo ten."""
    return (d + 3) % 10


def running_sum(d: Digits) -> Digits:
    """The sum of the digits so far, modulo ten."""
    return jnp.cumsum(d, axis=1) % 10


def rotate(d: Digits) -> Digits:
    """The digits moved one place to the left, the first to the end."""
    return jnp.roll(d, -1, axis=1)


def complement(d: Digits) -> Digits:
    """The nine's complement of every digit."""
    return 9 - d


def neighbour_sum(d: Digits) -> Digits:
    """Every digit plus the next, modulo ten; the last plus the first."""
    return (d + jnp.roll(d, -1, axis=1)) % 10


def running_max(d: Digits) -> Digits:
    """The largest digit so far."""
    return jax.lax.cummax(d, axis=1)


OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        copy,
        reverse,
        sort,
        add,
        running_sum,
        rotate,
        complement,
        neighbour_sum,
        running_max,
    )
}
"""Every operation by name. Task tokens follow this order, so a new operation goes to the end."""

DIGIT_TASKS: tuple[str, ...] = tuple(OPERATIONS)

SPLITS = ("train", "held_out")

SEPARATOR = 10
"""The token between question and answer."""

vocab_size = SEPARATOR + 1 + len(DIGIT_TASKS)
"""V of the digit tasks: ten digits, the separator and a token for every task."""


def row_length(length: int) -> int:
    """Tokens in a row of `length` digits."""
    return 2 * length + 2


def task_token(name: str) -> int:
    """The token that opens the rows of a task.

    Raises:
      InvalidInput: no such task; names the known ones and the nearest.
    """
    if name not in OPERATIONS:
        near = difflib.get_close_matches(name, DIGIT_TASKS, n=1, cutoff=0)[0]
        raise InvalidInput(f"a digit task is one of {', '.join(DIGIT_TASKS)}", got=f"`{name}`", hint=f"`{near}`")
    return SEPARATOR + 1 + DIGIT_TASKS.index(name)


def _stream(seed: int, name: str, split: str) -> Key:
    task_token(name)
    return keys.stream(seed, f"digits/{name}/{split}")


def _rows(key: Key, name: str, num_rows: int, length: int) -> Batch:
    question = jax.random.randint(key, (num_rows, length), 0, 10, jnp.int32)
    opening = jnp.full((num_rows, 1), task_token(name), jnp.int32)
    separator = jnp.full((num_rows, 1), SEPARATOR, jnp.int32)
    tokens = jnp.concatenate([opening, question, separator, OPERATIONS[name](question)], axis=1)
    return Batch(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= length + 2, tokens.shape))


def digit_batch(
    seed: int, task_name: str, step: Step, *, batch_size: int, length: int = 8, split: str = "train"
) -> Batch:
    """The batch of a task at a step: a pure function of its arguments, traceable in `step`.

    The digits are uniform and independent. Each (seed, task, split) has a stream of its own, so a task's
    batches do not depend on which other tasks there are. Training and held-out rows are independent draws
    from 10^length questions: at length 8 a run of 500 steps sees about 0.01 % of them.

    Args:
      seed: seed of the data.
      task_name: one of `DIGIT_TASKS`.
      step: index of the batch.
      batch_size: B, in rows.
      length: digits in a question.
      split: `train` or `held_out`.

    Raises:
      InvalidInput: an unknown task or split, or a seed outside [0, 2^32).
    """
    if split not in SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(SPLITS)}", got=f"`{split}`")
    return _rows(jax.random.fold_in(_stream(seed, task_name, split), step_index(step)), task_name, batch_size, length)


@partial(jax.tree_util.register_dataclass, data_fields=["streams"], meta_fields=["shares", "length"])
@dataclass(frozen=True, eq=False)  # hashed by identity, so that jax.jit(mixture) works as well
class Mixture:
    """`mixture(step) -> Batch`, the rows of several tasks; made by `mixture`.

    It is a pytree whose only data are its keys, so a program compiled for one seed serves the others.

    Attributes:
      streams: one key for each task.
      shares: pairs of a task and its number of rows; the batch is grouped by task in this order.
      length: digits in a question.
    """

    streams: Any
    shares: tuple[tuple[str, int], ...]
    length: int

    def __call__(self, step: Step) -> Batch:
        """The batch at a step."""
        parts = [
            _rows(
                # Indexed, because an array of keys cannot be iterated over while it is traced as a constant.
                jax.random.fold_in(self.streams[i], step_index(step)),
                name,
                num_rows,
                self.length,
            )
            for i, (name, num_rows) in enumerate(self.shares)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _shares(names: Sequence[str], num_rows: int) -> tuple[tuple[str, int], ...]:
    if not 0 < len(names) <= num_rows:
        raise InvalidInput(
            "every task of a mixture needs a row in the batch", got=f"{len(names)} tasks for {num_rows} rows"
        )
    share, left = divmod(num_rows, len(names))
    return tuple((name, share + (i < left)) for i, name in enumerate(names))


def mixture(names: Sequence[str], *, seed: int, batch_size: int, length: int = 8, split: str = "train") -> Mixture:
    """Several tasks in every batch: each task's rows are its own `digit_batch`.

    Args:
      names: the tasks. They share the rows evenly; what is left over goes to the first ones, a row each.
      seed: seed of the data.
      batch_size: B, in rows, over all tasks.
      length: digits in a question.
      split: `train` or `held_out`.

    Raises:
      InvalidInput: an unknown task or split, no task, or fewer rows than tasks.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(SPLITS)}", got=f"`{split}`")
    shares = _shares(names, batch_size)
    return Mixture(jnp.stack([_stream(seed, name, split) for name in names]), shares, length)


def digit_task(name: str, apply: Apply, *, seed: int, batch_size: int, length: int = 8) -> Task:
    """One digit task for any model that gives logits.

    Args:
      name: one of `DIGIT_TASKS`.
      apply: `apply(params, tokens)`, with `.logits` float[B, S, vocab_size].
      seed: seed of the data.
      batch_size: B, in rows.
      length: digits in a question.

    Returns:
      The task. Its loss is in nats per answer digit; its metrics are `accuracy` per digit and `exact_match`
      per row; its `predict` has the layout of the batch's tokens and repeats the tokens that are given (the
      first one, which nothing predicts, included) outside the answer.

    Raises:
      InvalidInput: an unknown task; names the known ones and the nearest.
    """
    task_token(name)
    objective, metric = _answering(apply)
    draw = partial(digit_batch, seed, name, batch_size=batch_size, length=length)
    return Task(name, objective, metric, partial(draw, split="train"), partial(draw, split="held_out"))


@cache
def _answering(apply: Apply) -> tuple[Objective, Callable[[Params, Batch], dict[str, Array]]]:
    """The objective and the metrics of all digit tasks, which differ in their data alone: what is compiled for one
    serves the others."""

    def logits_of(params: Params, batch: Batch) -> Float[Array, "B R V"]:
        # The last token predicts nothing.
        return apply(params, batch.tokens[:, :-1]).logits

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        return answer_cross_entropy(logits_of(params, batch), batch.tokens, batch.answer)

    def predict(params: Params, batch: Batch) -> Int[Array, "B S"]:
        best = jnp.argmax(logits_of(params, batch), axis=-1).astype(batch.tokens.dtype)
        return jnp.where(batch.answer, jnp.pad(best, ((0, 0), (1, 0))), batch.tokens)

    def metric(params: Params, batch: Batch) -> dict[str, Array]:
        accuracy = answer_accuracy(logits_of(params, batch), batch.tokens, batch.answer)
        return {"accuracy": accuracy.per_token, "exact_match": accuracy.exact_match}

    return Objective(loss, predict), metric
