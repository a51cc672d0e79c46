"""What the theory says a sweep will gain, beside what a sweep gains."""

import numpy as np
import oracles
import problems
import pytest

from lacuna import theory
from lacuna.search import Sweep, gaussian, run_sweep


@pytest.mark.parametrize("size", [10, 1_000, 100_000])
def test_the_gain_on_a_linear_loss_lies_in_one_band_whatever_the_dimension(size):
    num_draws, sigma, gradient_norm = 64, 0.01, 3.0
    sweep = Sweep(gaussian(), (sigma,), num_draws, seed=1)
    gain = run_sweep(*problems.linear(size, gradient_norm=gradient_norm), sweep).gain
    low, high = theory.best_of_n_band(num_draws, sigma, gradient_norm, both_signs=True)
    assert low < gain < high


def test_the_band_is_narrow_enough_to_notice_a_dimension():
    """Else the test above would hold for any law: a gain that grew with the root of P would leave this band."""
    low, high = theory.best_of_n_band(64, 0.01, 3.0, both_signs=True)
    assert high < 2.5 * low


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_mean_gain_on_a_quadratic_is_the_second_order_one_and_not_the_first(antithetic):
    """Means over seeds are the means over disjoint blocks of one long sweep: its draws are independent."""
    block, num_blocks, sigma = 16, 128, 0.05
    curved = problems.quadratic(200, gradient_norm=1.0, trace=60.0)
    sweep = Sweep(gaussian(), (sigma,), block * num_blocks, seed=2, antithetic=antithetic, chunk=256)
    result = run_sweep(*curved.problem, sweep)
    best = np.min(result.scores.reshape(num_blocks, -1), axis=1)
    gains = result.base_score - best.astype(np.float64)
    error = gains.std(ddof=1) / np.sqrt(num_blocks)
    known = (block, sigma, curved.gradient_norm)
    first = theory.best_of_n_gain(*known, both_signs=antithetic)
    second = theory.best_of_n_gain(*known, curved.trace, curved.gradient_curvature, both_signs=antithetic)
    # Neglected: the winner prefers draws of small z^T H z, which gains of the order sigma^3 Var(z^T H z) / |a|.
    hessian = oracles.flat(curved.problem.batch[1])
    neglected = sigma**3 * 2 * (hessian @ hessian) / curved.gradient_norm
    assert abs(gains.mean() - second) < 3 * error + neglected
    assert abs(gains.mean() - first) > 10 * error + neglected
