"""An objective as compiled programs know it: its functions by value, and its arrays as data."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lacuna.types import Batch, Loss, Objective


def with_data(loss: Loss | Objective, batch: Batch) -> tuple[Objective, Batch]:
    """The objective by value, and the batch together with the arrays that the objective holds.

    A loss may be a pytree, such as a `jax.tree_util.Partial` that binds frozen weights. Known by itself it would make
    its arrays constants of the program, and another one of the same kind would be compiled anew.

    Args:
      loss: a callable or an objective; its answers for metrics are left out.
      batch: what it is scored on.

    Returns:
      An objective that takes the batch beside it, `(arrays, batch)`; where none of its functions is a pytree, both
      as they came. Of such a pair it makes the same pair.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    objective = Objective(objective.loss, None, objective.perturbed_loss, objective.factored_loss)
    functions = objective.loss, objective.perturbed_loss, objective.factored_loss
    if all(function is None or jax.tree_util.all_leaves([function]) for function in functions):
        return objective, batch
    arrays: list[Any] = []
    places: dict[int, _Place] = {}

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            return leaf
        if id(leaf) not in places:  # an array that several functions hold is passed once
            places[id(leaf)] = _Place(len(arrays))
            arrays.append(leaf)
        return places[id(leaf)]

    def known(function: Any) -> Any:
        if function is None:
            return None
        leaves, structure = jax.tree.flatten(function)
        return _Known(structure, tuple(map(placed, leaves)))

    own, perturbed, factored = map(known, functions)
    return Objective(own, None, perturbed, factored), (tuple(arrays), batch)


@dataclass(frozen=True)
class _Place:
    """Where an array goes."""

    index: int


@dataclass(frozen=True)
class _Known:
    """A callable that is a pytree, without its arrays; equal to another by value."""

    structure: Any  # jax.tree_util.PyTreeDef
    leaves: tuple[Any, ...]

    def __call__(self, *given: Any) -> Any:
        *rest, (arrays, batch) = given
        leaves = [arrays[leaf.index] if isinstance(leaf, _Place) else leaf for leaf in self.leaves]
        return self.structure.unflatten(leaves)(*rest, batch)
