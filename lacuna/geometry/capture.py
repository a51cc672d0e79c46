"""How much of a vector lies in a subspace, and how much of a loss drop survives there.

The paper's 77 % does not say its power: here `mass` is always the share of the squared norm and `norm` its
square root (0.77 of mass is 0.877 of norm). Mass adds over orthogonal subspaces, and a random subspace of
rank k has mass k / P on average; neither holds for the norm.

Source: arXiv 2606.10929, whose exact definitions are not available to us: these are ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lacuna import trees
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import Basis, basis_usable, check_single
from lacuna.geometry.status import Status, flag, kernel
from lacuna.types import Delta, Params, Rows


class Capture(NamedTuple):
    """The part of a vector in a subspace.

    Attributes:
      mass: `|Q d|^2 / |d|^2`, float32[] in [0, 1]; 0 for a zero vector, NaN for one that is not finite.
      norm: its square root.
      lost: `|d - Q^T Q d|^2 / |d|^2`, from the residual itself, so that it is right far below eps.
      status: ZERO or NOT_FINITE for the vector, int32[].
    """

    mass: Float[Array, ""]
    norm: Float[Array, ""]
    lost: Float[Array, ""]
    status: Int[Array, ""]


@kernel()
def capture(basis: Basis, delta: Delta, *, by_row: bool = False) -> Capture:
    """How much of `delta` lies in the subspace.

    Args:
      basis: orthonormal rows on the tree of `delta`, in any floating dtype.
      delta: the vector, in any floating dtype; the arithmetic is float32.

    Raises:
      GeometryError: the trees differ, or (eagerly) an element is not finite; names the leaf.
    """
    check_single(basis)
    ops.check_on_tree("capture", basis.rows, delta)
    small, _ = ops.scaled(delta)
    total = ops.squared_norm(small)
    inside = ops.products(basis.rows, small, by_row=by_row)
    safe = jnp.where(total > 0, total, 1.0)
    lost = jnp.where(total > 0, jnp.minimum(_left(basis.rows, inside, small, total, by_row=by_row) / safe, 1.0), 0.0)
    mass = jnp.where(lost < 0.5, 1.0 - lost, jnp.minimum(jnp.sum(jnp.square(inside)) / safe, 1.0))
    mass = jnp.where(total > 0, mass, 0.0)
    finite = jnp.isfinite(total + mass + lost) & basis_usable(basis)
    mass, lost = (jnp.where(finite, share, jnp.nan) for share in (mass, lost))
    status = flag(Status.ZERO, total == 0) | flag(Status.NOT_FINITE, ~finite)
    return Capture(mass, ops.root(mass), lost, status)


def _left(
    rows: Rows, inside: Float[Array, "k"], delta: Delta, total: Float[Array, ""], *, by_row: bool
) -> Float[Array, ""]:
    """`|d - Q^T Q d|^2`.

    What the rounding of the products left in the residual lies in the span: it is not lost. Where more than a
    thousandth of the mass is left this is less than 1e-7 of it, and the rows are not read again; but only if they are
    orthonormal to more than bfloat16 holds, so that the two parts of the mass add up to all of it.
    """

    def again(rest: Delta) -> Float[Array, ""]:
        return ops.squared_norm(ops.remove(ops.products(rows, rest, by_row=by_row), rows, rest))

    rest = ops.remove(inside, rows, delta)
    once = ops.squared_norm(rest)
    adds_up = jnp.abs(total - once - jnp.sum(jnp.square(inside))) < 1e-5 * total
    return lax.cond(adds_up & (once > 1e-3 * total), lambda rest: once, again, rest)


@kernel()
def project(basis: Basis, delta: Delta, *, by_row: bool = False) -> Delta:
    """`Q^T Q delta`, the nearest vector in the subspace; float32, leaf by leaf.

    NaN where the basis was emptied because something not finite went into it: zero would pass for an answer.

    Raises:
      GeometryError: the trees differ; names the leaf.
    """
    check_single(basis)
    ops.check_on_tree("project", basis.rows, delta)
    small, scale = ops.scaled(delta)
    inside = jnp.where(basis_usable(basis), ops.products(basis.rows, small, by_row=by_row), jnp.nan)
    return ops.divide(ops.combine(inside, basis.rows), 1 / scale)


class Signal(NamedTuple):
    """How much of a gradient a subspace sees.

    Attributes:
      mass: `|Q a|^2`, in the unit of the squared gradient, float32[]; 0 or infinite where float32 ends.
      norm: `|Q a|`, which float32 holds at any scale.
      density: mass for each dimension of the subspace: what ranks subspaces for a random search at equal radius.
      status: ZERO where the subspace has rank 0, NOT_FINITE for the gradient, int32[].
    """

    mass: Float[Array, ""]
    norm: Float[Array, ""]
    density: Float[Array, ""]
    status: Int[Array, ""]


@kernel()
def signal(basis: Basis, gradient: Delta, *, by_row: bool = False) -> Signal:
    """Signal mass and density of a subspace for a gradient.

    Args:
      basis: the subspace; its `rank` counts, not its room.
      gradient: on the same tree.

    Raises:
      GeometryError: the trees differ, or (eagerly) an element is not finite; names the leaf.

    Source: arXiv 2606.10929, Proposition 1; the density is fixed here as mass / k.
    """
    check_single(basis)
    ops.check_on_tree("signal", basis.rows, gradient)
    small, scale = ops.scaled(gradient)
    inside = jnp.sum(jnp.square(ops.products(basis.rows, small, by_row=by_row)))
    mass, norm = inside * scale * scale, ops.root(inside) * scale
    finite = jnp.isfinite(ops.largest(gradient)) & basis_usable(basis)
    mass = jnp.where(finite, mass, jnp.nan)
    status = flag(Status.ZERO, basis.rank == 0) | flag(Status.NOT_FINITE, ~finite)
    norm = jnp.where(finite, norm, jnp.nan)
    return Signal(mass, norm, mass / jnp.maximum(basis.rank, 1), status)


def functional_recovery(
    loss: Callable[[Params], Float[Array, ""]], start: Params, displacement: Delta, basis: Basis
) -> Float[Array, ""]:
    """The share of the loss drop that survives when the displacement is replaced by its projection.

    `(L(start) - L(start + Q^T Q d)) / (L(start) - L(start + d))`: 1 if the subspace holds all that matters, 0
    if it holds nothing, negative where the projection is worse than the start, and above 1 where it is better
    than the end.

    Args:
      loss: of the parameters alone.
      start: where the displacement begins. If the loss does not fall along it there is nothing to recover: NaN.
      displacement: end minus start.
      basis: on the same tree.
    """
    drop = loss(start) - loss(trees.axpy(1.0, displacement, start))
    kept = loss(start) - loss(trees.axpy(1.0, project(basis, displacement), start))
    return jnp.where(drop > 0, kept / jnp.where(drop > 0, drop, 1.0), jnp.nan)


def random_mass(rank: int | Int[Array, ""], like: Delta) -> Float[Array, ""]:
    """k / P: the mean mass that a uniformly random subspace captures of any fixed vector.

    Its law is Beta(k / 2, (P - k) / 2).

    >>> float(random_mass(4, {"w": jnp.zeros((8, 16))}))
    0.03125
    """
    return jnp.asarray(rank, jnp.float32) / max(1, sum(x.size for x in jax.tree.leaves(like)))
