"""What runs here on a CPU lowers for CUDA GPUs and TPUs too; its CPU part, read back from bytes, has the same bits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest
from jax import export

from lacuna import geometry, keys, meshes
from lacuna.search import gaussian
from lacuna.search.evaluate import granule, make_step

PLATFORMS = ("cpu", "cuda", "tpu")
KEY = keys.root(3)


def rows(k, seed):
    """k vectors on a small tree: layers and a scalar."""
    rng = np.random.default_rng(seed)
    shapes = {"layers": (2, 3, 5), "scale": ()}
    return {name: jnp.asarray(rng.normal(size=(k, *shape)), jnp.float32) for name, shape in shapes.items()}


def stacked(name):
    return name == "layers"


def half_square(point):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(point)) / 2


def recovery_on_the_way_to_zero(start, basis):
    return geometry.functional_recovery(half_square, start, jax.tree.map(jnp.negative, start), basis)


def diagonal(delta):
    return jax.tree.map(lambda x: x * jnp.arange(1.0, 1 + x.size).reshape(x.shape), delta)


def lanczos_and_arnoldi(start):
    return [geometry.krylov(diagonal, start, rank=4, kind=kind) for kind in ("lanczos", "arnoldi")]


ROWS, DELTA = rows(4, seed=0), jax.tree.map(lambda x: x[0], rows(1, seed=1))
LAYERS = {"layers": DELTA["layers"]}  # a leaf of noise takes a second to compile
BASIS, OTHER = geometry.orthonormalise(ROWS), geometry.orthonormalise(rows(3, seed=2))
BLOCKS = geometry.block_orthonormalise(ROWS, stacked=stacked)

KERNELS = {
    "Sketch": (lambda key, d: geometry.Sketch(key, 16)(d), KEY, LAYERS),
    "append": (geometry.append, geometry.empty(DELTA, capacity=2), DELTA),
    "block_capture": (geometry.block_capture, BLOCKS, DELTA),
    "block_orthonormalise": (lambda r: geometry.block_orthonormalise(r, stacked=stacked), ROWS),
    "capture": (geometry.capture, BASIS, DELTA),
    "drift": (geometry.drift, BASIS, OTHER),
    "empty": (lambda d: geometry.empty(d, capacity=2), DELTA),
    "functional_recovery": (recovery_on_the_way_to_zero, DELTA, BASIS),
    "gradient_basis": (lambda r: geometry.gradient_basis(r, rank=2), ROWS),
    "gram": (geometry.gram, ROWS),
    "krylov": (lanczos_and_arnoldi, DELTA),
    "orthonormalise": (geometry.orthonormalise, ROWS),
    "overlap": (geometry.overlap, BASIS, OTHER),
    "prefix_captures": (geometry.prefix_captures, ROWS, DELTA),
    "principal_angles": (geometry.principal_angles, BASIS, OTHER),
    "project": (geometry.project, BASIS, DELTA),
    "random_basis": (lambda key, d: geometry.random_basis(key, d, rank=2), KEY, LAYERS),
    "random_block_basis": (lambda key, d: geometry.random_block_basis(key, d, rank=2, stacked=stacked), KEY, LAYERS),
    "random_mass": (geometry.random_mass, BASIS.rank, DELTA),
    "remainder_captures": (geometry.remainder_captures, ROWS, DELTA),
    "signal": (geometry.signal, BASIS, DELTA),
    "spectrum": (geometry.spectrum, ROWS),
    "spectrum_of": (geometry.spectrum_of, jnp.asarray([3.0, 1.0, 0.0])),
    "task_vector_basis": (geometry.task_vector_basis, ROWS),
    "trajectory_prefix": (lambda r: geometry.trajectory_prefix(r, rank=2), ROWS),
}


def is_kernel(name):
    """Whether a public name computes: a function, or a class whose objects are called. Types of results do not."""
    thing = getattr(geometry, name)
    return not name.startswith("_") and ("__call__" in vars(thing) if inspect.isclass(thing) else callable(thing))


def assert_lowers(function, *arguments):
    """One module for all platforms, fit to be carried elsewhere: as bytes, which hold leaves and no types of ours."""
    leaves, tree = jax.tree.flatten(arguments)
    jitted = jax.jit(lambda *leaves: jax.tree.leaves(function(*tree.unflatten(leaves))))
    carried = export.deserialize(export.export(jitted, platforms=PLATFORMS)(*leaves).serialize())
    assert carried.platforms == PLATFORMS
    assert oracles.bits(jax.jit(carried.call)(*leaves)) == oracles.bits(jitted(*leaves))
    return carried


@pytest.mark.parametrize("name", sorted({*KERNELS, *filter(is_kernel, dir(geometry))}))
def test_every_kernel_lowers_for_every_platform(name):
    kernel, *arguments = KERNELS[name]
    assert_lowers(kernel, *arguments)


@pytest.mark.parametrize(("num_devices", "width"), [(1, 1), (4, 2)])
def test_a_sweep_step_lowers_for_every_platform(num_devices, width):
    loss, params, batch = problems.transformer()
    mesh = meshes.candidate_mesh(jax.devices()[:num_devices])
    step = make_step(loss, gaussian(stacked=problems.stacked), mesh, width=width)
    scales, ids = jnp.asarray([1e-2, -1e-2]), jnp.arange(granule(mesh, width), dtype=jnp.uint32)
    carried = assert_lowers(step, *meshes.replicate((params, batch, KEY, scales, ids), mesh))
    assert carried.nr_devices == num_devices
