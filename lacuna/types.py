"""Names for trees and functions, used in every signature.

A *point* and a *vector* live on the same kind of tree but obey different laws, so they have two names:
`Params` is never mutated, and only `trees.axpy(scale, delta, params)` makes a new one; a `Delta` is a
gradient, a displacement or a draw of noise, and `Params - Params = Delta`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Integer, PyTree

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

Layer = int | Integer[Array, ""] | None
"""Which layer of a stacked leaf; None for a leaf that is whole."""

Move = Callable[[str, Layer, Array], Array]
"""`move(leaf_name, layer, leaf)`: a leaf of the base point, or one layer of it, as a candidate has it."""


class Factors(NamedTuple):
    """Noise of a leaf as the two factors of it, `left right`; both with the layers in front where the leaf is stacked.

    Attributes:
      left: [*layers, m, r], m the leaf's first axis.
      right: [*layers, r, ...], its other axes.
    """

    left: Float[Array, "..."]
    right: Float[Array, "..."]


Noise = PyTree[Array | Factors]
"""A `Delta` some leaves of which are given by their factors."""

PerturbedLoss = Callable[[Params, Move, Batch], Float[Array, ""]]
"""`perturbed_loss(params, move, batch) -> scalar`: the loss where `move` makes each leaf as it is used."""

FactoredLoss = Callable[[Params, Noise, Float[Array, ""], Batch], Float[Array, ""]]
"""`factored_loss(params, noise, scale, batch) -> scalar`: the loss at `params + scale * noise`."""

Operator = Callable[[Delta], Delta]
"""A linear map from a tree to the same tree."""


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
      loss: `loss(params, batch) -> scalar`; pure, traceable, lower is better. An accuracy enters as
        1 - accuracy.
      predict: `predict(params, batch)` gives the model's answers in the layout of the batch, for metrics;
        None where the objective has no answers.
      perturbed_loss: `perturbed_loss(params, move, batch) -> scalar`, the same loss at the point whose every leaf
        (and every layer of a stacked leaf) is `move(leaf_name, layer, leaf)`. A model that runs layer by layer then
        holds the noise of one layer at a time. None: candidates are made whole.
      factored_loss: `factored_loss(params, noise, scale, batch) -> scalar`, the same loss at `params + scale * noise`,
        whose leaves are arrays or `Factors`. A model that takes factors beside its weights shares these between all
        candidates. Used where the noise has factors; None: it is multiplied out.
      smooth: whether the loss has a gradient. One that counts right answers moves in steps: nothing is predicted of
        a search over it.
    """

    loss: Loss
    predict: Callable[[Params, Batch], Any] | None = None
    perturbed_loss: PerturbedLoss | None = None
    factored_loss: FactoredLoss | None = None
    smooth: bool = True
