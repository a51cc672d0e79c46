"""Krylov spaces of any operator on a parameter tree: Lanczos for symmetric ones, Arnoldi for the rest."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lacuna import trees
from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops
from lacuna.geometry.basis import DROP, Basis, empty, split
from lacuna.geometry.status import Status, flag, raise_if_not_finite
from lacuna.types import Delta, Operator, Rows


class KrylovInfo(NamedTuple):
    """The operator as seen in its Krylov space: `A Q^T = Q^T M + residual e_last^T`.

    Attributes:
      matrix: `M = Q A Q^T`, tridiagonal for Lanczos and upper Hessenberg for Arnoldi; float32[k, k], zero beyond
        the rank. Its eigenvalues are the Ritz values.
      residual: what the last product has outside of the space; rounding where the space is invariant.
      residual_norm: its norm, float32[].
      symmetry_defect: largest `|<q_i, A q_j> - <q_j, A q_i>|` seen, over the largest `|A q|`; 0 for Arnoldi.
      num_products: products with the operator, int32[].
    """

    matrix: Float[Array, "k k"]
    residual: Delta
    residual_norm: Float[Array, ""]
    symmetry_defect: Float[Array, ""]
    num_products: Int[Array, ""]


class _State(NamedTuple):
    rows: Rows
    matrix: Float[Array, "k k"]
    next: Delta
    """The direction that comes next, of unit length (or zero at the end)."""
    coupling: Float[Array, ""]
    """Length of `next` before it was made a unit vector, over the scale of the operator's products."""
    norm: Float[Array, ""]
    """Largest |A q| so far."""
    defect: Float[Array, ""]
    step: Int[Array, ""]
    status: Int[Array, ""]


def krylov(
    operator: Operator,
    start: Delta,
    *,
    rank: int,
    kind: Literal["lanczos", "arnoldi"] = "lanczos",
    rounding: float | None = None,
) -> tuple[Basis, KrylovInfo]:
    """An orthonormal basis of `span(g, A g, ..., A^{k-1} g)`.

    Lanczos takes its three-term step and then one pass against all rows: the three terms are the first pass
    of a Gram-Schmidt of which the second finds only rounding, so the rows are read twice a step and not four
    times. Arnoldi makes two full passes.

    Args:
      operator: linear map on the tree of `start`. One that is a pytree (`derivatives.hvp` makes such) is passed
        in as data, so that another point or batch needs no second compilation; any other is compiled at each call.
      start: g; only its direction matters.
      rank: k.
      kind: `lanczos` for a symmetric operator, indefinite or not; `arnoldi` for any.
      rounding: relative error of one product. None takes the eps of the least precise array that the operator holds
        (where it is a pytree) or returns; say it for a closure that computes in bfloat16 and returns float32.

    Returns:
      The basis and `KrylovInfo`. The rank is below k where the space is exhausted (INVARIANT: what is left is below
      64 eps of float32, or twice `rounding` where that is more, of the largest product; its measured size is
      `residual_norm`) or where a product was not finite (NOT_FINITE, under `jit`): it then holds the rows whose
      products are known. ZERO for a zero start, NONSYMMETRIC where Lanczos found products that disagree by more
      than the root of `rounding`. Rounding passes for a direction where an operator of low rank hardly couples to
      its last one: look at `matrix` below the diagonal before trusting a row that comes after a small entry.

    Raises:
      GeometryError: a rank that is negative or no whole number, a leaf that is no floating array, an operator that
        leaves the tree, a `rounding` that is not in [0, 1), or (eagerly) numbers that are not finite.

    Source: Lanczos (1950); Paige (1976) for the loss of orthogonality; arXiv 2606.10929, Lemma 1.
    """
    ops.check_rank(rank)
    if kind not in ("lanczos", "arnoldi"):
        raise GeometryError("kind must be lanczos or arnoldi", got=f"`{kind}`")
    if rounding is not None and not 0 <= rounding < 1:
        raise GeometryError("rounding must be in [0, 1)", got=rounding)
    ops.check_floating(start)
    if jax.tree_util.all_leaves([operator]):
        # A new function for each call: a compiled one would remember what the operator held when it was traced.
        operator = jax.tree_util.Partial(lambda delta, apply=operator: apply(delta))
    by_row = ops.on_one_cpu(operator, start)
    result = _krylov(operator, start, rank=rank, kind=kind, rounding=rounding, by_row=by_row)
    raise_if_not_finite("krylov", result, ((start,), {}))
    return result


def _least_precise(arrays: Any) -> float:
    """The largest eps among the floating arrays."""
    found = [leaf.dtype for leaf in jax.tree.leaves(arrays) if hasattr(leaf, "dtype")]
    return max([float(jnp.finfo(dtype).eps) for dtype in found if jnp.issubdtype(dtype, jnp.floating)], default=0.0)


@partial(jax.jit, static_argnames=("rank", "kind", "rounding", "by_row"))
def _krylov(
    operator: Operator, start: Delta, *, rank: int, kind: str, rounding: float | None, by_row: bool
) -> tuple[Basis, KrylovInfo]:
    product = jax.eval_shape(operator, start)
    trees.check_match("krylov, for a vector and its product,", start, product)
    ops.check_floating(product)
    rounding = max(ops.EPS, _least_precise((operator, product)) if rounding is None else rounding)
    first, _ = ops.scaled(start)
    length = ops.norm(first)
    usable = jnp.isfinite(length) & (length > 0)
    unit = ops.divide(first, jnp.where(usable, length, 1.0))
    status = flag(Status.ZERO, length == 0) | flag(Status.NOT_FINITE, ~jnp.isfinite(length))
    zero = jnp.float32(0)
    state = _State(
        empty(start, capacity=rank).rows, jnp.zeros((rank, rank)), unit, zero, zero, zero, jnp.int32(0), status
    )
    step = _lanczos_step if kind == "lanczos" else _arnoldi_step
    if rank:
        state = lax.while_loop(
            lambda s: (s.step < rank) & ((s.status & _END) == 0),
            partial(_advance, step, operator, max(DROP, 2 * rounding), by_row),
            state,
        )
    return _finish(state, kind, rank, rounding**0.5)


_END = Status.ZERO | Status.INVARIANT | Status.NOT_FINITE


class _Split(NamedTuple):
    column: Float[Array, "k"]
    """Coefficients of the product on the rows."""
    rest: Delta
    defect: Float[Array, ""]
    """The largest coefficient that a symmetric operator would not have."""


def _advance(step: Callable[..., _Split], operator: Operator, drop: float, by_row: bool, state: _State) -> _State:
    j = state.step
    rows = ops.set_row(state.rows, j, state.next)
    product, scale = ops.scaled(operator(state.next))
    before = ops.norm(product)
    finite = jnp.isfinite(before)
    column, rest, defect = step(rows, j, state.next, state.coupling / scale, product, j + 1 if by_row else None)
    length = ops.norm(rest)
    norm = jnp.maximum(state.norm, before * scale)
    exhausted = ~(length * scale > drop * norm)
    column = jnp.where(jnp.arange(column.shape[0]) <= j, column * scale, 0.0)
    matrix = state.matrix.at[:, j].set(column)
    matrix = matrix.at[j, j - 1].set(jnp.where(j > 0, state.coupling, matrix[j, j - 1]))
    status = jnp.where(finite, flag(Status.INVARIANT, exhausted), jnp.int32(Status.NOT_FINITE))
    safe = jnp.where(finite & (length > 0), length, 1.0)
    unit = jax.tree.map(lambda x: jnp.where(finite, x / safe, 0.0), rest)
    return _State(
        rows,
        jnp.where(finite, matrix, state.matrix),
        unit,
        jnp.where(finite, length * scale, 0.0),
        jnp.where(finite, norm, state.norm),
        jnp.where(finite, jnp.maximum(state.defect, defect * scale), state.defect),
        j + finite,
        state.status | status,
    )


def _arnoldi_step(
    rows: Rows,
    j: Int[Array, ""],
    unit: Delta,
    coupling: Float[Array, ""],
    product: Delta,
    filled: Int[Array, ""] | None,
) -> _Split:
    return _Split(*split(rows, product, filled), jnp.float32(0))


def _lanczos_step(
    rows: Rows,
    j: Int[Array, ""],
    unit: Delta,
    coupling: Float[Array, ""],
    product: Delta,
    filled: Int[Array, ""] | None,
) -> _Split:
    """The three-term step, then one pass against all rows; a second where the first found more than rounding."""
    diagonal = ops.dot(unit, product)
    before = ops.row(rows, jnp.maximum(j - 1, 0))
    local = jax.tree.map(lambda w, q, p: w - diagonal * q - coupling * p, product, unit, before)

    def full_pass(rest: Delta) -> tuple[Float[Array, "k"], Delta]:
        found = ops.products(rows, rest, filled)
        return found, ops.remove(found, rows, rest, filled)

    found, rest = full_pass(local)
    # |local|^2 = |rest|^2 + |found|^2: where the pass took much away, its own rounding is no longer small.
    much = jnp.sum(jnp.square(found)) > 0.25 * ops.squared_norm(rest)
    again, rest = lax.cond(much, full_pass, lambda same: (jnp.zeros_like(found), same), rest)
    found = found + again
    here = jnp.arange(found.shape[0]) == j
    column = jnp.where(here, diagonal + found, 0.0)
    column = jnp.where(jnp.arange(found.shape[0]) == j - 1, coupling, column)
    return _Split(column, rest, jnp.max(jnp.abs(jnp.where(here, 0.0, found))))


def _finish(state: _State, kind: str, rank: int, symmetric: float) -> tuple[Basis, KrylovInfo]:
    defect = jnp.where(state.norm > 0, state.defect / jnp.where(state.norm > 0, state.norm, 1.0), 0.0)
    status = state.status | flag(Status.NONSYMMETRIC, defect > symmetric)
    rows = state.rows
    if rank:
        # A row whose product was not finite is there already, one beyond the rank.
        place = jnp.minimum(state.step, rank - 1)
        whole = (state.status & Status.NOT_FINITE) == 0
        rows = ops.set_row(rows, place, jax.tree.map(lambda x: jnp.where(whole, x, 0.0), ops.row(rows, place)))
    residual = jax.tree.map(lambda x: x * state.coupling, state.next)
    basis = Basis(rows, state.step, status, kind)
    return basis, KrylovInfo(state.matrix, residual, state.coupling, defect, state.step)
