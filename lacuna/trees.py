"""Tree algebra: the few operations every part of lacuna is made of.

Trees are never ravelled: a concatenated copy would double the memory and gather sharded leaves. Inner
products are multiply-and-sum in float32: elementwise products keep a sharded leaf where it is, and the
pairwise summation behind `jnp.sum` stays within a few ulp where a long dot product drifts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lacuna.errors import TreeMismatch
from lacuna.types import Delta, Params


def leaf_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf from its key path: the keys joined by `/`, e.g. `layers/attn/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: Any) -> list[str]:
    """Names of all leaves, in the tree's own order. A tree that is a single leaf has the name `""`."""
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(name, leaf, *leaves_of_rest)` over all leaves; the result has the structure of `tree`."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest)


def size(tree: Any) -> int:
    """P: the number of elements in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check_match(asked: str, a: Any, b: Any) -> None:
    """Raise `TreeMismatch`, naming the first leaf, unless `a` and `b` have the same names and shapes.

    Works on shapes alone, so it is free under tracing.
    """
    left = {leaf_name(p): jnp.shape(x) for p, x in jax.tree_util.tree_leaves_with_path(a)}
    right = {leaf_name(p): jnp.shape(x) for p, x in jax.tree_util.tree_leaves_with_path(b)}
    for name in [*left, *right]:
        if left.get(name) != right.get(name):
            first, second = (f"shape {t[name]}" if name in t else "no such leaf" for t in (left, right))
            raise TreeMismatch(
                f"{asked} needs two trees with the same leaves",
                got=f"`{name}` with {first} in the first and {second} in the second",
                hint="build both on the same parameters (was one made with adapters?)",
            )


def dot(a: Delta, b: Delta) -> Float[Array, ""]:
    """Inner product `<a, b>` over all leaves, accumulated in float32 whatever the storage dtype.

    Raises:
      TreeMismatch: the trees differ in a leaf's name or shape.
    """
    check_match("trees.dot", a, b)
    partial = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return sum(jax.tree.leaves(partial), start=jnp.float32(0))


def norm(a: Delta) -> Float[Array, ""]:
    """Euclidean norm, float32."""
    return jnp.sqrt(dot(a, a))


def axpy(scale: Float[Array, ""] | float, delta: Delta, params: Params) -> Params:
    """The new point `params + scale * delta`; the only way in lacuna to move a point.

    The arithmetic is float32 or the point's own dtype, whichever is wider; one rounding to the point's
    dtype ends it. The point that comes in is not touched, so nothing ever has to be restored.

    Raises:
      TreeMismatch: the trees differ in a leaf's name or shape.
    """
    check_match("trees.axpy", delta, params)

    def move(d: Array, p: Array) -> Array:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        return (p.astype(wide) + jnp.asarray(scale, wide) * d.astype(wide)).astype(p.dtype)

    return jax.tree.map(move, delta, params)
