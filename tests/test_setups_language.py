"""A task at a language model's point: rows by what they are for, objectives by kind, and searches over each."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_lm

from lacuna import search, setups, trees
from lacuna.errors import InvalidInput
from lacuna.models import lora_spec
from lacuna.setups import LanguageModel, TaskConfig, language

WORDS = "abcdefghij"
LETTERS = ("a", "b", "c", "d", "e")
MODEL = LanguageModel(tiny_lm.MODEL, tiny_lm.PARAMS, None, None, Path())


class Characters:
    """A tokenizer of the characters from `@` on."""

    def encode(self, text, **options):
        return [max(ord(character) - 60, 1) for character in text]


def prompt(i):
    return "".join(WORDS[int(digit)] for digit in str(10_000 + i))


def choices(num_rows):
    return [{"prompt": prompt(i), "choices": ["k", "lm"], "label": i % 2} for i in range(num_rows)]


def answers(num_rows):
    return [{"prompt": prompt(i), "answers": ["kl", "m"]} for i in range(num_rows)]


def texts(num_rows):
    return [{"text": prompt(i) * 2} for i in range(num_rows)]


def passages(num_rows):
    """Three questions on every passage."""
    return [{"passage": f"{prompt(i // 3)}", "question": prompt(50 + i), "label": i % 2 == 0} for i in range(num_rows)]


def written(folder, rows, name="task.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / name)


def opened(folder, rows, *, notice=lambda text: None, model=MODEL, **options):
    config = TaskConfig(written(folder, rows), **{"batch_size": 8, "length": 10} | options)
    data = language.task_data(model.model, language.read(config), config, Characters(), notice=notice)
    return language.with_task(model, data, config)


def contents(batch):
    """What each row says, whatever its padding."""

    def said(tokens):
        return "".join(chr(token + 60) for token in np.ravel(tokens) if token)

    return [said(tokens) for tokens in np.asarray(batch.tokens)]


def parts(setup):
    """Contents of the rows that are searched on, held out and left."""
    return tuple(set(contents(rows)) for rows in (setup.batch, setup.task.held_out.rows, setup.task.train.rows))


MAKERS = {"choices": (choices, ""), "answers": (answers, ""), "exact": (answers, "exact_match"), "text": (texts, "")}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_searched_on_held_out_and_left_share_no_row(tmp_path, kind):
    rows, objective = MAKERS[kind]
    setup = opened(tmp_path, rows(60), objective=objective)
    searched, held_out, others = parts(setup)
    assert len(searched) == len(setup.batch.tokens) == 8
    assert not searched & held_out
    assert not searched & others
    assert not held_out & others
    assert len(setup.held_out) == 8
    again = [row for batch in setup.held_out for row in contents(batch)]
    assert len(again) == len(set(again)) > len(held_out) / 2
    assert set(again) <= held_out


def test_questions_of_a_passage_or_a_prompt_are_on_one_side(tmp_path):
    for rows, size in ((passages(90), 5), (choices(30) * 3, 5), (answers(30) * 2, 5)):
        setup = opened(tmp_path, rows, batch_size=size)
        assert len(setup.batch.tokens) == size
        sides = [{row[:5] for row in part} for part in parts(setup)]  # passage or prompt
        assert all(len(side) > 1 for side in sides)
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_text_that_is_repeated_is_on_one_side(tmp_path):
    """Documents of one row each; every row to train on comes twice."""
    setup = opened(tmp_path, [row for row in texts(40) for _ in range(2)], batch_size=5)
    searched, held_out, others = parts(setup)
    assert not searched & others | searched & held_out | held_out & others


@pytest.mark.parametrize("kind", ["choices", "answers"])
def test_one_more_row_moves_no_other(tmp_path, kind):
    rows = MAKERS[kind][0](61)
    before, after = (parts(opened(tmp_path, some)) for some in (rows[:60], [rows[60], *rows[:60]]))
    assert before[1] <= after[1]
    assert len(after[1] - before[1]) <= 1
    assert len(before[0] - after[0]) <= 1  # what the new one pushes out


def test_the_seed_says_which_rows_are_searched_on_and_not_which_are_held_out(tmp_path):
    first, again, other = (opened(tmp_path, choices(60), seed=seed) for seed in (0, 0, 1))
    assert trees.content_digest((first.batch, first.held_out)) == trees.content_digest((again.batch, again.held_out))
    assert trees.content_digest(first.task.train(3)) == trees.content_digest(again.task.train(3))
    assert trees.content_digest(first.held_out) == trees.content_digest(other.held_out)
    assert parts(first)[0] != parts(other)[0]


def test_fewer_rows_than_are_asked_for_are_told(tmp_path):
    told = []
    setup = opened(tmp_path, choices(20), batch_size=64, notice=told.append)
    searched, held_out, others = parts(setup)
    assert (len(searched), len(others)) == (20 - len(held_out) - 1, 1)
    assert told == [
        f"{tmp_path}/task.jsonl has {len(searched)} rows to search on, where 64 are asked for, 1 to build bases on and "
        f"{len(held_out)} that are held out."
    ]
    assert setup.task.train(0).tokens.shape[0] == 64


def test_rows_are_no_wider_than_their_longest(tmp_path):
    """A prompt of 200 tokens costs those nothing that are searched on without it."""
    rows = [*choices(60), {"prompt": "k" * 200, "choices": ["k", "lm"], "label": 0}]
    widths = [batch.tokens.shape[-1] for setup in [opened(tmp_path, rows)] for batch in (setup.batch, *setup.held_out)]
    assert sorted(set(widths)) in ([6], [6, 201])


def test_rows_that_are_too_long_are_left_out_and_told(tmp_path):
    """Every prompt is decoded for as long as the longest answer, that of others too."""
    room = tiny_lm.MODEL.spec.max_positions
    long, too_long = ([{"prompt": "k" * size, "answers": ["k"]}] for size in (room - 1, room))
    told = []
    for objective, num_left_out in (("exact_match", 2), ("nats", 1)):
        opened(tmp_path, answers(40) + long + too_long, objective=objective, notice=told.append)
        text = f"{num_left_out} prompts of {tmp_path}/task.jsonl have more than {room} tokens, and are left out."
        assert told.pop() == text
    assert not told
    with pytest.raises(InvalidInput, match=rf"prompts of at most {room} tokens .* the shortest has {room + 1}"):
        opened(tmp_path, too_long)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            choices(60),
            {"objective": "exact_match"},
            r"objective must be one of nats, log_odds, accuracy for .*`exact_match`",
        ),
        (answers(60), {"objective": "accuracy"}, r"objective must be one of nats, exact_match for .*; got `accuracy`"),
        (texts(60), {"objective": "exact_match"}, r"objective must be one of nats for .*; got `exact_match`"),
        (choices(60), {"begin": "ab"}, r"begin must be one token; got `ab`, which is 2"),
        (choices(60), {"batch_size": 0}, r"batch_size must be at least 1; got 0"),
        (texts(60), {"length": 1}, r"length must be at least 2; got 1"),
        (texts(60), {"length": 10**6}, r"fill a row of 1000000|length must be at most the model's"),
        (texts(2), {"length": 1000}, r"must fill a row of 1000 tokens"),
        (texts(1), {"length": 5, "held_out_share": 0.3}, r"must"),
        (choices(60), {"held_out_share": 1.0}, r"held_out_share must lie between 0 and 1; got 1.0"),
        (choices(60), {"held_out_share": float("nan")}, r"held_out_share must lie between 0 and 1; got nan"),
        (choices(60), {"seed": -1}, r"seed"),
        (choices(60), {"held_out_share": 1e-6}, r"rows to search on and rows to hold out; got none of 60 held out"),
        (choices(60), {"held_out_share": 1 - 1e-6}, r"rows to search on and rows to hold out; got all of 60 held out"),
        (choices(1), {}, r"rows to search on and rows to hold out; got (all|none) of 1"),
        (choices(1) * 9 + choices(4)[2:3], {"held_out_share": 0.5}, r"rows"),
        (
            [{"prompt": "a", "choices": ["b", "\x7f"], "label": 0}] * 3,
            {},
            r"tokenizer must be that of the model.* got token 67",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, rows, options, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        opened(tmp_path, rows, **options)
    assert "\n" not in str(caught.value)


def test_a_begin_stands_in_front_of_every_question_and_between_documents(tmp_path):
    for rows, objective in ((choices(60), ""), (answers(60), "exact_match"), (answers(60), "")):
        setup = opened(tmp_path, rows, begin="{", objective=objective)
        assert (np.asarray(setup.batch.tokens)[..., 0] == ord("{") - 60).all()
    setup = opened(tmp_path, texts(60), begin="{", length=11)
    assert all(row.count("{") == 1 for row in contents(setup.batch))


def sweep_of(setup, **options):
    family = search.gaussian(stacked=setup.model.stacked)
    return search.run_sweep(
        setup.task.objective, setup.params, setup.batch, search.Sweep(family, (1e-3, 1e-2), 2, top_k=1), **options
    )


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        (choices, "nats"),
        (choices, "log_odds"),
        (choices, "accuracy"),
        (answers, "nats"),
        (answers, "exact_match"),
        (texts, ""),
    ],
)
def test_every_objective_is_searched_over_and_goes_on_where_it_was(tmp_path, rows, objective):
    setup, again = (opened(tmp_path, rows(60), objective=objective) for _ in range(2))
    assert setup.task.objective.smooth == (objective not in ("accuracy", "exact_match"))
    first = sweep_of(setup, out=tmp_path / "run")
    resumed = sweep_of(again, out=tmp_path / "run", resume=True)
    assert (resumed.num_scored, resumed.sha256) == (0, first.sha256)
    np.testing.assert_allclose(first.base_score, setup.task.objective.loss(setup.params, setup.batch), rtol=1e-5)
    metric = setup.task.metric(setup.params, setup.held_out[0])
    assert all(np.isfinite(value) for value in metric.values())


@pytest.mark.parametrize(("rows", "objective"), [(choices, "nats"), (answers, "exact_match"), (texts, "")])
def test_the_factors_of_an_adapter_are_searched_alone(tmp_path, rows, objective):
    """At factors that change nothing the loss is the model's own."""
    spec = lora_spec(tiny_lm.MODEL, rank=1)
    factors = spec.init(jax.random.key(0))
    adapter = setups.language_models.Adapter(spec, factors)
    model = LanguageModel(tiny_lm.MODEL, factors, tiny_lm.PARAMS, adapter, Path())
    plain, setup = (opened(tmp_path, rows(60), objective=objective, model=one) for one in (MODEL, model))
    loss = setup.task.objective.loss(setup.params, setup.batch)
    np.testing.assert_allclose(loss, plain.task.objective.loss(plain.params, plain.batch), rtol=1e-6)
    assert jax.tree.structure(setup.params) == jax.tree.structure(factors)


def test_a_search_finds_what_a_planted_one_is(tmp_path):
    """Steps along the gradient lower the loss of choices on rows that are held out, too."""
    rows = [row | {"label": 0} for row in choices(60)]
    setup = opened(tmp_path, rows)
    slope = jax.grad(setup.task.objective.loss)(setup.params, setup.batch)
    better = trees.axpy(-0.05 / trees.norm(slope), slope, setup.params)
    for batch in (setup.batch, *setup.held_out):
        assert setup.task.objective.loss(better, batch) < setup.task.objective.loss(setup.params, batch)


@pytest.mark.parametrize("objective", ["", "exact_match"])
def test_an_operation_on_digits_is_a_task(data, objective):
    folder = data / "gpt2_ckpt"
    if not folder.is_dir():
        pytest.skip(f"no GPT-2 checkpoint at {folder}")
    model = setups.ModelConfig(str(folder / "hf"), str(folder / "tokenizer"))
    setup = setups.prepare_language(model, TaskConfig("sort", objective=objective, batch_size=4))
    assert setup.task.name == "sort"
    assert len(setup.held_out) == 8
    questions = [np.asarray(batch.tokens) for batch in (setup.batch, setup.task.train(0), setup.held_out[0])]
    assert len({array.tobytes() for array in questions}) == 3
    assert np.isfinite(setup.task.objective.loss(setup.params, setup.batch))


def test_a_published_checkpoint_answers_boolq_and_behaviours(data):
    folder, files = data / "tiny_ckpt", (data / "caa" / "myopic-reward.jsonl", data / "boolq" / "train32.jsonl")
    if not all(path.exists() for path in (folder, *files)):
        pytest.skip(f"no checkpoint, BoolQ or behaviours under {data}")
    model = setups.ModelConfig(str(folder / "hf"), str(folder / "tokenizer"))
    for file in files:
        told = []
        setup = setups.prepare_language(model, TaskConfig(str(file), batch_size=2, begin="<s>"), notice=told.append)
        losses = setup.task.objective.loss(setup.params, setup.batch)
        assert 0 < losses < 20
        assert told if file == files[1] else not told  # passages that are too long for its window
