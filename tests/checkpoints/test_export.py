"""What is exported is read back bit for bit, here and by the reference reader, and is never half written."""

import json
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_hf
from model_folders import GOLDEN, INDEX, copy, msgpack, tensors_of
from safetensors.numpy import load_file

from lacuna import meshes, trees
from lacuna.checkpoints import BadCheckpoint, export, export_hf, load_hf
from lacuna.checkpoints.config_writing import config_from_spec
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.models import causal_lm, sharding

every_model = pytest.mark.parametrize("name", tiny_hf.MODELS)


def all_tensors(folder):
    """Of every file in a folder, by the reference reader."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and one[n].tobytes() == other[n].tobytes()
        for n in one
    )


@every_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
def test_a_round_trip_keeps_every_bit_of_every_tensor(tmp_path, name, dtype, max_shard_bytes):
    model, params = load_hf(GOLDEN / name, dtype=dtype)
    first = export_hf(model, params, tmp_path / "first", like=GOLDEN / name, max_shard_bytes=max_shard_bytes)
    again, loaded = load_hf(first)
    assert again is model
    assert trees.content_digest(loaded) == trees.content_digest(params)
    second = export_hf(model, loaded, tmp_path / "second")
    assert same(all_tensors(first), all_tensors(second))
    assert {k: x.astype(dtype).tobytes() for k, x in tensors_of(name).items()} == {
        k: x.tobytes() for k, x in all_tensors(first).items()
    }
    assert (first / INDEX).exists() == (max_shard_bytes == 3000)


def test_an_index_is_of_the_form_that_others_read(tmp_path):
    model, params = load_hf(GOLDEN / "llama")
    folder = export_hf(model, params, tmp_path / "out", max_shard_bytes=5000)
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors_of("llama").values())
    assert index["weight_map"].keys() == tensors_of("llama").keys()
    for file in set(index["weight_map"].values()):
        assert {n for n, where in index["weight_map"].items() if where == file} == load_file(folder / file).keys()
        assert sum(x.nbytes for x in load_file(folder / file).values()) <= 5000


def test_flax_weights_become_safetensors(tmp_path):
    folder = msgpack(tmp_path / "flax", "gpt2", prefix=False)
    model, params = load_hf(folder)
    assert same(all_tensors(export_hf(model, params, tmp_path / "out", like=folder)), tensors_of("gpt2"))


def test_parameters_are_exported_from_a_mesh(tmp_path):
    model, params = load_hf(GOLDEN / "qwen2", mesh=meshes.model_mesh(4, jax.devices()))
    assert same(all_tensors(export_hf(model, params, tmp_path / "out")), tensors_of("qwen2"))


@every_model
def test_a_config_says_the_same_in_the_older_spelling(name):
    spec = load_hf(GOLDEN / name)[0].spec
    config = config_from_spec(spec)
    assert spec_from_config(config) == spec
    assert config["model_type"] == json.loads((GOLDEN / name / "config.json").read_text())["model_type"]
    assert not {"rope_parameters", "dtype"} & config.keys()


def test_an_architecture_that_nobody_else_has_is_refused(tmp_path):
    spec = load_hf(GOLDEN / "qwen2")[0].spec
    for change, message in (
        ({"activation": "relu", "norm_after": True}, "norm_after"),
        ({"windows": (3, 5)}, "windows"),
        ({"qkv_bias": True, "norm": "layer"}, "norm"),
    ):
        with pytest.raises(InvalidInput, match=f"no family of models that others read .* got .*{message}"):
            export_hf(causal_lm(replace(spec, **change)), {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_else_a_model_says_of_itself_is_kept(tmp_path):
    source = copy(tmp_path / "source", "qwen2")
    document = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7, "initializer_range": 0.5}
    (source / "config.json").write_text(json.dumps(document))
    (source / "tokenizer.json").write_text('{"a": 1}')
    model, params = load_hf(source, dtype="bfloat16")
    folder = export_hf(model, params, tmp_path / "out", like=source)
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["initializer_range"], config["torch_dtype"]) == (7, 0.5, "bfloat16")
    assert (folder / "tokenizer.json").read_text() == '{"a": 1}'
    with pytest.raises(
        InvalidInput, match=r"`like` must be a model of this architecture, .*; got another .*num_kv_heads"
    ):
        export_hf(load_hf(GOLDEN / "qwen3")[0], load_hf(GOLDEN / "qwen3")[1], tmp_path / "x", like=GOLDEN / "gpt2")


def test_parameters_of_another_model_are_refused(tmp_path):
    model, params = load_hf(GOLDEN / "qwen2")
    for wrong in (
        params | {"more": jnp.ones(1)},
        {name: leaf for name, leaf in params.items() if name != "embedding"},
        params | {"embedding": params["embedding"][1:]},
    ):
        with pytest.raises(InvalidInput, match=r"params must be of this model; got other leaves at `(more|embedding)`"):
            export_hf(model, wrong, tmp_path / "out")
    for dtype in (jnp.int8, "nonsense", "float8_e4m3fn"):
        with pytest.raises(InvalidInput, match=r"dtype must be float32, bfloat16, float16 or float64"):
            export_hf(model, params, tmp_path / "out", dtype=dtype)
    with pytest.raises(InvalidInput, match=r"float64 must be switched on"):
        export_hf(model, params, tmp_path / "out", dtype="float64")
    for own, narrow, value in (
        ("float32", "float16", 1e6),
        ("bfloat16", "float16", 1e6),
        ("float32", "bfloat16", 3.4e38),
    ):
        large = {name: jax.tree.map(lambda x, own=own: x.astype(own), part) for name, part in params.items()}
        large["embedding"] = jnp.full_like(large["embedding"], value)
        with pytest.raises(InvalidInput, match=rf"`embedding` must fit into {narrow}"):
            export_hf(model, large, tmp_path / "out", dtype=narrow)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, fault):
    model, params = load_hf(GOLDEN / "llama")
    written = []

    def write(file, *rest):
        if len(written) == 2:
            raise fault
        written.append(file)
        real(file, *rest)

    real = export.write
    monkeypatch.setattr(export, "write", write)
    with pytest.raises(fault):
        export_hf(model, params, tmp_path / "out", max_shard_bytes=4000)
    assert len(written) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    model, params = load_hf(GOLDEN / "qwen2")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    links = (tmp_path / "link", tmp_path / "dangling")
    for there in (copy(tmp_path / "there", "gpt2"), GOLDEN / "gpt2" / "config.json", *links):
        with pytest.raises(InvalidInput, match=r"written to a new folder; got .*, which is there"):
            export_hf(model, params, there)
    (tmp_path / "empty").mkdir()
    export_hf(model, params, tmp_path / "empty")
    assert os.access(tmp_path / "empty", os.R_OK)
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "elsewhere").stat().st_mode
    assert oracles.bits(load_hf(tmp_path / "empty")[1]) == oracles.bits(params)


def test_what_appears_in_the_folder_while_a_model_is_written_is_left_alone(tmp_path, monkeypatch):
    model, params = load_hf(GOLDEN / "llama")
    out, real = tmp_path / "out", export.write

    def write(*given):
        real(*given)
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(export, "write", write)
    with pytest.raises(OSError, match="not empty"):
        export_hf(model, params, out)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_the_folder_that_one_stands_in_is_not_taken_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="written to a new folder"):
        export_hf(*load_hf(GOLDEN / "llama"), ".")


def test_float64_of_numpy_is_written_as_jax_has_it(tmp_path):
    model, params = load_hf(GOLDEN / "llama")
    folder = export_hf(model, jax.tree.map(lambda x: np.asarray(x, np.float64), params), tmp_path / "out")
    assert same(all_tensors(folder), tensors_of("llama"))


def test_a_perturbed_model_is_another_one(tmp_path):
    model, params = load_hf(GOLDEN / "olmo2")
    moved = trees.axpy(0.1, jax.tree.map(jnp.ones_like, params), params)
    folder = export_hf(model, moved, tmp_path / "out", like=GOLDEN / "olmo2")
    assert oracles.bits(load_hf(folder)[1]) == oracles.bits(moved) != oracles.bits(params)


def test_a_damaged_export_is_seen(tmp_path):
    model, params = load_hf(GOLDEN / "llama")
    folder = export_hf(model, params, tmp_path / "out", max_shard_bytes=4000)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(BadCheckpoint, match="is missing, and with it"):
        load_hf(folder)


def test_sharding_of_the_leaves_is_by_their_axes():
    mesh = meshes.model_mesh(4, jax.devices())
    params = load_hf(GOLDEN / "qwen3", mesh=mesh)[1]
    known = sharding.shardings(params, mesh)
    assert jax.tree.map(lambda x: x.sharding, params) == known
    np.testing.assert_array_equal(
        np.asarray(params["embedding"]), np.asarray(load_hf(GOLDEN / "qwen3")[1]["embedding"])
    )
