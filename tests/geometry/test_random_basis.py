"""Random subspaces of the tree and of its blocks, and the levels that belong to them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import Status

LIKE = problems.odd_vector()
SIZES = {"a": 210, "b/0": 1, "b/1": 41, "nothing": 0, "stacked": 30}


def stacked(name):
    return name == "stacked"


def test_a_random_basis_is_a_function_of_its_key_and_of_leaf_names():
    one = geometry.random_basis(jax.random.key(0), LIKE, rank=3)
    again = geometry.random_basis(jax.random.key(0), LIKE, rank=3)
    other = geometry.random_basis(jax.random.key(1), LIKE, rank=3)
    assert oracles.bits(one.rows) == oracles.bits(again.rows)
    assert geometry.overlap(one, other) < 0.1
    assert (one.method, int(one.rank), int(one.status)) == ("random", 3, 0)


def test_a_rank_above_the_dimension_fills_the_space():
    basis = geometry.random_basis(jax.random.key(0), {"x": jnp.zeros(3)}, rank=5)
    assert basis.rank == 3
    assert basis.status == Status.DEPENDENT
    with pytest.raises(GeometryError, match="got -1"):
        geometry.random_basis(jax.random.key(0), LIKE, rank=-1)


def test_every_block_has_an_orthonormal_basis_of_its_own():
    basis = geometry.random_block_basis(jax.random.key(0), LIKE, rank=4, stacked=stacked)
    for name, rows in (("a", basis.rows["a"]), ("b/1", basis.rows["b"][1])):
        q = np.asarray(rows, np.float64).reshape(4, -1)
        np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-6, err_msg=name)
    for layer in range(3):
        q = np.asarray(basis.rows["stacked"], np.float64)[:, layer].reshape(4, -1)
        np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-6)
    assert [np.asarray(r).tolist() for r in jax.tree.leaves(basis.ranks)] == [4, 1, 4, 0, [4, 4, 4]]


def test_the_capture_of_blocks_is_the_sum_over_blocks_beside_its_own_level():
    basis = geometry.random_block_basis(jax.random.key(0), LIKE, rank=4, stacked=stacked)
    delta = jax.tree.map(lambda x: 3 * x, problems.odd_vector(seed=1))
    delta["a"] = 0.1 * delta["a"]
    inside = level = 0.0
    shares, masses, levels = [], [], []
    d = oracles.flat(delta)
    for rows, part in [
        (basis.rows["a"], delta["a"]),
        *zip(basis.rows["b"], delta["b"], strict=True),
        *[(basis.rows["stacked"][:, layer], delta["stacked"][layer]) for layer in range(3)],
    ]:
        q, v = np.asarray(rows, np.float64).reshape(4, -1), np.asarray(part, np.float64).ravel()
        inside += np.sum((q @ v) ** 2)
        level += (v @ v) * min(4, v.size) / v.size
        shares.append(v @ v / (d @ d))
        masses.append(np.sum((q @ v) ** 2) / (v @ v))
        levels.append(min(4, v.size) / v.size)
    found = geometry.block_capture(basis, delta)
    np.testing.assert_allclose(found.mass, inside / (d @ d), rtol=1e-5)
    np.testing.assert_allclose(found.random_mass, level / (d @ d), rtol=1e-5)
    assert found.rank == 4 + 1 + 4 + 0 + 12
    for one, expected in zip(found.blocks, (shares, masses, levels), strict=True):
        assert float(one["nothing"][0] if one["nothing"].ndim else one["nothing"]) == 0.0
        blocks = np.concatenate([np.ravel(one["a"]), *map(np.ravel, one["b"]), np.ravel(one["stacked"])])
        np.testing.assert_allclose(blocks, expected, rtol=1e-5)


def test_random_blocks_capture_their_level_on_average():
    delta = problems.odd_vector(seed=1)
    delta["a"] = 0.1 * delta["a"]

    def one(key):
        return geometry.block_capture(geometry.random_block_basis(key, LIKE, rank=3, stacked=stacked), delta)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 300))
    error = np.std(found.mass) / np.sqrt(300)
    assert abs(np.mean(found.mass) - found.random_mass[0]) < 4 * error
    assert found.random_mass[0] > 5 * geometry.random_mass(3, LIKE)


def test_blocks_of_given_rows_span_those_rows_in_each_block():
    rows = problems.odd_rows(3)
    basis = geometry.block_orthonormalise(rows, stacked=stacked)
    for j in range(3):
        assert geometry.block_capture(basis, jax.tree.map(lambda x, j=j: x[j], rows)).mass == pytest.approx(1, abs=1e-6)
    with pytest.raises(GeometryError, match="_block_orthonormalise needs finite numbers; got 3 that are not in `a`"):
        geometry.block_orthonormalise({**rows, "a": rows["a"].at[:, 0, 0].set(jnp.nan)})


def test_block_capture_says_zero_and_names_what_is_not_finite():
    basis = geometry.random_block_basis(jax.random.key(0), LIKE, rank=2)
    found = geometry.block_capture(basis, jax.tree.map(jnp.zeros_like, LIKE))
    assert (float(found.mass), int(found.status)) == (0.0, Status.ZERO)
    with pytest.raises(GeometryError, match="`b/0`"):
        geometry.block_capture(basis, {**LIKE, "b": [jnp.float32(jnp.nan), LIKE["b"][1]]})
