"""What a sweep's scores say: gains and curves."""

import dataclasses

import numpy as np
import problems
import pytest

from lacuna import search
from lacuna.reports import records
from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(), (0.1, 0.4), 16, seed=5, top_k=4)


def found_by(loss, sweep):
    _, params, batch = problems.small()
    result = run_sweep(loss, params, batch, sweep)
    flat = search.Landscape(1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, step_norm=5**0.5, num_params=5)
    return result, search.sweep_records(result, flat)


@pytest.mark.parametrize("antithetic", [True, False])
def test_candidates_that_are_not_finite_never_win_and_the_others_are_measured(antithetic):
    result, found = found_by(problems.cracked_loss, dataclasses.replace(SWEEP, antithetic=antithetic))
    num_lost = np.sum(~np.isfinite(result.scores), axis=(0, 2))
    assert num_lost[0] == 0 < num_lost[1] < 16
    sign = "both" if antithetic else "+"
    for j, sigma in enumerate(SWEEP.sigmas):
        gain = records.value(found, "measured_gain", sigma=sigma, sign=sign, n=16)
        np.testing.assert_allclose(gain, result.base_score - np.nanmin(result.scores[:, j]), rtol=1e-6)
        assert records.value(found, "num_nonfinite", sigma=sigma) == num_lost[j]


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_loss_without_curvature_is_to_be_searched_farther_out(antithetic):
    _, found = found_by(problems.linear_loss, dataclasses.replace(SWEEP, antithetic=antithetic))
    (record,) = records.select(found, "next_sigma")
    np.testing.assert_allclose(record.value, 3 * SWEEP.sigmas[-1])
    assert record.where == {"because": "rising"}
