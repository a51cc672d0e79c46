"""Loading a Hugging Face model: once every tensor is matched with a leaf, each device reads its own slices."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from lacuna import meshes
from lacuna.checkpoints import sources
from lacuna.checkpoints.matching import Checkpoint, Leaf, open_hf
from lacuna.checkpoints.naming import told
from lacuna.checkpoints.precision import floating, overflowed
from lacuna.checkpoints.safetensors_file import BadCheckpoint
from lacuna.errors import InvalidInput
from lacuna.models import Model
from lacuna.models.sharding import RULES, Rules, partition
from lacuna.types import Params

_PIECE_BYTES = 1 << 24
"""What one thread copies at a time."""

_BATCH = 8
"""Pieces between two times that the memory of what was read is given back."""


@dataclass(frozen=True)
class LoadReport:
    """What was read.

    Attributes:
      folder: the model's.
      files: that held the weights.
      num_parameters: in the tree.
      num_bytes: of the tree.
      stored_dtypes: how many tensors of each dtype were in the files.
      dtype: of the tree.
      ignored: tensors that are no parameters, and were passed over.
      head: where the head comes from, in words.
      wall_s: seconds, until everything was on its device.
    """

    folder: Path
    files: tuple[Path, ...]
    num_parameters: int
    num_bytes: int
    stored_dtypes: dict[str, int]
    dtype: str
    ignored: tuple[str, ...]
    head: str
    wall_s: float

    def __str__(self) -> str:
        stored = ", ".join(f"{count} of {name}" for name, count in self.stored_dtypes.items())
        ignored = f"; {len(self.ignored)} buffers passed over" if self.ignored else ""
        return (
            f"{self.num_parameters:,} parameters as {self.dtype}, {self.num_bytes / 1e6:,.0f} MB in {self.wall_s:.2f} s"
            f" from {len(self.files)} file(s) of {self.folder} ({stored}; {self.head}{ignored})"
        )


def load_hf(
    source: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    only: Callable[[str], bool] | None = None,
    ignore: tuple[str, ...] = (),
    revision: str | None = None,
    report: Callable[[LoadReport], None] | None = None,
) -> tuple[Model, Params]:
    """A language model from Hugging Face: GPT-2, Llama, Qwen 1.5 to 3, OLMo, OLMo 2.

    Reads `model.safetensors`, shards with or without their index, or `flax_model.msgpack`. Every tensor is used
    exactly once. Each device gets its own slices; the host holds, beside what it keeps, one leaf at a time. The layers
    are stacked: `layers/attention/query/kernel` is [L, in, out]. A tied head is no leaf of its own.

    Args:
      source: a folder, or an id on the hub, of which the cache is asked first.
      dtype: of the parameters and so of the arithmetic; None keeps the file's, which must then be one.
      mesh: to split the parameters over; by default they lie whole on one device.
      rules: how, if there is a mesh.
      only: by leaf name, which leaves to read; the others are not in the tree.
      ignore: fields of the config that are not to be looked at (see `spec_from_config`).
      revision: branch, tag or commit on the hub.
      report: called once with what was read, e.g. `print`.

    Raises:
      InvalidInput: no such folder, file or id, or a config that asks for what is not built here; names the field.
      BadCheckpoint: tensors that are missing, left over, of another shape, or not floating: one error names all.
    """
    began = time.perf_counter()
    mesh = None if mesh is None else meshes.automatic(mesh)
    found = open_hf(source, ignore=ignore, revision=revision)
    chosen = {name: leaf for name, leaf in found.leaves.items() if only is None or only(name)}
    if not chosen:
        raise InvalidInput("`only` must choose at least one leaf", got="none", hint=", ".join([*found.leaves][:4]))
    target = target_dtype(found, chosen, dtype)
    leaves: dict[str, Array] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as workers:
        for name, leaf in chosen.items():
            sharding = (
                jnp.zeros(0).sharding  # where a fresh array goes
                if mesh is None
                else NamedSharding(mesh, partition(name, leaf.shape, mesh, rules))
            )
            leaves[name] = _placed(leaf, target, sharding, workers, found.stored.release)
    jax.block_until_ready(leaves)
    if report is not None:
        stored = Counter(str(tensor.dtype) for leaf in chosen.values() for tensor in leaf.tensors)
        size, num_bytes = (sum(getattr(leaf, what) for leaf in leaves.values()) for what in ("size", "nbytes"))
        spent = time.perf_counter() - began
        files, name = found.stored.files, str(target)
        report(LoadReport(found.folder, files, size, num_bytes, dict(stored), name, found.ignored, found.head, spent))
    return found.model, nested(leaves)


def target_dtype(found: Checkpoint, chosen: dict[str, Leaf], asked: Any) -> np.dtype:
    """The dtype that a tree of these leaves gets.

    Raises:
      BadCheckpoint: none was asked for, and they are not stored in one.
      InvalidInput: the one asked for is not floating, or is switched off.
    """
    if asked is not None:
        return floating(asked)
    by_dtype: dict[np.dtype, list[str]] = {}
    for name, leaf in chosen.items():
        for tensor in leaf.tensors:
            by_dtype.setdefault(tensor.dtype, []).append(name)
    if len(by_dtype) > 1:
        which = (f"{dtype} in {told(sorted(set(names)))}" for dtype, names in by_dtype.items())
        raise BadCheckpoint(
            f"{found.folder} must hold weights of one dtype, or you name the one you want",
            got="; ".join(which),
            hint="dtype float32",
        )
    (stored,) = by_dtype
    return np.dtype(jax.dtypes.canonicalize_dtype(stored))


def _placed(
    leaf: Leaf, dtype: np.dtype, sharding: Any, workers: ThreadPoolExecutor, release: Callable[[], None]
) -> Array:
    """The leaf on its devices; a slice that several of them want is read once."""
    read: dict[tuple[range, ...], np.ndarray] = {}

    def slice_of(index: Any) -> np.ndarray:
        ranges = tuple(range(*part.indices(length)) for part, length in zip(index, leaf.shape, strict=True))
        if ranges not in read:
            read[ranges] = _slice(leaf, ranges, dtype, workers, release)
        return read[ranges]

    return jax.make_array_from_callback(leaf.shape, sharding, slice_of, dtype=dtype)


def _slice(
    leaf: Leaf,
    ranges: Sequence[range],
    dtype: np.dtype,
    workers: ThreadPoolExecutor,
    release: Callable[[], None],
) -> np.ndarray:
    """Part of a leaf on the host: its tensors turned, cast and stacked in one copy, by several threads."""
    host = _aligned([len(part) for part in ranges], dtype)
    if leaf.rule.stacked:
        pairs = [(host[i], leaf.tensors[layer]) for i, layer in enumerate(ranges[0])]
        ranges = ranges[1:]
    else:
        pairs = [(host, leaf.tensors[0])]
    within = tuple(slice(part.start, part.stop) for part in ranges)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for target, tensor in pairs:
        # Both in the file's orientation, where a run of rows is a run of bytes.
        target, part = (target.T, tensor[within[::-1]]) if leaf.rule.transpose else (target, tensor[within])
        rows = max(1, _PIECE_BYTES // max(1, part[:1].nbytes))
        pieces += [(target[i : i + rows], part[i : i + rows]) for i in range(0, len(part), rows)]
    for start in range(0, len(pieces), _BATCH):
        if any(workers.map(_copy, pieces[start : start + _BATCH])):
            raise InvalidInput(f"`{leaf.rule.leaf}` must fit into {dtype}", got="values beyond it", hint="bfloat16")
        release()
    return host


def _copy(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    """Copy one piece; whether something did not fit."""
    target, part = pair
    with np.errstate(over="ignore"):
        target[...] = part
    return overflowed(part, target)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that a CPU device takes over as it is, which needs an address that 64 divides."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def nested(leaves: dict[str, Array]) -> dict[str, Any]:
    """The tree of dicts of flat names."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(leaves, sep="/")


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a folder or of a hub id, by transformers' `AutoTokenizer`.

    Raises:
      InvalidInput: the folder is not there, the hub does not give it, or it holds no tokenizer.
    """
    # Or it would say on standard error that torch is not there, which nobody asked.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    folder = sources.find(source, weights=False, revision=revision)
    try:
        # Where there is a config.json alone, it would make up a tokenizer without a vocabulary.
        if not any((folder / name).is_file() for name in sources.VOCABULARIES):
            raise ValueError(sources.listing(folder))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as fault:  # it reads damaged files with errors of many kinds
        reason = (str(fault).splitlines() or [""])[0] or type(fault).__name__
        raise InvalidInput(f"{folder} holds no tokenizer", got=reason, hint="the folder of the tokenizer") from fault
