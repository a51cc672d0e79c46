"""All devices lie on one axis, and a device count is fixed once JAX has started."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from lacuna import meshes


def test_the_mesh_has_one_automatic_axis_named_candidates_over_all_devices():
    mesh = meshes.candidate_mesh()
    assert mesh.axis_names == ("candidates",)
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(mesh.devices.flat) == meshes.all_devices()


def test_a_mesh_takes_the_devices_it_is_given():
    chosen = jax.devices()[2:5]
    assert list(meshes.candidate_mesh(chosen).devices.flat) == chosen


def test_a_replicated_tree_lies_whole_on_every_device():
    mesh = meshes.candidate_mesh(jax.devices()[:4])
    tree = meshes.replicate({"w": jnp.arange(6.0)}, mesh)
    assert tree["w"].sharding.is_fully_replicated
    assert [shard.data.tolist() for shard in tree["w"].addressable_shards] == [list(range(6))] * 4


def test_a_number_of_cpu_devices_that_was_chosen_is_left_as_it_is():
    meshes.use_all_cpu_cores()
    assert jax.config.jax_num_cpu_devices == 8


@pytest.mark.parametrize(("before", "outcome"), [("", "cores"), ("jax.devices()", "InvalidInput")])
def test_every_core_is_a_device_unless_jax_has_started(before, outcome):
    program = f"""
import os, jax
from lacuna import errors, meshes
{before}
try:
    meshes.use_all_cpu_cores()
    found = meshes.candidate_mesh().devices.size
    print("cores" if found == jax.device_count() == len(os.sched_getaffinity(0)) else found)
except errors.InvalidInput as error:
    assert "already running" in str(error) and "import jax" in str(error)
    print("InvalidInput")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == outcome


def test_the_description_names_what_a_result_may_depend_on():
    described = meshes.describe(meshes.candidate_mesh(jax.devices()[:2]))
    assert described["platform"] == "cpu"
    assert described["num_devices"] == 2
    assert described["num_processes"] == 1
    assert described["matmul_precision"] == "default"
    with jax.default_matmul_precision("highest"):
        assert meshes.describe(meshes.candidate_mesh())["matmul_precision"] == "highest"
