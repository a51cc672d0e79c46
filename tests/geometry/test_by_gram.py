"""Bases and spectra from inner products alone, and what is left to Gram-Schmidt because these cannot tell."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.geometry import Status
from lacuna.geometry import basis as bases
from lacuna.geometry import rows as ops
from lacuna.geometry.factors import factors

EPS = np.finfo(np.float32).eps
LIKE = {"blocks and a rest": jnp.zeros((3, ops.LEAST_BLOCK - 7)), "scalar": jnp.zeros(()), "nothing": jnp.zeros((0, 3))}
SIZE = sum(leaf.size for leaf in LIKE.values())


def conditioned(condition, k=6, seed=0):
    """k rows with singular values from 1 to 1 / condition, mixed."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(SIZE, k)))[0].T
    mix = np.linalg.qr(rng.normal(size=(k, k)))[0]
    matrix = mix @ (np.geomspace(1, 1 / condition, k)[:, None] * q)
    return jax.tree.map(jnp.asarray, oracles.like_rows(matrix, LIKE))


def scaled_row(rows, j, scale):
    return jax.tree.map(lambda x: x.at[j].multiply(jnp.asarray(scale, x.dtype)), rows)


@jax.jit
def by_gram(rows):
    found = factors(rows)
    return found, bases._by_gram(rows, found, method="by gram")


def on_one_cpu(kernel):
    """The kernel as it runs on one CPU, but whose rows are never too small for their Gram matrix."""

    def tried(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bases, "LEAST_BY_GRAM", 1)
            return kernel.__wrapped__(*arguments, by_row=True)

    return jax.jit(tried)


orthonormalise, spectrum = on_one_cpu(geometry.orthonormalise), on_one_cpu(geometry.spectrum)
by_gram_schmidt = jax.jit(geometry.orthonormalise)


def assert_triangular(rows, found):
    """Orthonormal rows, each in the span of as many vectors, and the coefficients of these on them."""
    matrix, q = oracles.flat_rows(rows), oracles.flat_rows(found.basis.rows)
    condition = np.linalg.cond(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    assert np.linalg.norm(q @ q.T - np.eye(len(q)), 2) < 5 * EPS
    assert np.linalg.norm(q - oracles.gram_schmidt(matrix), 2) < 5 * EPS * condition
    coefficients = np.asarray(found.coefficients, np.float64)
    assert not np.triu(coefficients, 1).any()
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(coefficients @ q / lengths, matrix / lengths, atol=5 * EPS)
    np.testing.assert_array_equal(found.ranks, np.arange(1, len(q) + 1))
    assert found.basis.rank == len(q)
    assert found.basis.status == 0


@pytest.mark.parametrize(("condition", "twice"), [(1, False), (1.2, False), (5, True), (40, True)])
def test_rows_become_orthonormal_by_their_gram_matrix(condition, twice):
    rows = conditioned(condition)
    found, triangular = by_gram(rows)
    assert found.fit
    assert found.twice == twice
    assert_triangular(rows, triangular)


@pytest.mark.parametrize("k", [1, 2])
def test_few_rows_become_orthonormal_by_their_gram_matrix(k):
    rows = conditioned(3, k=k)
    found, triangular = by_gram(rows)
    assert found.fit
    assert_triangular(rows, triangular)


def test_rows_of_different_lengths_become_orthonormal_by_their_gram_matrix():
    rows = scaled_row(scaled_row(conditioned(5), 1, 1e-8), 3, 1e7)
    found, triangular = by_gram(rows)
    assert found.fit
    assert_triangular(rows, triangular)


def test_narrow_rows_become_orthonormal_in_float32():
    rows = jax.tree.map(lambda x: x.astype(jnp.bfloat16), conditioned(5))
    found, triangular = by_gram(rows)
    assert found.fit
    assert {x.dtype for x in jax.tree.leaves(triangular.basis.rows)} == {jnp.dtype(jnp.float32)}
    assert_triangular(rows, triangular)


def repeated(rows):
    return jax.tree.map(lambda x: x.at[4].set(x[0] - 2 * x[1]), rows)


BEYOND = {
    "conditioned too badly": conditioned(1e3),
    "dependent": repeated(conditioned(1)),
    "zero": scaled_row(conditioned(1), 2, 0),
    "not a number": scaled_row(conditioned(1), 2, np.nan),
    "infinite": scaled_row(conditioned(1), 2, np.inf),
    "squares some of which underflow": scaled_row(conditioned(1), 2, 3e-17),
    "squares that overflow": scaled_row(conditioned(1), 2, 1e25),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_a_gram_matrix_cannot_tell_is_left_to_gram_schmidt(case):
    rows = BEYOND[case]
    assert not by_gram(rows)[0].fit
    tried, known = orthonormalise(rows), by_gram_schmidt(rows)
    assert (int(tried.rank), int(tried.status)) == (int(known.rank), int(known.status))
    np.testing.assert_allclose(oracles.flat_rows(tried.rows), oracles.flat_rows(known.rows), atol=1e-4)


def test_more_rows_than_numbers_are_left_to_gram_schmidt():
    rows = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)}
    basis = orthonormalise(rows)
    assert (int(basis.rank), int(basis.status)) == (3, Status.DEPENDENT)


def test_a_row_with_less_than_the_floor_outside_of_the_others_is_left_to_gram_schmidt():
    rows = conditioned(5)
    least = float(jnp.min(jnp.diagonal(by_gram(rows)[0].coefficients)))
    fit = jax.jit(lambda floor: factors(rows, floor).fit)
    assert fit(0.9 * least)
    assert not fit(1.1 * least)


@pytest.mark.parametrize("condition", [1.2, 40, 1e4])
def test_a_spectrum_is_right_whichever_way_it_is_found(condition):
    rows = conditioned(condition)
    found = spectrum(rows)
    known = np.linalg.svd(oracles.flat_rows(rows), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, known, rtol=0, atol=5 * EPS * known[0])
    assert found.status == 0


def test_large_rows_on_one_cpu_go_by_their_gram_matrix():
    """The same bits, which no other way gives."""
    draw = jax.random.normal(jax.random.key(0), (2, bases.LEAST_BY_GRAM // 2))
    rows = {"x": draw.at[1].add(2 * draw[0])}
    basis = geometry.orthonormalise(rows)
    assert oracles.bits(basis.rows) == oracles.bits(by_gram(rows)[1].basis.rows)
    assert oracles.bits(basis.rows) != oracles.bits(jax.jit(geometry.orthonormalise)(rows).rows)


def test_a_combination_in_place_is_a_combination():
    rows = problems.odd_rows(4) | conditioned(2, k=4)
    matrix = jnp.asarray(np.tril(np.random.default_rng(0).normal(size=(4, 4))), jnp.float32)
    in_place = jax.jit(ops.combine_in_place)
    expected = np.asarray(matrix, np.float64) @ oracles.flat_rows(rows)
    np.testing.assert_allclose(oracles.flat_rows(in_place(matrix, rows, True)), expected, atol=2e-6)
    assert oracles.bits(in_place(matrix, rows, False)) == oracles.bits(rows)


def test_inner_products_of_a_combination_are_those_of_its_rows():
    rows = conditioned(3)
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    combined = np.asarray(matrix, np.float64) @ oracles.flat_rows(rows)
    found = jax.jit(ops.gram_of_combined)(matrix, rows)
    np.testing.assert_allclose(found, combined @ combined.T, atol=5 * EPS * np.linalg.norm(combined, 2) ** 2)
