"""A sweep over a model that is split over a mesh: the same scores, and nobody ever sees another's weights or noise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lm
from compiled_text import COLLECTIVE, of_matrices, shapes
from jax.sharding import NamedSharding, PartitionSpec

from lacuna import geometry, keys, meshes
from lacuna.errors import InvalidInput
from lacuna.models import sharding
from lacuna.search import Sweep, evaluate, gaussian, in_basis, low_rank, run_sweep
from lacuna.search.stepper import Stepper

STACKED = tiny_lm.MODEL.stacked

CASES = {
    "gaussian": (tiny_lm.loss, gaussian(stacked=STACKED), 2, "sigma"),
    "layer by layer at an exact radius": (tiny_lm.LAYERWISE, gaussian(stacked=STACKED), 4, "exact_radius"),
    "low rank at an exact radius": (tiny_lm.loss, low_rank(2, stacked=STACKED), 4, "exact_radius"),
    "in a basis": (tiny_lm.loss, None, 4, "rms_radius"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_split_model_scores_as_a_whole_one_and_gathers_no_weight_and_no_noise(case):
    objective, family, split, unit = CASES[case]
    if family is None:
        family = in_basis(geometry.random_basis(keys.root(3), tiny_lm.PARAMS, rank=3), block=4, stacked=STACKED)
    sweep = Sweep(family, (1e-2 if unit == "sigma" else 1.0,), 12, seed=3, unit=unit, top_k=5)
    mesh = meshes.model_mesh(split, jax.devices())
    placed = sharding.place(tiny_lm.PARAMS, mesh)
    whole = run_sweep(objective, tiny_lm.PARAMS, tiny_lm.TOKENS, sweep, mesh=meshes.candidate_mesh(jax.devices()[:1]))
    parted = run_sweep(objective, placed, tiny_lm.TOKENS, sweep)
    np.testing.assert_allclose(parted.scores, whole.scores, rtol=1e-5)
    assert [c[:3] for c in parted.top_k] == [c[:3] for c in whole.top_k]

    program = evaluate.program_of(objective, family, exact_radius=unit == "exact_radius")
    text = Stepper(program, sweep, placed, tiny_lm.TOKENS, mesh).compiled.as_text()
    leaves = [leaf for leaf in jax.tree.leaves(placed) if not leaf.is_fully_replicated]
    assert len(leaves) == 8
    wholes = of_matrices({leaf.shape for leaf in leaves})
    parts = of_matrices({leaf.addressable_shards[0].data.shape for leaf in leaves})
    assert not wholes & parts
    for result, kind in COLLECTIVE.findall(text):
        assert not shapes(result) & (wholes | parts), (kind, result)
        # Three dimensions are activations [B, S, D]; what is gathered are the scores [draws, signs] alone.
        assert kind == "all-reduce" or {shape[1:] for shape in shapes(result)} == {(2,)}, (kind, result)
    assert not shapes(text) & wholes, shapes(text) & wholes  # no weight and no noise is whole on any device
    if family.name == "gaussian":
        assert parts & shapes(" ".join(re.findall(r"u32\[[\d,]*\]", text)))  # the random bits of a part


def test_parameters_that_are_split_over_candidates_are_refused():
    mesh = meshes.model_mesh(4, jax.devices())
    params = {"w": jax.device_put(np.zeros(8, np.float32), NamedSharding(mesh, PartitionSpec("candidates")))}
    with pytest.raises(
        InvalidInput, match=r"may be split over the axis `model` alone; got .*candidates.* Try: load_hf"
    ):
        run_sweep(lambda p, b: (p["w"] * b).sum(), params, jnp.ones(8), Sweep(gaussian(), (0.1,), 8))


def test_a_mesh_that_does_not_divide_the_devices_is_refused_in_one_sentence():
    with pytest.raises(InvalidInput) as raised:
        meshes.model_mesh(3, jax.devices())
    assert str(raised.value) == "the number of devices must be a multiple of `model`; got 8 and 3."
