"""The subspace in which a set of gradients has most of its energy."""

import jax
import jax.numpy as jnp

from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import Basis, triangularise
from lacuna.geometry.status import Status, flag, kernel
from lacuna.types import Rows

RESOLVED = ops.EPS**0.5
"""A singular value below this share of the largest is lost in the rounding of a float32 Gram matrix."""


@kernel("rank")
def gradient_basis(gradients: Rows, *, rank: int, by_row: bool = False) -> Basis:
    """The `rank` leading left singular directions of stacked gradients, strongest first.

    The eigenvectors of the k x k Gram matrix are used as a rotation and nothing more; orthonormalisation
    follows, so the rows are orthonormal to rounding whatever the conditioning. No k x P factorisation is made.

    Args:
      gradients: one for each task (or minibatch), k rows.
      rank: how many directions, at most k.

    Returns:
      A basis with room for `rank` rows. Directions whose singular value is below sqrt(eps) of the largest
      cannot be told from rounding and are dropped (DEPENDENT); `orthonormalise` keeps them.

    Raises:
      GeometryError: a rank above the number of gradients, or (eagerly) one that is not finite; names the leaf.
    """
    k = ops.check_rows(gradients)
    if not 0 <= rank <= k:
        raise GeometryError("rank must be between 0 and the number of gradients", got=f"rank {rank} of {k} gradients")
    size = ops.power_of_two(ops.largest(gradients))
    small = ops.divide(gradients, size)
    products = ops.gram(small)
    finite = jnp.all(jnp.isfinite(products))
    # Not finite: the rotation is irrelevant, but the eigensolver must not see NaN; the rows carry it on.
    values, vectors = jnp.linalg.eigh(jnp.where(finite, products, jnp.eye(k)))
    leading = jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), ops.combine(vectors.T[::-1][:rank], small))
    floor = RESOLVED * jnp.sqrt(jnp.max(values, initial=0.0))
    basis = triangularise(leading, method="gradient", floor=floor, by_row=by_row).basis
    return Basis(basis.rows, basis.rank, basis.status | flag(Status.NOT_FINITE, ~finite), basis.method)
