"""Whole searches on quadratics whose Hessian was planted, against the second-order prediction and its band."""

import math

import numpy as np
import pytest

from lacuna import theory

SLOPE = 2.0


def planted(k, *, along, across, coupling, seed=0):
    """A gradient of norm 2, and a Hessian with the curvature `along` it and the mean curvature `across` it.

    The directions across differ by a part of zero trace, and the gradient's is coupled to one of them, both of the
    size `coupling`: neither shows in the two numbers that the theory knows.
    """
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    hessian = np.diag(np.r_[along, across + coupling * np.resize([1.0, -1.0], k - 1)])
    if (k - 1) % 2:  # a last one without a partner
        hessian[-1, -1] = across
    hessian[0, 1] = hessian[1, 0] = coupling
    return SLOPE * rotation[:, 0], rotation @ hessian @ rotation.T


def gains_of(gradient, hessian, *, n, size, searches, both_signs, sphere, seed=1):
    """Of searches for the least of `a x + x^T H x / 2` over n steps from zero."""
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(searches // 500):
        steps = rng.standard_normal((500, n, len(gradient)))
        if sphere:
            steps /= np.linalg.norm(steps, axis=-1, keepdims=True)
        odd = size * (steps @ gradient)
        even = size**2 / 2 * np.sum((steps @ hessian) * steps, axis=-1)
        gains.append(-np.min(even + (-np.abs(odd) if both_signs else odd), axis=1))
    return np.concatenate(gains)


@pytest.mark.parametrize("both_signs", [False, True])
@pytest.mark.parametrize(("k", "size"), [(3, 0.05), (8, 0.07), (50, 0.1)])
@pytest.mark.parametrize("sphere", [True, False])
def test_the_mean_gain_is_the_predicted_one(sphere, k, size, both_signs):
    n, searches = (16, 10_000) if k < 50 else (64, 3_000)
    size = size if sphere else size / math.sqrt(k)
    gradient, hessian = planted(k, along=4.0, across=3.0, coupling=0.5)
    kind = {"n": n, "size": size, "both_signs": both_signs}
    gains = gains_of(gradient, hessian, **kind, searches=searches, sphere=sphere)
    known = (n, size, SLOPE, np.trace(hessian), 4.0)
    law = {"both_signs": both_signs, "dimension": k if sphere else None}
    error = np.std(gains) / math.sqrt(len(gains))
    # Neglected: the winner prefers draws of small z^T H z. Its spread at fixed M is half of this on a sphere.
    spread = 2 * np.sum((hessian - 3 * sphere * np.eye(k)) ** 2) / (k * (k + 2) if sphere else 1)
    neglected = size**3 * spread / SLOPE
    assert abs(np.mean(gains) - theory.best_of_n_gain(*known, **law)) < 4 * error + neglected
    first_order = theory.best_of_n_gain(*known[:3], **law)
    assert abs(np.mean(gains) - first_order) > 8 * error + neglected
    if sphere and k == 3:  # where it differs from a Gaussian step of the same root mean square length
        normal = theory.best_of_n_gain(n, size / math.sqrt(k), *known[2:], both_signs=both_signs)
        assert abs(np.mean(gains) - normal) > 8 * error
        # and from what the winner would pay if every direction kept its variance 1/k.
        typical = first_order - size**2 / 2 * np.trace(hessian) / k
        assert abs(np.mean(gains) - typical) > 5 * error


@pytest.mark.parametrize("both_signs", [False, True])
@pytest.mark.parametrize(("k", "sphere"), [(2, True), (3, True), (8, True), (50, True), (8, False)])
def test_the_band_covers_as_often_as_its_level_says(k, sphere, both_signs):
    # Equal curvatures across leave the gain no spread but that of M on a sphere; a Gaussian step needs them zero.
    size, across = (0.2, -3.0) if sphere else (0.1, 0.0)
    gradient, hessian = planted(k, along=4.0, across=across, coupling=0.0)
    kind = {"n": 16, "size": size, "both_signs": both_signs}
    gains = gains_of(gradient, hessian, **kind, searches=4_000, sphere=sphere)
    law = {"both_signs": both_signs, "level": 0.9, "dimension": k if sphere else None}
    low, high = theory.best_of_n_band(16, size, SLOPE, np.trace(hessian), 4.0, **law)
    sides = np.mean(gains < low), np.mean(gains > high)
    for side in sides:
        assert abs(side - 0.05) < 4 * math.sqrt(0.05 * 0.95 / len(gains))


def test_on_a_line_a_step_goes_up_or_down():
    """Of n steps of the length r to either side the best gains `r a - r^2 h / 2`, unless all n went up."""
    for n in (1, 2, 10):
        gain = theory.best_of_n_gain(n, 0.5, 2.0, 3.0, 3.0, dimension=1)
        assert gain == pytest.approx(0.5 * 2 * (1 - 2.0 ** (1 - n)) - 0.125 * 3, rel=1e-6)
    low, high = theory.best_of_n_band(4, 0.5, 2.0, 3.0, 3.0, dimension=1)
    assert (low, high) == pytest.approx((-1 - 0.375, 1 - 0.375))
    # An estimate of the trace that is off is not looked at, not even where the vertex lies inside: m / 2 - m^2 / 2.
    assert theory.best_of_n_band(1, 1.0, 0.5, 3.0, 1.0, dimension=1) == pytest.approx((-1, 0.125))
    best = theory.best_sigma(7, 2.0, 3.0, 3.0, both_signs=True, dimension=1)
    assert best == pytest.approx(2 / 3)  # the minimum of the parabola


@pytest.mark.parametrize("dimension", [1, 2, 40, 10**6])
def test_no_search_at_an_exact_radius_gains_more_than_radius_times_slope(dimension):
    n = np.array([1, 10, 10**3, 10**7])
    for both_signs in (False, True):
        law = {"both_signs": both_signs, "dimension": dimension}
        assert np.all(theory.best_of_n_gain(n, 0.7, 3.0, **law) <= np.float32(0.7) * 3)
        assert np.all(theory.best_of_n_band(n, 0.7, 3.0, **law)[1] <= np.float32(0.7) * 3)


@pytest.mark.parametrize("both_signs", [False, True])
def test_the_gain_on_a_sphere_is_largest_at_the_best_radius(both_signs):
    law = {"both_signs": both_signs, "dimension": 5}
    best = float(theory.best_sigma(100, 1.5, 7.0, 0.8, **law))
    gains = theory.best_of_n_gain(100, best * np.array([0.98, 1.0, 1.02]), 1.5, 7.0, 0.8, **law)
    assert gains[1] > max(gains[0], gains[2])


def test_a_sphere_of_many_dimensions_is_a_gaussian_of_its_radius():
    k = 10**8
    known = (2.0, 3.0 * k, 5.0)  # the trace as large as the dimension
    for n in (1, 100, 10**6):
        step = 1e-4
        gaussian = theory.best_of_n_gain(n, step, *known), *theory.best_of_n_band(n, step, *known)
        length = step * math.sqrt(k)
        on_sphere = (
            theory.best_of_n_gain(n, length, *known, dimension=k),
            *theory.best_of_n_band(n, length, *known, dimension=k),
        )
        np.testing.assert_allclose(on_sphere, gaussian, rtol=2e-6)
