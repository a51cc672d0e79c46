"""Where is the loss still linear? Odd and even parts of antithetic pairs over a grid of sigmas.

For a draw z the two losses of a pair are `L(+-) = L(0) +- sigma <a, z> + sigma^2/2 z^T H z +- O(sigma^3)`, so

    F1 = (L(+) - L(-)) / 2         = sigma <a, z> + O(sigma^3)      the odd part, which random search climbs
    F2 = (L(+) + L(-)) / 2 - L(0)  = sigma^2/2 z^T H z + O(sigma^4)   the even part, which it pays

with rms(F1) = sigma |a| and mean(F2) = sigma^2/2 tr H to leading order. The share of F1 alone does not
show linearity: a cubic term is odd too. So the linear regime also asks that rms(F1) is proportional to sigma.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from lacuna.errors import InvalidInput

SHARE = 0.9
"""The odd part holds more than this in the linear regime."""

SLOPE_TOLERANCE = 0.1
"""A local slope of F1 this close to one is linear."""

RESOLVED_ULPS = 16
"""Rounding moves F1 by half an ulp of the loss, by a few where a long sum is rounded on the way; at 16 ulps
and zero mean that is a percent or two of its root mean square."""

Losses = Float[Array, "N S"] | Float[np.ndarray, "N S"]
"""Losses of N draws at S sigmas, one sign."""

Scalar = int | float | np.number | Real[np.ndarray, ""] | Real[Array, ""]
"""A real number; may be traced."""

Number = int | float | np.number | Real[np.ndarray, "..."] | Real[Array, "..."]
"""A real number or an array of them; may be traced."""


class Regime(NamedTuple):
    """The odd / even split over a grid of S sigmas. Statistics are over the pairs whose losses are finite.

    Attributes:
      sigmas: the grid, float32, ascending, in units of the parameters.
      f1_rms: root mean square of F1, in units of the loss; `sigma |a|` in the linear regime.
      f2_rms: root mean square of F2.
      f2_mean: mean of F2; `sigma^2/2 tr H` in the quadratic regime.
      share: `var F1 / (var F1 + mean F2^2)`, in [0, 1]; NaN below two finite pairs.
      f1_slope: d log f1_rms / d log sigma between this sigma and the one before; NaN at the first.
      f2_slope: the same of f2_rms; two in the quadratic regime, unless f2_rms is down at an ulp of the loss,
        which it reaches at larger sigmas than f1_rms does.
      resolved: f1_rms is at least `RESOLVED_ULPS` float32 ulps of the base loss; says nothing of F2.
      num_finite: how many pairs are finite on both sides.
      sigma_star: the largest sigma of the linear regime; NaN if there is none.
    """

    sigmas: Float[Array, "S"]
    f1_rms: Float[Array, "S"]
    f2_rms: Float[Array, "S"]
    f2_mean: Float[Array, "S"]
    share: Float[Array, "S"]
    f1_slope: Float[Array, "S"]
    f2_slope: Float[Array, "S"]
    resolved: Bool[Array, "S"]
    num_finite: Int[Array, "S"]
    sigma_star: Float[Array, ""]


def linear_regime(
    sigmas: Float[Array, "S"] | Float[np.ndarray, "S"], plus: Losses, minus: Losses, base: Scalar
) -> Regime:
    """Split antithetic losses into odd and even parts and locate the linear regime.

    The losses of a pair are `L(+-) = L(0) +- sigma <a, z> + sigma^2/2 z^T H z +- O(sigma^3)`. Half their difference
    is `F1 = sigma <a, z> + O(sigma^3)`, so rms(F1) = `sigma |a|` where the loss is linear; half their sum less the
    base is `F2 = sigma^2/2 z^T H z + O(sigma^4)`, of mean `sigma^2/2 tr H`.

    sigma_star is the largest sigma where the share of F1 exceeds 0.9, every local slope of F1 up to it is
    within 0.1 of one (odd is not yet linear), and F1 stands above rounding. A slope that starts from an
    unresolved sigma is rounding, not geometry, and is not asked. At the first resolved sigma no slope has
    been asked yet: a sigma_star there rests on the share alone, so begin the grid a decade lower.

    Pairs with a loss that is not finite are left out, sigma by sigma; where many are missing the slopes
    compare different draws. Compiled; inside `jax.jit` the sigmas may be constants, then checked, or traced.
    Differentiable in sigmas, losses and base wherever the roots are not zero.

    Args:
      sigmas: standard deviations of a step, positive, strictly ascending (as float32).
      plus: losses at `params + sigma z`, one row a draw; the same draws at every sigma.
      minus: losses at `params - sigma z`, in the same order.
      base: the loss at `params`, on the same batch.

    Returns:
      A `Regime`, float32. NaN where a `base` that is not finite enters, and everywhere without a finite pair.

    Raises:
      InvalidInput: sigmas not positive or not ascending, or shapes that do not fit one another.

    Source: the F1 / F2 split of arXiv 2606.10929; the definition of share and sigma_star is ours.
    """
    _check(sigmas, jnp.shape(plus), jnp.shape(minus))
    arrays = (jnp.asarray(x, jnp.float32) for x in (sigmas, plus, minus, base))
    return _regime(*arrays)


def predicted_share(
    sigma: Number, gradient_norm: Number, curvature_trace: Number, curvature_spread: Number = 0.0
) -> Float[Array, "..."]:
    """The share of F1 that a gradient and a curvature foretell: `1 / (1 + (sigma / sigma_half)^2)`.

    On a quadratic `var F1 = sigma^2 |a|^2` and, as `E (z^T H z)^2 = (tr H)^2 + 2 tr H^2`,
    `mean F2^2 = sigma^4/4 [(tr H)^2 + 2 tr H^2]`. Their ratio is `(sigma / sigma_half)^2` with
    `sigma_half = 2 |a| / sqrt((tr H)^2 + 2 tr H^2)`, the step at which both parts are of one size.

    Args:
      sigma: standard deviation of a step per coordinate, in units of the parameters.
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      curvature_spread: standard deviation of `z^T H z`, `sqrt(2 tr H^2)`, same unit.

    Returns:
      A share in [0, 1], float32, in the broadcast shape of the arguments; NaN without slope and curvature.

    Source: the F1 / F2 split of arXiv 2606.10929; the prediction is ours.
    """
    arrays = (jnp.asarray(x, jnp.float32) for x in (sigma, gradient_norm, curvature_trace, curvature_spread))
    return _predicted_share(*arrays)


def predicted_sigma_star(
    gradient_norm: Number, curvature_trace: Number, curvature_spread: Number = 0.0, *, share: float = SHARE
) -> Float[Array, "..."]:
    """The sigma at which the predicted share of F1 falls to 0.9: the end of the linear regime, before any step.

    `predicted_share` solved for sigma: `sigma_half sqrt(1 / share - 1)`, a third of `sigma_half` at 0.9. A cubic term
    may end the regime earlier; that takes a third derivative to know.

    Args:
      gradient_norm: `|a|`, loss per unit of the parameters.
      curvature_trace: `tr H`, loss per squared unit.
      curvature_spread: standard deviation of `z^T H z`, same unit.
      share: the share asked for, in (0, 1).

    Returns:
      A standard deviation of a step per coordinate, float32; infinite without curvature.

    Raises:
      InvalidInput: the share is outside (0, 1).

    Source: ours, from `predicted_share`.
    """
    if not (isinstance(share, float) and 0 < share < 1):
        raise InvalidInput("predicted_sigma_star needs a share between 0 and 1", got=share, hint=f"share={SHARE}")
    arrays = (jnp.asarray(x, jnp.float32) for x in (gradient_norm, curvature_trace, curvature_spread))
    return _sigma_half(*arrays) * (1 / share - 1) ** 0.5


@jax.jit
def _predicted_share(
    sigma: Float[Array, "..."],
    gradient_norm: Float[Array, "..."],
    curvature_trace: Float[Array, "..."],
    curvature_spread: Float[Array, "..."],
) -> Float[Array, "..."]:
    paid = sigma / 2 * jnp.hypot(curvature_trace, curvature_spread)
    # In units of the larger: squares of a small slope or of a large trace leave float32.
    larger = lax.stop_gradient(jnp.maximum(jnp.abs(gradient_norm), paid))
    climbed, paid = gradient_norm / larger, paid / larger
    return climbed**2 / (climbed**2 + paid**2)


@jax.jit
def _sigma_half(
    gradient_norm: Float[Array, "..."], curvature_trace: Float[Array, "..."], curvature_spread: Float[Array, "..."]
) -> Float[Array, "..."]:
    return 2 * gradient_norm / jnp.hypot(curvature_trace, curvature_spread)


def rounding_floor(base: Number, sigma: Number, gradient_norm: Number) -> Float[Array, "..."]:
    """Relative error that rounding the losses alone makes in F1: `ulp(|base|) / (sigma |a|)`.

    A loss rounded to float32 is off by up to half an ulp, and so is half the difference of two; a whole ulp leaves
    room for the sums behind them, and F1 is `sigma |a|` in size. Drawn in figures as the line below which a slope
    means nothing; losses summed over a long batch may err by several ulps. The ulp is a constant to derivatives.

    Args:
      base: the loss at the centre.
      sigma: standard deviation of a step per coordinate.
      gradient_norm: `|a|`, loss per unit of the parameters.

    Returns:
      A relative error without unit, float32, in the broadcast shape of the arguments.

    Source: ours; the float32 unit in the last place.
    """
    return _rounding_floor(*(jnp.asarray(x, jnp.float32) for x in (base, sigma, gradient_norm)))


@jax.jit
def _rounding_floor(
    base: Float[Array, "..."], sigma: Float[Array, "..."], gradient_norm: Float[Array, "..."]
) -> Float[Array, "..."]:
    return _ulp(base) / (sigma * gradient_norm)


@jax.jit
def _regime(
    sigmas: Float[Array, "S"], plus: Float[Array, "N S"], minus: Float[Array, "N S"], base: Float[Array, ""]
) -> Regime:
    finite = jnp.isfinite(plus) & jnp.isfinite(minus)
    # Differences come first: losses of one size lose nothing in them, squares of losses would. What is not finite
    # goes out before it is squared, or it would come back as a NaN in the derivatives of the others.
    odd = jnp.where(finite, (plus - minus) / 2, 0)
    even = jnp.where(finite, ((plus - base) + (minus - base)) / 2, 0)

    f1_rms, f2_rms = _rms(odd, finite), _rms(even, finite)
    f1_spread = _rms(odd - _mean(odd, finite), finite)
    num_finite = jnp.sum(finite, axis=0)
    # var F1 / (var F1 + mean F2^2), as a ratio of roots: squares of very small or large losses leave float32.
    share = jnp.where(num_finite > 1, 1 / (1 + (f2_rms / f1_spread) ** 2), jnp.nan)
    f1_slope, f2_slope = _local_slope(f1_rms, sigmas), _local_slope(f2_rms, sigmas)

    resolved = f1_rms >= RESOLVED_ULPS * _ulp(base)
    asked = jnp.concatenate([jnp.zeros(1, bool), resolved[:-1]])
    bent = asked & ~(jnp.abs(f1_slope - 1) <= SLOPE_TOLERANCE)  # written so that a NaN slope is bent
    linear = resolved & (share > SHARE) & (jnp.cumsum(bent) == 0)
    sigma_star = jnp.where(jnp.any(linear), jnp.max(jnp.where(linear, sigmas, 0)), jnp.nan)
    return Regime(
        sigmas=sigmas,
        f1_rms=f1_rms,
        f2_rms=f2_rms,
        f2_mean=_mean(even, finite),
        share=share,
        f1_slope=f1_slope,
        f2_slope=f2_slope,
        resolved=resolved,
        num_finite=num_finite,
        sigma_star=sigma_star,
    )


def _ulp(base: Float[Array, "..."]) -> Float[Array, "..."]:
    """The unit in the last place, constant between powers of two; jax has no derivative of it."""
    return jnp.spacing(jnp.abs(lax.stop_gradient(base)))


def _mean(x: Float[Array, "N S"], finite: Bool[Array, "N S"]) -> Float[Array, "S"]:
    return jnp.sum(jnp.where(finite, x, 0), axis=0) / jnp.sum(finite, axis=0)


def _rms(x: Float[Array, "N S"], finite: Bool[Array, "N S"]) -> Float[Array, "S"]:
    """Root mean square over the finite pairs, scaled by the largest so that no square overflows."""
    largest = jnp.max(jnp.where(finite, jnp.abs(x), 0), axis=0, initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(_mean((x / scale) ** 2, finite))


def _local_slope(y: Float[Array, "S"], sigmas: Float[Array, "S"]) -> Float[Array, "S"]:
    slopes = jnp.log(y[1:] / y[:-1]) / jnp.log(sigmas[1:] / sigmas[:-1])
    return jnp.concatenate([jnp.full(1, jnp.nan), slopes])


def _check(
    sigmas: Float[Array, "..."] | Float[np.ndarray, "..."], plus: tuple[int, ...], minus: tuple[int, ...]
) -> None:
    """Shapes, and the order of the sigmas where their values are known."""
    if jnp.ndim(sigmas) != 1 or plus != minus or plus[1:] != jnp.shape(sigmas):
        raise InvalidInput(
            "linear_regime needs sigmas [S] and losses plus, minus [N, S]",
            got=f"sigmas {jnp.shape(sigmas)}, plus {plus}, minus {minus}",
            hint="one row a draw, one column a sigma",
        )
    if isinstance(sigmas, jax.core.Tracer):
        return
    grid = np.asarray(sigmas, np.float32)
    if not (grid.size and np.all(np.isfinite(grid)) and grid[0] > 0 and np.all(np.diff(grid) > 0)):
        raise InvalidInput(
            "linear_regime needs sigmas that are positive and strictly ascending",
            got=grid.tolist(),
            hint="sort the grid and the columns of the losses with it",
        )
