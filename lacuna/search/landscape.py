"""What the theory needs to know of the base point: slope and curvature of the loss that is scored."""

from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from lacuna import derivatives, keys, trees
from lacuna.types import Batch, Key, Loss, Objective, Params


class Landscape(NamedTuple):
    """The loss to second order around a point; each a float.

    Attributes:
      gradient_norm: `|a|`, a the gradient on the scored batch.
      params_norm: `|theta|`, for the relative radius.
      gradient_curvature: `u^T H u` along the unit gradient `u = a / |a|`; 0 where the gradient vanishes.
      curvature_trace: `tr H`, a Hutchinson estimate.
      curvature_trace_error: its standard error.
      num_params: P.
    """

    gradient_norm: float
    params_norm: float
    gradient_curvature: float
    curvature_trace: float
    curvature_trace_error: float
    num_params: int


def landscape(
    loss: Loss | Objective, params: Params, batch: Batch, *, seed: int = 0, num_probes: int = 64
) -> Landscape:
    """Measure gradient and curvature of the loss that a sweep scores.

    Args:
      loss: the sweep's loss; it must be twice differentiable.
      params: the base point.
      batch: the scored batch: the theory is about this loss, not about the loss on all data.
      seed: of the probes of the trace.
      num_probes: Hessian products for the trace; its error falls with the square root.
    """
    loss = loss.loss if isinstance(loss, Objective) else loss
    measured = _measure(loss, num_probes, params, batch, keys.stream(seed, "landscape"))
    return Landscape(*(float(x) for x in measured), num_params=trees.size(params))


@partial(jax.jit, static_argnums=(0, 1))
def _measure(loss: Loss, num_probes: int, params: Params, batch: Batch, key: Key) -> tuple[Float[Array, ""], ...]:
    gradient = jax.grad(loss)(params, batch)
    gradient_norm = trees.norm(gradient)
    product = derivatives.hvp(loss, params, batch)
    inverse = jax.numpy.where(gradient_norm > 0, 1 / gradient_norm, 0.0)
    unit = jax.tree.map(lambda g: (g * inverse).astype(g.dtype), gradient)
    trace = derivatives.hutchinson_trace(product, params, key, num_probes=num_probes)
    return (
        gradient_norm,
        trees.norm(params),
        trees.dot(unit, product(unit)),
        trace.mean,
        trace.standard_error,
    )
