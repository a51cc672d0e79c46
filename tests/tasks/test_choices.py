"""Multiple choice as an objective, against float64 numpy from the log-probabilities of whole rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import MODEL, PARAMS

from lacuna.errors import InvalidInput
from lacuna.models import nats_at, over_adapter
from lacuna.models.lora import lora_spec
from lacuna.tasks import Choices, Question, choice_loss, choice_metric, choice_nats, choice_rows
from lacuna.tasks.choices import OBJECTIVES

NATS_AT = partial(nats_at, MODEL)
SINGLE = [Question("abcd", ("e", "f", "g"), 2), Question("k", ("a", "b", "c"), 0), Question("ba", ("x", "y", "z"), 1)]
SEVERAL = [Question("abc", ("de", "d", "ghijk"), 0), Question("k", ("a", "bcd", "efg"), 1)]


def encode(text):
    return [ord(character) - 60 for character in text]


def oracle_nats(questions, begin=1):
    """[n, C]: each row alone and unpadded, in float64."""
    found = []
    for question in questions:
        prompt = [begin, *encode(question.prompt)]
        for choice in question.choices:
            row = [*prompt, *encode(choice)]
            logits = np.asarray(MODEL.apply(PARAMS, jnp.asarray([row])).logits[0], np.float64)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            found.append(-sum(log_probs[s - 1, row[s]] for s in range(len(prompt), len(row))))
    return np.array(found).reshape(len(questions), -1)


def oracle_losses(nats, right):
    """The three objectives from their definitions."""
    probabilities = np.exp(-nats)
    of_right = probabilities[np.arange(len(right)), right]
    odds = of_right / (probabilities.sum(axis=1) - of_right)
    wrong = np.array([list(row).index(row.min()) != answer for row, answer in zip(nats, right, strict=True)])
    return {
        "nats": -np.log(of_right / probabilities.sum(axis=1)).mean(),
        "log_odds": -np.log(odds).mean(),
        "accuracy": wrong.mean(),
    }


def table(nats, right):
    """A batch and a model that thinks just this of its answers."""
    nats = np.asarray(nats, np.float32)
    num, several = nats.shape
    one = np.zeros((num, 1, several, 1), np.int32)
    batch = Choices(one[:, :, 0], one[:, :, 0], one, np.ones(one.shape, bool), np.asarray(right, np.int32))
    return batch, lambda params, tokens, at, wanted: jnp.asarray(nats)[:, :, None]


@pytest.mark.parametrize("questions", [SINGLE, SEVERAL])
def test_nats_of_answers_are_those_of_each_row_alone(questions):
    batch = choice_rows(questions, encode, max_length=20, begin=1)
    np.testing.assert_allclose(jax.jit(partial(choice_nats, NATS_AT))(PARAMS, batch), oracle_nats(questions), rtol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("questions", [SINGLE, SEVERAL])
def test_an_objective_is_the_mean_of_its_definition(questions, objective):
    batch = choice_rows(questions, encode, max_length=20, begin=1)
    expected = oracle_losses(oracle_nats(questions), [question.right for question in questions])
    np.testing.assert_allclose(choice_loss(NATS_AT, objective=objective)(PARAMS, batch), expected[objective], rtol=2e-5)
    metric = choice_metric(NATS_AT)(PARAMS, batch)
    np.testing.assert_allclose(metric["accuracy"], 1 - expected["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(metric["log_odds"], -expected["log_odds"], rtol=2e-5)


def test_answers_of_one_token_share_their_prompts_row():
    batch = choice_rows(SINGLE, encode, max_length=6, begin=1)
    assert batch.tokens.shape == (3, 1, 5)
    np.testing.assert_array_equal(batch.tokens[1, 0], [1, *encode("k"), 0, 0, 0])
    np.testing.assert_array_equal(batch.at[:, 0, 0], [4, 1, 2])
    np.testing.assert_array_equal(batch.wanted[0, 0, :, 0], encode("efg"))
    assert batch.counted.all()


def test_the_row_of_a_prompt_says_what_rows_of_its_answers_say():
    """One question of several tokens makes rows of all answers; the others are thought of as before."""
    alone = choice_nats(NATS_AT, PARAMS, choice_rows(SINGLE, encode, max_length=20))
    beside = choice_rows([*SINGLE, *SEVERAL], encode, max_length=20)
    assert beside.tokens.shape == (5, 3, 7)
    np.testing.assert_allclose(choice_nats(NATS_AT, PARAMS, beside)[:3], alone, rtol=2e-5)


def test_nothing_stands_where_nothing_is_read():
    batch = choice_rows(SEVERAL, encode, max_length=20)
    tokens, at, counted = (array.reshape(6, -1) for array in (batch.tokens, batch.at, batch.counted))
    last = np.max(np.where(counted, at, 0), axis=1, keepdims=True)
    np.testing.assert_array_equal(tokens != 0, np.arange(tokens.shape[1]) <= last)


def test_the_first_of_equals_wins():
    batch, thinks = table([[1.0, 1, 2], [1, 1, 2], [3, 1, 1], [3, 1, 1]], [0, 0, 1, 2])
    assert choice_loss(thinks, objective="accuracy")({}, batch) == 0.25
    assert choice_metric(thinks)({}, batch)["accuracy"] == 0.75


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_has_no_number_gives_none(objective):
    batch, thinks = table([[1.0, 2], [1, np.nan]], [0, 0])
    assert np.isnan(choice_loss(thinks, objective=objective)({}, batch))
    assert all(map(np.isnan, choice_metric(thinks)({}, batch).values()))


def test_log_odds_grow_where_the_nats_are_over():
    """At odds of e^60 the probability is 1 in float32."""
    batch, thinks = table([[0.0, 60]], [0])
    assert choice_loss(thinks)({}, batch) == 0
    assert choice_loss(thinks, objective="log_odds")({}, batch) == -60


def test_accuracy_has_no_gradient_and_the_others_have_one():
    batch = choice_rows(SEVERAL, encode, max_length=20)
    for objective in OBJECTIVES:
        slopes = jax.tree.leaves(jax.grad(choice_loss(NATS_AT, objective=objective))(PARAMS, batch))
        assert all(np.isfinite(slope).all() for slope in slopes)
        assert any(slope.any() for slope in map(np.asarray, slopes)) == (objective != "accuracy")


def test_a_loss_made_again_compiles_nothing_again():
    batch = choice_rows(SINGLE, encode, max_length=20)
    run = jax.jit(lambda loss, params, batch: loss(params, batch))
    spec = lora_spec(MODEL, rank=1)
    factors = spec.init(jax.random.key(0))
    for seed in range(2):
        run(choice_loss(partial(nats_at, MODEL)), PARAMS, batch)
        run(choice_loss(over_adapter(nats_at, MODEL, MODEL.init(jax.random.key(seed)), spec)), factors, batch)
    assert run._cache_size() == 2


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], r"at least one question"),
        ([SINGLE[0], Question("a", ("b", "c"), 0)], r"equally many answers; got 3 of question 0 and 2 of question 1"),
        ([Question("a" * 20, ("b", "c"), 0)], r"a row may have 20 tokens; question 0 has 21"),
        ([Question("", ("b", "c"), 0)], r"a prompt needs tokens; that of question 0 has none"),
        ([Question("a", ("b", ""), 0)], r"tokens of its own behind the prompt; `` of question 0 is not"),
        ([Question("a", ("b", "b"), 0)], r"the answers of question 0 must differ; got `b` and `b`, the same tokens"),
    ],
)
def test_questions_that_make_no_rows_are_refused(questions, message):
    with pytest.raises(InvalidInput, match=message):
        choice_rows(questions, encode, max_length=20)


def test_a_tokenizer_that_merges_across_the_boundary_is_named():
    merging = lambda text: encode(text.replace("ab", "z"))  # noqa: E731
    with pytest.raises(InvalidInput, match=r"`b` of question 1 is not"):
        choice_rows([Question("c", ("b", "d"), 0), Question("a", ("c", "b"), 0)], merging, max_length=20)


def test_an_objective_of_another_name_is_refused():
    with pytest.raises(InvalidInput, match="objective must be one of nats, log_odds, accuracy; got `margin`"):
        choice_loss(NATS_AT, objective="margin")
