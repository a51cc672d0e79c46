"""Training: reproducible to the bit, indifferent to who watches, and able to learn."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import keys, models, tasks, training
from lacuna.errors import InvalidInput

SPEC = models.SyntheticSpec(vocab_size=21, max_length=18, num_layers=1, width=32, num_heads=2, mlp_width=64)
CONFIG = training.TrainConfig(num_steps=7, warmup_steps=2)


@pytest.fixture(scope="module")
def start():
    model = models.synthetic(SPEC)
    task = tasks.digit_task("copy", model.apply, seed=0, batch_size=64, length=4)
    return task, model.init(keys.stream(0, "init"))


def data(seed=0):
    return tasks.mixture(["copy"], seed=seed, batch_size=8, length=4)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_fit_is_deterministic_and_leaves_its_start_alone(start):
    task, params = start
    before = jax.tree.map(np.array, params)
    first = training.fit(task.objective.loss, params, data(), CONFIG)
    again = training.fit(task.objective.loss, params, data(), CONFIG)
    assert equal(first, again)
    assert equal(params, before)
    assert not equal(first.params, params)
    assert first.losses.shape == (7,)


def test_losses_are_those_before_each_update(start):
    task, params = start
    fitted = training.fit(task.objective.loss, params, data(), CONFIG)
    assert fitted.losses[0] == pytest.approx(float(jax.jit(task.objective.loss)(params, data()(0))), rel=1e-6)
    assert fitted.losses[1] != fitted.losses[0]


def test_watching_changes_no_bit_and_needs_no_other_program(start):
    task, params = start
    alone = training.fit(task.objective.loss, params, data(), CONFIG)
    programs = training._advance._cache_size()
    seen = []
    for every in (3, 1, 100):
        watched = training.fit(
            task.objective.loss,
            params,
            data(),
            CONFIG,
            progress=lambda *call: seen.append(call),
            progress_every=every,
        )
        assert equal(watched, alone)
    assert [step for step, _, _ in seen] == [3, 6, 7, 1, 2, 3, 4, 5, 6, 7, 7]
    assert {num_steps for _, num_steps, _ in seen} == {7}
    assert [loss for _, _, loss in seen[:3]] == [float(alone.losses[i]) for i in (2, 5, 6)]
    assert training._advance._cache_size() == programs


def test_another_seed_needs_no_other_program(start):
    task, params = start
    first = training.fit(task.objective.loss, params, data(0), CONFIG)
    programs = training._advance._cache_size()
    second = training.fit(task.objective.loss, params, data(1), CONFIG)
    assert training._advance._cache_size() == programs
    assert not equal(first, second)


def test_a_plain_function_gives_batches_too(start):
    task, params = start
    plain = training.fit(task.objective.loss, params, lambda step: data()(step), CONFIG)
    assert equal(plain, training.fit(task.objective.loss, params, data(), CONFIG))


def test_schedule_warms_up_and_ends_at_zero(start):
    """With gradients of equal size AdamW moves by the learning rate, so the moves draw the schedule."""
    config = training.TrainConfig(num_steps=10, warmup_steps=4, peak_learning_rate=0.1, weight_decay=0.0)
    points = [
        training.fit(lambda p, batch: p["x"] * batch, {"x": jnp.float32(0)}, lambda step: jnp.float32(1), c).params
        for c in (config, replace(config, weight_decay=0.5))
    ]
    warm, cosine = np.arange(4) / 4, (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    assert points[0]["x"] == pytest.approx(-0.1 * (warm.sum() + cosine.sum()), rel=1e-4)
    assert points[0]["x"] < points[1]["x"] < 0  # decay pulls towards zero


def test_a_small_model_learns_to_copy(start):
    task, params = start
    config = training.TrainConfig(num_steps=200, warmup_steps=20, peak_learning_rate=1e-2)
    copies = tasks.mixture(["copy"], seed=0, batch_size=64, length=4)
    fitted = training.fit(task.objective.loss, params, copies, config)
    assert fitted.losses[0] > 2
    assert jax.jit(task.metric)(fitted.params, task.held_out(0))["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be positive; got 0"),
        ({"peak_learning_rate": float("nan")}, "peak_learning_rate must be positive; got nan"),
        ({"warmup_steps": 500}, "got 500 of 500"),
        ({"warmup_steps": -1}, "got -1 of 500"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\)"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        training.TrainConfig(**change)


def test_a_stretch_of_no_steps_is_refused(start):
    task, params = start
    with pytest.raises(InvalidInput, match="progress_every must be at least 1; got 0"):
        training.fit(task.objective.loss, params, data(), CONFIG, progress=print, progress_every=0)
