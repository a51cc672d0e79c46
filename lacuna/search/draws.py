"""Draws: the noise of a candidate from its index, whole or part by part, and how long it is.

Draws that are formed together (the block of a basis) are formed by one product of one size, whoever asks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer

from lacuna import keys, trees
from lacuna.search.families import Family
from lacuna.types import Delta, Factors, Key, Layer, Noise, Params

PartNoise = Callable[[str, Layer, Array | jax.ShapeDtypeStruct], Array | Factors]
"""`noise(leaf_name, layer, like)`: what a draw has for a leaf, or for one layer of a stacked one."""


def block_of(family: Family, params: Params, key: Key, index: Integer[Array, ""]) -> Delta:
    """Draws of the block that begins at `index`, formed by one product for each leaf."""
    ids = index + jnp.arange(family.block, dtype=jnp.uint32)
    return family.draws(jax.vmap(partial(keys.candidate, key))(ids), params)


def draw(family: Family, params: Params, key: Key, index: Integer[Array, ""]) -> Delta:
    """Draw `index` of the sweep with the root key `key`, formed as the sweep forms it."""
    if family.block == 1:
        return family.draw(keys.candidate(key, index), params)
    within = index % family.block
    return jax.tree.map(lambda rows: rows[within], block_of(family, params, key, index - within))


def noise_of_draw(family: Family, params: Params, key: Key, index: Integer[Array, ""]) -> Callable[..., Array]:
    """Draw `index` part by part; each is made when it is asked for, except in a family that forms draws together."""
    if family.block > 1:
        return parts_of(params, draw(family, params, key, index))
    of_draw = keys.candidate(key, index)

    def part(leaf_name: str, layer: Layer, like: Array | jax.ShapeDtypeStruct) -> Array:
        return family.leaf(of_draw, leaf_name, layer, jax.ShapeDtypeStruct(like.shape, jnp.float32))

    return part


def _square(noise: Array | Factors) -> Float[Array, ""]:
    """Square length of the noise of a leaf, of factors by their Gram matrices: `<left^T left, right right^T>`."""
    if not isinstance(noise, Factors):
        return jnp.sum(trees.rounded(jnp.square(trees.rounded(noise))))
    left, right = noise.left, noise.right.reshape(noise.right.shape[0], -1).T
    return jnp.sum(trees.rounded(_gram(left) * _gram(right)))


def _gram(columns: Float[Array, "n r"]) -> Float[Array, "r r"]:
    columns = trees.rounded(columns)
    return jnp.sum(trees.rounded(columns[:, :, None] * columns[:, None, :]), axis=0)


def length(family: Family, like: Params, noise: PartNoise) -> Float[Array, ""]:
    """The length of a draw, with the same bits whether it is there or made anew, one layer at a time."""

    def square(leaf_name: str, leaf: Array) -> Float[Array, ""]:
        def of(layer: Layer, shape: tuple[int, ...]) -> Float[Array, ""]:
            return _square(noise(leaf_name, layer, jax.ShapeDtypeStruct(shape, jnp.float32)))

        if not leaf.size or not trees.is_floating(leaf):  # no part of a draw
            return jnp.float32(0)
        if not family.stacked(leaf_name):
            return of(None, leaf.shape)
        layers = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
        return jnp.sum(lax.map(lambda layer: of(layer, leaf.shape[1:]), layers))

    return jnp.sqrt(sum(jax.tree.leaves(trees.map_named(square, like)), start=jnp.float32(0)))


def length_of(family: Family, params: Params, noise: Noise) -> Float[Array, ""]:
    """The length of a draw that is there."""
    return length(family, params, parts_of(params, noise))


def parts_of(params: Params, noise: Noise) -> Callable[..., Any]:
    """A draw that is there, part by part."""
    leaves = dict(zip(trees.leaf_names(params), jax.tree.structure(params).flatten_up_to(noise), strict=True))

    def part(leaf_name: str, layer: Layer, like: Array | jax.ShapeDtypeStruct) -> Any:
        del like
        return leaves[leaf_name] if layer is None else jax.tree.map(lambda x: x[layer], leaves[leaf_name])

    return part


@partial(jax.jit, static_argnums=0)
def perturb(
    exact_radius: bool, family: Family, params: Params, key: Key, index: Integer[Array, ""], scale: Float[Array, ""]
) -> Params:
    """`params + scale * noise(index)`: the weights of one candidate."""
    delta = draw(family, params, key, index)
    return trees.axpy(scale / length_of(family, params, delta) if exact_radius else scale, delta, params)
