"""What the theory says a sweep will gain, beside what a sweep gains."""

import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry, keys, theory
from lacuna.reports import records
from lacuna.search import Sweep, gaussian, in_basis, landscape, run_sweep, sweep_records


def gains_of_blocks(problem, sweep, num_blocks):
    """Gains of disjoint blocks of one long sweep: as good as sweeps of other seeds, for its draws are independent."""
    result = run_sweep(*problem, sweep)
    return result.base_score - np.min(result.scores.reshape(num_blocks, -1), axis=1).astype(np.float64)


@pytest.mark.parametrize("size", [10, 1_000, 100_000])
def test_the_gain_on_a_linear_loss_is_the_predicted_one_whatever_the_dimension(size):
    num_draws, num_blocks, sigma, gradient_norm = 64, 16, 0.01, 3.0
    problem = problems.linear(size, gradient_norm=gradient_norm)
    gains = gains_of_blocks(problem, Sweep(gaussian(), (sigma,), num_draws * num_blocks, seed=1), num_blocks)
    # With probability 0.99 all sixteen lie in their bands.
    low, high = theory.best_of_n_band(num_draws, sigma, gradient_norm, both_signs=True, level=0.99 ** (1 / 16))
    assert np.all((low < gains) & (gains < high))
    error = gains.std(ddof=1) / np.sqrt(num_blocks)
    assert abs(gains.mean() - theory.best_of_n_gain(num_draws, sigma, gradient_norm, both_signs=True)) < 3 * error


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_mean_gain_on_a_quadratic_is_the_second_order_one_and_not_the_first(antithetic):
    block, num_blocks, sigma = 16, 128, 0.05
    curved = problems.quadratic(200, gradient_norm=1.0, trace=60.0)
    sweep = Sweep(gaussian(), (sigma,), block * num_blocks, seed=2, antithetic=antithetic, chunk=256)
    gains = gains_of_blocks(curved.problem, sweep, num_blocks)
    error = gains.std(ddof=1) / np.sqrt(num_blocks)
    known = (block, sigma, curved.gradient_norm)
    first = theory.best_of_n_gain(*known, both_signs=antithetic)
    second = theory.best_of_n_gain(*known, curved.trace, curved.gradient_curvature, both_signs=antithetic)
    # Neglected: the winner prefers draws of small z^T H z, which gains of the order sigma^3 Var(z^T H z) / |a|.
    hessian = oracles.flat(curved.problem.batch[1])
    neglected = sigma**3 * 2 * (hessian @ hessian) / curved.gradient_norm
    assert abs(gains.mean() - second) < 3 * error + neglected
    assert abs(gains.mean() - first) > 10 * error + neglected


def predicted(found, quantity, sigma, n):
    return records.value(found, quantity, sigma=sigma, sign="both", n=n)


def test_a_sweep_at_an_exact_radius_in_three_dimensions_gains_what_the_sphere_says():
    """A Gaussian of the same root mean square length would gain half as much again, more than `r |Q a|`."""
    loss, params, batch = problems.linear(500, gradient_norm=3.0)
    basis = geometry.random_basis(keys.root(4), params, rank=3)
    seen = np.sqrt(geometry.signal(basis, batch).mass)
    sigma, num_draws, num_blocks = 0.2, 64, 64
    sweep = Sweep(in_basis(basis), (sigma,), num_draws * num_blocks, unit="exact_radius")
    result = run_sweep(loss, params, batch, sweep)
    around = landscape(loss, params, batch, sweep, num_probes=2)
    found = sweep_records(result, around)
    assert records.value(found, "is_predicted") == 1
    measured = predicted(found, "measured_gain", sigma, num_draws)  # mean over all subsets of 64
    gains = -np.min(result.scores.reshape(num_blocks, -1), axis=1)
    error = gains.std(ddof=1) / np.sqrt(num_blocks)
    assert abs(measured - predicted(found, "predicted_gain", sigma, num_draws)) < 4 * error
    for n in (1, 64, num_draws * num_blocks):
        low, gain, high, first = (
            predicted(found, f"{name}", sigma, n)
            for name in ("predicted_low", "predicted_gain", "predicted_high", "first_order_gain")
        )
        assert low <= gain <= high <= sigma * seen * (1 + 1e-6)
        assert first == pytest.approx(gain, rel=1e-6)
        assert low < predicted(found, "measured_gain", sigma, n) < high
    by_sigma = [(r.where["sigma"], r.value) for r in records.select(found, "predicted_gain_by_sigma")]
    assert all(gain <= s * seen * (1 + 1e-6) for s, gain in by_sigma)


@pytest.mark.parametrize("kind", ["basis", "all"])
def test_curvature_at_an_exact_radius_is_counted_on_the_sphere(kind):
    curved = problems.quadratic(20, gradient_norm=1.0, trace=30.0)
    loss, params, batch = curved.problem
    family = gaussian() if kind == "all" else in_basis(geometry.random_basis(keys.root(6), params, rank=4))
    block, num_blocks, sigma = 16, 512, 0.1
    sweep = Sweep(family, (sigma,), block * num_blocks, unit="exact_radius")
    result = run_sweep(loss, params, batch, sweep)
    gains = -np.min(result.scores.reshape(num_blocks, -1), axis=1).astype(np.float64)
    around = landscape(loss, params, batch, sweep, num_probes=256)
    found = sweep_records(result, around)
    gain = predicted(found, "predicted_gain", sigma, block)
    k = 20 if kind == "all" else 4
    # Neglected, as above, for the part of H that does not see the length alone: |z| = 1 fixes the rest.
    hessian = oracles.flat(batch[1])
    uneven = k * np.var(hessian) * 2 / (k * (k + 2))
    neglected = sigma**3 * uneven / (around.slope * np.sqrt(k))
    error = gains.std(ddof=1) / np.sqrt(num_blocks) + sigma**2 / 2 * around.curvature_trace_error
    assert abs(gains.mean() - gain) < 4 * error + neglected
    assert abs(gains.mean() - predicted(found, "first_order_gain", sigma, block)) > 8 * error + neglected
    # The sigma that is said to be best is where the prediction by sigma is largest, on its grid.
    by_sigma = records.select(found, "predicted_gain_by_sigma")
    best = records.value(found, "predicted_best_sigma")
    whole = theory.best_of_n_gain(
        block * num_blocks,
        best * around.unit_step * np.array([0.95, 1.0, 1.05]),
        around.slope,
        around.curvature_trace,
        around.curvature_along,
        both_signs=True,
        dimension=k,
    )
    assert whole[1] > max(whole[0], whole[2])
    assert whole[1] >= max(r.value for r in by_sigma) * (1 - 1e-6)


def test_the_linear_regime_of_a_quadratic_ends_where_it_was_foretold():
    curved = problems.quadratic(200, gradient_norm=1.0, trace=60.0)
    known = landscape(*curved.problem, Sweep(gaussian(), (1.0,), 1), num_probes=4)
    end = float(theory.predicted_sigma_star(known.slope, known.curvature_trace, known.curvature_spread))
    sweep = Sweep(gaussian(), (end / 2, end), 4000, seed=3)
    found = sweep_records(run_sweep(*curved.problem, sweep), known)
    assert records.value(found, "predicted_sigma_star") == pytest.approx(end, rel=1e-6)
    assert records.value(found, "f1_share", sigma=sweep.sigmas[1]) == pytest.approx(0.9, abs=0.01)
