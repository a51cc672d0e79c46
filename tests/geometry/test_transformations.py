"""Kernels under jit, vmap and grad, and at the smallest sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.geometry import Status

ROWS, DELTA = problems.odd_rows(4), problems.odd_vector(seed=7)


def test_the_gradient_of_a_capture():
    """`grad mass = 2 (Q^T Q d - mass d) / |d|^2`."""
    basis = geometry.orthonormalise(ROWS)
    q, d = oracles.flat_rows(basis.rows), oracles.flat(DELTA)
    mass = oracles.capture_mass(q, d)
    found = jax.grad(lambda delta: geometry.capture(basis, delta).mass)(DELTA)
    np.testing.assert_allclose(oracles.flat(found), 2 * (q.T @ (q @ d) - mass * d) / (d @ d), atol=1e-7)


def test_the_gradient_of_a_signal():
    basis = geometry.orthonormalise(ROWS)
    q, d = oracles.flat_rows(basis.rows), oracles.flat(DELTA)
    found = jax.grad(lambda delta: geometry.signal(basis, delta).mass)(DELTA)
    np.testing.assert_allclose(oracles.flat(found), 2 * q.T @ (q @ d), atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: geometry.capture(geometry.orthonormalise(rows), DELTA).mass,
        lambda rows: geometry.spectrum(rows).participation_ratio,
        lambda rows: jnp.sum(geometry.gram(rows) ** 2) * 1e-6,
    ],
    ids=["capture of a span", "participation ratio", "gram"],
)
def test_gradients_through_an_orthonormalisation_are_those_of_finite_differences(function):
    direction = problems.odd_rows(4, seed=5)
    slope = sum(
        jnp.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (jax.grad(function)(ROWS), direction)), strict=True)
    )
    step = 1e-2
    ahead, behind = (function(jax.tree.map(lambda r, v, s=s: r + s * v, ROWS, direction)) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-2, atol=1e-4)


def test_gradients_at_the_edge_are_zero_and_not_nan():
    """The slope of a length at zero is taken as zero."""
    basis = geometry.orthonormalise(jax.tree.map(lambda x: x.at[:, :1].set(0) if x.ndim > 1 else 0 * x, ROWS))
    outside = {**jax.tree.map(jnp.zeros_like, DELTA), "b": [jnp.float32(2), DELTA["b"][1] * 0]}
    for share in ("mass", "norm"):
        slope = oracles.flat(jax.grad(lambda d, s=share: getattr(geometry.capture(basis, d), s))(outside))
        assert not slope.any()
    repeated = jax.tree.map(lambda x: x.at[2].set(0).at[3].set(x[0]), ROWS)
    slope = jax.grad(lambda rows: geometry.capture(geometry.orthonormalise(rows), DELTA).mass)(repeated)
    assert np.isfinite(oracles.flat_rows(slope)).all()


def test_kernels_at_rank_zero():
    none = jax.tree.map(lambda x: x[:0], ROWS)
    empty = geometry.orthonormalise(none)
    assert geometry.gram(none, ROWS).shape == (0, 4)
    assert geometry.capture(empty, DELTA).mass == 0
    assert not oracles.flat(geometry.project(empty, DELTA)).any()
    assert geometry.signal(empty, DELTA).status == Status.ZERO
    assert geometry.prefix_captures(none, DELTA).shape == (0,)
    assert geometry.remainder_captures(none, DELTA).shape == (0,)
    assert geometry.append(empty, DELTA).status == Status.FULL
    for basis in (geometry.gradient_basis(ROWS, rank=0), geometry.random_basis(jax.random.key(0), DELTA, rank=0)):
        assert (int(basis.rank), basis.capacity) == (0, 0)
    assert geometry.principal_angles(empty, geometry.orthonormalise(ROWS)).shape == (0,)


def test_a_tree_of_one_scalar():
    rows = jnp.array([[2.0], [3.0]]).reshape(2)
    basis = geometry.orthonormalise(rows)
    assert (int(basis.rank), int(basis.status)) == (1, Status.DEPENDENT)
    assert geometry.capture(basis, jnp.float32(-4)).mass == 1
    _, info = geometry.krylov(lambda x: 5 * x, jnp.float32(2), rank=3)
    np.testing.assert_allclose(info.matrix[0, 0], 5)


def test_vmapped_captures_are_those_of_each():
    basis = geometry.orthonormalise(ROWS)
    many = problems.odd_rows(5, seed=11)
    found = jax.vmap(lambda d: geometry.capture(basis, d))(many)
    for i in range(5):
        one = geometry.capture(basis, jax.tree.map(lambda x, i=i: x[i], many))
        np.testing.assert_allclose(found.mass[i], one.mass, rtol=1e-5)
