"""What the best of N random steps gains on a smooth loss, to second order in the step size.

Around a point with gradient a and Hessian H, a step `sigma z` with z ~ N(0, I) changes the loss by
`sigma <a, z> + sigma^2/2 z^T H z + O(sigma^3)`. Write `z = -M u + w` with `u = a / |a|` and w orthogonal to
u: the first-order term sees only M, so the draw of least loss is, to leading order, the one of largest M,
and M is the maximum of N standard normals whatever the dimension. Its w is independent of M and keeps its
law N(0, I - u u^T), so the winner has

    E[z^T H z | M] = M^2 u^T H u + tr(H (I - u u^T)) = tr H + (M^2 - 1) u^T H u,

the cross term -2 M u^T H w having mean zero. Along the gradient the winner is no typical draw: `E M^2` is
10.7 at N = 1,024. With both signs of each draw, M is the maximum of |Z| and nothing else changes.

On a sphere of radius r in k dimensions (`dimension=k`) a step is `r z`, |z| = 1. M is then the largest of N
coordinates of such points (`lacuna.theory.sphere`), and of the length one `1 - M^2` is left for w, whose
direction is uniform in the k - 1 dimensions orthogonal to u:

    E[z^T H z | M] = M^2 u^T H u + (1 - M^2) / (k - 1) (tr H - u^T H u),

with no second part for k = 1. Both laws are one formula in p, the variance of w along one direction orthogonal
to u, 1 or `(1 - M^2) / (k - 1)`: `E[z^T H z | M] = p tr H + (M^2 - p) u^T H u`.

a and H belong to the batch that is scored; for a search in a basis Q they are Q a and Q H Q^T. Neglected is
the winner's preference for draws of small `z^T H z`: it adds a little gain, of order
`sigma^3 Var(z^T H z) / |a|`, the order at which the expansion of the loss stops anyway.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

from lacuna.errors import InvalidInput
from lacuna.theory import gaussian, sphere
from lacuna.theory.maxima import Count, Double

Number = int | float | np.number | Real[np.ndarray, "..."] | Real[Array, "..."]
"""A real number or an array of them; may be traced."""


class _Winner(NamedTuple):
    """What a gain reads of the winner's step at unit scale, or of its mean over searches.

    Attributes:
      along: M, its part along the gradient.
      across: p, its variance along one direction orthogonal to the gradient.
      excess: `M^2 - p`.
    """

    along: Float[Array, "..."]
    across: Float[Array, "..."]
    excess: Float[Array, "..."]


def best_of_n_gain(
    n: Count,
    sigma: Number,
    gradient_norm: Number,
    curvature_trace: Number = 0.0,
    gradient_curvature: Number = 0.0,
    *,
    both_signs: bool = False,
    dimension: int | None = None,
) -> Float[Array, "..."]:
    """Expected gain `E[base loss - least loss of n draws]` at step size sigma.

    The mean over M of `sigma |a| M - sigma^2/2 E[z^T H z | M]` (derived above), that is

        sigma |a| m1 - sigma^2/2 [tr H + (m2 - 1) u^T H u] + O(sigma^3),   m1 = E M, m2 = E M^2.

    The dimension enters through tr H alone. Without curvature this is Theorem 1 with the exact `E M` in
    the place of `sqrt(2 ln n)`.

    On a sphere in k = `dimension` dimensions sigma is the length r of every step: of `|z|^2 = 1` the winner
    spends M^2 along u and `(1 - M^2) / (k - 1)` along each direction orthogonal to it, so

        r |a| m1 - r^2/2 [m2 u^T H u + (1 - m2) / (k - 1) (tr H - u^T H u)] + O(r^3),

    m1 and m2 those of the largest sphere coordinate; in first order never above `r |a|`. Differentiable in
    everything but n and the dimension; all other arguments broadcast.

    Breaks once `sigma M u^T H u > |a|`: steps along the gradient then overshoot, the largest M no longer
    wins, and a search gains more than this says.

    Args:
      n: how many draws, static; an integer, or an array of integers (a best-of-N curve).
      sigma: standard deviation of a step per coordinate, in units of the parameters; with `dimension` its length.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit; a Hutchinson estimate will do.
      gradient_curvature: `u^T H u` along the unit gradient, same unit; one Hessian-vector product.
      both_signs: every draw was scored at `+z` and at `-z`; n counts draws, not scores.
      dimension: k of the sphere on which the steps lie, static; None for Gaussian steps.

    Returns:
      The expected gain in units of the loss, float32; negative where curvature costs more than luck brings.

    Raises:
      InvalidInput: n or the dimension is not a positive integer.

    Source: arXiv 2606.10929, Theorem 1; the second-order term is ours (classical order statistics).
    """
    winner = _expected_winner(n, dimension, both_signs)
    return _gain(winner, *_float32(sigma, gradient_norm, curvature_trace, gradient_curvature))


def best_of_n_band(
    n: Count,
    sigma: Number,
    gradient_norm: Number,
    curvature_trace: Number = 0.0,
    gradient_curvature: Number = 0.0,
    *,
    both_signs: bool = False,
    level: float = 0.99,
    curvature_trace_error: Number = 0.0,
    dimension: int | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Interval that holds the gain of one search of n draws with probability `level`, at least.

    M lies between its quantiles `F^-1(q^(1/n))`, q = (1 -+ level) / 2, with probability `level`; the band is the
    range on that interval of `g(M) = sigma |a| M - sigma^2/2 E[z^T H z | M]`, the last factor `tr H + (M^2 - 1)
    u^T H u` or, on a sphere, `M^2 u^T H u + (1 - M^2) / (k - 1) (tr H - u^T H u)`. g is a parabola, so the range
    is spanned by the two ends and by the vertex where it lies inside. Exactly `level` while g is monotone
    there, more once the vertex is inside.

    Not in the band: the spread of `z^T H z` at fixed M, `sqrt(2 tr H^2)` and less than `tr H` by the root of
    the number of directions that share the curvature; and anything of order sigma^3.

    Args:
      n: how many draws, static; an integer, or an array of integers.
      sigma: standard deviation of a step per coordinate, in units of the parameters, or with `dimension` its
        length; not negative.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      gradient_curvature: `u^T H u` along the unit gradient, same unit.
      both_signs: every draw was scored at `+z` and at `-z`.
      level: probability that M lies in its interval, in (0, 1); static, a number on the host.
      curvature_trace_error: standard error of the estimate of tr H. It moves both ends outwards by
        `z sigma^2/2 p error` with `z = Phi^-1((1 + level) / 2)` and p one, or on a sphere the largest
        `(1 - M^2) / (k - 1)` in the interval; added linearly, so on the wide side.
      dimension: k of the sphere on which the steps lie, static; None for Gaussian steps.

    Returns:
      (low, high) in units of the loss, float32, low <= high, in the broadcast shape of all arguments.

    Raises:
      InvalidInput: n or the dimension is not a positive integer, or the level is outside (0, 1).

    Source: arXiv 2606.10929, Theorem 1; classical order statistics. The band is ours.
    """
    if not (isinstance(level, float) and level > 0 and (1 + level) / 2 < 1):
        raise InvalidInput("best_of_n_band needs a level between 0 and 1", got=level, hint="level=0.99")
    ends = (_winner_at(n, q, dimension, both_signs) for q in ((1 - level) / 2, (1 + level) / 2))
    deviations = gaussian.normal_quantile((1 + level) / 2)
    return _band(
        *ends,
        _float32(*_variance_across(dimension)),
        *_float32(deviations * curvature_trace_error, sigma, gradient_norm, curvature_trace, gradient_curvature),
    )


def best_sigma(
    n: Count,
    gradient_norm: Number,
    curvature_trace: Number,
    gradient_curvature: Number,
    *,
    both_signs: bool = False,
    dimension: int | None = None,
) -> Float[Array, "..."]:
    """The sigma that maximises the expected gain of n draws: `|a| m1 / [tr H + (m2 - 1) u^T H u]`.

    The zero of the derivative in sigma of `best_of_n_gain`, whose second derivative is minus the bracket. On a
    sphere in k = `dimension` dimensions the bracket is `m2 u^T H u + (1 - m2) / (k - 1) (tr H - u^T H u)`, with
    the m1 and m2 of sphere coordinates, and the answer is a length.

    Where the bracket is not positive there is no maximum, the second-order gain only grows, and the answer
    is infinity: read it as "the quadratic model sets no limit here", not as a step to take.

    Args:
      n: how many draws, static; an integer, or an array of integers.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      gradient_curvature: `u^T H u` along the unit gradient, same unit.
      both_signs: every draw is scored at `+z` and at `-z`.
      dimension: k of the sphere on which the steps lie, static; None for Gaussian steps.

    Returns:
      The best standard deviation of a step per coordinate, or with `dimension` the best length, float32; infinity
      where there is none. Zero for n = 1 with one sign and positive curvature: a single blind step is better
      not taken.

    Raises:
      InvalidInput: n or the dimension is not a positive integer.

    Source: arXiv 2606.10929, Theorem 1, with our second-order term.
    """
    winner = _expected_winner(n, dimension, both_signs)
    return _best_sigma(winner, *_float32(gradient_norm, curvature_trace, gradient_curvature))


@jax.jit
def _gain(
    winner: _Winner,
    sigma: Float[Array, "..."],
    gradient_norm: Float[Array, "..."],
    curvature_trace: Float[Array, "..."],
    gradient_curvature: Float[Array, "..."],
) -> Float[Array, "..."]:
    """`sigma |a| M - sigma^2/2 [p tr H + (M^2 - p) u^T H u]`."""
    bracket = winner.across * curvature_trace + winner.excess * gradient_curvature
    return sigma * (gradient_norm * winner.along - sigma / 2 * bracket)  # no square of sigma to leave float32


@jax.jit
def _band(
    lowest: _Winner,
    highest: _Winner,
    across: tuple[Float[Array, ""], Float[Array, ""]],
    trace_margin: Float[Array, "..."],
    sigma: Float[Array, "..."],
    gradient_norm: Float[Array, "..."],
    curvature_trace: Float[Array, "..."],
    gradient_curvature: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Least and largest gain for M between two ends, each moved outwards by what the trace may be off."""
    constant, by_square = across
    slope = sigma * gradient_norm
    bend = sigma**2 * (gradient_curvature - by_square * (curvature_trace - gradient_curvature))
    # A straight line has no vertex; any number clipped into the interval leaves its ends in charge.
    vertex = jnp.where(bend == 0, lowest.along, slope / jnp.where(bend == 0, 1, bend))
    # Where the vertex lies inside the gain is stationary in M, elsewhere the clip is: no derivative goes this way.
    m = lax.stop_gradient(jnp.clip(vertex, lowest.along, highest.along))
    p = constant - by_square * m**2
    gains = [
        _gain(winner, sigma, gradient_norm, curvature_trace, gradient_curvature)
        for winner in (lowest, highest, _Winner(m, p, m**2 - p))
    ]
    # The trace counts p times, the most where M is nearest to zero.
    most = constant - by_square * jnp.clip(0, lowest.along, highest.along) ** 2
    margin = sigma**2 / 2 * most * trace_margin
    return reduce(jnp.minimum, gains) - margin, reduce(jnp.maximum, gains) + margin


@jax.jit
def _best_sigma(
    winner: _Winner,
    gradient_norm: Float[Array, "..."],
    curvature_trace: Float[Array, "..."],
    gradient_curvature: Float[Array, "..."],
) -> Float[Array, "..."]:
    bracket = winner.across * curvature_trace + winner.excess * gradient_curvature
    # The `where` in the denominator keeps gradients through the branch not taken finite; a NaN stays one.
    peak = winner.along * gradient_norm / jnp.where(bracket <= 0, 1, bracket)
    return jnp.where(bracket <= 0, jnp.inf, peak)


def _expected_winner(n: Count, dimension: int | None, both_signs: bool) -> _Winner:
    """Means over searches: `m1`, p at m2, and `m2 - p`."""
    if dimension is None:
        m1 = gaussian.expected_max_abs(n) if both_signs else gaussian.expected_max(n)
        return _winner(m1, gaussian.expected_max_square(n, both_signs=both_signs), None)
    m1 = sphere.expected_max_coordinate(n, dimension, both_signs=both_signs)
    return _winner(m1, sphere.expected_max_coordinate_square(n, dimension, both_signs=both_signs), dimension)


def _winner_at(n: Count, q: float, dimension: int | None, both_signs: bool) -> _Winner:
    """The winner whose M is at its quantile q."""
    if dimension is None:
        m = gaussian.max_quantile(n, q, both_signs=both_signs)
    else:
        m = sphere.max_coordinate_quantile(n, dimension, q, both_signs=both_signs)
    return _winner(m, m**2, dimension)


def _winner(m: Double, square: Double, dimension: int | None) -> _Winner:
    """In float32; the differences are taken in float64, before the cast."""
    constant, by_square = _variance_across(dimension)
    across = constant - by_square * square
    return _Winner(*_float32(m, across, square - across))


def _variance_across(dimension: int | None) -> tuple[float, float]:
    """p as a function of M: the constant, and what each M^2 takes from it."""
    if dimension is None:
        return 1.0, 0.0
    each = 1 / (dimension - 1) if dimension > 1 else 0.0
    return each, each


def _float32(*values: Number) -> tuple[Float[Array, "..."], ...]:
    return tuple(jnp.asarray(value, jnp.float32) for value in values)
