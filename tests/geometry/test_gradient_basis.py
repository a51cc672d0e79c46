"""The leading directions of gradients against a float64 singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import Status

EPS = np.finfo(np.float32).eps


def gradients(values, scale=1.0):
    rng = np.random.default_rng(0)
    k = len(values)
    q = np.linalg.qr(rng.normal(size=(282, k)))[0].T
    matrix = scale * np.linalg.qr(rng.normal(size=(k, k)))[0] @ (np.asarray(values)[:, None] * q)
    return jax.tree.map(jnp.asarray, oracles.like_rows(matrix, problems.odd_vector())), q


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_leading_directions_come_strongest_first(rank, scale):
    rows, q = gradients([9, 5, 3, 1, 0.5], scale)
    basis = geometry.gradient_basis(rows, rank=rank)
    assert (int(basis.rank), int(basis.status)) == (rank, 0)
    cosines = np.abs(np.sum(oracles.flat_rows(basis.rows) * q[:rank], axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_directions_lost_in_rounding_are_dropped_and_the_rest_is_orthonormal():
    rows, q = gradients([1, 1e-2, 3e-7, 1e-7])
    basis = geometry.gradient_basis(rows, rank=4)
    assert basis.rank == 2
    assert basis.status & Status.DEPENDENT
    found = oracles.flat_rows(basis.rows)[:2]
    assert np.linalg.norm(found @ found.T - np.eye(2), 2) < 5 * EPS
    np.testing.assert_allclose(np.abs(np.sum(found * q[:2], axis=1)), 1, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_close_small_singular_values_are_told_apart(seed):
    """The rounding of a float32 Gram matrix would mix them with the second direction."""
    rng = np.random.default_rng(seed)
    k, size = 32, 2000
    left, right = np.linalg.qr(rng.normal(size=(k, k)))[0], np.linalg.qr(rng.normal(size=(size, k)))[0].T
    matrix = (left * np.r_[1, 4.2e-4, np.full(30, 3.6e-4)]) @ right
    basis = geometry.gradient_basis(jnp.asarray(matrix, jnp.float32), rank=2)
    assert (int(basis.rank), int(basis.status)) == (2, 0)
    known = np.linalg.svd(np.asarray(jnp.asarray(matrix, jnp.float32), np.float64), full_matrices=False)[2][1]
    assert (np.asarray(basis.rows, np.float64)[1] @ known) ** 2 > 0.999


def test_a_rank_above_the_number_of_gradients_is_refused():
    rows, _ = gradients([2, 1])
    for rank, sentence in ((-1, "0 or more; got -1"), (3, "got rank 3 of 2 gradients")):
        with pytest.raises(GeometryError, match=sentence):
            geometry.gradient_basis(rows, rank=rank)


def test_gradients_that_are_not_finite_are_named_or_leave_nothing():
    rows, _ = gradients([2, 1])
    rows["stacked"] = rows["stacked"].at[1, 2, 0, 0].set(jnp.inf)
    with pytest.raises(GeometryError, match="got 1 that are not in `stacked`"):
        geometry.gradient_basis(rows, rank=2)
    basis = jax.jit(lambda r: geometry.gradient_basis(r, rank=2))(rows)
    assert basis.status & Status.NOT_FINITE
    assert not oracles.flat_rows(basis.rows).any()


def test_zero_gradients_span_nothing():
    basis = geometry.gradient_basis({"x": jnp.zeros((3, 4))}, rank=2)
    assert basis.rank == 0
    assert basis.status & Status.ZERO
