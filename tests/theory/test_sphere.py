"""Largest sphere coordinates: closed forms, an independent integral, simulation, and the normal limit."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from lacuna import theory
from lacuna.errors import InvalidInput

COUNTS = np.array([1, 2, 3, 10, 1_000, 10**5, 10**7])
X, W = np.polynomial.legendre.leggauss(40)


def moment(n, dimension, power, both_signs):
    function = theory.expected_max_coordinate if power == 1 else theory.expected_max_coordinate_square
    return function(n, dimension, both_signs=both_signs)


def moment_by_density(n, k, power, both_signs):
    """`int x^p n f(x) F(x)^(n-1) dx`, both halves at once over the angle: `x = cos(phi)`, density `sin(phi)^(k-2)`."""
    first = max(1e-20, math.pi / 2 - 40 / math.sqrt(k))  # closer to the pole there is no mass
    ends = np.linspace(math.log(first), math.log(math.pi / 2), 600)
    half = np.diff(ends)[:, None] / 2
    phi = np.exp(ends[:-1, None] + half * (1 + X))
    weight = half * W * phi * np.exp((k - 2) * np.log(np.sin(phi)))
    weight /= 2 * weight.sum()
    survival = special.betainc((k - 1) / 2, 0.5, np.sin(phi) ** 2) / 2
    x = np.cos(phi)
    if both_signs:
        return np.sum(2 * n * weight * x**power * np.exp((n - 1) * np.log1p(-2 * survival)))
    upper, lower = np.exp((n - 1) * np.log1p(-survival)), survival ** (n - 1)
    return np.sum(n * weight * (x**power * upper + (-x) ** power * lower))


def test_on_a_line_a_coordinate_is_a_random_sign():
    np.testing.assert_allclose(theory.expected_max_coordinate(COUNTS, 1), 1 - 2.0 ** (1 - COUNTS), rtol=1e-15)
    for power, both_signs in ((1, True), (2, False), (2, True)):
        np.testing.assert_array_equal(moment(COUNTS, 1, power, both_signs), 1)
    q = np.array([0.0, 0.124, 0.126, 1.0])  # three draws are all -1 with probability 1/8
    np.testing.assert_array_equal(theory.max_coordinate_quantile(3, 1, q), [-1, -1, 1, 1])
    np.testing.assert_array_equal(theory.max_coordinate_quantile(3, 1, q, both_signs=True), 1)


def test_on_a_circle_the_quantile_is_the_cosine_of_the_survival():
    q = np.array([0.01, 0.3, 0.5, 0.9, 1 - 1e-9])
    for n in (1, 7, 10**7):
        survival = -np.expm1(np.log(q) / n)
        cosine = np.cos(np.pi * survival)
        np.testing.assert_allclose(theory.max_coordinate_quantile(n, 2, q), cosine, rtol=1e-12, atol=1e-15)
        of_both = np.cos(np.pi * survival / 2)
        np.testing.assert_allclose(theory.max_coordinate_quantile(n, 2, q, both_signs=True), of_both, rtol=1e-12)
    assert theory.expected_max_coordinate(1, 2, both_signs=True) == pytest.approx(2 / math.pi, rel=1e-13)


def test_on_a_sphere_in_space_a_coordinate_is_uniform():
    n = COUNTS.astype(float)
    np.testing.assert_allclose(theory.expected_max_coordinate(COUNTS, 3), (n - 1) / (n + 1), rtol=1e-13)
    np.testing.assert_allclose(theory.expected_max_coordinate(COUNTS, 3, both_signs=True), n / (n + 1), rtol=1e-13)
    square = 4 * n / (n + 2) - 4 * n / (n + 1) + 1
    np.testing.assert_allclose(theory.expected_max_coordinate_square(COUNTS, 3), square, rtol=1e-13)
    of_both = theory.expected_max_coordinate_square(COUNTS, 3, both_signs=True)
    np.testing.assert_allclose(of_both, n / (n + 2), rtol=1e-13)


@pytest.mark.parametrize("dimension", [2, 4, 7, 50, 1_000, 10**6])
@pytest.mark.parametrize("both_signs", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_moments_equal_the_integral_over_the_density(dimension, both_signs, power):
    for n in COUNTS.tolist():
        expected = moment_by_density(n, dimension, power, both_signs)
        # The oracle's powers of F lose n times the rounding of F, and its lone mean is zero but for rounding.
        assert moment(n, dimension, power, both_signs) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("dimension", [2, 3, 8])
@pytest.mark.parametrize("both_signs", [False, True])
def test_simulated_maxima_average_to_the_moments(dimension, both_signs):
    z = np.random.default_rng(dimension).standard_normal((20_000, 16, dimension))
    x = z[..., 0] / np.linalg.norm(z, axis=-1)
    maxima = np.max(np.abs(x) if both_signs else x, axis=1)
    for power in (1, 2):
        error = np.std(maxima**power) / math.sqrt(len(maxima))
        assert abs(np.mean(maxima**power) - moment(16, dimension, power, both_signs)) < 4 * error


def test_in_many_dimensions_a_coordinate_is_normal_to_the_order_of_their_inverse():
    q, n = np.array([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6]), np.array([[1], [100], [10**7]])
    for both_signs in (False, True):
        z = theory.max_quantile(n, q, both_signs=both_signs)
        for k in (10**4, 10**6, 10**9):
            x = math.sqrt(k) * theory.max_coordinate_quantile(n, k, q, both_signs=both_signs)
            # Cornish and Fisher with the excess kurtosis -6 / k of a coordinate; the next term is of order z^5 / k^2.
            np.testing.assert_allclose(x, z + (3 * z - z**3) / (4 * k), rtol=1e-14, atol=1e-14 + 1e4 / k**2)
    for n in (2, 10**7):
        limit = theory.expected_max_coordinate(n, 10**9) * math.sqrt(1e9)
        assert limit == pytest.approx(theory.expected_max(n), rel=2e-8)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**9), st.integers(2, 10**5), st.floats(1e-12, 1 - 1e-12), st.booleans())
def test_the_law_of_the_maximum_at_its_quantile_is_q(n, dimension, q, both_signs):
    x = theory.max_coordinate_quantile(n, dimension, q, both_signs=both_signs)
    if x * x > 0.999:
        return  # 1 - x^2 has no digits left to tell q from
    tail = special.betainc((dimension - 1) / 2, 0.5, 1 - x * x) / 2
    survival = 2 * tail if both_signs else tail if x > 0 else 1 - tail
    log_q = n * (math.log1p(-survival) if survival < 0.5 or both_signs else math.log(tail))
    # The relative error of x is multiplied by x^2 k, below 130, and by 1 / (1 - x^2).
    assert log_q == pytest.approx(math.log(q), rel=1e-9)


def test_a_curve_equals_its_points():
    n = np.unique(np.geomspace(1, 10**7, 600).astype(np.int64))[:500].reshape(2, -1)  # longer than one block
    for dimension in (1, 6):
        for function in (theory.expected_max_coordinate, theory.expected_max_coordinate_square):
            curve = function(n, dimension)
            assert curve.shape == n.shape
            assert curve.dtype == np.float64
            points = [function(int(k), dimension) for k in n.ravel()[::37]]
            assert all(isinstance(point, np.float64) for point in points)
            np.testing.assert_allclose(curve.ravel()[::37], points, rtol=1e-14)


@pytest.mark.parametrize("dimension", [1, 2, 5, 100])
def test_more_draws_raise_the_maximum_up_to_the_radius_and_never_above(dimension):
    for both_signs in (False, True):
        curve = theory.expected_max_coordinate(COUNTS, dimension, both_signs=both_signs)
        # Near the radius a moment is a sum of 176 rounded terms.
        assert np.all(np.diff(curve) >= -1e-15)
        assert np.all(curve <= 1 + 1e-15)
        assert dimension > 5 or curve[-1] > 0.99


def test_quantiles_broadcast_and_end_at_the_poles():
    quantiles = theory.max_coordinate_quantile(np.array([[1], [10], [100]]), 4, np.array([0.0, 0.5, 1.0]))
    assert quantiles.shape == (3, 3)
    np.testing.assert_array_equal(quantiles[:, [0, 2]], [[-1, 1]] * 3)
    assert quantiles[0, 1] == 0
    assert theory.max_coordinate_quantile(7, 4, 0.0, both_signs=True) == 0


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "4"])
def test_draws_and_dimensions_that_are_no_positive_integers_are_refused(wrong):
    for function in (
        theory.expected_max_coordinate,
        theory.expected_max_coordinate_square,
        lambda n, dimension: inspect.unwrap(theory.max_coordinate_quantile)(n, dimension, 0.5),
    ):
        function = inspect.unwrap(function)  # as a caller without the type checker
        with pytest.raises(InvalidInput, match="number of draws n that is a positive integer"):
            function(wrong, 3)
        with pytest.raises(InvalidInput, match="dimension that is a positive integer"):
            function(3, wrong)
        with pytest.raises(InvalidInput, match="a single dimension"):
            function(3, np.array([2, 3]))


def test_a_probability_outside_the_unit_interval_is_refused():
    with pytest.raises(InvalidInput, match="max_coordinate_quantile needs probabilities"):
        theory.max_coordinate_quantile(5, 3, 1.1)


@pytest.mark.parametrize(("rank", "dimension"), [(1, 2), (3, 10), (16, 3_505_152), (16, 7 * 10**9)])
def test_the_mass_of_a_random_subspace_has_its_mean_and_its_distribution(rank, dimension):
    q = (np.arange(20_000) + 0.5) / 20_000
    masses = theory.mass_quantile(rank, dimension, q)
    assert np.all(np.diff(masses) > 0)
    np.testing.assert_allclose(np.mean(masses), rank / dimension, rtol=1e-3)
    if dimension > 10**6:  # the sum of k squares of normals, over P
        np.testing.assert_allclose(special.gammainc(rank / 2, dimension * masses / 2), q, atol=1e-4)
    else:
        np.testing.assert_allclose(special.betainc(rank / 2, (dimension - rank) / 2, masses), q, rtol=1e-9)


def test_the_mass_of_one_dimension_is_the_square_of_a_coordinate():
    q = np.array([0.025, 0.5, 0.975])
    largest = theory.max_coordinate_quantile(1, 7, q, both_signs=True)
    np.testing.assert_allclose(theory.mass_quantile(1, 7, q), largest**2, rtol=1e-9)


def test_nothing_and_everything_have_their_mass_for_certain():
    assert theory.mass_quantile(0, 5, 0.9) == 0.0
    assert theory.mass_quantile(5, 5, 0.1) == 1.0
    with pytest.raises(InvalidInput, match="rank from 0 to the dimension; got 6 in 5"):
        theory.mass_quantile(6, 5, 0.5)
    with pytest.raises(InvalidInput, match="probabilities"):
        theory.mass_quantile(1, 5, 1.5)
