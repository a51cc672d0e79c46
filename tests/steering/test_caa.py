"""Contrast vectors against the published formulas on recorded streams, their files, and a trained model's."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lacuna import models
from lacuna.checkpoints import BadCheckpoint, load_hf, load_tokenizer
from lacuna.errors import InvalidInput
from lacuna.steering import Read, SteeringVectors, caa, load_vectors, paired, save_vectors, statement
from lacuna.tasks import Prompts, Question, Spans, pair_spans

RANDOM = np.random.default_rng(0)
NUM_LEVELS, NUM_ROWS, LENGTH, WIDTH = 4, 23, 9, 6

RECORDED = (RANDOM.normal(size=(NUM_LEVELS, 2 * NUM_ROWS, LENGTH, WIDTH)) + 3).astype(np.float32)
"""Streams of the rows 0 .. 2 NUM_ROWS - 1: the second half is for the negative answers."""


def replay(params, tokens, *, taps, shift=0.0):
    """A model that gives the recorded stream of the row that its first token names."""
    assert taps == "all"
    resid = params["recorded"][:, tokens[:, 0], : tokens.shape[1]] + shift
    return models.Output(jnp.zeros((*tokens.shape, 2)), resid)


MODEL = models.Model(None, lambda key: {}, replay, lambda name: False)
PARAMS = {"recorded": jnp.asarray(RECORDED)}


def ragged(first, length=LENGTH):
    """Rows whose first token is their number, of other lengths each, with answers of one to three tokens."""
    end = RANDOM.integers(6, length + 1, NUM_ROWS).astype(np.int32)
    start = end - RANDOM.integers(1, 4, NUM_ROWS).astype(np.int32)
    tokens = RANDOM.integers(1, 9, (NUM_ROWS, length)).astype(np.int32)
    tokens[:, 0] = first + np.arange(NUM_ROWS)
    return Spans(tokens, start, end, start)


POSITIVE, NEGATIVE = ragged(0), ragged(NUM_ROWS, length=LENGTH - 1)
RIGHT = RANDOM.integers(0, 2, NUM_ROWS).astype(np.int32)
PROMPTS = Prompts(POSITIVE.tokens, POSITIVE.end, np.ones((NUM_ROWS, 2), np.int32), RIGHT)


def read_at(at, first=0):
    """The recorded stream of each row at a position of its own, float64 [levels, rows, D]."""
    return RECORDED[:, first + np.arange(NUM_ROWS), at].astype(np.float64)


def test_a_statement_contrast_is_the_difference_of_the_two_means():
    found = statement(MODEL, PARAMS, PROMPTS, read=Read(back=(0, 2)))
    assert (found.num_positive, found.num_negative) == ((RIGHT == 0).sum(), (RIGHT == 1).sum())
    assert (found.kind, found.normalise, found.dtype) == ("statement", "none", "float32")
    for place, back in enumerate((0, 2)):
        rows = read_at(PROMPTS.length - 1 - back)
        wanted = rows[:, RIGHT == 0].mean(1) - rows[:, RIGHT == 1].mean(1)
        np.testing.assert_allclose(found.vectors[:, place], wanted, rtol=0, atol=1e-6)


def test_a_paired_contrast_at_minus_two_is_the_published_one():
    """`generate_vectors.py` of CAA: the mean of h_pos[-2] - h_neg[-2]."""
    wanted = np.mean(
        [
            RECORDED[:, i, POSITIVE.end[i] - 2].astype(np.float64)
            - RECORDED[:, NUM_ROWS + i, NEGATIVE.end[i] - 2].astype(np.float64)
            for i in range(NUM_ROWS)
        ],
        axis=0,
    )
    found = paired(MODEL, PARAMS, POSITIVE, NEGATIVE, read=Read("index", index=-2))
    assert (found.kind, found.num_positive, found.num_negative) == ("paired", NUM_ROWS, NUM_ROWS)
    np.testing.assert_allclose(found.vectors[:, 0], wanted, rtol=0, atol=1e-6)


def test_a_paired_contrast_at_minus_one_is_the_mean_aggregator():
    """`mean_aggregator` of steering-vectors: the mean of pos_acts - neg_acts at the last token, not normalised."""
    pos_acts, neg_acts = read_at(POSITIVE.end - 1), read_at(NEGATIVE.end - 1, NUM_ROWS)
    found = paired(MODEL, PARAMS, POSITIVE, NEGATIVE, read=Read("index", index=-1))
    np.testing.assert_allclose(found.vectors[:, 0], (pos_acts - neg_acts).mean(1), rtol=0, atol=1e-6)


def test_a_paired_contrast_over_the_answers_takes_each_answer_whole():
    found = paired(MODEL, PARAMS, POSITIVE, NEGATIVE, read=Read("answer_mean"))

    def mean(spans, first):
        spans = zip(range(NUM_ROWS), spans.start, spans.end, strict=True)
        return np.mean([RECORDED[:, first + i, a:b].astype(np.float64).mean(1) for i, a, b in spans], axis=0)

    wanted = mean(POSITIVE, 0) - mean(NEGATIVE, NUM_ROWS)
    np.testing.assert_allclose(found.vectors[:, 0], wanted, rtol=0, atol=1e-6)


def test_norms_are_the_mean_norms_of_what_was_read():
    rows = np.stack([read_at(PROMPTS.length - 1), read_at(PROMPTS.length - 2)], axis=2)
    found = statement(MODEL, PARAMS, PROMPTS, read=Read(back=(0, 1)), batch_size=5)
    np.testing.assert_allclose(found.norms, np.linalg.norm(rows, axis=-1).mean((1, 2)), rtol=1e-6)
    both = np.concatenate([read_at(POSITIVE.start), read_at(NEGATIVE.start, NUM_ROWS)], axis=1)
    found = paired(MODEL, PARAMS, POSITIVE, NEGATIVE, batch_size=5)
    np.testing.assert_allclose(found.norms, np.linalg.norm(both, axis=-1).mean(1), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 22, 23, 100])
def test_the_batch_size_does_not_matter(batch_size):
    one, other = (statement(MODEL, PARAMS, PROMPTS, batch_size=size) for size in (batch_size, 32))
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=0, atol=1e-6)
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-6)
    one, other = (paired(MODEL, PARAMS, POSITIVE, NEGATIVE, batch_size=size) for size in (batch_size, 32))
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=0, atol=1e-6)


def test_all_batches_and_both_sides_run_one_program():
    before = caa._read._cache_size()
    paired(MODEL, PARAMS, POSITIVE, NEGATIVE, batch_size=6)
    assert caa._read._cache_size() == before + 1
    statement(MODEL, PARAMS, PROMPTS, batch_size=6)
    assert caa._read._cache_size() == before + 1


def test_options_reach_the_model():
    plain, shifted = (statement(MODEL, PARAMS, PROMPTS, **options) for options in ({}, {"shift": jnp.float32(100)}))
    assert np.all(shifted.norms > plain.norms + 100)


def test_normalised_vectors_have_norm_one_or_that_of_the_stream():
    plain, unit, stream = (statement(MODEL, PARAMS, PROMPTS, normalise=how) for how in ("none", "unit", "stream"))
    length = np.linalg.norm(plain.vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit.vectors, plain.vectors / length, rtol=1e-5)
    np.testing.assert_allclose(stream.vectors, unit.vectors * plain.norms[:, None, None], rtol=1e-5)
    assert (unit.normalise, stream.normalise) == ("unit", "stream")


@pytest.mark.parametrize("normalise", ["none", "unit", "stream"])
def test_prompts_that_are_read_alike_differ_by_exactly_zero(normalise):
    """As where all prompts end with one word: level 0 of a model without learned positions."""
    alike = {"recorded": jnp.broadcast_to(PARAMS["recorded"][:, :1, :1], RECORDED.shape)}
    found = statement(MODEL, alike, PROMPTS, normalise=normalise, batch_size=5)
    assert not found.vectors.any()


def test_a_contrast_needs_both_labels():
    with pytest.raises(InvalidInput, match="a contrast needs prompts of both labels; got 0 positive and 23 others"):
        statement(MODEL, PARAMS, PROMPTS._replace(right=np.ones(NUM_ROWS, np.int32)))
    with pytest.raises(InvalidInput, match="got 23 positive and 0 others"):
        statement(MODEL, PARAMS, PROMPTS._replace(right=np.zeros(NUM_ROWS, np.int32)))


def test_a_pair_needs_both_answers():
    with pytest.raises(InvalidInput, match="a pair needs a row with either answer; got 23 positive and 22 others"):
        paired(MODEL, PARAMS, POSITIVE, Spans(*(x[1:] for x in NEGATIVE)))


def test_a_batch_needs_rows():
    with pytest.raises(InvalidInput, match="a batch needs at least one row; got batch_size=0"):
        statement(MODEL, PARAMS, PROMPTS, batch_size=0)


def test_a_stream_that_is_not_finite_is_refused_by_its_row():
    recorded = PARAMS["recorded"].at[2, 7].set(jnp.nan)
    with pytest.raises(InvalidInput, match="that of row 7 is not at level 2"):
        statement(MODEL, {"recorded": recorded}, PROMPTS, batch_size=5)


def test_only_levels_and_places_that_are_there_have_a_vector():
    found = statement(MODEL, PARAMS, PROMPTS, read=Read(back=(0, 1)))
    np.testing.assert_array_equal(found.at(3, 1), found.vectors[3, 1])
    for level in (-1, 4):
        with pytest.raises(InvalidInput, match=f"level must be one of 0 to 3; got {level}"):
            found.at(level)
    with pytest.raises(InvalidInput, match="place must be one of 0 to 1; got 2"):
        found.at(0, 2)


SAVED = SteeringVectors(
    np.asarray([[[1 / 3, -0.0, 1e-42, np.inf]]], np.float32).repeat(2, axis=0),
    np.asarray([0.1, 7], np.float32),
    kind="statement",
    read=Read("index", index=-2, back=(0, 3)),
    normalise="stream",
    num_positive=3,
    num_negative=4,
    dtype="bfloat16",
    template="{passage}\nFrage: „{question}“ 🎈",
    tokenizer="0a1b",
    model_name="someone/model",
)


def test_saved_vectors_come_back_to_the_bit(tmp_path):
    path = save_vectors(tmp_path / "deep" / "vectors.safetensors", SAVED)
    found = load_vectors(path)
    assert found.vectors.tobytes() == SAVED.vectors.tobytes()
    assert found.norms.tobytes() == SAVED.norms.tobytes()
    arrays = {"vectors": None, "norms": None}
    assert vars(found) | arrays == vars(SAVED) | arrays
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_reference_reads_a_file_of_vectors(tmp_path):
    path = save_vectors(tmp_path / "vectors.safetensors", SAVED)
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors"), SAVED.vectors)
        about = json.loads(file.metadata()["about"])
    assert about["template"] == SAVED.template
    assert about["template_digest"] == SAVED.template_digest


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = save_vectors(tmp_path / "vectors.safetensors", SAVED)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed = tmp_path / f"vectors.safetensors.{platform.node()}.{ended.pid}.0a.partial"
    killed.write_bytes(b"of a run that was killed")
    living = tmp_path / f"vectors.safetensors.{platform.node()}.{os.getpid()}.0a.partial"
    living.write_bytes(b"of one that is not")
    save_vectors(path, replace(SAVED, num_positive=5))
    assert load_vectors(path).num_positive == 5

    def full_disk(file, *arguments, **options):
        file.write_bytes(b"the beginn")
        raise OSError("no space left")

    monkeypatch.setattr(caa, "write", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_vectors(path, SAVED)
    assert load_vectors(path).num_positive == 5
    assert sorted(tmp_path.iterdir()) == [path, living]


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = save_vectors(tmp_path / "vectors.safetensors", SAVED)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(BadCheckpoint, match=r"must be a whole safetensors file; got"):
        load_vectors(path)
    for at in (len(whole) - 9, whole.index(b"bfloat16"), whole.index(rb"\\ud83c")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InvalidInput, match="as it was written; got another content than its digest is of"):
            load_vectors(path)


def test_a_foreign_file_is_one_sentence(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(InvalidInput, match="must be a file of steering vectors; got no such file"):
        load_vectors(path)
    save_file({"head": np.zeros(3, np.float32)}, path)
    with pytest.raises(InvalidInput, match="must be a file of steering vectors; got one of `head`"):
        load_vectors(path)
    save_file({}, path, {caa._SCHEMA_KEY: "2"})
    with pytest.raises(InvalidInput, match="must be a file of steering vectors of schema 1; got 2"):
        load_vectors(path)


PROMPT = "{name} {verb} the {thing}. {name} was very"
TEXTS = [
    PROMPT.format(name=name, verb=verb, thing=thing)
    for name in ("Lily", "Tom")
    for verb in ("found", "lost")
    for thing in ("ball", "toy car")
]


@pytest.fixture(scope="module")
def trained(data):
    folder = data / "tiny_ckpt"
    if not folder.is_dir():
        pytest.skip(f"the trained checkpoint is not at {folder}")
    tokenizer = load_tokenizer(folder / "tokenizer")
    questions = [Question(text, (" happy", " sad"), int("lost" in text)) for text in TEXTS]
    pairs = pair_spans(
        questions, lambda text: tokenizer(text, add_special_tokens=False).input_ids, max_length=64, begin=1
    )
    return *load_hf(folder / "hf"), *pairs


def test_the_embedding_output_at_the_label_is_the_difference_of_two_embeddings(trained):
    """A built-in confound: whatever the prompts say, level 0 is what the two letters or words are."""
    model, params, positive, negative = trained
    a, b = (np.unique(side.tokens[np.arange(len(TEXTS)), side.label]) for side in (positive, negative))
    assert len(a) == len(b) == 1
    assert len(set(positive.end - positive.start)) == 1
    found = paired(model, params, positive, negative, batch_size=3)
    embedding = np.asarray(params["embedding"])
    np.testing.assert_array_equal(found.at(0), (embedding[a] - embedding[b])[0])
    assert np.all(np.linalg.norm(found.vectors[1:], axis=-1) > 0)


def test_a_trained_model_gives_the_difference_of_means_of_its_own_stream(trained):
    model, params, positive, _ = trained
    right = np.asarray(["lost" in text for text in TEXTS], np.int32)
    prompts = Prompts(positive.tokens, positive.start, np.zeros((len(TEXTS), 2), np.int32), right)
    found = statement(model, params, prompts, batch_size=3)
    assert found.vectors.shape == (model.spec.num_layers + 1, 1, model.spec.width)
    tapped = model.apply(params, jnp.asarray(prompts.tokens), taps=jnp.asarray(prompts.length - 1)).resid
    rows = np.asarray(tapped, np.float64)
    wanted = rows[:, right == 0].mean(1) - rows[:, right == 1].mean(1)
    np.testing.assert_allclose(found.vectors[:, 0], wanted, rtol=0, atol=2e-6 * np.abs(rows).max())
    assert not found.at(0).any()  # all of them end with the same word
