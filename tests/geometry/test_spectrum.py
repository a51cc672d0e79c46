"""Singular values to the last digits, and the ranks that are read from them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import Status


def planted(values, size=400):
    rng = np.random.default_rng(0)
    k = len(values)
    q = np.linalg.qr(rng.normal(size=(size, k)))[0].T
    return np.linalg.qr(rng.normal(size=(k, k)))[0] @ (np.asarray(values)[:, None] * q)


@pytest.mark.parametrize("values", [[5, 3, 1], [1, 1e-3, 1e-5], [1e-20, 3e-21], [2, 2, 2, 2]], ids=str)
def test_planted_singular_values_come_back(values):
    found = geometry.spectrum({"x": jnp.asarray(planted(values), jnp.float32)})
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-5, atol=4e-7 * values[0])
    s = np.asarray(values, np.float64)
    p = s**2 / np.sum(s**2)
    np.testing.assert_allclose(found.participation_ratio, 1 / np.sum(p**2), rtol=1e-5)
    np.testing.assert_allclose(found.effective_rank, np.exp(-np.sum(p * np.log(p))), rtol=1e-5)
    np.testing.assert_allclose(found.stable_rank, np.sum(s**2) / s[0] ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.top_energy, np.cumsum(p), rtol=1e-5)


def test_the_spectrum_of_a_tree_is_that_of_its_matrix():
    rows = problems.odd_rows(6)
    known = np.linalg.svd(oracles.flat_rows(rows), compute_uv=False)
    np.testing.assert_allclose(geometry.spectrum(rows).singular_values, known, rtol=1e-5)


def test_equal_orthogonal_rows_have_full_rank_and_copies_have_rank_one():
    rows = {"x": 3 * jnp.eye(5, 20)}
    for name in ("effective_rank", "participation_ratio", "stable_rank"):
        assert getattr(geometry.spectrum(rows), name) == pytest.approx(5, rel=1e-6)
        copies = geometry.spectrum({"x": jnp.ones((5, 20))})
        assert getattr(copies, name) == pytest.approx(1, rel=1e-6)
        assert copies.status == Status.DEPENDENT


def test_zero_rows_have_no_rank_and_say_so():
    found = geometry.spectrum({"x": jnp.zeros((3, 4))})
    assert found.participation_ratio == found.effective_rank == found.stable_rank == 0
    assert found.status & Status.ZERO


def test_rows_that_are_not_finite_are_named_or_flagged():
    rows = {"x": jnp.ones((3, 4)).at[1, 1].set(jnp.nan)}
    with pytest.raises(GeometryError, match="`x`"):
        geometry.spectrum(rows)
    found = jax.jit(geometry.spectrum)(rows)
    assert found.status & Status.NOT_FINITE
    assert np.isnan(found.participation_ratio)
