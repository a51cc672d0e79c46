"""The same lessons in another order: several tasks one after the other, or dealt in turn, from the same batches.

A lesson is one update on one batch: a task and the step of its stream. A schedule is a list of lessons, and it is data:
one compiled program serves every order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna import keys
from lacuna.tasks.task import Batch
from lacuna.training import BatchAt
from lacuna.types import Loss, Params

Schedule = Int[np.ndarray, "n 2"]
"""A lesson a row: the task's place in the list of tasks, and the step of its stream."""


def orders(seed: int, num_tasks: int, num_orders: int) -> list[tuple[int, ...]]:
    """Orders of the tasks: a permutation turned round by one place at a time, then another one.

    With as many orders as tasks every task stands once at every place, so that no place is that of an easy task.
    """
    found = []
    for i in range(num_orders):
        key = keys.stream(seed, f"specialisation/order {i // num_tasks}")
        drawn = np.asarray(jax.random.permutation(key, num_tasks))
        found.append(tuple(int(task) for task in np.roll(drawn, -(i % num_tasks))))
    return found


def sequential(order: Sequence[int], num_updates: int) -> Schedule:
    """All lessons of the first task, then all of the next."""
    return np.stack([np.repeat(order, num_updates), np.tile(np.arange(num_updates), len(order))], axis=1)


def simultaneous(order: Sequence[int], num_updates: int) -> Schedule:
    """The same lessons in turn: the first of every task, then the second of every task."""
    return np.stack([np.tile(order, num_updates), np.repeat(np.arange(num_updates), len(order))], axis=1)


def shared(one: Schedule, other: Schedule) -> float:
    """The share of lessons that two schedules have in common, each counted as often as it is given."""
    kinds, which = np.unique(np.concatenate([one, other]), axis=0, return_inverse=True)
    counts = [np.bincount(part, minlength=len(kinds)) for part in np.split(which.reshape(-1), [len(one)])]
    return float(np.minimum(*counts).sum() / max(len(one), len(other)))


class School(NamedTuple):
    """What is taught and how it is examined. All of it is data to a compiled program, but for the functions' code.

    Attributes:
      loss: of parameters and a batch.
      accuracy: of parameters and a batch, from 0 to 1.
      streams: the training batches of each task, of one shape.
      held_out: the rows on which each is examined; leading axis T.
      learning_rate: of Adam, constant.
    """

    loss: Loss
    accuracy: Loss
    streams: tuple[BatchAt, ...]
    held_out: Batch
    learning_rate: float


class _State(NamedTuple):
    params: Params
    moments: Any


def _fresh(school: School, params: Params) -> _State:
    return _State(params, optax.adam(school.learning_rate).init(params))


def _update(school: School, state: _State, task: Int[Array, ""], step: Int[Array, ""]) -> _State:
    batch = lax.switch(task, school.streams, step)
    gradient = jax.grad(school.loss)(state.params, batch)
    delta, moments = optax.adam(school.learning_rate).update(gradient, state.moments, state.params)
    return _State(optax.apply_updates(state.params, delta), moments)


class Learnt(NamedTuple):
    """What a schedule leads to.

    Attributes:
      params: the point after the last lesson.
      accuracy: entry c is after `c * every` lessons, of each task on its held-out rows.
    """

    params: Params
    accuracy: Float[Array, "c T"]


@partial(jax.jit, static_argnames="every")
def learn(school: School, params: Params, schedule: Int[Array, "n 2"], *, every: int) -> Learnt:
    """Take the lessons of a schedule by one Adam, whose state is kept from task to task.

    Args:
      school: tasks and optimiser.
      params: where to start; not touched.
      schedule: the lessons; `every` divides their number.
      every: lessons between two examinations.
    """

    def examined(state: _State) -> Float[Array, "T"]:
        return lax.map(partial(school.accuracy, state.params), school.held_out)

    def lesson(state: _State, which: Int[Array, "2"]) -> tuple[_State, None]:
        return _update(school, state, which[0], which[1]), None

    def term(state: _State, lessons: Int[Array, "e 2"]) -> tuple[_State, Float[Array, "T"]]:
        state, _ = lax.scan(lesson, state, lessons)
        return state, examined(state)

    start = _fresh(school, params)
    end, found = lax.scan(term, start, schedule.reshape(-1, every, 2))
    return Learnt(end.params, jnp.concatenate([examined(start)[None], found]))


class Relearnt(NamedTuple):
    """How soon a task came back.

    Attributes:
      num_updates: until the first examination at which the target was reached; all that were allowed if it was not.
      regained: whether it was reached.
    """

    num_updates: Int[Array, ""]
    regained: Bool[Array, ""]


@partial(jax.jit, static_argnames="every")
def relearn(
    school: School,
    params: Params,
    task: Int[Array, ""],
    target: Float[Array, ""],
    first: Int[Array, ""],
    most: Int[Array, ""],
    *,
    every: int,
) -> Relearnt:
    """Train on one task alone, by an Adam of fresh state, until its accuracy is a target.

    Args:
      school: tasks and optimiser.
      params: where to start; not touched. It is examined, too: who has lost nothing needs no update.
      task: its place in the list of tasks.
      target: the accuracy at which to stop.
      first: step of the task's stream at which to begin.
      most: updates at which to give up; a multiple of `every`.
      every: updates between two examinations.
    """
    rows = jax.tree.map(lambda leaf: leaf[task], school.held_out)

    def goes_on(carried: tuple[_State, Array, Array]) -> Bool[Array, ""]:
        _, done, accuracy = carried
        return (accuracy < target) & (done < most)

    def term(carried: tuple[_State, Array, Array]) -> tuple[_State, Array, Array]:
        state, done, _ = carried
        state = lax.fori_loop(0, every, lambda i, state: _update(school, state, task, first + done + i), state)
        return state, done + every, school.accuracy(state.params, rows)

    start = _fresh(school, params)
    _, done, accuracy = lax.while_loop(goes_on, term, (start, jnp.int32(0), school.accuracy(params, rows)))
    return Relearnt(done, accuracy >= target)


def updates_to(target: float, accuracy: Float[np.ndarray, "c"], *, every: int) -> int:
    """Updates until the first examination at which an accuracy, examined every so often from 0 on, is a target."""
    return int(np.argmax(accuracy >= target)) * every
