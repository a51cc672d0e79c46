"""Steering: a grid of arms is what each of its arms is alone, and what each measures is what its name says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_lm
from scipy import special

from lacuna import models, steering, trees
from lacuna.errors import InvalidInput, TreeMismatch
from lacuna.steering import intervene
from lacuna.tasks.contrast import Prompts

MODEL = tiny_lm.MODEL
PARAMS = tiny_lm.PARAMS | {"embedding": 15 * tiny_lm.PARAMS["embedding"]}  # for logits that differ
APPLY = jax.jit(MODEL.apply)
LEVELS, WIDTH = MODEL.spec.num_layers + 1, MODEL.spec.width
SYNTHETIC = models.synthetic(
    models.SyntheticSpec(64, max_length=7, num_layers=LEVELS - 1, width=WIDTH, num_heads=2, mlp_width=16)
)
RNG = np.random.default_rng(0)
LENGTH = np.array([4, 7, 5, 6], np.int32)
PROMPTS = Prompts(
    np.where(np.arange(7) < LENGTH[:, None], RNG.integers(1, 64, (4, 7)), 0).astype(np.int32),
    LENGTH,
    np.array([[3, 9], [11, 2], [5, 40], [63, 1]], np.int32),
    np.array([0, 1, 1, 0], np.int32),
)
TOKENS = jnp.asarray(PROMPTS.tokens)
NAMES = ("last", "all", "after_prompt")
START = np.array([2, 3, 0, 5], np.int32)
MASKS = steering.position_masks(PROMPTS, NAMES, start=START)
VECTORS = 0.3 * RNG.normal(size=(3, LEVELS, WIDTH)).astype(np.float32)
GRID = steering.grid(MODEL, vectors=range(3), levels=range(LEVELS), strengths=(-1.0, 0.0, 0.5), masks=range(3))
TEXT = jnp.asarray(RNG.integers(0, 64, (3, 6)).astype(np.int32))
DELTA = jax.tree.map(lambda x: 0.1 * jnp.asarray(RNG.normal(size=x.shape), x.dtype), PARAMS)


def arm(i, arms=GRID):
    return steering.Arms(*(part[i : i + 1] for part in arms))


def steer_of(i, masks, arms=GRID):
    """What one arm adds, [L+1, B, S, D], written position by position."""
    found = np.zeros((LEVELS, *masks.shape[1:], WIDTH), np.float32)
    for b, s in zip(*np.nonzero(masks[arms.mask[i]]), strict=True):
        found[arms.level[i], b, s] = arms.strength[i] * VECTORS[arms.vector[i], arms.level[i]]
    return jnp.asarray(found)


def answers_by_hand(logits):
    """log odds, mass, right and the log-probabilities, in float64 from [B, S, V] logits."""
    rows = np.arange(4)
    last = np.asarray(logits, np.float64)[rows, LENGTH - 1]
    log_probs = special.log_softmax(last, axis=-1)
    told = last[rows[:, None], PROMPTS.choices]
    mass = np.exp(log_probs)[rows[:, None], PROMPTS.choices].sum(axis=1)
    return told[:, 0] - told[:, 1], mass, (told[:, 0] >= told[:, 1]) == PROMPTS.positive, log_probs


def nats_by_hand(log_probs):
    return -np.take_along_axis(log_probs, np.asarray(TEXT)[:, 1:, None], axis=-1)[..., 0]


def kl_by_hand(base, other):
    return np.sum(special.rel_entr(np.exp(base), np.exp(other)), axis=-1)


@pytest.fixture(scope="module")
def answers():
    return jax.tree.map(np.asarray, steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS, GRID, MASKS))


@pytest.fixture(scope="module")
def text():
    return jax.tree.map(np.asarray, steering.steered_text(MODEL, PARAMS, TEXT, VECTORS, GRID))


def test_a_grid_has_all_combinations_in_the_order_of_its_arguments():
    grid = steering.grid(MODEL, vectors=[2, 0], levels=[1], strengths=[0.5, -1.0, 2.0], masks=[0, 1])
    shape = (2, 1, 3, 2)
    assert all(part.shape == (12,) for part in grid)
    for index in np.ndindex(shape):
        at = [np.reshape(part, shape)[index] for part in grid]
        assert at == [[2, 0][index[0]], 1, [0.5, -1.0, 2.0][index[2]], [0, 1][index[3]]]


def test_masks_are_where_their_names_say_and_never_on_padding():
    last, everywhere, after = MASKS
    for row, (length, start) in enumerate(zip(LENGTH, START, strict=True)):
        np.testing.assert_array_equal(np.flatnonzero(last[row]), [length - 1])
        np.testing.assert_array_equal(np.flatnonzero(everywhere[row]), np.arange(length))
        np.testing.assert_array_equal(np.flatnonzero(after[row]), np.arange(start, length))
    np.testing.assert_array_equal(*steering.position_masks(PROMPTS, ("last", "after_prompt")))


def test_every_arm_answers_as_the_model_does_when_it_is_steered_alone(answers):
    *_, base = answers_by_hand(MODEL.apply(PARAMS, TOKENS).logits)
    for i in range(len(GRID.level)):
        logits = APPLY(PARAMS, TOKENS, steer=steer_of(i, MASKS)).logits
        log_odds, mass, right, log_probs = answers_by_hand(logits)
        np.testing.assert_allclose(answers.log_odds[i], log_odds, atol=1e-5)
        np.testing.assert_allclose(answers.mass[i], mass, rtol=1e-5)
        np.testing.assert_array_equal(answers.right[i], right)
        np.testing.assert_allclose(answers.kl[i], kl_by_hand(base, log_probs), rtol=1e-4, atol=1e-9)
    assert np.ptp(answers.log_odds, axis=0).min() > 0.05  # or all of this says nothing


def test_every_arm_predicts_text_as_the_model_does_when_it_is_steered_alone(text):
    everywhere = np.ones((3, *TEXT.shape), bool)

    def log_probs(**options):
        return special.log_softmax(np.asarray(APPLY(PARAMS, TEXT, **options).logits, np.float64), axis=-1)[:, :-1]

    base = log_probs()
    for i in range(len(GRID.level)):
        steered = log_probs(steer=steer_of(i, everywhere))
        np.testing.assert_allclose(text.nats[i], nats_by_hand(steered), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(text.kl[i], kl_by_hand(base, steered), rtol=1e-4, atol=1e-9)


def test_at_the_last_level_the_vector_is_added_before_the_final_norm_and_the_head(answers):
    """The architecture's last step written out: a layer norm without parameters, and the embedding's transpose."""
    stream = np.asarray(MODEL.apply(PARAMS, TOKENS, taps=jnp.asarray(LENGTH - 1)).resid[-1], np.float64)
    for i in np.flatnonzero((GRID.level == LEVELS - 1) & (GRID.mask == 0)):
        pushed = stream + GRID.strength[i] * VECTORS[GRID.vector[i], -1].astype(np.float64)
        centred = pushed - pushed.mean(axis=1, keepdims=True)
        normed = centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + MODEL.spec.norm_eps)
        told = np.take_along_axis(normed @ np.asarray(PARAMS["embedding"], np.float64).T, PROMPTS.choices, axis=1)
        np.testing.assert_allclose(answers.log_odds[i], told[:, 0] - told[:, 1], atol=1e-5)


def test_a_strength_of_zero_changes_no_bit(answers, text):
    zero = GRID.strength == 0
    logits = APPLY(PARAMS, TOKENS).logits[np.arange(4), LENGTH - 1]
    told = np.take_along_axis(np.asarray(logits), PROMPTS.choices, axis=1)
    bits = oracles.bits(told[:, 0] - told[:, 1])
    assert all(oracles.bits(each) == bits for each in answers.log_odds[zero])
    assert (answers.kl[zero] == 0).all()
    assert (text.kl[zero] == 0).all()


def test_a_divergence_is_positive_where_anything_is_changed(answers, text):
    moved = GRID.strength != 0
    assert (answers.kl >= 0).all()
    assert (text.kl >= 0).all()
    assert (answers.kl[moved & (GRID.mask == 1)] > 0).all()
    assert (text.kl[moved] > 0).all()


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 3.0, 60.0])
def test_a_divergence_is_that_of_float64_however_small_or_large(size):
    """A plain sum of p log(p/q) in float32 is off by 1e-7, which is all of the smallest of these."""
    base, move = RNG.normal(size=(2, 5, 1000)).astype(np.float32)
    one, other = (jax.nn.log_softmax(jnp.asarray(x)) for x in (base, base + size * move))
    found = intervene._kl(one, other)
    expected = kl_by_hand(
        special.log_softmax(base.astype(float), -1), special.log_softmax(base + size * move.astype(float), -1)
    )
    # The log-probabilities themselves are known to 1e-6.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * size)
    assert (np.asarray(found) >= 0).all()


def test_a_divergence_survives_what_has_no_probability():
    one, other = jax.nn.log_softmax(jnp.array([[0.0, -300.0], [-300.0, 0.0]]))
    np.testing.assert_allclose(intervene._kl(one, other), 300, rtol=1e-6)


def test_64_arms_side_by_side_are_64_arms_one_at_a_time():
    grid = steering.grid(MODEL, vectors=range(3), levels=range(LEVELS), strengths=np.linspace(-1, 1, 8), masks=[1])
    grid = steering.Arms(*(part[:64] for part in grid))
    together = steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS, grid, MASKS, width=24)  # 64 = 24 + 24 + 16
    alone = [steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS, arm(i, grid), MASKS) for i in range(64)]
    for name in ("log_odds", "mass", "kl"):
        expected = np.concatenate([getattr(one, name) for one in alone])
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-5, atol=1e-5)


def test_rows_in_parts_are_the_rows_together(answers, text):
    some = steering.Arms(*(part[:10] for part in GRID))
    in_parts = (
        (answers, steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS, some, MASKS, chunk=3)),
        (text, steering.steered_text(MODEL, PARAMS, TEXT, VECTORS, some, chunk=1, width=4)),
    )
    for together, found in in_parts:
        for one, other in zip(together, found, strict=True):
            np.testing.assert_allclose(other, one[:10], rtol=1e-4, atol=1e-5)


def test_a_turned_vector_is_a_strength_of_the_other_sign(answers):
    turned = GRID._replace(strength=-GRID.strength)
    found = steering.steered_answers(MODEL, PARAMS, PROMPTS, -VECTORS, turned, MASKS)
    assert oracles.bits(found) == oracles.bits(answers)


def test_a_vector_without_levels_is_the_same_at_all():
    spread = np.ascontiguousarray(np.broadcast_to(VECTORS[:, :1], VECTORS.shape))
    one = steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS[:, 0], GRID, MASKS)
    other = steering.steered_answers(MODEL, PARAMS, PROMPTS, spread, GRID, MASKS)
    assert oracles.bits(one) == oracles.bits(other)


def test_text_is_steered_where_its_masks_say():
    masks = np.zeros((3, *TEXT.shape), bool)
    masks[:, 1, 4] = True
    found = steering.steered_text(MODEL, PARAMS, TEXT, VECTORS, GRID, masks)
    moved = np.asarray(found.kl)[GRID.strength != 0] > 1e-9
    # What stands before cannot see it; what follows it is one prediction, that of the last token.
    np.testing.assert_array_equal(np.argwhere(moved.any(axis=0)), [[1, 4]])
    assert moved[:, 1, 4].all()


def test_of_several_choices_the_first_is_held_against_the_rest():
    choices = RNG.permuted(np.broadcast_to(np.arange(64, dtype=np.int32), (4, 64)), axis=1)[:, :5]
    several = PROMPTS._replace(choices=choices, right=np.array([4, 0, 2, 1], np.int32))
    arms = steering.grid(MODEL, vectors=[0], levels=[1], strengths=[1.0])
    found = steering.steered_answers(MODEL, PARAMS, several, VECTORS, arms, MASKS)
    steered = np.asarray(APPLY(PARAMS, TOKENS, steer=steer_of(0, MASKS, arms)).logits, np.float64)
    told = np.take_along_axis(steered[np.arange(4), LENGTH - 1], choices, axis=1)
    np.testing.assert_allclose(found.log_odds[0], told[:, 0] - special.logsumexp(told[:, 1:], axis=1), atol=1e-5)
    np.testing.assert_array_equal(found.right[0], told.argmax(axis=1) == several.right)


def test_a_step_is_measured_as_the_model_at_the_new_weights():
    strengths = np.array([0.0, 0.3, -1.0], np.float32)
    answers = steering.stepped_answers(MODEL, PARAMS, DELTA, strengths, PROMPTS)
    text = steering.stepped_text(MODEL, PARAMS, DELTA, strengths, TEXT, width=2)
    points = [jax.tree.map(jnp.asarray, oracles.axpy(strength, DELTA, PARAMS)) for strength in strengths]
    by_hand = [answers_by_hand(APPLY(point, TOKENS).logits) for point in points]
    predicted = [special.log_softmax(np.asarray(APPLY(point, TEXT).logits, float), -1)[:, :-1] for point in points]
    for i, ((log_odds, mass, right, log_probs), steered) in enumerate(zip(by_hand, predicted, strict=True)):
        np.testing.assert_allclose(answers.log_odds[i], log_odds, atol=1e-5)
        np.testing.assert_allclose(answers.mass[i], mass, rtol=1e-5)
        np.testing.assert_array_equal(answers.right[i], right)
        np.testing.assert_allclose(answers.kl[i], kl_by_hand(by_hand[0][-1], log_probs), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(text.nats[i], nats_by_hand(steered), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(text.kl[i], kl_by_hand(predicted[0], steered), rtol=1e-4, atol=1e-9)
    assert (np.asarray(answers.kl[0]) == 0).all()


def test_the_synthetic_model_can_be_stepped():
    model, params = SYNTHETIC, SYNTHETIC.init(jax.random.key(0))
    apply = jax.jit(model.apply)
    found = steering.stepped_answers(model, params, params, np.array([0.0, 1.0], np.float32), PROMPTS)
    for log_odds, point in zip(found.log_odds, (params, jax.tree.map(lambda x: 2 * x, params)), strict=True):
        np.testing.assert_allclose(log_odds, answers_by_hand(apply(point, TOKENS).logits)[0], atol=1e-5)


def test_a_grid_of_the_synthetic_model_is_each_of_its_arms_alone():
    model, params = SYNTHETIC, SYNTHETIC.init(jax.random.key(0))
    arms = steering.Arms(*(part[::5] for part in GRID))
    beside = PROMPTS._replace(tokens=np.where(np.arange(7) < LENGTH[:, None], PROMPTS.tokens, 8).astype(np.int32))
    found = steering.steered_answers(model, params, PROMPTS, VECTORS, arms, MASKS, width=4)
    alike = steering.steered_answers(model, params, beside, VECTORS, arms, MASKS, width=4)
    apply = jax.jit(model.apply)
    *_, base = answers_by_hand(apply(params, TOKENS).logits)
    for i in range(len(arms.level)):
        log_odds, mass, _, log_probs = answers_by_hand(apply(params, TOKENS, steer=steer_of(i, MASKS, arms)).logits)
        np.testing.assert_allclose(found.log_odds[i], log_odds, atol=1e-5)
        np.testing.assert_allclose(found.mass[i], mass, rtol=1e-5)
        np.testing.assert_allclose(found.kl[i], kl_by_hand(base, log_probs), rtol=1e-4, atol=1e-9)
    assert np.ptp(found.log_odds, axis=0).min() > 0.05
    assert (np.asarray(found.kl)[arms.strength != 0].max(axis=1) > 1e-6).all()
    np.testing.assert_array_equal(alike.log_odds, found.log_odds)  # what is behind a prompt is nothing to it


def test_logits_at_a_place_are_those_of_all_places():
    at = jnp.array([0, 6, 3, 2])
    found = models.logits_at(MODEL, PARAMS, TOKENS, at)
    np.testing.assert_allclose(found, MODEL.apply(PARAMS, TOKENS).logits[jnp.arange(4), at], atol=1e-5)


def test_scaled_vectors_are_as_long_as_the_stream_is():
    norms = np.array([1.0, 20.0, 3.0], np.float32)
    tiny = np.float32(1e-30) * VECTORS
    for given in (VECTORS, tiny):
        found = np.asarray(steering.scaled(given, norms))
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.broadcast_to(norms, (3, 3)), rtol=1e-5)
        cosine = np.sum(found * VECTORS, axis=-1) / np.linalg.norm(VECTORS, axis=-1) / norms
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(
        steering.scaled(VECTORS[:, 0], norms)[:, 1], 20 * steering.scaled(VECTORS[:, 0], norms)[:, 0], rtol=1e-6
    )


def test_a_vector_without_direction_stays_zero():
    assert (np.asarray(steering.scaled(np.zeros((1, 3, 4), np.float32), np.ones(3, np.float32))) == 0).all()


def test_another_grid_of_the_same_size_compiles_nothing(answers, text):
    size = intervene._steered._cache_size()
    other = steering.grid(MODEL, vectors=[2], levels=[2], strengths=np.linspace(0, 1, len(GRID.level)))
    moved = trees.axpy(0.1, DELTA, PARAMS)
    steering.steered_answers(MODEL, moved, PROMPTS, 2 * VECTORS, other, MASKS)
    steering.steered_text(MODEL, moved, TEXT, 2 * VECTORS, other)
    assert intervene._steered._cache_size() == size


def test_nothing_of_arms_by_vocabulary_is_ever_there():
    """What a grid of 40 times as many arms adds to the memory is what it gives back, and no logits."""
    spec = replace(MODEL.spec, vocab_size=5000)
    model = models.causal_lm(spec)
    params = model.init(jax.random.key(0))

    def temporary(num_arms):
        arms = steering.grid(model, vectors=[0], levels=[1], strengths=np.ones(num_arms))
        rows = intervene._Text(jnp.asarray(TEXT), jnp.ones((3, 1, 6), bool))
        lowered = intervene._steered.lower(
            intervene._TEXT, model, params, jnp.asarray(VECTORS), arms, rows, width=1, chunk=None
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 3 * 5 * 5000
    assert temporary(80) - temporary(2) < logits


def test_matched_strengths_reach_their_targets_all_arms_at_once():
    num_arms, calls = len(GRID.level), []
    target = np.resize([0.05, 0.2, 0.5], num_arms)  # of the three masks of each vector, level and strength

    def cost(strength):
        calls.append(strength)
        return steering.steered_text(MODEL, PARAMS, TEXT, VECTORS, GRID._replace(strength=strength)).kl

    found = steering.match_kl(cost, target)
    kl = steering.steered_text(MODEL, PARAMS, TEXT, VECTORS, GRID._replace(strength=found.strength)).kl
    reached = np.percentile(np.asarray(kl).reshape(num_arms, -1), 95, axis=1)
    np.testing.assert_array_equal(found.status, steering.MatchStatus.MATCHED)
    np.testing.assert_allclose(reached, target, rtol=0.05)
    np.testing.assert_allclose(found.kl, reached, rtol=1e-5)
    assert len(calls) <= 12


def test_a_step_is_matched_as_a_vector_is():
    target = np.array([0.05, 0.2, 0.5])
    found = steering.match_kl(lambda s: steering.stepped_text(MODEL, PARAMS, DELTA, s, TEXT).kl, target)
    kl = steering.stepped_text(MODEL, PARAMS, DELTA, found.strength, TEXT).kl
    np.testing.assert_array_equal(found.status, 0)
    np.testing.assert_allclose(np.percentile(np.asarray(kl).reshape(3, -1), 95, axis=1), target, rtol=0.05)


def test_a_match_says_how_it_ended():
    """Costs that are known: a square, one that saturates, one too large, a jump, a broken model, and a steep one."""

    def cost(strength):
        square, infinite = strength**2, np.array([np.inf, np.nan])
        curves = [
            square[0],
            np.minimum(square[1], 0.01),
            1 + square[2],
            strength[3] > 0.3,
            square[4] if strength[4] < 0.5 else infinite,
            strength[5] ** 7 / (1 + strength[5] ** 6),
        ]
        return np.stack([np.broadcast_to(np.float32(curve), 2) for curve in curves])

    found = steering.match_kl(cost, np.full(6, 0.2), num_rounds=30)
    status = steering.MatchStatus
    expected = [status.MATCHED, status.BEYOND, status.BEYOND, status.UNSETTLED, status.MATCHED, status.MATCHED]
    assert found.status.tolist() == expected
    np.testing.assert_allclose(found.strength[[0, 4]], np.sqrt(0.2), rtol=0.025)
    assert np.isclose(found.kl[5], 0.2, rtol=0.05)


def test_of_several_strengths_that_match_the_least_is_found():
    """It rises to 1 at a strength of 0.1, and falls back to 0.2 at just the largest of the first strengths."""

    def cost(strength):
        rising, falling = (10 * strength) ** 2, (0.1 / strength) ** np.log10(5)
        return np.where(strength < 0.1, rising, falling)[:, None]

    found = steering.match_kl(cost, np.array([0.2]), bounds=(1e-3, 1.0))
    np.testing.assert_allclose(found.strength, np.sqrt(0.2) / 10, rtol=0.025)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"level": 3}, "there is no level 3: this model has 0, the embedding output, to 2, the stream after its last"),
        ({"vector": 3}, "there is no vector 3; got 3 of them, counted from 0"),
        ({"vector": -1}, "there is no vector -1"),
        ({"mask": 3}, "there is no mask 3; got 3 of them"),
    ],
)
def test_an_arm_of_what_is_not_there_is_refused(change, sentence):
    arms = arm(0)._replace(**{name: np.array([value], np.int32) for name, value in change.items()})
    with pytest.raises(InvalidInput, match=sentence):
        steering.steered_answers(MODEL, PARAMS, PROMPTS, VECTORS, arms, MASKS)


def answers_of(prompts=PROMPTS, vectors=VECTORS, arms=GRID, masks=MASKS, **sizes):
    return steering.steered_answers(MODEL, PARAMS, prompts, vectors, arms, masks, **sizes)


REFUSED = {
    "there is no level 9": lambda: steering.grid(MODEL, vectors=[0], levels=[0, 9], strengths=[1.0]),
    "a grid needs at least one of its levels": lambda: steering.grid(MODEL, vectors=[0], levels=[], strengths=[1.0]),
    "positions are steered by last, all, after_prompt; got `first`": lambda: steering.position_masks(
        PROMPTS, ["first"]
    ),
    "positions are steered by last, all, after_prompt; got none": lambda: steering.position_masks(PROMPTS, []),
    "row 2 has 5 tokens; it cannot be steered from 5 on": lambda: steering.position_masks(
        PROMPTS, ["after_prompt"], start=np.array([0, 0, 5, 0], np.int32)
    ),
    r"vectors need the shape \[n, 48\], or \[n, 3, 48\]": lambda: answers_of(vectors=VECTORS[:, :2]),
    "masks need an entry for every token": lambda: answers_of(masks=MASKS[:, :, :-1]),
    "the choices of row 3 must be of the 64 tokens; got 64": lambda: answers_of(
        prompts=PROMPTS._replace(choices=PROMPTS.choices + (PROMPTS.choices == 63))
    ),
    "width must be at least 1": lambda: answers_of(width=0),
    "chunk must be at least 1": lambda: answers_of(chunk=0),
    "as many levels as there are norms": lambda: steering.scaled(VECTORS, np.ones(2, np.float32)),
    "bounds must be positive and ascending": lambda: steering.match_kl(len, np.ones(1), bounds=(1.0, 0.1)),
    "target must be a positive number": lambda: steering.match_kl(len, np.zeros(1)),
    "cost must give the divergence of 2 arms": lambda: steering.match_kl(lambda s: np.ones(3), np.ones(2)),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(sentence):
    with pytest.raises(InvalidInput, match=sentence):
        REFUSED[sentence]()


def test_a_step_on_another_tree_is_refused():
    with pytest.raises(TreeMismatch, match="embedding"):
        steering.stepped_text(MODEL, PARAMS, DELTA | {"embedding": jnp.zeros(3)}, np.ones(1, np.float32), TEXT)
