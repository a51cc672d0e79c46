"""The scatter between tasks of language models: what was planted is found, noise alone is not, and the rule says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language_models, language_spectrum, spectrum_judged, spectrum_shown, task_scatter
from experiments.language_models import PYTHON, LanguageModelSpec
from experiments.language_spectrum import Config, drawn, kind, scatter_measures
from experiments.recoveries import value_at
from lacuna import derivatives, geometry, models
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record
from lacuna.tasks import mappings
from lacuna.tasks.task import Batch

NUM_TASKS, NUM_BATCHES, SIZE = 8, 6, 400
CONFIG = Config(num_batches=NUM_BATCHES, num_permutations=200, num_bootstraps=20)


def planted(seed, *, rank, signal, noise=1.0, parts=2):
    """Gram matrices of two parts: the task means of the first differ in `rank` directions, those of the last do not."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(NUM_TASKS, rank)) @ np.linalg.qr(rng.normal(size=(SIZE, rank)))[0].T
    labels, _ = task_scatter.halves(NUM_TASKS, NUM_BATCHES)
    products = []
    for part in range(parts):
        rows = rng.normal(size=SIZE) / np.sqrt(SIZE) + noise * rng.normal(size=(len(labels), SIZE)) / np.sqrt(SIZE)
        rows = rows + (signal * means[labels] if part == 0 else 0)
        products.append(rows @ rows.T)
    groups = (("mlp up", 1), ("norms", 2))
    return geometry.Grams(groups[:parts], np.stack(products), np.zeros((parts, len(labels), len(labels))))


def measured(num_seeds=5, **options):
    """Records of a run whose gradients are planted; all of its tasks are mappings, or half of them."""
    found = []
    for seed in range(num_seeds):
        grams, rng = planted(seed, **options), np.random.default_rng(seed)
        for tasks, is_mapping in (("mappings", np.ones(NUM_TASKS)), ("all", np.arange(NUM_TASKS) % 2)):
            where = {"seed": seed, "model": "toy", "arm": "lora"}
            for quantity, value, place in scatter_measures(CONFIG, grams, is_mapping, {"tasks": tasks}, rng):
                found.append(Record(language_spectrum.NAME, quantity, value, "1", {**where, **place}))
    return found


def verdicts(records):
    """Of the mappings alone, raw and normalised."""
    return [row.verdict for row in spectrum_judged.claims(records, CONFIG) if "mappings" in row.claim]


MAPPINGS = {"tasks": "mappings", "scaling": "raw"}


def test_tasks_that_differ_in_few_directions_are_reproduced():
    records = measured(rank=2, signal=1.0)
    assert verdicts(records) == [claims.REPRODUCED] * 2
    assert 1 < claims.spread(records, "participation_ratio", **MAPPINGS).mean < 2.3


def test_tasks_that_differ_in_all_directions_are_not():
    records = measured(rank=NUM_TASKS * 4, signal=1.0)
    assert verdicts(records) == [claims.NOT_REPRODUCED] * 2
    assert max(claims.spread(records, "p_value", **MAPPINGS).values) < 0.01


def test_tasks_that_do_not_differ_are_not_however_few_directions_their_noise_has():
    records = measured(rank=1, signal=0.0)
    assert verdicts(records) == [claims.NOT_REPRODUCED] * 2
    assert "not to be told from sampling noise" in spectrum_judged.claims(records, CONFIG)[0].control
    # The participation ratio alone would have passed.
    assert claims.spread(records, "participation_ratio", **MAPPINGS).mean < NUM_TASKS / 2


def test_fewer_seeds_than_five_have_no_verdict():
    assert verdicts(measured(rank=2, signal=1.0, num_seeds=4)) == [claims.TOO_SMALL] * 2


def test_an_obvious_contrast_alone_fails_its_control():
    """Texts and mappings far apart, and nothing else: few directions, but not such as the claim is about."""
    records = []
    for tasks, contrast in (("all", 0.9), ("mappings", None)):
        for scaling in ("raw", "normalised"):
            at = {"tasks": tasks, "scaling": scaling, "model": "toy", "arm": "full"}
            values = {"p_value": 0.0025, "participation_ratio": 1.1, "share_of_energy": 0.3, "energy": 1.0}
            values |= {"participation_ratio_low": 1.0, "participation_ratio_high": 1.2}
            values |= {"share_of_contrast": contrast} if contrast else {}
            for seed in range(5):
                for name, value in values.items():
                    for i in range(1, 9 if name == "energy" else 2):
                        records.append(Record("x", name, value, "1", {"seed": seed, **at, "i": i}))
    rows = spectrum_judged.claims(records, CONFIG)
    assert [row.verdict for row in rows] == [claims.CONTROL_FAILS] * 2 + [claims.REPRODUCED] * 2
    assert "texts against digits hold 0.9" in rows[0].control


def test_p_values_of_noise_are_uniform_and_those_of_parts_are_corrected():
    labels, half = task_scatter.halves(NUM_TASKS, NUM_BATCHES)
    rng, whole, any_part, alone = np.random.default_rng(0), [], [], []
    for seed in range(60):
        shuffles = [task_scatter.permuted(labels, half, rng) for _ in range(99)]
        grams = planted(seed, rank=1, signal=0.0, parts=2).products
        several = np.concatenate([grams, planted(1000 + seed, rank=1, signal=0.0).products])
        whole.append(task_scatter.scatter(grams[0], labels, half, shuffles).p_value)
        parts = task_scatter.scatter_of_parts(several, labels, half, shuffles)
        any_part.append(parts.p_adjusted.min())
        alone.append(parts.p_value.min())
    assert 0.38 < np.mean(whole) < 0.62
    for level in (0.1, 0.5):
        slack = 3 * np.sqrt(level * (1 - level) / 60)
        assert abs(np.mean(np.asarray(whole) <= level) - level) < slack
        assert abs(np.mean(np.asarray(any_part) <= level) - level) < slack
    assert np.mean(np.asarray(alone) <= 0.5) > 0.8  # the best of four without the correction


def test_parts_are_found_where_they_were_planted():
    records = measured(rank=2, signal=1.0, num_seeds=1)

    def of(quantity, kind):
        return claims.spread(
            records, f"part_{quantity}", tasks="mappings", scaling="normalised", cut="kind", kind=kind
        ).mean

    assert of("p_adjusted", "mlp up") < 0.01 < 0.05 < of("p_adjusted", "norms")
    assert of("share", "mlp up") > 0.1 > abs(of("share", "norms"))


def test_the_scatter_is_that_of_the_definition():
    """Against numpy on the rows themselves: the means of either half, centred over the tasks."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(NUM_TASKS * NUM_BATCHES, 50)) + np.repeat(rng.normal(size=(NUM_TASKS, 50)), NUM_BATCHES, 0)
    labels, half = task_scatter.halves(NUM_TASKS, NUM_BATCHES)
    first, second = (
        np.stack([rows[(labels == task) & (half == h)].mean(axis=0) for task in range(NUM_TASKS)]) for h in (0, 1)
    )
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    found = task_scatter.scatter(rows @ rows.T, labels, half, [labels])
    np.testing.assert_allclose(found.share, NUM_BATCHES * np.sum(first * second) / np.sum(rows**2))
    within = task_scatter.scatter_of_parts((rows @ rows.T)[None], labels, half, [labels])
    np.testing.assert_allclose(within.share, found.share)
    contrast = (np.arange(NUM_TASKS) > 2).astype(float)
    unit = contrast - contrast.mean()
    expected = (unit @ first) @ (unit @ second) / (unit @ unit) / np.sum(first * second)
    np.testing.assert_allclose(task_scatter.share_along(rows @ rows.T, labels, half, contrast), expected)


def test_batches_drawn_again_stay_in_their_task_and_half():
    labels, half = task_scatter.halves(3, 4)
    rows = task_scatter.resampled(labels, half, np.random.default_rng(0))
    np.testing.assert_array_equal(labels[rows], labels)
    np.testing.assert_array_equal(half[rows], half)
    assert len(set(rows)) < len(rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding", "embedding"),
        ("positions", "embedding"),
        ("head/kernel", "head"),
        ("final_norm/scale", "norms"),
        ("layers/attention_norm/scale", "norms"),
        ("layers/attention/query_norm/scale", "norms"),
        ("layers/attention/qkv/kernel", "attention in"),
        ("layers/attention/value/A", "attention in"),
        ("layers/attention/out/B", "attention out"),
        ("layers/mlp/gate/kernel", "mlp up"),
        ("layers/mlp/down/bias", "mlp down"),
    ],
)
def test_every_leaf_has_its_kind(name, expected):
    assert kind(name) == expected
    assert expected in spectrum_shown.ORDER


SMALL = Config(
    mappings=("sort", "copy"),
    num_batches=2,
    num_rows=3,
    digits=3,
    num_questions=2,
    warm_steps=5,
    base=LanguageModelSpec(texts=PYTHON),
)


def encode(text):
    """A token a character, but digits, letters and arrow with their space."""
    whole = [*mappings.NUMERALS, " ->", *(f" {chr(ord('A') + i)}" for i in range(9))]
    return [1000 + whole.index(text)] if text in whole else [ord(letter) % 1000 for letter in text]


def test_all_batches_have_one_shape_and_share_no_row(monkeypatch):
    monkeypatch.setattr(
        language_models, "read_text", lambda source, spec: [f"{source} {i:05d} " * 4 for i in range(90)]
    )
    base = language_models.Base("toy", None, None, encode)
    given = drawn(SMALL, base, SMALL.base, seed=0)
    assert given.names == ("prose", "code", "sort", "copy")
    assert given.batches.tokens.shape == (4 * 2, 3, 2 * 9)
    assert given.warm.tokens.shape == (5, 3, 2 * 9)
    rows = np.concatenate([given.batches.tokens, given.warm.tokens]).reshape(-1, 18)
    assert len(np.unique(rows, axis=0)) == len(rows)
    counted = np.asarray(given.batches.answer).sum(axis=(1, 2))
    np.testing.assert_array_equal(counted, [3 * 17] * 4 + [3 * 2 * 3] * 4)
    # A row of a mapping begins each question alike, with the letter of its own operation.
    asked = np.asarray(given.batches.tokens)[4:].reshape(2, -1, 9)
    letters, questions = asked[:, :, 1], asked[:, :, 2:5]
    assert [len(set(of_task)) for of_task in letters.tolist()] == [1, 1]
    assert letters[0, 0] != letters[1, 0]
    # The noise of two tasks is independent: they are not asked the same.
    assert np.mean(np.all(questions[0] == questions[1], axis=1)) < 0.3
    again, other = drawn(SMALL, base, SMALL.base, seed=0), drawn(SMALL, base, SMALL.base, seed=1)
    np.testing.assert_array_equal(again.batches.tokens, given.batches.tokens)
    assert np.any(np.asarray(other.batches.tokens) != given.batches.tokens)


def test_a_text_that_is_too_short_is_named(monkeypatch):
    monkeypatch.setattr(language_models, "read_text", lambda source, spec: [f"{source} {i}" * 3 for i in range(60)])
    base = language_models.Base("toy", None, None, encode)
    with pytest.raises(InvalidInput, match="`prose` must fill 900 rows"):
        drawn(Config(**{**vars(SMALL), "num_rows": 225}), base, SMALL.base, seed=0)


def quadratic(params, batch):
    return jnp.sum(params["w"] * jnp.mean(batch.tokens.astype(jnp.float32)) + params["w"] ** 2)


@pytest.mark.parametrize(
    ("gram", "memory_gib", "count"),
    [("auto", 1.0, 6), ("exact", 1e-9, 21), ("auto", 1e-9, 6), ("sketched", 1.0, 6)],
)
def test_gradients_that_do_not_fit_are_computed_again_or_sketched(gram, memory_gib, count):
    params = {"w": jnp.arange(1.0, 400.0)}
    batches = Batch(jnp.arange(6 * 2 * 3).reshape(6, 2, 3), jnp.ones((6, 2, 3), bool))
    model = type("Toy", (), {"stacked": staticmethod(lambda name: False)})
    base = language_models.Base("toy", model, None, encode)
    config = Config(gram=gram, memory_gib=memory_gib, sketch_size=512)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(language_spectrum, "group", lambda name, layer: ("mlp up", 1))
        grams, computed = language_spectrum.gram_of(config, base, quadratic, params, batches, 0, lambda sentence: None)
    slope = np.stack([2 * np.arange(1.0, 400.0) + float(row.mean()) for row in np.asarray(batches.tokens)])
    exact = gram == "exact" or (gram == "auto" and memory_gib == 1.0)
    assert computed == count
    assert grams.variance.any() == (not exact)
    np.testing.assert_allclose(grams.total, slope @ slope.T, rtol=1e-5 if exact else 0.3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mappings": ("sort",)}, "two or more, all different"),
        ({"mappings": ("sort", "swap")}, "swap"),
        ({"num_batches": 3}, "must be even"),
        ({"arms": ()}, "must be named"),
        ({"num_rows": 0}, "num_rows must be at least 1"),
    ],
)
def test_a_bad_configuration_is_refused(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        Config(**options)


def test_a_warm_adapter_has_gradients_of_both_factors_and_is_merged():
    shape = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    model = models.causal_lm(spec_from_config({"model_type": "gpt2", **shape}))
    base = language_models.Base("toy", model, model.init(jax.random.key(0)), encode)
    tokens = jax.random.randint(jax.random.key(1), (4, 2, 6), 0, 40)
    warm = Batch(tokens, jnp.ones(tokens.shape, bool))
    config = Config(warm_steps=4, lora_rank=2, sites="mlp/up")
    at = language_spectrum.points(config, base, warm, seed=0)
    loss, params = at.lora
    one = jax.tree.map(lambda x: x[0], warm)
    slope = derivatives.gradient(loss, params, one)["layers"]["mlp"]["up"]
    assert all(np.abs(factor).max() > 0 for factor in slope.values())
    np.testing.assert_allclose(value_at(loss, params, one), value_at(*at.merged, one), rtol=1e-5)
    assert at.full[1] is base.params
