"""Best-of-N on landscapes that are linear or quadratic by construction, against real draws in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from lacuna import theory
from lacuna.errors import InvalidInput


def search(rng, a, h, *, n, sigma, searches, both_signs=False):
    """Gains of whole searches of n draws on `<a, x> + x^T diag(h) x / 2`, started at zero."""
    gains = []
    for _ in range(searches):
        z = rng.standard_normal((n, len(a)))
        odd, even = sigma * (z @ a), sigma**2 / 2 * (z**2 @ h)
        gains.append(-np.min(even + (-np.abs(odd) if both_signs else odd)))
    return np.array(gains)


def within(gains, prediction, errors):
    return abs(np.mean(gains) - float(prediction)) < errors * np.std(gains) / math.sqrt(len(gains))


@pytest.mark.parametrize("size", [10, 1_000, 100_000])
def test_the_dimension_does_not_matter_on_a_linear_loss(size):
    a = np.random.default_rng(0).standard_normal(size)
    a *= 3 / np.linalg.norm(a)
    gains = search(np.random.default_rng(1), a, np.zeros(size), n=8, sigma=0.1, searches=40)
    low, high = theory.best_of_n_band(8, 0.1, 3.0, level=0.999)
    assert np.all((low < gains) & (gains < high))
    assert within(gains, theory.best_of_n_gain(8, 0.1, 3.0), 3)


@pytest.mark.parametrize("both_signs", [False, True])
def test_a_quadratic_loss_gains_what_the_second_order_predicts_and_the_first_does_not(both_signs):
    a, h = np.zeros(60), np.full(60, 0.2)
    a[0], h[0] = 1.0, 3.0  # u^T H u = 3, tr H = 14.8: the winner pays 3 (m2 - 1) = 12 more
    rng = np.random.default_rng(0)
    gains = search(rng, a, h, n=64, sigma=0.02, searches=2_000, both_signs=both_signs)
    planted = (1.0, h.sum(), 3.0)
    assert within(gains, theory.best_of_n_gain(64, 0.02, *planted, both_signs=both_signs), 4)
    assert not within(gains, theory.best_of_n_gain(64, 0.02, *planted[:2], both_signs=both_signs), 4)
    assert not within(gains, theory.best_of_n_gain(64, 0.02, planted[0], both_signs=both_signs), 4)


@pytest.mark.parametrize("both_signs", [False, True])
def test_the_band_covers_as_often_as_its_level_says(both_signs):
    draws = np.random.default_rng(3).standard_normal((4_000, 64))
    gains = 0.1 * 2.0 * np.max(np.abs(draws) if both_signs else draws, axis=1)
    low, high = theory.best_of_n_band(64, 0.1, 2.0, both_signs=both_signs, level=0.9)
    covered = np.mean((low < gains) & (gains < high))
    assert abs(covered - 0.9) < 3 * math.sqrt(0.9 * 0.1 / len(gains))
    assert abs(np.mean(gains < low) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / len(gains))


curvatures = st.floats(-5, 5).map(lambda c: c if abs(c) > 1e-3 else 0.0)


def likely_maxima(n, both_signs, dimension):
    """Quantiles 0.05 and 0.95 of the maximum, from those of the normal law or of Student's t."""
    q = np.array([0.05, 0.95]) ** (1 / n)
    p = (1 + q) / 2 if both_signs else q
    if dimension is None:
        return special.ndtri(p)
    if dimension == 1:
        return np.where(p > 0.5, 1.0, -1.0)
    t = special.stdtrit(dimension - 1, p)
    return t / np.sqrt(dimension - 1 + t * t)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.sampled_from([1, 2, 30, 10**6]),
    st.floats(0, 3),
    st.floats(0, 4),
    curvatures,
    curvatures,
    st.booleans(),
    st.sampled_from([None, 1, 2, 5, 400]),
)
def test_the_band_is_the_range_of_the_gain_over_the_likely_maxima(n, sigma, slope, trace, bend, both_signs, dimension):
    m = np.linspace(*likely_maxima(n, both_signs, dimension), 4001)
    across = 1.0 if dimension is None else (1 - m**2) / max(dimension - 1, 1)
    rest = 0.0 if dimension == 1 else trace - bend
    gain = sigma * slope * m - sigma**2 / 2 * (m**2 * bend + across * rest)
    law = {"both_signs": both_signs, "level": 0.9, "dimension": dimension}
    low, high = theory.best_of_n_band(n, sigma, slope, trace, bend, **law)
    # float32 rounds each term of the gain by a few ulp
    rounding = 1e-6 * (sigma * slope * 6 + sigma**2 * (abs(trace) + 36 * abs(bend)))
    assert low == pytest.approx(np.min(gain), rel=1e-5, abs=rounding + 1e-12)
    assert high == pytest.approx(np.max(gain), rel=1e-5, abs=rounding + 1e-12)


def test_a_vertex_out_of_the_range_of_float32_leaves_the_band_its_derivatives():
    arguments = (1e-6, 1.0, 0.0, 1e-12)  # a vertex at 1e18, whose derivative in the curvature would be 1e30 squared
    for end in range(2):
        gradients = jax.grad(lambda *x, end=end: theory.best_of_n_band(10, *x)[end], argnums=(0, 1, 2, 3))(*arguments)
        assert np.all(np.isfinite(gradients))


def test_the_top_of_the_band_is_the_vertex_once_sigma_reaches_past_it():
    # With |a| = 2 and u^T H u = tr H = 4 the best point on the gradient line gains |a|^2 / (2 u^T H u) = 1/2.
    low, high = theory.best_of_n_band(1000, 0.5 / 3.24, 2.0, 4.0, 4.0)
    assert high == pytest.approx(0.5, rel=1e-6)
    assert low < theory.best_of_n_gain(1000, 0.5 / 3.24, 2.0, 4.0, 4.0) < high


def test_the_error_of_the_trace_widens_the_band_on_both_sides():
    plain = theory.best_of_n_band(50, 0.3, 1.0, 2.0, level=0.95)
    wide = theory.best_of_n_band(50, 0.3, 1.0, 2.0, level=0.95, curvature_trace_error=0.7)
    margin = 1.959964 * 0.3**2 / 2 * 0.7
    assert plain[0] - wide[0] == pytest.approx(margin, rel=1e-5)
    assert wide[1] - plain[1] == pytest.approx(margin, rel=1e-5)


@pytest.mark.parametrize("n", [1, 50])
def test_on_a_sphere_the_error_of_the_trace_counts_as_much_as_the_trace(n):
    law = {"level": 0.95, "dimension": 5}
    plain = theory.best_of_n_band(n, 0.3, 1.0, 2.0, **law)
    wide = theory.best_of_n_band(n, 0.3, 1.0, 2.0, curvature_trace_error=0.7, **law)
    nearest = max(0.0, theory.max_coordinate_quantile(n, 5, 0.025))  # to zero; of a lone draw the interval holds it
    margin = 1.959964 * 0.3**2 / 2 * (1 - nearest**2) / 4 * 0.7
    assert plain[0] - wide[0] == pytest.approx(margin, rel=1e-4)
    assert wide[1] - plain[1] == pytest.approx(margin, rel=1e-4)


@pytest.mark.parametrize("both_signs", [False, True])
def test_the_gain_is_stationary_and_largest_at_the_best_sigma(both_signs):
    planted = (1.5, 7.0, 0.8)
    best = theory.best_sigma(100, *planted, both_signs=both_signs)

    def gain(sigma):
        return theory.best_of_n_gain(100, sigma, *planted, both_signs=both_signs)

    assert abs(jax.grad(gain)(best)) < 1e-5 * jax.grad(gain)(0.0)
    assert gain(best) > max(gain(0.9 * best), gain(1.1 * best))


def test_without_positive_curvature_no_sigma_is_best():
    flat_or_concave = theory.best_sigma(10, 1.0, jnp.array([0.0, -3.0, 1.0, -1.0]), jnp.array([0.0, 0.1, -9.0, 1.0]))
    np.testing.assert_array_equal(np.isinf(flat_or_concave), [True, True, True, False])
    assert np.isfinite(jax.grad(lambda trace: theory.best_sigma(10, 1.0, trace, 0.0))(0.0))


def test_a_single_blind_draw_gains_nothing_and_pays_the_trace():
    assert theory.best_of_n_gain(1, 0.1, 5.0) == 0
    assert theory.best_of_n_gain(1, 0.1, 5.0, 8.0, 3.0) == pytest.approx(-0.01 / 2 * 8)
    assert theory.best_sigma(1, 5.0, 8.0, 3.0) == 0


def test_predictions_broadcast_and_compile_to_the_same_numbers():
    n, sigmas = np.array([[1], [10], [1000]]), jnp.array([0.0, 0.1, 0.2, 0.4])
    planted = (1.0, 3.0, np.float64(0.5))
    gain = theory.best_of_n_gain(n, sigmas, *planted)
    assert gain.shape == (3, 4)
    assert gain.dtype == jnp.float32
    for i, count in enumerate((1, 10, 1000)):
        one = jax.jit(lambda s, count=count: theory.best_of_n_gain(count, s, *planted))
        np.testing.assert_allclose(gain[i], jax.vmap(one)(sigmas), rtol=1e-5, atol=1e-7)
    low, high = theory.best_of_n_band(n, sigmas, *planted)
    assert low.shape == high.shape == (3, 4)
    assert np.all(low <= high)
    compiled = jax.jit(lambda s: theory.best_of_n_band(n, s, *planted))(sigmas)
    np.testing.assert_allclose(compiled, (low, high), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(InvalidInput, match="level between 0 and 1"):
        theory.best_of_n_band(10, 0.1, 1.0, level=level)


def test_predictions_refuse_a_search_without_draws():
    for predict in (theory.best_of_n_gain, theory.best_of_n_band, theory.best_sigma):
        with pytest.raises(InvalidInput, match="positive integer"):
            predict(0, 0.1, 1.0, 1.0)


def test_numbers_at_the_edge_of_float32_stay_numbers_and_nan_stays_nan():
    assert float(theory.best_of_n_gain(10, 1e20, 1.0)) == pytest.approx(1e20 * theory.expected_max(10), rel=1e-6)
    assert np.isnan(theory.best_sigma(10, 1.0, np.nan, 1.0))
    with pytest.raises(InvalidInput, match="a level between 0 and 1"):
        theory.best_of_n_band(10, 1.0, 1.0, level=1 - 2.0**-53)
