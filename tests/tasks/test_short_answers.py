"""Short answers: the exact match is that of decoding by hand, token by token and without a cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import MODEL, PARAMS

from lacuna.errors import InvalidInput
from lacuna.models import greedy
from lacuna.tasks import answer_accuracy, answer_rows, answered_rows, exact_match_loss, exact_match_metric, mapping
from lacuna.tasks.short_answers import as_short_answers
from lacuna.tasks.task_files import ShortAnswer

DECODE = partial(greedy, MODEL)


def encode(text):
    return [ord(character) - 60 for character in text]


def text_of(tokens):
    return "".join(chr(token + 60) for token in tokens)


def said(prompt, num_tokens, begin=None):
    """What the model says behind a prompt: a whole forward pass for each token."""
    row = ([] if begin is None else [begin]) + encode(prompt)
    for _ in range(num_tokens):
        logits = np.asarray(MODEL.apply(PARAMS, jnp.asarray([row])).logits[0, -1], np.float64)
        row.append(int(logits.argmax()))
    return text_of(row[-num_tokens:])


PROMPTS = ["abcd", "k", "bananas"]


@pytest.mark.parametrize("begin", [None, 1])
def test_an_exact_match_is_that_of_decoding_by_hand(begin):
    """Prompts of several lengths; answers of one, two and three tokens."""
    right = [said(prompt, size, begin) for prompt, size in zip(PROMPTS, (1, 3, 2), strict=True)]
    wrong = [text_of([(token + 1) % 64 for token in encode(answer)]) for answer in right]
    late = right[1][:2] + wrong[1][2:]  # wrong at the last token alone
    for accepted, share in (
        ([(right[0],), (right[1],), (right[2],)], 0),
        ([(wrong[0],), (right[1],), (right[2],)], 1 / 3),
        ([(right[0],), (late,), (right[2],)], 1 / 3),
        ([(wrong[0], right[0]), (late, wrong[1], right[1]), (right[2],)], 0),  # any of several
        ([(wrong[0],), (late,), (wrong[2],)], 1),
    ):
        answers = [ShortAnswer(prompt, several) for prompt, several in zip(PROMPTS, accepted, strict=True)]
        batch = answer_rows(answers, encode, max_length=11, begin=begin)
        np.testing.assert_allclose(exact_match_loss(DECODE)(PARAMS, batch), share, rtol=1e-6)
        np.testing.assert_allclose(exact_match_metric(DECODE)(PARAMS, batch)["exact_match"], 1 - share, rtol=1e-6)


def test_what_is_said_behind_the_answer_does_not_count():
    whole = said("abcd", 3)
    batch = answer_rows([ShortAnswer("abcd", (whole[:1], "zzz"))], encode, max_length=10)
    assert batch.accepted.shape == (1, 2, 3)
    assert exact_match_loss(DECODE)(PARAMS, batch) == 0


def test_an_answer_that_is_not_there_is_no_match():
    """The second prompt has one answer, the first two; of the one that is missing no token is wrong."""
    wrong = chr(60 + (encode(said("k", 1))[0] + 1) % 64)
    batch = answer_rows([ShortAnswer("k", ("ab", "cd")), ShortAnswer("k", (wrong,))], encode, max_length=10)
    assert not batch.counted[1, 1].any()
    assert exact_match_loss(DECODE)(PARAMS, batch) == 1


def test_rows_are_padded_behind():
    batch = answer_rows([ShortAnswer("ab", ("c", "de")), ShortAnswer("abc", ("f",))], encode, max_length=10, begin=1)
    np.testing.assert_array_equal(batch.tokens, [[1, *encode("ab"), 0], [1, *encode("abc")]])
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.accepted, [[[*encode("c"), 0], encode("de")], [[*encode("f"), 0], [0, 0]]])
    np.testing.assert_array_equal(batch.counted, [[[1, 0], [1, 1]], [[1, 0], [0, 0]]])


def test_the_first_answer_stands_behind_its_prompt():
    answers = [ShortAnswer("ab", ("c", "de")), ShortAnswer("k", ("fgh",))]
    batch = answered_rows(answers, encode, max_length=10, begin=1)
    np.testing.assert_array_equal(batch.tokens, [[1, *encode("abc"), 0], [1, *encode("kfgh")]])
    np.testing.assert_array_equal(batch.answer, [[0, 0, 0, 1, 0], [0, 0, 1, 1, 1]])


def test_decoding_matches_where_teacher_forcing_does():
    """Rows of a mapping whose answers are what the model says, but for one wrong digit in every third."""
    spelled = {" ->": "{", "\n": "@"} | {f" {digit}": chr(97 + digit) for digit in range(10)}
    rows = mapping("sort", lambda text: encode(spelled.get(text, text)), seed=0, batch_size=6, length=2)(0)
    decoded = greedy(MODEL, PARAMS, rows.tokens[:, :-2], num_tokens=2)
    decoded = decoded.at[0, 0].add(1).at[3, 1].add(1) % 64
    rows = rows._replace(tokens=rows.tokens.at[:, -2:].set(decoded))
    batch = as_short_answers(rows, num_tokens=2)
    forced = answer_accuracy(MODEL.apply(PARAMS, rows.tokens).logits, rows.tokens, rows.answer).exact_match
    found = jax.jit(exact_match_metric(DECODE))(PARAMS, batch)["exact_match"]
    np.testing.assert_allclose([found, forced], 4 / 6, rtol=1e-6)


@pytest.mark.parametrize("rows", [answer_rows, answered_rows])
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "at least one prompt; got none"),
        ([ShortAnswer("a", ("b",)), ShortAnswer("", ("b",))], "a prompt needs tokens; that of prompt 1 has none"),
        ([ShortAnswer("a", ("",))], "`` of prompt 0 is not"),
        ([ShortAnswer("a", ("b",)), ShortAnswer("abcd", ("efg",))], "a row may have 6 tokens; that of prompt 1 has 7"),
    ],
)
def test_answers_that_make_no_rows_are_refused(rows, answers, message):
    with pytest.raises(InvalidInput, match=message):
        rows(answers, encode, max_length=6)


def test_the_longest_answer_needs_room_behind_the_longest_prompt():
    answers = [ShortAnswer("abcd", ("e",)), ShortAnswer("a", ("bcd",))]
    assert answered_rows(answers, encode, max_length=5).tokens.shape == (2, 5)
    with pytest.raises(InvalidInput, match="a row may have 5 tokens; that of prompt 0 has 7"):
        answer_rows(answers, encode, max_length=5)


def test_an_answer_that_is_given_twice_is_one():
    batch = answer_rows([ShortAnswer("abcd", (said("abcd", 1),) * 2)], encode, max_length=10)
    assert exact_match_loss(DECODE)(PARAMS, batch) == 0
