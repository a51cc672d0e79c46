"""Orthonormal bases of subspaces of a parameter tree.

Source: Gram-Schmidt done twice, after Giraud, Langou, Rozloznik and van den Eshof (2005).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.factors import Factors, factors
from lacuna.geometry.status import Status, flag, kernel
from lacuna.types import Delta, Rows, Shapes

DROP = 64 * ops.EPS
"""A vector of which less than this share is new lies in the span: the rest of it is rounding."""


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "rank", "status"], meta_fields=["method"])
@dataclass(frozen=True)
class Basis:
    """A subspace of a parameter tree.

    Attributes:
      rows: leading axis k on every leaf, float32. Orthonormal in the tree's inner product up to `rank`, zero
        beyond it.
      rank: dimension of the subspace, int32[], at most k.
      status: bits of `Status`, int32[]; 0 where there is nothing to say.
      method: what made it.

    Under `vmap` all of them have the batch's axes in front.
    """

    rows: Rows
    rank: Int[Array, "*batch"]
    status: Int[Array, "*batch"]
    method: str = "orthonormalise"

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.rows)
        size = sum(math.prod(getattr(leaf, "shape", ())) for leaf in leaves)
        told = f"{size:,} numbers in {len(leaves)} leaves" if len(leaves) > 1 else f"{size:,} numbers"
        return f"Basis({self.method}, rank {self.rank}, status {self.status}, {told})"

    @property
    def capacity(self) -> int:
        """k, the number of rows there is room for."""
        return jax.tree.leaves(self.rows)[0].shape[0]


class Split(NamedTuple):
    """A vector as its part in a span and the rest.

    Attributes:
      inside: coefficients on the rows.
      rest: what is orthogonal to all rows.
    """

    inside: Float[Array, "k"]
    rest: Delta


def split(rows: Rows, delta: Delta, filled: Int[Array, ""] | None = None) -> Split:
    """Classical Gram-Schmidt, twice: the second pass removes what the rounding of the first left behind.

    Source: Giraud, Langou, Rozloznik and van den Eshof (2005): twice is enough.
    """
    first = ops.products(rows, delta, filled)
    rest = ops.remove(first, rows, delta, filled)
    second = ops.products(rows, rest, filled)
    return Split(first + second, ops.remove(second, rows, rest, filled))


def empty(like: Shapes, *, capacity: int, method: str = "append") -> Basis:
    """A basis of rank 0 on the tree of `like` with room for `capacity` rows; to be grown by `append`.

    Raises:
      GeometryError: a negative capacity, or a leaf that is not floating; names the leaf.
    """
    ops.check_floating(like)
    if capacity < 0:
        raise GeometryError("capacity must not be negative", got=capacity)
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), jnp.float32), like)
    return Basis(rows, jnp.int32(0), jnp.int32(0), method)


class Appended(NamedTuple):
    """Result of `append`.

    Attributes:
      basis: the grown basis; the old one if the vector brought nothing new.
      coefficients: of the vector on the rows of the grown basis, float32[k].
      status: of this step alone, int32[].
    """

    basis: Basis
    coefficients: Float[Array, "k"]
    status: Int[Array, ""]


def grow(basis: Basis, delta: Delta, *, floor: Float[Array, ""] | float = 0.0, by_row: bool = False) -> Appended:
    """`append`, unchecked.

    Args:
      basis: the basis so far.
      delta: the vector.
      floor: a length below which a vector is nothing but rounding, whatever its own.
      by_row: read the rows up to the rank one after the other instead of all at once (static).
    """
    k = basis.capacity
    small, scale = ops.scaled(delta)
    before = ops.norm(small)
    inside, rest = split(basis.rows, small, basis.rank if by_row else None)
    length = ops.norm(rest)
    finite, room = jnp.isfinite(before), basis.rank < k
    independent = (length > DROP * before) & (length * scale > floor)  # false for NaN
    new = finite & independent & room
    status = flag(Status.ZERO, before == 0) | flag(Status.NOT_FINITE, ~finite)
    status |= flag(Status.DEPENDENT, finite & ~independent) | flag(Status.FULL, finite & independent & ~room)
    rows = basis.rows
    if k:
        place = jnp.minimum(basis.rank, k - 1)
        unit = ops.divide(rest, jnp.where(new, length, 1.0))
        rows = ops.set_row(rows, place, jax.tree.map(lambda u, x: jnp.where(new, u, x), unit, ops.row(rows, place)))
        inside = inside.at[place].add(jnp.where(new, length, 0.0))
    grown = Basis(rows, basis.rank + new, basis.status | status, basis.method)
    return Appended(grown, jnp.where(finite, inside * scale, jnp.nan), status)


@kernel()
def append(basis: Basis, delta: Delta, *, by_row: bool = False) -> Appended:
    """Grow a basis by one vector.

    Args:
      basis: as made by `empty`, or any other; its `rows` say how much room there is.
      delta: the vector.

    Returns:
      The grown basis. A vector that is zero (ZERO), in the span already (DEPENDENT), not finite (NOT_FINITE) or
      beyond the room (FULL) leaves it as it was, but for the basis's status, which says from then on that some
      vector was refused; the other `status` is of this one alone.

    Raises:
      GeometryError: `delta` lives on another tree, or (eagerly) is not finite; names the leaf.
    """
    check_single(basis)
    ops.check_on_tree("append", basis.rows, delta)
    return grow(basis, delta, by_row=by_row)


class Triangular(NamedTuple):
    """Rows in terms of an orthonormal basis of their span: `row_j = sum_i coefficients[j, i] basis_row_i`.

    Attributes:
      basis: of the span.
      coefficients: float32[k, k], lower triangular where no row was dropped.
      ranks: dimension of the span of the first j + 1 rows, int32[k].
    """

    basis: Basis
    coefficients: Float[Array, "k k"]
    ranks: Int[Array, "k"]


def triangularise(
    rows: Rows,
    *,
    method: str = "orthonormalise",
    floor: Float[Array, ""] | float = 0.0,
    by_row: bool = False,
) -> Triangular:
    """`orthonormalise`, unchecked, with the coefficients; `floor` and `by_row` as in `grow`."""
    k = ops.check_rows(rows)
    one_by_one = partial(_row_after_row, rows, method=method, floor=floor, by_row=by_row)
    if not by_row or not k or sum(leaf.size for leaf in jax.tree.leaves(rows)) < LEAST_BY_GRAM:
        return one_by_one()
    found = factors(rows, floor)
    return lax.cond(found.fit, lambda: _by_gram(rows, found, method=method), one_by_one)


LEAST_BY_GRAM = 2**22
"""Numbers in the rows from which on it is worth compiling what `factors` takes: with 16 rows it is seven times as fast
as one row after the other, but a tree of 120 leaves takes 15 s of a compiler instead of 11."""


def _row_after_row(rows: Rows, *, method: str, floor: Float[Array, ""] | float, by_row: bool) -> Triangular:
    """Gram-Schmidt for rows of any conditioning."""
    k = ops.check_rows(rows)
    start = Triangular(empty(ops.like_one(rows), capacity=k, method=method), jnp.zeros((k, k)), jnp.zeros(k, jnp.int32))

    def add(j: Int[Array, ""], state: Triangular) -> Triangular:
        basis, coefficients, _ = grow(state.basis, ops.row(rows, j), floor=floor, by_row=by_row)
        return Triangular(basis, state.coefficients.at[j].set(coefficients), state.ranks.at[j].set(basis.rank))

    found = lax.fori_loop(0, k, add, start) if k else start
    return found._replace(basis=nothing_if_not_finite(found.basis))


def _by_gram(rows: Rows, found: Factors, *, method: str) -> Triangular:
    """The basis whose factors these are."""
    k = ops.check_rows(rows)
    # Not as one product: what rounding leaves of `second first` would not be orthogonal to an eps.
    once = ops.combine(found.first, rows)
    orthonormal = ops.combine_in_place(found.second, once, found.twice)
    basis = Basis(orthonormal, jnp.int32(k), jnp.int32(0), method)
    return Triangular(basis, found.coefficients, jnp.arange(1, k + 1, dtype=jnp.int32))


def basis_usable(basis: Basis) -> Bool[Array, ""]:
    """False for a basis that was emptied because something not finite went into it: it says nothing of a vector."""
    return ((basis.status & Status.NOT_FINITE) == 0) | (basis.rank > 0)


def check_single(*bases: Basis) -> None:
    """Raise `GeometryError` for what is no basis, and for a batch outside of `vmap`, whose leading axis is no row's."""
    for basis in bases:
        if not isinstance(basis, Basis):
            raise GeometryError(
                "this kernel takes a basis", got=f"a {type(basis).__name__}", hint="orthonormalise(rows)"
            )
        if basis.rank.ndim:
            raise GeometryError(
                "this kernel takes one basis", got=f"a batch of shape {basis.rank.shape}", hint="jax.vmap"
            )


def nothing_if_not_finite(basis: Basis) -> Basis:
    """The basis, emptied if something that went into it was not finite: a part of it would pass for the whole."""
    usable = (basis.status & Status.NOT_FINITE) == 0
    rows = jax.tree.map(lambda x: jnp.where(usable, x, jnp.zeros_like(x)), basis.rows)
    return Basis(rows, jnp.where(usable, basis.rank, 0), basis.status, basis.method)


@kernel("method")
def orthonormalise(rows: Rows, *, method: str = "orthonormalise", by_row: bool = False) -> Basis:
    """An orthonormal basis of the span of rows, of any conditioning and at any scale.

    Rows are taken in order, by Gram-Schmidt with a second pass, so the first j basis rows span what the first
    rows span. Where many numbers lie on one CPU, rows that are well enough conditioned go by the Cholesky factor of
    their inner products, which reads them once or twice and gives the same basis, but for its last bits. A row that
    lies in the span of those before it, to 64 eps of its own length, is dropped and the next one takes its place.

    Args:
      rows: k vectors in any floating dtype; the arithmetic is float32.
      method: name that the basis carries.

    Returns:
      A basis with room for k rows. `|Q Q^T - I|` is within 10 eps in the 2-norm at any P. Status: DEPENDENT
      if rows were dropped, ZERO if one of them was zero, NOT_FINITE (and rank 0) under `jit`.

    Raises:
      GeometryError: a leaf that is not floating, no common leading axis, or (eagerly) not finite; names the leaf.
    """
    return triangularise(rows, method=method, by_row=by_row).basis
