"""What the theory needs to know of the base point: slope and curvature of the loss that is scored.

For noise with the covariance C, the loss at `theta + sigma * noise` has the slope `sqrt(a^T C a)` in sigma, and the
curvatures `tr(H C)` and `w^T H w` along `w = C a / sqrt(a^T C a)`: those of a Gaussian search, whatever the basis or
the scales. A radius as the unit of sigma divides the noise by its mean length, the root of its mean square; what an
exact one does beyond that, to noise that is then uniform on a sphere, the theory knows from the sphere's dimension.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from lacuna import derivatives, keys, theory, trees
from lacuna.errors import InvalidInput
from lacuna.search import draws
from lacuna.search.families import Family
from lacuna.search.objectives import with_data
from lacuna.search.sweep import Progress, Sweep
from lacuna.types import Batch, Key, Loss, Objective, Params

FEW_DIMENSIONS = 1000
"""Fewer than these, and neither noise of one length nor random signs are as good as normal along a direction."""


class Landscape(NamedTuple):
    """The loss to second order around a point, in the unit of sigma; each a float.

    Attributes:
      slope: of the loss along the noise: its standard deviation for a sigma of one, to first order. For Gaussian
        noise on all coordinates this is `|a|`.
      curvature_along: along the direction in which the noise follows the gradient, `u^T H u` for Gaussian noise; 0
        where the slope vanishes.
      curvature_trace: `tr H` over the noise, an estimate.
      curvature_trace_error: its standard error.
      curvature_spread: standard deviation of `z^T H z` over draws z of the noise, an estimate.
      gradient_norm: `|a|`, a the gradient on the scored batch.
      params_norm: `|theta|`, for the relative radius.
      step_norm: root mean square length of a step for a sigma of one.
      num_params: P.
      is_predicted: whether the noise is as good as normal along any direction, or uniform on a sphere, so that the
        theorem is about it.
      dimension: of the sphere on which the steps are uniform, each of the length sigma; None where they are not.
    """

    slope: float
    curvature_along: float
    curvature_trace: float
    curvature_trace_error: float
    curvature_spread: float
    gradient_norm: float
    params_norm: float
    step_norm: float
    num_params: int
    is_predicted: bool = True
    dimension: int | None = None

    @property
    def unit_step(self) -> float:
        """What a sigma of one is to the functions of `lacuna.theory`, beside this slope and these curvatures.

        They belong to one coordinate of the noise in units of its standard deviation. The theory's size of a Gaussian
        step is that deviation, 1; on a sphere in k dimensions it is the length, `sqrt(k)` of them.
        """
        return math.sqrt(self.dimension or 1)

    @property
    def predicted_sigma_star(self) -> float:
        """The sigma, in the unit of the sweep, at which the linear regime is foretold to end, but for exact radii."""
        return float(theory.predicted_sigma_star(self.slope, self.curvature_trace, self.curvature_spread))


def landscape(
    loss: Loss | Objective,
    params: Params,
    batch: Batch,
    sweep: Sweep,
    *,
    seed: int = 0,
    num_probes: int = 64,
    progress: Progress | None = None,
) -> Landscape:
    """Measure slope and curvature of the loss that a sweep scores, along its noise.

    Args:
      loss: the sweep's loss; it must be twice differentiable.
      params: the base point.
      batch: the scored batch: the theory is about this loss, not about the loss on all data.
      sweep: its family and unit count.
      seed: of the probes of the trace.
      num_probes: Hessian products for the trace, at least 2; its error falls with the square root.
      progress: told after each of how many are done, and of how many.

    Raises:
      InvalidInput: fewer than two probes, or an error of the family about this tree.

    Source: Hutchinson (1989), for the trace.
    """
    if num_probes < 2:
        raise InvalidInput("num_probes must be at least 2", got=num_probes)
    objective, batch = with_data(loss, batch)
    family = sweep.family
    family.check(params)
    scale = sweep.mean_scale(params)
    measured = _along(objective.loss, family, params, batch)
    slope, along, gradient_norm, params_norm, participation = (float(x) for x in measured)
    key, forms, squares = keys.stream(seed, "landscape"), np.zeros(num_probes), np.zeros(num_probes)
    for index in range(num_probes):
        forms[index], squares[index] = _forms(objective.loss, family, params, batch, key, np.uint32(index))
        if progress is not None:
            progress(index + 1, num_probes)
    with np.errstate(all="ignore"):  # where the loss is not finite
        trace, error = float(np.mean(forms)), float(np.std(forms, ddof=1)) / math.sqrt(num_probes)
        # Normal noise of covariance I spreads by tr H^2; signs, whose forms spread less, tell that otherwise.
        spread = math.sqrt(2 * float(np.mean(squares))) if family.isotropic else error * math.sqrt(num_probes)
    exact = sweep.unit == "exact_radius"
    dimension = family.dimension(params)
    on_a_sphere = exact and family.spherical
    # A radius that is exact on another shape, and random signs, are as good as normal in many dimensions alone.
    too_few = (exact and dimension < FEW_DIMENSIONS) or (family.by_limit and participation < FEW_DIMENSIONS)
    return Landscape(
        slope=scale * slope,
        curvature_along=scale**2 * along,
        curvature_trace=scale**2 * trace,
        curvature_trace_error=scale**2 * error,
        curvature_spread=scale**2 * spread,
        gradient_norm=gradient_norm,
        params_norm=params_norm,
        step_norm=scale * math.sqrt(family.mean_square(params)),
        num_params=trees.size(params),
        is_predicted=on_a_sphere or (family.normal and not too_few),
        dimension=dimension if on_a_sphere else None,
    )


def unmeasured(params: Params, sweep: Sweep) -> Landscape:
    """A landscape of which the radius of a step is known alone: the loss has no gradient, or it is not asked for."""
    family = sweep.family
    family.check(params)
    nothing = float("nan")
    return Landscape(
        *(nothing,) * 6,
        params_norm=float(trees.norm(params)),
        step_norm=sweep.mean_scale(params) * math.sqrt(family.mean_square(params)),
        num_params=trees.size(params),
        is_predicted=False,
    )


@partial(jax.jit, static_argnums=0)
def _along(loss: Loss, family: Family, params: Params, batch: Batch) -> tuple[Float[Array, ""], ...]:
    """Slope and curvature along the noise, both norms, and how many coordinates take part."""
    gradient = derivatives.gradient(loss, params, batch)
    followed = family.covariance(gradient)
    slope = jnp.sqrt(trees.dot(gradient, followed))
    inverse = jnp.where(slope > 0, 1 / slope, 0.0)
    unit = jax.tree.map(lambda f, p: (f * inverse).astype(p.dtype), followed, params)
    # (sum b)^2 / sum b^2 of what each coordinate adds to the variance along the gradient: how many take part.
    square = inverse * inverse
    shares = jax.tree.map(lambda g, f: square * g.astype(jnp.float32) * f.astype(jnp.float32), gradient, followed)
    participation = 1 / jnp.maximum(trees.dot(shares, shares), jnp.finfo(jnp.float32).tiny)
    along = trees.dot(unit, derivatives.hvp(loss, params, batch)(unit))
    return slope, along, trees.norm(gradient), trees.norm(params), participation


@partial(jax.jit, static_argnums=0)
def _forms(
    loss: Loss, family: Family, params: Params, batch: Batch, key: Key, index: UInt[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`<z, H z>` and `|H z|^2` of a probe z: signs for the covariance I, else a draw of the noise."""
    if family.isotropic:
        probe = derivatives.random_signs(params, jax.random.fold_in(key, index))
    else:
        noise = draws.draw(family, params, key, index)
        probe = jax.tree.map(lambda d, p: d.astype(p.dtype), noise, params)
    product = derivatives.hvp(loss, params, batch)(probe)
    return trees.dot(probe, product), trees.dot(product, product)
