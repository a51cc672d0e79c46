"""Maxima of normals: exact values, two independent integrals, simulation, and the laws of quantiles."""

import inspect
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from lacuna import theory
from lacuna.errors import InvalidInput
from lacuna.theory import gaussian

LARGEST = 10**9
SQRT_PI = math.sqrt(math.pi)


def density_of_maximum(x: float, n: int, both_signs: bool) -> float:
    """`n f(x) F(x)^(n-1)` for F the law of Z or of |Z|, straight from the definition."""
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if both_signs:
        return 2 * n * density * math.exp((n - 1) * math.log1p(-math.erfc(x / math.sqrt(2))))
    return n * density * math.exp((n - 1) * float(special.log_ndtr(x)))


def moment_by_density(n: int, power: int, both_signs: bool) -> float:
    """`E M^power` by adaptive quadrature over the density, cut at the quantiles that hold all but 1e-17."""
    # The bulk lies near the level that one draw in n exceeds; a lone or signed draw spreads to both sides.
    centre = -special.ndtri(0.5 / n)
    ends = (max(centre - 14, 1e-300 if both_signs else -14), centre + 14)
    points = [x for x in centre + np.array([-4, -2, -1, 0, 1, 2, 4]) if ends[0] < x < ends[1]]
    value, _ = integrate.quad(
        lambda x: x**power * density_of_maximum(x, n, both_signs),
        *ends,
        points=points,
        epsabs=1e-13,
        epsrel=1e-12,
        limit=400,
    )
    return value


@pytest.mark.parametrize(
    ("moment", "exact"),
    [
        (theory.expected_max, [0, 1 / SQRT_PI, 1.5 / SQRT_PI, 6 / math.pi**1.5 * math.atan(math.sqrt(2))]),
        (theory.expected_max_abs, [math.sqrt(2 / math.pi), 2 / SQRT_PI]),
        (theory.expected_max_square, [1, 1, 1 + math.sqrt(3) / (2 * math.pi)]),
        (partial(theory.expected_max_square, both_signs=True), [1, 1 + 2 / math.pi]),
    ],
)
def test_moments_of_few_draws_have_their_closed_forms(moment, exact):
    for n, value in enumerate(exact, start=1):
        assert moment(n) == pytest.approx(value, rel=1e-13, abs=0)


def test_moments_of_many_draws_have_their_tabulated_values():
    assert theory.expected_max(5) == pytest.approx(1.1629645, abs=5e-8)
    assert theory.expected_max(10) == pytest.approx(1.5387527, abs=5e-8)
    assert theory.expected_max(5000) == pytest.approx(3.678, abs=1e-3)
    assert theory.expected_max_square(1024) - 1 == pytest.approx(9.7, abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000, 10**6, LARGEST])
@pytest.mark.parametrize("both_signs", [False, True])
def test_moments_equal_the_integral_over_the_density(n, both_signs):
    first = theory.expected_max_abs(n) if both_signs else theory.expected_max(n)
    # At n = 1 the exact value of E max is zero, and the oracle's integral leaves rounding.
    assert first == pytest.approx(moment_by_density(n, 1, both_signs), rel=1e-9, abs=1e-15)
    second = theory.expected_max_square(n, both_signs=both_signs)
    assert second == pytest.approx(moment_by_density(n, 2, both_signs), rel=1e-9)


@pytest.mark.parametrize("n", [1, 3, 64])
@pytest.mark.parametrize("both_signs", [False, True])
def test_simulated_maxima_average_to_the_moments(n, both_signs):
    draws = np.random.default_rng(n).standard_normal((20_000, n))
    maxima = np.max(np.abs(draws) if both_signs else draws, axis=1)
    first = theory.expected_max_abs(n) if both_signs else theory.expected_max(n)
    for power, exact in ((1, first), (2, theory.expected_max_square(n, both_signs=both_signs))):
        error = np.std(maxima**power) / math.sqrt(len(maxima))
        assert abs(np.mean(maxima**power) - exact) < 4 * error


def test_a_curve_equals_its_points():
    n = np.unique(np.geomspace(1, LARGEST, 600).astype(np.int64)).reshape(2, -1)  # longer than one block
    for function in (
        theory.expected_max,
        theory.expected_max_abs,
        theory.expected_max_square,
        theory.asymptotic_max,
    ):
        curve = function(n)
        assert curve.shape == n.shape
        assert curve.dtype == np.float64
        points = [function(int(k)) for k in n.ravel()[::37]]
        assert all(isinstance(point, np.float64) for point in points)
        # Matrix products of other shapes sum in another order.
        np.testing.assert_allclose(curve.ravel()[::37], points, rtol=1e-14)


def test_more_draws_never_lower_the_maximum():
    n = np.unique(np.geomspace(1, LARGEST, 500).astype(np.int64))
    assert np.all(np.diff(theory.expected_max(n)) > 0)
    assert np.all(np.diff(theory.expected_max_abs(n)) > 0)


def test_both_signs_of_a_draw_are_worth_more_than_two_draws_and_less_than_four():
    n = np.arange(1, 200)
    assert np.all(theory.expected_max_abs(n) > theory.expected_max(2 * n))  # signs of one draw never agree
    assert np.all(theory.expected_max_abs(n) < theory.expected_max(4 * n))


def test_the_asymptote_overstates_by_twelve_percent_at_five_thousand():
    assert theory.asymptotic_max(5000) / theory.expected_max(5000) == pytest.approx(1.122, abs=1e-3)
    assert theory.asymptotic_max(5000, both_signs=True) == pytest.approx(math.sqrt(2 * math.log(10_000)))


def test_the_normal_quantile_equals_the_reference_in_all_branches():
    p = np.concatenate([10.0 ** -np.arange(0.31, 300, 0.7), np.linspace(0.001, 0.999, 999)])
    np.testing.assert_allclose(gaussian.normal_quantile(p), special.ndtri(p), rtol=2e-15, atol=1e-18)
    np.testing.assert_array_equal(gaussian.normal_quantile(np.array([0, 0.5, 1])), [-np.inf, 0, np.inf])


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**12), st.floats(1e-12, 1 - 1e-12), st.booleans())
def test_the_law_of_the_maximum_at_its_quantile_is_q(n, q, both_signs):
    x = theory.max_quantile(n, q, both_signs=both_signs)
    if both_signs:
        tail = math.erfc(x / math.sqrt(2))
        log_cdf = math.log1p(-tail) if tail < 0.5 else math.log(math.erf(x / math.sqrt(2)))
    else:
        log_cdf = float(special.log_ndtr(x))
    # log q moves by about x^2 times the relative error of x, and x^2 < 130 here.
    assert n * log_cdf == pytest.approx(math.log(q), rel=1e-12)


def test_quantiles_broadcast_draws_against_probabilities():
    quantiles = theory.max_quantile(np.array([[1], [10], [100]]), np.array([0.0, 0.5, 1.0]))
    assert quantiles.shape == (3, 3)
    np.testing.assert_array_equal(quantiles[:, [0, 2]], [[-np.inf, np.inf]] * 3)
    assert theory.max_quantile(7, 0.0, both_signs=True) == 0


@pytest.mark.parametrize("n", [0, -3, np.array([4, 0]), 2.5, 2.0, True, np.array([1.0]), "4"])
def test_a_number_of_draws_that_is_no_positive_integer_is_refused(n):
    for function in (
        theory.expected_max,
        theory.expected_max_abs,
        theory.expected_max_square,
        theory.asymptotic_max,
        lambda n: inspect.unwrap(theory.max_quantile)(n, 0.5),
    ):
        with pytest.raises(InvalidInput, match="positive integer"):
            inspect.unwrap(function)(n)  # as a caller without the type checker


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_probability_outside_the_unit_interval_is_refused(q):
    with pytest.raises(InvalidInput, match="max_quantile needs probabilities"):
        theory.max_quantile(5, q)
    with pytest.raises(InvalidInput, match="normal_quantile needs probabilities"):
        gaussian.normal_quantile(q)


def test_counts_of_a_narrow_type_lose_no_digits():
    assert theory.asymptotic_max(np.uint8(100)) == theory.asymptotic_max(100)
    assert theory.asymptotic_max(np.int16(100)).dtype == np.float64
