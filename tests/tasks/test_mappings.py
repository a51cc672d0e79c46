"""Digit operations as text: one set of questions for all of them, right answers, and a letter that tells them apart."""

import jax
import numpy as np
import pytest

from lacuna import tasks
from lacuna.errors import InvalidInput

B, N = 6, 4

ORACLES = {
    "copy": lambda d: d,
    "reverse": lambda d: d[:, ::-1],
    "sort": lambda d: np.sort(d, axis=1),
    "add": lambda d: (d + 3) % 10,
    "running_sum": lambda d: np.cumsum(d, axis=1) % 10,
    "rotate": lambda d: np.concatenate([d[:, 1:], d[:, :1]], axis=1),
    "complement": lambda d: 9 - d,
    "neighbour_sum": lambda d: (d + np.concatenate([d[:, 1:], d[:, :1]], axis=1)) % 10,
    "running_max": lambda d: np.maximum.accumulate(d, axis=1),
}

NUMERALS = [f" {i}" for i in range(10)]
WORDS = [" zero", " one", " two", " three", " four", " five", " six", " seven", " eight", " nine"]


def tokenizer(*whole):
    """A token for each of the given texts (the number of the first is 1000), else one for every character."""
    return lambda text: [1000 + whole.index(text)] if text in whole else [ord(character) for character in text]


ENCODE = tokenizer(*NUMERALS, " ->")


def stream(name="sort", encode=ENCODE, **options):
    return tasks.mapping(name, encode, **{"seed": 0, "batch_size": B, "length": N} | options)


def questions(batch, opening=1):
    """The digits asked for, int[B, n]."""
    return np.asarray(batch.tokens)[:, opening : opening + N] - 1000


@pytest.mark.parametrize("name", tasks.DIGIT_TASKS)
def test_a_row_is_a_new_line_the_question_an_arrow_and_the_right_answer(name):
    batch = stream(name)(3)
    asked = questions(batch)
    ends = np.full((B, 1), ord("\n")), np.full((B, 1), 1010)
    wanted = np.concatenate([ends[0], 1000 + asked, ends[1], 1000 + ORACLES[name](asked)], axis=1)
    assert np.array_equal(batch.tokens, wanted)
    assert batch.answer.tolist() == [[False] * (N + 2) + [True] * N] * B


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_two_operations_are_asked_the_same_questions(split):
    for step in (0, 5):
        first, second = stream("copy", split=split)(step), stream("add", split=split)(step)
        assert np.array_equal(first.tokens[:, : N + 2], second.tokens[:, : N + 2])
        assert not np.array_equal(first.tokens[:, N + 2 :], second.tokens[:, N + 2 :])


def test_no_held_out_question_is_ever_trained_on_and_all_others_are():
    every = [stream("copy", split=split, length=2, batch_size=2000)(0) for split in ("train", "held_out")]
    train, held_out = ({tuple(row) for row in (np.asarray(b.tokens)[:, 1:3] - 1000).tolist()} for b in every)
    assert held_out == {(a, b) for a in range(10) for b in range(10) if (a + b) % 10 == 0}
    assert len(train) == 90
    assert not train & held_out


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "held_out"}])
def test_every_seed_and_split_has_questions_of_its_own(change):
    assert not np.array_equal(questions(stream(**change)(0)), questions(stream()(0)))
    assert not np.array_equal(questions(stream()(1)), questions(stream()(0)))
    assert np.array_equal(np.unique(questions(stream(**change, batch_size=60)(0))), np.arange(10))


def test_named_rows_of_one_question_differ_in_the_letter_alone():
    unnamed, named = stream("copy")(2), stream("copy", named=True)(2)
    assert np.array_equal(np.delete(named.tokens, [1, 2], axis=1), unnamed.tokens)
    letters = set()
    for name in tasks.DIGIT_TASKS:
        batch = stream(name, named=True)(2)
        assert np.array_equal(batch.tokens[:, [0, 1, *range(3, N + 4)]], named.tokens[:, [0, 1, *range(3, N + 4)]])
        assert batch.answer.tolist() == [[False] * (N + 4) + [True] * N] * B
        letters.add(chr(int(batch.tokens[0, 2])))
    assert letters == set("ABCDEFGHI")


def test_a_stream_is_the_same_traced():
    data = stream(named=True)
    rows = jax.lax.scan(lambda carry, step: (carry, data(step)), 0, np.arange(3))[1]
    for step in range(3):
        for batch in (jax.jit(data)(step), jax.tree.map(lambda leaf, i=step: leaf[i], rows)):
            assert np.array_equal(batch.tokens, data(step).tokens)
            assert np.array_equal(batch.answer, data(step).answer)


def test_a_stream_is_data_to_a_compiled_function():
    traces = []

    @jax.jit
    def tokens_of(data, step):
        traces.append(step)
        return data(step).tokens

    for seed, encode in ((0, ENCODE), (1, ENCODE), (1, tokenizer(" ->", *NUMERALS))):
        data = stream(seed=seed, encode=encode)
        assert np.array_equal(tokens_of(data, 4), data(4).tokens)
    assert len(traces) == 1


def test_a_tokenizer_without_numerals_is_asked_for_words_and_another_arrow():
    batch = stream("copy", tokenizer(*WORDS, "=>"))(0)
    assert np.array_equal(batch.tokens[:, 1 : N + 1], stream("copy")(0).tokens[:, 1 : N + 1])
    assert np.all(batch.tokens[:, N + 1] == 1010)
    assert np.all(stream("copy", tokenizer(*NUMERALS))(0).tokens[:, N + 1] == ord(":"))


@pytest.mark.parametrize(
    ("encode", "missing"),
    [
        (tokenizer(" ->"), "each digit, as ` 3` or ` three`"),
        (tokenizer(" ->", *NUMERALS[:9], *WORDS[1:]), "each digit"),
        (lambda text: [0], "each digit, .* no two alike"),
        (lambda text: [NUMERALS.index(text)] if text in NUMERALS else [5, 5], "an arrow"),
    ],
)
def test_a_tokenizer_without_single_tokens_is_refused(encode, missing):
    with pytest.raises(InvalidInput, match=f"one token for {missing}.*; got others"):
        stream(encode=encode)


@pytest.mark.parametrize(
    ("letter", "shown"),
    [(lambda _: [7], r"\[7\], \[7\]"), (lambda text: [9] * (1 + (text == " C")) + [ord(text[1])], r"\[9, 9, 67\]")],
)
def test_letters_that_do_not_tell_operations_apart_are_refused(letter, shown):
    def encode(text):
        return letter(text) if len(text) == 2 and text[1].isupper() else ENCODE(text)

    with pytest.raises(InvalidInput, match=f"letters that differ, each as many tokens.*{shown}"):
        stream(encode=encode, named=True)
    assert stream(encode=encode)(0).tokens.shape == (B, 2 + 2 * N)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"length": 0}])
def test_rows_without_an_answer_are_refused(sizes):
    with pytest.raises(InvalidInput, match="a batch needs a row and a question a digit"):
        stream(**sizes)


def test_one_program_serves_every_operation():
    tokens_of = jax.jit(lambda data: data(0).tokens)
    for name in tasks.DIGIT_TASKS:
        tokens_of(stream(name))
    assert tokens_of._cache_size() == 1


def test_unknown_names_are_refused():
    with pytest.raises(InvalidInput, match=r"got `sorted`\. Try: `sort`"):
        stream("sorted")
    with pytest.raises(InvalidInput, match=r"train, held_out.*`test`"):
        stream(split="test")
