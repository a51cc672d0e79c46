"""Contrasts of the experiments: no part knows of another, labels belong to groups, and what cannot be is refused."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_contrast

from experiments import boolq_steering, contrasts
from experiments.contrasts import AT_A_TIME, GIRLS, HAPPY, SAD, Contrasted, ContrastSpec, Part
from lacuna import keys, models, steering, trees
from lacuna.errors import InvalidInput
from lacuna.tasks import prompt_rows

PARTS = ("fit", "chosen_on", "judged_on")


class Words:
    """A tokenizer of words, each with the space in front of it; 0 is what is unknown, 1 begins a row."""

    def __init__(self):
        self.known = {"<unk>": 0, "<s>": 1}

    def encode(self, text, **_):
        return [self.known.setdefault(word, len(self.known)) for word in re.findall(r"\s?[\w']+|\s?[^\w\s]", text)]

    def convert_tokens_to_ids(self, token):
        return self.known.get(token, 0)

    def convert_ids_to_tokens(self, index):
        return list(self.known)[index]


SPEC = models.CausalLMSpec(
    vocab_size=512, max_positions=64, num_layers=1, width=8, mlp_width=8, num_heads=1, num_kv_heads=1, head_width=8,
    norm="rms", norm_eps=1e-6, rotary_base=1e3, activation="silu", gated=True,
)  # fmt: skip


@pytest.fixture
def words(monkeypatch):
    """A model of words in the place of one that is read from files."""
    tokenizer, model = Words(), models.causal_lm(SPEC)
    monkeypatch.setattr(contrasts, "load_hf", lambda source, dtype: (model, model.init(keys.root(0))))
    monkeypatch.setattr(contrasts, "load_tokenizer", lambda source: tokenizer)
    return tokenizer


def feelings(seed=0, **options):
    return contrasts.contrasted(ContrastSpec("feelings", "words", **options), seed, Path(), str)


def events(part):
    return {re.sub(r"^\w+ (.*)\. \w+ was very$", r"\1", question.prompt) for question in part.questions}


def test_there_are_as_many_happy_events_as_sad_ones_and_none_twice():
    assert len(HAPPY) == len(SAD) == len(set(HAPPY)) == len(set(SAD))
    assert not set(HAPPY) & set(SAD)


def test_no_event_of_feelings_is_in_two_parts(words):
    found = feelings()
    several = [events(getattr(found, name)) for name in PARTS]
    assert [len(each) for each in several] == [28, 8, 20]
    assert set.union(*several) == {*HAPPY, *SAD}
    groups = [set(getattr(found, name).groups.tolist()) for name in PARTS]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 56


def test_a_group_is_an_event_told_of_every_name_and_has_one_label(words):
    found = feelings(num_names=4)
    for name in PARTS:
        part = getattr(found, name)
        assert part.prompts.positive.mean() == 0.5
        for group in set(part.groups.tolist()):
            there = part.groups == group
            prompts = [question.prompt for question, own in zip(part.questions, there, strict=True) if own]
            names = {prompt.split()[0] for prompt in prompts}
            assert all((HAPPY + SAD)[group] in prompt for prompt in prompts)
            assert len(names) == 4
            assert len(names & set(GIRLS)) == 2
            assert set(part.prompts.positive[there].tolist()) == {group < len(HAPPY)}


def test_feelings_are_rows_of_their_prompts_behind_what_begins_a_row(words):
    found = feelings(begin_token="<s>")
    part = found.fit
    for question, row, length in zip(part.questions, part.prompts.tokens, part.prompts.length, strict=True):
        assert row[:length].tolist() == [1, *words.encode(question.prompt)]
    assert part.prompts.choices.tolist() == [[words.known[" happy"], words.known[" sad"]]] * len(part.questions)
    assert found.text.shape == (24, 48)
    assert set(found.text[:, 0].tolist()) == {1}
    pronouns = found.others["pronouns"]
    assert pronouns.positive.mean() == 0.5
    girls = [words.known[name] for name in GIRLS]
    np.testing.assert_array_equal(pronouns.positive, np.isin(pronouns.tokens[:, 1], girls))


def test_another_seed_is_another_split_and_the_same_seed_the_same(words):
    first, again, other = feelings(0), feelings(0), feelings(1)
    assert first.judged_on.questions == again.judged_on.questions
    np.testing.assert_array_equal(first.text, again.text)
    assert events(first.judged_on) != events(other.judged_on)


def test_what_begins_a_row_must_be_a_token(words):
    with pytest.raises(InvalidInput, match=r"begin_token must be a token of the tokenizer; got `<bos>`"):
        feelings(begin_token="<bos>")
    assert feelings().begin is None


def boolq(tmp_path, rows, **options):
    """Parts of 4, 2 and 2 questions, and the text."""
    path = tmp_path / "boolq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"num_fit": 4, "num_chosen_on": 2, "num_judged_on": 2, "max_length": 64, **options}
    spec, tokenizer = ContrastSpec("boolq", "words", questions=str(path), **sizes), Words()
    rows_of = partial(prompt_rows, encode=tokenizer.encode, max_length=spec.max_length, begin=None)
    return *contrasts._boolq(spec, 0, rows_of, tokenizer.encode, None), tokenizer


def boolq_rows(num, *, num_words=40):
    """Two questions of every passage, one of them true."""
    passages = [" ".join(f"w{i}x{j}" for j in range(num_words)) for i in range(num)]
    return [
        {"question": f"is it {label}", "passage": passage, "label": label}
        for passage in passages
        for label in (True, False)
    ]


def test_no_passage_of_boolq_is_in_two_parts_nor_in_the_text(tmp_path):
    parts, text, tokenizer = boolq(tmp_path, boolq_rows(16))
    passages = [question.prompt.partition("\n")[0] for part in parts for question in part.questions]
    assert [len(part.questions) for part in parts] == [4, 2, 2]
    assert len(set(passages)) == 8
    asked = {token for passage in passages for token in tokenizer.encode(passage)}
    assert not set(np.unique(text).tolist()) & asked
    for part in parts:
        np.testing.assert_array_equal(part.groups, np.arange(len(part.questions)))


@pytest.mark.parametrize(
    ("num", "options", "message"),
    [
        (14, {"num_fit": 10}, r"must have 10, 2 and 2 questions of different passages .*; got 8, 2, 4"),
        (14, {"max_length": 20}, r"every part needs a question"),
        (14, {"num_fit": 8, "num_judged_on": 4}, r"questions to spare, whose passages are plain text"),
    ],
)
def test_too_few_passages_are_refused(tmp_path, num, options, message):
    with pytest.raises(InvalidInput, match=message):
        boolq(tmp_path, boolq_rows(num), **options)


@pytest.fixture
def digits(monkeypatch):
    """The parts of the digits, without the training of a model."""
    trained = SimpleNamespace(model=None, params={})
    monkeypatch.setattr(contrasts.setups, "prepare", lambda config, **_: trained)
    spec = ContrastSpec("digits", num_fit=32, num_chosen_on=8, num_judged_on=16)
    return contrasts.contrasted(spec, 0, Path(), str)


def test_parts_of_the_digits_are_disjoint_and_half_of_each_is_positive(digits):
    parts = [getattr(digits, name) for name in PARTS]
    assert [len(part.groups) for part in parts] == [32, 8, 16]
    rows = [tuple(row) for part in parts for row in part.prompts.tokens.tolist()]
    assert len(set(rows)) == 56
    for part in parts:
        assert part.prompts.positive.mean() == 0.5
        least = part.prompts.tokens[:, 1:-1].min(axis=1)
        np.testing.assert_array_equal(part.prompts.positive, least == contrasts.DIGITS[0])
        np.testing.assert_array_equal(part.groups, np.arange(len(least)))


def test_rows_of_the_digits_are_none_of_those_that_the_model_learns_from(digits):
    learnt = contrasts.digit_contrast(0, contrasts.TASK, digits=contrasts.DIGITS, num_rows=4096)
    known = {tuple(row) for row in learnt.tokens.tolist()}
    assert not [row for name in PARTS for row in getattr(digits, name).prompts.tokens.tolist() if tuple(row) in known]


class Counting(NamedTuple):
    """A model that is sure of the next number."""

    size: int = 11

    def apply(self, params, tokens):
        return SimpleNamespace(logits=params * jax.nn.one_hot((tokens + 1) % self.size, self.size))


def test_own_text_is_what_the_model_says():
    rows = contrasts.own_text(Counting(), jnp.float32(1e3), 4, num_rows=3, length=12, key=keys.stream(0, "text"))
    np.testing.assert_array_equal(rows, [(4 + np.arange(12)) % 11] * 3)


def test_own_text_is_a_pure_function_of_its_key():
    draw = partial(contrasts.own_text, Counting(), jnp.float32(1.0), 4, num_rows=3, length=12)
    np.testing.assert_array_equal(draw(key=keys.stream(0, "text")), draw(key=keys.stream(0, "text")))
    assert np.any(draw(key=keys.stream(0, "text")) != draw(key=keys.stream(1, "text")))


def tiny_contrasted(num_rows):
    tiny = tiny_contrast.tiny()
    part = Part((), tiny_contrast.prompts(num_rows), np.arange(num_rows))
    rest = (None, None, "", part, part, part, {}, jnp.zeros((2, 2), jnp.int32))
    return Contrasted("made up", "tiny", tiny.model, tiny.params, *rest), tiny


def test_a_step_of_parts_is_the_step_of_all():
    found, tiny = tiny_contrasted(2 * AT_A_TIME + 2)
    expected = steering.label_step(tiny.margin, tiny.params, found.fit.prompts)
    difference = trees.axpy(-1.0, expected, contrasts.step_of(found, found.fit.prompts, ".*"))
    assert trees.norm(difference) < 1e-5 * trees.norm(expected)


def test_a_step_leaves_frozen_leaves_at_rest():
    found, _ = tiny_contrasted(8)
    step = contrasts.step_of(found, found.fit.prompts, "(?!embedding).*")
    assert not np.any(step["embedding"])
    assert np.any(step["head"]["kernel"])


def test_shifts_of_parts_are_the_shifts_of_all():
    found, tiny = tiny_contrasted(2 * AT_A_TIME + 3)
    prompts = found.fit.prompts
    step = contrasts.step_of(found, prompts, ".*")
    read = steering.reading(tiny.stream, prompts.tokens, steering.Read().weights(prompts.spans))
    expected = np.asarray(steering.pushforward(read, tiny.params, step))[:, :, 0]
    got = contrasts.shifts_of(found, prompts, step)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_delta_is_as_long_as_a_share_of_the_parameters():
    _, tiny = tiny_contrasted(4)
    delta = contrasts.of_radius(tiny_contrast.like(tiny.params), tiny.params, 0.01)
    np.testing.assert_allclose(trees.norm(delta), 0.01 * trees.norm(tiny.params), rtol=1e-5)


def test_shuffled_labels_move_the_same_leaves_as_the_true_ones():
    """Where nothing but the last block moves, no shift is anywhere before it."""
    found, _ = tiny_contrasted(8)
    config = boolq_steering.Config(moving="layers/mlp/down/kernel", num_random=1, num_shuffled_labels=2)
    made = boolq_steering.pushes(config, found, 0)
    levels = {kind: np.abs(vector).max(axis=-1) for (kind, _), vector in zip(made.kinds, made.vectors, strict=True)}
    for kind in ("shift of a step", "shift of shuffled labels"):
        np.testing.assert_array_equal(levels[kind][:1], 0.0)
        assert (levels[kind][1:] > 0).all()
    assert [kind for kind, _ in made.kinds].count("shift of shuffled labels") == 2


def test_strengths_are_matched_on_text_of_the_same_tasks_as_the_cost_is_judged_on(digits):
    on, after = boolq_steering._halves(digits)
    assert set(on[:, 0].tolist()) == set(after[:, 0].tolist())
    assert len(on) + len(after) == len(digits.text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_names": 3}, r"num_names must be even, from 2 to 12; got 3"),
        ({"num_names": 14}, r"num_names must be even, from 2 to 12; got 14"),
        ({"num_fit_events": 1}, r"num_fit_events must be from 2 to 18; got 1"),
        ({"num_fit_events": 19}, r"num_fit_events must be from 2 to 18; got 19"),
        ({"num_fit": 7}, r"num_fit must be even and at least 2; got 7"),
        ({"num_judged_on": 0}, r"num_judged_on must be even and at least 2; got 0"),
        ({"questions": "x.jsonl"}, r"questions are those of boolq; got `x.jsonl`. Try: --contrast boolq"),
        ({"contrast": "digits", "model": "x"}, r"digits are asked of the synthetic model alone"),
        ({"contrast": "digits", "begin_token": "<s>"}, r"digits are asked of the synthetic model alone"),
    ],
)
def test_contrasts_that_there_cannot_be_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        ContrastSpec(**options)


def test_boolq_without_its_questions_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(contrasts.sources, "read_config", lambda folder: None)
    monkeypatch.setattr(contrasts, "load_tokenizer", lambda source: None)
    with pytest.raises(InvalidInput, match=r"boolq needs its questions; got no data/boolq.jsonl. Try: --questions"):
        contrasts.resolved(ContrastSpec("boolq", str(tmp_path / "model")))
    assert contrasts.resolved(ContrastSpec("feelings", str(tmp_path / "model")))["questions"] == "events"


def test_the_contrast_is_that_of_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert contrasts.resolved(ContrastSpec()) == {"contrast": "digits", "model": "synthetic"}
    with pytest.raises(InvalidInput, match="data/stories/model"):
        contrasts.resolved(ContrastSpec("feelings"))


def test_a_model_that_has_not_learnt_the_passages_is_refused(monkeypatch):
    """Random weights tell the next token worse than its frequency does."""
    tiny = tiny_contrast.tiny("qwen2")
    text = jnp.asarray(tiny_contrast.prompts(16).tokens)
    with pytest.raises(InvalidInput, match=r"must have learnt their language; `mine` takes .* their mere frequencies"):
        contrasts.check_has_learnt(tiny.model, tiny.params, text, name="mine")
    monkeypatch.setattr(contrasts.models, "next_token_nats", lambda model, params, tokens: jnp.full((16, 8), 1.0))
    contrasts.check_has_learnt(tiny.model, tiny.params, text, name="mine")
