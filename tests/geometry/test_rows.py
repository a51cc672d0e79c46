"""Inner products and combinations of rows against float64 matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError, TreeMismatch
from lacuna.geometry import rows as ops


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gram_matrix_is_that_of_the_stored_numbers_whatever_their_dtype(dtype):
    a, b = problems.odd_rows(4, dtype=dtype), problems.odd_rows(6, seed=1, dtype=dtype)
    known = oracles.flat_rows(a) @ oracles.flat_rows(b).T
    found = geometry.gram(a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, known, atol=3e-7 * 282, rtol=0)
    np.testing.assert_allclose(geometry.gram(a), oracles.flat_rows(a) @ oracles.flat_rows(a).T, atol=3e-7 * 282)


def test_a_gram_matrix_in_blocks_loses_less_than_an_eps():
    size = 5 * ops.LEAST_BLOCK + 123
    a, b = (
        {"w": jax.random.normal(jax.random.key(i), (3, size)), "b": jax.random.normal(jax.random.key(i + 9), (3, 2, 7))}
        for i in range(2)
    )
    exact = oracles.flat_rows(a) @ oracles.flat_rows(b).T
    limit = ops.EPS * size / 4  # of the product of the lengths
    for in_blocks in (True, False):
        np.testing.assert_allclose(ops._gram(a, b, in_blocks=in_blocks), exact, rtol=0, atol=limit)


def test_combinations_are_matrix_products():
    rows = problems.odd_rows(4)
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    np.testing.assert_allclose(
        oracles.flat_rows(ops.combine(matrix, rows)), matrix @ oracles.flat_rows(rows), atol=1e-5
    )
    np.testing.assert_allclose(
        oracles.flat(ops.combine(matrix[0], rows)), matrix[0] @ oracles.flat_rows(rows), atol=1e-5
    )


def test_a_long_inner_product_keeps_its_digits():
    """Smooth vectors are the hard case: their partial sums grow far above the result."""
    n = 2**22
    x = np.cos(np.linspace(0, 20, n)).astype(np.float32)
    y = np.cos(np.linspace(0, 27, n)).astype(np.float32)
    known = x.astype(np.float64) @ y.astype(np.float64)
    (found,) = ops.products({"x": jnp.asarray(x[None])}, {"x": jnp.asarray(y)})
    assert abs(float(found) - known) < 2 * ops.EPS * np.linalg.norm(x) * np.linalg.norm(y)


@pytest.mark.parametrize("size", [0, 1, 31, 64, 97, 4096, 4099, 3 * 4096, 2**17])
def test_a_row_is_added_up_whole_whatever_divides_its_length(size):
    rows, delta = (
        np.random.default_rng(i).normal(size=(*k, size)).astype(np.float32) for i, k in enumerate([(3,), ()])
    )
    found = ops.products({"x": jnp.asarray(rows)}, {"x": jnp.asarray(delta)}, by_row=True)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(delta)
    known = rows.astype(np.float64) @ delta.astype(np.float64)
    assert np.all(np.abs(found - known) <= 2 * ops.EPS * lengths)


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 7, 8])
def test_the_sum_over_leaves_has_every_leaf_once(num_leaves):
    assert ops.pairwise_sum([jnp.float32(2**i) for i in range(num_leaves)]) == 2**num_leaves - 1


@pytest.mark.parametrize("size", [1e-30, 1e-20, 0.7, 1.0, 3.0, 1e20, 3e38])
def test_scaling_is_exact_and_comes_back(size):
    delta = jax.tree.map(lambda x: x * jnp.float32(size / 4), problems.odd_vector())
    small, scale = ops.scaled(delta)
    assert np.log2(float(scale)) % 1 == 0
    assert 1 <= ops.largest(small) < 4
    assert oracles.bits(jax.tree.map(lambda x: x * scale, small)) == oracles.bits(delta)


@pytest.mark.parametrize("size", [0.0, np.nan, np.inf])
def test_a_size_without_a_power_of_two_gives_one(size):
    assert ops.power_of_two(jnp.float32(size)) == 1


def test_trees_that_do_not_match_are_refused_by_leaf_and_shapes():
    a, b = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 4))}, {"w": jnp.ones((5, 3)), "v": jnp.ones((5, 7))}
    with pytest.raises(TreeMismatch, match=r"`v` with shape \(4,\) in the first and shape \(7,\) in the second"):
        geometry.gram(a, b)
    assert issubclass(TreeMismatch, GeometryError)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({}, "at least one leaf"),
        ({"w": jnp.ones((2, 3)), "step": jnp.ones(2, jnp.int32)}, "`step` of dtype int32"),
        ({"w": jnp.ones((2, 3)), "c": jnp.ones(2, jnp.complex64)}, "`c` of dtype complex64"),
        ({"w": jnp.ones((2, 3)), "v": jnp.ones((3, 3))}, r"`v` of shape \(3, 3\) and `w` of shape \(2, 3\)"),
        ({"w": jnp.ones((2, 3)), "s": jnp.float32(1)}, r"`s` of shape \(\)"),
    ],
)
def test_what_is_not_rows_is_refused_by_leaf(rows, sentence):
    for kernel in (geometry.orthonormalise, geometry.gram, geometry.spectrum):
        with pytest.raises(GeometryError, match=sentence):
            kernel(rows)
