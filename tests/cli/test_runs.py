"""What becomes of a run: gone on with, extended, exported, planned; noise of other kinds."""

import json
import re
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_run import SETTINGS, SMALL

from lacuna import cli, search, setups, trees
from lacuna.checkpoints import native
from lacuna.reports import records
from lacuna.search.ledger import Ledger


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sha256(run):
    return json.loads((run / "result.json").read_text())["scores_sha256"]


def test_a_run_goes_on_by_its_folder_alone(lacuna, interrupted, finished):
    assert lacuna("sweep", "--resume", str(interrupted)) == 0
    assert sha256(interrupted) == sha256(finished[0])
    config = json.loads((interrupted / "config.json").read_text())
    assert config["command"] == json.loads((finished[0] / "config.json").read_text())["command"]


def test_a_run_is_extended_by_its_folder_and_a_number(lacuna, copied, tmp_path):
    assert lacuna("sweep", "--extend", str(copied), "--num-candidates", "40") == 0
    assert lacuna("sweep", "--num-candidates", "40", *SETTINGS, "--out", "whole") == 0
    assert sha256(copied) == sha256(tmp_path / "whole")
    assert pq.read_table(copied / "scores.parquet").equals(pq.read_table(tmp_path / "whole" / "scores.parquet"))
    assert "lacuna sweep --num-candidates 40 " in (copied / "report.md").read_text()


def test_the_page_of_a_run_that_was_not_extended_to_the_end_says_so(lacuna, copied, monkeypatch, capsys):
    append = Ledger.append

    def stop_after_one_more(ledger, start, scores):
        append(ledger, start, scores)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "append", stop_after_one_more)
    assert lacuna("sweep", "--extend", str(copied), "--num-candidates", "40") == cli.INTERRUPTED
    assert lacuna("report", str(copied)) == 0
    assert re.search(r"2\d draws are scored, and this page is of 20: lacuna sweep --extend ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--resume", "RUN", "--num-candidates", "40"],
            "was to have 20 draws; got --num-candidates 40. Try: .*--ext",
        ),
        (["--resume", "RUN", "--seed", "1"], "another identity .*differs in seed.*got seed 1 against 0 there"),
        (["--resume", "RUN", "--unit", "exact_radius"], "another identity .*differs in unit"),
        (["--resume", "RUN", "--out", "other"], "goes on in its own folder; got --out other"),
        (["--resume", "RUN", "--extend", "RUN"], "two ways to go on; got both"),
        (["--resume", "RUN", "--mesh", "3", "1"], "the number of devices, 2; got 3 1. Try: --mesh 2 1"),
        (["--extend", "RUN"], "takes more than its 20 draws; got --num-candidates 20"),
        (["--extend", "RUN", "--num-candidates", "10"], "takes more than its 20 draws; got --num-candidates 10"),
        (["--resume", "nowhere"], "nowhere must be the folder of a run; got no config.json in it"),
    ],
)
def test_what_a_run_cannot_become_is_one_sentence_and_it_is_left_alone(lacuna, copied, capsys, arguments, sentence):
    before = content(copied)
    assert lacuna("sweep", *[str(copied) if a == "RUN" else a for a in arguments]) == 2
    assert re.fullmatch(rf"lacuna: .*{sentence}.*\.\n", capsys.readouterr().err)
    assert content(copied) == before


def test_a_damaged_record_is_named_and_scored_again(lacuna, copied, capsys):
    before = sha256(copied)
    log = bytearray((copied / "scores.log").read_bytes())
    log[100] ^= 1
    (copied / "scores.log").write_bytes(log)
    assert lacuna("sweep", "--resume", str(copied)) == 0
    assert re.search(
        r"scores.log is damaged: record 1 .* fails its checksum; draws 0 to \d+ are", capsys.readouterr().out
    )
    assert sha256(copied) == before


@pytest.mark.parametrize("place", [1, 3])
def test_the_exported_candidate_has_the_recorded_loss(lacuna, copied, cache, tmp_path, capsys, place):
    assert lacuna("export", str(copied), "--place", str(place), "--to", "winner") == 0
    assert "as recorded bit for bit" in capsys.readouterr().out
    setup = setups.prepare(setups.SetupConfig(), eval_batch_size=8, cache=cache)
    params = native.load(tmp_path / "winner", jax.eval_shape(lambda: setup.params))
    (top,) = records.select(records.read(copied / "records.jsonl"), "top_score", rank=place)
    assert search.score(setup.task.objective, params, setup.batch) == np.float32(top.value)
    about = json.loads((tmp_path / "winner" / "about.json").read_text())
    assert about["recipe"]["index"] == top.where["index"]


def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(lacuna, copied, tmp_path, capsys):
    identity = json.loads((copied / "identity.json").read_text())
    for arguments, sentence in (
        (["--place", "4"], "place must be one of the 3 .*; got 4"),
        (["--place", "0"], "place must be one of the 3 .*; got 0"),
        ([], "weights that .* was searched around must be there"),
    ):
        if not arguments:
            (copied / "identity.json").write_text(json.dumps(identity | {"params_sha256": "other"}))
        assert lacuna("export", str(copied), "--to", "winner", *arguments) == 2
        assert re.fullmatch(rf"lacuna: .*{sentence}.*\.\n", capsys.readouterr().err)
        assert not (tmp_path / "winner").exists()


def test_a_plan_says_what_a_sweep_takes(lacuna, tmp_path, capsys):
    assert lacuna("plan", "--num-candidates", "1000", *SETTINGS) == 0
    told = capsys.readouterr().out
    assert re.search(r"candidates \(draws x sigmas x signs\) +4,000 *\n", told)
    assert re.search(r"candidates a second +[\d.,]+ *\n", told)
    assert "lacuna sweep --num-candidates 1000 --sigmas 0.001 0.01 --batch-size 8" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "noise", "words"),
    [
        (
            ["--noise", "low_rank", "--rank", "2", "--unit", "rms_radius"],
            "low_rank, rank 2",
            "compared: |σ, rms radius",
        ),
        (["--relative"], "scaled gaussian", "slope along the noise|step of σ = 1"),
        (
            ["--scales", "layers/mlp/up.*=2", "head/kernel=1", "--unit", "exact_radius"],
            "scaled gaussian",
            "σ, radius",
        ),
        (["--mesh", "1", "2", "--noise", "rademacher"], "rademacher", "loss"),
    ],
)
def test_noise_of_other_kinds_is_searched_and_reported(lacuna, cache, tmp_path, arguments, noise, words):
    assert lacuna("sweep", *SMALL, "--out", "run", *arguments) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"| noise | {noise} |" in report
    for word in words.split("|"):
        assert word in report
    assert lacuna("export", "run", "--to", "winner") == 0
    base = setups.prepare(setups.SetupConfig(), eval_batch_size=8, cache=cache).params
    winner = native.load(tmp_path / "winner", jax.eval_shape(lambda: base))
    pairs = zip(trees.named_leaves(base), jax.tree.leaves(winner), strict=True)
    moved = {name for (name, before), after in pairs if np.any(before != after)}
    chosen = {"layers/mlp/up/kernel", "head/kernel"}
    assert moved == (chosen if "--scales" in arguments else set(trees.leaf_names(base)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scales", "layers/.*"], "scales are PATTERN=NUMBER; got `layers/.*`"),
        (["--scales", "nothing=1"], "every pattern of scales must match the name of a leaf; got `nothing`"),
        (["--scales", "layers/.*=-1"], "a scale must be 0 or in [1e-12, 1e+12]"),
        (["--scales", ".*=1", "--relative"], "relative scales every leaf by its size; got scales, too"),
        (["--noise", "low_rank", "--rank", "0"], "rank must be at least 1; got 0"),
        (["--mesh", "2", "3"], "the number of devices, 2; got 2 3"),
        (["--sigmas", "1e-36", "--unit", "rms_radius"], "steps must lie in the range of float32"),
        (["--num-processes", "2"], "go together; got none, 2, none"),
    ],
)
def test_noise_that_cannot_be_is_one_sentence_and_writes_nothing(lacuna, tmp_path, capsys, arguments, sentence):
    assert lacuna("sweep", *SMALL, *arguments) == 2
    assert re.fullmatch(rf"lacuna: .*{re.escape(sentence)}.*\.\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_program_of_your_own_is_not_gone_on_with_by_the_command(lacuna, copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({name: v for name, v in config.items() if name != "state"}))
    (copied / "sha256.json").unlink()
    shutil.rmtree(copied / "figures")
    assert lacuna("sweep", "--resume", str(copied)) == 2
    assert "run_sweep(..., out=, resume=True)" in capsys.readouterr().err
    assert lacuna("export", str(copied), "--to", "winner") == 2
    assert "lacuna.search.candidate" in capsys.readouterr().err
