"""Where a Hugging Face model lies and in what form: a folder or a hub id, one file, shards, or msgpack."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lacuna.checkpoints.naming import told
from lacuna.checkpoints.safetensors_file import BadCheckpoint, MappedFile, without_repeats
from lacuna.errors import InvalidInput

WHOLE, INDEX, MSGPACK = "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
"""A tokenizer has one of them."""

_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_PICKLES = re.compile(r".*\.(bin|pt|pth|ckpt|pkl)")
_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint, not read yet where the form allows it.

    Attributes:
      arrays: by name, read-only.
      files: that hold them.
      faults: what is wrong with the files, each a sentence that names the tensors.
      lost: tensors of `faults`, which need no second complaint.
    """

    arrays: dict[str, np.ndarray]
    files: tuple[Path, ...]
    faults: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()
    mapped: tuple[MappedFile, ...] = field(default=(), repr=False)

    def release(self) -> None:
        """Give back the memory of what was read so far."""
        for file in self.mapped:
            file.release()


def find(source: str | Path, *, weights: bool = True, revision: str | None = None) -> Path:
    """The folder of a model: `source` itself, or the hub's copy of it in the cache of `huggingface_hub`.

    What the cache lacks is fetched, unless the environment says `HF_HUB_OFFLINE=1`; never a pickle.

    Args:
      source: a folder, or an id such as `Qwen/Qwen2.5-0.5B`.
      weights: fetch the weights, too.
      revision: branch, tag or commit on the hub.

    Raises:
      InvalidInput: neither a folder nor an id, or the hub does not give it: absent, private, gated, or offline.
    """

    def fetch(name: str) -> Path:
        found = _fetched(name, [*_SETTINGS, *(["model*.safetensors"] if weights else [])], revision)
        if weights and not any(path.suffix == ".safetensors" for path in found.iterdir()):
            found = _fetched(name, [*_SETTINGS, MSGPACK], revision)
        return found

    return _found(source, "a model", fetch)


def find_adapter(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of an adapter, as `find` finds that of a model.

    Raises:
      InvalidInput: as from `find`.
    """
    return _found(source, "an adapter", lambda name: _fetched(name, [ADAPTER_CONFIG, ADAPTER], revision))


def _found(source: str | Path, what: str, fetch: Callable[[str], Path]) -> Path:
    try:
        folder = Path(source).expanduser()
        if folder.is_dir() and str(source):
            return folder
    except (OSError, RuntimeError):  # too long a name, or the home of nobody
        pass
    name = str(source)
    if isinstance(source, Path) or len(name) > 96 or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise InvalidInput(
            f"{what} is read from a folder or by its id on the hub",
            got=f"{name}, which is neither",
            hint="the path of a folder, or an id such as owner/name",
        )
    here = "a folder of that name" if "/" not in name else "the path of a folder"
    try:
        return fetch(name)
    except Exception as fault:  # of the hub, of HTTP, of whoever answers in its place
        raise InvalidInput(
            f"`{name}` must be {here} or {what} that the hub gives",
            got=_reason(fault),
            hint="the path of a folder, or an id that the hub has, with a network or from its cache",
        ) from fault


def has_weights(folder: Path) -> bool:
    """Whether there are safetensors of a model."""
    return (folder / WHOLE).is_file() or any(_SHARD.fullmatch(path.name) for path in folder.iterdir())


def _fetched(name: str, patterns: list[str], revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    # Subfolders hold the same weights in other forms (onnx, coreml, original).
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _reason(fault: Exception) -> str:
    """Why the hub did not give a model, in one line."""
    from huggingface_hub import errors

    if isinstance(fault, errors.GatedRepoError):
        return "no access: accept its terms on its page, then `hf auth login`"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return "no such model, or a private one: `hf auth login` if it is yours"
    if isinstance(fault, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(fault, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "no such folder, no copy in the cache, and no way to the hub (is HF_HUB_OFFLINE set?)"
    first = (str(fault).splitlines() or [""])[0].rstrip(".")
    return first if isinstance(fault, OSError | ValueError) and first else f"{type(fault).__name__} {first}".rstrip()


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder.

    Raises:
      InvalidInput: no such file, or no JSON object in it.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InvalidInput(
            f"a model folder needs config.json, and {folder} has none",
            got=listing(folder),
            hint="the folder that save_pretrained wrote",
        )
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      InvalidInput: no JSON, or something else than an object in it.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as fault:
        raise InvalidInput(f"{file} is no JSON", got=str(fault), hint="a fresh copy of it") from fault
    if not isinstance(document, dict):
        raise InvalidInput(f"{file} must hold an object", got=type(document).__name__, hint="a fresh copy of it")
    return document


def open_tensors(folder: Path) -> Tensors:
    """What a folder holds: `model.safetensors`, else shards by their index or by their names, else msgpack.

    Raises:
      InvalidInput: none of them is there. Pickles are refused: to read one is to run it.
      BadCheckpoint: a file that cannot be read. What can be laid to single tensors is left in `faults`.
    """
    shards = sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name) and path.is_file())
    if (folder / WHOLE).is_file():
        mapped = MappedFile(folder / WHOLE)
        return Tensors(mapped.tensors, (folder / WHOLE,), mapped=(mapped,))
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if shards:
        return _numbered(folder, shards)
    if (folder / MSGPACK).is_file():
        return Tensors(_from_msgpack(folder / MSGPACK), (folder / MSGPACK,))
    pickles = [path.name for path in sorted(folder.iterdir()) if _PICKLES.fullmatch(path.name)]
    if pickles:
        raise InvalidInput(
            "weights are not read from a pickle, which may run any code",
            got=f"{', '.join(pickles[:3])} in {folder}",
            hint=f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')"
            f".save_pretrained('{folder.name}-safetensors')\", with torch, if you trust the file",
        )
    raise InvalidInput(
        f"a model folder needs {WHOLE}, and {folder} has none",
        got=listing(folder),
        hint="the folder that save_pretrained wrote, its weights beside config.json",
    )


def _indexed(folder: Path) -> Tensors:
    """Shards by their index; every tensor must be where the index says, and nowhere else."""
    where = read_object(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise BadCheckpoint(
            f"{folder / INDEX} needs a `weight_map` of texts", got=f"{type(where).__name__}", hint="a fresh copy of it"
        )
    outside = sorted({shard for shard in where.values() if Path(shard).name != shard or shard in ("", ".", "..")})
    if outside:
        raise BadCheckpoint(
            f"{folder / INDEX} must name files beside it", got=f"`{outside[0]}`", hint="a fresh copy of it"
        )
    arrays, mapped, faults, lost = {}, [], [], set()
    for shard in sorted(set(where.values())):
        listed = {name for name, file in where.items() if file == shard}
        try:
            file = _opened(folder / shard)
        except BadCheckpoint as fault:
            faults.append(f"{str(fault).rstrip('.')}, and with it {told(listed)}")
            lost |= listed
            continue
        mapped.append(file)
        absent, extra = listed - file.tensors.keys(), file.tensors.keys() - listed
        if absent:
            faults.append(f"{shard} lacks {told(absent)}, which the index says it holds")
            lost |= absent
        if extra:
            faults.append(f"{shard} holds {told(extra)}, of which the index says nothing")
            lost |= extra
        arrays |= {name: tensor for name, tensor in file.tensors.items() if name in listed}
    files = tuple(folder / shard for shard in sorted(set(where.values())))
    return Tensors(arrays, files, tuple(faults), frozenset(lost - arrays.keys()), tuple(mapped))


def _opened(shard: Path) -> MappedFile:
    """A shard; one that is not there is as bad as one that is cut."""
    try:
        return MappedFile(shard)
    except (OSError, ValueError) as fault:  # also a folder of that name, or a name that no file can have
        raise BadCheckpoint(f"{shard.name:.80} is missing") from fault


def _numbered(folder: Path, shards: list[Path]) -> Tensors:
    """Shards without an index: all of their numbers must be there, and no tensor twice."""
    numbers = [(int(i), int(of)) for path in shards for i, of in _SHARD.findall(path.name)]
    total = max(of for _, of in numbers)
    if total > 100_000 or {of for _, of in numbers} != {total}:
        raise BadCheckpoint(
            f"{folder} holds shards of several models",
            got=", ".join(path.name for path in shards[:4]),
            hint="the shards of one model",
        )
    absent = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1) if (i, total) not in numbers]
    more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
    faults = [f"{', '.join(absent[:4])}{more}: missing"] if absent else []
    mapped, arrays = [], {}
    for path in shards:
        try:
            file = _opened(path)
        except BadCheckpoint as fault:
            faults.append(str(fault).rstrip("."))
            continue
        mapped.append(file)
        twice = arrays.keys() & file.tensors.keys()
        if twice:
            faults.append(f"{path.name} holds {told(twice)} again")
        arrays |= file.tensors
    return Tensors(arrays, tuple(shards), tuple(faults), mapped=tuple(mapped))


def _from_msgpack(file: Path) -> dict[str, np.ndarray]:
    """What transformers 4 saved for Flax, under the names that torch has, and in torch's orientation.

    Its kernels are the transposes of torch's in every family: of a linear map, and of GPT-2's `Conv1D` as well.
    """
    from flax import serialization, traverse_util

    try:
        tree = serialization.msgpack_restore(file.read_bytes())
        flat = traverse_util.flatten_dict(tree)
    except Exception as fault:  # msgpack, flax and numpy raise many kinds: to a user they all mean the same
        what = f"{type(fault).__name__} {fault}".splitlines()[0][:200]
        raise BadCheckpoint(
            f"{file} must be a msgpack of arrays as Flax saves it", got=what, hint="fetch it again"
        ) from fault
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in flat.items():
        name = ".".join(map(str, path))
        if not isinstance(leaf, np.ndarray):
            raise BadCheckpoint(
                f"{file} must be a msgpack of arrays",
                got=f"a {type(leaf).__name__} at `{name}`",
                hint="the safetensors of that model",
            )
        head, _, last = name.rpartition(".")
        if last == "kernel" and leaf.ndim != 2:
            raise BadCheckpoint(
                f"{file} must hold kernels of two axes",
                got=f"`{name}` of shape {list(leaf.shape)}",
                hint="the safetensors of that model",
            )
        renamed = f"{head}.weight" if last in ("kernel", "scale", "embedding") else name
        if renamed in arrays:
            raise BadCheckpoint(
                f"{file} must hold every tensor once",
                got=f"`{renamed}` under two names",
                hint="the safetensors of that model",
            )
        arrays[renamed] = leaf.T if last == "kernel" else leaf
    return arrays


def listing(folder: Path) -> str:
    """What is in a folder, in one line."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"
