"""Names for trees and functions, used in every signature.

A *point* and a *vector* live on the same kind of tree but obey different laws, so they have two names:
`Params` is never mutated, and only `trees.axpy(scale, delta, params)` makes a new one; a `Delta` is a
gradient, a displacement or a draw of noise, and `Params - Params = Delta`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PyTree

Params = PyTree[Array]
"""A point: a tree of arrays with P elements in all."""

Delta = PyTree[Array]
"""A vector on the tree of some `Params`."""

Rows = PyTree[Array]
"""Several vectors on one tree: a `Delta` with a leading axis k on every leaf."""

Shapes = PyTree[Array | jax.ShapeDtypeStruct]
"""A tree of which shapes and dtypes alone are read; `jax.eval_shape` makes one without memory."""

Key = jax.Array
"""A typed threefry key, shape `[]`; made by `lacuna.keys`."""

Batch = PyTree[Array]
"""Whatever an objective reads besides the parameters."""

Loss = Callable[[Params, Batch], Float[Array, ""]]
"""`loss(params, batch) -> scalar`, pure and traceable. Everything is minimised."""

Operator = Callable[[Delta], Delta]
"""A linear map from a tree to the same tree."""


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
      loss: `loss(params, batch) -> scalar`; pure, traceable, lower is better. An accuracy enters as
        1 - accuracy.
      predict: `predict(params, batch)` gives the model's answers in the layout of the batch, for metrics;
        None where the objective has no answers.
    """

    loss: Loss
    predict: Callable[[Params, Batch], Any] | None = None
