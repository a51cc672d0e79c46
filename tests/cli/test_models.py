"""The commands on language models: `plan` and `export`, and what they refuse."""

import json

import pytest
from model_folders import GOLDEN, INDEX, bare, msgpack, sharded

from lacuna import cli, trees
from lacuna.checkpoints import load_hf


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_plan_is_printed_and_judged(capsys):
    assert cli.run(["plan", "--model", str(GOLDEN / "llama"), "--mesh", "2", "4", "--leaves", "--device-gb", "1"]) == 0
    told = capsys.readouterr().out
    assert "checked against the headers of its weights: 6,640 parameters" in told
    assert "2 model(s), each on 4 device(s)" in told
    assert "2 x 16 x 24 / 4" in told
    assert "fits" in told
    assert "TOO LARGE" not in told


def test_a_plan_says_how_many_devices_would_do(capsys):
    assert cli.run(["plan", "--model", str(GOLDEN / "llama"), "--device-gb", "15e-6"]) == 0
    told = capsys.readouterr().out
    assert "TOO LARGE" in told
    assert "The parameters fit on --mesh 1 4: 4 devices." in told
    assert cli.run(["plan", "--model", str(GOLDEN / "llama"), "--device-gb", "1e-9"]) == 0
    assert "The parameters fit on none of --mesh 1 2, 4, ..." in capsys.readouterr().out


def test_an_export_is_what_was_read(capsys, tmp_path):
    source = msgpack(tmp_path / "flax", "gpt2")
    assert cli.run(["export", str(source), "--to", str(tmp_path / "out"), "--max-shard-gb", "4e-6"]) == 0
    assert "7,952 parameters as float32" in capsys.readouterr().out
    assert (tmp_path / "out" / INDEX).exists()
    assert trees.content_digest(load_hf(tmp_path / "out")[1]) == trees.content_digest(load_hf(GOLDEN / "gpt2")[1])
    half = ["export", str(tmp_path / "out"), "--to", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert cli.run(half) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert cli.run(half) == 2
    assert "written to a new folder" in capsys.readouterr().err


def broken(folder):
    (sharded(folder, "llama") / "model-00001-of-00003.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--model", "/nowhere/at/all"], "from a folder or by its id on the hub"),
        (["plan", "--model", str(GOLDEN / "gpt2"), "--mesh", "1", "0"], "at least 1 device on each axis"),
        (["plan", "--model", str(GOLDEN / "gpt2"), "--device-gb", "0"], "device_gb must be positive"),
        (["plan", "--model", "BROKEN"], "model-00001-of-00003.safetensors is missing, and with it `"),
        (["plan", "--model", "ABSURD"], "`n_layer` as an integer from 1 to 4096; got 1000000000000"),
        (["export", "BROKEN", "--to", "OUT"], "model-00001-of-00003.safetensors is missing, and with it `"),
        (["export", str(GOLDEN / "gpt2"), "--to", "OUT", "--max-shard-gb", "0"], "max_shard_gb must be positive"),
        (["verify-hf", "BROKEN"], "model-00001-of-00003.safetensors is missing, and with it `"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_status_2(arguments, message, capsys, tmp_path):
    given = {
        "BROKEN": lambda: str(broken(tmp_path / "broken")),
        "ABSURD": lambda: str(bare(tmp_path / "absurd", "gpt2", n_layer=10**12)),
        "OUT": lambda: str(tmp_path / "out"),
    }
    assert cli.run([given[a]() if a in given else a for a in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
