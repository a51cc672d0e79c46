"""Capture, projection and signal against float64, from all to nothing."""

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
LIKE = problems.odd_vector()


def basis_and_vector(mass, k=5):
    """A basis of rank k and a vector of which this mass lies inside, with the float64 matrix of both."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(282, k + 1)))[0].T
    inside = rng.normal(size=k)
    d = np.sqrt(mass) * (inside / np.linalg.norm(inside)) @ q[:k] + np.sqrt(1 - mass) * q[k]
    rows = jax.tree.map(jnp.asarray, oracles.like_rows(q[:k], LIKE))
    delta = jax.tree.map(lambda x: jnp.asarray(x[0]), oracles.like_rows(7 * d[None], LIKE))
    return geometry.Basis(rows, jnp.int32(k), jnp.int32(0)), delta


@pytest.mark.parametrize("mass", [1e-6, 0.01, 0.3, 0.77, 0.999])
def test_the_mass_is_right_to_a_millionth(mass):
    found = geometry.capture(*basis_and_vector(mass))
    np.testing.assert_allclose(found.mass, mass, atol=1e-6 * max(mass, 0.01), rtol=1e-6)
    np.testing.assert_allclose(found.norm, np.sqrt(found.mass), rtol=1e-6)
    np.testing.assert_allclose(found.lost, 1 - mass, rtol=1e-5)
    assert found.status == 0


@pytest.mark.parametrize("lost", [1e-4, 1e-8, 1e-11])
def test_what_is_lost_is_seen_far_below_rounding_of_the_mass(lost):
    found = geometry.capture(*basis_and_vector(1 - lost))
    np.testing.assert_allclose(found.lost, lost, rtol=2e-2)
    assert found.mass <= 1


def test_capture_is_one_inside_and_zero_outside():
    basis, _ = basis_and_vector(0.5)
    inside = jax.tree.map(lambda x: x[0] - 2 * x[3], basis.rows)
    found = geometry.capture(basis, inside)
    assert found.lost < (4 * EPS) ** 2
    assert found.mass == found.norm == 1
    assert geometry.capture(basis, basis_and_vector(0.0)[1]).mass < (4 * EPS) ** 2


def test_what_the_rounding_of_a_long_product_leaves_in_the_span_is_not_lost():
    """Of positive numbers it is an eps or two of the vector; what the rounding of each element leaves is a third."""
    row = np.abs(np.random.default_rng(0).normal(size=2**21)) + 0.3
    rows = jnp.asarray(row[None] / np.linalg.norm(row), jnp.float32)
    basis = geometry.Basis(rows, jnp.int32(1), jnp.int32(0))
    for by_row in (True, False):
        assert geometry.capture(basis, 7 * rows[0], by_row=by_row).lost < (0.7 * EPS) ** 2


def test_capture_of_random_bases_has_the_beta_law():
    """Mean k / P within four standard errors, and its variance."""
    k, size, num = 4, 282, 400
    make = jax.jit(jax.vmap(lambda key: geometry.capture(geometry.random_basis(key, LIKE, rank=k), LIKE).mass))
    masses = np.asarray(make(jax.random.split(jax.random.key(0), num)), np.float64)
    variance = 2 * k * (size - k) / (size**2 * (size + 2))
    assert abs(masses.mean() - k / size) < 4 * np.sqrt(variance / num)
    assert 0.7 < masses.var() / variance < 1.4
    assert geometry.random_mass(k, LIKE) == pytest.approx(k / size)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_the_vector_does_not_matter(scale):
    basis, delta = basis_and_vector(0.77)
    far = jax.tree.map(lambda x: x * jnp.float32(scale), delta)
    np.testing.assert_allclose(geometry.capture(basis, far).mass, 0.77, rtol=1e-6)
    back = jax.tree.map(lambda x: x / jnp.float32(scale), geometry.project(basis, far))
    np.testing.assert_allclose(oracles.flat(back), oracles.flat(geometry.project(basis, delta)), rtol=1e-4, atol=1e-6)


def test_a_zero_vector_has_no_mass_and_says_so():
    basis, delta = basis_and_vector(0.5)
    found = geometry.capture(basis, jax.tree.map(jnp.zeros_like, delta))
    assert found.mass == found.lost == 0
    assert found.status == Status.ZERO


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_named_or_gives_nan(bad):
    basis, delta = basis_and_vector(0.5)
    delta["a"] = delta["a"].at[3, 2].set(bad)
    for kernel in (geometry.capture, geometry.signal):
        with pytest.raises(GeometryError, match=r"got 1 that are not in `a`"):
            kernel(basis, delta)
        found = jax.jit(kernel)(basis, delta)
        assert np.isnan(found.mass)
        assert found.status == Status.NOT_FINITE


@pytest.mark.parametrize(("mass", "tolerance"), [(0.77, 1e-5), (5 / 282, 1e-3)])
def test_rows_and_vectors_stored_in_bfloat16_lose_storage_and_no_arithmetic(mass, tolerance):
    basis, delta = basis_and_vector(mass)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (basis.rows, delta))
    q, d = oracles.flat_rows(half[0]), oracles.flat(half[1])
    found = geometry.capture(geometry.Basis(half[0], basis.rank, basis.status), half[1])
    assert found.mass.dtype == jnp.float32
    np.testing.assert_allclose(
        geometry.signal(geometry.Basis(half[0], basis.rank, basis.status), half[1]).mass,
        np.sum((q @ d) ** 2),
        rtol=1e-5,
    )
    np.testing.assert_allclose(found.mass, oracles.capture_mass(q, d), rtol=5e-3 if mass > 0.5 else 2e-2)


def test_what_is_lost_to_rows_stored_in_bfloat16_is_the_distance_to_their_span():
    """Their length is off by more than the rounding of float32: one removal leaves some of the span behind."""
    row = np.full((1, 282), 282**-0.5)
    narrow = jnp.asarray(row, jnp.bfloat16)
    beside = np.tile([1.0, -1.0], 141) * 282**-0.5
    delta = jnp.asarray(row[0] + 0.05 * beside, jnp.float32)
    basis = geometry.Basis(narrow, jnp.int32(1), jnp.int32(0))
    np.testing.assert_allclose(geometry.capture(basis, delta).lost, 0.05**2 / (1 + 0.05**2), rtol=1e-5)


def test_a_basis_that_was_emptied_says_nothing_of_a_vector():
    """Under jit nobody raised when it was made: the next kernel must not give a clean zero."""
    rows = problems.odd_rows(4)
    delta = jax.tree.map(lambda x: x[0] + x[1], rows)
    bad = {**rows, "a": rows["a"].at[3, 2, 1].set(jnp.nan)}
    for kernel in (geometry.capture, geometry.signal):
        found = jax.jit(lambda r, d, kernel=kernel: kernel(geometry.orthonormalise(r), d))(bad, delta)
        assert np.isnan(found.mass)
        assert found.status & Status.NOT_FINITE
    found = jax.jit(lambda r, d: geometry.block_capture(geometry.block_orthonormalise(r), d))(bad, delta)
    assert np.isnan(found.mass)


def test_a_batch_of_bases_needs_vmap():
    many = jax.vmap(geometry.orthonormalise)(jnp.ones((3, 4, 20)))
    for call in (
        lambda: geometry.capture(many, jnp.ones((4, 20))),
        lambda: geometry.signal(many, jnp.ones((4, 20))),
        lambda: geometry.drift(many, many),
        lambda: geometry.append(many, jnp.ones((4, 20))),
    ):
        with pytest.raises(GeometryError, match=r"a batch of shape \(3,\)"):
            call()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_norm_of_a_signal_holds_at_any_scale(scale):
    basis, gradient = basis_and_vector(0.77)
    far = jax.tree.map(lambda x: x * jnp.float32(scale), gradient)
    np.testing.assert_allclose(geometry.signal(basis, far).norm / scale, 0.77**0.5 * 7, rtol=1e-5)


def test_nothing_is_recovered_where_the_loss_does_not_fall():
    basis = geometry.orthonormalise({"x": jnp.eye(3)[:1]})
    start, step = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
    assert np.isnan(geometry.functional_recovery(lambda p: jnp.sum(p["x"] ** 2), start, step, basis))


def test_projection_is_linear_idempotent_and_shortens():
    basis, delta = basis_and_vector(0.77)
    q = oracles.flat_rows(basis.rows)
    once = geometry.project(basis, delta)
    np.testing.assert_allclose(oracles.flat(once), q.T @ (q @ oracles.flat(delta)), atol=1e-6)
    np.testing.assert_allclose(oracles.flat(geometry.project(basis, once)), oracles.flat(once), atol=1e-6)


def test_signal_is_mass_and_mass_for_each_dimension():
    basis, gradient = basis_and_vector(0.77, k=4)
    found = geometry.signal(basis, gradient)
    np.testing.assert_allclose(found.mass, 0.77 * 49, rtol=1e-5)
    np.testing.assert_allclose(found.density, 0.77 * 49 / 4, rtol=1e-5)
    assert geometry.signal(geometry.empty(gradient, capacity=4), gradient).status == Status.ZERO


def test_a_vector_on_another_tree_is_refused_by_leaf_and_shapes():
    basis, delta = basis_and_vector(0.5)
    delta["a"] = delta["a"].T
    for kernel in (geometry.capture, geometry.project, geometry.signal):
        with pytest.raises(GeometryError, match=r"`a` with shape \(30, 7\) in the first and shape \(7, 30\)"):
            kernel(basis, delta)
    with pytest.raises(GeometryError, match=r"`b/1` with .* and no such leaf in the second"):
        geometry.capture(basis, {"a": delta["a"].T, "b": [delta["b"][0]], "nothing": delta["nothing"]})


def test_functional_recovery_compares_loss_drops():
    def loss(params):
        return jnp.sum((params["x"] - jnp.array([1.0, 2.0, 0.0])) ** 2)

    start, displacement = {"x": jnp.zeros(3)}, {"x": jnp.array([1.0, 2.0, 0.0])}
    for row, share in (([0.0, 1.0, 0.0], 4 / 5), ([1.0, 0.0, 0.0], 1 / 5), ([0.0, 0.0, 1.0], 0.0)):
        basis = geometry.orthonormalise({"x": jnp.array([row])})
        np.testing.assert_allclose(geometry.functional_recovery(loss, start, displacement, basis), share, rtol=1e-6)
