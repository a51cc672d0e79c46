"""Training: reproducible to the bit, indifferent to who watches, and able to learn."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import keys, models, tasks, training
from lacuna.errors import InvalidInput

CONFIG = training.TrainConfig(num_steps=7, warmup_steps=2, peak_learning_rate=0.1)


def distance(params, batch):
    """A loss that is quick to compile: mean squared distance of one row from the batch's rows."""
    return jnp.mean((params["row"] - batch.tokens) ** 2)


def start():
    return {"row": jnp.linspace(-1, 1, 10)}


def data(seed=0):
    return tasks.mixture(["copy", "add"], seed=seed, batch_size=8, length=4)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_fit_is_deterministic_and_leaves_its_start_alone():
    params = start()
    first = training.fit(distance, params, data(), CONFIG)
    again = training.fit(distance, params, data(), CONFIG)
    assert equal(first, again)
    assert equal(params, start())
    assert not equal(first.params, params)


def test_losses_are_those_before_each_update():
    fitted = training.fit(distance, start(), data(), CONFIG)
    assert fitted.losses.shape == (7,)
    assert fitted.losses[0] == pytest.approx(float(distance(start(), data()(0))), rel=1e-6)
    shorter = training.fit(distance, start(), data(), replace(CONFIG, num_steps=3, warmup_steps=2))
    # The schedules agree for three steps, so three updates lead to the point where the fourth loss was taken.
    assert fitted.losses[3] == pytest.approx(float(distance(shorter.params, data()(3))), rel=1e-5)


def test_watching_changes_no_bit_and_needs_no_other_program():
    alone = training.fit(distance, start(), data(), CONFIG)
    programs = training._advance._cache_size()
    seen = []
    for every in (3, 1, 100):
        watched = training.fit(
            distance,
            start(),
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


def test_another_seed_needs_no_other_program():
    first = training.fit(distance, start(), data(0), CONFIG)
    programs = training._advance._cache_size()
    second = training.fit(distance, start(), data(1), CONFIG)
    assert training._advance._cache_size() == programs
    assert not equal(first, second)


def test_a_plain_function_gives_batches_too():
    mixture = data()
    plain = training.fit(distance, start(), lambda step: mixture(step), CONFIG)
    assert equal(plain, training.fit(distance, start(), mixture, CONFIG))


def test_steps_follow_the_schedule_whatever_the_size_of_the_gradient():
    """Clipped to one size, gradients of one sign move AdamW by the learning rate: the moves draw the schedule."""
    config = training.TrainConfig(num_steps=10, warmup_steps=4, peak_learning_rate=0.1, weight_decay=0.0)
    plain, decayed = (
        training.fit(lambda p, batch: p["x"] * batch, {"x": jnp.float32(0)}, lambda step: 10.0**step, c).params["x"]
        for c in (config, replace(config, weight_decay=0.5))
    )
    warm, cosine = np.arange(4) / 4, (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    assert plain == pytest.approx(-0.1 * (warm.sum() + cosine.sum()), rel=1e-4)
    assert plain < decayed < 0  # decay pulls towards zero


def test_a_small_model_learns_to_copy():
    spec = models.SyntheticSpec(vocab_size=21, max_length=10, num_layers=1, width=32, num_heads=2, mlp_width=64)
    model = models.synthetic(spec)
    task = tasks.digit_task("copy", model.apply, seed=0, batch_size=64, length=4)
    config = training.TrainConfig(num_steps=200, warmup_steps=20, peak_learning_rate=1e-2)
    copies = tasks.mixture(["copy"], seed=0, batch_size=64, length=4)
    fitted = training.fit(task.objective.loss, model.init(keys.stream(0, "init")), copies, config)
    assert fitted.losses[0] > 2
    assert fitted.losses[-1] < 0.1
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


def test_a_stretch_of_no_steps_is_refused():
    with pytest.raises(InvalidInput, match="progress_every must be at least 1; got 0"):
        training.fit(distance, start(), data(), CONFIG, progress=print, progress_every=0)
