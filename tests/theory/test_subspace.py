"""The three meanings of a step's size in a subspace: each ranks subspaces by something else."""

import inspect
import math

import numpy as np
import pytest

from lacuna import theory
from lacuna.errors import InvalidInput

UNITS = ["sigma", "rms_radius", "exact_radius"]


def simulated(unit, rows, gradient, hessian, *, n, size, searches, both_signs):
    """Gains of searches among steps `coefficients @ rows` of the given size, by the definition of its unit."""
    z = np.random.default_rng(5).standard_normal((searches, n, len(rows)))
    if unit == "exact_radius":
        z /= np.linalg.norm(z, axis=-1, keepdims=True)
    if unit == "rms_radius":
        z /= math.sqrt(len(rows))
    steps = size * z @ rows
    odd, even = steps @ gradient, np.sum((steps @ hessian) * steps, axis=-1) / 2
    return -np.min(even + (-np.abs(odd) if both_signs else odd), axis=1)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("both_signs", [False, True])
def test_a_simulated_search_in_a_subspace_gains_what_its_unit_says(unit, both_signs):
    rng = np.random.default_rng(2)
    rows = np.linalg.qr(rng.standard_normal((20, 4)))[0].T
    gradient = rng.standard_normal(20)
    hessian = 4 * np.eye(20) + np.outer(gradient, gradient) / 2
    size = 0.006 if unit == "sigma" else 0.02  # larger, and the winner's preference for small z^T H z shows
    gains = simulated(unit, rows, gradient, hessian, n=32, size=size, searches=8_000, both_signs=both_signs)
    seen = rows @ gradient
    along = rows.T @ seen / np.linalg.norm(seen)
    curvatures = np.trace(rows @ hessian @ rows.T), along @ hessian @ along
    mass = seen @ seen
    gain = theory.subspace_gain(32, size, mass, 4, *curvatures, unit=unit, both_signs=both_signs)
    error = np.std(gains) / math.sqrt(len(gains))
    assert abs(np.mean(gains) - gain) < 4 * error
    assert abs(np.mean(gains) - theory.subspace_gain(32, size, mass, 4, unit=unit, both_signs=both_signs)) > 8 * error


def ranking(values):
    return np.argsort(values).tolist()


def gains_of(subspaces, unit, n):
    return [theory.subspace_gain(n, 0.1, mass, rank, unit=unit) for rank, mass in subspaces]


WIDE = [(200, 0.10), (400, 0.30), (1_000, 0.40), (5_000, 0.90)]
"""(rank, mass), each of another order by mass than by density, with ranks well above 2 ln 1000 = 13.8."""

NARROW = [(1, 0.50), (2, 0.90)]
"""The same where the ranks are far below it."""


@pytest.mark.parametrize(("subspaces", "by_exact_radius"), [(WIDE, "density"), (NARROW, "mass")])
def test_density_ranks_at_an_exact_radius_only_in_many_dimensions(subspaces, by_exact_radius):
    ranks, masses = np.array(subspaces).T
    orders = {"mass": ranking(masses), "density": ranking(masses / ranks)}
    assert orders["mass"] != orders["density"]
    assert ranking(gains_of(subspaces, "sigma", 1_000)) == orders["mass"]
    assert ranking(gains_of(subspaces, "rms_radius", 1_000)) == orders["density"]
    assert ranking(gains_of(subspaces, "exact_radius", 1_000)) == orders[by_exact_radius]


def test_in_many_dimensions_an_exact_radius_is_as_good_as_a_root_mean_square_one():
    rms, exact = (theory.subspace_gain(100, 0.1, 0.5, 10**7, 3.0, 2.0, unit=unit) for unit in UNITS[1:])
    assert float(exact) == pytest.approx(float(rms), rel=1e-5)


def test_an_exact_radius_saturates_where_a_root_mean_square_one_does_not():
    n = np.array([10, 10**3, 10**7])
    for rank in (1, 2, 4):
        assert np.all(theory.subspace_gain(n, 0.1, 0.25, rank, unit="exact_radius") <= np.float32(0.1) * 0.5)
    exact, rms = (theory.subspace_gain(10**7, 0.1, 0.25, 2, unit=unit) for unit in ("exact_radius", "rms_radius"))
    assert exact == pytest.approx(0.05, rel=1e-6)
    assert rms > 3 * exact


def test_a_rank_that_is_no_positive_integer_and_an_unknown_unit_are_refused():
    subspace_gain = inspect.unwrap(theory.subspace_gain)  # as a caller without the type checker
    for rank in (0, 2.5):
        with pytest.raises(InvalidInput, match="a rank that is a positive integer"):
            subspace_gain(10, 0.1, 0.5, rank)
    with pytest.raises(InvalidInput, match="sigma, rms_radius, exact_radius; got `radius`"):
        subspace_gain(10, 0.1, 0.5, 3, unit="radius")
