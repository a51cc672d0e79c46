"""Families of perturbations: unit-scale noise as a pure function of a key and a leaf's name.

The noise law: every leaf has its own key and so has every layer of a stacked leaf,

    fold_in(fold_in(fold_in(key(seed), index), crc32(leaf name))[, layer]).

Published random-search codes seed one generator for every tensor, which gives equal noise to all tensors
of equal shape: the variance of `<noise, gradient>` is then anything from 0 to L times `|gradient|^2`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.types import Delta, Key, Params

NOISE_LAW = 1
"""Version of the noise law; part of a run's identity. A change of any drawn bit raises it."""

Layer = int | Integer[Array, ""] | None
LeafNoise = Callable[[Key, str, Layer, jax.ShapeDtypeStruct], Array]


def never_stacked(leaf_name: str) -> bool:
    """No leaf has a layer axis: the default, because a layer axis is never guessed from a foreign tree."""
    del leaf_name
    return False


class Family(NamedTuple):
    """A law of perturbations at unit scale.

    Attributes:
      name: the law's name, e.g. `gaussian`.
      digest: what the law depends on besides its name (a basis by its content); part of a run's identity.
      leaf: `leaf(key, leaf_name, layer, like) -> noise`: noise of the shape of `like`, float32, from the
        draw's key `keys.candidate(keys.root(seed), index)`. `layer` is None for a leaf drawn whole; else
        `like` is one layer of it.
      stacked: `stacked(leaf_name)` says which leaves carry a leading layer axis (`model.stacked`).
    """

    name: str
    digest: str
    leaf: LeafNoise
    stacked: Callable[[str], bool] = never_stacked

    def draw(self, key: Key, like: Params) -> Delta:
        """One draw: a float32 Delta on the tree of `like`.

        A stacked leaf is drawn layer by layer under vmap; threefry gives the same bits as one layer alone.

        Raises:
          InvalidInput: a leaf said to be stacked is a scalar.
        """

        def noise(leaf_name: str, leaf: Array) -> Array:
            if not self.stacked(leaf_name):
                return self.leaf(key, leaf_name, None, jax.ShapeDtypeStruct(leaf.shape, jnp.float32))
            if not leaf.shape:
                raise InvalidInput(f"leaf `{leaf_name}` is said to be stacked", got="a scalar without a layer axis")
            one_layer = jax.ShapeDtypeStruct(leaf.shape[1:], jnp.float32)
            layers = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
            return jax.vmap(lambda layer: self.leaf(key, leaf_name, layer, one_layer))(layers)

        return trees.map_named(noise, like)


def gaussian(*, stacked: Callable[[str], bool] = never_stacked) -> Family:
    """Independent standard normals on every coordinate: the law of the theorem.

    Args:
      stacked: which leaves carry a leading layer axis; default: none.

    Source: arXiv 2606.10929, Theorem 1.
    """

    def leaf(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        return jax.random.normal(keys.leaf(key, leaf_name, layer), like.shape, jnp.float32)

    return Family(name="gaussian", digest="", leaf=leaf, stacked=stacked)
