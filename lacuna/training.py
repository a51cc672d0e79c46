"""Training in one compiled loop, reproducible from the data's seed and a config.

`fit` trains by AdamW on a schedule and keeps the end point. `recover` takes constant steps and keeps the path.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.types import Batch, Delta, Loss, Params, Rows

BatchAt = Callable[[Any], Batch]
"""`batch_at(step) -> batch`, traceable in the step."""

Record = Callable[[Delta], Delta]
"""`record(update)`: what is kept of an update; linear, so that the kept updates add up as the updates do."""

Progress = Callable[[int, int, float], None]
"""`progress(step, num_steps, loss)`: steps done, steps in all, loss at the last one done."""

Optimiser = Literal["sgd", "momentum", "adam"]


def from_step(batch_at: BatchAt, first: int) -> BatchAt:
    """The stream that begins at a later step of another one.

    Args:
      batch_at: the stream.
      first: which of its batches is the new one's first, in [0, 2^31).

    Returns:
      `step -> batch_at(first + step)`, a pytree: another `first` is other data, and nothing is compiled for it.
    """
    return Partial(_later, trees.as_data(batch_at), jnp.int32(first))


def _later(batch_at: BatchAt, first: Int[Array, ""], step: Any) -> Batch:
    return batch_at(first + step)


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with a linear warm-up and a cosine to zero. The paper's values are not available to us; these are ours.

    Attributes:
      num_steps: updates.
      peak_learning_rate: reached at the end of the warm-up.
      warmup_steps: steps of the linear warm-up, fewer than `num_steps`.
      weight_decay: decoupled, times the learning rate.
      clip_norm: largest global norm of a gradient.
      b2: decay of AdamW's second moment.

    Raises:
      InvalidInput: a value outside its domain.
    """

    num_steps: int = 500
    peak_learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    b2: float = 0.98

    def __post_init__(self) -> None:
        for name in ("num_steps", "peak_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"TrainConfig.{name} must be positive", got=getattr(self, name))
        if not 0 <= self.warmup_steps < self.num_steps:
            raise InvalidInput(
                "TrainConfig.warmup_steps must be at least 0 and fewer than num_steps",
                got=f"{self.warmup_steps} of {self.num_steps}",
            )
        if self.weight_decay < 0:
            raise InvalidInput("TrainConfig.weight_decay must not be negative", got=self.weight_decay)
        if not 0 <= self.b2 < 1:
            raise InvalidInput("TrainConfig.b2 must be in [0, 1)", got=self.b2)


class Fitted(NamedTuple):
    """Result of `fit`.

    Attributes:
      params: the point after the last update.
      losses: the training loss before each update, in the loss's own unit.
    """

    params: Params
    losses: Float[Array, "num_steps"]


class _State(NamedTuple):
    params: Params
    optimiser: optax.OptState
    losses: Float[Array, "num_steps"]


def _optimiser(config: TrainConfig) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, config.peak_learning_rate, config.warmup_steps, config.num_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay),
    )


# The bounds of the loop are data: one program serves every stretch of steps, the last, shorter one included,
# and its bits do not depend on where the stretches begin.
@partial(jax.jit, static_argnames="config", donate_argnames="state")
def _advance(
    state: _State,
    first: Int[Array, ""],
    last: Int[Array, ""],
    batch_at: Any,
    *,
    loss: Loss,
    config: TrainConfig,
) -> _State:
    optimiser = _optimiser(config)

    def update(step: Int[Array, ""], state: _State) -> _State:
        value, gradient = jax.value_and_grad(loss)(state.params, batch_at(step))
        delta, moments = optimiser.update(gradient, state.optimiser, state.params)
        return _State(optax.apply_updates(state.params, delta), moments, state.losses.at[step].set(value))

    return lax.fori_loop(first, last, update, state)


def fit(
    loss: Loss,
    params: Params,
    batch_at: BatchAt,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    progress_every: int = 25,
) -> Fitted:
    """Train from `params` for `config.num_steps` updates; deterministic.

    Args:
      loss: what to minimise; the same function object again means no second compilation.
      params: where to start; not touched.
      batch_at: batch of each step, drawn inside the compiled loop. A callable that is a pytree (such as a
        `tasks.Mixture`) is passed in as data, so that another seed needs no second compilation.
      config: the optimiser and its schedule.
      progress: called every `progress_every` steps and after the last one. It changes no bit of the result.
      progress_every: steps between two calls.

    Raises:
      InvalidInput: `progress_every` is less than 1.
    """
    if progress_every < 1:
        raise InvalidInput("progress_every must be at least 1", got=progress_every)
    loss, batch_at = trees.as_data(loss), trees.as_data(batch_at)
    start = jax.tree.map(jnp.array, params)  # a copy: the loop reuses the memory of its state
    state = _State(start, _optimiser(config).init(start), jnp.zeros(config.num_steps, jnp.float32))
    stretch = config.num_steps if progress is None else progress_every
    for first in range(0, config.num_steps, stretch):
        last = min(first + stretch, config.num_steps)
        state = _advance(state, jnp.int32(first), jnp.int32(last), batch_at, loss=loss, config=config)
        if progress is not None:
            progress(last, config.num_steps, float(np.asarray(state.losses[last - 1])))
    return Fitted(state.params, state.losses)


@dataclass(frozen=True)
class RecoverConfig:
    """Recovery with a constant step: no schedule, no clipping, no decay. The paper's values are not available to us.

    Gradient descent and momentum with a constant step are what the Krylov lemma speaks of; Adam is the contrast.

    Attributes:
      optimiser: `sgd`, plain gradient descent; `momentum`, with a velocity v <- momentum * v + gradient (the heavy
        ball); `adam`, with bias correction and without decay.
      learning_rate: of every step.
      num_steps: updates.
      momentum: of `momentum` alone.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: added to the root of Adam's second moment.

    Raises:
      InvalidInput: a value outside its domain.
    """

    optimiser: Optimiser
    learning_rate: float
    num_steps: int = 100
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        known = get_args(Optimiser)
        if self.optimiser not in known:
            raise InvalidInput(f"RecoverConfig.optimiser must be one of {', '.join(known)}", got=f"`{self.optimiser}`")
        for name in ("learning_rate", "num_steps", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"RecoverConfig.{name} must be positive and finite", got=getattr(self, name))
        for name in ("momentum", "b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInput(f"RecoverConfig.{name} must be in [0, 1)", got=getattr(self, name))


class Trajectory(NamedTuple):
    """A path from a start, by its updates. The sum of all updates is `end` minus the start, to rounding.

    Attributes:
      updates: update t is the point after step t minus the point before it; leading axis m on every leaf. In
        float32, or the leaf's own dtype where that is wider. What `record` makes of it, where there is one.
      steps: the step of each update, int32.
      losses: the loss before each update, of all steps, whether the update was recorded or not.
      end: the point after the last step.
    """

    updates: Rows
    steps: Int[Array, "m"]
    losses: Float[Array, "num_steps"]
    end: Params


def _constant_step(config: RecoverConfig) -> optax.GradientTransformation:
    if config.optimiser == "adam":
        return optax.adam(config.learning_rate, config.b1, config.b2, config.eps)
    return optax.sgd(config.learning_rate, config.momentum if config.optimiser == "momentum" else None)


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _difference(new: Array, old: Array) -> Array:
    """`new - old` as the two are stored.

    A point in bfloat16 was rounded to it, but a compiler that drops the rounding would make the difference that of a
    point that never was.
    """
    return _wide(trees.stored(_wide(new), new.dtype)) - _wide(old)


def trajectory(
    loss: Loss,
    params: Params,
    batch_at: BatchAt,
    config: RecoverConfig,
    *,
    recorded: int | None = None,
    record: Record | None = None,
) -> Trajectory:
    """`recover` before it is jitted: to be vmapped over starts, or over the data of several seeds.

    The recorded update is the difference of the two points and not what the optimiser asked for: the point
    rounds each step it takes, and the requested steps would drift from the displacement by one such rounding a
    step (in bfloat16 by far more than that: most small steps are not taken at all).

    Args:
      loss: as for `recover`, like the rest.
      params: the start.
      batch_at: `batch_at(step) -> batch`.
      config: optimiser, step and number of updates.
      recorded: how many updates are kept, from the first on; None keeps all.
      record: what is kept of an update.

    Raises:
      InvalidInput: a number of recorded updates out of range, or a leaf that is not floating.
    """
    recorded = config.num_steps if recorded is None else recorded
    if not 1 <= recorded <= config.num_steps:
        raise InvalidInput("recorded must be at least 1 and at most num_steps", got=f"{recorded} of {config.num_steps}")
    for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InvalidInput(
                "recovery moves every leaf, so all must be floating",
                got=f"`{name}` of {leaf.dtype}",
                hint="leave the frozen leaves out of params and bind them to the loss",
            )
    kept = record or (lambda update: update)
    optimiser = _constant_step(config)
    wide = jax.tree.map(_wide, params)

    def step(state: Any, index: Int[Array, ""]) -> tuple[Any, Float[Array, ""]]:
        point, moments, updates = state
        value, gradient = jax.value_and_grad(loss)(point, batch_at(index))
        request, moments = optimiser.update(jax.tree.map(_wide, gradient), moments, point)
        new = trees.axpy(1.0, request, point)
        # One loop with a buffer, not a loop for the prefix and one for the rest: that would compile the gradient
        # twice. Past the prefix its last row is written with what it holds.
        row = jnp.minimum(index, recorded - 1)
        updates = jax.tree.map(
            lambda rows, update: rows.at[row].set(jnp.where(index < recorded, update, rows[row])),
            updates,
            kept(jax.tree.map(_difference, new, point)),
        )
        return (new, moments, updates), value.astype(jnp.float32)

    updates = jax.tree.map(lambda leaf: jnp.zeros((recorded, *leaf.shape), leaf.dtype), jax.eval_shape(kept, wide))
    steps = jnp.arange(config.num_steps, dtype=jnp.int32)
    (end, _, updates), losses = lax.scan(step, (params, optimiser.init(wide), updates), steps)
    return Trajectory(updates, steps[:recorded], losses, end)


_trajectory = jax.jit(trajectory, static_argnames=("config", "recorded"))


def recover(
    loss: Loss,
    params: Params,
    batch_at: BatchAt,
    config: RecoverConfig,
    *,
    recorded: int | None = None,
    record: Record | None = None,
) -> Trajectory:
    """Train from a forgotten point with constant steps, and record the updates; deterministic.

    One compiled loop. Its memory is that of a training step and `recorded` x P for the updates, or `recorded`
    sketches where P is too large for that: `record=geometry.Sketch(key, size=4096)`. Under `jax.vmap`
    it runs many recoveries at once: over starts, or over the data if `batch_at` is a pytree. A point in bfloat16
    stands still where a step is below half its last bit, a relative 0.2 to 0.4 %: recover in float32.

    Args:
      loss: what to minimise; the same function object again means no second compilation. One that is a pytree, such as
        a `Partial` that holds frozen weights, is passed in as data.
      params: where to start; not touched. All leaves are floating.
      batch_at: batch of each step, drawn inside the compiled loop. A callable that is a pytree (such as a
        `tasks.Mixture`) is passed in as data, so that another seed needs no second compilation.
      config: the optimiser and the number of steps.
      recorded: keep this many updates, the first ones; all of them if it is None. The rest count in `end` alone.
      record: what to keep of an update instead of all of it: a linear map to another tree. One that is a pytree
        is passed in as data; give the same function object again otherwise.

    Raises:
      InvalidInput: `recorded` is not in 1..num_steps, or a leaf is not floating; names the leaf.
    """
    record = None if record is None else trees.as_data(record)
    return _trajectory(trees.as_data(loss), params, trees.as_data(batch_at), config, recorded=recorded, record=record)
