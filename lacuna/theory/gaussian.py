"""The largest of n standard normals: its quantiles and its exact moments, in float64 on the host.

The law of the maximum and the integral over its quantiles are those of `lacuna.theory.maxima`, with the
normal quantile `Phi^-1` of Wichura (1988), taken from whichever tail is small.
"""

import numpy as np
from jaxtyping import Real
from numpy.typing import NDArray

from lacuna.theory import maxima
from lacuna.theory.maxima import Count, Double

# Numerator and denominator, highest power first, of the three rational approximations of Wichura (1988).
# fmt: off
_CENTRE = (
    [2.5090809287301227e3, 3.3430575583588128e4, 6.7265770927008707e4, 4.5921953931549870e4,
     1.3731693765509461e4, 1.9715909503065513e3, 1.3314166789178438e2, 3.3871328727963665],
    [5.2264952788528544e3, 2.8729085735721943e4, 3.9307895800092709e4, 2.1213794301586597e4,
     5.3941960214247511e3, 6.8718700749205789e2, 4.2313330701600911e1, 1.0],
)
_SHOULDER = (
    [7.7454501427834139e-4, 2.2723844989269184e-2, 2.4178072517745061e-1, 1.2704582524523684,
     3.6478483247632045, 5.7694972214606910, 4.6303378461565456, 1.4234371107496835],
    [1.0507500716444169e-9, 5.4759380849953455e-4, 1.5198666563616457e-2, 1.4810397642748008e-1,
     6.8976733498510001e-1, 1.6763848301838038, 2.0531916266377590, 1.0],
)
_TAIL = (
    [2.0103343992922881e-7, 2.7115555687434876e-5, 1.2426609473880784e-3, 2.6532189526576124e-2,
     2.9656057182850487e-1, 1.7848265399172913, 5.4637849111641144, 6.6579046435011033],
    [2.0442631033899397e-15, 1.4215117583164459e-7, 1.8463183175100548e-5, 7.8686913114561329e-4,
     1.4875361290850615e-2, 1.3692988092273581e-1, 5.9983220655588798e-1, 1.0],
)
# fmt: on


def normal_quantile(p: Real[np.ndarray, "..."] | float) -> Double:
    """`Phi^-1(p)`, the value that a standard normal stays below with probability p.

    Relative error 1e-15 for p below 1/2; above, as good as `1 - p` is in float64.

    Args:
      p: probabilities in [0, 1]; 0 and 1 give minus and plus infinity.

    Returns:
      Quantiles, float64, in the shape of `p`.

    Raises:
      InvalidInput: a probability outside [0, 1].

    Source: Wichura (1988), algorithm AS 241.
    """
    p = maxima.probabilities("normal_quantile", p)
    return _signed_quantile(p - 0.5, np.minimum(p, 1 - p))[()]


def max_quantile(n: Count, q: Real[np.ndarray, "..."] | float, *, both_signs: bool = False) -> Double:
    """Quantile q of the maximum of n standard normals, or of the maximum of their absolute values.

    `P(M <= x) = Phi(x)^n = q` gives `Phi^-1(q^(1/n))`; with both signs `(2 Phi(x) - 1)^n = q` gives
    `Phi^-1((1 + q^(1/n)) / 2)`. Keeps its 15 digits at any n, because it never forms `1 - q^(1/n)`.

    Args:
      n: how many draws; an integer, or an array of integers.
      q: probabilities in [0, 1], numbers on the host, fixed beforehand like `n`; broadcast against it.
      both_signs: the maximum of `|Z|` over n draws, each of them tried with both signs.

    Returns:
      Quantiles, float64, in units of one standard deviation.

    Raises:
      InvalidInput: n is not a positive integer, or q is outside [0, 1].

    Source: classical order statistics (David & Nagaraja, Order Statistics, section 2.1).
    """
    n = maxima.counts("max_quantile", n)
    q = maxima.probabilities("max_quantile", q)
    with np.errstate(divide="ignore"):
        return maxima.quantile_of_max(_signed_quantile, n, np.log(q), both_signs=both_signs)


def expected_max(n: Count) -> Double:
    """`m1 = E max of n standard normals`, exact to float64 rounding (relative error below 1e-14).

    `E M = int_0^1 Phi^-1(q^(1/n)) dq`; with `q = exp(-e^s)` the integrand decays doubly exponentially on
    one side, exponentially on the other and is analytic in a strip of half-width pi/2, so the trapezoid
    rule in s converges to rounding with 176 nodes, whatever n is.

    Args:
      n: how many draws; an integer, or an array of integers (a best-of-N curve).

    Returns:
      The expected maximum in standard deviations, float64, in the shape of `n`. Zero for n = 1.

    Raises:
      InvalidInput: n is not a positive integer.

    >>> expected_max(np.array([1, 2, 1024])).round(3).tolist()
    [0.0, 0.564, 3.248]

    Source: classical order statistics; the factor E[max of N] of arXiv 2606.10929, Theorem 1.
    """
    return maxima.moment_of_max(_signed_quantile, maxima.counts("expected_max", n), 1, both_signs=False)


def expected_max_abs(n: Count) -> Double:
    """`E max_i |Z_i|` over n standard normals: the factor when every draw is tried with both signs.

    As `P(|Z| <= x) = 2 Phi(x) - 1`, `P(max |Z_i| <= x) = (2 Phi(x) - 1)^n = q` at `Phi^-1((1 + q^(1/n)) / 2)`,
    and `E max |Z_i|` is the integral of this quantile over q, taken like that of `expected_max`. It is not
    `expected_max(2 n)`: the two signs of one draw are not independent (2 draws: 1.128 against 1.029).

    Args:
      n: how many draws (pairs, not evaluations); an integer, or an array of integers.

    Returns:
      The expected maximum in standard deviations, float64, in the shape of `n`; `sqrt(2 / pi)` for n = 1.

    Raises:
      InvalidInput: n is not a positive integer.

    Source: classical order statistics.
    """
    return maxima.moment_of_max(_signed_quantile, maxima.counts("expected_max_abs", n), 1, both_signs=True)


def expected_max_square(n: Count, *, both_signs: bool = False) -> Double:
    """`m2 = E M^2`, with M the maximum of n standard normals or of their absolute values.

    M at its quantile q is `M(q) = Phi^-1(q^(1/n))`, or `Phi^-1((1 + q^(1/n)) / 2)` with both signs, and q is
    uniform, so `E M^2 = int_0^1 M(q)^2 dq`. A draw has `E Z^2 = 1` along any direction; the winner of N has
    m2 along the gradient, so curvature there counts `m2 - 1` times more (9.7 at N = 1,024).

    Args:
      n: how many draws; an integer, or an array of integers.
      both_signs: M is `max_i |Z_i|`.

    Returns:
      The second moment about zero, float64, in the shape of `n`. One for n = 1 (and for n = 2 with one sign).

    Raises:
      InvalidInput: n is not a positive integer.

    Source: classical order statistics.
    """
    n = maxima.counts("expected_max_square", n)
    return maxima.moment_of_max(_signed_quantile, n, 2, both_signs=both_signs)


def asymptotic_max(n: Count, *, both_signs: bool = False) -> Double:
    """`sqrt(2 ln n)`, the textbook growth of the maximum; `sqrt(2 ln 2n)` with both signs.

    From `n (1 - Phi(x)) = 1` with `1 - Phi(x) ~ exp(-x^2 / 2)`. Drawn beside the exact value and never used
    in its place: it overstates by 40 % at n = 10, by 12 % at n = 5,000 and still by 6 % at n = 1e9.

    Args:
      n: how many draws; an integer, or an array of integers.
      both_signs: 2 n values, of n draws and their negatives.

    Returns:
      The asymptote in standard deviations, float64, in the shape of `n`.

    Raises:
      InvalidInput: n is not a positive integer.

    Source: arXiv 2606.10929, Theorem 1 (its asymptotic form); classical extreme values.
    """
    n = maxima.counts("asymptotic_max", n)
    return np.sqrt(2 * np.log(2.0 * n if both_signs else n))[()]


def _signed_quantile(offset: Double, tail: Double) -> NDArray[np.float64]:
    """`Phi^-1(p)` from `p - 1/2` and `min(p, 1 - p)`, each of which the caller has without cancellation."""
    with np.errstate(divide="ignore"):
        depth = np.sqrt(-np.log(tail))
    # An infinite depth would be inf / inf in the rationals; the largest finite tail in float64 is at 27.3.
    finite = np.minimum(depth, 30.0)
    centre = offset * _rational(_CENTRE, 0.180625 - offset * offset)
    flank = np.where(finite <= 5, _rational(_SHOULDER, finite - 1.6), _rational(_TAIL, finite - 5))
    outer = np.copysign(np.where(np.isinf(depth), np.inf, flank), offset)
    return np.where(np.abs(offset) <= 0.425, centre, outer)


def _rational(coefficients: tuple[list[float], list[float]], x: Double) -> Double:
    numerator, denominator = coefficients
    return np.polyval(numerator, x) / np.polyval(denominator, x)
