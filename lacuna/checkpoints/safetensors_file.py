"""The safetensors format: names and extents in a header, tensors as views of a mapped file, and files written as a
stream.

The library of that name checks a header as strictly, but it copies each tensor once more on its way in, and to write
a file it wants all of it in memory. For a model of which two copies do not fit on the host both are too much.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lacuna.checkpoints.naming import told
from lacuna.errors import LacunaError

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": np.complex64,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
"""Names of the format for numpy's; those of less than a byte are not among them."""

MAX_HEADER_BYTES = 100_000_000
"""As in the reference implementation: a longer header is damage or an attack."""

MAX_AXES = 32
"""More than any model has, and as many as every array library takes."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class BadCheckpoint(LacunaError):
    """A checkpoint does not hold the model that its config describes, or cannot be read at all."""


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in its file.

    Attributes:
      dtype: numpy's.
      shape: of the tensor.
      start: its first byte, counted from the head of the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def read_header(file: Path) -> dict[str, Extent]:
    """Names and extents of all tensors, read without touching a tensor.

    The tensors must fill the rest of the file without a gap or an overlap, as the format says.

    Raises:
      BadCheckpoint: the file is cut, or its header is not one; says what is wrong, and with which tensor.
    """
    return _read_header(file)[0]


def _read_header(file: Path) -> tuple[dict[str, Extent], dict[str, str]]:
    """The extents, and the metadata."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(file, f"{size} bytes, which hold no header" if size < 8 else f"a header of {length} bytes")
        text = stream.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as fault:
        raise _damaged(file, f"a header that is no JSON ({str(fault)[:120]})") from fault
    if not isinstance(header, dict):
        raise _damaged(file, f"a header that is a {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, "metadata that is no table of texts")
    first = 8 + length
    extents, ends = {}, []
    for name, entry in header.items():
        extents[name], end = _extent(file, name, entry, first)
        ends.append((extents[name].start, end, name))
    reached = first
    for start, end, name in sorted(ends):
        if start != reached:
            raise _damaged(file, f"`{name}` at byte {start - first} instead of {reached - first}")
        reached = end
    if reached != size:
        got = f"{size - first} bytes of tensors instead of {reached - first}"
        cut = told(name for start, end, name in ends if end > size)
        raise _damaged(file, f"{got}: cut off are {cut}" if cut else got, hint="fetch it again")
    return extents, metadata


def _extent(file: Path, name: str, entry: Any, first: int) -> tuple[Extent, int]:
    """One tensor's extent and its end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"`{name}` without a dtype, a shape and two offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"`{name}` of shape {shape!r:.60} at {offsets!r:.60}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _damaged(file, f"`{name}` of dtype {entry['dtype']!r:.60}", hint=f"one of {', '.join(DTYPES)}")
    if len(shape) > MAX_AXES:
        raise _damaged(file, f"`{name}` of {len(shape)} axes")
    num_bytes = dtype.itemsize * math.prod(shape)
    if dtype.itemsize * math.prod(max(length, 1) for length in shape) >= 2**63:
        raise _damaged(file, f"`{name}` of shape {shape!r:.60}")
    if offsets[1] - offsets[0] != num_bytes:
        told = f"`{name}` with {offsets[1] - offsets[0]} bytes for {entry['dtype']}{shape}"
        raise _damaged(file, told)
    return Extent(dtype, tuple(shape), first + offsets[0]), first + offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which would keep the last of two entries of one name in silence.

    Raises:
      ValueError: a name stands in it twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _damaged(file: Path, got: str, hint: str = "") -> BadCheckpoint:
    return BadCheckpoint(f"{file} must be a whole safetensors file", got=got, hint=hint)


class MappedFile:
    """The tensors of a file as read-only arrays, whose bytes are read when somebody looks at them.

    Attributes:
      tensors: by name.
      metadata: what else the header says.

    Raises:
      BadCheckpoint: as from `read_header`.
    """

    def __init__(self, file: Path) -> None:
        extents, self.metadata = _read_header(file)
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.tensors: dict[str, np.ndarray] = {name: self._view(extent) for name, extent in extents.items()}

    def _view(self, extent: Extent) -> np.ndarray:
        count = math.prod(extent.shape)
        if count == 0:
            return np.zeros(extent.shape, extent.dtype)
        return np.frombuffer(self._map, extent.dtype, count, extent.start).reshape(extent.shape)

    def release(self) -> None:
        """Give back the memory of what was read so far; it is read again if somebody asks."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def write(
    file: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    read: Callable[[str], Iterable[np.ndarray]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file, one tensor at a time, through to the disk.

    Args:
      file: made anew.
      tensors: dtype and shape by name.
      read: gives a tensor's elements in order, in as many pieces as it likes.
      metadata: more of it for the header, beside the `format` that other readers look for.
    """
    # Wide elements first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            start = stream.tell()
            for piece in read(name):
                stream.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            first, last = header[name]["data_offsets"]
            assert stream.tell() - start == last - first, f"{name}: another number of bytes than the header says"
        stream.flush()
        os.fsync(stream.fileno())
