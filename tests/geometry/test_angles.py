"""Planted angles come back, the tiny ones too."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import rows as ops


def bases(angles, size=60, seed=0):
    a, b = oracles.planted_angles(angles, size, seed=seed)
    return tuple(geometry.orthonormalise({"x": jnp.asarray(m, jnp.float32)}) for m in (a, b))


@pytest.mark.parametrize(
    "angles",
    [
        [1e-5],
        [1e-5, 1e-3, 1e-2, 0.1],
        [1e-4, 0.5, 1.2],
        [0.3, 0.78, 0.79, 1.5],
        [np.pi / 2, np.pi / 2 - 1e-3],
        [0.01] * 3,
    ],
    ids=str,
)
def test_planted_angles_are_read_to_a_thousandth(angles):
    found = geometry.principal_angles(*bases(angles))
    np.testing.assert_allclose(found, np.sort(angles), rtol=1e-3)


@pytest.mark.parametrize("by_row", [True, False])
def test_on_one_cpu_and_elsewhere_subspaces_lie_at_the_same_angles(by_row):
    angles = np.asarray([1e-5, 1e-3, 0.1, 1.2])
    moved = geometry.drift(*bases(angles, size=2 * ops.LEAST_BLOCK + 9), by_row=by_row)
    np.testing.assert_allclose(moved.angles, angles, rtol=1e-3)
    np.testing.assert_allclose(moved.overlap, np.mean(np.cos(angles) ** 2), rtol=1e-6)


def test_angles_do_not_depend_on_the_order_or_on_the_rows():
    a, b = bases([0.01, 0.4, 1.0])
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], jnp.float32)
    turned = geometry.Basis({"x": turn @ b.rows["x"]}, b.rank, b.status)
    for first, second in ((b, a), (a, turned), (turned, a)):
        np.testing.assert_allclose(geometry.principal_angles(first, second), [0.01, 0.4, 1.0], rtol=1e-3)


def test_a_rotated_copy_is_at_angle_zero():
    a, _ = bases([0.1, 0.2, 0.3])
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], jnp.float32)
    assert np.all(geometry.principal_angles(a, geometry.Basis({"x": turn @ a.rows["x"]}, a.rank, a.status)) < 1e-6)


def test_subspaces_of_different_dimension():
    a, b = bases([0.2, 0.9])
    wide = geometry.orthonormalise({"x": jnp.concatenate([a.rows["x"], jnp.eye(60)[:3]])})
    both = np.linalg.svd(oracles.flat_rows(wide.rows) @ oracles.flat_rows(b.rows).T, compute_uv=False)
    for pair in ((wide, b), (b, wide)):
        np.testing.assert_allclose(geometry.principal_angles(*pair), np.arccos(both), rtol=1e-3)


def test_beyond_the_rank_there_are_no_angles():
    a, _ = bases([0.1, 0.2, 0.3])
    line = geometry.orthonormalise({"x": jnp.stack([a.rows["x"][0], a.rows["x"][0], a.rows["x"][1]])})
    found = geometry.principal_angles(a, line)
    assert np.all(found[:2] < 1e-6)
    assert np.isnan(found[2])


@pytest.mark.parametrize("angles", [[0.3], [0.0, np.pi / 2], [0.2, 0.7, 1.1]])
def test_overlap_is_the_mean_squared_cosine(angles):
    found = geometry.overlap(*bases(angles))
    np.testing.assert_allclose(found, np.mean(np.cos(angles) ** 2), atol=1e-6)


def test_overlap_of_random_subspaces_is_the_stated_level():
    like = {"x": jnp.zeros(300)}
    keys = jax.random.split(jax.random.key(0), 200)

    def one(key):
        a, b = (geometry.random_basis(k, like, rank=r) for k, r in zip(jax.random.split(key), (4, 6), strict=True))
        return geometry.drift(a, b)

    drifts = jax.jit(jax.vmap(one))(keys)
    assert abs(np.mean(drifts.overlap) - 6 / 300) < 4 * np.std(drifts.overlap) / np.sqrt(200)
    np.testing.assert_allclose(drifts.random_overlap, 6 / 300, rtol=1e-6)
    assert drifts.angles.shape == (200, 4)


def test_the_random_level_of_a_drift_counts_parameters_and_not_rows():
    none, some = geometry.empty({"x": jnp.zeros(60)}, capacity=0), bases([0.1])[0]
    np.testing.assert_allclose(geometry.drift(none, some).random_overlap, 1 / 60, rtol=1e-6)


def test_bases_on_different_trees_are_refused_by_leaf():
    a, _ = bases([0.1])
    other = geometry.orthonormalise({"y": jnp.eye(60)[:1]})
    for kernel in (geometry.principal_angles, geometry.overlap, geometry.drift):
        with pytest.raises(GeometryError, match=r"`[xy]` with shape \(60,\) in the first and no such leaf"):
            kernel(a, other)
