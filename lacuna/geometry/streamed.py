"""Inner products of gradients that are too large to be kept together, by groups of their elements.

A vector is asked for by its index when it is needed and let go again: `gradient(i)` must give the same one each time.
Two ways lead to the Gram matrix of n of them. *Exact*: some are held while the others pass by, and those that pass
are computed again for every block that is held. *Sketched*: each is computed once, and of each group of its elements
a short random sketch is kept, from which inner products are read off with a known variance.

The matrix of all elements is the sum of the groups' matrices, so one pass tells layers and kinds of matrices apart.

Source: Charikar, Chen and Farach-Colton (2002) for the sketch; the rest is ours.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.sketch import Sketch, of_array
from lacuna.types import Delta, Key, Shapes

Group = Callable[[str, int | None], Hashable]
"""`group(leaf name, layer)`: where the elements of a leaf belong, or those of one layer of a stacked leaf."""

Progress = Callable[[int, int], None]
"""`progress(num_done, num_gradients)`, after each gradient."""


class Grams(NamedTuple):
    """Inner products of n vectors, apart for each group of their elements.

    Attributes:
      groups: in the order in which the leaves name them.
      products: float64 on the host.
      variance: of each product over the keys of the sketch, as large as it can be for vectors of these lengths and
        inner products; zero where nothing was sketched.
    """

    groups: tuple[Hashable, ...]
    products: Float[np.ndarray, "G n n"]
    variance: Float[np.ndarray, "G n n"]

    @property
    def total(self) -> Float[np.ndarray, "n n"]:
        """The inner products of the whole vectors."""
        return self.products.sum(axis=0)

    def merged(self, name: Callable[[Hashable], Hashable]) -> "Grams":
        """Groups put together where `name` gives the same: sums of their matrices, for they share no element."""
        of_each = [name(group) for group in self.groups]
        names = tuple(dict.fromkeys(of_each))
        sums = np.asarray([[one == other for other in of_each] for one in names], np.float64)
        products, variance = (np.tensordot(sums, matrices, 1) for matrices in (self.products, self.variance))
        return Grams(names, products, variance)


def streamed_gram(
    gradient: Callable[[int], Delta],
    num_rows: int,
    *,
    block: int,
    group: Group = lambda name, layer: "",
    stacked: Callable[[str], bool] = lambda name: False,
    progress: Progress | None = None,
) -> Grams:
    """Exact inner products of n vectors, of which at most `block + 1` are in memory at a time.

    A block is held, and every later vector passes by it once: n gradients are computed if all of them fit into one
    block, and about `n^2 / (2 block)` if they do not, `n (n / block + 1) / 2` where the block divides n.

    Args:
      gradient: `gradient(i)` for i from 0 to n - 1: a tree of floating leaves of any dtype and sharding, the same
        whenever it is asked for.
      num_rows: n.
      block: vectors that are held.
      group: of a leaf's elements, by its name and, in a stacked leaf, by its layer, from 0; else the layer is None.
        All elements are one group unless it says otherwise.
      stacked: which leaves have a leading axis of layers; it should not be sharded.
      progress: `progress(num_done, num_gradients)`.

    Returns:
      Inner products accumulated in float32 within each leaf or layer, and added up in float64.

    Raises:
      GeometryError: no row, no block, a leaf that is not floating, vectors on different trees, or one whose products
        are not finite; names it.
    """
    _check_rows(num_rows)
    if block < 1:
        raise GeometryError("a block must hold at least 1 vector", got=block)
    starts = range(0, num_rows, block)
    num_done, num_gradients = 0, sum(num_rows - start for start in starts)
    parts: _Parts | None = None
    products = np.zeros((0, num_rows, num_rows))
    for start in starts:
        held: list[Delta] = []  # lets go of the block before
        for i in range(start, num_rows):
            row = gradient(i)
            if parts is None:
                parts = _parts(row, group, stacked)
                products = np.zeros((len(parts.groups), num_rows, num_rows))
            parts.check(row)
            if len(held) < block:
                held.append(row)
            each = [products_by_part(one, row, stacked=parts.stacked) for one in held]
            del row  # or it would be in memory while the next one is made
            found = parts.by_group(np.stack(jax.device_get(each)))
            if not np.isfinite(found).all():
                raise _not_finite("streamed_gram", i, parts.groups, found)
            products[:, start : start + len(held), i] = found.T
            products[:, i, start : start + len(held)] = found.T
            num_done += 1
            if progress is not None:
                progress(num_done, num_gradients)
    assert parts is not None
    return Grams(parts.groups, products, np.zeros_like(products))


def sketched_gram(
    gradient: Callable[[int], Delta],
    num_rows: int,
    sketch: Sketch,
    *,
    group: Group = lambda name, layer: "",
    stacked: Callable[[str], bool] = lambda name: False,
    progress: Progress | None = None,
) -> Grams:
    """Estimated inner products of n vectors, each of which is computed once and never kept.

    Of each group of a vector's elements a count sketch of m numbers stays on the host: `4 n G m` bytes in all for G
    groups. Over the keys, the product of group g of x and y has mean `<x_g, y_g>` and variance at most
    `(|x_g|^2 |y_g|^2 + <x_g, y_g>^2) / m`; groups are sketched independently, so the variances of a sum of groups
    add up. All vectors go through the same linear map: what is exchangeable stays so, and a permutation test of the
    estimated products is as valid as one of the products themselves.

    Args:
      gradient: as for `streamed_gram`; asked for once for each i.
      num_rows: n.
      sketch: its key and its size m; each group has a map of its own.
      group: as for `streamed_gram`.
      stacked: as for `streamed_gram`.
      progress: `progress(num_done, num_gradients)`.

    Raises:
      GeometryError: as `streamed_gram`, or a sketch of size less than 1.
    """
    _check_rows(num_rows)
    if sketch.size < 1:
        raise GeometryError("a sketch needs a size of at least 1", got=sketch.size)
    parts: _Parts | None = None
    kept = np.zeros((num_rows, 0, sketch.size), np.float32)
    for i in range(num_rows):
        row = gradient(i)
        if parts is None:
            parts = _parts(row, group, stacked)
            kept = np.zeros((num_rows, len(parts.groups), sketch.size), np.float32)
        parts.check(row)
        found = sketch_by_group(sketch.key, row, size=sketch.size, stacked=parts.stacked, places=parts.places)
        del row
        kept[i] = found
        if not np.isfinite(kept[i]).all():
            raise _not_finite("sketched_gram", i, parts.groups, kept[i].T)
        if progress is not None:
            progress(i + 1, num_rows)
    assert parts is not None
    of_groups = (kept[:, g].astype(np.float64) for g in range(len(parts.groups)))
    products = np.stack([one @ one.T for one in of_groups])
    squares = np.diagonal(products, axis1=1, axis2=2)
    variance = (squares[:, :, None] * squares[:, None, :] + products**2) / sketch.size
    return Grams(parts.groups, products, variance)


class _Parts(NamedTuple):
    """Leaves, and layers of stacked leaves, in the order of the tree, and the group of each."""

    like: Shapes
    stacked: tuple[str, ...]
    groups: tuple[Hashable, ...]
    places: tuple[int, ...]

    def check(self, row: Delta) -> None:
        trees.check_match("a Gram matrix", self.like, row)

    def by_group(self, of_parts: Float[np.ndarray, "k parts"]) -> Float[np.ndarray, "k G"]:
        """Sums over the parts of each group, in float64."""
        places, wide = np.asarray(self.places), of_parts.astype(np.float64)
        return np.stack([wide[:, places == g].sum(axis=1) for g in range(len(self.groups))], axis=1)


def _parts(row: Delta, group: Group, stacked: Callable[[str], bool]) -> _Parts:
    ops.check_floating(row)
    named, layered = [], []
    for name, leaf in trees.named_leaves(row):
        if not stacked(name):
            named.append(group(name, None))
            continue
        if not leaf.shape:
            raise GeometryError("a stacked leaf needs an axis of layers", got=f"`{name}` of shape ()")
        layered.append(name)
        named += [group(name, layer) for layer in range(leaf.shape[0])]
    groups = tuple(dict.fromkeys(named))
    places = {one: place for place, one in enumerate(groups)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), row)
    return _Parts(like, tuple(layered), groups, tuple(places[one] for one in named))


@partial(jax.jit, static_argnames="stacked")
def products_by_part(a: Delta, b: Delta, *, stacked: tuple[str, ...]) -> Float[Array, "parts"]:
    """`<a, b>` within each leaf, and within each layer of the stacked ones, float32, in the order of the leaves."""

    def of_leaf(name: str, x: Array, y: Array) -> Array:
        axes = tuple(range(int(name in stacked), x.ndim))
        return jnp.ravel(jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=axes))

    return jnp.concatenate(jax.tree.leaves(trees.map_named(of_leaf, a, b)))


@partial(jax.jit, static_argnames=("size", "stacked", "places"))
def sketch_by_group(
    key: Key, delta: Delta, *, size: int, stacked: tuple[str, ...], places: tuple[int, ...]
) -> Float[Array, "G size"]:
    """A count sketch of each group's elements, float32.

    A layer at a time, so that the random bits of a stacked leaf never exist together.
    """

    def of_leaf(name: str, x: Array) -> Float[Array, "parts size"]:
        own = keys.leaf(key, name)
        if name not in stacked:
            return of_array(own, x, size)[None]
        layers = jnp.arange(x.shape[0])
        return lax.map(lambda layer: of_array(jax.random.fold_in(own, layer[0]), layer[1], size), (layers, x))

    parts = jnp.concatenate(jax.tree.leaves(trees.map_named(of_leaf, delta)))
    return jax.ops.segment_sum(parts, jnp.asarray(places), num_segments=max(places) + 1)


def _check_rows(num_rows: int) -> None:
    if num_rows < 1:
        raise GeometryError("a Gram matrix needs at least one vector", got=num_rows)


def _not_finite(asked: str, row: int, groups: tuple[Hashable, ...], found: Float[np.ndarray, "k G"]) -> GeometryError:
    at_fault = int(np.argwhere(~np.isfinite(found))[0, 1])
    return GeometryError(
        f"{asked} needs finite numbers whose squares float32 can hold",
        got=f"others in row {row}, group `{groups[at_fault]}`",
    )
