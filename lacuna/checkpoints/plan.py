"""What a model needs on each device of a mesh, from its config and the headers of its files: no weight is read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lacuna import meshes
from lacuna.checkpoints import sources
from lacuna.checkpoints.configs import spec_from_config
from lacuna.checkpoints.hf import target_dtype
from lacuna.checkpoints.matching import abstract, open_hf
from lacuna.checkpoints.precision import floating
from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec
from lacuna.models.sharding import RULES, Rules, partition

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class LeafPlan:
    """A leaf and its part on one device.

    Attributes:
      name: of the leaf.
      shape: of the whole leaf.
      split: which mesh axis splits which of its axes.
      part: shape of what one device holds.
    """

    name: str
    shape: tuple[int, ...]
    split: PartitionSpec
    part: tuple[int, ...]


@dataclass(frozen=True)
class ModelPlan:
    """What a model needs on each device.

    Attributes:
      folder: of the model.
      spec: its architecture.
      leaves: of its parameters.
      dtype: of its parameters.
      mesh: sizes of the axes by name.
      checked: whether the headers of the weights were there, and hold this model.
    """

    folder: Path
    spec: CausalLMSpec
    leaves: tuple[LeafPlan, ...]
    dtype: np.dtype
    mesh: dict[str, int]
    checked: bool

    @property
    def num_parameters(self) -> int:
        """In the whole model."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def num_bytes(self) -> int:
        """Of the whole model."""
        return self.num_parameters * self.dtype.itemsize

    @property
    def parameters_per_device(self) -> int:
        """Elements on one device; all devices hold as many."""
        return sum(math.prod(leaf.part) for leaf in self.leaves)

    @property
    def repeated(self) -> int:
        """Elements that every device of one model holds, for no mesh axis splits them."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves if leaf.part == leaf.shape)

    @property
    def largest_layer(self) -> int:
        """Elements on one device of the part that is built for itself where a candidate is built layer by layer."""
        stacked = sum(math.prod(leaf.part[1:]) for leaf in self.leaves if leaf.name.startswith("layers/"))
        return max(stacked, *(math.prod(leaf.part) for leaf in self.leaves if not leaf.name.startswith("layers/")))

    def needs(self) -> dict[str, int]:
        """Bytes on one device for what is done with a model, activations left out."""
        held, own = self.parameters_per_device, self.dtype.itemsize
        return {
            "parameters": held * own,
            "and one layer of a candidate": held * own + self.largest_layer * (own + FLOAT32.itemsize),
            "and a whole candidate": held * (own + FLOAT32.itemsize),  # its noise, beside the weights
            "and a float32 gradient": held * (own + FLOAT32.itemsize),
            "and two float32 moments": held * (own + 3 * FLOAT32.itemsize),
        }


def plan_hf(
    source: str | Path,
    *,
    candidates: int = 1,
    model: int = 1,
    dtype: Any = None,
    rules: Rules = RULES,
    ignore: tuple[str, ...] = (),
    revision: str | None = None,
) -> ModelPlan:
    """What `load_hf` would put on each device of a mesh. The devices need not be there, nor the weights.

    Args:
      source: a folder, of which the headers of the weights are checked if they are there, or an id on the hub, of
        which the settings alone are fetched.
      candidates: devices on the axis `candidates`: as many copies of the model.
      model: devices on the axis `model`, over which each copy is split.
      dtype: of the parameters; None takes that of the files or of the config.
      rules: as for `load_hf`.
      ignore: as for `load_hf`.
      revision: as for `load_hf`.

    Raises:
      InvalidInput, BadCheckpoint: as from `load_hf`; or a mesh without devices.
    """
    if not (1 <= candidates < 2**31 and 1 <= model < 2**31):
        asked = "a mesh needs at least 1 device on each axis, and fewer than 2^31"
        raise InvalidInput(asked, got=f"{candidates} and {model}", hint="--mesh 1 1")
    folder = sources.find(source, weights=False, revision=revision)
    config = sources.read_config(folder)
    spec = spec_from_config(config, ignore=ignore)
    found = open_hf(folder, ignore=ignore) if sources.has_weights(folder) else None
    if found is not None:
        chosen = target_dtype(found, found.leaves, dtype)
    else:
        named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        chosen = floating(dtype or (named if named in ("bfloat16", "float16") else "float32"))
    mesh = AbstractMesh((candidates, model), (meshes.CANDIDATES, meshes.MODEL), axis_types=(AxisType.Auto,) * 2)
    leaves = []
    for name, leaf in abstract(spec).items():
        split = partition(name, leaf.shape, mesh, rules)
        leaves.append(LeafPlan(name, leaf.shape, split, NamedSharding(mesh, split).shard_shape(leaf.shape)))
    return ModelPlan(folder, spec, tuple(leaves), chosen, dict(mesh.shape), found is not None)
