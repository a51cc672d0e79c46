"""The subspace in which a set of gradients has most of its energy.

Source: arXiv 2606.10929.
"""

import jax
import jax.numpy as jnp

from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import DROP, Basis, triangularise
from lacuna.geometry.status import Status, flag, kernel
from lacuna.types import Rows


@kernel("rank")
def gradient_basis(gradients: Rows, *, rank: int, by_row: bool = False) -> Basis:
    """The `rank` leading right singular directions of stacked gradients, strongest first.

    The gradients are orthonormalised, their k x k triangular factor is decomposed, and the basis is rotated by
    it. The eigenvectors of the Gram matrix would be cheaper and wrong: at float32 they mix all directions below
    some thousandths of the largest singular value. No k x P factorisation is made.

    Args:
      gradients: one for each task (or minibatch), k rows.
      rank: how many directions, at most k.

    Returns:
      A basis with room for `rank` rows. Directions whose singular value is rounding beside the largest are
      dropped (DEPENDENT).

    Raises:
      GeometryError: a rank above the number of gradients, or (eagerly) one that is not finite; names the leaf.
    """
    k = ops.check_rows(gradients)
    ops.check_rank(rank)
    if rank > k:
        raise GeometryError("rank must be at most the number of gradients", got=f"rank {rank} of {k} gradients")
    if not k:
        return triangularise(gradients, method="gradient").basis
    small = ops.divide(gradients, ops.power_of_two(ops.largest(gradients)))
    basis, coefficients, _ = triangularise(small, by_row=by_row)
    finite = (basis.status & Status.NOT_FINITE) == 0
    _, values, turned = jnp.linalg.svd(jnp.where(finite, coefficients, 0.0), full_matrices=False)
    resolved = values[:rank] > DROP * values[0]
    leading = jnp.where(resolved[:, None], turned[:rank], 0.0)
    found = triangularise(ops.combine(leading, basis.rows), method="gradient", by_row=by_row).basis
    zero = basis.status & Status.ZERO if rank else jnp.int32(0)
    status = flag(Status.DEPENDENT, found.rank < rank) | flag(Status.NOT_FINITE, ~finite)
    status |= jnp.where(found.rank < rank, zero, 0)
    rows = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), found.rows)
    return Basis(rows, jnp.where(finite, found.rank, 0), status, "gradient")
