"""What the best of N random steps gains on a smooth loss, to second order in the step size.

Around a point with gradient a and Hessian H, a step `sigma z` with z ~ N(0, I) changes the loss by
`sigma <a, z> + sigma^2/2 z^T H z + O(sigma^3)`. Write `z = -M u + w` with `u = a / |a|` and w orthogonal to
u: the first-order term sees only M, so the draw of least loss is, to leading order, the one of largest M,
and M is the maximum of N standard normals whatever the dimension. Its w is independent of M and keeps its
law N(0, I - u u^T), so the winner has

    E[z^T H z | M] = M^2 u^T H u + tr(H (I - u u^T)) = tr H + (M^2 - 1) u^T H u,

the cross term -2 M u^T H w having mean zero. Along the gradient the winner is no typical draw: `E M^2` is
10.7 at N = 1,024. With both signs of each draw, M is the maximum of |Z| and nothing else changes.

a and H belong to the batch that is scored; for a search in a basis Q they are Q a and Q H Q^T. Neglected is
the winner's preference for draws of small `z^T H z`: it adds a little gain, of order
`sigma^3 Var(z^T H z) / |a|`, the order at which the expansion of the loss stops anyway.
"""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from lacuna.errors import InvalidInput
from lacuna.theory import gaussian
from lacuna.theory.gaussian import Count

Number = int | float | np.number | Real[np.ndarray, "..."] | Real[Array, "..."]
"""A real number or an array of them; may be traced."""


def best_of_n_gain(
    n: Count,
    sigma: Number,
    gradient_norm: Number,
    curvature_trace: Number = 0.0,
    gradient_curvature: Number = 0.0,
    *,
    both_signs: bool = False,
) -> Float[Array, "..."]:
    """Expected gain `E[base loss - least loss of n draws]` at step size sigma.

    The mean over M of `sigma |a| M - sigma^2/2 E[z^T H z | M]` (derived above), that is

        sigma |a| m1 - sigma^2/2 [tr H + (m2 - 1) u^T H u] + O(sigma^3),   m1 = E M, m2 = E M^2.

    The dimension enters through tr H alone. Without curvature this is Theorem 1 with the exact `E M` in
    the place of `sqrt(2 ln n)`. Differentiable in everything but n; all arguments broadcast.

    Breaks once `sigma M u^T H u > |a|`: steps along the gradient then overshoot, the largest M no longer
    wins, and a search gains more than this says.

    Args:
      n: how many draws, static; an integer, or an array of integers (a best-of-N curve).
      sigma: standard deviation of a step per coordinate, in units of the parameters.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit; a Hutchinson estimate will do.
      gradient_curvature: `u^T H u` along the unit gradient, same unit; one Hessian-vector product.
      both_signs: every draw was scored at `+z` and at `-z`; n counts draws, not scores.

    Returns:
      The expected gain in units of the loss, float32; negative where curvature costs more than luck brings.

    Raises:
      InvalidInput: n is not a positive integer.

    Source: arXiv 2606.10929, Theorem 1; the second-order term is ours (classical order statistics).
    """
    m1, excess = _moments(n, both_signs)
    return _gain(m1, excess, *_float32(sigma, gradient_norm, curvature_trace, gradient_curvature))


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
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Interval that holds the gain of one search of n draws with probability `level`, at least.

    M lies between its quantiles `Phi^-1(q^(1/n))`, q = (1 -+ level) / 2, with probability `level`; the band
    is the range of `g(M) = sigma |a| M - sigma^2/2 [tr H + (M^2 - 1) u^T H u]` on that interval. g is a
    parabola with its vertex at `|a| / (sigma u^T H u)`, so the range is spanned by the two ends and by the
    vertex where it lies inside. Exactly `level` while g is monotone there, more once the vertex is inside.

    Not in the band: the spread of `z^T H z` at fixed M, `sqrt(2 tr H^2)` and less than `tr H` by the root of
    the number of directions that share the curvature; and anything of order sigma^3.

    Args:
      n: how many draws, static; an integer, or an array of integers.
      sigma: standard deviation of a step per coordinate, in units of the parameters; not negative.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      gradient_curvature: `u^T H u` along the unit gradient, same unit.
      both_signs: every draw was scored at `+z` and at `-z`.
      level: probability that M lies in its interval, in (0, 1).
      curvature_trace_error: standard error of the estimate of tr H. It moves both ends outwards by
        `z sigma^2/2 error` with `z = Phi^-1((1 + level) / 2)`; added linearly, so on the wide side.

    Returns:
      (low, high) in units of the loss, float32, low <= high, in the broadcast shape of all arguments.

    Raises:
      InvalidInput: n is not a positive integer, or the level is outside (0, 1).

    Source: arXiv 2606.10929, Theorem 1; classical order statistics. The band is ours.
    """
    if not 0 < level < 1:
        raise InvalidInput("best_of_n_band needs a level between 0 and 1", got=level, hint="level=0.99")
    sigma, gradient_norm, curvature_trace, gradient_curvature, error = _float32(
        sigma, gradient_norm, curvature_trace, gradient_curvature, curvature_trace_error
    )
    tails = ((1 - level) / 2, (1 + level) / 2)
    lowest, highest = _float32(*(gaussian.max_quantile(n, q, both_signs=both_signs) for q in tails))
    slope, bend = sigma * gradient_norm, sigma**2 * gradient_curvature
    # A straight line has no vertex; any number clipped into the interval leaves its ends in charge.
    vertex = jnp.where(bend == 0, lowest, slope / jnp.where(bend == 0, 1, bend))
    gains = [
        _gain(m, m**2 - 1, sigma, gradient_norm, curvature_trace, gradient_curvature)
        for m in (lowest, highest, jnp.clip(vertex, lowest, highest))
    ]
    spread = gaussian.normal_quantile((1 + level) / 2) * sigma**2 / 2 * error
    return reduce(jnp.minimum, gains) - spread, reduce(jnp.maximum, gains) + spread


def best_sigma(
    n: Count,
    gradient_norm: Number,
    curvature_trace: Number,
    gradient_curvature: Number,
    *,
    both_signs: bool = False,
) -> Float[Array, "..."]:
    """The sigma that maximises the expected gain of n draws: `|a| m1 / [tr H + (m2 - 1) u^T H u]`.

    The zero of the derivative in sigma of `best_of_n_gain`, whose second derivative is minus the bracket.
    Where the bracket is not positive there is no maximum, the second-order gain only grows, and the answer
    is infinity: read it as "the quadratic model sets no limit here", not as a step to take.

    Args:
      n: how many draws, static; an integer, or an array of integers.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      gradient_curvature: `u^T H u` along the unit gradient, same unit.
      both_signs: every draw is scored at `+z` and at `-z`.

    Returns:
      The best standard deviation of a step per coordinate, float32; infinity where there is none. Zero for
      n = 1 with one sign and positive curvature: a single blind step is better not taken.

    Raises:
      InvalidInput: n is not a positive integer.

    Source: arXiv 2606.10929, Theorem 1, with our second-order term.
    """
    m1, excess = _moments(n, both_signs)
    gradient_norm, curvature_trace, gradient_curvature = _float32(gradient_norm, curvature_trace, gradient_curvature)
    bracket = curvature_trace + excess * gradient_curvature
    # The `where` in the denominator keeps gradients through the branch not taken finite.
    peak = m1 * gradient_norm / jnp.where(bracket > 0, bracket, 1)
    return jnp.where(bracket > 0, peak, jnp.inf)


def _moments(n: Count, both_signs: bool) -> tuple[Float[Array, "..."], ...]:
    """`m1` and `m2 - 1`; the difference is taken in float64, before the cast."""
    m1 = gaussian.expected_max_abs(n) if both_signs else gaussian.expected_max(n)
    return _float32(m1, gaussian.expected_max_square(n, both_signs=both_signs) - 1)


def _gain(
    m: Float[Array, "..."],
    excess: Float[Array, "..."],
    sigma: Float[Array, "..."],
    gradient_norm: Float[Array, "..."],
    curvature_trace: Float[Array, "..."],
    gradient_curvature: Float[Array, "..."],
) -> Float[Array, "..."]:
    """`sigma |a| m - sigma^2/2 [tr H + excess u^T H u]`."""
    return sigma * gradient_norm * m - sigma**2 / 2 * (curvature_trace + excess * gradient_curvature)


def _float32(*values: Number) -> tuple[Float[Array, "..."], ...]:
    return tuple(jnp.asarray(value, jnp.float32) for value in values)
