"""A loss that is a pytree: its arrays are data of whatever is compiled, and its functions are known by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lacuna import meshes
from lacuna.errors import RunMismatch
from lacuna.search import (
    Sweep,
    candidate,
    evaluate,
    gaussian,
    held_out_records,
    landscape,
    plan_sweep,
    rescore,
    run_sweep,
    score,
)
from lacuna.search.objectives import with_data
from lacuna.search.stepper import Stepper
from lacuna.types import Objective

SIZE = 777
PARAMS = {"w": jnp.linspace(-1.0, 1.0, SIZE)}
BATCH = {"x": jnp.cos(jnp.arange(SIZE, dtype=jnp.float32))}
SWEEP = Sweep(gaussian(), (0.1,), 6, seed=3, top_k=3)
FROZEN = {"w": jnp.sin(jnp.arange(SIZE, dtype=jnp.float32))}


def shifted(frozen, params, batch):
    """The mean square of what stands in the way of the batch."""
    return jnp.mean(jnp.square(frozen["w"] + params["w"] - batch["x"]))


def held(factor=1.0):
    """The loss with its weights frozen."""
    return Partial(shifted, jax.tree.map(lambda x: factor * x, FROZEN))


def by_hand(params, factor=1.0):
    frozen, params, batch = (np.asarray(tree, np.float64) for tree in (FROZEN["w"], params["w"], BATCH["x"]))
    return np.mean((factor * frozen + params - batch) ** 2)


def test_a_sweep_scores_with_the_arrays_that_the_loss_holds():
    found = run_sweep(held(), PARAMS, BATCH, SWEEP)
    made = [[[by_hand(candidate(PARAMS, SWEEP, i, 0.1, sign)) for sign in (1, -1)]] for i in range(6)]
    np.testing.assert_allclose(found.scores, made, rtol=1e-5)
    np.testing.assert_array_equal(rescore(held(), PARAMS, BATCH, SWEEP, found.top_k), [c.score for c in found.top_k])
    best = candidate(PARAMS, SWEEP, *found.best[:3])
    assert score(held(), best, BATCH) == np.float32(found.best.score)


def test_another_set_of_frozen_weights_compiles_nothing_again():
    programs = {}
    first, second = (run_sweep(held(factor), PARAMS, BATCH, SWEEP, programs=programs).scores for factor in (1.0, 2.0))
    assert len(programs) == 1
    made = [by_hand(candidate(PARAMS, SWEEP, i, 0.1), 2.0) for i in range(6)]
    np.testing.assert_allclose(second[:, 0, 0], made, rtol=1e-5)
    assert np.abs(first - second).min() > 1e-3
    score(held(), PARAMS, BATCH)
    compiled = evaluate._scores_on_line._cache_size()
    assert score(held(2.0), PARAMS, BATCH) != score(held(), PARAMS, BATCH)
    assert evaluate._scores_on_line._cache_size() == compiled


def test_frozen_weights_are_no_constant_of_the_program():
    objective, batch = with_data(held(), BATCH)
    program = evaluate.program_of(objective, SWEEP.family)
    text = Stepper(program, SWEEP, PARAMS, batch, meshes.candidate_mesh(jax.devices()[:1])).compiled.as_text()
    large = [line for line in text.splitlines() if "constant(" in line and str(SIZE) in line.split("constant(")[0]]
    assert not large


def test_everything_that_takes_a_loss_takes_one_that_holds_arrays():
    result = run_sweep(held(), PARAMS, BATCH, SWEEP)
    slope = landscape(held(), PARAMS, BATCH, SWEEP, num_probes=2).slope
    gap = np.asarray(FROZEN["w"], np.float64) + np.asarray(PARAMS["w"]) - np.asarray(BATCH["x"])
    assert slope == pytest.approx(2 * np.linalg.norm(gap) / SIZE, rel=1e-5)
    plan = plan_sweep(held(), PARAMS, BATCH, SWEEP, trial_s=0.0)
    assert plan.data_bytes >= 2 * 4 * SIZE  # the frozen weights count
    assert held_out_records(result, held(), PARAMS, BATCH, BATCH)


def test_a_run_is_not_gone_on_with_on_other_frozen_weights(tmp_path):
    run_sweep(held(), PARAMS, BATCH, SWEEP, out=tmp_path / "run")
    assert run_sweep(held(), PARAMS, BATCH, SWEEP, out=tmp_path / "run", resume=True).num_scored == 0
    with pytest.raises(RunMismatch, match="batch_sha256"):
        run_sweep(held(2.0), PARAMS, BATCH, SWEEP, out=tmp_path / "run", resume=True)


def test_an_array_that_several_functions_hold_is_passed_once():
    frozen = jnp.ones(3)
    loss = Partial(lambda frozen, params, batch: jnp.sum(frozen * params * batch), frozen)
    moving = Partial(lambda loss, params, move, batch: loss(move("", None, params), batch), loss)
    objective, (arrays, batch) = with_data(Objective(loss, perturbed_loss=moving), jnp.float32(2))
    assert [array is frozen for array in arrays] == [True]
    assert batch == 2.0
    assert objective.loss(4.0, (arrays, batch)) == 24
    assert objective.perturbed_loss(4.0, lambda name, layer, leaf: leaf + 1, (arrays, batch)) == 30


def test_what_holds_no_arrays_stays_as_it_came_and_what_was_taken_apart_stays_so():
    def plain(params, batch):
        return params * batch

    assert with_data(plain, BATCH) == (Objective(plain), BATCH)
    once = with_data(held(), BATCH)
    again = with_data(*once)
    assert again[0] == once[0]
    assert again[1] is once[1]
    assert with_data(held(), BATCH)[0] == with_data(held(3.0), BATCH)[0]
    assert hash(once[0]) == hash(again[0])
