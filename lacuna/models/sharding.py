"""How a language model lies on a mesh: what the axes of each leaf are, and which mesh axis splits which of them."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lacuna import meshes, trees
from lacuna.types import Shapes

AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "width"),
    "positions": ("position", "width"),
    "head/kernel": ("width", "vocab"),
    "attention/qkv/kernel": ("width", "heads"),
    "attention/qkv/bias": ("heads",),
    "attention/query/kernel": ("width", "heads"),
    "attention/query/bias": ("heads",),
    "attention/key/kernel": ("width", "heads"),
    "attention/key/bias": ("heads",),
    "attention/value/kernel": ("width", "heads"),
    "attention/value/bias": ("heads",),
    "attention/out/kernel": ("heads", "width"),
    "mlp/up/kernel": ("width", "mlp"),
    "mlp/up/bias": ("mlp",),
    "mlp/gate/kernel": ("width", "mlp"),
    "mlp/gate/bias": ("mlp",),
    "mlp/down/kernel": ("mlp", "width"),
}
"""Logical axes by leaf, less the leading one of a stack; what is not here is small and lies on every device."""

Rules = Sequence[tuple[str, str]]

RULES: Rules = (
    ("heads", meshes.MODEL),
    ("mlp", meshes.MODEL),
    ("vocab", meshes.MODEL),
)
"""Which mesh axis splits which logical axis, where it divides it. A block then needs two sums of activations over the
mesh, and never another device's weights. (GPT-2 has its queries, keys and values in one kernel, so they are moved, too;
and 50,257 divides by little, so its embedding lies on every device.)"""


def partition(leaf_name: str, shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> PartitionSpec:
    """How one leaf is split: a mesh axis takes at most one axis of it, and only one that it divides.

    Args:
      leaf_name: as in `trees.leaf_names`.
      shape: of the whole leaf.
      mesh: rules that name an axis it has not are passed over.
      rules: as `RULES`.
    """
    stacked = leaf_name.startswith("layers/")
    axes = AXES.get(leaf_name.removeprefix("layers/"), ())
    names = [None] * stacked + list(axes)
    chosen: list[str | None] = [None] * len(names)
    for logical, mesh_axis in rules:
        if logical in names and mesh_axis in mesh.shape and mesh_axis not in chosen:
            at = names.index(logical)
            if shape[at] % mesh.shape[mesh_axis] == 0:
                chosen[at] = mesh_axis
    while chosen and chosen[-1] is None:
        chosen.pop()
    return PartitionSpec(*chosen)


def shardings(like: Shapes, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> Any:
    """The tree of `NamedSharding`s of a language model's parameters, e.g. for `jax.device_put` or a `jit`.

    The axes of a mesh of devices are made automatic: the forward pass leaves the partition to the compiler.
    """
    mesh = meshes.automatic(mesh) if isinstance(mesh, Mesh) else mesh
    return trees.map_named(lambda name, leaf: NamedSharding(mesh, partition(name, leaf.shape, mesh, rules)), like)


def place(params: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The same parameters, split over a mesh."""
    return jax.device_put(params, shardings(params, mesh, rules))
