"""Checkpoints with anything in their settings, headers, indices and bytes: one of our errors, or the right tensors."""

import json
import shutil

import fuzzing
import jax
import numpy as np
import pytest
from adapter_folders import FOLDER as ADAPTERS
from flax import serialization, traverse_util
from hypothesis import example, given
from hypothesis import strategies as st
from model_folders import GOLDEN, INDEX, bare, msgpack, sharded
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lacuna.checkpoints import BadCheckpoint, load_adapter
from lacuna.checkpoints.matching import open_hf
from lacuna.checkpoints.plan import plan_hf
from lacuna.checkpoints.sources import open_tensors
from lacuna.errors import InvalidInput, LacunaError
from lacuna.models import causal_lm

OURS = (BadCheckpoint, InvalidInput)
CASES = fuzzing.cases(80)
FAMILIES = ("gpt2", "llama", "qwen2_window", "qwen3", "olmo", "olmo2")
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 8, 16, 2**24, 2**31, 2**63, 10**400, 0.5, 1e308, -0.0, float("nan")])
TEXTS = st.sampled_from(
    ["", "4", "gpt2", "gelu", "relu", "\ud800", "a\0b", "\n", "default", "(", "../x", "/etc/passwd"]
)
SIMPLE = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=3
)


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def tensors(found):
    """What every leaf is made of, bit for bit."""
    return {name: [(t.dtype, t.shape, t.tobytes()) for t in leaf.tensors] for name, leaf in found.leaves.items()}


def opened(folder):
    """The tensors of a model, or None where it is refused as it should be."""
    try:
        return tensors(open_hf(folder))
    except OURS as fault:
        check_sentence(fault)
        return None


def check_sentence(fault: LacunaError) -> None:
    assert "\n" not in str(fault)
    assert str(fault).endswith(".")


WHOLE = {name: tensors(open_hf(GOLDEN / name)) for name in FAMILIES}


@CASES
@given(data=st.data(), name=st.sampled_from(FAMILIES))
def test_odd_settings_are_refused_or_give_the_same_tensors(tmp_path, data, name):
    config = config_of(name)
    fields = st.sampled_from([*config, "rope_scaling", "rope_theta", "clip_qkv", "layer_types", "quantization_config"])
    for field in data.draw(st.lists(fields, min_size=1, max_size=2)):
        config[field] = data.draw(VALUES)
    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    found = opened(folder)
    # Another head or an untied one has leaves of its own; whatever is read is what the file holds.
    assert found is None or all(WHOLE[name].get(leaf) == bits for leaf, bits in found.items())


SIZE_FIELDS = (
    *("vocab_size", "n_embd", "hidden_size", "n_layer", "num_hidden_layers", "n_inner", "intermediate_size", "n_head"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "n_positions", "max_position_embeddings"),
)


@CASES
@given(
    name=st.sampled_from(FAMILIES),
    size=st.sampled_from([0, 1, 2, 7, 4096, 2**24, 2**24 + 1, 2**40]),
    field=st.sampled_from(SIZE_FIELDS),
)
@example(name="gpt2", size=2**24, field="n_embd")
def test_a_plan_of_any_sizes_is_made_or_refused(tmp_path, name, size, field):
    shutil.rmtree(tmp_path / "bare", ignore_errors=True)
    folder = bare(tmp_path / "bare", name, **{field: size})
    try:
        found = plan_hf(folder)
    except OURS as fault:
        check_sentence(fault)
        return
    assert 1 <= size <= (2**12 if "layer" in field else 2**24) or field not in config_of(name)
    assert found.num_parameters == sum(int(np.prod(leaf.shape, dtype=object)) for leaf in found.leaves)


def with_header(whole, change):
    """The bytes of a safetensors file whose header is gone through `change`."""
    length = int.from_bytes(whole[:8], "little")
    text = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def reference(file):
    """The tensors as the reference implementation reads them, or None."""
    try:
        return load_file(file)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        return None


def check_file(folder, name):
    """Refused, or every tensor of every leaf as the reference implementation reads it."""
    try:
        found = open_hf(folder)
    except OURS as fault:
        check_sentence(fault)
        return
    theirs = reference(folder / "model.safetensors")
    assert theirs is not None
    known = {(t.dtype, t.shape, t.tobytes()) for t in theirs.values()}
    assert {one for of_leaf in tensors(found).values() for one in of_leaf} <= known
    assert {leaf: [t[1] for t in of_leaf] for leaf, of_leaf in tensors(found).items()} == {
        leaf: [t[1] for t in of_leaf] for leaf, of_leaf in WHOLE[name].items()
    }


ENTRIES = st.sampled_from(["dtype", "shape", "data_offsets"])
SIZES = st.lists(st.sampled_from([-1, 0, 1, 16, 53, 64, 2**31, 2**62, 2**63, 2**64, 1.0, True, "16"]), max_size=3)


@CASES
@given(data=st.data(), name=st.sampled_from(["gpt2", "llama"]))
def test_an_odd_header_is_refused_or_read_as_the_reference_reads_it(tmp_path, data, name):
    def change(header):
        names = st.sampled_from([*header])
        for _ in range(data.draw(st.integers(1, 2))):
            kind, one, other = data.draw(st.tuples(st.integers(0, 5), names, names))
            if kind == 0:
                header.pop(one, None)
            elif kind == 1:
                header[one] = data.draw(VALUES)
            elif kind == 2 and isinstance(header.get(one), dict):
                header[one] = header[one] | {data.draw(ENTRIES): data.draw(SIZES | VALUES | st.sampled_from(["F16"]))}
            elif kind == 3 and one in header and other in header:
                header[one], header[other] = header[other], header[one]
            elif kind == 4 and one in header:
                header[data.draw(TEXTS)] = header[one]
            elif other in header:
                header[one] = header[other]  # the same bytes twice, and others of no tensor
        return header

    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / name, folder)
    (folder / "model.safetensors").write_bytes(with_header((GOLDEN / name / "model.safetensors").read_bytes(), change))
    check_file(folder, name)


@CASES
@given(data=st.data(), name=st.sampled_from(["gpt2", "llama"]))
def test_a_damaged_header_is_refused_or_read_as_the_reference_reads_it(tmp_path, data, name):
    whole = bytearray((GOLDEN / name / "model.safetensors").read_bytes())
    length = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 2))):
        whole[data.draw(st.integers(0, 8 + length))] ^= 1 << data.draw(st.integers(0, 7))
    kept = data.draw(st.sampled_from([len(whole)] * 3) | st.integers(0, len(whole)))
    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / name, folder)
    (folder / "model.safetensors").write_bytes(whole[:kept] + b"0" * data.draw(st.sampled_from([0, 0, 0, 1])))
    check_file(folder, name)


@CASES
@given(data=st.data())
@example(data=None)
def test_an_odd_index_is_refused_or_gives_the_same_tensors(tmp_path, data):
    shutil.rmtree(tmp_path / "sharded", ignore_errors=True)
    folder = sharded(tmp_path / "sharded", "llama")
    shutil.copy(folder / "model-00001-of-00003.safetensors", tmp_path / "outside.safetensors")
    index = json.loads((folder / INDEX).read_text())
    where = index["weight_map"]
    if data is None:
        where.update({name: "../outside.safetensors" for name in where if "00001" in where[name]})
    else:
        files = TEXTS | st.sampled_from([*where.values(), "../outside.safetensors", ".", "config.json", str(tmp_path)])
        for name in data.draw(st.lists(st.sampled_from([*where]) | TEXTS, max_size=2)):
            where[name] = data.draw(files | VALUES)
        if data.draw(st.booleans()):
            where.pop(data.draw(st.sampled_from(sorted(where))))
        index = data.draw(st.sampled_from([index] * 5) | VALUES)
    (folder / INDEX).write_text(json.dumps(index))
    found = opened(folder)
    assert found in (None, WHOLE["llama"])
    assert data is not None or found is None


@CASES
@given(data=st.data())
def test_a_damaged_msgpack_is_refused_or_holds_what_flax_reads(tmp_path, data):
    if not (tmp_path / "flax").exists():
        msgpack(tmp_path / "flax", "gpt2")
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "flax", folder)
    whole = bytearray((folder / "flax_model.msgpack").read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, 400) | st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    kept = data.draw(st.sampled_from([len(whole)] * 3) | st.integers(0, len(whole)))
    (folder / "flax_model.msgpack").write_bytes(whole[:kept])
    try:
        found = open_tensors(folder).arrays
        open_hf(folder)
    except OURS as fault:
        check_sentence(fault)
        return
    theirs = traverse_util.flatten_dict(serialization.msgpack_restore(bytes(whole[:kept])))
    turned = [np.asarray(x).T if path[-1] == "kernel" else np.asarray(x) for path, x in theirs.items()]
    assert [(x.shape, x.tobytes()) for x in found.values()] == [(x.shape, x.tobytes()) for x in turned]


MODEL = causal_lm(open_hf(GOLDEN / "llama").model.spec)


def factors(adapter):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(adapter.params)]


ADAPTER = factors(load_adapter(ADAPTERS / "llama", MODEL))


@CASES
@given(data=st.data())
def test_odd_settings_of_an_adapter_are_refused_or_give_the_same_factors(tmp_path, data):
    folder = tmp_path / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ADAPTERS / "llama", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    patterns = st.dictionaries(TEXTS | st.sampled_from(["q_proj", ".*", "[", "(?P<x>"]), VALUES, max_size=2)
    for field in data.draw(st.lists(st.sampled_from([*config]), min_size=1, max_size=2)):
        config[field] = data.draw(VALUES | patterns)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        found = load_adapter(folder, MODEL)
    except OURS as fault:
        check_sentence(fault)
        return
    assert factors(found) == ADAPTER


@CASES
@given(
    text=st.binary(max_size=20) | st.sampled_from([b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xef\xbb\xbf{}"])
)
@example(text=(GOLDEN / "gpt2" / "config.json").read_bytes()[:-2] + b', "n_head": 2}')
def test_a_config_of_any_bytes_is_refused(tmp_path, text):
    shutil.rmtree(tmp_path / "gpt2", ignore_errors=True)
    shutil.copytree(GOLDEN / "gpt2", tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_bytes(text)
    with pytest.raises(InvalidInput) as raised:
        open_hf(tmp_path / "gpt2")
    check_sentence(raised.value)
