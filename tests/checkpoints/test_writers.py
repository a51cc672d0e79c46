"""Several writers of one file or folder: whole at the end, of one of them, and nothing beside it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lacuna.checkpoints.whole_folder import whole_folder
from lacuna.reports import rundir

NUM_WRITERS = 8


def of_all(work):
    """Every writer's work at once; raises what one of them raises."""
    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        return list(writers.map(work, range(64)))


def test_a_file_of_several_writers_is_that_of_one(tmp_path):
    def work(number):
        rundir.write_json(tmp_path / "a.json", {"numbers": [number] * 1000})

    of_all(work)
    assert len(set(json.loads((tmp_path / "a.json").read_text())["numbers"])) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_of_several_writers_is_that_of_one(tmp_path):
    def work(number):
        with whole_folder(tmp_path / "a", replace=True) as unfinished:
            for name in "bc":
                (unfinished / name).write_text(str(number))

    of_all(work)
    assert (tmp_path / "a" / "b").read_text() == (tmp_path / "a" / "c").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_fails_leaves_the_file_that_was_there(tmp_path):
    rundir.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        rundir.write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
