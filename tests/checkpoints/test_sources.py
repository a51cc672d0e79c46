"""Every form a model comes in gives the same bits; every fault is one error that names every bad tensor."""

import contextlib
import json
import re
from types import SimpleNamespace

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import serialization
from huggingface_hub import errors
from model_folders import GOLDEN, INDEX, bare, copy, msgpack, sharded, tensors_of, whole
from safetensors.numpy import load_file, save_file

from lacuna.checkpoints import BadCheckpoint, load_hf, load_tokenizer
from lacuna.checkpoints.sources import find, told
from lacuna.errors import InvalidInput

SHARD_1, SHARD_2 = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))


def bits(folder):
    return oracles.bits(load_hf(folder)[1])


@pytest.mark.parametrize("name", ["gpt2", "qwen2_window", "olmo2"])
def test_one_file_shards_and_shards_without_an_index_are_one_model(tmp_path, name):
    known = bits(GOLDEN / name)
    folder = sharded(tmp_path / "sharded", name)
    assert bits(folder) == known
    (folder / INDEX).unlink()
    assert bits(folder) == known


@pytest.mark.parametrize("name", ["gpt2", "gpt2_untied", "llama"])
@pytest.mark.parametrize("prefix", [True, False])
def test_msgpack_is_the_same_model(tmp_path, name, prefix):
    assert bits(msgpack(tmp_path / "flax", name, prefix=prefix)) == bits(GOLDEN / name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_msgpack_keeps_its_precision(tmp_path, dtype):
    params = load_hf(msgpack(tmp_path / "flax", "gpt2"), dtype=dtype)[1]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert oracles.bits(params) == oracles.bits(load_hf(GOLDEN / "gpt2", dtype=dtype)[1])


def test_safetensors_are_preferred(tmp_path):
    folder = msgpack(tmp_path / "both", "gpt2")
    save_file({name: x + 1 for name, x in tensors_of("gpt2").items()}, folder / "model.safetensors")
    assert bits(folder) != bits(GOLDEN / "gpt2")


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def reindex(folder, change):
    document = json.loads((folder / INDEX).read_text())
    change(document)
    (folder / INDEX).write_text(json.dumps(document))


FAULTS = {
    "a missing shard": (
        lambda f: (f / SHARD_2).unlink(),
        [SHARD_2, "is missing, and with it", *sorted(tensors_of("qwen2"), key=[*tensors_of("qwen2")].index)[1::3]],
    ),
    "a missing shard and no index": (
        lambda f: [(f / name).unlink() for name in (SHARD_2, INDEX)],
        [f"{SHARD_2}: missing", "`model.norm.weight`"],
    ),
    "an index that names an absent tensor": (
        lambda f: reindex(f, lambda d: d["weight_map"].update({"what.is.this": SHARD_1})),
        [f"{SHARD_1} lacks `what.is.this`, which the index says it holds"],
    ),
    "a tensor of which the index says nothing": (
        lambda f: rewrite(f / SHARD_1, lambda t: t.update(stray=np.ones(2, np.float32))),
        [f"{SHARD_1} holds `stray`, of which the index says nothing"],
    ),
    "an index that leads out of the folder": (
        lambda f: reindex(f, lambda d: d["weight_map"].update({"model.norm.weight": "../../secret.safetensors"})),
        ["must name files beside it; got `../../secret.safetensors`"],
    ),
    "an index that is none": (lambda f: (f / INDEX).write_text("{}"), ["needs a `weight_map` of texts"]),
    "an index of numbers": (lambda f: reindex(f, lambda d: d.update(weight_map={"a": 1})), ["`weight_map` of texts"]),
    "an index that is no JSON": (lambda f: (f / INDEX).write_text("{"), ["is no JSON"]),
    "a truncated shard and a missing one": (
        lambda f: [(f / SHARD_1).write_bytes((f / SHARD_1).read_bytes()[:-9]), (f / SHARD_2).unlink()],
        [SHARD_1, "bytes of tensors instead of", "cut off are `", "Try: fetch it again", f"{SHARD_2} is missing"]
        + [name for i, name in enumerate(tensors_of("qwen2")) if i % 3 < 2],
    ),
    "a folder in place of a shard": (
        lambda f: [(f / SHARD_1).unlink(), (f / SHARD_1).mkdir()],
        [f"{SHARD_1} is missing, and with it"],
    ),
    "a folder in place of a shard and no index": (
        lambda f: [(f / SHARD_1).unlink(), (f / SHARD_1).mkdir(), (f / INDEX).unlink()],
        [f"{SHARD_1}: missing"],
    ),
    "an index of an impossible name": (
        lambda f: reindex(f, lambda d: d["weight_map"].update({"model.norm.weight": "a\0b"})),
        ["is missing, and with it `model.norm.weight`"],
    ),
    "an index of too long a name": (
        lambda f: reindex(f, lambda d: d["weight_map"].update({"model.norm.weight": "x" * 300})),
        ["is missing, and with it `model.norm.weight`"],
    ),
    "a tensor twice, and no index": (
        lambda f: [rewrite(f / SHARD_1, lambda t: t.update(load_file(f / SHARD_2))), (f / INDEX).unlink()],
        [f"{SHARD_2} holds", "again"],
    ),
    "shards of two models": (
        lambda f: [(f / INDEX).unlink(), (f / SHARD_1).rename(f / "model-00001-of-00002.safetensors")],
        ["holds shards of several models"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_shards_is_one_error_that_names_every_bad_tensor(tmp_path, fault):
    damage, words = FAULTS[fault]
    folder = sharded(tmp_path / "model", "qwen2")
    damage(folder)
    with pytest.raises((BadCheckpoint, InvalidInput)) as found:
        load_hf(folder)
    message = unfolded(str(found.value))
    assert all(word in message for word in words), message


def unfolded(message):
    """`h.{0-1}.x` as `h.0.x h.1.x`, for two layers."""
    return re.sub(r"`([^`]*)\{0-1\}([^`]*)`", r"`\g<1>0\2` `\g<1>1\2`", message)


def test_faults_of_every_kind_are_told_at_once(tmp_path):
    def damage(tensors):
        tensors = dict(tensors)
        del tensors["model.norm.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.1.mlp.down_proj.weight"] = np.ones((3, 3), np.float32)
        tensors["model.layers.1.self_attn.q_proj.bias"] = np.ones(16, np.int8)
        return tensors | {"lm_head.weight": np.ones((53, 16), np.float32), "odd": np.ones(1, np.float32)}

    with pytest.raises(BadCheckpoint) as found:
        load_hf(whole(tmp_path / "model", "qwen2", damage))
    for told_of in (
        "`model.layers.0.mlp.up_proj.weight`, `model.norm.weight`: missing",
        "`model.layers.1.mlp.down_proj.weight`: of shape [3, 3] instead of [16, 24]",
        "`model.layers.1.self_attn.q_proj.bias`: of int8",
        "`lm_head.weight` is not the embedding that config.json ties it to",
        "`odd`: of no parameter",
    ):
        assert told_of in str(found.value)


def test_buffers_of_older_versions_are_reported(tmp_path):
    def add(tensors):
        return tensors | {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 32, 32), bool) for i in range(2)}

    reports = []
    load_hf(whole(tmp_path / "gpt2", "gpt2", add), report=reports.append)
    assert reports[0].ignored == ("transformer.h.0.attn.bias", "transformer.h.1.attn.bias")
    assert "2 buffers passed over" in str(reports[0])
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    load_hf(whole(tmp_path / "qwen2", "qwen2", lambda t: t | rotary), report=reports.append)
    assert reports[1].ignored == tuple(rotary)


def test_the_report_says_what_was_read(tmp_path):
    reports = []
    folder = sharded(tmp_path / "model", "qwen2", change=lambda t: {k: x.astype(np.float16) for k, x in t.items()})
    _, params = load_hf(folder, dtype=jnp.float32, report=reports.append)
    (found,) = reports
    leaves = jax.tree.leaves(params)
    assert (found.num_parameters, found.num_bytes) == (sum(x.size for x in leaves), sum(x.nbytes for x in leaves))
    assert (found.stored_dtypes, found.dtype, found.head) == ({"float16": 26}, "float32", "its head is the embedding")
    assert [file.name for file in found.files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert found.wall_s > 0


def test_mixed_precision_needs_a_choice(tmp_path):
    def mix(tensors):
        return {k: x.astype(np.float16 if ".0." in k else np.float32) for k, x in tensors.items()}

    folder = whole(tmp_path / "mixed", "qwen2", mix)
    with pytest.raises(
        BadCheckpoint, match=r"must hold weights of one dtype.*float32 in .*float16 in .*Try: dtype float32"
    ):
        load_hf(folder)
    assert {x.dtype for x in jax.tree.leaves(load_hf(folder, dtype="bfloat16")[1])} == {jnp.dtype("bfloat16")}


def test_a_dtype_that_cannot_hold_the_weights_is_refused(tmp_path):
    def large(tensors):
        return tensors | {"model.norm.weight": np.full(16, 1e6, np.float32)}

    def infinite(tensors):
        return tensors | {"model.norm.weight": np.full(16, np.inf, np.float32)}

    folder = whole(tmp_path / "large", "qwen2", large)
    with pytest.raises(InvalidInput, match=r"`final_norm/scale` must fit into float16"):
        load_hf(folder, dtype=jnp.float16)
    half = whole(tmp_path / "half", "qwen2", lambda t: {k: x.astype("bfloat16") for k, x in large(t).items()})
    with pytest.raises(InvalidInput, match=r"`final_norm/scale` must fit into float16"):
        load_hf(half, dtype=jnp.float16)
    assert np.isinf(
        load_hf(whole(tmp_path / "inf", "qwen2", infinite), dtype="float16")[1]["final_norm"]["scale"]
    ).all()
    for dtype in (jnp.int32, "nonsense", jnp.float8_e4m3fn):
        with pytest.raises(InvalidInput, match=r"dtype must be float32, bfloat16, float16 or float64"):
            load_hf(folder, dtype=dtype)
    with pytest.raises(InvalidInput, match=r"float64 must be switched on"):
        load_hf(folder, dtype=jnp.float64)


def test_only_some_leaves():
    _, params = load_hf(GOLDEN / "qwen2", only=lambda name: "mlp" in name)
    known = load_hf(GOLDEN / "qwen2")[1]
    assert oracles.bits(params) == oracles.bits({"layers": {n: known["layers"][n] for n in ("mlp", "mlp_norm")}})
    with pytest.raises(InvalidInput, match=r"`only` must choose at least one leaf"):
        load_hf(GOLDEN / "qwen2", only=lambda name: False)


def test_a_config_of_absurd_sizes_is_refused_before_memory_is_taken(tmp_path):
    for change in ({"hidden_size": 2**24}, {"vocab_size": 2**24}, {"num_hidden_layers": 4096}):
        with pytest.raises(BadCheckpoint, match=r"must hold the model of its config.json"):
            load_hf(whole(tmp_path / str(*change), "qwen2", **change, head_dim=4, layer_types=None))
    with pytest.raises(InvalidInput, match="`num_hidden_layers` as an integer from 1 to 4096"):
        load_hf(whole(tmp_path / "layers", "qwen2", num_hidden_layers=10**12))


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x80", b"\xc1", b"\x93\x01\x02\x03", b"junk" * 9, b"\x81\xa1a\x01"]
)
def test_a_msgpack_that_is_none_is_one_error(tmp_path, content):
    folder = bare(tmp_path / "flax", "gpt2")
    (folder / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(BadCheckpoint):
        load_hf(folder)


def test_a_cut_msgpack_is_one_error(tmp_path):
    file = msgpack(tmp_path / "flax", "gpt2") / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(BadCheckpoint, match=r"flax_model.msgpack must be a msgpack of arrays"):
        load_hf(file.parent)


def test_a_msgpack_with_a_tensor_under_two_names_is_refused(tmp_path):
    file = msgpack(tmp_path / "flax", "gpt2") / "flax_model.msgpack"
    tree = serialization.msgpack_restore(file.read_bytes())
    tree["transformer"]["wte"]["weight"] = tree["transformer"]["wte"]["embedding"]
    file.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(BadCheckpoint, match=r"every tensor once; got `transformer.wte.weight` under two names"):
        load_hf(file.parent)


def test_many_missing_shards_are_told_in_short(tmp_path):
    folder = bare(tmp_path / "model", "qwen2")
    save_file(tensors_of("qwen2"), folder / "model-00001-of-100000.safetensors")
    with pytest.raises(BadCheckpoint) as found:
        load_hf(folder)
    assert "and 99995 more: missing" in str(found.value)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"model": 1}', ""])
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, file, content):
    folder = bare(tmp_path / "model", "gpt2")
    (folder / file).write_text(content)
    with contextlib.suppress(InvalidInput):  # some of it passes for an empty one
        load_tokenizer(folder)


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path):
    folder = bare(tmp_path / "old", "gpt2")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        InvalidInput, match=r"not read from a pickle.*pytorch_model.bin.*Try: python -c .*save_pretrained"
    ):
        load_hf(folder)


def test_names_are_told_by_layer():
    assert told(["h.0.x", "h.1.x", "h.3.x", "y", "h.7.z"]) == "`h.{0-1,3}.x`, `h.7.z`, `y`"
    assert told(f"t{i}" for i in range(60)).endswith(" and 20 more")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that gives what `hub.folder` holds, or raises `hub.fault`; `hub.asked` tells what it was asked for."""

    class Hub:
        folder, fault, asked = tmp_path / "snapshot", None, []

        def snapshot_download(self, name, *, revision, allow_patterns, ignore_patterns):
            self.asked.append((name, revision, allow_patterns))
            if self.fault is not None:
                raise self.fault
            return str(self.folder)

    found = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_a_hub_id_is_fetched_without_pickles(hub):
    copy(hub.folder, "gpt2")
    assert oracles.bits(load_hf("somebody/gpt2", revision="v1")[1]) == bits(GOLDEN / "gpt2")
    ((name, revision, patterns),) = hub.asked
    assert (name, revision) == ("somebody/gpt2", "v1")
    assert not any("bin" in pattern or "msgpack" in pattern for pattern in patterns)


def test_msgpack_is_fetched_where_there_is_nothing_else(hub):
    msgpack(hub.folder, "gpt2")
    assert oracles.bits(load_hf("gpt2")[1]) == bits(GOLDEN / "gpt2")
    assert ["flax_model.msgpack" in patterns for _, _, patterns in hub.asked] == [False, True]


def test_a_tokenizer_is_fetched_without_weights(hub):
    bare(hub.folder, "gpt2")
    with pytest.raises(InvalidInput, match="holds no tokenizer"):
        load_tokenizer("gpt2")
    assert not any("model" in pattern and "safetensors" in pattern for pattern in hub.asked[0][2])


def response(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (errors.RepositoryNotFoundError("404\nlong", response=response(404)), "no such model, or a private one"),
        (errors.GatedRepoError("403", response=response(403)), "no access: accept its terms"),
        (errors.RevisionNotFoundError("404", response=response(404)), "no such revision"),
        (errors.LocalEntryNotFoundError("offline"), ".*no copy in the cache, and no way to the hub"),
        (errors.OfflineModeIsEnabled("offline"), ".*no copy in the cache, and no way to the hub"),
        (errors.HfHubHTTPError("502 Bad gateway\nmore", response=response(502)), "502 Bad gateway"),
        (errors.HFValidationError("Repo id must be short"), "Repo id must be short"),
        (ConnectionError("reset"), "reset"),
        (AttributeError("'list' object has no attribute 'get'"), "AttributeError 'list' object"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(hub, fault, message):
    hub.fault = fault
    with pytest.raises(InvalidInput, match=rf"`some/body` must be .* or a model that the hub gives; got {message}"):
        load_hf("some/body")


@pytest.mark.parametrize(
    "source", ["/no/where", "a b", "x/y/z", "../up", "", "~/nowhere/at/all", "~nobody-here/x", "x" * 300]
)
def test_what_is_neither_a_folder_nor_an_id_asks_no_hub(hub, source):
    with pytest.raises(InvalidInput, match="from a folder or by its id on the hub"):
        find(source)
    assert not hub.asked
