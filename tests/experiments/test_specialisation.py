"""The order of lessons and nothing else, what comes back and when, and the rule of the claim."""

import json
from collections import Counter
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lessons, running, specialisation
from experiments.lessons import School
from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record
from lacuna.tasks.task import Batch

CONFIG = replace(specialisation.PRESETS["small"], systems=("lora",), tasks=("copy", "sort"), num_updates=10)


def test_both_arms_take_the_same_batches_in_another_order():
    order = (2, 0, 1)
    apart, together = lessons.sequential(order, 4), lessons.simultaneous(order, 4)
    assert Counter(map(tuple, apart.tolist())) == Counter((t, s) for t in range(3) for s in range(4))
    assert Counter(map(tuple, together.tolist())) == Counter(map(tuple, apart.tolist()))
    assert apart[:5].tolist() == [[2, 0], [2, 1], [2, 2], [2, 3], [0, 0]]
    assert together[:5].tolist() == [[2, 0], [0, 0], [1, 0], [2, 1], [0, 1]]
    assert lessons.shared(apart, together) == 1.0


def test_a_lesson_that_is_given_twice_is_shared_once():
    whole = lessons.sequential((0, 1), 2)
    assert lessons.shared(whole, whole[[0, 0, 2, 3]]) == 0.75
    assert lessons.shared(whole, whole[:3]) == 0.75


def test_every_task_stands_once_at_every_place():
    found = lessons.orders(3, 4, 4)
    assert all(sorted(places) == [0, 1, 2, 3] for places in zip(*found, strict=True))
    assert all(sorted(order) == [0, 1, 2, 3] for order in found)
    assert lessons.orders(3, 4, 2) == found[:2]
    assert len({tuple(lessons.orders(seed, 4, 1)[0]) for seed in range(8)}) > 1


RATE = 2.0**-4


def school():
    """Three tasks, the accuracy of each a weight of its own, which Adam moves by its rate with every update on it.

    (After the first stage moments that are kept move the weights of the tasks before as well.)
    """

    def loss(params, batch):
        return -params[batch.tokens[0, 0]]

    def accuracy(params, batch):
        return params[batch.tokens[0, 0]]

    def rows(task):
        return Batch(jnp.full((1, 1), task), jnp.ones((1, 1), bool))

    streams = tuple(trees.as_data(lambda step, task=task: rows(task)) for task in range(3))
    held_out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(rows, range(3)))
    return School(trees.as_data(loss), trees.as_data(accuracy), streams, held_out, RATE)


def test_the_accuracies_are_those_before_the_first_lesson_and_after_every_few():
    schedule = jnp.asarray(lessons.sequential((1, 0, 2), 4))
    learnt = lessons.learn(school(), jnp.zeros(3), schedule, every=2)
    assert learnt.accuracy.shape == (7, 3)
    np.testing.assert_array_equal(learnt.accuracy[0], 0)
    # The first stage is that of task 1 alone, and Adam's steps on a constant gradient are its rate.
    np.testing.assert_allclose(learnt.accuracy[:3, 1], [0, 2 * RATE, 4 * RATE], rtol=1e-5)
    np.testing.assert_array_equal(learnt.accuracy[:3, [0, 2]], 0)
    assert learnt.accuracy[4, 0] > 0 == learnt.accuracy[4, 2]
    np.testing.assert_array_equal(learnt.accuracy[-1], learnt.params)


def test_the_optimiser_goes_on_through_the_stages():
    """What a fresh one would leave alone, the moments of the stage before still carry on."""
    learnt = lessons.learn(school(), jnp.zeros(3), jnp.asarray(lessons.sequential((1, 0), 4)), every=2)
    assert learnt.accuracy[3, 1] > learnt.accuracy[2, 1]
    assert learnt.accuracy[4, 1] > learnt.accuracy[3, 1]


def test_a_recovery_trains_on_batches_not_seen_before():
    """The stream's batches push up from step 9 on alone: 7 and 8 push down by as much."""
    given = school()

    def loss(params, batch):
        return -params[1] * batch.tokens[0, 0]

    stream = trees.as_data(
        lambda step: Batch(jnp.where(step >= 9, 1, -1) * jnp.ones((1, 1), int), jnp.ones((1, 1), bool))
    )
    given = given._replace(loss=trees.as_data(loss), streams=(stream,) * 3)
    found = lessons.relearn(given, jnp.zeros(3), jnp.int32(1), jnp.float32(RATE), jnp.int32(7), jnp.int32(40), every=1)
    assert bool(found.regained)
    assert int(found.num_updates) > 2


@pytest.mark.parametrize(
    ("start", "target", "most", "num_updates", "regained"),
    [
        (0.0, 4.9 * RATE, 30, 6, True),  # 5 updates, seen at the examination after the sixth
        (0.0, 2.1 * RATE, 30, 3, True),
        (0.5, 0.4, 30, 0, True),  # nothing was lost
        (0.0, 5.9 * RATE, 3, 3, False),  # given up
        (0.0, 5.9 * RATE, 6, 6, True),
    ],
)
def test_the_cost_of_recovery_is_the_updates_until_the_first_examination_that_is_passed(
    start, target, most, num_updates, regained
):
    found = lessons.relearn(
        school(), jnp.full(3, start), jnp.int32(1), jnp.float32(target), jnp.int32(7), jnp.int32(most), every=3
    )
    assert (int(found.num_updates), bool(found.regained)) == (num_updates, regained)


def test_the_first_cost_is_counted_at_the_same_examinations():
    assert lessons.updates_to(0.5, np.asarray([0.1, 0.4, 0.6, 0.4, 0.7]), every=5) == 10
    assert lessons.updates_to(0.1, np.asarray([0.1, 0.4]), every=5) == 0


def judged(gaps, *, together=0.98, same=1.0):
    """The verdict on records of a simultaneous arm and of two orders whose gaps differ by 0.2."""
    found = []
    for seed, gap in enumerate(gaps):
        where = {"seed": seed, "system": "lora"}
        last = {"updates": 20, **where}
        for arm in ("simultaneous", "sequential"):  # what was before the end counts for nothing
            found.append(Record("x", "mean_accuracy", 0.1, "1", {"arm": arm, "order": 0, **last, "updates": 10}))
        found.append(Record("x", "mean_accuracy", together, "1", {"arm": "simultaneous", **last}))
        for order, offset in enumerate((-0.1, 0.1)):
            end = together - gap + offset
            found.append(Record("x", "mean_accuracy", end, "1", {"arm": "sequential", "order": order, **last}))
            found.append(Record("x", "shared_batches", same, "1", {"order": order, **where}))
    (row,) = specialisation.claims(found, CONFIG)
    return row


@pytest.mark.parametrize(
    ("gaps", "options", "verdict"),
    [
        ((0.3, 0.4, 0.5, 0.4, 0.4), {}, claims.REPRODUCED),  # 0.4 is 5.7 times 0.071; orders do not count as spread
        ((0.1, 0.4, 0.5, 0.4, 0.4), {}, claims.NOT_REPRODUCED),  # 2.4 times
        ((-0.3, -0.4, -0.5, -0.4, -0.4), {}, claims.NOT_REPRODUCED),
        ((0.3, 0.4, 0.5, 0.4, 0.4), {"together": 0.89}, claims.CONTROL_FAILS),
        ((0.3, 0.4, 0.5, 0.4, 0.4), {"same": 0.99}, claims.CONTROL_FAILS),
        ((0.3, 0.4, 0.5, 0.4), {}, claims.TOO_SMALL),
    ],
)
def test_the_rule_of_specialisation(gaps, options, verdict):
    assert judged(gaps, **options).verdict == verdict


def test_the_gap_that_is_shown_is_the_mean_over_orders():
    row = judged((0.3, 0.4, 0.5, 0.4, 0.4))
    assert row.ours == "gap in mean accuracy 0.4 (0.3 to 0.5), 5.7 times its spread over seeds"


def test_a_configuration_within_another_is_read_back():
    config = replace(CONFIG, base=replace(CONFIG.base, texts=("a.txt", "b.txt"), width=64))
    document = json.loads(json.dumps({"command": "x", "wall_s": 1.0, **asdict(config)}))
    assert running._config_of(specialisation, document) == config


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": ("copy",)}, "tasks must be two or more"),
        ({"tasks": ("copy", "copy")}, "all different"),
        ({"tasks": ("copy", "srt")}, "Try: `sort`"),
        ({"num_updates": 7}, "num_updates must be a multiple of check_every"),
        ({"num_orders": 0}, "num_orders must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        replace(CONFIG, **options)
