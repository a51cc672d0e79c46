"""What persists in activations: the rule of the claim, its null and ceiling, and what pushed-forward updates hold."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_contrast

from experiments import activation_drift, persistence
from experiments.persistence import MEAN
from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record

SMALL = activation_drift.PRESETS["small"]


def made_up(**shift):
    """Five seeds that keep to the rule, but for what is said of the label shift's last seed."""
    usual = {"with_start": 0.5, "with_start_null": 0.2, "with_start_p": 0.001, "ceiling": 0.9}
    usual |= {"split_half": 0.92, "split_half_null": 0.2, "split_half_p": 0.001}
    return [
        Record(activation_drift.NAME, quantity, value, "1", {"vector": v, "step": 100, "level": MEAN, "seed": seed})
        for seed in range(5)
        for v in activation_drift.WORDS
        for quantity, value in (usual | (shift if (v, seed) == ("shift", 4) else {})).items()
    ]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        ({}, claims.REPRODUCED),
        ({"with_start_p": 0.02}, claims.NOT_REPRODUCED),
        ({"with_start": 0.1}, claims.NOT_REPRODUCED),
        ({"with_start": 0.91}, claims.NOT_REPRODUCED),
        ({"split_half_p": 0.02}, claims.CONTROL_FAILS),
        ({"split_half": 0.1}, claims.CONTROL_FAILS),
    ],
)
def test_both_directions_must_keep_to_the_rule_in_every_seed(shift, verdict):
    (row,) = activation_drift.claims(made_up(**shift), SMALL)
    assert row.verdict == verdict


def test_a_low_ceiling_is_no_control():
    records = [replace(r, value=0.25) if r.quantity == "ceiling" else r for r in made_up()]
    records = [replace(r, value=0.22) if r.quantity == "with_start" else r for r in records]
    (row,) = activation_drift.claims(records, SMALL)
    assert row.verdict == claims.CONTROL_FAILS


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"steps": (1, 3)}, "steps must begin with 0"),
        ({"steps": (0, 3, 3)}, "steps must ascend"),
        ({"steps": (0, 101)}, "to 100 or fewer"),
        ({"prefixes": (0, 2)}, "prefixes must ascend from 1 or more"),
        ({"num_fit": 7}, "must be even"),
    ],
)
def test_a_configuration_that_cannot_be_measured_is_refused(changed, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        replace(SMALL, **changed)


def test_the_halves_are_disjoint_and_of_equally_many_of_each_kind():
    config = replace(SMALL, num_fit=8, num_held_out=4)
    prompts = activation_drift.contrast_of(config, seed=3)
    tables = (*prompts.halves, prompts.held_out)
    assert [(len(p.right), int(p.positive.sum())) for p in tables] == [(8, 4), (8, 4), (4, 2)]
    assert len({tuple(row) for p in tables for row in p.tokens.tolist()}) == 20


TINY = tiny_contrast.tiny("synthetic")
START = SimpleNamespace(model=TINY.model, params=TINY.params, seed=0)


def contrast(*, equal_halves=False):
    halves = [tiny_contrast.prompts(10, seed=0 if equal_halves else half) for half in (0, 1)]
    return persistence.Contrast(tuple(halves), tiny_contrast.prompts(6, seed=2))


def run_of(*scales):
    """A path of random updates."""
    each = [tiny_contrast.like(TINY.params, seed=i, scale=scale) for i, scale in enumerate(scales)]
    updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    travelled = jax.tree.map(lambda u: u.sum(0), updates)
    return SimpleNamespace(updates=updates, end=trees.axpy(1.0, travelled, TINY.params))


def test_the_shortcut_over_labellings_is_the_direct_computation():
    """The contrast by `statement` and the shift by a gradient and its pushforward, for true and shuffled labels."""
    prompts = contrast()
    labels = np.stack([prompts.halves[1].positive, np.roll(prompts.halves[1].positive, 3)])
    found = persistence.labelled_directions(START, TINY.params, prompts, labels)
    for i, labelling in enumerate(labels):
        relabelled = prompts.halves[1]._replace(right=np.where(labelling, 0, 1).astype(np.int32))
        swapped = prompts._replace(halves=(relabelled, prompts.halves[0]))
        direct = persistence.directions(START, TINY.params, swapped)
        for vector in persistence.VECTORS:
            # The gradients of so wild a model cancel: float32 leaves about 3e-4 of them.
            missed = np.linalg.norm(found[vector][i] - direct[vector])
            assert missed < 2e-3 * np.linalg.norm(direct[vector])


def values(measures, quantity, **where):
    return {at["level"]: v for q, v, at in measures if q == quantity and where.items() <= at.items()}


def test_equal_halves_agree_wholly_and_a_step_moves_the_direction_below_the_ceiling():
    path = run_of(0.3)
    measures = list(persistence.direction_measures(START, path, contrast(equal_halves=True), (0, 1), num_shuffled=9))
    for vector in persistence.VECTORS:
        for step in (0, 1):
            for quantity in ("split_half", "ceiling"):
                found = values(measures, quantity, vector=vector, step=step)
                assert list(found) == [1, 2, MEAN]
                assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-5)
        assert values(measures, "with_start", vector=vector, step=0)[MEAN] == pytest.approx(1, abs=1e-5)
        assert values(measures, "with_start", vector=vector, step=1)[MEAN] < 0.95


def test_at_the_start_the_ceiling_is_the_cosine_itself_and_the_null_of_the_contrast_is_about_zero():
    measures = list(persistence.direction_measures(START, run_of(0.3), contrast(), (0,), num_shuffled=400))
    for vector in persistence.VECTORS:
        found = {quantity: values(measures, quantity, vector=vector) for quantity in ("with_start", "split_half")}
        assert found["with_start"] == found["split_half"]
    null, deviation = (values(measures, f"with_start_{q}", vector="contrast") for q in ("null", "null_deviation"))
    for level in null:
        assert abs(null[level]) < 4 * deviation[level] / np.sqrt(400)


def test_pushed_updates_hold_the_whole_of_a_displacement_that_is_linear():
    """As many updates as the run has, so short that the network is linear; of a longer run the error is seen."""
    held_out = contrast().held_out
    path, other = run_of(1.5e-5, 5e-6, 5e-6), run_of(1e-5, 2e-5, 3e-5)
    measures = list(persistence.displacement_measures(START, path, other, held_out, (1, 3)))
    assert min(values(measures, "pushed_prefix", m=3).values()) > 0.999
    # The first update is three times as long as the others, which have little to do with it.
    first, remainder = (values(measures, f"pushed_{name}", m=1).values() for name in ("prefix", "remainder"))
    assert 0.6 < min(first) <= max(first) < 0.99
    assert max(remainder) < 0.5
    assert max(values(measures, "pushed_random", m=3).values()) < 0.9
    assert max(values(measures, "linear_error").values()) < 0.03
    long = run_of(0.3, 0.3, 0.3)
    measures = list(persistence.displacement_measures(START, long, other, held_out, (1, 3)))
    assert min(values(measures, "linear_error").values()) > 0.1


def test_masses_are_of_all_prompts_together_at_each_level():
    random = np.random.default_rng(0)
    rows, delta = random.normal(size=(3, 4, 5, 1, 6)), random.normal(size=(4, 5, 1, 6))
    found = persistence.masses_by_level(rows.astype(np.float32), delta.astype(np.float32))
    assert found.shape == (3, 3)
    for level in (1, 2, 3):
        for k in (1, 2, 3):
            basis = np.linalg.qr(rows[:k, level].reshape(k, -1).T)[0]
            moved = delta[level].ravel()
            expected = np.sum((basis.T @ moved) ** 2) / np.sum(moved**2)
            assert found[level - 1, k - 1] == pytest.approx(expected, rel=1e-4)
