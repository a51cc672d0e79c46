"""What a search in a subspace gains: which subspaces are best depends on what the size of a step counts."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from lacuna.errors import InvalidInput
from lacuna.theory import maxima
from lacuna.theory.best_of_n import Number, best_of_n_gain
from lacuna.theory.maxima import Count

Unit = Literal["sigma", "rms_radius", "exact_radius"]
"""What the size of a step counts: the standard deviation of each coordinate, the root mean square length of a
step, or the length of every step."""


def subspace_gain(
    n: Count,
    size: Number,
    signal_mass: Number,
    rank: int,
    curvature_trace: Number = 0.0,
    gradient_curvature: Number = 0.0,
    *,
    unit: Unit = "sigma",
    both_signs: bool = False,
) -> Float[Array, "..."]:
    """Expected gain of the best of n random steps in the span of a basis Q of rank k and signal mass `|Q a|^2`.

    A step `Q^T z` changes the loss by `<Q a, z> + z^T Q H Q^T z / 2`: `best_of_n_gain` in k dimensions, with the
    gradient norm `sqrt(mass)`. To first order, with m1 the mean of the largest of n normals,

        sigma          z ~ N(0, sigma^2 I)     sigma sqrt(mass) m1        the signal mass ranks the subspaces
        rms_radius     sigma = r / sqrt(k)     r sqrt(mass / k) m1        the signal density mass / k does
        exact_radius   |z| = r                 r sqrt(mass) E X_k         between the two, and at most r sqrt(mass)

    with X_k the largest of n coordinates on the unit sphere in k dimensions. `E X_k` is about `m1 / sqrt(k)`, so
    that density ranks, only while k is well above 2 ln n; once n outgrows `exp(k / 2)` it nears one and mass ranks.
    The rms radius has no such limit, because its longest draws are far longer than r: in one dimension m1 times.

    Args:
      n: how many draws, static; an integer, or an array of integers (a best-of-N curve).
      size: of a step, in units of the parameters and of what `unit` counts.
      signal_mass: `|Q a|^2`, not negative; `lacuna.geometry.signal` measures it.
      rank: k, dimension of the subspace, static.
      curvature_trace: `tr(Q H Q^T)`, loss per squared unit.
      gradient_curvature: `u^T H u` along the unit vector u of `Q^T Q a`, same unit.
      unit: what the size counts; the units of `lacuna.search.Sweep`.
      both_signs: every draw was scored at `+z` and at `-z`.

    Returns:
      The expected gain in units of the loss, float32; all arguments but the rank broadcast.

    Raises:
      InvalidInput: n or the rank is not a positive integer, or the unit is none of the three.

    Source: arXiv 2606.10929, Proposition 1 and Theorem 1; the exact radius and the second order are ours.
    """
    if unit not in get_args(Unit):
        raise InvalidInput(f"subspace_gain needs a unit that is one of {', '.join(get_args(Unit))}", got=f"`{unit}`")
    rank = maxima.count_of("subspace_gain", "rank", rank)
    slope = jnp.sqrt(jnp.asarray(signal_mass, jnp.float32))
    sigma = jnp.asarray(size, jnp.float32) / (rank**0.5 if unit == "rms_radius" else 1.0)
    dimension = rank if unit == "exact_radius" else None
    return best_of_n_gain(
        n, sigma, slope, curvature_trace, gradient_curvature, both_signs=both_signs, dimension=dimension
    )
