"""Steps of every stream up to 2^32, and tokens that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import tasks
from lacuna.errors import InvalidInput
from lacuna.tasks import digits, text
from lacuna.tasks.mappings import mapping


def encode(text):
    return [ord(c) for c in text.replace(" ", "").replace("->", ">")]


ROWS = tasks.TokenRows(np.arange(12, dtype=np.int32).reshape(6, 2), np.ones((6, 2), bool), is_one_text=True)
STREAMS = {
    "rows": tasks.row_stream(ROWS, seed=0, batch_size=2),
    "mapping": mapping("sort", encode, seed=0, batch_size=2),
    "mixture": digits.mixture(["sort", "copy"], seed=0, batch_size=4),
    "digits": lambda step: digits.digit_batch(0, "sort", step, batch_size=2),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_step_of_python_is_the_same_as_one_of_the_generator(name):
    for step in (0, 2**31 - 1, 2**31, 2**32 - 1):
        here, there = STREAMS[name](step), jax.jit(STREAMS[name])(jnp.uint32(step))
        np.testing.assert_array_equal(here.tokens, there.tokens)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("step", [-1, 2**32, 2**70])
def test_a_step_beyond_the_generator_is_refused(name, step):
    with pytest.raises(InvalidInput, match=rf"a step must be an integer in \[0, 2\^32\); got {step}\."):
        STREAMS[name](step)


@pytest.mark.parametrize("token", [1.5, 2.0, -1, 2**31, 2**70, "a", None])
def test_tokens_that_are_none_are_refused_and_never_cut_to_integers(token):
    with pytest.raises(InvalidInput, match="a token must be an integer"):
        text.pack(["a text"], lambda _: [3, token], length=2)
