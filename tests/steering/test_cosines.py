"""Cosines of a labelled step's shift with a contrast, and the shortcut that makes shuffled labels a matrix product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_contrast

from lacuna import models, steering
from lacuna.errors import InvalidInput
from lacuna.steering import cosines
from lacuna.steering.margins import label_weights

READ = steering.Read(back=(0, 3))


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):  # at the embedding some prompts end alike: nothing is different there
        return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def relabelled(prompts, positive):
    return prompts._replace(right=np.where(positive, 0, 1).astype(np.int32))


def direct(tiny, fit, held_out, *, step_labels, contrast_labels):
    """The three readouts for one labelling of the step and one of the contrast: a gradient and a pushforward each."""
    step = steering.label_step(tiny.margin, tiny.params, relabelled(fit, step_labels))
    read = steering.reading(tiny.stream, held_out.tokens, READ.weights(held_out.spans))
    shift = np.moveaxis(np.asarray(steering.pushforward(read, tiny.params, step)), 1, 0)
    own = np.moveaxis(np.asarray(jax.jit(tiny.stream)(tiny.params, fit.tokens, weights=READ.weights(fit.spans))), 1, 0)
    contrast = own[contrast_labels].mean(0) - own[~contrast_labels].mean(0)
    apart = shift[held_out.positive].mean(0) - shift[~held_out.positive].mean(0)
    return {
        "mean": cosine(shift.mean(0), contrast),
        "class_difference": cosine(apart, contrast),
        "per_prompt": cosine(shift, contrast).mean(0),
    }


@pytest.mark.parametrize("name", tiny_contrast.SPECS)
def test_the_shortcut_is_the_direct_computation(name):
    """For the true labels and for shuffled ones, of the gradient alone and of gradient and contrast together."""
    tiny = tiny_contrast.tiny(name)
    fit, held_out = tiny_contrast.prompts(10, seed=1), tiny_contrast.prompts(7, seed=2)
    found = steering.cosine_map(
        tiny.margin, tiny.stream, tiny.params, fit, held_out, read=READ, num_shuffled=3, seed=5, batch_size=3
    )
    shuffled = steering.shuffled_labels(fit.positive, 3, seed=5)
    for i, labels in enumerate([fit.positive, *shuffled]):
        gradient = direct(tiny, fit, held_out, step_labels=labels, contrast_labels=fit.positive)
        pipeline = direct(tiny, fit, held_out, step_labels=labels, contrast_labels=labels)
        for readout in ("mean", "class_difference", "per_prompt"):
            for wanted, which in ((gradient, "gradient"), (pipeline, "pipeline")):
                null = found.nulls[readout, which]
                value = null.observed if i == 0 else null.values[i - 1]
                np.testing.assert_allclose(value[1:], wanted[readout][1:], atol=1e-4)  # differences of float32 sums


def test_what_is_expected_of_shuffled_labels_is_their_mean():
    tiny = tiny_contrast.tiny("qwen2")
    fit, held_out = tiny_contrast.prompts(8, seed=1, num_positive=3), tiny_contrast.prompts(6, seed=2)
    found = steering.cosine_map(tiny.margin, tiny.stream, tiny.params, fit, held_out, read=READ, num_shuffled=2)
    read = steering.reading(tiny.stream, held_out.tokens, READ.weights(held_out.spans))
    shifts = np.asarray(steering.example_shifts(tiny.margin, read, tiny.params, fit).shifts).mean(axis=2)
    margins = tiny.margin(tiny.params, fit.tokens, length=fit.length, choices=fit.choices)
    every = [np.isin(np.arange(8), chosen) for chosen in _triples(8)]  # all labellings with three positive
    expected = np.mean([np.asarray(label_weights(margins, jnp.asarray(labels))) for labels in every], axis=0)
    wanted = found.mean_shift - np.einsum("n,nlqd->lqd", expected, shifts)
    np.testing.assert_allclose(found.subtracted["mean"], cosine(wanted, found.contrast), atol=1e-4)


def _triples(n):
    return [(i, j, k) for i in range(n) for j in range(i) for k in range(j)]


def test_shuffled_groups_of_different_sizes_are_each_as_likely_to_be_positive():
    """What is expected of all five labellings that have one of the groups positive."""
    tiny = tiny_contrast.tiny("qwen2")
    groups = np.asarray([4, 4, 4, 4, 0, 1, 2, 3])
    fit, held_out = relabelled(tiny_contrast.prompts(8, seed=1), groups == 4), tiny_contrast.prompts(6, seed=2)
    found = steering.cosine_map(
        tiny.margin, tiny.stream, tiny.params, fit, held_out, read=READ, num_shuffled=2, groups=groups
    )
    read = steering.reading(tiny.stream, held_out.tokens, READ.weights(held_out.spans))
    margins, shifts = steering.example_shifts(tiny.margin, read, tiny.params, fit)
    expected = np.mean([np.asarray(label_weights(margins, jnp.asarray(groups == one))) for one in range(5)], axis=0)
    wanted = found.mean_shift - np.einsum("n,nlqd->lqd", expected, np.asarray(shifts).mean(axis=2))
    np.testing.assert_allclose(found.subtracted["mean"], cosine(wanted, found.contrast), atol=1e-4)


@pytest.mark.parametrize("name", tiny_contrast.SPECS)
def test_prompts_that_end_alike_have_no_contrast_at_the_embedding(name):
    """Not one of rounding, whose cosine would be any number at all."""
    tiny = tiny_contrast.tiny(name)

    def ending(prompts):
        at_end = np.arange(9) == prompts.length[:, None] - 1
        return prompts._replace(tokens=np.where(at_end, 7, prompts.tokens).astype(np.int32))

    fit, held_out = (tiny_contrast.prompts(n, seed=n, num_positive=3) for n in (11, 5))
    if name == "gpt2":  # whose embedding knows positions
        fit, held_out = (rows._replace(length=np.full(len(rows.right), 9, np.int32)) for rows in (fit, held_out))
    found = steering.cosine_map(tiny.margin, tiny.stream, tiny.params, ending(fit), ending(held_out), num_shuffled=9)
    assert not found.contrast[0].any()
    for null in found.nulls.values():
        assert np.isnan(null.observed[0]).all()
        assert np.isnan(null.values[:, 0]).all()
        assert np.isfinite(null.observed[1:]).all()


def test_a_cosine_does_not_know_how_small_the_step_is():
    """A model so sure of its labels that what is left of the gradient has a square that float32 has not."""
    positive = jnp.arange(6) < 3
    sure = jnp.where(positive, 60.0, -60.0)
    raw = cosines._combined(label_weights(sure, positive)[None], jnp.eye(6)[:, :4])
    assert 0 < float(jnp.max(jnp.abs(raw))) < 1e-20
    found = cosines._cosine(raw, jnp.ones(4))
    np.testing.assert_allclose(found, cosine(raw, np.ones(4)), rtol=1e-6)


def test_frozen_leaves_take_no_part():
    tiny = tiny_contrast.tiny("qwen2")
    fit, held_out = tiny_contrast.prompts(6, seed=1), tiny_contrast.prompts(4, seed=2)
    found = steering.cosine_map(
        tiny.margin, tiny.stream, tiny.params, fit, held_out, num_shuffled=2, moving="layers/.*"
    )
    assert not found.mean_shift[0].any()
    step = steering.restricted(steering.label_step(tiny.margin, tiny.params, fit), "layers/.*")
    read = steering.reading(tiny.stream, held_out.tokens, steering.Read().weights(held_out.spans))
    wanted = np.asarray(steering.pushforward(read, tiny.params, step)).mean(axis=1)
    np.testing.assert_allclose(found.mean_shift, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_shortcut_holds_for_an_adapter():
    tiny = tiny_contrast.tiny("gpt2")
    spec = models.lora_spec(tiny.model, rank=2, sites="mlp/.*")
    factors = jax.tree.map(lambda x: x + 0.05, spec.init(jax.random.key(0)))
    margin, stream = (
        models.over_adapter(function, tiny.model, tiny.params, spec)
        for function in (steering.choice_margin, steering.read_stream)
    )
    fit, held_out = tiny_contrast.prompts(6, seed=1), tiny_contrast.prompts(4, seed=2)
    found = steering.cosine_map(margin, stream, factors, fit, held_out, read=READ, num_shuffled=2)
    adapted = tiny_contrast.Tiny(tiny.model, factors, stream, margin)
    wanted = direct(adapted, fit, held_out, step_labels=fit.positive, contrast_labels=fit.positive)
    np.testing.assert_allclose(
        found.nulls["class_difference", "gradient"].observed[1:], wanted["class_difference"][1:], atol=2e-5
    )


def test_a_step_of_the_labels_is_minus_their_losses_gradient():
    """Against the definition by logits, and against the weights of the margins."""
    tiny = tiny_contrast.tiny("synthetic")
    rows = tiny_contrast.prompts(6, seed=1)

    def loss(params):
        logits = tiny.model.apply(params, jnp.asarray(rows.tokens)).logits
        last = logits[np.arange(6), rows.length - 1]
        gap = last[:, 4] - last[:, 17]
        return -jnp.mean(jax.nn.log_sigmoid(jnp.where(rows.right == 0, gap, -gap)))

    step = steering.label_step(tiny.margin, tiny.params, rows)
    value, slopes = jax.jit(jax.value_and_grad(loss))(tiny.params)
    for found, slope in zip(jax.tree.leaves(step), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(found, -slope, atol=1e-6 * np.abs(slope).max())
    np.testing.assert_allclose(
        jax.jit(steering.label_loss, static_argnums=0)(tiny.margin, tiny.params, rows), value, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_margin_is_the_difference_of_two_logits_behind_the_prompt(name):
    tiny = tiny_contrast.tiny(name)
    rows = tiny_contrast.prompts(6)
    logits = np.asarray(tiny.model.apply(tiny.params, jnp.asarray(rows.tokens)).logits)
    last = logits[np.arange(6), rows.length - 1]
    found = tiny.margin(tiny.params, rows.tokens, length=rows.length, choices=rows.choices)
    np.testing.assert_allclose(found, last[:, 4] - last[:, 17], atol=1e-4)


def test_the_unembedding_difference_is_of_the_heads_columns():
    for name in ("gpt2", "qwen2"):
        tiny = tiny_contrast.tiny(name)
        head = tiny.params["embedding"].T if name == "gpt2" else tiny.params["head"]["kernel"]
        found = steering.unembedding_difference(tiny.params, tiny_contrast.prompts(3).choices)
        np.testing.assert_allclose(found, head[:, 4] - head[:, 17], rtol=1e-6)
        with pytest.raises(InvalidInput, match=r"choices must be two of 23 tokens for each prompt; got \[\[4, 23\]\]"):
            steering.unembedding_difference(tiny.params, np.asarray([[4, 23]], np.int32))


def test_what_is_no_contrast_is_refused():
    tiny = tiny_contrast.tiny("qwen2")
    rows, one = tiny_contrast.prompts(4), tiny_contrast.prompts(4, num_positive=0)
    with pytest.raises(InvalidInput, match="both labels; got 0 positive of 4"):
        steering.cosine_map(tiny.margin, tiny.stream, tiny.params, rows, one)
    with pytest.raises(InvalidInput, match="both labels; got 0 positive of 4"):
        steering.label_step(tiny.margin, tiny.params, one)
    three = rows._replace(choices=np.zeros((4, 3), np.int32))
    with pytest.raises(InvalidInput, match="two answers; got 3"):
        steering.label_step(tiny.margin, tiny.params, three)
    beyond = rows._replace(choices=np.where(np.arange(4)[:, None] == 2, 23, rows.choices).astype(np.int32))
    with pytest.raises(InvalidInput, match="margins of all prompts must be finite; that of row 2 is not"):
        steering.cosine_map(tiny.margin, tiny.stream, tiny.params, beyond, rows, num_shuffled=2)
    with pytest.raises(InvalidInput, match="num_shuffled must be at least 2"):
        steering.cosine_map(tiny.margin, tiny.stream, tiny.params, rows, rows, num_shuffled=1)


NAMES = ("Lily", "Tim", "Tom", "Anna", "Ben", "Mia")
SAD = ("lost the toy", "fell down and hurt a knee", "broke the toy", "could not find the dog", "dropped the cake")
HAPPY = ("found the toy", "got a new ball", "loved to play with the dog", "ate a big cake", "went to the park")


def feelings(encode, chosen):
    from lacuna.tasks import Question, prompt_rows

    made = [
        Question(f"{name} {event}. {name} was very", (" happy", " sad"), right)
        for right, events in enumerate((HAPPY, SAD))
        for event in events[chosen]
        for name in NAMES
    ]
    return prompt_rows(made, encode, max_length=128, begin=1, first_piece=True)


def test_on_a_trained_model_shuffled_labels_have_a_large_cosine_too(data):
    """The trap: the null of a cosine is not centred at zero, so that a cosine alone says nothing."""
    from lacuna.checkpoints import load_hf, load_tokenizer

    folder = data / "tiny_ckpt"
    if not folder.exists():
        pytest.skip(f"the trained checkpoint is not at {folder}")
    model, params = load_hf(folder / "hf", dtype=jnp.float32)
    encode = partial(load_tokenizer(folder / "tokenizer").encode, add_special_tokens=False)
    fit, held_out = feelings(encode, slice(0, 3)), feelings(encode, slice(3, 5))
    found = steering.cosine_map(
        partial(steering.choice_margin, model), partial(steering.read_stream, model), params, fit, held_out,
        num_shuffled=100, moving="(?!embedding).*",
    )  # fmt: skip
    mean = found.nulls["mean", "gradient"]
    apart = found.nulls["class_difference", "gradient"]
    for null in (mean, apart):
        far = np.abs(null.mean[-1]) / null.deviation[-1]
        assert far > 3
        assert np.abs(null.mean[-1]) > 0.3
