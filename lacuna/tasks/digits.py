"""Ten operations on digit sequences: small tasks of which one transformer can hold all.

A row is `[task token] d_1 .. d_n [separator] a_1 .. a_n`: the question's digits, then the answer's, so a row
of n digits has 2n + 2 tokens. Tokens 0 to 9 are the digits themselves.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.losses import answer_accuracy, answer_cross_entropy
from lacuna.tasks.task import Apply, Batch, Step, Task
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


def difference(d: Digits) -> Digits:
    """Every digit less the one before it, modulo ten; the first as it is. Undoes `running_sum`."""
    return jnp.diff(d, axis=1, prepend=0) % 10


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
        difference,
    )
}
"""Every operation by name. Task tokens follow this order, so a new operation goes to the end."""

DIGIT_TASKS: tuple[str, ...] = tuple(OPERATIONS)

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
    if split not in ("train", "held_out"):
        raise InvalidInput("split must be `train` or `held_out`", got=f"`{split}`")
    task_token(name)
    return keys.stream(seed, f"digits/{name}/{split}")


def _rows(key: Key, token: int, operation: Operation, batch_size: int, length: int) -> Batch:
    digits = jax.random.randint(key, (batch_size, length), 0, 10, jnp.int32)
    head = jnp.full((batch_size, 1), token, jnp.int32)
    separator = jnp.full((batch_size, 1), SEPARATOR, jnp.int32)
    tokens = jnp.concatenate([head, digits, separator, operation(digits)], axis=1)
    answer = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= length + 2, tokens.shape)
    return Batch(tokens, answer)


def digit_batch(
    seed: int, task_name: str, step: Step, *, batch_size: int, length: int = 8, split: str = "train"
) -> Batch:
    """The batch of a task at a step: a pure function of its arguments, traceable in `step`.

    The digits are uniform and independent. Each (seed, task, split) has a stream of its own, so a task's
    batches do not depend on which other tasks there are. Training and held-out rows are independent draws
    from 10^length sequences: at length 8 a run of 500 steps sees about 0.01 % of them.

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
    key = jax.random.fold_in(_stream(seed, task_name, split), step)
    return _rows(key, task_token(task_name), OPERATIONS[task_name], batch_size, length)


@partial(jax.tree_util.register_dataclass, data_fields=["streams"], meta_fields=["names", "batch_size", "length"])
@dataclass(frozen=True, eq=False)  # hashable by identity, so that jax.jit(mixture) works too
class Mixture:
    """`mixture(step) -> Batch`: equal parts of several tasks, as made by `mixture`.

    It is a pytree whose only data are the keys, so that compiled training does not depend on the seed.
    """

    streams: Key
    names: tuple[str, ...] = field(default=())
    batch_size: int = 0
    length: int = 8

    def __call__(self, step: Step) -> Batch:
        """The batch at a step; rows are grouped by task, in the order of `names`."""
        share = self.batch_size // len(self.names)
        parts = [
            _rows(
                jax.random.fold_in(self.streams[i], step),
                task_token(name),
                OPERATIONS[name],
                share,
                self.length,
            )
            for i, name in enumerate(self.names)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def mixture(names: Sequence[str], *, seed: int, batch_size: int, length: int = 8, split: str = "train") -> Mixture:
    """Equal parts of several tasks: `mixture(...)(step)` is the concatenation of their `digit_batch`es.

    Args:
      names: tasks, of which each takes `batch_size / len(names)` rows.
      seed: seed of the data.
      batch_size: B, in rows, over all tasks.
      length: digits in a question.
      split: `train` or `held_out`.

    Raises:
      InvalidInput: an unknown task or split, or a batch that the tasks cannot share evenly.
    """
    if not names or batch_size % len(names):
        raise InvalidInput(
            "a mixture shares its batch evenly over its tasks",
            got=f"{batch_size} rows for {len(names)} tasks",
        )
    streams = jnp.stack([_stream(seed, name, split) for name in names])
    return Mixture(streams, tuple(names), batch_size, length)


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

    draw = partial(digit_batch, seed, name, batch_size=batch_size, length=length)
    return Task(name, Objective(loss, predict), metric, partial(draw, split="train"), partial(draw, split="held_out"))
