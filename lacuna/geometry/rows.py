"""Inner products and combinations of rows: every pass of the geometry over P-sized data.

Rows are one tree with a leading axis k on each leaf. No tree is ever ravelled and no leaf of several devices
reshaped, so a sharded leaf stays where it is, and the k inner products of a pass are reduced together.

A long float32 dot product is what limits orthogonality at large P: `rows @ delta` loses 178 eps at
P = 8e6 where multiply-and-sum, which XLA adds up as a tree, loses 5. So sums over P are multiply-and-sum, or
products of short blocks; sums over the k rows are short, and are matrix products.

Source: ours, by measurement.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna import trees
from lacuna.errors import GeometryError
from lacuna.types import Delta, Rows, Shapes

EPS = float(np.finfo(np.float32).eps)

LEAST_BLOCK = 2048
"""Elements of a row in one matrix product: a sum that long loses less than an eps, and 16 rows of it stay in the cache
of one core. From 4096 on the copy of such a block is split between cores, and the product waits for half of it: 0.079 s
instead of 0.058 s for 16 rows of 5e6 numbers."""


def check_rows(rows: Shapes) -> int:
    """k, the length of the leading axis that all leaves share.

    Raises:
      GeometryError: no leaf, a leaf that is not floating or has no leading axis, or two that disagree.
    """
    check_floating(rows)
    named = [(trees.leaf_name(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(rows)]
    first, shape = named[0]
    for name, other in named:
        if not other:
            raise GeometryError("every leaf of rows needs a leading axis k", got=f"{trees.quoted(name)} of shape ()")
        if other[0] != shape[0]:
            raise GeometryError(
                "all leaves of rows need the same leading axis k",
                got=f"{trees.quoted(first)} of shape {shape} and {trees.quoted(name)} of shape {other}",
            )
    return shape[0]


def check_rank(rank: int) -> None:
    """Raise `GeometryError` for a number of rows that is none."""
    if not isinstance(rank, (int, np.integer)) or rank < 0:
        raise GeometryError("rank must be a whole number, 0 or more", got=rank)


def check_floating(tree: Shapes) -> None:
    """Raise `GeometryError` for a tree without leaves, or at the first that is no real floating array: no direction."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise GeometryError("a vector needs at least one leaf", got="an empty tree")
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype"):
            got = f"{trees.quoted(trees.leaf_name(path))}, a Python {type(leaf).__name__}"
            raise GeometryError("the leaves of a vector are arrays", got=got, hint="jnp.float32 around it")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise GeometryError(
                "a vector has floating leaves only",
                got=f"{trees.quoted(trees.leaf_name(path))} of dtype {leaf.dtype}",
                hint="leave counters and other integer leaves out of the tree",
            )


def check_on_tree(asked: str, rows: Shapes, delta: Shapes) -> None:
    """Raise unless `delta` lives on the tree of the rows; names the first leaf that differs, with both shapes."""
    check_rows(rows)
    check_floating(delta)
    trees.check_match(asked, like_one(rows), delta)


def like_one(rows: Shapes) -> Shapes:
    """Shapes and dtypes of one row."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


def pairwise_sum(parts: list[Array]) -> Array:
    """Sum over leaves in a balanced tree: its rounding error grows with the logarithm of their number."""
    while len(parts) > 1:
        parts = [sum(parts[i + 1 : i + 2], start=parts[i]) for i in range(0, len(parts), 2)]
    return parts[0]


def dot(a: Delta, b: Delta) -> Float[Array, ""]:
    """`<a, b>`, float32."""

    def of_leaf(x: Array, y: Array) -> Float[Array, ""]:
        return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))

    return pairwise_sum(jax.tree.leaves(jax.tree.map(of_leaf, a, b)))


def products(
    rows: Rows, delta: Delta, filled: Int[Array, ""] | None = None, *, by_row: bool = False
) -> Float[Array, "k"]:
    """`<row_i, delta>` for every row, float32.

    All at once and so with one reduction over devices or, where `filled` is given, for the rows before that
    alone and one after the other: on a single CPU this reads half as much and is faster still. With `by_row`, which
    says that all leaves are whole on one CPU, each row is added up as a matrix: 0.047 s instead of 0.077 s for 16 rows
    of 5e6 numbers, and a tenth of the rounding.
    """
    k = jax.tree.leaves(rows)[0].shape[0]
    if filled is not None and k:
        return lax.fori_loop(0, filled, lambda i, found: found.at[i].set(dot(row(rows, i), delta)), jnp.zeros(k))

    def of_leaf(r: Array, d: Array) -> Float[Array, "k"]:
        if by_row:
            r, d = r.reshape(len(r), *_folded(d.size)), d.reshape(_folded(d.size))
        return jnp.sum(r.astype(jnp.float32) * d.astype(jnp.float32), axis=tuple(range(1, r.ndim)))

    return pairwise_sum(jax.tree.leaves(jax.tree.map(of_leaf, rows, delta)))


def _folded(size: int) -> tuple[int, ...]:
    """A shape of as many numbers with a last axis of some thousands, where a divisor allows."""
    width = max((width for width in range(32, min(size, 4096) + 1) if size % width == 0), default=1)
    return (size // width, width) if width > 1 else (size,)


def remove(coefficients: Float[Array, "k"], rows: Rows, delta: Delta, filled: Int[Array, ""] | None = None) -> Delta:
    """`delta - sum_i c_i row_i`, float32; `filled` as in `products`."""
    if filled is None or not coefficients.size:
        return subtract(delta, combine(coefficients, rows))

    def one(i: Int[Array, ""], rest: Delta) -> Delta:
        return jax.tree.map(lambda d, r: d - coefficients[i] * r, rest, row(rows, i))

    return lax.fori_loop(0, filled, one, delta)


def combine(coefficients: Float[Array, "*m k"], rows: Rows) -> Delta | Rows:
    """`sum_i c_i row_i`, float32: one vector for coefficients of shape [k], m rows for a matrix [m, k]."""

    def of_leaf(r: Array) -> Array:
        axes = (((coefficients.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(
            coefficients, r.astype(jnp.float32), axes, lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )

    return jax.tree.map(of_leaf, rows)


def gram(rows: Rows, other: Rows | None = None, *, by_row: bool | None = None) -> Float[Array, "k m"]:
    """Inner products of all rows with all rows of `other` (default: with themselves).

    Args:
      rows: k vectors, in any floating dtype.
      other: m vectors on the same tree.

    Returns:
      float32, accumulated in float32. These are the products themselves: they underflow to zero for vectors
      shorter than about 1e-19 and overflow above 1e19.

    Raises:
      GeometryError: the trees differ; names the first leaf and both shapes.
    """
    other = rows if other is None else other
    check_rows(other)
    check_on_tree("gram", rows, like_one(other))
    return _gram(rows, other, in_blocks=on_one_cpu(rows, other) if by_row is None else by_row)


@partial(jax.jit, static_argnames="in_blocks")  # or a call outside of a program would be compiled at every call
def _gram(rows: Rows, other: Rows, *, in_blocks: bool) -> Float[Array, "k m"]:
    return gram_in_blocks(rows, other) if in_blocks else lax.map(lambda r: products(other, r), rows)


def gram_in_blocks(rows: Rows, other: Rows) -> Float[Array, "k m"]:
    """`gram` of leaves that are whole on one device: matrix products of short blocks, added up.

    On a CPU ten times as fast as multiply-and-sum for 16 rows and fifty times for 300; more exact, because no product
    is longer than its block.
    """
    return _sum_of_blocks(lambda mine, others: product(mine, others.T), rows, other)


def gram_of_combined(matrix: Float[Array, "m k"], rows: Rows) -> Float[Array, "m m"]:
    """Inner products of `combine(matrix, rows)`, of which no more than a block is ever there; on one device."""

    def of_block(block: Array) -> Float[Array, "m m"]:
        combined = product(matrix, block)
        return product(combined, combined.T)

    return _sum_of_blocks(of_block, rows)


def combine_in_place(matrix: Float[Array, "k k"], rows: Rows, where: Bool[Array, ""]) -> Rows:
    """`combine(matrix, rows)` in the memory of the rows, a block at a time; on one device.

    Args:
      matrix: of coefficients.
      rows: float32.
      where: whether anything is to be done; else the rows come back as they are.
    """

    def blocks_of_leaf(leaf: Array) -> Array:
        flat, size, num_blocks = _blocks_of(leaf)

        def block(i: Int[Array, ""], there: Array) -> Array:
            done = product(matrix, lax.dynamic_slice_in_dim(there, i * size, size, axis=1))
            return lax.dynamic_update_slice_in_dim(there, done, i * size, axis=1)

        return lax.fori_loop(0, num_blocks * where, block, flat) if num_blocks else flat

    def rest_of_leaf(flat: Array) -> Array:
        _, size, num_blocks = _blocks_of(flat)
        done = product(matrix, flat[:, num_blocks * size :])
        return lax.dynamic_update_slice_in_dim(flat, done, num_blocks * size, axis=1)

    flat = jax.tree.map(blocks_of_leaf, rows)
    # A loop as well: outside of one each rest would cost a copy of its leaf.
    flat = lax.fori_loop(0, 1 * where, lambda _, there: jax.tree.map(rest_of_leaf, there), flat)
    return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), flat, rows)


def product(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """`a b`, at full precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _blocks_of(*leaves: Array) -> tuple[Any, ...]:
    """Leaves as matrices, the columns of a block, and how many whole blocks there are."""
    flat = [leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for leaf in leaves]
    # The blocks' products take no more than a sixteenth of the rows.
    size = max(LEAST_BLOCK, *(16 * leaf.shape[0] for leaf in leaves))
    return *flat, size, flat[0].shape[1] // size


def _sum_of_blocks(of: Callable[..., Array], *trees_of_rows: Rows) -> Array:
    """The sum of `of(*blocks)`, float32, over blocks of columns of all leaves."""

    def of_leaf(*leaves: Array) -> Array:
        *flat, size, num_blocks = _blocks_of(*leaves)

        def at(start: int | Int[Array, ""], width: int) -> Array:
            return of(*(lax.dynamic_slice_in_dim(leaf, start, width, axis=1).astype(jnp.float32) for leaf in flat))

        rest = at(num_blocks * size, flat[0].shape[1] - num_blocks * size)
        if not num_blocks:
            return rest
        return rest + jnp.sum(lax.map(lambda i: at(i * size, size), jnp.arange(num_blocks)), axis=0)

    return pairwise_sum(jax.tree.leaves(jax.tree.map(of_leaf, *trees_of_rows)))


def row(rows: Rows, index: int | Int[Array, ""]) -> Delta:
    """Row `index`, in its storage dtype."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), rows)


def set_row(rows: Rows, index: int | Int[Array, ""], delta: Delta) -> Rows:
    """The rows with row `index` replaced."""
    return jax.tree.map(lambda x, d: lax.dynamic_update_index_in_dim(x, d.astype(x.dtype), index, 0), rows, delta)


def largest(delta: Delta) -> Float[Array, ""]:
    """The largest absolute value: 0 for an empty tree, not finite if an element is not."""
    parts = [jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0.0) for x in jax.tree.leaves(delta)]
    return jnp.max(jnp.stack(parts))


def power_of_two(size: Float[Array, ""]) -> Float[Array, ""]:
    """The power of two at or below `size`, 1 where that is zero or not finite. Dividing by it is exact.

    It stays where its reciprocal is a normal number too: a compiler may multiply by that instead. It is a
    constant to derivatives, for whatever it scales is scaled back.
    """
    size = lax.stop_gradient(size)
    usable = jnp.isfinite(size) & (size > 0)
    exponent = jnp.frexp(jnp.where(usable, size, 1.0))[1] - 1
    return jnp.ldexp(jnp.float32(1), jnp.clip(exponent, -126, 126))


def scaled(delta: Delta) -> tuple[Delta, Float[Array, ""]]:
    """`(delta / s, s)` in float32, with s a power of two near the largest element.

    Squares of numbers below 1e-19 underflow in float32, and above 1e19 overflow. These cannot. A subnormal number,
    below 1.2e-38, is zero to XLA.
    """
    size = power_of_two(largest(delta))
    return divide(delta, size), size


def divide(delta: Delta, by: Float[Array, ""]) -> Delta:
    """`delta / by`, float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) / by, delta)


def squared_norm(delta: Delta) -> Float[Array, ""]:
    """`<delta, delta>`, float32."""
    return dot(delta, delta)


def norm(delta: Delta) -> Float[Array, ""]:
    """`|delta|`, float32; right where no square underflows, as in what `scaled` gives."""
    return root(squared_norm(delta))


def root(square: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Square root, whose derivative at zero is zero: what is zero by itself has no slope to pass on."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), square)


def subtract(a: Delta, b: Delta) -> Delta:
    """`a - b`, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def on_one_cpu(*trees_of_arrays: Any) -> bool:
    """Whether all leaves are concrete and on one and the same CPU device, where a loop over rows is the fast way."""
    devices = set()
    for leaf in jax.tree.leaves(trees_of_arrays):
        if isinstance(leaf, jax.core.Tracer):
            return False
        devices |= leaf.devices() if isinstance(leaf, jax.Array) else set()
    return len(devices) == 1 and devices.pop().platform == "cpu"
