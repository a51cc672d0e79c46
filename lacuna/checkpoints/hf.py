"""Reading a Hugging Face model folder: `config.json` and `model.safetensors`, checked whole before a byte is read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lacuna import trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.checkpoints.keymaps import HEAD, KEYMAPS, Keymap, Rule
from lacuna.errors import InvalidInput, LacunaError
from lacuna.models import CausalLMSpec, Model, causal_lm
from lacuna.types import Params

FLOATING = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}


class BadCheckpoint(LacunaError):
    """A checkpoint does not hold the model that its config describes."""


def load_hf(source: str | Path, *, dtype: Any = None, ignore: tuple[str, ...] = ()) -> tuple[Model, Params]:
    """A language model from a folder as transformers saves it: GPT-2, Llama, Qwen 1.5 to 3, OLMo, OLMo 2.

    Every tensor of the file is used exactly once. The layers are stacked: `layers/attention/query/kernel` is
    [L, in, out]. A tied head is no leaf of its own.

    Args:
      source: folder with `config.json` and `model.safetensors`.
      dtype: of the parameters and so of the arithmetic; None keeps the file's.
      ignore: fields of the config that are not to be looked at (see `spec_from_config`).

    Raises:
      InvalidInput: no such folder or file, or a config that asks for what is not built here; names the field.
      BadCheckpoint: tensors that are missing, left over, of another shape, or not floating: one error names all.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(source).expanduser()
    config = read_config(folder)
    spec = spec_from_config(config, ignore=ignore)
    model = causal_lm(spec)
    file = folder / "model.safetensors"
    if not file.is_file():
        raise InvalidInput(f"a model folder needs model.safetensors, and {folder} has none", got=_listing(folder))
    try:
        with safe_open(file, framework="numpy") as tensors:
            shapes = {
                name: (tuple(tensors.get_slice(name).get_shape()), tensors.get_slice(name).get_dtype())
                for name in tensors.keys()  # noqa: SIM118  (it is no mapping)
            }
            keymap = KEYMAPS[config["model_type"]](spec)
            plan = _plan(model, keymap, shapes, file, tensors.get_tensor)
            leaves = {rule.leaf: _read(rule, names, tensors.get_tensor, dtype) for rule, names in plan.items()}
    except SafetensorError as fault:
        raise BadCheckpoint(f"{file} cannot be read", got=str(fault)) from fault
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, trees.map_named(lambda name, _: leaves[name], like)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder.

    Raises:
      InvalidInput: no such folder or file, or no JSON object in it.
    """
    if not folder.is_dir():
        raise InvalidInput("a model is read from a folder", got=f"{folder}, which is none")
    file = folder / "config.json"
    if not file.is_file():
        raise InvalidInput(f"a model folder needs config.json, and {folder} has none", got=_listing(folder))
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise InvalidInput(f"{file} is no JSON", got=str(fault)) from fault
    if not isinstance(config, dict):
        raise InvalidInput(f"{file} must hold an object", got=type(config).__name__)
    return config


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder, by transformers' `AutoTokenizer`; nothing is fetched.

    Raises:
      InvalidInput: the folder is not there, or holds no tokenizer.
    """
    # Or it would say on standard error that torch is not there, which nobody asked.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InvalidInput("a tokenizer is read from a folder", got=f"{folder}, which is none")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as fault:
        reason = str(fault).splitlines()[0]
        raise InvalidInput(f"{folder} holds no tokenizer", got=reason, hint="the folder of the tokenizer") from fault


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"


Shapes = dict[str, tuple[tuple[int, ...], str]]


def _plan(
    model: Model, keymap: Keymap, found: Shapes, file: Path, read: Callable[[str], np.ndarray]
) -> dict[Rule, list[str]]:
    """The tensors of each leaf, in the order of the layers; raises one error that names all that is wrong."""
    spec: CausalLMSpec = model.spec
    like = jax.eval_shape(model.init, jax.random.key(0))
    shapes = dict(zip(trees.leaf_names(like), (leaf.shape for leaf in jax.tree.leaves(like)), strict=True))
    prefix = keymap.prefix if any(name.startswith(keymap.prefix) for name in found) else ""
    rules = {rule: prefix + rule.tensor for rule in keymap.rules}
    if not spec.tied:
        rules[HEAD] = HEAD.tensor
    wrong, plan, used = [], {}, set()
    for rule, pattern in rules.items():
        shape = shapes[rule.leaf][1:] if rule.stacked else shapes[rule.leaf]
        shape = shape[::-1] if rule.transpose else shape
        plan[rule] = [pattern.format(i) for i in range(spec.num_layers)] if rule.stacked else [pattern]
        for name in plan[rule]:
            used.add(name)
            if name not in found:
                wrong.append(f"`{name}` is missing")
            elif found[name][0] != shape:
                wrong.append(f"`{name}` has shape {list(found[name][0])} instead of {list(shape)}")
            elif found[name][1] not in FLOATING:
                wrong.append(f"`{name}` is of {found[name][1]}")
    unmapped = shapes.keys() - {rule.leaf for rule in plan}
    assert not unmapped, f"no rule for {unmapped}"
    for name in sorted(found.keys() - used):
        if keymap.is_ignored(name):
            continue
        if name == HEAD.tensor and spec.tied:
            # A file may keep the head of a tied model, as long as it is the embedding.
            embedding = next(names[0] for rule, names in plan.items() if rule.leaf == "embedding")
            if embedding in found and np.array_equal(read(name), read(embedding)):
                continue
            wrong.append(f"`{name}` is not the embedding that config.json ties it to")
        else:
            wrong.append(f"`{name}` belongs to no parameter")
    if wrong:
        told = "; ".join(wrong[:20]) + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise BadCheckpoint(f"{file} does not hold the model of its config.json", got=told)
    return plan


def _read(rule: Rule, names: list[str], read: Callable[[str], np.ndarray], dtype: Any) -> Array:
    """One leaf: its tensors in our orientation, stacked, on the device; the host holds one leaf at a time."""

    def ours(name: str) -> np.ndarray:
        tensor = read(name)
        return tensor.T if rule.transpose else tensor

    first = ours(names[0])
    if not rule.stacked:
        return jnp.asarray(first) if dtype is None else jnp.asarray(first, dtype)
    whole = np.zeros((len(names), *first.shape), first.dtype)
    for layer, name in enumerate(names):
        whole[layer] = ours(name)
    return jnp.asarray(whole) if dtype is None else jnp.asarray(whole, dtype)
