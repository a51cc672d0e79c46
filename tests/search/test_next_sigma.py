"""Where to search next follows from the gains by rule."""

import math

import numpy as np
import pytest

from lacuna.search import next_sigma

NAN = math.nan


@pytest.mark.parametrize(
    ("sigmas", "gains", "predicted", "sigma", "because"),
    [
        ((0.1, 0.3), (1.0, 2.0), 0.5, 0.5, "rising_to_predicted"),
        ((0.1, 0.3), (1.0, 2.0), 5.0, 0.9, "rising"),
        ((0.1, 0.3), (1.0, 2.0), math.inf, 0.9, "rising"),
        ((0.1, 0.3), (1.0, 2.0), 0.2, 0.2, "rising_to_predicted"),
        ((0.1, 0.3), (1.0, 2.0), 0.05, 0.9, "rising"),
        ((0.1, 0.3), (1.0, 2.0), NAN, 0.9, "rising"),
        ((0.3, 0.6), (2.0, 1.0), 0.2, 0.2, "falling_to_predicted"),
        ((0.3, 0.6), (2.0, 1.0), 0.4, 0.4, "falling_to_predicted"),
        ((0.3, 0.6), (2.0, 1.0), 0.7, 0.1, "falling"),
        ((0.3, 0.6), (2.0, 1.0), 0.0, 0.1, "falling"),
        ((0.3,), (2.0,), 0.2, 0.2, "falling_to_predicted"),
        ((0.3,), (2.0,), 0.5, 0.5, "rising_to_predicted"),
        ((0.3, 0.6), (-2.0, 0.0), 0.4, 0.1, "no_gain"),
        ((0.3, 0.6), (NAN, -1.0), 0.4, 0.1, "no_gain"),
        ((0.3, 0.6), (NAN, NAN), 0.4, 0.1, "lost"),
        ((0.1, 0.2, 0.8, 1.6), (1.0, 2.0, NAN, NAN), 9.0, 0.4, "edge"),
        ((0.1, 0.4, 0.6), (NAN, 2.0, 1.0), 0.5, 0.2, "edge"),
        ((0.1, 0.3, 0.6), (NAN, NAN, 1.0), 0.5, math.sqrt(0.18), "edge"),
        ((0.3, 0.6), (2.0, 1.0), 1e-12, 0.1, "falling"),
        ((0.1, 0.3), (0.0, 0.0), 0.2, 0.9, "unresolved"),
        ((0.1, 0.3), (NAN, 0.0), 0.2, 0.9, "unresolved"),
        ((1e-38, 3e-38), (2.0, 1.0), 0.0, float(np.finfo(np.float32).tiny), "falling"),
        ((1e38, 3e38), (1.0, 2.0), NAN, float(np.finfo(np.float32).max), "rising"),
        ((0.1, 0.2, 0.4), (1.0, 2.0, 1.0), 9.0, 0.2, "peak"),
        ((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, NAN, 1.0), 9.0, 0.2, "peak"),
        ((0.1, 0.2, 0.8), (-9.0, 2.0, 2.0), 9.0, 0.4, "peak"),
    ],
)
def test_the_next_sigma_goes_where_the_gain_is_largest(sigmas, gains, predicted, sigma, because):
    found = next_sigma(sigmas, np.asarray(gains), predicted_best=predicted)
    assert found.because == because
    assert found.sigma == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize("centre", [0.11, 0.2, 0.35])
def test_a_peak_is_the_vertex_of_a_parabola_in_the_logarithm(centre):
    sigmas = (0.01, 0.1, 0.17, 0.5, 3.0)
    gains = 2 - np.log(np.asarray(sigmas) / centre) ** 2
    found = next_sigma(sigmas, gains, predicted_best=9.0)
    assert found.because == "peak"
    assert found.sigma == pytest.approx(centre, rel=1e-9)
