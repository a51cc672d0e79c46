"""Where the stream is read: every rule on ragged rows, against a loop over them; and how it is read there."""

import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import models
from lacuna.errors import InvalidInput
from lacuna.steering import Read, read_stream
from lacuna.tasks import Prompts, Spans

# Prompts of 3, 5 and 2 tokens with answers of 2, 1 and 4; the third pair differs at the second token of its answers.
SPANS = Spans(
    np.arange(1, 22, dtype=np.int32).reshape(3, 7),
    np.asarray([3, 5, 2], np.int32),
    np.asarray([5, 6, 6], np.int32),
    np.asarray([3, 5, 3], np.int32),
)

READ = {
    Read(): ([2], [4], [1]),
    Read("label"): ([3], [5], [3]),
    Read("index", index=-1): ([4], [5], [5]),
    Read("index", index=-2): ([3], [4], [4]),
    Read("index", index=0): ([0], [0], [0]),
    Read("answer_mean"): ([3, 4], [5], [2, 3, 4, 5]),
}


def expected(places, back=(0,)):
    found = np.zeros((3, len(back), 7))
    for row, tokens in enumerate(places):
        for q, b in enumerate(back):
            for at in tokens:
                found[row, q, at - b] = 1 / len(tokens)
    return found


@pytest.mark.parametrize(("read", "places"), READ.items(), ids=str)
def test_every_rule_reads_its_tokens(read, places):
    weights = read.weights(SPANS)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected(places), rtol=1e-7)


def test_several_places_count_back_from_the_rule_and_come_in_the_order_asked():
    np.testing.assert_array_equal(Read(back=(1, 0)).weights(SPANS), expected(([2], [4], [1]), (1, 0)))
    mean = Read("answer_mean", back=(0, 2)).weights(SPANS)
    np.testing.assert_allclose(mean, expected(READ[Read("answer_mean")], (0, 2)), rtol=1e-7)


def test_prompts_without_an_answer_are_read_at_their_last_token():
    prompts = Prompts(SPANS.tokens, SPANS.start, np.zeros((3, 2), np.int32), np.zeros(3, np.int32))
    for read in (Read(), Read("label"), Read("index", index=-1)):
        np.testing.assert_array_equal(read.weights(prompts.spans), expected(([2], [4], [1])))


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (Read("index", index=5), r"row 0 must have a token to read at `index` 5; got 5 tokens, 2 of them an answer"),
        (Read("index", index=-6), r"row 0 must have a token to read at `index` -6"),
        (Read(back=(0, 2)), r"row 2 must have a token to read at `last_prompt`, 2 tokens back; got 6 tokens"),
        (Read("answer_mean", back=(3,)), r"row 2 must have a token to read at `answer_mean`, 3 tokens back"),
        (Read(back=()), r"back must be numbers of tokens"),
        (Read(back=(0, -1)), r"none negative; got \(0, -1\)"),
    ],
)
def test_a_token_that_a_row_has_not_is_refused_by_the_row(read, says):
    with pytest.raises(InvalidInput, match=says):
        read.weights(SPANS)


def test_an_answer_that_is_not_there_has_no_mean():
    prompts = Prompts(SPANS.tokens, SPANS.start, np.zeros((3, 2), np.int32), np.zeros(3, np.int32))
    with pytest.raises(InvalidInput, match="row 0 must have a token to read at `answer_mean`; got 3 tokens, 0 of them"):
        Read("answer_mean").weights(prompts.spans)


def test_a_rule_that_is_none_is_refused():
    read = Read()
    object.__setattr__(read, "where", "middle")  # past the types, as a user without them would write it
    with pytest.raises(InvalidInput, match="where must be one of last_prompt, index, label, answer_mean; got `middle`"):
        read.weights(SPANS)


def reporting(resid):
    """A model that reports the given stream, whatever it is asked."""
    logits = jnp.zeros((*resid.shape[1:3], 2))
    return models.Model(
        None, lambda key: {}, lambda params, tokens, *, taps: models.Output(logits, resid), lambda name: False
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stream_is_read_where_the_weights_are_in_float32(dtype):
    resid = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 7, 5)), dtype)
    weights = Read("answer_mean", back=(0, 1)).weights(SPANS)
    found = read_stream(reporting(resid), {}, jnp.asarray(SPANS.tokens), weights=jnp.asarray(weights))
    assert found.dtype == jnp.float32
    wanted = np.einsum("lbsd,bqs->lbqd", np.asarray(resid, np.float64), weights.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_single_token_is_read_to_the_bit():
    resid = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 7, 5)), jnp.float32)
    weights = Read("label").weights(SPANS)
    found = read_stream(reporting(resid), {}, jnp.asarray(SPANS.tokens), weights=jnp.asarray(weights))
    np.testing.assert_array_equal(found[:, :, 0], resid[:, np.arange(3), SPANS.label])


def test_a_model_without_a_stream_is_refused():
    logits = jnp.zeros((3, 7, 2))
    silent = models.Model(None, lambda key: {}, lambda params, tokens, *, taps: models.Output(logits), lambda name: 0)
    with pytest.raises(InvalidInput, match="the model must report its residual stream"):
        read_stream(silent, {}, jnp.asarray(SPANS.tokens), weights=jnp.asarray(Read().weights(SPANS)))
