"""Prefix bases and the captures that are read from one orthonormalisation, against a loop over prefixes."""

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


def smooth_path(m=12, seed=0):
    """Updates that turn slowly, as those of a real run: their Gram matrix is close to singular."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4, 282))
    times = np.arange(m)[:, None]
    matrix = np.cos(0.15 * times * np.arange(1, 5)) @ directions * 0.9**times
    return jax.tree.map(
        jnp.asarray, oracles.like_rows(matrix + 1e-3 * rng.normal(size=matrix.shape), problems.odd_vector())
    )


def whole(updates):
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), updates)


def test_prefix_captures_are_those_of_each_prefix_basis():
    updates, delta = smooth_path(), problems.odd_vector(seed=3)
    for target in (delta, whole(updates)):
        found = geometry.prefix_captures(updates, target)
        matrix, d = oracles.flat_rows(updates), oracles.flat(target)
        known = [oracles.capture_mass(oracles.gram_schmidt(matrix[: j + 1]), d) for j in range(12)]
        np.testing.assert_allclose(found, known, atol=2e-6)
        assert np.all(np.diff(found) >= 0)
    assert found[-1] == pytest.approx(1, abs=1e-6)


def test_remainder_captures_leave_out_the_steps_of_the_prefix():
    updates = smooth_path()
    matrix = oracles.flat_rows(updates)
    end = matrix.sum(0) + 0.3 * np.random.default_rng(1).normal(size=282)
    target = jax.tree.map(lambda x: jnp.asarray(x[0]), oracles.like_rows(end[None], problems.odd_vector()))
    known = [
        oracles.capture_mass(oracles.gram_schmidt(matrix[: j + 1]), end - matrix[: j + 1].sum(0)) for j in range(12)
    ]
    np.testing.assert_allclose(geometry.remainder_captures(updates, target), known, atol=2e-5)


def test_where_nothing_is_left_the_remainder_has_no_mass():
    rng = np.random.default_rng(0)
    updates = jnp.asarray(rng.normal(size=(4, 12)), jnp.float32)
    masses = geometry.remainder_captures(updates, jnp.sum(updates, axis=0))
    assert masses[-1] == 0
    assert np.all(masses[:-1] > 0)


def test_dependent_updates_do_not_shift_the_prefixes():
    updates = jax.tree.map(lambda x: x.at[1].set(2 * x[0]).at[4].set(0), smooth_path(6))
    matrix = oracles.flat_rows(updates)
    d = problems.odd_vector(seed=3)
    known = [oracles.capture_mass(oracles.gram_schmidt(matrix[: j + 1]), oracles.flat(d)) for j in range(6)]
    np.testing.assert_allclose(geometry.prefix_captures(updates, d), known, atol=1e-6)


def test_captures_of_a_zero_vector_are_zero_and_of_nan_nan():
    updates = smooth_path(4)
    zero = jax.tree.map(jnp.zeros_like, whole(updates))
    assert not np.any(geometry.prefix_captures(updates, zero))
    np.testing.assert_allclose(
        geometry.remainder_captures(jax.tree.map(lambda x: x[:1], updates), jax.tree.map(lambda x: x[0], updates)),
        [0.0],
    )
    bad = jax.tree.map(lambda x: x.at[2].multiply(jnp.nan), updates)
    for kernel in (geometry.prefix_captures, geometry.remainder_captures):
        assert np.all(np.isnan(kernel(bad, whole(updates))))
        assert np.all(np.isnan(kernel(updates, whole(bad))))


def test_a_prefix_is_the_span_of_the_first_updates():
    updates = smooth_path()
    basis = geometry.trajectory_prefix(updates, rank=3)
    np.testing.assert_allclose(
        oracles.flat_rows(basis.rows), oracles.gram_schmidt(oracles.flat_rows(updates)[:3]), atol=2e-4
    )
    assert basis.method == "trajectory_prefix"
    assert geometry.trajectory_prefix(updates, rank=0).rank == 0
    for rank, sentence in ((-1, "0 or more; got -1"), (13, "got rank 13 of 12 updates")):
        with pytest.raises(GeometryError, match=sentence):
            geometry.trajectory_prefix(updates, rank=rank)


def test_task_vectors_span_their_basis_and_copies_are_dropped():
    vectors = jax.tree.map(lambda x: x.at[2].set(-x[0]), problems.odd_rows(3))
    basis = geometry.task_vector_basis(vectors)
    assert (int(basis.rank), int(basis.status), basis.method) == (2, Status.DEPENDENT, "task_vector")


def continued(matrix, horizon, rank, first):
    """The lines of the leading directions at the horizon, by least squares in float64."""
    points = np.cumsum(matrix, axis=0)
    _, _, directions = np.linalg.svd(points, full_matrices=False)
    coefficients = np.concatenate([np.zeros((1, rank)), points @ directions[:rank].T])[first:]
    steps = np.arange(first, len(matrix) + 1)
    lines = np.polyfit(steps, coefficients, 1)
    return (lines[0] * horizon + lines[1]) @ directions[:rank]


@pytest.mark.parametrize(("rank", "first"), [(1, 0), (1, 6), (3, 6), (4, 2), (12, 11)])
def test_the_leading_directions_are_continued_by_straight_lines(rank, first):
    updates = smooth_path()
    known = continued(oracles.flat_rows(updates), 40.0, rank, first)
    found = oracles.flat(geometry.extrapolate(updates, 40.0, rank=rank, fit_from=first))
    np.testing.assert_allclose(found, known, atol=1e-4 * np.linalg.norm(known))


def test_a_straight_path_is_continued_exactly_and_the_start_is_forgotten_by_default():
    step = problems.odd_vector(seed=5)
    straight = jax.tree.map(lambda x: jnp.stack([x] * 6), step)
    for scale in (1.0, 1e-30, 1e30):
        updates = jax.tree.map(lambda x, s=scale: s * x, straight)
        found = oracles.flat(geometry.extrapolate(updates, 100.0, rank=1)) / scale
        np.testing.assert_allclose(found, 100 * oracles.flat(step), rtol=1e-4, atol=1e-4)
    bent = jax.tree.map(lambda x: x.at[0].multiply(7), straight)  # the first step is six too long
    np.testing.assert_allclose(
        oracles.flat(geometry.extrapolate(bent, 100.0, rank=1)), 106 * oracles.flat(step), rtol=1e-4, atol=1e-4
    )


def test_where_nothing_can_be_continued():
    updates = smooth_path(4)
    assert not np.any(oracles.flat(geometry.extrapolate(jax.tree.map(jnp.zeros_like, updates), 9.0, rank=2)))
    bad = jax.tree.map(lambda x: x.at[2].multiply(jnp.nan), updates)
    assert np.all(np.isnan(oracles.flat(geometry.extrapolate(bad, 9.0, rank=2))))
    for rank, first in ((0, None), (5, None), (1, 4), (1, -1)):
        with pytest.raises(GeometryError, match=r"got rank -?\d, step -?\d, 4 updates"):
            geometry.extrapolate(updates, 9.0, rank=rank, fit_from=first)
    with pytest.raises(GeometryError, match="0 updates"):
        geometry.extrapolate(jax.tree.map(lambda x: x[:0], updates), 9.0, rank=1)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_descent_on_a_quadratic_stays_in_the_krylov_space(beta):
    """Lemma 1: with a constant Hessian and step, plain and heavy-ball descent never leave K_t(H, g)."""
    n, steps = 300, 8
    curvature = jnp.linspace(0.1, 2.0, n)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=n), jnp.float32)

    def path(adaptive):
        x = velocity = jnp.zeros(n)
        for _ in range(steps):
            g = gradient + curvature * x
            velocity = beta * velocity + (g / jnp.sqrt(g * g + 1e-3) if adaptive else g)
            x = x - 0.3 * velocity
        return {"x": x}

    basis, _ = geometry.krylov(lambda t: {"x": curvature * t["x"]}, {"x": gradient}, rank=steps)
    assert geometry.capture(basis, path(False)).lost < 1e-9
    assert geometry.capture(basis, path(True)).lost > 0.05
