"""Nats of a span: the log-probability of an answer of several tokens, against float64 numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import MODEL, PARAMS, TOKENS

from lacuna.errors import InvalidInput
from lacuna.models import nats_at, next_token_nats, span_nats
from lacuna.tasks import Question, choice_spans, chosen


def oracle(tokens, start, end):
    """Minus the sum of float64 log-probabilities, one row and one token at a time."""
    found = []
    for row, first, behind in zip(tokens, start, end, strict=True):
        logits = np.asarray(MODEL.apply(PARAMS, jnp.asarray(row[None, :behind])).logits[0], np.float64)
        nats = [np.log(np.exp(logits[s - 1]).sum()) - logits[s - 1, row[s]] for s in range(max(first, 1), behind)]
        found.append(sum(nats))
    return np.array(found)


@pytest.mark.parametrize(("start", "end"), [([1, 1], [7, 7]), ([3, 5], [5, 6]), ([0, 4], [2, 4]), ([6, 2], [7, 3])])
def test_a_span_counts_its_tokens_alone(start, end):
    start, end = np.array(start), np.array(end)
    found = jax.jit(lambda start, end: span_nats(MODEL, PARAMS, TOKENS, start, end))(start, end)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(np.asarray(TOKENS), start, end), rtol=1e-5, atol=1e-5)
    in_chunks = span_nats(MODEL, PARAMS, TOKENS, jnp.asarray(start), jnp.asarray(end), chunk=3)
    np.testing.assert_allclose(in_chunks, found, rtol=1e-5, atol=1e-5)


def test_what_is_outside_a_span_may_have_no_number():
    """Padding by a token that is not in the vocabulary."""
    start, end = jnp.array([2, 2]), jnp.array([5, 4])
    broken, mask = TOKENS.at[:, 5:].set(99), jnp.arange(7) < jnp.array([[5], [5]])
    found = span_nats(MODEL, PARAMS, broken, start, end, mask=mask)
    np.testing.assert_allclose(found, oracle(np.asarray(TOKENS), start, end), rtol=1e-5)
    slope = jax.grad(lambda params: span_nats(MODEL, params, broken, start, end, mask=mask).sum())(PARAMS)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in map(np.asarray, jax.tree.leaves(slope)))


def test_a_steer_moves_the_nats_and_one_of_zeros_does_not():
    start, end = jnp.array([2, 2]), jnp.array([5, 4])
    plain = span_nats(MODEL, PARAMS, TOKENS, start, end)
    steer = jax.random.normal(jax.random.key(0), (3, 48))
    np.testing.assert_array_equal(span_nats(MODEL, PARAMS, TOKENS, start, end, steer=0 * steer), plain)
    assert (jnp.abs(span_nats(MODEL, PARAMS, TOKENS, start, end, steer=steer) - plain) > 1e-2).all()


def test_answers_of_several_tokens_are_compared_as_wholes():
    """Each row alone and without padding gives the same answers."""
    questions = [Question("abc", ("de", "f", "ghijk"), 0), Question("k", ("a", "bcd", "efg"), 1)]

    def encode(text):
        return [ord(character) - 60 for character in text]

    spans = choice_spans(questions, encode, max_length=20, begin=1)
    nats = span_nats(MODEL, PARAMS, jnp.asarray(spans.tokens), spans.start, spans.end).reshape(2, 3)
    expected, lengths = np.zeros((2, 3)), np.zeros((2, 3), int)
    for i, question in enumerate(questions):
        for c, choice in enumerate(question.choices):
            row = np.array([[1, *encode(question.prompt + choice)]])
            lengths[i, c] = len(choice)
            expected[i, c] = oracle(row, [1 + len(question.prompt)], [row.size])[0]
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    np.testing.assert_array_equal((spans.end - spans.start).reshape(2, 3), lengths)
    np.testing.assert_array_equal(chosen(nats, lengths), expected.argmin(axis=1))
    np.testing.assert_array_equal(chosen(nats, lengths, by="mean"), (expected / lengths).argmin(axis=1))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (jnp.array([1]), jnp.array([3, 3]), r"start must be one integer for each of 2 rows; got int32\[1\]"),
        (jnp.array([1, 2]), jnp.array([3.0, 3.0]), r"end must be one integer for each of 2 rows; got float32\[2\]"),
    ],
)
def test_a_span_that_is_not_of_each_row_is_refused(start, end, message):
    with pytest.raises(InvalidInput, match=message):
        span_nats(MODEL, PARAMS, TOKENS, start, end)


AT = np.array([[0, 5, 2], [3, 3, 1]])


def test_nats_at_a_position_are_those_of_the_next_token():
    """And, of a token that is not the next, those of the row that has it there."""
    next_tokens = np.take_along_axis(np.asarray(TOKENS), AT + 1, axis=1)
    wanted = jnp.asarray(np.stack([next_tokens, (next_tokens + 1) % 64], axis=1))
    found = jax.jit(lambda at: nats_at(MODEL, PARAMS, TOKENS, at, wanted))(jnp.asarray(AT))
    assert (found.shape, found.dtype) == ((2, 2, 3), jnp.float32)
    whole = np.take_along_axis(np.asarray(next_token_nats(MODEL, PARAMS, TOKENS)), AT, axis=1)
    np.testing.assert_allclose(found[:, 0], whole, rtol=1e-5)
    other = TOKENS.at[1, 4].set(wanted[1, 1, 0])
    np.testing.assert_allclose(found[1, 1, 0], oracle(np.asarray(other), [1, 4], [2, 5])[1], rtol=1e-5)


def test_the_head_is_applied_where_it_is_asked_alone():
    """No array of a program holds logits of all positions, forward and backward; at one position there are B x V."""
    at, wanted = jnp.asarray(AT[:, :1]), jnp.zeros((2, 4, 1), int)

    def shapes(function):
        return {
            tuple(map(int, dims.split(",")))
            for dims in re.findall(r"f32\[([\d,]+)\]", str(jax.make_jaxpr(function)(PARAMS)))
        }

    def total(params):
        return jnp.sum(nats_at(MODEL, params, TOKENS, at, wanted))

    for function in (total, jax.grad(total)):
        found = shapes(function)
        assert (2, 1, 64) in found
        assert not any(shape[-1] == 64 and np.prod(shape[:-1]) >= 12 and 48 not in shape for shape in found)
    assert any(
        shape[-1] == 64 and np.prod(shape[:-1]) >= 12 and 48 not in shape
        for shape in shapes(lambda params: next_token_nats(MODEL, params, TOKENS))
    )
