"""What a caller may do to the theory's functions: compile, map and differentiate them in every real argument."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lacuna import theory
from lacuna.theory import best_of_n

ON_THE_HOST = {
    "asymptotic_max",
    "expected_max",
    "expected_max_abs",
    "expected_max_coordinate",
    "expected_max_coordinate_square",
    "expected_max_square",
    "max_coordinate_quantile",
    "max_quantile",
    "mass_quantile",
}
"""Functions of draws, dimensions and probabilities alone, which are known beforehand."""

LAWS = {"normal": {}, "sphere": {"dimension": 6}, "both signs on a sphere": {"dimension": 6, "both_signs": True}}
STEP = {"sigma": 0.3, "gradient_norm": 2.0, "curvature_trace": 4.0, "gradient_curvature": 0.7}
"""At which the vertex of the gain as a function of M lies beyond the band."""

PAST = STEP | {"gradient_curvature": 3.0}
"""At which it lies inside."""

CASES = {
    **{f"best_of_n_gain, {law}": (partial(theory.best_of_n_gain, 50, **kind), STEP) for law, kind in LAWS.items()},
    **{
        f"best_of_n_band, {law}, {where}": (
            partial(theory.best_of_n_band, 50, **kind),
            step | {"curvature_trace_error": 0.6},
        )
        for law, kind in LAWS.items()
        for where, step in (("below the vertex", STEP), ("past it", PAST))
    },
    **{
        f"best_sigma, {law}": (partial(theory.best_sigma, 50, **kind), {k: v for k, v in STEP.items() if k != "sigma"})
        for law, kind in LAWS.items()
    },
    **{
        f"subspace_gain, {unit}": (
            lambda size, signal_mass, curvature_trace, gradient_curvature, unit=unit: theory.subspace_gain(
                50, size, signal_mass, 6, curvature_trace, gradient_curvature, unit=unit
            ),
            {"size": 0.3, "signal_mass": 0.8, "curvature_trace": 4.0, "gradient_curvature": 0.7},
        )
        for unit in ("sigma", "rms_radius", "exact_radius")
    },
    "predicted_share": (
        theory.predicted_share,
        {"sigma": 0.3, "gradient_norm": 2.0, "curvature_trace": 4.0, "curvature_spread": 3.0},
    ),
    "predicted_sigma_star": (
        theory.predicted_sigma_star,
        {"gradient_norm": 2.0, "curvature_trace": 4.0, "curvature_spread": 3.0},
    ),
    "rounding_floor": (theory.rounding_floor, {"base": 3.0, "sigma": 0.1, "gradient_norm": 2.0}),
}


def regime_of(sigmas, plus, minus, base):
    """All that is real in a regime; the first local slope is NaN by definition."""
    found = theory.linear_regime(sigmas, plus, minus, base)
    slopes = jnp.stack([found.f1_slope[1:], found.f2_slope[1:]])
    return found.f1_rms, found.f2_rms, found.f2_mean, found.share, slopes, found.sigma_star


def pairs():
    """Losses of draws with a second and a third order, one of them not finite."""
    rng = np.random.default_rng(0)
    sigmas = np.array([0.1, 0.2, 0.4])
    one, two, three = 8 * rng.standard_normal((3, 30, 1))  # large beside the finite differences
    plus, minus = (2 + s * sigmas * one + sigmas**2 * two + s * sigmas**3 * three for s in (1, -1))
    plus[4, 2] = np.nan
    return {"sigmas": sigmas, "plus": plus, "minus": minus, "base": 2.0}


CASES["linear_regime"] = (regime_of, pairs())


def test_every_public_function_of_real_arguments_has_a_case():
    public = {name for name, kind in vars(theory).items() if inspect.isfunction(kind)}
    assert public == ON_THE_HOST | {name.split(",")[0] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_compiled_and_mapped_functions_give_the_same_numbers(case):
    function, arguments = CASES[case]
    values = {name: jnp.asarray(x, jnp.float32) for name, x in arguments.items()}
    eager = function(**values)
    compiled = jax.jit(lambda values: function(**values))(values)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), values)
    mapped = jax.vmap(lambda values: function(**values))(twice)
    for other in (compiled, jax.tree.map(lambda x: x[1], mapped)):
        # A sum rounded in another order, beside terms that are a few times as large.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), eager, other)


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_in_every_real_argument_is_the_finite_difference(case):
    function, arguments = CASES[case]
    values = {name: jnp.asarray(x, jnp.float32) for name, x in arguments.items()}
    outputs = jax.tree.leaves(function(**values))
    for j, output in enumerate(outputs):
        rng = np.random.default_rng(j)
        weights = rng.uniform(0.5, 1, output.shape)
        for name, value in values.items():

            def weighted(value, name=name, j=j, weights=weights):
                return jnp.sum(weights * jax.tree.leaves(function(**(values | {name: value})))[j])

            gradient = jax.jit(jax.grad(weighted))(value)
            direction = rng.uniform(0.5, 1, value.shape).astype(np.float32)
            step = 2.0**-7
            difference = (weighted(value + step * direction) - weighted(value - step * direction)) / (2 * step)
            # The difference is off by the third derivative times step^2 / 6, 1e-5, and by a rounding over the step.
            size = max(1.0, float(np.max(np.abs(output))))
            assert float(np.sum(gradient * direction)) == pytest.approx(float(difference), rel=5e-3, abs=2e-4 * size), (
                name
            )


def gain_by_density(n, sigma, slope, trace, along):
    """`int g(x) n phi(x) Phi(x)^(n-1) dx` on a fine grid in float64; nothing in it is ours."""
    x = np.linspace(-12, 14, 400_001)
    density = n * np.exp(-x * x / 2 + (n - 1) * special.log_ndtr(x)) / np.sqrt(2 * np.pi)
    return np.sum(density * (sigma * slope * x - sigma**2 / 2 * (trace + (x * x - 1) * along))) * (x[1] - x[0])


@pytest.mark.parametrize("n", [1, 10, 10**3, 10**5, 10**7])
def test_the_gain_is_exact_to_a_millionth(n):
    for sigma, curvature in ((0.01, (0.0, 0.0)), (0.003, (-40.0, -3.0)), (0.02, (7.0, 2.0)), (0.5, (-1.0, -1.0))):
        step = np.float32([sigma, 3.0, *curvature])  # what the function sees, so that its rounding alone is measured
        expected = gain_by_density(n, *step.astype(np.float64))
        assert float(theory.best_of_n_gain(n, *step)) == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_another_number_of_draws_or_dimensions_is_not_compiled_anew():
    kernels = best_of_n._gain, best_of_n._band, best_of_n._best_sigma

    def predict(n, **law):
        theory.best_of_n_gain(n, 0.1, 1.0, 2.0, 3.0, **law)
        theory.best_of_n_band(n, 0.1, 1.0, 2.0, 3.0, **law)
        theory.best_sigma(n, 1.0, 2.0, 3.0, **law)
        theory.subspace_gain(n, 0.1, 1.0, 7, 2.0, 3.0, unit="exact_radius")

    predict(10)
    programs = [kernel._cache_size() for kernel in kernels]
    for n, law in ((11, {}), (10**7, {"both_signs": True}), (12, {"dimension": 4}), (12, {"dimension": 1})):
        predict(n, **law)
    assert programs == [kernel._cache_size() for kernel in kernels]
