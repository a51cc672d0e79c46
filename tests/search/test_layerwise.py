"""An objective that makes its weights layer by layer: the same noise and scores, and one layer's noise at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lm

from lacuna import geometry, keys, meshes
from lacuna.search import Candidate, Sweep, candidate, evaluate, gaussian, in_basis, rescore, run_sweep, score
from lacuna.search.stepper import Stepper
from lacuna.types import Objective

STACKED = tiny_lm.MODEL.stacked
POINT = tiny_lm.PARAMS, tiny_lm.TOKENS
LOSSES = {"whole": tiny_lm.loss, "layerwise": tiny_lm.LAYERWISE}


def of_unit(unit):
    return Sweep(gaussian(stacked=STACKED), (1e-2 if unit == "sigma" else 1.0,), 9, seed=3, unit=unit)


def num_devices(n):
    return meshes.candidate_mesh(jax.devices()[:n])


@pytest.fixture(scope="module", params=["sigma", "rms_radius", "exact_radius"])
def swept(request):
    """A sweep in each unit, and its scores by whole weights and layer by layer."""
    sweep = of_unit(request.param)
    return sweep, {name: run_sweep(loss, *POINT, sweep, mesh=num_devices(2)).scores for name, loss in LOSSES.items()}


def test_layer_by_layer_the_scores_are_those_of_whole_weights(swept):
    _, scores = swept
    assert np.ptp(scores["whole"]) > 1e-3
    np.testing.assert_allclose(scores["layerwise"], scores["whole"], rtol=1e-6)


def test_a_candidate_of_a_layerwise_sweep_comes_back_with_the_recorded_bits(swept):
    sweep, scores = swept
    recorded = scores["layerwise"][:, 0]
    every = tuple(Candidate(i, sweep.sigmas[0], sign, 0.0) for i in range(9) for sign in (1, -1))
    again = rescore(tiny_lm.LAYERWISE, *POINT, sweep, every)
    np.testing.assert_array_equal(again.reshape(9, 2), recorded)
    alone = [score(tiny_lm.LAYERWISE, candidate(POINT[0], sweep, *c[:3]), POINT[1]) for c in every]
    np.testing.assert_array_equal(np.reshape(alone, (9, 2)), recorded)


def random_bits(objective, unit):
    """Shapes of all random bits of the step, and the bytes that it needs beside its arguments."""
    sweep = of_unit(unit)
    program = evaluate.program_of(objective, sweep.family, exact_radius=unit == "exact_radius")
    compiled = Stepper(program, sweep, *POINT, num_devices(1)).compiled
    found = re.findall(r"u32\[([\d,]+)\]", compiled.as_text())
    return {tuple(map(int, shape.split(","))) for shape in found}, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("unit", ["sigma", "exact_radius"])
def test_no_noise_of_a_whole_stack_of_layers_is_ever_there(unit):
    stacks = {leaf.shape for leaf in jax.tree.leaves(POINT[0]["layers"])}
    whole, whole_bytes = random_bits(tiny_lm.loss, unit)
    layers, layer_bytes = random_bits(tiny_lm.LAYERWISE, unit)
    assert stacks <= whole
    assert not stacks & layers
    assert {shape[1:] for shape in stacks} <= layers
    assert layer_bytes < whole_bytes


def test_a_basis_makes_weights_whole_whatever_the_objective_offers():
    family = in_basis(geometry.random_basis(keys.root(3), POINT[0], rank=2), block=4, stacked=STACKED)
    sweep = Sweep(family, (0.1,), 4, seed=3)
    assert evaluate.program_of(tiny_lm.LAYERWISE, family) == evaluate.program_of(tiny_lm.loss, family)
    tables = [run_sweep(loss, *POINT, sweep, mesh=num_devices(1)).sha256 for loss in LOSSES.values()]
    assert tables[0] == tables[1]


def weights_and_a_counter(params, batch):
    return jnp.sum(jnp.tanh(params["w"]) * batch)


def their_moves(params, move, batch):
    return weights_and_a_counter({name: move(name, None, leaf) for name, leaf in params.items()}, batch)


def test_what_is_not_moved_has_no_part_in_the_length_of_a_step():
    params = {"w": jnp.ones(5), "counter": jnp.arange(40)}
    problem = Objective(weights_and_a_counter, perturbed_loss=their_moves), params, jnp.arange(5.0)
    sweep = Sweep(gaussian(), (0.5,), 4, unit="exact_radius")
    recorded = run_sweep(*problem, sweep).scores[:, 0, 0]
    again = [float(weights_and_a_counter(candidate(params, sweep, i, 0.5), problem[2])) for i in range(4)]
    np.testing.assert_allclose(recorded, again, rtol=1e-6)
