"""Mixed precision: matrices in a narrow dtype, vectors in float32.

A step of random search on a number near 1 is lost in 16 bits: bfloat16 rounds there to 1/128, and the scales of norms
are near 1. Vectors are a thousandth of a model, so to keep them in float32 costs nothing.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.types import Params


def narrowed(params: Params, dtype: Any, stacked: Callable[[str], bool]) -> Params:
    """The same point with its matrices rounded to a dtype, and its vectors in float32 (or wider, if they were).

    A leaf is a vector if it has one axis or none, its layers not counted: norms' scales and biases. A language model
    of such leaves computes in the dtype of its matrices, and adds its biases in float32. What a float16 cannot hold
    becomes infinite.

    Args:
      params: the point; a leaf stays on its devices, split as it is.
      dtype: of the matrices, e.g. `"bfloat16"`.
      stacked: which leaves carry a leading layer axis (`model.stacked`).

    Raises:
      InvalidInput: the dtype is not floating.
    """
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise InvalidInput("matrices are rounded to a floating dtype", got=f"{dtype}", hint="bfloat16")

    def of_leaf(name: str, leaf: Array) -> Array:
        if not trees.is_floating(leaf):
            return leaf
        is_vector = leaf.ndim - stacked(name) < 2
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32) if is_vector else dtype)

    return trees.map_named(of_leaf, params)
