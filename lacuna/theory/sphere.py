"""Points drawn uniformly on the unit sphere: the largest of n coordinates, and what a subspace holds of them.

In float64 on the host.

A point z / |z| with z ~ N(0, I_k) is uniform on the sphere S^(k-1), and its coordinate along any fixed
direction u has the law `X = <u, z> / |z|`, `X^2 ~ Beta(1/2, (k-1)/2)`. With `T = sqrt(k-1) X / sqrt(1 - X^2)`,
a normal over an independent root mean square of k-1 others, T is Student's t with k-1 degrees of freedom, so

    X = T / sqrt(k-1 + T^2),

and the quantile of X follows from the small tail of T without cancellation. The law of the maximum is that of
`lacuna.theory.maxima`. For k = 1 the coordinate is a random sign, for k = 2 `cos(pi s)` at the survival s, for
k = 3 uniform on [-1, 1]; as k grows, `sqrt(k) X` becomes a standard normal, with an error of the order 1/k.

No coordinate exceeds one: once n outgrows `exp(k / 2)` the maximum saturates, where a normal one goes on to grow.

Source: classical; what it says of searches at an exact radius is ours.
"""

import numpy as np
from jaxtyping import Real
from numpy.typing import NDArray

from lacuna.errors import InvalidInput
from lacuna.theory import maxima
from lacuna.theory.maxima import Count, Double, Quantile


def expected_max_coordinate(n: Count, dimension: int, *, both_signs: bool = False) -> Double:
    """`E M`, M the largest coordinate along one direction of n points drawn uniformly on the unit sphere.

    A coordinate is `X = T / sqrt(k-1 + T^2)`, T Student's t with k-1 degrees of freedom (a normal over the root
    mean square of k-1 others). Its quantile F^-1 gives that of M, `M(q) = F^-1(q^(1/n))`, and
    `E M = int_0^1 M(q) dq`, by the trapezoid rule of `expected_max`. For k = 1, X is a random sign and M is -1
    only if all n are: `E M = 1 - 2^(1-n)`.

    Args:
      n: how many draws; an integer, or an array of integers (a best-of-N curve).
      dimension: k >= 1, of the space in which the sphere S^(k-1) lies.
      both_signs: M is `max_i |X_i|`: every point was tried with both signs.

    Returns:
      The expected maximum in units of the radius, float64, in the shape of `n`, never above one; relative error
      below 1e-10 for n up to 1e7 and k up to 1e9. Zero for n = 1 with one sign.

    Raises:
      InvalidInput: n or the dimension is not a positive integer.

    Source: classical order statistics; the sphere is ours.
    """
    return _moment(*_checked("expected_max_coordinate", n, dimension), 1, both_signs)


def expected_max_coordinate_square(n: Count, dimension: int, *, both_signs: bool = False) -> Double:
    """`E M^2`, M the largest coordinate along one direction of n points drawn uniformly on the unit sphere.

    M at its quantile q is `M(q) = F^-1(q^(1/n))`, F^-1 the quantile of one coordinate `T / sqrt(k-1 + T^2)`, and q
    is uniform, so `E M^2 = int_0^1 M(q)^2 dq`. One draw has 1/k, for its k squares add up to one. For k = 1 every
    square is one.

    Args:
      n: how many draws; an integer, or an array of integers.
      dimension: k >= 1, of the space in which the sphere S^(k-1) lies.
      both_signs: M is `max_i |X_i|`.

    Returns:
      The second moment about zero in units of the squared radius, float64, in the shape of `n`; exact like
      `expected_max_coordinate`.

    Raises:
      InvalidInput: n or the dimension is not a positive integer.

    Source: classical order statistics; the sphere is ours.
    """
    return _moment(*_checked("expected_max_coordinate_square", n, dimension), 2, both_signs)


def max_coordinate_quantile(
    n: Count, dimension: int, q: Real[np.ndarray, "..."] | float, *, both_signs: bool = False
) -> Double:
    """Quantile q of the largest coordinate along one direction of n points uniform on the unit sphere.

    `P(M <= x) = F(x)^n = q` gives `F^-1(q^(1/n))`; with both signs `(2 F(x) - 1)^n = q` gives
    `F^-1((1 + q^(1/n)) / 2)`. F^-1 is that of `T / sqrt(k-1 + T^2)`, T Student's t with k-1 degrees of freedom.
    For k = 1 M is -1 with probability 2^-n: the quantile is the least x with `P(M <= x) >= q`.

    Args:
      n: how many draws; an integer, or an array of integers.
      dimension: k >= 1, of the space in which the sphere S^(k-1) lies.
      q: probabilities in [0, 1], numbers on the host, fixed beforehand like `n`; broadcast against it.
      both_signs: the maximum of `|X|`.

    Returns:
      Quantiles in [-1, 1], float64, in units of the radius.

    Raises:
      InvalidInput: n or the dimension is not a positive integer, or q is outside [0, 1].

    Source: classical order statistics; the sphere is ours.
    """
    n, dimension = _checked("max_coordinate_quantile", n, dimension)
    with np.errstate(divide="ignore"):
        log_q = np.log(maxima.probabilities("max_coordinate_quantile", q))
    if dimension == 1:
        return np.where(both_signs | (log_q > -n * np.log(2.0)), 1.0, -1.0)[()]
    return maxima.quantile_of_max(_quantile(dimension), n, log_q, both_signs=both_signs)


def mass_quantile(rank: int, dimension: int, q: Real[np.ndarray, "..."] | float) -> Double:
    """Quantile q of the capture mass of a fixed vector by a uniformly random subspace.

    To turn the subspace is to turn the vector: its mass is that of the first k of P coordinates of a point uniform on
    the unit sphere, `(z_1^2 + ... + z_k^2) / |z|^2` with z ~ N(0, I_P), and so has the law Beta(k / 2, (P - k) / 2),
    with mean k / P.

    Args:
      rank: k, of the subspace, from 0 to P.
      dimension: P.
      q: probabilities in [0, 1], numbers on the host.

    Returns:
      Quantiles in [0, 1], float64, in the shape of `q`.

    Raises:
      InvalidInput: the dimension is not a positive integer, the rank is not in 0..P, or q is outside [0, 1].
    """
    dimension = maxima.count_of("mass_quantile", "dimension", dimension)
    if not 0 <= rank <= dimension:
        raise InvalidInput("mass_quantile needs a rank from 0 to the dimension", got=f"{rank} in {dimension}")
    q = maxima.probabilities("mass_quantile", q)
    if rank in (0, dimension):
        return np.full(q.shape, float(rank > 0))[()]
    from scipy import special

    return special.betaincinv(rank / 2, (dimension - rank) / 2, q)


def _checked(asked: str, n: object, dimension: object) -> tuple[NDArray[np.int64], int]:
    return maxima.counts(asked, n), maxima.count_of(asked, "dimension", dimension)


def _moment(n: NDArray[np.int64], dimension: int, power: int, both_signs: bool) -> Double:
    if dimension == 1:  # a sign: its quantile jumps, and no quadrature is needed
        missed = 0.0 if both_signs or power == 2 else np.exp2(1.0 - n)
        return (np.ones(n.shape) - missed)[()]
    return maxima.moment_of_max(_quantile(dimension), n, power, both_signs=both_signs)


def _quantile(dimension: int) -> Quantile:
    """Of one coordinate in two dimensions or more."""
    from scipy import special  # a quarter of a second, which only a sphere has to wait for

    def quantile(offset: Double, tail: Double) -> Double:
        with np.errstate(divide="ignore"):
            t = special.stdtrit(dimension - 1, tail)
            return np.copysign(1 / np.sqrt(1 + (dimension - 1) / (t * t)), offset)

    return quantile
