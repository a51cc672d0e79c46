"""Writing a Hugging Face model folder: the table of names run backwards, one tensor in memory at a time.

What is written is what `load_hf`, transformers and vLLM read: size-sharded safetensors with their index, a
`config.json` in the spelling that readers of version 4 and 5 take, and the tokenizer of the model it came from.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lacuna import trees
from lacuna.checkpoints import sources
from lacuna.checkpoints.config_writing import config_from_spec
from lacuna.checkpoints.configs import spec_from_config
from lacuna.checkpoints.keymaps import KEYMAPS, Rule
from lacuna.checkpoints.matching import abstract, tensor_shape
from lacuna.checkpoints.naming import told
from lacuna.checkpoints.precision import floating, narrows
from lacuna.checkpoints.safetensors_file import write
from lacuna.checkpoints.whole_folder import whole_folder
from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec, Model
from lacuna.reports import rundir
from lacuna.types import Params

MAX_SHARD_BYTES = 5_000_000_000
"""As in transformers."""

_TOKENIZER = (
    *sources.VOCABULARIES, "tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    """A tensor that is still in its leaf."""

    leaf: Array
    rule: Rule
    layer: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tensor_shape(self.rule, self.leaf.shape)

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def pieces(self) -> Iterator[np.ndarray]:
        """Its elements in the file's order, turned and cast on the device."""
        layer = self.layer if self.rule.stacked else None
        piece, fits = _as_stored(self.leaf, layer, dtype=self.dtype, transpose=self.rule.transpose)
        if not fits:
            raise InvalidInput(f"`{self.rule.leaf}` must fit into {self.dtype}", got="values beyond it", hint="float32")
        yield np.asarray(piece)


@partial(jax.jit, static_argnames=("dtype", "transpose"))
def _as_stored(leaf: Array, layer: int | Array | None, *, dtype: Any, transpose: bool) -> tuple[Array, Array | bool]:
    """A tensor as the file has it, and whether all of its numbers fit."""
    part = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    cast = part.astype(dtype)
    fits = jnp.all(jnp.isfinite(cast) | ~jnp.isfinite(part)) if narrows(leaf.dtype, dtype) else True
    return (cast.T if transpose else cast), fits


def export_hf(
    model: Model,
    params: Any,
    folder: str | Path,
    *,
    like: str | Path | None = None,
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    ignore: tuple[str, ...] = (),
) -> Path:
    """Write a language model as transformers does, whole or not at all.

    Args:
      model: of `causal_lm`, one that a family which `load_hf` reads can express.
      params: its parameters, on any mesh that this process sees whole.
      folder: made anew; refused if it is there and not empty.
      like: folder or hub id of the model that these parameters came from: what its config says besides the
        architecture (the ids of special tokens, say) is kept, and its tokenizer copied.
      dtype: of the file; None keeps that of the leaves, or where they differ the narrowest that holds all of them.
      max_shard_bytes: a larger model is spread over several files.
      ignore: fields of the config of `like` that are not to be looked at (see `spec_from_config`).

    Returns:
      The folder.

    Raises:
      InvalidInput: a folder that is not empty, an architecture that no family has, parameters of another one, a
        model to be like that is of another architecture, or a dtype that is not floating.
    """
    folder = check_new(folder)
    if max_shard_bytes < 1:
        raise InvalidInput("max_shard_bytes must be at least 1", got=max_shard_bytes)
    spec: CausalLMSpec = model.spec
    config, origin = _config(spec, like, ignore)
    tensors = _tensors(spec, config["model_type"], jax.tree.map(jnp.asarray, params), dtype)
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
    with whole_folder(folder, replace=False) as unfinished:
        _write_weights(unfinished, tensors, max_shard_bytes)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if origin is not None:
            for name in _TOKENIZER:
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, unfinished / name)
    return folder


def check_new(folder: str | Path, *, what: str = "a model") -> Path:
    """The folder, if a model, or what else it is, may be written there; refused if it holds anything."""
    try:
        folder = Path(folder).expanduser().absolute()
    except RuntimeError as fault:
        raise InvalidInput(f"{what} is written to a new folder", got=f"{folder}, in the home of nobody") from fault
    if not folder.is_file() and not folder.is_symlink():
        rundir.check_folder(folder)
    is_here = folder.is_dir() and folder.samefile(Path.cwd())  # it would be taken away from under the shell
    occupied = any(folder.iterdir()) or is_here if folder.is_dir() else folder.exists()
    if occupied or folder.is_symlink():
        raise InvalidInput(f"{what} is written to a new folder", got=f"{folder}, which is there", hint="another folder")
    return folder


def _config(spec: CausalLMSpec, like: str | Path | None, ignore: tuple[str, ...]) -> tuple[dict[str, Any], Path | None]:
    """The config to write, and the folder that a tokenizer is copied from."""
    config = config_from_spec(spec)
    if like is None:
        return config, None
    origin = sources.find(like, weights=False)
    theirs = sources.read_config(origin)
    other = spec_from_config(theirs, ignore=ignore)
    if theirs["model_type"] != config["model_type"] or other != spec:
        differ = [name for name, value in asdict(spec).items() if asdict(other)[name] != value]
        raise InvalidInput(
            f"`like` must be a model of this architecture, and {origin} is not",
            got=f"another {', '.join(differ) or 'model_type'}",
        )
    new_spelling = ("rope_parameters", "dtype", "quantization_config", "transformers_version")
    kept = {name: value for name, value in theirs.items() if name not in new_spelling}
    return kept | config, origin


def _tensors(spec: CausalLMSpec, family: str, params: Params, dtype: Any) -> dict[str, _Tensor]:
    """What the file holds, by name, in the order of the table."""
    like, keymap = abstract(spec), KEYMAPS[family](spec)
    leaves = dict(zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True))
    if {name: leaf.shape for name, leaf in leaves.items()} != {name: leaf.shape for name, leaf in like.items()}:
        odd = [n for n in {**like, **leaves} if n not in like or n not in leaves or leaves[n].shape != like[n].shape]
        raise InvalidInput("params must be of this model", got=f"other leaves at {told(odd)}")
    dtypes = [floating(leaf.dtype if dtype is None else dtype) for leaf in leaves.values()]
    stored = reduce(jnp.promote_types, dtypes)  # one for all: readers take it from the config, and mix none
    tensors = {}
    for leaf_name, rule in keymap.by_leaf(tied=spec.tied).items():
        leaf = leaves[leaf_name]
        for layer, name in enumerate(rule.tensors(keymap.prefix, spec.num_layers)):
            tensors[name] = _Tensor(leaf, rule, layer, stored)
    return tensors


def _write_weights(folder: Path, tensors: dict[str, _Tensor], max_shard_bytes: int) -> None:
    """One file, or shards with their index."""
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        shapes = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        write(folder / file, shapes, lambda name: tensors[name].pieces())
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / sources.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
