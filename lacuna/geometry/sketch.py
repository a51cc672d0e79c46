"""Vectors of a few thousand numbers in which inner products survive: for trajectories too long to keep."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.types import Delta, Key


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["size"])
@dataclass(frozen=True)
class Sketch:
    """A random linear map S from trees to `size` numbers: each parameter goes to a random place, with a random sign.

    Over the keys, `<S x, S y>` has mean `<x, y>` and variance at most `(|x|^2 |y|^2 + <x, y>^2) / size`. An array
    is a tree of one leaf, so every kernel takes sketches for vectors. A subspace of rank k that captures the mass c
    of a vector captures about `c + (1 - c) k / size` of its sketch: `size` takes the place of P in the random level,
    and should be some hundred times k.

    Attributes:
      key: says which map; vectors that are to be compared need the same one.
      size: of the sketch.

    Source: Charikar, Chen and Farach-Colton (2002), where it is called the count sketch.
    """

    key: Key
    size: int

    def __call__(self, delta: Delta) -> Float[Array, "size"]:
        """The sketch of a vector: float32, replicated; not finite where an element is not.

        Nothing of the size of `delta` is gathered, and its leaves may have any sharding.

        Raises:
          GeometryError: a size of less than 1, or a leaf that is not floating; names the leaf.
        """
        if self.size < 1:
            raise GeometryError("a sketch needs a size of at least 1", got=self.size)
        ops.check_floating(delta)
        return _sketch(self.key, delta, self.size)


@partial(jax.jit, static_argnums=2)
def _sketch(key: Key, delta: Delta, size: int) -> Float[Array, "size"]:
    parts = trees.map_named(lambda name, x: of_array(keys.leaf(key, name), x, size), delta)
    return ops.pairwise_sum(jax.tree.leaves(parts))


def of_array(key: Key, x: Float[Array, "..."], size: int) -> Float[Array, "size"]:
    """The sketch of one array, whose map this key makes; float32."""
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    x = x.astype(jnp.float32)
    signed = jnp.where(bits & 1, x, -x)
    return jnp.zeros(size).at[(bits >> 1) % size].add(signed)
