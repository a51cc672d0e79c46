"""Prompts of digit tasks whose answers begin with one of two digits: as many of each, each prompt once."""

import numpy as np
import oracles
import pytest

from lacuna.errors import InvalidInput
from lacuna.tasks import DIGIT_TASKS, digit_batch, digit_contrast
from lacuna.tasks.digits import SEPARATOR, task_token

FIRST_OF_ANSWER = {
    "copy": lambda d: d[0],
    "reverse": lambda d: d[-1],
    "sort": min,
    "add": lambda d: (d[0] + 3) % 10,
    "running_sum": lambda d: d[0],
    "rotate": lambda d: d[1],
    "complement": lambda d: 9 - d[0],
    "neighbour_sum": lambda d: (d[0] + d[1]) % 10,
    "running_max": lambda d: d[0],
}
"""By hand, from a question."""


@pytest.mark.parametrize("name", DIGIT_TASKS)
def test_half_of_the_answers_begin_with_each_digit(name):
    digits = (2, 5) if name == "sort" else (2, 7)
    prompts = digit_contrast(0, name, digits=digits, num_rows=60)
    assert prompts.tokens.shape == (60, 10)
    assert (prompts.tokens[:, 0] == task_token(name)).all()
    assert (prompts.tokens[:, -1] == SEPARATOR).all()
    assert (prompts.length == 10).all()
    assert prompts.choices.tolist() == [list(digits)] * 60
    begins = [FIRST_OF_ANSWER[name](row[1:-1].tolist()) for row in prompts.tokens]
    np.testing.assert_array_equal(prompts.choices[np.arange(60), prompts.right], begins)
    assert prompts.positive.sum() == 30
    assert prompts.positive.tolist() != sorted(prompts.positive, reverse=True)
    assert len({row.tobytes() for row in prompts.tokens}) == 60
    assert all(array.dtype == np.int32 for array in prompts)


def test_rows_are_a_function_of_the_arguments():
    base = digit_contrast(0, "add", num_rows=20)
    assert oracles.bits(digit_contrast(0, "add", num_rows=20)) == oracles.bits(base)
    for other in (
        digit_contrast(1, "add", num_rows=20),
        digit_contrast(0, "add", num_rows=20, split="held_out"),
        digit_contrast(0, "copy", num_rows=20),
        digit_contrast(0, "add", num_rows=20, digits=(3, 8)),
    ):
        assert not {row[1:].tobytes() for row in base.tokens} & {row[1:].tobytes() for row in other.tokens}


def test_rows_are_of_their_split_s_own_stream():
    for split in ("train", "held_out"):
        prompts = digit_contrast(3, "reverse", num_rows=40, split=split)
        stream = np.asarray(digit_batch(3, "reverse", 0, batch_size=2**16, split=split).tokens)
        assert {row.tobytes() for row in prompts.tokens} <= {row[:10].tobytes() for row in stream}


def test_the_first_digit_is_the_positive_one():
    prompts = digit_contrast(0, "copy", num_rows=10, digits=(7, 2), length=3)
    assert prompts.tokens.shape == (10, 5)
    np.testing.assert_array_equal(prompts.tokens[:, 1], np.where(prompts.positive, 7, 2))


def test_short_questions_come_once_each():
    """Ten questions of two digits begin with a 2: all of them, and no more, can be had."""
    prompts = digit_contrast(0, "copy", num_rows=20, length=2)
    assert sorted(map(tuple, prompts.tokens[:, 1:3].tolist())) == [(d, e) for d in (2, 7) for e in range(10)]
    with pytest.raises(InvalidInput, match=r"11 rows of `copy` .* each of 2 and 7; got 10 and 10 different ones of 4,"):
        digit_contrast(0, "copy", num_rows=22, length=2)


def test_a_large_smallest_digit_is_rare():
    prompts = digit_contrast(0, "sort", num_rows=20)
    smallest = prompts.tokens[:, 1:9].min(axis=1)
    np.testing.assert_array_equal(smallest, np.where(prompts.positive, 2, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": (3, 3)}, r"digits must be two different ones from 0 to 9; got \(3, 3\)"),
        ({"digits": (3, 10)}, r"digits must be two different ones from 0 to 9; got \(3, 10\)"),
        ({"num_rows": 7}, r"num_rows must be even and at least 2.* got 7"),
        ({"num_rows": 0}, r"num_rows must be even and at least 2.* got 0"),
        ({"split": "test"}, r"split must be one of train, held_out; got `test`"),
        ({"task_name": "sorted"}, r"a digit task is one of .* Try: `sort`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        digit_contrast(**{"seed": 0, "task_name": "copy", "num_rows": 4} | options)
