"""A candidate's weights as a forward pass takes them: each layer as it is used, or noise of low rank beside them.

What is made here stands wherever a function of `causal_lm` takes its parameters: `stream`, `apply`, `next_token_nats`,
`span_nats`, `choice_logits`, `logits_at`, `greedy`. A loss that hands its parameters on to these needs no other change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lacuna import trees
from lacuna.types import Batch, Factors, Loss, Move, Noise, Objective, Params

LayerMap = Callable[[Int[Array, ""], Params], Params]
"""`layer_map(layer, weights) -> weights`, called inside the scan: one layer's new weights exist at a time."""

TABLES = ("embedding", "positions")
"""Leaves whose rows are looked up."""


class PlusLowRank(NamedTuple):
    """A leaf that stands for `matrix + left right`, which is never formed.

    Attributes:
      matrix: [m, n], or a stack [L, m, n].
      left: the first factor, [m, r] or [L, m, r].
      right: the second one, the scale in it: [r, n] or [L, r, n].
    """

    matrix: Float[Array, "..."]
    left: Float[Array, "..."]
    right: Float[Array, "..."]

    @property
    def T(self) -> "PlusLowRank":
        """The transpose of a single one."""
        return PlusLowRank(self.matrix.T, self.right.T, self.left.T)

    @property
    def dtype(self) -> Any:
        """The dtype of the matrix."""
        return self.matrix.dtype


Matrix = Array | PlusLowRank


def product(x: Float[Array, "*pos m"], matrix: Matrix, *, dtype: Any = None) -> Float[Array, "*pos n"]:
    """`x matrix`, what has low rank as a path of its own: `x W + (x A) B`, in float32 or wider, rounded once.

    Under `vmap` over noise the one product with W is that of all candidates, for W is no candidate's own.

    Args:
      x: rows.
      matrix: what they are multiplied with.
      dtype: of the result; by default the operands'.
    """
    if not isinstance(matrix, PlusLowRank):
        return jnp.matmul(x, matrix, preferred_element_type=dtype)
    dtype = jnp.result_type(x, matrix.dtype) if dtype is None else dtype
    main = jnp.matmul(x, matrix.matrix, preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    return (main + (x @ matrix.left) @ matrix.right).astype(dtype)


def looked_up(table: Matrix, index: Int[Array, "*pos"]) -> Float[Array, "*pos D"]:
    """Rows of a table; NaN where there is no such row, for the nearest one would pass for an answer."""
    if isinstance(table, PlusLowRank):
        added = looked_up(table.left, index) @ table.right
        return (looked_up(table.matrix, index) + added).astype(table.dtype)
    return jnp.where((index >= 0)[..., None], jnp.take(table, index, axis=0, mode="fill"), jnp.nan)


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["layer_map"])
@dataclass(frozen=True)
class Moved:
    """Parameters whose layers are made anew as they are used.

    It lives within one traced function, as what `layer_map` closes over does.

    Attributes:
      params: parameters of the model; those outside of `layers/` as they are used.
      layer_map: as for `apply`; one that is given to `apply` as well follows it.
    """

    params: Params
    layer_map: LayerMap

    def then(self, layer_map: LayerMap | None) -> LayerMap:
        """Its own map of a layer, and then another."""
        own = self.layer_map
        return own if layer_map is None else lambda layer, weights: layer_map(layer, own(layer, weights))


def weights_of(params: Params | Moved) -> Params:
    """The parameters themselves, their layers not yet moved."""
    return params.params if isinstance(params, Moved) else params


def matrices_of(params: Params) -> Params:
    """The parameters without what is beside them."""
    is_leaf = lambda leaf: isinstance(leaf, PlusLowRank)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.matrix if is_leaf(leaf) else leaf, params, is_leaf=is_leaf)


def layer_by_layer(params: Params, move: Move) -> Moved:
    """Parameters each leaf of which is moved as it is used, so that one layer's noise is there at a time.

    What is outside of `layers/` is moved here, once: a tied head is the embedding that was looked up.

    Args:
      params: of a model of `causal_lm`; never written to.
      move: `move(leaf_name, layer, leaf)`, called within the scan over the layers for their leaves.
    """
    rest = {name: branch for name, branch in params.items() if name != "layers"}
    moved = trees.map_named(lambda name, leaf: move(name, None, leaf), rest)

    def layer_map(layer: Int[Array, ""], weights: Params) -> Params:
        return trees.map_named(lambda name, leaf: move(f"layers/{name}", layer, leaf), weights)

    return Moved({**moved, "layers": params["layers"]}, layer_map)


def beside(params: Params, noise: Noise, scale: Float[Array, ""] | float) -> Params:
    """The point `params + scale * noise`, with noise that comes as factors beside the weights and not in them.

    That goes for the kernels of linear maps, for the embedding, tied head included, and for learned positions:
    their leaves become `PlusLowRank`. All other leaves are moved.

    Args:
      params: of a model of `causal_lm`; never written to.
      noise: on the tree of `params`, a leaf in full or as factors.
      scale: of the noise.
    """

    def of_leaf(name: str, leaf: Array, made: Array | Factors) -> Matrix:
        if not isinstance(made, Factors):
            return trees.axpy(scale, made, leaf)
        if (name in TABLES or name.endswith("/kernel")) and made.left.ndim == leaf.ndim:
            return PlusLowRank(leaf, made.left, scale * made.right)
        return trees.axpy(scale, _multiplied(made).reshape(leaf.shape), leaf)

    return trees.map_named(of_leaf, params, noise)


def _multiplied(factors: Factors) -> Float[Array, "*layers m n"]:
    """The noise itself, its axes beyond the first as one."""
    *layers, _, rank = factors.left.shape
    right = factors.right.reshape(*layers, rank, -1)
    return jnp.matmul(factors.left, right, precision=lax.Precision.HIGHEST)


def searchable(loss: Loss, *, layerwise: bool = False) -> Objective:
    """A loss of a language model as random search scores it fastest.

    Noise of low rank goes beside the weights, which every candidate then shares. Weights that are moved differ in
    the last bits from those that are made layer by layer, so what a run does is said when it is begun.

    Args:
      loss: `loss(params, batch)`, of the parameters of a model of `causal_lm`, which it hands on to that model's
        functions and does not look into.
      layerwise: other noise is made one layer at a time as well: less memory, and every sigma and sign of a draw
        makes it anew.
    """
    data = trees.as_data(loss)
    return Objective(loss, None, Partial(_layer_by_layer, data) if layerwise else None, Partial(_beside, data))


def _layer_by_layer(loss: Loss, params: Params, move: Move, batch: Batch) -> Float[Array, ""]:
    return loss(layer_by_layer(params, move), batch)


def _beside(loss: Loss, params: Params, noise: Noise, scale: Float[Array, ""], batch: Batch) -> Float[Array, ""]:
    return loss(beside(params, noise, scale), batch)
