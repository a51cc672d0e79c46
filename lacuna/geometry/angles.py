"""Where two subspaces lie to each other.

Source: Björck and Golub (1973) for the angles; overlap and drift after arXiv 2606.10929, whose definitions are not
available to us: these are ours.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lacuna.geometry import rows as ops
from lacuna.geometry.basis import Basis, check_single, triangularise
from lacuna.geometry.status import kernel
from lacuna.types import Delta, Rows


@kernel()
def principal_angles(a: Basis, b: Basis, *, by_row: bool = False) -> Float[Array, "r"]:
    """Principal angles between two subspaces, smallest first.

    Cosines and sines are combined, because the arccos of a float32 cosine cannot see angles below 5e-4: below
    pi/4 an angle is the arcsine of what the smaller subspace has outside of the larger. What is left is the
    rounding of the rows themselves, about 2e-8 rad at worst and less the more parameters there are.

    Args:
      a: orthonormal rows, k_a of them.
      b: orthonormal rows on the same tree, k_b of them.

    Returns:
      Radians, float32, ascending, in [0, pi/2]; r = min(k_a, k_b). Angles beyond the smaller of the two ranks
      are NaN: there are no such directions.

    Raises:
      GeometryError: the bases live on different trees; names the first leaf.

    Source: Björck and Golub (1973).
    """
    check_single(a, b)
    large, small = (a, b) if a.capacity >= b.capacity else (b, a)
    r = small.capacity
    mixed = ops.gram(small.rows, large.rows, by_row=by_row)
    left, cosines, _ = jnp.linalg.svd(mixed, full_matrices=False)
    # Principal vectors of the small subspace, nearest first, and what of each lies outside of the large one.
    nearest = ops.combine(left.T, small.rows)
    near = cosines > 0.5**0.5
    outside = (_outside_together if by_row else _outside_one_by_one)(large.rows, nearest)
    # Cosines near one are equal in float32, so the nearest vectors come out mixed: their sines are singular values.
    outside = jax.tree.map(lambda x: jnp.where(near.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0), outside)
    sines = jnp.sort(jnp.linalg.svd(triangularise(outside, by_row=by_row).coefficients, compute_uv=False))
    sines = jnp.roll(sines, jnp.sum(near))  # the rows that were set to zero gave zeros, which sort first
    angles = jnp.where(near, jnp.arcsin(jnp.clip(sines, 0.0, 1.0)), jnp.arccos(jnp.clip(cosines, 0.0, 1.0)))
    rank = jnp.minimum(a.rank, b.rank)
    return jnp.where(jnp.arange(r) < rank, angles, jnp.nan)


def _outside_together(rows: Rows, vectors: Rows) -> Rows:
    """What vectors have outside of the span of orthonormal rows, on one CPU."""
    for _ in range(2):
        inside = ops.gram(vectors, rows, by_row=True)
        vectors = ops.subtract(vectors, ops.combine(inside, rows))
    return vectors


def _outside_one_by_one(rows: Rows, vectors: Rows) -> Rows:
    def of_one(delta: Delta) -> Delta:
        for _ in range(2):
            delta = ops.remove(ops.products(rows, delta), rows, delta)
        return delta

    return lax.map(of_one, vectors)


@kernel()
def overlap(a: Basis, b: Basis, *, by_row: bool = False) -> Float[Array, ""]:
    """`|Q_a Q_b^T|_F^2 / min(k_a, k_b)`: 1 if one subspace contains the other, 0 if they are orthogonal.

    Two random subspaces overlap by max(k_a, k_b) / P on average. The ranks count, not the room; NaN where one
    of them is 0.

    Raises:
      GeometryError: the bases live on different trees; names the first leaf.
    """
    check_single(a, b)
    return jnp.sum(jnp.square(ops.gram(a.rows, b.rows, by_row=by_row))) / jnp.minimum(a.rank, b.rank)


class Drift(NamedTuple):
    """How far a subspace has moved.

    Attributes:
      overlap: with where it was, float32[].
      angles: principal angles in radians, float32[r].
      random_overlap: what two random subspaces of these ranks would have.
    """

    overlap: Float[Array, ""]
    angles: Float[Array, "r"]
    random_overlap: Float[Array, ""]


@kernel()
def drift(before: Basis, after: Basis, *, by_row: bool = False) -> Drift:
    """Overlap and angles of a subspace with an earlier one, beside the random level.

    What sampling alone costs is not in it: compare with the overlap of two halves of the data at one step. Angles are
    in radians.
    """
    num_params = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(before.rows))
    level = jnp.maximum(before.rank, after.rank) / max(1, num_params)
    return Drift(overlap(before, after, by_row=by_row), principal_angles(before, after, by_row=by_row), level)
