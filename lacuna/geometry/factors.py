"""Triangular factors of rows from their inner products: nothing of the size of the parameters is made.

Source: CholeskyQR2, Yamamoto, Nakatsukasa, Yanagisawa and Fukaya (2015).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lacuna.geometry import rows as ops
from lacuna.types import Rows


class Factors(NamedTuple):
    """Rows as `coefficients` times the orthonormal rows `second (first rows)`, all three lower triangular.

    Attributes:
      fit: whether the rows are finite, independent and well enough conditioned for all of this to be right, bool[].
      coefficients: of the rows on the orthonormal ones.
      first: makes them orthonormal but for the rounding of their inner products.
      second: removes that; the identity where there is nothing to remove.
      twice: whether there was, bool[].
    """

    fit: Bool[Array, ""]
    coefficients: Float[Array, "k k"]
    first: Float[Array, "k k"]
    second: Float[Array, "k k"]
    twice: Bool[Array, ""]


LARGEST_INVERSE = 2.0**12
"""Of inner products, as cosines: the trace of their inverse. No row has then less than 1 / 64 of its length outside of
the span of the others, and rows made orthonormal once are so to 2^12 eps, which the second time squares away."""

SAFE_SQUARE = 1e20
"""Squared lengths between its reciprocal and this lose nothing to underflow, and nothing overflows."""


def factors(rows: Rows, floor: Float[Array, ""] | float = 0.0) -> Factors:
    """The factors of rows that are whole on one device. Reads them once, or twice where they are far from orthogonal.

    Args:
      rows: k vectors.
      floor: a length outside of the span of the rows before below which a row does not fit.
    """
    k = ops.check_rows(rows)
    identity = jnp.eye(k)
    products = ops.gram_in_blocks(rows, rows)
    squares = jnp.diagonal(products)
    lengths = jnp.sqrt(squares)
    cosines = products / lengths[:, None] / lengths
    lower, inverse = _cholesky(cosines)
    first = inverse / lengths
    safe = jnp.all((squares > 1 / SAFE_SQUARE) & (squares < SAFE_SQUARE))
    fit = safe & (jnp.sum(jnp.square(inverse)) < LARGEST_INVERSE)
    # Closer to orthogonal than this, no eigenvalue of the cosines is below 1/2: their rounding is doubled at most.
    twice = fit & ~(jnp.sum(jnp.square(cosines - identity)) < 0.25)
    below, second = lax.cond(twice, lambda: _cholesky(ops.gram_of_combined(first, rows)), lambda: (identity, identity))
    coefficients = lengths[:, None] * ops.product(lower, below)
    fit &= jnp.all(jnp.diagonal(coefficients) > floor)
    return Factors(fit, coefficients, first, second, twice)


def _cholesky(gram: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    """The lower triangular factor and its inverse; NaN where there is none."""
    lower = jnp.linalg.cholesky(gram)
    return lower, jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(gram)), lower=True)
