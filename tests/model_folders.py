"""Model folders in every form, made from the golden ones by the reference implementation of each format."""

import json
import shutil
from pathlib import Path

import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
INDEX = "model.safetensors.index.json"


def tensors_of(name):
    """Of a golden folder."""
    return load_file(GOLDEN / name / "model.safetensors")


def bare(folder, name, **config):
    """A folder that has a config alone."""
    folder.mkdir(parents=True)
    document = json.loads((GOLDEN / name / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def whole(folder, name, change=lambda tensors: tensors, **config):
    """One file, its tensors gone through `change`."""
    bare(folder, name, **config)
    save_file(
        {key: np.ascontiguousarray(x) for key, x in change(tensors_of(name)).items()}, folder / "model.safetensors"
    )
    return folder


def sharded(folder, name, num_shards=3, change=lambda tensors: tensors):
    """Shards with their index, tensors dealt out one by one."""
    bare(folder, name)
    tensors = change(tensors_of(name))
    where = {key: f"model-{i % num_shards + 1:05d}-of-{num_shards:05d}.safetensors" for i, key in enumerate(tensors)}
    for shard in set(where.values()):
        save_file({key: x for key, x in tensors.items() if where[key] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def msgpack(folder, name, prefix=True):
    """As the Flax classes of transformers 4 saved it: kernels turned, and names of their own."""
    bare(folder, name)
    flat = {}
    for key, x in tensors_of(name).items():
        head, _, last = key.rpartition(".")
        if last == "weight":
            embeds = head.rpartition(".")[2] in ("wte", "wpe", "embed_tokens")
            last = "embedding" if embeds else "scale" if x.ndim == 1 else "kernel"
        path = f"{head}.{last}".split(".")
        path = path if prefix else [part for part in path if part not in ("transformer", "model")]
        flat[tuple(path)] = np.ascontiguousarray(x.T) if last == "kernel" else x
    tree = traverse_util.unflatten_dict(flat)
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return folder


def copy(folder, name):
    """A golden folder as it is."""
    shutil.copytree(GOLDEN / name, folder)
    return folder
