"""A checkpoint comes back bit for bit, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna.checkpoints import native

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


def test_saving_again_replaces_and_leaves_nothing_else(folder):
    native.save(folder, jax.tree.map(lambda x: 2 * x, PARAMS), {})
    np.testing.assert_array_equal(native.load(folder, LIKE)["w"], 2 * PARAMS["w"])
    assert [p.name for p in folder.parent.iterdir()] == ["point"]


def test_a_failed_save_leaves_the_old_checkpoint(folder):
    with pytest.raises(TypeError):
        native.save(folder, PARAMS, {"not json": object()})
    np.testing.assert_array_equal(native.load(folder, LIKE)["w"], PARAMS["w"])
    assert [p.name for p in folder.parent.iterdir()] == ["point"]


def test_every_kind_of_damage_is_named(folder, tmp_path):
    def remove_about():
        (folder / "about.json").unlink()

    def swap_content():
        other = tmp_path / "other"
        native.save(other, jax.tree.map(lambda x: x + 1, PARAMS), {})
        (other / "about.json").write_bytes((folder / "about.json").read_bytes())
        native.shutil.rmtree(folder)
        other.rename(folder)

    def truncate():
        for file in folder.rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(file.read_bytes()[:10])

    def write_about(content):
        return lambda: (folder / "about.json").write_bytes(content)

    def put_a_file_in_its_place():
        native.shutil.rmtree(folder)
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
