"""How many directions a set of vectors really has.

Source: effective rank after Roy and Vetterli (2007), here of the squared singular values; stable rank after Rudelson
and Vershynin (2007).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lacuna.geometry.basis import triangularise
from lacuna.geometry.status import kernel
from lacuna.types import Rows


class Spectrum(NamedTuple):
    """Singular values of stacked rows and what they say; `p_i = s_i^2 / sum s^2`.

    All of these are bounded by the number of rows: compare them at equal numbers.

    Attributes:
      singular_values: descending, float32[k].
      effective_rank: `exp(-sum p_i ln p_i)`.
      participation_ratio: `1 / sum p_i^2`.
      stable_rank: `sum s_i^2 / s_1^2`.
      top_energy: share of the first j of them in the sum of squares, float32[k].
      status: as the basis of the rows has it; the ranks are 0 for rows that are all zero, NaN if not finite.
    """

    singular_values: Float[Array, "k"]
    effective_rank: Float[Array, ""]
    participation_ratio: Float[Array, ""]
    stable_rank: Float[Array, ""]
    top_energy: Float[Array, "k"]
    status: Int[Array, ""]


@kernel()
def spectrum(rows: Rows, *, by_row: bool = False) -> Spectrum:
    """Singular values of the k x P matrix of rows.

    They are those of the k x k triangular factor, accurate to a few eps of the largest; the eigenvalues of the
    Gram matrix would lose all below sqrt(eps). What a dependent row has outside of the span is left out: 64 eps
    of its length at most, so a value that should be that small reads as zero.

    Args:
      rows: k vectors, k at least 1.

    Raises:
      GeometryError: rows of no common tree, or (eagerly) not finite; names the leaf.
    """
    basis, coefficients, _ = triangularise(rows, by_row=by_row)
    return spectrum_of(jnp.linalg.svd(coefficients, compute_uv=False), basis.status)


def spectrum_of(singular_values: Float[Array, "k"], status: Int[Array, ""] | int = 0) -> Spectrum:
    """The measures of given singular values, descending."""
    largest = jnp.max(singular_values, initial=0.0)
    relative = singular_values / jnp.where(largest > 0, largest, 1.0)
    squares = jnp.square(relative)
    total = jnp.sum(squares)
    some = total > 0
    p = squares / jnp.where(some, total, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    participation = 1 / jnp.where(some, jnp.sum(jnp.square(p)), 1.0)
    effective, participation, stable = (
        jnp.where(some, x, 0.0 * total) for x in (jnp.exp(entropy), participation, total)
    )
    return Spectrum(singular_values, effective, participation, stable, jnp.cumsum(p), jnp.asarray(status, jnp.int32))
