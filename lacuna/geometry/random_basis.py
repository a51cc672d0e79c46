"""Uniformly random subspaces, of the whole tree or of each of its blocks: the control beside every capture.

Source: normal rows, orthonormalised, span a uniformly random subspace: Mezzadri (2007).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Int, PyTree

from lacuna import keys, trees
from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import Basis, triangularise
from lacuna.geometry.status import Status, flag, kernel
from lacuna.threefry import unrolled
from lacuna.types import Delta, Key, Rows, Shapes


def _normal_rows(key: Key, like: Delta, rank: int, shardings: tuple[Sharding | None, ...]) -> Rows:
    """Gaussian rows; a leaf's noise depends on its name alone."""
    ops.check_floating(like)
    ops.check_rank(rank)

    def draw(name: str, x: Array, sharding: Sharding | None) -> Array:
        noise = jax.random.normal(unrolled(keys.leaf(key, name)), (rank, *x.shape), jnp.float32)
        return noise if sharding is None else lax.with_sharding_constraint(noise, sharding)

    return trees.map_named(draw, like, jax.tree.unflatten(jax.tree.structure(like), shardings))


def _of_rows(like: Delta) -> tuple[Sharding | None, ...]:
    """How rows on this tree are to be sharded: as the leaves are, where they can be asked."""

    def of_leaf(x: Array) -> Sharding | None:
        here = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
        if not isinstance(here, NamedSharding) or here.is_fully_replicated:
            return None
        return NamedSharding(here.mesh, PartitionSpec(None, *here.spec))

    return tuple(of_leaf(x) for x in jax.tree.leaves(like))


def random_basis(key: Key, like: Delta, *, rank: int) -> Basis:
    """A uniformly random subspace of the whole tree.

    The mass that it captures of any fixed vector has the law Beta(k / 2, (P - k) / 2), with mean k / P.

    Args:
      key: of the draw.
      like: gives the tree and shapes and, where it is not traced, the shardings.
      rank: k; where it exceeds P the subspace is everything, and the rows beyond P are zero (DEPENDENT).

    Raises:
      GeometryError: a negative rank or a leaf that is not floating; names the leaf.
    """
    return _random_basis(key, like, rank=rank, shardings=_of_rows(like), by_row=ops.on_one_cpu(key, like))


@partial(jax.jit, static_argnames=("rank", "shardings", "by_row"))
def _random_basis(key: Key, like: Delta, *, rank: int, shardings: tuple[Sharding | None, ...], by_row: bool) -> Basis:
    return triangularise(_normal_rows(key, like, rank, shardings), method="random", by_row=by_row).basis


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "ranks", "status"], meta_fields=["stacked", "method"])
@dataclass(frozen=True)
class BlockBasis:
    """One subspace for each block of the tree: for each leaf, and for each layer of a stacked leaf.

    Attributes:
      rows: leading axis k on every leaf, float32; orthonormal within each block.
      ranks: on the tree of a single row: int32[] for a leaf, int32[L] for a stacked one.
      status: bits of all blocks together, int32[].
      stacked: names of the leaves whose first axis counts layers.
      method: what made it.
    """

    rows: Rows
    ranks: PyTree[Int[Array, "..."]]
    status: Int[Array, "*batch"]
    stacked: tuple[str, ...]
    method: str


def block_orthonormalise(rows: Rows, *, stacked: Callable[[str], bool] = lambda name: False) -> BlockBasis:
    """Orthonormalise within each block of the tree, as if it were a tree of its own.

    Args:
      rows: k vectors.
      stacked: which leaves have a leading axis of layers (after the axis k), each a block of its own.

    Raises:
      GeometryError: rows of no common tree, a stacked leaf without an axis of layers, or (eagerly) numbers that
        are not finite; names the leaf.
    """
    ops.check_rows(rows)
    return _block_orthonormalise(rows, stacked=_stacked_names(ops.like_one(rows), stacked))


def _stacked_names(like: Shapes, stacked: Callable[[str], bool]) -> tuple[str, ...]:
    """Names of the leaves with an axis of layers."""
    shapes = {name: x.shape for name, x in zip(trees.leaf_names(like), jax.tree.leaves(like), strict=True)}
    named = tuple(name for name in shapes if stacked(name))
    for name in named:
        if not shapes[name]:
            raise GeometryError("a stacked leaf needs an axis of layers", got=f"`{name}` of shape ()")
    return named


@kernel("stacked", "method")
def _block_orthonormalise(rows: Rows, *, stacked: tuple[str, ...], method: str = "orthonormalise") -> BlockBasis:
    def of_leaf(name: str, leaf: Array) -> tuple[Array, Array, Array]:
        if name in stacked:
            in_rows, ranks, statuses = jax.vmap(of_block, in_axes=1)(leaf)
            return jnp.moveaxis(in_rows, 0, 1), ranks, statuses
        return of_block(leaf)

    def of_block(leaf: Array) -> tuple[Array, Array, Array]:
        basis = triangularise(leaf).basis
        return basis.rows, basis.rank, basis.status

    leaves = [of_leaf(name, leaf) for name, leaf in zip(trees.leaf_names(rows), jax.tree.leaves(rows), strict=True)]
    in_rows, ranks, statuses = zip(*leaves, strict=True)
    treedef = jax.tree.structure(rows)
    status = jnp.bitwise_or.reduce(jnp.concatenate([jnp.ravel(status) for status in statuses]))
    return BlockBasis(treedef.unflatten(in_rows), treedef.unflatten(ranks), status, stacked, method)


def random_block_basis(
    key: Key, like: Delta, *, rank: int, stacked: Callable[[str], bool] = lambda name: False
) -> BlockBasis:
    """A uniformly random subspace of rank k, or of everything where a block is smaller, in each block.

    Args:
      key: of the draw.
      like: gives the tree and shapes.
      rank: k of each block.
      stacked: as in `block_orthonormalise`.
    """
    rows = _normal_rows(key, like, rank, _of_rows(like))
    return _block_orthonormalise(rows, stacked=_stacked_names(like, stacked), method="random_blocks")


class Blocks(NamedTuple):
    """The part of each block of a vector in its own subspace; trees of float32[] for a leaf, [L] for a stacked one.

    Attributes:
      share: `w_b = |d_b|^2 / |d|^2`: where the vector has its mass.
      mass: `|Q_b d_b|^2 / |d_b|^2`; 0 where the vector is zero in a block.
      random_mass: `k_b / P_b`.
    """

    share: PyTree[Float[Array, "..."]]
    mass: PyTree[Float[Array, "..."]]
    random_mass: PyTree[Float[Array, "..."]]


class BlockCapture(NamedTuple):
    """The part of a vector in one subspace for each block.

    Attributes:
      mass: `sum_b |Q_b d_b|^2 / |d|^2`, float32[].
      random_mass: the level of random subspaces of the same ranks, `sum_b w_b k_b / P_b` with
        `w_b = |d_b|^2 / |d|^2`: not k / P, for it depends on where the vector has its mass.
      rank: the sum of all blocks' ranks, int32[].
      status: ZERO or NOT_FINITE for the vector, int32[].
      blocks: the same block by block: `mass = sum_b share_b mass_b`.
    """

    mass: Float[Array, ""]
    random_mass: Float[Array, ""]
    rank: Int[Array, ""]
    status: Int[Array, ""]
    blocks: Blocks


@kernel()
def block_capture(basis: BlockBasis, delta: Delta) -> BlockCapture:
    """How much of `delta` lies in the subspaces of the blocks, beside its random level.

    Raises:
      GeometryError: the trees differ, or (eagerly) an element is not finite; names the leaf.
    """
    ops.check_on_tree("block_capture", basis.rows, delta)
    small, _ = ops.scaled(delta)
    inside, weights, levels = [], [], []
    for name, r, d, rank in zip(
        trees.leaf_names(small), *map(jax.tree.leaves, (basis.rows, small, basis.ranks)), strict=True
    ):
        layer_axes = 1 if name in basis.stacked else 0
        within = tuple(range(1 + layer_axes, r.ndim))
        inside.append(jnp.sum(jnp.square(jnp.sum(r.astype(jnp.float32) * d, axis=within)), axis=0))
        weights.append(jnp.sum(jnp.square(d), axis=tuple(range(layer_axes, d.ndim))))
        levels.append(rank / max(1, d.size // max(1, rank.size)))
    total = ops.pairwise_sum([jnp.sum(weight) for weight in weights])
    mass, level = (
        _over(ops.pairwise_sum([jnp.sum(part) for part in parts]), total)
        for parts in (inside, [w * level for w, level in zip(weights, levels, strict=True)])
    )
    finite = jnp.isfinite(total + mass) & ((basis.status & Status.NOT_FINITE) == 0)
    status = flag(Status.ZERO, total == 0) | flag(Status.NOT_FINITE, ~finite)
    rank = ops.pairwise_sum([jnp.sum(rank) for rank in jax.tree.leaves(basis.ranks)])
    masses = [jnp.minimum(_over(i, w), 1.0) for i, w in zip(inside, weights, strict=True)]
    blocks = Blocks(*map(jax.tree.structure(small).unflatten, ([_over(w, total) for w in weights], masses, levels)))
    mass, level, blocks = jax.tree.map(
        lambda share: jnp.where(finite, share, jnp.nan), (jnp.minimum(mass, 1.0), level, blocks)
    )
    return BlockCapture(mass, level, rank, status, blocks)


def _over(part: Array, whole: Array) -> Array:
    """`part / whole`, 0 where there is nothing to divide by."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
