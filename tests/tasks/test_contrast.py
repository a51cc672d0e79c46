"""Questions as rows: every token is where it is said to be, and what cannot be asked is refused by name."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna.checkpoints import load_tokenizer
from lacuna.errors import InvalidInput
from lacuna.tasks import Question, choice_spans, chosen, fitting, pair_spans, prompt_rows, split
from lacuna.tasks.contrast import choice_tokens

PIECES = re.compile(r" ?[A-Za-z]+|.", re.DOTALL)
KNOWN = sorted({*" ()?.:ABab", *PIECES.findall("Is the sky blue? Answer: yes no maybe yesterday not at all of course")})
SKY = Question("Is the sky blue? Answer:", (" yes", " no"), 0)
GRASS = Question("Is grass red? Answer:", (" yes", " no"), 1)


def encode(text):
    """A token for every word with the space before it; never 0, and 999 for what is not known."""
    return [1 + KNOWN.index(piece) if piece in KNOWN else 999 for piece in PIECES.findall(text)]


def letters(text):
    """A token for every character."""
    return [ord(character) for character in text]


WORD = st.text("abcdefgh", min_size=1, max_size=6)


@st.composite
def two_choice(draw):
    """A question whose answers differ at a character that both have."""
    shared, first, second = draw(st.text("mn", max_size=3)), draw(WORD), draw(WORD)
    return Question(draw(WORD), (f" {shared}x{first}", f" {shared}y{second}"), draw(st.integers(0, 1)))


QUESTIONS = st.lists(two_choice(), min_size=1, max_size=5)
BEGIN = st.sampled_from([None, 7])


def text_of(tokens):
    return "".join(map(chr, tokens))


@settings(max_examples=60, deadline=None)
@given(questions=QUESTIONS, begin=BEGIN)
def test_a_prompt_is_its_tokens_and_then_padding(questions, begin):
    single = [Question(prompt, (" ", "_"), right) for prompt, _, right in questions]
    rows = prompt_rows(single, letters, max_length=99, begin=begin)
    front = "" if begin is None else chr(begin)
    for i, question in enumerate(single):
        assert text_of(rows.tokens[i, : rows.length[i]]) == front + question.prompt
        assert not rows.tokens[i, rows.length[i] :].any()
        assert text_of(rows.choices[i]) == " _"
        assert rows.right[i] == question.right
        assert rows.positive[i] == (question.right == 0)
    assert rows.tokens.shape[1] == rows.length.max()
    spans = rows.spans
    np.testing.assert_array_equal(spans.start, rows.length)
    np.testing.assert_array_equal(spans.end, rows.length)
    np.testing.assert_array_equal(spans.label, rows.length - 1)
    assert all(array.dtype == np.int32 for array in (*rows, *spans))


@settings(max_examples=60, deadline=None)
@given(questions=QUESTIONS, begin=BEGIN)
def test_a_pair_is_one_prompt_with_each_answer(questions, begin):
    sides = pair_spans(questions, letters, max_length=99, begin=begin)
    front = "" if begin is None else chr(begin)
    assert sides[0].tokens.shape == sides[1].tokens.shape
    for side, spans in enumerate(sides):
        assert all(array.dtype == np.int32 for array in spans)
        for i, question in enumerate(questions):
            row = spans.tokens[i]
            assert text_of(row[: spans.start[i]]) == front + question.prompt
            assert text_of(row[spans.start[i] : spans.end[i]]) == question.choices[side]
            assert not row[spans.end[i] :].any()
            assert row[spans.label[i]] == ord("xy"[side])  # all before it is the same


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(WORD, min_size=1, max_size=4),
    choices=st.lists(WORD, min_size=2, max_size=4, unique=True),
    begin=BEGIN,
)
def test_choices_are_rows_of_their_question(prompts, choices, begin):
    questions = [Question(prompt, tuple(choices), 0) for prompt in prompts]
    spans = choice_spans(questions, letters, max_length=99, begin=begin)
    assert all(array.dtype == np.int32 for array in spans)
    front = "" if begin is None else chr(begin)
    parting = next(k for k in range(7) if len({choice[k : k + 1] for choice in choices}) > 1)
    for i, question in enumerate(questions):
        for c, choice in enumerate(choices):
            row, start, end, label = (array[i * len(choices) + c] for array in spans)
            assert text_of(row[:start]) == front + question.prompt
            assert text_of(row[start:end]) == choice
            assert not row[end:].any()
            assert label == start + parting


def test_the_letter_of_a_behaviour_is_the_label():
    question = Question("Is the sky blue?", (" (A)", " (B)"), 0)
    first, second = pair_spans([question], encode, max_length=99)
    assert first.tokens[0].tolist() == encode("Is the sky blue? (A)")
    assert first.label[0] == second.label[0] == first.end[0] - 2
    assert (first.tokens[0, first.label[0]], second.tokens[0, second.label[0]]) == (*encode("A"), *encode("B"))


def test_the_first_piece_tells_an_answer_of_several_tokens():
    question = Question("Is the sky blue?", (" of course", " not at all"), 1)
    rows = prompt_rows([question], encode, max_length=5, first_piece=True)
    assert rows.choices.tolist() == [encode(" of not")]
    assert rows.length.tolist() == [5]
    alike = question._replace(choices=(" not", " not at all"))
    refused("question 0 must begin with different tokens", prompt_rows, [alike], encode, max_length=5, first_piece=True)


def refused(message, call, *arguments, **options):
    """Whether the call is refused in one sentence that says so."""
    with pytest.raises(InvalidInput) as caught:
        call(*arguments, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("build", [prompt_rows, pair_spans, choice_spans, fitting])
@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("Is it:", (" yes",), 0), "at least two answers; question 1 has 1"),
        (Question("Is it:", (" yes", " no"), 2), "right must be one of 0 to 1 of question 1, .* 2 answers; got 2"),
        (Question("Is it:", (" yes", " no"), -1), "right must be .* question 1, .*; got -1"),
        (Question("", (" yes", " no"), 0), "a prompt needs tokens; that of question 1 has none"),
        (Question("Is it yes", (" no", "terday"), 0), "`terday` of question 1 is not. Try: a space before the answer"),
        (Question("Is it:", (" yes", ""), 0), "`` of question 1 is not"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(build, question, message):
    if build is pair_spans and len(question.choices) == 1:
        message = "a pair needs two answers; question 1 has 1"
    refused(message, build, [SKY, question], encode, max_length=99)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("Is it:", (" yes", " not at all"), 0), "a single token; ` not at all` of question 1 is 3 of this"),
        (Question("Is it:", (" yes", " yes"), 0), "answers of question 1 must differ; got ` yes` and ` yes`"),
        (Question("Is it:", (" yes", " no", " maybe"), 0), "equally many .* 2 of question 0 and 3 of question 1"),
        (Question("Is the sky the sky?", (" yes", " no"), 0), "may have 5 tokens; question 1 has 6. Try: `fitting`"),
    ],
)
def test_prompts_without_one_token_for_each_answer_are_refused(question, message):
    grass = Question("Is grass?", (" yes", " no"), 0)
    refused(message, prompt_rows, [grass, question], encode, max_length=5)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("Is it:", (" yes", " no", " maybe"), 0), "a pair needs two answers; question 1 has 3"),
        (Question("Is it:", (" no", " no"), 0), "answers of question 1 must differ; got ` no` and ` no`, the same"),
        (Question("Is it:", (" not", " not at all"), 0), "question 1 must differ at .* ` not` and ` not at all`"),
        (Question("Is:", (" maybe", " not at all at all"), 0), "a row may have 6 tokens; question 1 has 7"),
    ],
)
def test_answers_that_are_no_pair_are_refused(question, message):
    grass = Question("Is grass?", (" yes", " no"), 0)
    refused(message, pair_spans, [grass, question], encode, max_length=6)


@pytest.mark.parametrize("build", [prompt_rows, pair_spans, choice_spans])
def test_no_question_is_no_contrast(build):
    refused("a contrast needs at least one question; got none", build, [], encode, max_length=9)


def test_choices_that_cannot_be_compared_are_refused():
    three = Question("Is it:", (" yes", " no", " maybe"), 0)
    refused("equally many .* 2 of question 0 and 3 of question 1", choice_spans, [SKY, three], encode, max_length=99)
    short, long = Question("Is:", (" no", " yes"), 0), Question("Is:", (" no", " not at all at all"), 0)
    refused("may have 6 tokens; question 1 has 7", choice_spans, [short, long], encode, max_length=6)


def test_the_likeliest_answer_is_of_least_nats_in_all_or_a_token():
    nats = np.array([[3.0, 4.0, 5.0], [2.0, 1.0, 1.0], [np.nan, 1.0, 2.0]], np.float32)
    lengths = np.array([[1, 2, 3], [4, 1, 1], [1, 1, 1]], np.int32)
    assert chosen(nats, lengths).tolist() == [0, 1, -1]
    assert jax.jit(partial(chosen, by="mean"))(nats, lengths).tolist() == [2, 0, -1]
    refused("by must be one of total, mean; got `sum`", chosen, nats, lengths, by="sum")


def test_what_fits_has_room_for_its_longest_answer():
    long = Question("Is the sky?", (" yes", " not at all"), 0)  # 4 + 3 tokens
    short = Question("Is the?", (" yes", " no"), 1)  # 3 + 1
    assert fitting([long, short, long], encode, max_length=6) == ([short], 2)
    assert fitting([long, short], encode, max_length=7) == ([long, short], 0)
    assert fitting([long, short], encode, max_length=7, begin=1) == ([short], 1)
    kept = fitting([long, short], encode, max_length=3)
    assert kept.questions == []
    assert kept.num_left_out == 2
    pair_spans([long, short], encode, max_length=7)


@settings(max_examples=40, deadline=None)
@given(num=st.integers(3, 40), sizes=st.lists(st.integers(1, 5), max_size=3), seed=st.integers(0, 3))
def test_a_split_has_every_prompt_once(num, sizes, seed):
    questions = [Question(f"{i % num}", (" yes", " no"), i // num) for i in range(num + 2)]  # two prompts come again
    if sum(sizes) >= num:
        refused(f"every part needs a question.* got {num} questions", split, questions, sizes, seed=seed)
        return
    parts = split(questions, sizes, seed=seed)
    assert [len(part) for part in parts] == [*sizes, num - sum(sizes)]
    together = [question for part in parts for question in part]
    assert sorted(together) == sorted(questions[:num])
    assert parts == split(questions, sizes, seed=seed)


def test_a_split_is_shuffled_by_its_seed():
    questions = [Question(f"{i}", (" yes", " no"), 0) for i in range(50)]
    one, other = (split(questions, [25], seed=seed)[0] for seed in (0, 1))
    assert len({*map(str, [questions[:25], one, other])}) == 3
    refused("every part needs a question.* parts of 0; got 50", split, questions, [0])
    refused("parts of 20, 30; got 50", split, questions, [20, 30])
    refused("seed must be", split, questions, [5], seed=-1)


@pytest.mark.parametrize("tokenizer", ["gpt2_ckpt", "tiny_ckpt"])
def test_answers_are_told_apart_by_a_real_tokenizer(data, tokenizer):
    folder = data / tokenizer / "tokenizer"
    if not folder.exists():
        pytest.skip(f"no tokenizer at {folder}")
    made = load_tokenizer(folder)

    def encode(text):
        return made.encode(text, add_special_tokens=False)

    prompt, answers = choice_tokens(SKY, encode)
    assert [made.decode(prompt + answer).strip() for answer in answers] == [SKY.prompt + c for c in SKY.choices]
    first, second = pair_spans([SKY, GRASS], encode, max_length=64, begin=1)
    assert made.decode(second.tokens[1, 1 : second.end[1]]).strip() == "Is grass red? Answer: no"
    assert (first.tokens[:, 0] == 1).all()
