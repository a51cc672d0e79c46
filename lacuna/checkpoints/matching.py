"""A model's files and its leaves, matched tensor by tensor from headers alone: all that is wrong is told at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lacuna import trees
from lacuna.checkpoints import sources
from lacuna.checkpoints.configs import spec_from_config
from lacuna.checkpoints.keymaps import HEAD, KEYMAPS, Keymap, Rule
from lacuna.checkpoints.naming import told
from lacuna.checkpoints.precision import is_floating
from lacuna.checkpoints.safetensors_file import BadCheckpoint
from lacuna.models import CausalLMSpec, Model, causal_lm

_COMPARED_BYTES = 1 << 24
"""Of two tensors at a time."""


@dataclass(frozen=True)
class Leaf:
    """A leaf and the tensors it is made of, none of them read yet.

    Attributes:
      rule: of the table.
      shape: of the leaf, the layers in front.
      tensors: one, or one a layer; in the file's orientation.
    """

    rule: Rule
    shape: tuple[int, ...]
    tensors: tuple[np.ndarray, ...]

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""
        return self.tensors[0].dtype


@dataclass(frozen=True)
class Checkpoint:
    """A model whose files have been checked whole, tensor by tensor, against its config.

    Attributes:
      folder: where it lies.
      config: the parsed `config.json`.
      model: that it describes.
      leaves: by name.
      ignored: tensors that are no parameters.
      head: where the head comes from, in words.
      stored: the open files.
    """

    folder: Path
    config: dict[str, Any]
    model: Model
    leaves: dict[str, Leaf]
    ignored: tuple[str, ...]
    head: str
    stored: sources.Tensors


def open_hf(source: str | Path, *, ignore: tuple[str, ...] = (), revision: str | None = None) -> Checkpoint:
    """A model's files, matched tensor by tensor with what its config describes, and not read yet.

    Raises:
      InvalidInput, BadCheckpoint: as from `load_hf`.
    """
    folder = sources.find(source, revision=revision)
    config = sources.read_config(folder)
    spec = spec_from_config(config, ignore=ignore)
    model, keymap = causal_lm(spec), KEYMAPS[config["model_type"]](spec)
    stored = sources.open_tensors(folder)
    like = abstract(spec)
    leaves, wrong = _matched(keymap, spec, like, stored)
    used = {name for names, _ in leaves.values() for name in names} | stored.lost
    ignored, left, head = [], [], "its head is a leaf of its own"
    if spec.tied:
        head = "its head is the embedding"
    for name in sorted(stored.arrays.keys() - used):
        if keymap.is_ignored(name):
            ignored.append(name)
        elif name == HEAD.tensor and spec.tied:
            # A file may keep the head of a tied model, as long as it is the embedding.
            (embedding,) = leaves["embedding"][0]
            if embedding not in stored.arrays or _same_bits(stored.arrays[name], stored.arrays[embedding]):
                head = "its head is the embedding, and in the file, too"
            else:
                wrong.append(f"`{name}` is not the embedding that config.json ties it to")
        else:
            left.append(name)
    if left:
        wrong.append(f"{told(left)}: of no parameter")
    if wrong:
        raise BadCheckpoint(
            f"{folder} must hold the model of its config.json",
            got="; ".join(wrong),
            hint="the config.json that came with these weights",
        )
    matched = {
        name: Leaf(rule, like[name].shape, tuple(stored.arrays[tensor] for tensor in names))
        for name, (names, rule) in leaves.items()
    }
    return Checkpoint(folder, config, model, matched, tuple(ignored), head, stored)


def abstract(spec: CausalLMSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all leaves by name, in the tree's order; nothing is initialised."""
    like = jax.eval_shape(causal_lm(spec).init, jax.random.key(0))
    return dict(zip(trees.leaf_names(like), jax.tree.leaves(like), strict=True))


def tensor_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of one tensor of a leaf, as torch has it."""
    shape = shape[1:] if rule.stacked else shape
    return shape[::-1] if rule.transpose else shape


def _matched(
    keymap: Keymap, spec: CausalLMSpec, like: dict[str, jax.ShapeDtypeStruct], stored: sources.Tensors
) -> tuple[dict[str, tuple[list[str], Rule]], list[str]]:
    """By leaf the names of its tensors, and all that is wrong with them."""
    prefix = keymap.prefix if any(name.startswith(keymap.prefix) for name in stored.arrays) else ""
    rules = keymap.by_leaf(tied=spec.tied)
    missing: list[str] = []
    shapes: dict[str, list[str]] = {}
    leaves: dict[str, tuple[list[str], Rule]] = {}
    for leaf_name, shape in like.items():
        rule = rules[leaf_name]
        wanted = tensor_shape(rule, shape.shape)
        names = rule.tensors(prefix, spec.num_layers)
        leaves[leaf_name] = (names, rule)
        for name in names:
            tensor = stored.arrays.get(name)
            if tensor is None:
                missing += [] if name in stored.lost else [name]
            elif tensor.shape != wanted:
                shapes.setdefault(f"of shape {list(tensor.shape)} instead of {list(wanted)}", []).append(name)
            elif not is_floating(tensor.dtype):
                shapes.setdefault(f"of {tensor.dtype}", []).append(name)
    wrong = [*stored.faults, *([f"{told(missing)}: missing"] if missing else [])]
    return leaves, wrong + [f"{told(names)}: {what}" for what, names in shapes.items()]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tensors hold the same bytes; a few rows at a time."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rows = max(1, _COMPARED_BYTES // max(1, a[:1].nbytes))
    return all(a[i : i + rows].tobytes() == b[i : i + rows].tobytes() for i in range(0, len(a), rows))
