"""What runs here on a CPU lowers for CUDA GPUs and TPUs too; its CPU part, read back from bytes, has the same bits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from lacuna import geometry, keys, meshes
from lacuna.search import Sweep, gaussian, in_basis
from lacuna.search.evaluate import program_of
from lacuna.search.stepper import Stepper

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
    "extrapolate": (lambda r: geometry.extrapolate(r, 9.0, rank=2), ROWS),
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


LOOPS_OF_THE_HOST = ("sketched_gram", "streamed_gram")
"""Not programs but loops over them, which add up in float64."""


def is_kernel(name):
    """Whether a public name computes: a function, or a class whose objects are called. Types of results do not."""
    thing = getattr(geometry, name)
    return (
        name not in LOOPS_OF_THE_HOST
        and not name.startswith("_")
        and ("__call__" in vars(thing) if inspect.isclass(thing) else callable(thing))
    )


def assert_lowers(function, *arguments, ulps=0):
    """One module for all platforms, fit to be carried elsewhere: as bytes, which hold leaves and no types of ours."""
    leaves, tree = jax.tree.flatten(arguments)
    jitted = jax.jit(lambda *leaves: jax.tree.leaves(function(*tree.unflatten(leaves))))
    carried = export.deserialize(export.export(jitted, platforms=PLATFORMS)(*leaves).serialize())
    assert carried.platforms == PLATFORMS
    for here, there in zip(jitted(*leaves), jax.jit(carried.call)(*leaves), strict=True):
        same = oracles.bits(here) == oracles.bits(there)
        assert same or (ulps and np.allclose(here, there, rtol=ulps * 2**-23, atol=0))
    return carried


@pytest.mark.parametrize("name", sorted({*KERNELS, *filter(is_kernel, dir(geometry))}))
def test_every_kernel_lowers_for_every_platform(name):
    kernel, *arguments = KERNELS[name]
    assert_lowers(kernel, *arguments)


@pytest.mark.parametrize("name", ["one device", "wide, on four", "in a basis", "with the model split"])
def test_a_sweep_step_lowers_for_every_platform(name):
    loss, params, batch = problems.transformer()
    family, width, mesh = gaussian(stacked=problems.stacked), 1, meshes.candidate_mesh(jax.devices()[:1])
    if name == "wide, on four":
        width, mesh = 2, meshes.candidate_mesh(jax.devices()[:4])
    elif name == "in a basis":
        family = in_basis(geometry.random_basis(KEY, params, rank=2), block=4)
    elif name == "with the model split":
        mesh = meshes.model_mesh(2, jax.devices()[:4])
        by_columns = NamedSharding(mesh, PartitionSpec(None, "model"))
        params = params | {"embedding": jax.device_put(params["embedding"], by_columns)}
    stepper = Stepper(
        program_of(loss, family, width=width), Sweep(family, (1e-2,), 4, width=width), params, batch, mesh
    )
    # Another partitioner adds up the parts of a split product in another order.
    carried = assert_lowers(stepper.step, *stepper.arguments(0, 1), ulps=4 if "split" in name else 0)
    assert carried.nr_devices == mesh.size
