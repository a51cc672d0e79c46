"""What the experiments share: states of the synthetic model, recoveries from a point, and the static bases there."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lacuna import derivatives, geometry, keys, setups, trees
from lacuna.models.model import Model
from lacuna.tasks import digits
from lacuna.tasks.task import Task
from lacuna.training import BatchAt, Optimiser, RecoverConfig, TrainConfig, Trajectory, fit, from_step, recover
from lacuna.types import Batch, Delta, Loss, Params, Rows

Told = Callable[[str], None]
"""`told(sentence)`: what is being done."""


FORGETTING = "the forgetting itself"
"""A basis that one has only with the answer: it is shown, and not counted among the static ones."""


class Stretches(NamedTuple):
    """Where in a task's stream of batches something begins, so that it sees rows of its own.

    Attributes:
      recovery: the recovery.
      held_out_run: the other recovery from the same point.
      gradients: the batches of gradients and Hessian products.
    """

    recovery: int = 0
    held_out_run: int = 1_000_000
    gradients: int = 2_000_000


RATES: dict[Optimiser, float] = {"sgd": 1e-3, "momentum": 3e-4, "adam": 1e-4}
"""Constant learning rates at which the loss falls from the first step on (three times these overshoot at first).
The paper's are not available to us; these are ours."""


@dataclass(frozen=True)
class StartSpec:
    """A point of the synthetic model and how it is recovered from.

    Attributes:
      task: the task of interest, the one that was forgotten.
      training_steps: of the multitask training.
      undertrained_steps: of the multitask training that ended early.
      training_rows: rows of a training batch.
      forget_steps: of the training on another task alone.
      recovery_steps: constant steps of a recovery.
      batch_size: rows of a batch in recoveries, gradients and Hessian products.
    """

    task: str = "sort"
    training_steps: int = 500
    undertrained_steps: int = 150
    training_rows: int = 256
    forget_steps: int = 20
    recovery_steps: int = 100
    batch_size: int = 128


class Start(NamedTuple):
    """A point to recover from, of the synthetic model or of an adapter: forgotten, trained or under-trained.

    Attributes:
      spec: how it was made.
      model: its architecture; of an adapter that of the frozen model.
      trained: the point before it forgot.
      params: the point.
      loss: in nats an answer token; the same function for every seed and state, or one whose weights are data, so that
        nothing is compiled twice.
      task: the task of interest, with data of the same seed.
      streams: training batches of every task, by name; pytrees.
      specialise: `specialise(task)`, a task vector: where training on it alone takes the point before it forgot, in as
        many steps as forgetting takes.
      rates: constant learning rates of a recovery.
      recovery_steps: of a recovery.
      stretches: of the streams.
      seed: of model and data.
    """

    spec: Any
    model: Model
    trained: Params
    params: Params
    loss: Loss
    task: Task
    streams: Mapping[str, BatchAt]
    specialise: Callable[..., Delta]
    rates: Mapping[Optimiser, float]
    recovery_steps: int
    stretches: Stretches
    seed: int


def _train_config(num_steps: int, warmup_steps: int) -> TrainConfig:
    return TrainConfig(num_steps=num_steps, warmup_steps=min(warmup_steps, num_steps // 2))


def starting_point(spec: StartSpec, seed: int, cache: Path, told: Told, *, state: setups.State = "forgotten") -> Start:
    """Train (or load) the multitask model of a seed, and bring it into a state: by default it forgets the task."""
    config = setups.SetupConfig(
        state=state,
        task=spec.task,
        seed=seed,
        batch_size=spec.training_rows,
        train=_train_config(spec.training_steps, 50),
        undertrained_steps=spec.undertrained_steps,
        forget=_train_config(spec.forget_steps, 5),
    )
    stages: set[str] = set()

    def advance(stage: str, step: int, num_steps: int, loss: float) -> None:
        if not step:
            return  # it is compiled, and has no loss yet
        if stage not in stages or step == num_steps:
            told(f"{stage}: step {step} of {num_steps}, loss {loss:.3f}")
        stages.add(stage)

    prepare = partial(setups.prepare, eval_batch_size=spec.batch_size, cache=cache, advance=advance, notice=told)
    here, trained = prepare(config), prepare(replace(config, state="trained"))

    def specialise(task: str, num_rows: int = spec.training_rows) -> Delta:
        data = digits.mixture([task], seed=seed, batch_size=num_rows)
        fitted = fit(_loss(), trained.params, data, config.forget)
        return jax.tree.map(jnp.subtract, fitted.params, trained.params)

    streams = {name: digits.mixture([name], seed=seed, batch_size=spec.batch_size) for name in digits.DIGIT_TASKS}
    steps = spec.recovery_steps
    points = trained.params, here.params
    rest = (here.task, streams, specialise, RATES, steps, Stretches(), seed)
    return Start(spec, here.model, *points, _loss(), *rest)


@functools.cache
def _loss() -> Loss:
    """The loss of every digit task: which task it is, the rows say themselves."""
    return digits.digit_task(digits.DIGIT_TASKS[0], setups.digit_model().apply, seed=0, batch_size=1).objective.loss


def batches(start: Start, task: str, *, offset: int) -> Any:
    """The stream of a task's training batches from a step on, as a pytree: data to whatever is compiled."""
    return from_step(start.streams[task], offset)


def run_recovery(
    start: Start,
    optimiser: Optimiser,
    *,
    offset: int | None = None,
    recorded: int | None = None,
    num_steps: int | None = None,
) -> Trajectory:
    """One recovery, of as many steps as its specification says; another `offset` is another order of data."""
    config = RecoverConfig(optimiser, start.rates[optimiser], num_steps=num_steps or start.recovery_steps)
    data = batches(start, start.task.name, offset=start.stretches.recovery if offset is None else offset)
    return recover(start.loss, start.params, data, config, recorded=recorded)


def displacement(start: Start, path: Trajectory) -> Delta:
    """End minus start."""
    return jax.tree.map(jnp.subtract, path.end, start.params)


def held_out_loss(start: Start, *, num_batches: int = 4) -> Callable[[Params], Float[Array, ""]]:
    """The task's loss on rows that no recovery sees."""
    rows = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), *(start.task.held_out(step) for step in range(num_batches))
    )
    return lambda params: value_at(start.loss, params, rows)


def value_at(loss: Loss, params: Params, rows: Batch) -> Float[Array, ""]:
    """The loss, compiled once whatever it holds."""
    return _value(trees.as_data(loss), params, rows)


_value = jax.jit(lambda loss, params, rows: loss(params, rows))


def minibatch_gradients(start: Start, params: Params, task: str, *, first: int, num: int) -> Rows:
    """Gradients of a task on batches `first, first + 1, ...` of a stretch of its stream kept for this."""

    stream = batches(start, task, offset=start.stretches.gradients + first)
    return derivatives.task_gradients(start.loss, params, _drawn(stream, num))


_drawn = jax.jit(lambda stream, num: jax.lax.map(stream, jnp.arange(num)), static_argnums=1)


def rows_of(*parts: Rows) -> Rows:
    """Rows one below the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def static_bases(start: Start, *, rank: int, num_gradients: int, num_task_vectors: int) -> dict[str, geometry.Basis]:
    """Everything that could be built at the forgotten point without taking a recovery step.

    Args:
      start: the forgotten point.
      rank: of each basis, where there are so many vectors.
      num_gradients: minibatch gradients of the forgotten task; as many in all over all tasks.
      num_task_vectors: other tasks on which the trained model is specialised, one displacement for each.
    """
    loss, own = start.loss, start.task.name
    others = [name for name in start.streams if name != own]
    of_task = minibatch_gradients(start, start.params, own, first=0, num=num_gradients)
    each = max(1, num_gradients // len(start.streams))
    of_all = rows_of(*(minibatch_gradients(start, start.params, name, first=0, num=each) for name in start.streams))

    displacements = (start.specialise(name) for name in others[:num_task_vectors])
    vectors = rows_of(*(jax.tree.map(lambda x: x[None], delta) for delta in displacements))
    forgetting = jax.tree.map(lambda a, b: (a - b)[None], start.params, start.trained)
    batch = start.task.train(start.stretches.gradients + num_gradients)
    krylov, _ = geometry.krylov(
        derivatives.hvp(loss, start.params, batch),
        derivatives.gradient(loss, start.params, batch),
        rank=rank,
    )
    return {
        "gradients of the task": geometry.gradient_basis(of_task, rank=min(rank, num_gradients)),
        "gradients of all tasks": geometry.gradient_basis(of_all, rank=min(rank, each * len(start.streams))),
        "Krylov": krylov,
        "task vectors of other tasks": geometry.task_vector_basis(vectors),
        FORGETTING: geometry.task_vector_basis(forgetting),
        "random": geometry.random_basis(keys.stream(start.seed, "random basis"), start.params, rank=rank),
    }
