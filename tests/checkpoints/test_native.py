"""A checkpoint comes back bit for bit, or not at all."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lacuna import meshes, trees
from lacuna.checkpoints import native
from lacuna.errors import InvalidInput
from lacuna.models import Lora
from lacuna.training import Trajectory

PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "layers": {"b": jnp.arange(4, dtype=jnp.bfloat16)}}
LIKE = jax.eval_shape(lambda: PARAMS)


@pytest.fixture
def folder(tmp_path):
    native.save(tmp_path / "point", PARAMS, {"made_by": "a test"})
    return tmp_path / "point"


def test_the_bits_and_dtypes_come_back(folder):
    again = native.load(folder, LIKE)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(PARAMS), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


POINT = {"w": jnp.linspace(-1, 1, 16).reshape(8, 2), "b": jnp.ones(3)}
TREES = {
    "an adapter": lambda: Lora({"layers": {"up": {"A": jnp.ones((2, 3, 1)), "B": jnp.zeros((2, 1, 3))}}}, 2.0).params,
    "a trajectory": lambda: Trajectory(
        jax.tree.map(lambda x: jnp.stack([x, -x]), POINT), jnp.arange(2), jnp.ones(2), POINT
    ),
    "an optimiser": lambda: optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(POINT),
    "a run": lambda: {"point": (POINT, None), "step": 3, "rate": 0.5, "key": jax.random.key(1), "nothing": {}},
}


@pytest.mark.parametrize("what", TREES)
def test_any_tree_comes_back(what, tmp_path):
    tree = TREES[what]()
    native.save(tmp_path / "point", tree, {})
    again = native.load(tmp_path / "point", jax.eval_shape(lambda: tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert trees.content_digest(again) == trees.content_digest(jax.tree.map(jnp.asarray, tree))


def test_what_one_mesh_saved_another_loads(tmp_path):
    split, other = (
        NamedSharding(meshes.model_mesh(model, jax.devices()), PartitionSpec(meshes.MODEL)) for model in (8, 2)
    )
    native.save(
        tmp_path / "point", jax.device_put(POINT, {"w": split, "b": SingleDeviceSharding(jax.devices()[1])}), {}
    )
    like = {
        "w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=other),
        "b": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    again = native.load(tmp_path / "point", like)
    assert again["w"].sharding == other
    assert {device.id for device in again["b"].devices()} == {0}
    assert trees.content_digest(again) == trees.content_digest(POINT)


def test_saving_again_replaces_and_leaves_nothing_else(folder):
    native.save(folder, jax.tree.map(lambda x: 2 * x, PARAMS), {})
    np.testing.assert_array_equal(native.load(folder, LIKE)["w"], 2 * PARAMS["w"])
    assert [p.name for p in folder.parent.iterdir()] == ["point"]


def test_a_failed_save_leaves_the_old_checkpoint(folder):
    with pytest.raises(TypeError):
        native.save(folder, PARAMS, {"not json": object()})
    np.testing.assert_array_equal(native.load(folder, LIKE)["w"], PARAMS["w"])
    assert [p.name for p in folder.parent.iterdir()] == ["point"]


@pytest.mark.parametrize("after_the_first", [False, True])
def test_an_old_checkpoint_comes_back_if_the_new_one_cannot_take_its_place(folder, monkeypatch, after_the_first):
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        rename(self, target)
        if Path(target).name == "old" and after_the_first:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        native.save(folder, jax.tree.map(lambda x: 2 * x, PARAMS), {})
    np.testing.assert_array_equal(native.load(folder, LIKE)["w"], PARAMS["w"])
    assert [p.name for p in folder.parent.iterdir()] == ["point"]


@pytest.mark.parametrize("tree", [{}, jnp.ones(3), {"a": jnp.ones(2), "b": jnp.zeros((0, 3))}, None])
def test_what_is_no_tree_of_arrays_is_refused(tree, tmp_path):
    with pytest.raises(InvalidInput, match="a checkpoint holds a tree of arrays"):
        native.save(tmp_path / "point", tree, {})
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_a_checkpoint_cannot_change_its_digest(folder):
    native.save(folder, PARAMS, {"params_sha256": "of another"})
    native.load(folder, LIKE)


def test_a_checkpoint_may_be_read_by_those_who_may_read_what_its_owner_makes(folder, tmp_path):
    (tmp_path / "made").mkdir()
    assert folder.stat().st_mode == (tmp_path / "made").stat().st_mode


def test_every_kind_of_damage_is_named(folder, tmp_path):
    def remove_about():
        (folder / "about.json").unlink()

    def swap_content():
        other = tmp_path / "other"
        native.save(other, jax.tree.map(lambda x: x + 1, PARAMS), {})
        (other / "about.json").write_bytes((folder / "about.json").read_bytes())
        shutil.rmtree(folder)
        other.rename(folder)

    def truncate():
        for file in folder.rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(file.read_bytes()[:10])

    def write_about(content):
        return lambda: (folder / "about.json").write_bytes(content)

    def put_a_file_in_its_place():
        shutil.rmtree(folder)
        folder.write_text("no folder")

    about = [write_about(content) for content in (b"[]", b"{}", b"\xff", b"")]
    for damage in (swap_content, truncate, remove_about, *about, put_a_file_in_its_place):
        damage()
        with pytest.raises(native.DamagedCheckpoint, match="point"):
            native.load(folder, LIKE)
        native.save(folder, PARAMS, {})


def test_another_tree_is_refused(folder):
    with pytest.raises(native.DamagedCheckpoint):
        native.load(folder, {"w": LIKE["w"]})
