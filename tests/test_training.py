"""Training: reproducible to the bit, indifferent to who watches, and able to learn; recovery by textbook."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from lacuna import geometry, keys, models, tasks, training
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
        ({"num_steps": 0}, r"TrainConfig\.num_steps must be positive; got 0\."),
        ({"peak_learning_rate": float("nan")}, r"TrainConfig\.peak_learning_rate must be positive; got nan\."),
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


def least_squares(params, batch):
    """`|A x - y|^2 / 2` for a batch `(A, y)`, over two leaves."""
    matrix, target = batch
    x = jnp.concatenate([params["a"], params["b"].ravel()])
    return jnp.sum((matrix @ x - target) ** 2) / 2


SQUARES_START = {"a": jnp.linspace(-1, 1, 3), "b": jnp.ones((1, 4))}


def squares_at(step):
    """Another problem each step, so that a step taken on the wrong data shows."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(3), step))
    return jax.random.normal(keys[0], (9, 7)), jax.random.normal(keys[1], (9,))


def fixed_squares(step):
    return squares_at(0)


RECOVERIES = [
    training.RecoverConfig("sgd", 0.02, num_steps=12),
    training.RecoverConfig("momentum", 0.01, num_steps=12, momentum=0.8),
    training.RecoverConfig("adam", 0.05, num_steps=12, b1=0.8, b2=0.95, eps=1e-3),
]
by_optimiser = pytest.mark.parametrize("config", RECOVERIES, ids=lambda config: config.optimiser)


def path_float64(config, problems):
    """Points and losses of least squares by the textbook update rules, in float64 numpy."""
    x = oracles.flat(SQUARES_START)
    velocity, second, points, losses = np.zeros(7), np.zeros(7), [x], []
    for t, (matrix, target) in enumerate(problems, start=1):
        a, y = np.asarray(matrix, np.float64), np.asarray(target, np.float64)
        losses.append(np.sum((a @ x - y) ** 2) / 2)
        g = a.T @ (a @ x - y)
        if config.optimiser == "adam":
            velocity = config.b1 * velocity + (1 - config.b1) * g
            second = config.b2 * second + (1 - config.b2) * g**2
            corrected = np.sqrt(second / (1 - config.b2**t)) + config.eps
            step = velocity / (1 - config.b1**t) / corrected
        else:
            velocity = (config.momentum if config.optimiser == "momentum" else 0) * velocity + g
            step = velocity
        x = x - config.learning_rate * step
        points.append(x)
    return np.array(points), np.array(losses)


def flat_rows(rows):
    return np.concatenate([np.asarray(r, np.float64).reshape(len(r), -1) for r in jax.tree.leaves(rows)], axis=1)


@by_optimiser
def test_updates_and_losses_are_those_of_the_textbook(config):
    path = training.recover(least_squares, SQUARES_START, squares_at, config)
    points, losses = path_float64(config, [squares_at(t) for t in range(12)])
    # A dozen float32 steps with matrices of norm 5: a few tens of roundings.
    np.testing.assert_allclose(flat_rows(path.updates), np.diff(points, axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(oracles.flat(path.end), points[-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(path.losses, losses, rtol=1e-5)
    np.testing.assert_array_equal(path.steps, np.arange(12))
    assert path.steps.dtype == jnp.int32


@by_optimiser
def test_steps_are_those_of_optax(config):
    rate = config.learning_rate
    optimiser = {
        "sgd": optax.sgd(rate),
        "momentum": optax.sgd(rate, momentum=0.8),
        "adam": optax.adam(rate, b1=0.8, b2=0.95, eps=1e-3),
    }[config.optimiser]
    point, moments, updates = SQUARES_START, optimiser.init(SQUARES_START), []
    for t in range(12):
        update, moments = optimiser.update(jax.grad(least_squares)(point, squares_at(t)), moments)
        updates.append(oracles.flat(update))
        point = optax.apply_updates(point, update)
    path = training.recover(least_squares, SQUARES_START, squares_at, config)
    np.testing.assert_allclose(flat_rows(path.updates), updates, rtol=0, atol=5e-6)


def test_gradient_descent_on_a_quadratic_is_the_closed_form():
    """`x_t - x* = (I - rate H)^t (x_0 - x*)`."""
    path = training.recover(least_squares, SQUARES_START, fixed_squares, RECOVERIES[0])
    matrix, target = (np.asarray(a, np.float64) for a in squares_at(0))
    bottom = np.linalg.lstsq(matrix, target)[0]
    contraction = np.linalg.matrix_power(np.eye(7) - 0.02 * matrix.T @ matrix, 12)
    wanted = bottom + contraction @ (oracles.flat(SQUARES_START) - bottom)
    np.testing.assert_allclose(oracles.flat(path.end), wanted, rtol=0, atol=1e-5)


def bowl(params, batch):
    return sum(jnp.sum(jnp.square(p.astype(jnp.float32) - batch)) for p in jax.tree.leaves(params)) / 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@by_optimiser
def test_the_sum_of_the_updates_is_the_displacement(config, dtype):
    """Exactly, in a float64 sum: the steps are shorter than the coordinates, so differences do not round."""
    start = {"x": jnp.linspace(1, 2, 50).astype(dtype), "y": jnp.linspace(-3, -2, 6).reshape(2, 3).astype(dtype)}
    small = replace(config, learning_rate=1e-2, num_steps=10)
    path = training.recover(bowl, start, lambda step: jnp.float32(0), small)
    assert {leaf.dtype for leaf in jax.tree.leaves(path.updates)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(path.end)} == {jnp.dtype(dtype)}
    assert np.any(flat_rows(path.updates))
    np.testing.assert_array_equal(flat_rows(path.updates).sum(0), oracles.flat(path.end) - oracles.flat(start))


def test_updates_of_the_smallest_float16_numbers_are_recorded():
    start = {"x": jnp.asarray([3e-5, -1e-5], jnp.float16)}
    path = training.recover(bowl, start, lambda step: jnp.float32(0), training.RecoverConfig("sgd", 0.1, num_steps=3))
    assert np.all(flat_rows(path.updates)[0])
    np.testing.assert_array_equal(flat_rows(path.updates).sum(0), oracles.flat(path.end) - oracles.flat(start))


def test_the_rounding_of_a_bfloat16_point_is_one_that_no_compiler_may_drop():
    """A CPU keeps the rounding anyway, so only the program can show that it was asked for."""
    point, batch_at = {"x": jnp.ones(3, jnp.bfloat16)}, jax.tree_util.Partial(lambda step: jnp.float32(0))
    program = training._trajectory.lower(jax.tree_util.Partial(bowl), point, batch_at, RECOVERIES[0], recorded=2)
    assert "stablehlo.reduce_precision" in program.as_text()


@by_optimiser
def test_a_recorded_prefix_is_that_of_the_whole_run(config):
    whole = training.recover(least_squares, SQUARES_START, squares_at, config)
    for recorded in (1, 5, 12):
        prefix = training.recover(least_squares, SQUARES_START, squares_at, config, recorded=recorded)
        assert equal(prefix.updates, jax.tree.map(lambda u, n=recorded: u[:n], whole.updates))
        assert equal(prefix.steps, np.arange(recorded))
        assert equal((prefix.end, prefix.losses), (whole.end, whole.losses))


@by_optimiser
def test_recorded_sketches_are_those_of_the_updates(config):
    sketch = geometry.Sketch(jax.random.key(0), 8)
    whole = training.recover(least_squares, SQUARES_START, squares_at, config)
    kept = training.recover(least_squares, SQUARES_START, squares_at, config, record=sketch)
    assert kept.updates.shape == (12, 8)
    np.testing.assert_allclose(kept.updates, jax.vmap(sketch)(whole.updates), atol=1e-6)
    assert equal((kept.end, kept.losses, kept.steps), (whole.end, whole.losses, whole.steps))
    programs = training._trajectory._cache_size()
    training.recover(least_squares, SQUARES_START, squares_at, config, record=geometry.Sketch(jax.random.key(1), 8))
    assert training._trajectory._cache_size() == programs


def test_memory_is_that_of_the_recorded_updates():
    start = {"x": jnp.ones(10_000)}
    config = training.RecoverConfig("sgd", 0.1, num_steps=100)

    def occupied(recorded):
        batch_at = jax.tree_util.Partial(lambda step: jnp.float32(0))
        program = training._trajectory.lower(
            jax.tree_util.Partial(bowl), start, batch_at, config, recorded=recorded
        ).compile()
        memory = program.memory_analysis()
        return np.array([memory.output_size_in_bytes, memory.temp_size_in_bytes])

    # The updates lie in the result and nowhere else.
    np.testing.assert_allclose(occupied(50) - occupied(2), [48 * 40_000, 0], atol=1024)


def beside(frozen, params, batch):
    """`distance` of the sum of a moving row and a frozen one."""
    return distance({"row": params["row"] + frozen}, batch)


def test_a_loss_that_holds_frozen_weights_takes_them_as_data():
    frozen = jnp.linspace(0, 1, 10)
    moved = {"row": start()["row"] + frozen}
    plain = replace(CONFIG, weight_decay=0.0)  # a decay would know how far the moving part is from zero
    for train in (
        lambda loss, params: training.recover(loss, params, data(), RECOVERIES[2]).losses,
        lambda loss, params: training.fit(loss, params, data(), plain).losses,
    ):
        held = train(jax.tree_util.Partial(beside, frozen), start())
        np.testing.assert_allclose(held, train(distance, moved), rtol=1e-5)
    programs = training._trajectory._cache_size(), training._advance._cache_size()
    for train in (training.recover, training.fit):
        train(
            jax.tree_util.Partial(beside, 2 * frozen),
            start(),
            data(),
            RECOVERIES[2] if train is training.recover else plain,
        )
    assert programs == (training._trajectory._cache_size(), training._advance._cache_size())


@by_optimiser
def test_many_recoveries_at_once_are_those_of_a_loop(config):
    starts = {"row": jnp.stack([start()["row"] * scale for scale in (0.5, 1, 2)])}
    mixtures = [data(seed) for seed in range(3)]
    streams = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixtures)
    paths = jax.jit(jax.vmap(lambda p, d: training.trajectory(distance, p, d, config)))(starts, streams)
    for i, mixture in enumerate(mixtures):
        alone = training.recover(distance, {"row": starts["row"][i]}, mixture, config)
        for together, single in zip(jax.tree.leaves(paths), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(together[i], single, rtol=1e-5, atol=1e-6)


def test_another_seed_or_start_needs_no_other_recovery_program_and_leaves_its_start_alone():
    params = start()
    first = training.recover(distance, params, data(0), RECOVERIES[0])
    programs = training._trajectory._cache_size()
    again = training.recover(distance, params, data(0), RECOVERIES[0])
    second = training.recover(distance, params, data(1), RECOVERIES[0])
    assert training._trajectory._cache_size() == programs
    assert equal(first, again)
    assert equal(params, start())
    assert not equal(first.updates, second.updates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite; got nan"),
        ({"num_steps": 0}, "num_steps must be positive and finite; got 0"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\); got 1.0"),
        ({"b1": -0.1}, r"b1 must be in \[0, 1\)"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\)"),
    ],
)
def test_bad_recoveries_are_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        training.RecoverConfig(**{"optimiser": "sgd", "learning_rate": 0.1} | change)


def test_an_unknown_optimiser_is_refused():
    config = training.RecoverConfig("sgd", 0.1)
    object.__setattr__(config, "optimiser", "sdg")  # as untyped code may make it
    with pytest.raises(InvalidInput, match="optimiser must be one of sgd, momentum, adam; got `sdg`"):
        config.__post_init__()


@pytest.mark.parametrize("recorded", [0, 13])
def test_a_prefix_that_is_empty_or_longer_than_the_run_is_refused(recorded):
    with pytest.raises(InvalidInput, match=f"recorded must be .* got {recorded} of 12"):
        training.recover(distance, start(), data(), RECOVERIES[0], recorded=recorded)


def test_recovery_of_an_integer_leaf_is_refused_by_name():
    with pytest.raises(InvalidInput, match="all must be floating; got `codes/k` of int8"):
        training.recover(bowl, {"codes": {"k": jnp.zeros(3, jnp.int8)}}, data(), RECOVERIES[0])


def test_a_stream_from_a_step_on_gives_the_same_batches():
    later = training.from_step(lambda step: {"x": 10 * step}, 3)
    assert int(later(2)["x"]) == 50
    assert int(jax.jit(lambda stream, step: stream(step)["x"])(later, 4)) == 70
