"""Meshes: the axis `candidates`, over which searches run side by side, and the axis `model`, which splits one model.

One code path serves one CPU core, eight GPUs and a TPU slice: `jax.shard_map` over the first. (`jax.pmap`
is today a wrapper of the same thing.)
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lacuna.errors import InvalidInput

CANDIDATES, MODEL = "candidates", "model"


def use_all_cpu_cores() -> None:
    """Show each CPU core to JAX as a device of its own, so that a map over candidates fills them all.

    XLA runs a small network on about one core however many there are. Call this before anything touches a
    device. A number of CPU devices that somebody has already chosen is left as it is, and so are accelerators.

    Raises:
      InvalidInput: JAX has already started.
    """
    chosen = _setting("jax_num_cpu_devices") > 0 or "xla_force_host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    )
    if chosen:
        return
    # The cores of a container or a batch job may be fewer than the machine's; macOS cannot tell.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as started:
        raise InvalidInput(
            "meshes.use_all_cpu_cores() must run before JAX touches a device",
            got="a backend that is already running",
            hint="call it right after `import jax`",
        ) from started


def keep_compiled(folder: Path | str) -> None:
    """Keep compiled programs in a folder, all of them, for the next process that needs the same.

    Whoever can write to the folder can run code here: never one that others write to.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def all_devices() -> list[jax.Device]:
    """What meshes are made of unless they are given devices: all there are, on all hosts."""
    return jax.devices()


def candidate_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices` (default: all of them, on all hosts), with the axis `candidates`."""
    devices = all_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (CANDIDATES,), axis_types=(AxisType.Auto,), devices=devices)


def model_mesh(model: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of [candidates, model] over `devices` (default: all): each model lies on `model` of them.

    Raises:
      InvalidInput: `model` does not divide the number of devices.
    """
    devices = all_devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise InvalidInput("the number of devices must be a multiple of `model`", got=f"{len(devices)} and {model}")
    shape = (len(devices) // model, model)
    return jax.make_mesh(shape, (CANDIDATES, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh, the partition of what is computed on it left to the compiler on every axis."""
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same tree with a full copy on every device of the mesh; on several hosts each has to have the same values."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def of_leaf(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(of_leaf(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, everywhere, lambda part: value[part])

    return jax.tree.map(of_leaf, tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """The same tree on the mesh: a leaf that is there already stays as it is split, any other is copied to all.

    Raises:
      InvalidInput: a leaf is split over the axis `candidates`, which needs it whole.
    """

    def of_leaf(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or not _same_devices(sharding.mesh, mesh):
            return replicate(leaf, mesh)
        names = {name for part in sharding.spec for name in (part if isinstance(part, tuple) else (part,))}
        if CANDIDATES in names:
            raise InvalidInput(
                f"parameters may be split over the axis `{MODEL}` alone", got=f"{sharding.spec}", hint="load_hf(mesh=)"
            )
        return leaf if sharding.mesh == mesh else jax.device_put(leaf, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(of_leaf, tree)


def _same_devices(one: Any, other: Mesh) -> bool:
    """Whether two meshes differ in the kinds of their axes at most."""
    if not isinstance(one, Mesh) or one.axis_names != other.axis_names or one.devices.shape != other.devices.shape:
        return False
    return bool(np.all(one.devices == other.devices))


def for_candidates(mesh: Mesh | None, params: Any) -> Mesh:
    """The mesh of a sweep: the given one, or that of the parameters, or all devices; its axes left to the compiler.

    Raises:
      InvalidInput: it has no axis `candidates`.
    """
    mesh = mesh or of_tree(params) or candidate_mesh()
    if CANDIDATES not in mesh.axis_names:
        raise InvalidInput("a sweep needs a mesh with the axis `candidates`", got=mesh.axis_names)
    return automatic(mesh)


def of_tree(tree: Any) -> Mesh | None:
    """The mesh of candidates that a tree lies on already, if it does."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    found = (s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh))
    return next((automatic(mesh) for mesh in found if CANDIDATES in mesh.axis_names), None)


def describe(mesh: Mesh) -> dict[str, Any]:
    """What a result may depend on besides its inputs: platform, device kind and count, processes, precision."""
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": mesh.size,
        "num_processes": jax.process_count(),
        "matmul_precision": _setting("jax_default_matmul_precision") or "default",
        "threefry_partitionable": _setting("jax_threefry_partitionable"),
    }


def _setting(name: str) -> Any:
    """A configuration value of JAX as it holds here, context managers included."""
    return getattr(jax.config, name)
