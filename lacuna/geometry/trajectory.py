"""What displacements tell: bases of the first updates of a run, of task vectors, and where the first updates point.

Source: arXiv 2606.10929; remainder captures and extrapolation are ours.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import DROP, Basis, triangularise
from lacuna.geometry.status import Status, kernel
from lacuna.types import Delta, Rows


@kernel("rank")
def trajectory_prefix(updates: Rows, *, rank: int, by_row: bool = False) -> Basis:
    """The span of the first `rank` updates of a run.

    Args:
      updates: m updates in order, as a `Trajectory` keeps them.
      rank: how many of them.

    Returns:
      A basis with room for `rank` rows; the actual rank is lower where updates are dependent (DEPENDENT).

    Raises:
      GeometryError: fewer updates than `rank`, or (eagerly) one that is not finite.

    Source: arXiv 2606.10929.
    """
    m = ops.check_rows(updates)
    ops.check_rank(rank)
    if rank > m:
        raise GeometryError("rank must be at most the number of updates", got=f"rank {rank} of {m} updates")
    prefix = jax.tree.map(lambda x: x[:rank], updates)
    return triangularise(prefix, method="trajectory_prefix", by_row=by_row).basis


@kernel()
def task_vector_basis(displacements: Rows, *, by_row: bool = False) -> Basis:
    """The span of task vectors: displacements from one starting point to the end points of as many trainings.

    Raises:
      GeometryError: rows of no common tree, or (eagerly) not finite; names the leaf.
    """
    return triangularise(displacements, method="task_vector", by_row=by_row).basis


@kernel()
def prefix_captures(updates: Rows, delta: Delta, *, by_row: bool = False) -> Float[Array, "m"]:
    """Capture mass of `delta` by the span of the first 1, 2, ..., m updates: all from one orthonormalisation.

    With `delta` the displacement of the same run this is inflated, because the prefix contains its own steps:
    `remainder_captures` leaves them out, and the displacement of another run of the same start is the honest
    control.

    Args:
      updates: m updates in order.
      delta: on the same tree.

    Returns:
      Mass, ascending; NaN if an element is not finite, 0 for a zero vector.

    Raises:
      GeometryError: the trees differ; names the leaf.
    """
    ops.check_on_tree("prefix_captures", updates, delta)
    basis, _, ranks = triangularise(updates, by_row=by_row)
    small, _ = ops.scaled(delta)
    inside = jnp.square(ops.products(basis.rows, small, by_row=by_row))
    return _share(jnp.cumsum(inside), ranks, ops.squared_norm(small), basis)


@kernel()
def remainder_captures(updates: Rows, delta: Delta, *, by_row: bool = False) -> Float[Array, "m"]:
    """Capture mass of what is left of `delta` after the first 1, 2, ..., m updates, by the span of those updates.

    Args:
      updates: the first m updates of the run.
      delta: the displacement of the whole run.

    Returns:
      Mass of `delta - sum_{i <= m} update_i`; 0 where less is left than 64 eps of the way gone, NaN if an element
      is not finite. A `delta` that is a difference of two large points brings their rounding with it.

    Raises:
      GeometryError: the trees differ; names the leaf.
    """
    ops.check_on_tree("remainder_captures", updates, delta)
    basis, _, ranks = triangularise(updates, by_row=by_row)

    def length(delta: Delta) -> Float[Array, ""]:
        small, scale = ops.scaled(delta)
        return ops.norm(small) * scale

    def after(
        state: tuple[Delta, Float[Array, ""]], step: tuple[Delta, Int[Array, ""]]
    ) -> tuple[tuple[Delta, Float[Array, ""]], Float[Array, ""]]:
        (rest, travelled), (update, rank) = state, step
        rest = jax.tree.map(lambda r, u: r - u.astype(jnp.float32), rest, update)
        travelled = travelled + length(update)
        small, _ = ops.scaled(rest)
        inside = jnp.cumsum(jnp.square(ops.products(basis.rows, small, by_row=by_row)))
        share = _share(inside, rank, ops.squared_norm(small), basis)
        nothing = length(rest) <= DROP * travelled  # what is left is the rounding of the subtractions
        return (rest, travelled), jnp.where(nothing & jnp.isfinite(travelled), 0.0, share)

    whole = jax.tree.map(lambda x: x.astype(jnp.float32), delta)
    return lax.scan(after, (whole, length(whole)), (updates, ranks))[1]


@kernel("rank", "fit_from")
def extrapolate(
    updates: Rows,
    horizon: Float[Array, ""] | float,
    *,
    rank: int,
    fit_from: int | None = None,
    by_row: bool = False,
) -> Delta:
    """Where a run would be after `horizon` steps if its first steps went on in a straight line.

    The points after 1, 2, ..., m updates are written in their own leading directions (singular vectors of the points,
    taken from the start), and the coefficient of each of `rank` of them is continued by the line that fits it best.
    The result is a combination of the updates: no step is taken, and no gradient is asked for.

    Args:
      updates: m updates in order, as a `Trajectory` keeps them.
      horizon: in steps from the start; data, so that another one compiles nothing.
      rank: how many directions are continued, 1..m; what lies outside of them is left out.
      fit_from: the lines are fitted to the points from this step on, 0..m - 1; 0 counts the start itself. None: the
        later half, for a recovery slows down.

    Returns:
      The displacement from the start, float32. NaN if an update is not finite.

    Raises:
      GeometryError: no update, or a rank or a step outside of them.
    """
    m = ops.check_rows(updates)
    ops.check_rank(rank)
    first = m // 2 if fit_from is None else fit_from
    if not (m and 1 <= rank <= m and 0 <= first < m):
        raise GeometryError(
            "extrapolate needs 1 <= rank <= m and 0 <= fit_from < m", got=f"rank {rank}, step {first}, {m} updates"
        )
    small, scale = ops.scaled(updates)
    basis, coefficients, _ = triangularise(small, by_row=by_row)
    points = jnp.cumsum(coefficients, axis=0)
    steps = jnp.arange(first, m + 1, dtype=jnp.float32)
    away = steps - jnp.mean(steps)
    # What the fitted line says at the horizon is this weighted sum of the points; the start itself is zero.
    weights = 1.0 / len(steps) + (horizon - jnp.mean(steps)) * away / jnp.sum(jnp.square(away))
    weights = jnp.zeros(m + 1).at[first:].set(weights)[1:]
    finite = (basis.status & Status.NOT_FINITE) == 0
    _, _, directions = jnp.linalg.svd(jnp.where(finite, points, 0.0), full_matrices=False)
    leading = directions[:rank]
    predicted = (weights @ points) @ leading.T @ leading
    return ops.combine(jnp.where(finite, scale * predicted, jnp.nan), basis.rows)


def _share(
    inside: Float[Array, "m"], rank: Int[Array, "*n"], total: Float[Array, ""], basis: Basis
) -> Float[Array, "*n"]:
    """Cumulated mass at a rank, as a share of the total; NaN from anything that is not finite."""
    at_rank = jnp.concatenate([jnp.zeros(1), inside])[rank]
    share = jnp.where(total > 0, jnp.minimum(at_rank / jnp.where(total > 0, total, 1.0), 1.0), 0.0)
    good = jnp.isfinite(total) & jnp.all(jnp.isfinite(inside)) & ((basis.status & Status.NOT_FINITE) == 0)
    return jnp.where(good, share, jnp.nan)
