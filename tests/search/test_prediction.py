"""What the theory says a sweep will gain, beside what a sweep gains."""

import numpy as np
import oracles
import problems
import pytest

from lacuna import theory
from lacuna.search import Sweep, gaussian, run_sweep


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
