"""The file format, against the reference implementation: what one refuses the other refuses, and never worse."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lacuna.checkpoints.safetensors_file import DTYPES, BadCheckpoint, MappedFile, read_header, write

RANDOM = np.random.default_rng(0)
TENSORS = {
    "wide": RANDOM.normal(size=(3, 5)),
    "half": RANDOM.normal(size=7).astype(ml_dtypes.bfloat16),
    "byte": RANDOM.integers(0, 255, (2, 2, 2)).astype(np.uint8),
    "none": np.zeros((0, 4), np.float32),
    "scalar": np.float32(3.5),
    'ünïcode " name': RANDOM.normal(size=2).astype(np.float16),
}


def in_pieces(name):
    value = np.asarray(TENSORS[name])
    return (value,) if value.ndim < 2 else tuple(value)


def written(folder):
    file = folder / "model.safetensors"
    write(file, {name: (np.asarray(x).dtype, np.shape(x)) for name, x in TENSORS.items()}, in_pieces)
    return file


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_the_reference_reads_what_is_written(tmp_path):
    theirs = load_file(written(tmp_path))
    assert theirs.keys() == TENSORS.keys()
    assert all(same(theirs[name], np.asarray(x)) for name, x in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_reference_writes_is_read(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in TENSORS.items()}, file, {"format": "np"})
    mapped = MappedFile(file)
    theirs = load_file(file)
    assert all(same(mapped.tensors[name], theirs[name]) for name in TENSORS)
    mapped.release()
    assert all(same(mapped.tensors[name], theirs[name]) for name in TENSORS)
    assert not any(x.flags.writeable for x in mapped.tensors.values() if x.size)


def test_metadata_comes_back_and_the_reference_reads_it(tmp_path):
    file, metadata = tmp_path / "model.safetensors", {"about": 'a „text“ with "quotes"\n', "version": "1"}
    write(file, {"wide": (np.dtype(np.float64), (3, 5))}, in_pieces, metadata=metadata)
    assert MappedFile(file).metadata == {**metadata, "format": "pt"}
    with safe_open(file, "numpy") as theirs:
        assert theirs.metadata() == {**metadata, "format": "pt"}


def test_tensors_are_aligned_to_their_elements(tmp_path):
    for extent in read_header(written(tmp_path)).values():
        assert extent.start % extent.dtype.itemsize == 0


def test_a_file_is_never_written_over(tmp_path):
    written(tmp_path)
    with pytest.raises(FileExistsError):
        written(tmp_path)


def agree(file):
    """Either both refuse a file, or both read the same tensors; another error than ours is a failure."""
    try:
        ours = MappedFile(file).tensors
    except BadCheckpoint:
        ours = None
    try:
        theirs = load_file(file)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):  # of its own dtypes it lacks some
        theirs = None
    if ours is not None:
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(same(ours[name], theirs[name]) for name in ours)
    return ours is not None


junk = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5))
values = st.recursive(
    junk, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
sizes = st.integers(-2, 9) | st.sampled_from([2**31, 2**62, 2**63, 2**64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", "f32", ""]) | values,
        "shape": st.lists(sizes, max_size=3) | values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries | values, max_size=3) | values
here = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@here
@given(header=headers, body=st.binary(max_size=40), spaces=st.integers(0, 9))
def test_no_header_gives_anything_but_tensors_or_our_error(tmp_path, header, body, spaces):
    text = json.dumps(header).encode() + b" " * spaces
    (tmp_path / "fuzzed").write_bytes(len(text).to_bytes(8, "little") + text + body)
    agree(tmp_path / "fuzzed")


@here
@given(data=st.data())
def test_no_damage_gives_anything_but_tensors_or_our_error(tmp_path, data):
    if not (tmp_path / "model.safetensors").exists():
        written(tmp_path)
    whole = bytearray((tmp_path / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.sampled_from([len(whole), len(whole) - 1]) | st.integers(0, len(whole)))
    (tmp_path / "fuzzed").write_bytes(whole[:kept])
    assert not agree(tmp_path / "fuzzed") or kept == len(whole)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ('{"a":1}', b"", "`a` without a dtype, a shape and two offsets"),
        ('{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}', b"0000", "`a` of dtype 'F4'"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"0000", r"`a` with 4 bytes for F32\[2\]"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"000", "3 bytes of tensors instead of 4"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"0" * 8, "`a` at byte 4 instead of 0"),
        ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"0000", r"`a` of shape \[True\]"),
        ('{"a":1,"a":1}', b"", "a name stands in it twice"),
        ('{"__metadata__":{"a":1}}', b"", "metadata that is no table of texts"),
        (f'{{"a":{{"dtype":"F32","shape":{[1] * 65},"data_offsets":[0,4]}}}}', b"0000", "`a` of 65 axes"),
        (f'{{"a":{{"dtype":"F32","shape":{[0] * 65},"data_offsets":[0,0]}}}}', b"", "`a` of 65 axes"),
        (
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
            b"00",
            "2 bytes of tensors instead of 4: cut off are `b`",
        ),
        ("[" * 100_000, b"", "no JSON"),
        ("3", b"", "a header that is a int"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, header, body, message):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + body)
    with pytest.raises(BadCheckpoint, match=f"bad.safetensors must be a whole safetensors file; got .*{message}"):
        read_header(file)
