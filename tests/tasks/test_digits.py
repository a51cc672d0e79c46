"""Digit tasks: the operations, the layout of a row, and batches that can be drawn again."""

import subprocess
import sys
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna import keys, tasks
from lacuna.errors import InvalidInput
from lacuna.tasks import digits

ORACLES = {
    "copy": lambda d: list(d),
    "reverse": lambda d: list(reversed(d)),
    "sort": lambda d: sorted(d),
    "add": lambda d: [(x + 3) % 10 for x in d],
    "running_sum": lambda d: [sum(d[: i + 1]) % 10 for i in range(len(d))],
    "rotate": lambda d: d[1:] + d[:1],
    "complement": lambda d: [9 - x for x in d],
    "neighbour_sum": lambda d: [(x + y) % 10 for x, y in zip(d, d[1:] + d[:1], strict=True)],
    "running_max": lambda d: list(accumulate(d, max)),
}


class Stub(NamedTuple):
    logits: jax.Array


def all_knowing(params, tokens):
    """A model with parameters `rows`: the logits say each next token of those rows."""
    assert tokens.shape[1] == params["rows"].shape[1] - 1, "the last token predicts nothing"
    return Stub(50 * jax.nn.one_hot(params["rows"][:, 1:], tasks.vocab_size))


def draw(seed=0, name="sort", step=0, batch_size=6, **more):
    return tasks.digit_batch(seed, name, step, batch_size=batch_size, **more)


def test_every_operation_has_an_oracle():
    assert set(ORACLES) == set(tasks.DIGIT_TASKS)
    assert len(tasks.DIGIT_TASKS) == 9


@pytest.mark.parametrize("name", tasks.DIGIT_TASKS)
@settings(max_examples=25, deadline=None)
@given(row=st.sampled_from([1, 2, 8]).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)))
def test_operation_equals_plain_python(name, row):
    answer = digits.OPERATIONS[name](jnp.array([row], jnp.int32))
    assert answer.dtype == jnp.int32
    assert answer[0].tolist() == ORACLES[name](row)


@pytest.mark.parametrize("name", tasks.DIGIT_TASKS)
def test_row_is_task_token_digits_separator_answer(name):
    batch = draw(name=name, batch_size=4)
    assert batch.tokens.shape == batch.answer.shape == (4, 18)
    assert batch.tokens.dtype == jnp.int32
    for row in batch.tokens.tolist():
        assert row[0] == 11 + tasks.DIGIT_TASKS.index(name)
        assert all(0 <= d <= 9 for d in row[1:9])
        assert row[9] == 10
        assert row[10:] == ORACLES[name](row[1:9])
    assert batch.answer.tolist() == [[False] * 10 + [True] * 8] * 4
    assert tasks.vocab_size == 20


def test_batch_is_drawn_again_from_its_address():
    batch = draw(step=3)
    jitted = jax.jit(lambda step: draw(step=step))(3)
    for again in (draw(step=3), jitted):
        assert np.array_equal(again.tokens, batch.tokens)


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "copy"}, {"step": 1}, {"split": "held_out"}])
def test_every_part_of_the_address_gives_other_digits(change):
    assert not np.array_equal(draw(**change).tokens[:, 1:9], draw().tokens[:, 1:9])


def test_digits_are_uniform():
    counts = np.bincount(np.ravel(draw(batch_size=2000).tokens[:, 1:9]), minlength=10)
    chi_square = np.sum((counts - 1600.0) ** 2 / 1600.0)
    assert chi_square < 27.9  # 99.9 % point with 9 degrees of freedom


def test_mixture_is_its_tasks_own_batches():
    names = ("reverse", "add", "sort")
    batch = tasks.mixture(names, seed=2, batch_size=12, split="held_out")(5)
    parts = [draw(2, name, 5, 4, split="held_out") for name in names]
    assert np.array_equal(batch.tokens, np.concatenate([part.tokens for part in parts]))
    assert np.array_equal(batch.answer, np.concatenate([part.answer for part in parts]))


def test_what_cannot_be_shared_evenly_goes_to_the_first():
    batch = tasks.mixture(["copy", "add", "sort"], seed=0, batch_size=8)(0)
    assert batch.tokens[:, 0].tolist() == [11, 11, 11, 14, 14, 14, 13, 13]


def test_mixture_is_drawn_the_same_inside_a_compiled_function():
    data = tasks.mixture(["copy", "sort"], seed=0, batch_size=4)
    assert np.array_equal(jax.jit(data)(2).tokens, data(2).tokens)


def test_mixture_is_data_to_a_compiled_function():
    traces = []

    @jax.jit
    def tokens_of(data, step):
        traces.append(step)
        return data(step).tokens

    for seed in (0, 1):
        data = tasks.mixture(["copy", "sort"], seed=seed, batch_size=4)
        assert np.array_equal(tokens_of(data, 7), data(7).tokens)
    assert len(traces) == 1


def test_task_reads_what_it_needs_and_answers_in_the_layout_of_the_batch():
    task = tasks.digit_task("rotate", all_knowing, seed=0, batch_size=5)
    batch = task.train(2)
    assert np.array_equal(batch.tokens, draw(0, "rotate", 2, 5).tokens)
    assert np.array_equal(task.held_out(2).tokens, draw(0, "rotate", 2, 5, split="held_out").tokens)

    right = {"rows": batch.tokens}
    assert task.objective.loss(right, batch) == pytest.approx(0, abs=1e-6)
    assert np.array_equal(task.objective.predict(right, batch), batch.tokens)
    assert task.metric(right, batch) == {"accuracy": 1.0, "exact_match": 1.0}

    wrong = {"rows": batch.tokens.at[0, 12].set((batch.tokens[0, 12] + 1) % 10)}
    assert np.array_equal(task.objective.predict(wrong, batch), wrong["rows"])
    assert task.objective.loss(wrong, batch) == pytest.approx(50 / 40, rel=1e-5)
    assert task.metric(wrong, batch) == {"accuracy": pytest.approx(39 / 40), "exact_match": pytest.approx(4 / 5)}


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match=r"copy, reverse, .*got `sorted`\. Try: `sort`"):
        tasks.digit_task("sorted", all_knowing, seed=0, batch_size=1)
    with pytest.raises(InvalidInput, match="`copy`"):
        tasks.mixture(["copi"], seed=0, batch_size=1)
    with pytest.raises(InvalidInput, match=r"train.*held_out.*`test`"):
        draw(split="test")


def test_a_batch_without_a_row_for_every_task_is_refused():
    with pytest.raises(InvalidInput, match="9 tasks for 8 rows"):
        tasks.mixture(tasks.DIGIT_TASKS, seed=0, batch_size=8)
    with pytest.raises(InvalidInput, match="0 tasks for 8 rows"):
        tasks.mixture([], seed=0, batch_size=8)


def test_no_two_streams_share_a_key():
    keys.check_distinct(f"digits/{name}/{split}" for name in tasks.DIGIT_TASKS for split in digits.SPLITS)


def test_tasks_need_no_model_library():
    code = "import sys, lacuna.tasks; sys.exit(any(m in sys.modules for m in ('flax', 'optax', 'lacuna.models')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
