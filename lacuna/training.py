"""Training by AdamW in one compiled loop, reproducible from the data's seed and a config."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from lacuna.errors import InvalidInput
from lacuna.types import Batch, Loss, Params

BatchAt = Callable[[Any], Batch]
"""`batch_at(step) -> batch`, traceable in the step."""

Progress = Callable[[int, int, float], None]
"""`progress(step, num_steps, loss)`: steps done, steps in all, loss at the last one done."""


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
@partial(jax.jit, static_argnames=("loss", "config"), donate_argnames="state")
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
    if jax.tree_util.all_leaves([batch_at]):
        batch_at = jax.tree_util.Partial(batch_at)
    start = jax.tree.map(jnp.array, params)  # a copy: the loop reuses the memory of its state
    state = _State(start, _optimiser(config).init(start), jnp.zeros(config.num_steps, jnp.float32))
    stretch = config.num_steps if progress is None else progress_every
    for first in range(0, config.num_steps, stretch):
        last = min(first + stretch, config.num_steps)
        state = _advance(state, jnp.int32(first), jnp.int32(last), batch_at, loss=loss, config=config)
        if progress is not None:
            progress(last, config.num_steps, float(np.asarray(state.losses[last - 1])))
    return Fitted(state.params, state.losses)
