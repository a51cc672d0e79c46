"""A run's folder is named by its time and configuration, and says what it was made with."""

import json
from pathlib import Path

import pytest

from lacuna.errors import InvalidInput
from lacuna.reports import rundir


def test_the_hash_tells_configurations_apart_and_forgets_their_order():
    assert rundir.config_hash({"a": 1, "b": 2}) == rundir.config_hash({"b": 2, "a": 1})
    assert rundir.config_hash({"a": 1}) != rundir.config_hash({"a": 2})


def test_a_new_run_is_only_a_name(tmp_path):
    path = rundir.new_run(tmp_path, "sweep", {"a": 1})
    assert path.parent == tmp_path / "sweep"
    assert path.name.endswith("-" + rundir.config_hash({"a": 1}))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_json_and_names_versions_and_devices():
    found = rundir.environment({"num_devices": 3})
    assert json.loads(json.dumps(found)) == found
    assert found["num_devices"] == 3
    assert found["packages"]["jax"]
    assert len(found["commit"]) in (0, 40)


def test_a_folder_can_be_used_if_it_is_one_or_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for good in (tmp_path, tmp_path / "a" / "b", Path("new"), Path()):
        rundir.check_folder(good)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for bad in (tmp_path / "file", tmp_path / "file" / "a" / "b", Path("file"), Path("dangling")):
        with pytest.raises(InvalidInput, match="must be a folder; got the file"):
            rundir.check_folder(bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir.os, "access", lambda path, mode: False)  # modes do not bind root
    with pytest.raises(InvalidInput, match="can be written to"):
        rundir.check_folder(tmp_path / "run")


def test_a_damaged_document_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{")
    for name in ("config.json", "absent.json"):
        with pytest.raises(InvalidInput, match=name):
            rundir.read_json(tmp_path / name)
