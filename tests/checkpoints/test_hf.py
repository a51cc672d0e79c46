"""Folders: every tensor is used once, everything wrong is named at once, nothing is invented."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from safetensors.numpy import load_file, save_file

from lacuna.checkpoints import BadCheckpoint, load_hf, load_tokenizer
from lacuna.errors import InvalidInput

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def rewritten(tmp_path):
    """`rewritten(name, change)`: a copy of a golden folder whose tensors went through `change(tensors)`."""

    def rewrite(name, change, **config):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors")
        document = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(document))
        return folder

    return rewrite


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_every_element_of_the_file_is_in_the_tree():
    for name in ("gpt2", "qwen3", "llama"):
        tensors = load_file(GOLDEN / name / "model.safetensors")
        _, params = load_hf(GOLDEN / name)
        theirs = np.sort(np.concatenate([tensor.ravel() for tensor in tensors.values()]))
        np.testing.assert_array_equal(np.sort(oracles.flat(params)), theirs.astype(np.float64))


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_the_prefix_of_the_base_model_may_be_left_out(name, rewritten):
    prefix = {"gpt2": "transformer.", "qwen2": "model."}[name]
    folder = rewritten(name, lambda tensors: {key.removeprefix(prefix): x for key, x in tensors.items()})
    assert oracles.bits(load_hf(folder)[1]) == oracles.bits(load_hf(GOLDEN / name)[1])


def test_buffers_of_older_versions_are_passed_over(rewritten):
    def add(tensors):
        mask = np.tril(np.ones((1, 1, 32, 32), np.float32))
        extra = {f"transformer.h.{i}.attn.{name}": mask for i in range(2) for name in ("bias", "masked_bias")}
        return tensors | extra

    assert oracles.bits(load_hf(rewritten("gpt2", add))[1]) == oracles.bits(load_hf(GOLDEN / "gpt2")[1])


def test_a_tied_head_may_be_in_the_file_if_it_is_the_embedding(rewritten, tmp_path):
    same = rewritten("gpt2", lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]})
    assert oracles.bits(load_hf(same)[1]) == oracles.bits(load_hf(GOLDEN / "gpt2")[1])
    other = rewritten("qwen2", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(BadCheckpoint, match=r"`lm_head.weight` is not the embedding that config.json ties it to"):
        load_hf(other)


UP_0, UP_1 = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
FAULTS = {
    "missing": (lambda t: without(t, UP_1), f"`{UP_1}`: missing"),
    "left over": (lambda t: t | {"model.layers.2.mlp.what": np.ones(3)}, "`model.layers.2.mlp.what`: of no parameter"),
    "another shape": (
        lambda t: t | {"model.norm.weight": np.ones(7, np.float32)},
        r"`model.norm.weight`: of shape \[7\] instead of \[16\]",
    ),
    "transposed": (
        lambda t: t | {UP_0: np.ones((16, 24), np.float32)},
        rf"`{UP_0}`: of shape \[16, 24\] instead of \[24, 16\]",
    ),
    "integers": (lambda t: t | {"model.norm.weight": np.ones(16, np.int8)}, "`model.norm.weight`: of int8"),
    "all at once": (
        lambda t: without(t, "model.norm.weight") | {"what.is.this": np.ones(1, np.float32)},
        "`model.norm.weight`: missing; `what.is.this`: of no parameter",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_the_model_is_refused_by_tensor(rewritten, fault):
    change, message = FAULTS[fault]
    with pytest.raises(BadCheckpoint, match=message):
        load_hf(rewritten("qwen2", change))


def test_an_untied_config_needs_the_head(rewritten):
    with pytest.raises(BadCheckpoint, match=r"`lm_head.weight`: missing"):
        load_hf(rewritten("qwen2", lambda t: t, tie_word_embeddings=False))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_a_file_is_read_in_its_own_precision_or_in_the_one_asked_for(rewritten, dtype):
    folder = rewritten("qwen2", lambda t: {name: np.asarray(x, dtype) for name, x in t.items()})
    own = jnp.float32 if dtype is np.float64 else dtype  # JAX has no float64 unless it is switched on
    for asked, got in ((None, own), (jnp.float32, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        found = load_hf(folder, dtype=asked)[1]
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(got)}
    known = load_hf(GOLDEN / "qwen2")[1]
    for one, other in zip(*map(jax.tree.leaves, (load_hf(folder, dtype=jnp.float32)[1], known)), strict=True):
        np.testing.assert_array_equal(one, np.asarray(np.asarray(other).astype(dtype), np.float32))


def test_a_damaged_file_is_one_sentence(tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(GOLDEN / "qwen2", folder)
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[:-100], whole[:9], b""):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"model.safetensors must be a whole safetensors file"):
            load_hf(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "a model is read from a folder or by its id on the hub; got .*nowhere, which is neither"),
        ({}, "needs config.json, and .* has none; got an empty folder"),
        ({"config.json": "{"}, "config.json is no JSON"),
        ({"config.json": "[]"}, "config.json must hold an object; got list"),
        (
            {"config.json": None, "pytorch_model.bin": ""},
            "weights are not read from a pickle, .*; got pytorch_model.bin in .*save_pretrained",
        ),
    ],
)
def test_a_folder_that_holds_no_model_is_refused(tmp_path, files, message):
    folder = tmp_path / "nowhere"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text((GOLDEN / "gpt2" / name).read_text() if text is None else text)
    with pytest.raises(InvalidInput, match=message):
        load_hf(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"is read from a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"holds no tokenizer"):
        load_tokenizer(tmp_path)
