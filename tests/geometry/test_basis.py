"""Bases are orthonormal to rounding whatever comes in, and say what was dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import Status
from lacuna.geometry import rows as ops

EPS = np.finfo(np.float32).eps


def defect(basis):
    """|Q Q^T - I| in the 2-norm over the rows up to the rank, in eps; checks that the others are zero."""
    q = oracles.flat_rows(basis.rows)
    rank = int(basis.rank)
    assert not q[rank:].any()
    return np.linalg.norm(q[:rank] @ q[:rank].T - np.eye(rank), 2) / EPS


def span_distance(basis, matrix):
    """How far the basis's span is from that of a float64 matrix of as many orthonormal rows."""
    q = oracles.flat_rows(basis.rows)[: int(basis.rank)]
    return np.linalg.norm(q - (q @ matrix.T) @ matrix, 2)


def graded(condition, k=8, size=600):
    """k rows with singular values from 1 to 1 / condition, mixed."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(size, k)))[0].T
    mix = np.linalg.qr(rng.normal(size=(k, k)))[0]
    return mix @ (np.geomspace(1, 1 / condition, k)[:, None] * q)


@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e5])
def test_rows_of_any_conditioning_become_orthonormal(condition):
    matrix = graded(condition).astype(np.float32)
    basis = geometry.orthonormalise({"x": jnp.asarray(matrix)})
    assert defect(basis) < 5
    assert basis.rank == 8
    assert basis.status == 0
    known = oracles.gram_schmidt(matrix.astype(np.float64))
    assert span_distance(basis, known) < 4 * EPS * condition


def test_the_first_rows_span_what_the_first_vectors_span():
    rows = problems.odd_rows(5)
    basis = geometry.orthonormalise(rows)
    known = oracles.gram_schmidt(oracles.flat_rows(rows))
    np.testing.assert_allclose(oracles.flat_rows(basis.rows), known, atol=5 * EPS)


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e20])
def test_the_scale_of_the_rows_does_not_matter(scale):
    rows = problems.odd_rows(4)
    mixed = jax.tree.map(lambda x: x.at[1].multiply(jnp.float32(scale)), rows)
    for one in (jax.tree.map(lambda x: x * jnp.float32(scale), rows), mixed):
        basis = geometry.orthonormalise(one)
        assert basis.status == 0
        assert defect(basis) < 5
        np.testing.assert_allclose(
            oracles.flat_rows(basis.rows), oracles.flat_rows(geometry.orthonormalise(rows).rows), atol=1e-6
        )


def test_repeated_and_zero_rows_are_dropped_and_said_so():
    rows = problems.odd_rows(5)
    rows = jax.tree.map(lambda x: x.at[2].set(x[0] - 3 * x[1]).at[3].set(0), rows)
    basis = geometry.orthonormalise(rows)
    assert basis.rank == 3
    assert basis.status == Status.DEPENDENT | Status.ZERO
    assert defect(basis) < 5
    known = oracles.gram_schmidt(oracles.flat_rows(rows)[[0, 1, 4]])
    assert span_distance(basis, known) < 5 * EPS


def test_more_rows_than_dimensions_fill_the_space():
    basis = geometry.orthonormalise({"x": jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)})
    assert basis.rank == 3
    assert basis.status == Status.DEPENDENT
    assert defect(basis) < 5


def test_no_rows_are_a_basis_of_rank_zero():
    basis = geometry.orthonormalise({"x": jnp.zeros((0, 3))})
    assert basis.rank == basis.status == 0
    assert geometry.capture(basis, {"x": jnp.ones(3)}).mass == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_a_row_that_is_not_finite_is_named_or_leaves_nothing(bad, where):
    rows = problems.odd_rows(3)
    rows["b"][1] = rows["b"][1].at[where, 5].set(bad)
    with pytest.raises(GeometryError, match=r"orthonormalise needs finite numbers; got 1 that are not in `b/1`"):
        geometry.orthonormalise(rows)
    basis = jax.jit(geometry.orthonormalise)(rows)
    assert basis.rank == 0
    assert basis.status & Status.NOT_FINITE
    assert not oracles.flat_rows(basis.rows).any()


def test_bfloat16_rows_are_orthonormalised_in_float32():
    rows = problems.odd_rows(4, dtype=jnp.bfloat16)
    basis = geometry.orthonormalise(rows)
    assert {x.dtype for x in jax.tree.leaves(basis.rows)} == {jnp.dtype(jnp.float32)}
    assert defect(basis) < 5
    assert span_distance(basis, oracles.gram_schmidt(oracles.flat_rows(rows))) < 5 * EPS


def test_a_basis_passes_through_jit_and_vmap():
    many = jax.tree.map(lambda *x: jnp.stack(x), *(problems.odd_rows(3, seed=seed) for seed in range(4)))
    bases = jax.vmap(geometry.orthonormalise)(many)
    np.testing.assert_array_equal(bases.rank, [3] * 4)
    for seed in range(4):
        one = geometry.orthonormalise(problems.odd_rows(3, seed=seed))
        np.testing.assert_allclose(
            oracles.flat_rows(jax.tree.map(lambda x, s=seed: x[s], bases.rows)),
            oracles.flat_rows(one.rows),
            atol=5 * EPS,
        )


def test_a_growing_basis_is_the_one_made_at_once():
    rows = problems.odd_rows(4)
    basis = geometry.empty(problems.odd_vector(), capacity=4)
    for j in range(4):
        delta = jax.tree.map(lambda x, j=j: x[j], rows)
        basis, coefficients, status = geometry.append(basis, delta)
        assert status == 0
        np.testing.assert_allclose(coefficients @ oracles.flat_rows(basis.rows), oracles.flat(delta), atol=1e-5)
    np.testing.assert_allclose(
        oracles.flat_rows(basis.rows), oracles.flat_rows(geometry.orthonormalise(rows).rows), atol=5 * EPS
    )
    assert basis.rank == 4


def test_what_brings_nothing_new_leaves_a_growing_basis_as_it_was():
    one, two = problems.odd_vector(), problems.odd_vector(seed=1)
    basis = geometry.append(geometry.empty(one, capacity=2), one).basis
    before = oracles.bits(basis.rows)
    thrice = jax.tree.map(lambda x: -3 * x, one)
    for delta, bits in (
        (thrice, Status.DEPENDENT),
        (jax.tree.map(jnp.zeros_like, one), Status.ZERO | Status.DEPENDENT),
    ):
        found = geometry.append(basis, delta)
        assert found.status == bits
        assert oracles.bits(found.basis.rows) == before
        assert found.basis.rank == 1
    full = geometry.append(basis, two).basis
    beyond = geometry.append(full, problems.odd_vector(seed=2))
    assert beyond.status == Status.FULL
    assert oracles.bits(beyond.basis.rows) == oracles.bits(full.rows)
    assert geometry.append(full, one).status == Status.DEPENDENT
    with pytest.raises(GeometryError, match="append needs finite numbers"):
        geometry.append(basis, jax.tree.map(lambda x: x * jnp.nan, two))


@pytest.mark.parametrize("k", [32])
def test_orthogonality_does_not_decay_with_the_dimension(k):
    """Smooth rows, whose long partial sums a matrix-vector product would round away."""
    n = 2**20
    x = np.linspace(-1, 1, n)
    rows = {"x": np.stack([np.cos(j * np.arccos(x)) for j in range(k)]).astype(np.float32).reshape(k, 1024, 1024)}
    assert defect(geometry.orthonormalise(jax.tree.map(jnp.asarray, rows))) < 10


def test_one_row_after_the_other_or_all_at_once_gives_the_same_basis():
    """On one CPU kernels loop over rows; elsewhere, and where they are traced, they take them all at once."""
    rows = problems.odd_rows(6)
    looped, whole = (geometry.orthonormalise(rows, by_row=by_row) for by_row in (True, False))
    np.testing.assert_allclose(oracles.flat_rows(looped.rows), oracles.flat_rows(whole.rows), atol=5 * EPS)
    assert ops.on_one_cpu(rows)
    spread = jax.device_put(rows["a"], jax.devices()[1])
    assert not ops.on_one_cpu(rows, spread)
    assert not jax.jit(lambda r: ops.on_one_cpu(r) * 1)(rows)
