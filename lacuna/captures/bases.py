"""Bases of a task at a point: what can be known of a fine-tuning before it is done.

Source: arXiv 2606.10929.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lacuna import derivatives, geometry, keys, trees
from lacuna.errors import InvalidInput, NotFinite
from lacuna.training import BatchAt, Optimiser, RecoverConfig, from_step, recover
from lacuna.types import Batch, Loss, Params

BasisKind = Literal["random", "gradient", "krylov", "prefix"]

TASKLESS: tuple[BasisKind, ...] = ("random",)
"""Kinds that need neither a loss nor data."""


@dataclass(frozen=True)
class BasisSpec:
    """How a basis is made.

    Attributes:
      kind: `random`, a uniformly random subspace, the control of all others; `gradient`, the leading directions of
        the gradients of as many batches; `krylov`, the Krylov space of the Hessian of one batch from its gradient;
        `prefix`, the span of the first updates of a training from the point.
      rank: k, how many directions.
      num_batches: of `gradient`, at least the rank; None takes the rank.
      first_step: step of the stream from which batches are taken.
      optimiser: of `prefix`.
      learning_rate: of `prefix`, constant.

    Raises:
      InvalidInput: a value outside its domain.
    """

    kind: BasisKind
    rank: int = 16
    num_batches: int | None = None
    first_step: int = 0
    optimiser: Optimiser = "adam"
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.kind not in get_args(BasisKind):
            raise InvalidInput(f"a basis must be one of {', '.join(get_args(BasisKind))}", got=f"`{self.kind}`")
        if self.rank < 1:
            raise InvalidInput("the rank of a basis must be at least 1", got=self.rank, hint="16")
        if self.first_step < 0:
            raise InvalidInput("the first step of a basis must not be negative", got=self.first_step)
        if self.num_batches is not None and self.num_batches < self.rank:
            raise InvalidInput(
                "a gradient basis needs at least as many batches as its rank",
                got=f"{self.num_batches} batches for rank {self.rank}",
                hint=f"{self.rank} batches",
            )
        RecoverConfig(self.optimiser, self.learning_rate)  # what is wrong with them is told here

    @property
    def steps(self) -> range:
        """Steps of the stream whose batches are read: what is scored on none of them has not been seen."""
        counts = {"random": 0, "gradient": self.num_batches or self.rank, "krylov": 1, "prefix": self.rank}
        return range(self.first_step, self.first_step + counts[self.kind])


def task_basis(
    spec: BasisSpec, loss: Loss | None, params: Params, batches: BatchAt | None, *, seed: int = 0
) -> geometry.Basis:
    """The basis of a task at a point: a function of its arguments and of nothing else.

    Memory at its highest, beside the point: about 2 k x P float32, and a training step for `prefix`; for `gradient`
    of m batches m x P in the dtype of the point and 3 m x P float32. What comes back is k x P.

    Args:
      spec: what to make.
      loss: of the task; one that is a pytree is data to what is compiled. Not read for `random`.
      params: the point. A training in bfloat16 would stand still where a step is below half a weight's last bit, so
        `prefix` trains it in float32.
      batches: `batches(step) -> batch`, pure and traceable; those at `spec.steps` are read. Not read for `random`.
      seed: of `random` alone: the others have no chance in them but the stream's.

    Returns:
      The basis, float32. Its rank is below k where the directions are dependent; `status` says so.

    Raises:
      InvalidInput: no loss or no batches where they are needed; a leaf that cannot be trained.
      NotFinite: the training of `prefix` diverged.
      GeometryError: gradients or products that are not finite; names the leaf.
    """
    if spec.kind == "random":
        return geometry.random_basis(keys.stream(seed, "captures/random"), params, rank=spec.rank)
    if loss is None or batches is None:
        raise InvalidInput(f"a {spec.kind} basis needs a task", got="no loss" if loss is None else "no batches")
    loss = trees.as_data(loss)
    stream = from_step(batches, spec.first_step)
    if spec.kind == "gradient":
        gradients = derivatives.task_gradients(loss, params, _drawn(stream, len(spec.steps)), chunk=1)
        return geometry.gradient_basis(gradients, rank=spec.rank)
    if spec.kind == "krylov":
        batch = jax.tree.map(lambda leaf: leaf[0], _drawn(stream, 1))
        start = derivatives.gradient(loss, params, batch)
        return geometry.krylov(derivatives.hvp(loss, params, batch), start, rank=spec.rank)[0]
    config = RecoverConfig(spec.optimiser, spec.learning_rate, num_steps=spec.rank)
    path = recover(loss, jax.tree.map(_float32, params), stream, config)
    lost = np.flatnonzero(~np.isfinite(np.asarray(path.losses)))
    if len(lost):
        raise NotFinite(
            f"the training by {spec.optimiser} whose first updates are to be a basis must not diverge",
            got=f"a loss of {path.losses[lost[0]]} after {lost[0]} steps of {spec.learning_rate:g}",
            hint="a smaller learning rate",
        )
    return geometry.trajectory_prefix(path.updates, rank=spec.rank)


@partial(jax.jit, static_argnums=1)
def _drawn(stream: BatchAt, num: int) -> Batch:
    """The first batches of a stream, stacked."""
    return jax.lax.map(stream, jnp.arange(num))


def _float32(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if trees.is_floating(leaf) else leaf
