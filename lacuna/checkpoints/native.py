"""lacuna's own checkpoints: any tree of arrays by Orbax, with a digest that tells damage from data.

Parameters, adapters, trajectories, states of an optimiser: what is saved from one mesh is loaded onto another.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lacuna import trees
from lacuna.checkpoints.whole_folder import whole_folder
from lacuna.errors import InvalidInput, LacunaError


class DamagedCheckpoint(LacunaError):
    """A checkpoint cannot be read, or its bits are not the ones that were written."""


def save(folder: Path, tree: PyTree[Any], about: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; one that is already there is replaced.

    Raises:
      InvalidInput: a tree that is one array, or that has a leaf without elements, or none.

    Args:
      folder: `folder/params` holds the tree, `folder/about.json` what is said of it.
      tree: of arrays, numbers and keys, in any containers; it may be split over a mesh.
      about: what made it, as JSON.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves or jax.tree_util.all_leaves([tree]) or any(np.size(leaf) == 0 for leaf in leaves):
        raise InvalidInput(
            "a checkpoint holds a tree of arrays, all of them with elements", got=f"{len(leaves)} leaves"
        )
    tree = jax.tree.map(jnp.asarray, tree)  # a number gets the dtype that it will be loaded in
    with whole_folder(folder, replace=True) as unfinished:
        with _checkpointer(tree) as checkpointer:
            checkpointer.save(unfinished.resolve() / "params", tree)
        document = {**about, "params_sha256": trees.content_digest(tree)}
        (unfinished / "about.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, like: PyTree[jax.Array | jax.ShapeDtypeStruct]) -> Any:
    """Read a checkpoint.

    Args:
      folder: as given to `save`.
      like: a tree of the same containers, names, shapes and dtypes; `jax.eval_shape` makes one without memory. A leaf
        that has a sharding is loaded onto it, whatever it was saved from; the others go to one device.

    Raises:
      DamagedCheckpoint: a file is absent or unreadable, the tree is another one, or a bit has changed.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here), like
    )
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        with _checkpointer(abstract) as checkpointer:
            tree = checkpointer.restore(folder.resolve() / "params", abstract)
        written = about["params_sha256"]
    except Exception as fault:  # Orbax and TensorStore raise many kinds: to a user they all mean the same
        what = f"{type(fault).__name__} {fault}".splitlines()[0]
        raise DamagedCheckpoint(f"the checkpoint {folder} cannot be read", got=what) from fault
    if trees.content_digest(tree) != written:
        raise DamagedCheckpoint(
            f"the bits of the checkpoint {folder} are not the ones that were written",
            hint="a `like` of the dtypes that were written, if it is not damaged",
        )
    return tree


def _checkpointer(tree: Any) -> Any:
    """Orbax's, for all processes if the tree is spread over them, else for this one alone."""
    import orbax.checkpoint as ocp

    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    if jax.process_count() == 1 or any(s is not None and not s.is_fully_addressable for s in shardings):
        return ocp.StandardCheckpointer()
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process {here}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)
