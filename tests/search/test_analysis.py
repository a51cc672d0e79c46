"""What a sweep's scores say: gains, curves, and what survives on other data."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from lacuna import search
from lacuna.reports import records
from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(), (0.1, 0.4), 16, seed=5, top_k=4)


def cracked_loss(params, batch):
    """The linear loss, NaN where the first weight is large: at the larger sigma some draws fall off."""
    return jnp.where(jnp.abs(params["w"][0]) < 0.5, problems.linear_loss(params, batch), jnp.nan)


def found_by(loss, sweep):
    _, params, batch = problems.small()
    result = run_sweep(loss, params, batch, sweep)
    flat = search.Landscape(1.0, 0.0, 0.0, 0.0, 1.0, 1.0, step_norm=5**0.5, num_params=5)
    return result, search.sweep_records(result, flat)


@pytest.mark.parametrize("antithetic", [True, False])
def test_candidates_that_are_not_finite_never_win_and_the_others_are_measured(antithetic):
    result, found = found_by(cracked_loss, dataclasses.replace(SWEEP, antithetic=antithetic))
    num_lost = np.sum(~np.isfinite(result.scores), axis=(0, 2))
    assert num_lost[0] == 0 < num_lost[1] < 16
    sign = "both" if antithetic else "+"
    for j, sigma in enumerate(SWEEP.sigmas):
        gain = records.value(found, "measured_gain", sigma=sigma, sign=sign, n=16)
        np.testing.assert_allclose(gain, result.base_score - np.nanmin(result.scores[:, j]), rtol=1e-6)
        assert records.value(found, "num_nonfinite", sigma=sigma) == num_lost[j]


def test_the_winners_stand_beside_draws_that_were_never_searched():
    loss, params, batch = problems.small()
    result = run_sweep(loss, params, batch, SWEEP)
    other = jax.tree.map(lambda b: b[::-1], batch)
    found = search.held_out_records(result, loss, params, batch, other)
    longer = run_sweep(loss, params, batch, dataclasses.replace(SWEEP, num_candidates=20))
    column = SWEEP.sigmas.index(result.best.sigma)
    random = next(r.where["group"] for r in found if "random" in r.where["group"])
    expected = longer.base_score - longer.scores[16:, column, 0].mean()
    np.testing.assert_allclose(records.value(found, "search_gain", group=random), expected, rtol=1e-5)
    np.testing.assert_allclose(records.value(found, "search_gain", group="winner"), result.gain, rtol=1e-6)
    winner = search.candidate(params, SWEEP, *result.best[:3])
    held_out = loss(params, other) - loss(winner, other)
    np.testing.assert_allclose(records.value(found, "held_out_gain", group="winner"), held_out, rtol=1e-5)


def test_a_control_that_is_not_finite_is_left_out_and_the_rest_counted():
    _, params, batch = problems.small()
    wild = dataclasses.replace(SWEEP, sigmas=(0.4,), num_candidates=64, top_k=32)
    result = run_sweep(cracked_loss, params, batch, wild)
    found = search.held_out_records(result, cracked_loss, params, batch, batch)
    counts = {r.where["group"]: (r.where["num_finite"], r.where["size"], r.value) for r in found}
    (random,) = (group for group in counts if "random" in group)
    assert 0 < counts[random][0] < counts[random][1] == 32
    assert all(math.isfinite(value) for *_, value in counts.values())
