"""`lacuna sweep` from end to end, on a model that is hardly trained, and everything it refuses."""

import json
import re
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_run import SETTINGS, SMALL

from lacuna import cli, search, setups, trees
from lacuna.reports import records, sweep_outcome
from lacuna.search import reporting
from lacuna.types import Objective


def interrupt(*_, **__):
    raise KeyboardInterrupt


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sweep_leaves_a_whole_run_behind_and_prints_its_table(finished):
    run, printed = finished
    names = {f"{name}.json" for name in ("config", "environment", "identity", "result", "sha256")}
    names |= {"records.jsonl", "report.md"}
    assert {p.name for p in run.iterdir()} == names | {"figures", "scores.log", "scores.parquet"}
    table = pq.read_table(run / "scores.parquet")
    assert table.num_rows == 20 * 2 * 2
    found = records.read(run / "records.jsonl")
    assert records.value(found, "top_score", rank=1) == min(table["score"].to_pylist())
    for row in sweep_outcome.sigma_rows(found):
        assert f"{row.measured:.3g}" in printed
        assert row.verdict in printed


def test_a_longer_run_goes_on_from_a_shorter_one(lacuna, copied):
    log = (copied / "scores.log").read_bytes()
    assert lacuna("sweep", "--num-candidates", "40", *SETTINGS, "--out", str(copied)) == 0
    assert (copied / "scores.log").read_bytes().startswith(log)
    assert pq.read_table(copied / "scores.parquet").num_rows == 40 * 2 * 2
    assert json.loads((copied / "config.json").read_text())["num_candidates"] == 40
    assert "lacuna sweep --num-candidates 40 " in (copied / "report.md").read_text()


def test_a_shorter_run_is_refused_and_the_longer_one_left_alone(lacuna, copied, capsys):
    before = content(copied)
    assert lacuna("sweep", "--num-candidates", "10", *SETTINGS, "--out", str(copied)) == 2
    assert "holds 20 draws" in capsys.readouterr().err
    assert content(copied) == before


@pytest.mark.parametrize("change", [["--num-candidates", "40"], ["--num-candidates", "20", "--probes", "4"]])
def test_an_interrupted_second_call_leaves_the_report_of_the_first(lacuna, copied, monkeypatch, change):
    before = (copied / "report.md").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(reporting, "landscape", interrupt)
        assert lacuna("sweep", *SETTINGS, *change, "--out", str(copied)) == cli.INTERRUPTED
    assert lacuna("report", str(copied)) == 0
    assert (copied / "report.md").read_bytes() == before


def test_scores_keep_the_name_of_the_commit_that_made_them(lacuna, copied):
    environment = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps(environment | {"commit": "0ld"}))
    assert lacuna("sweep", *SMALL, "--out", str(copied)) == 0
    assert "| commit | 0ld" in (copied / "report.md").read_text()
    assert lacuna("sweep", "--num-candidates", "40", *SETTINGS, "--out", str(copied)) == 0
    report = (copied / "report.md").read_text()
    assert "| commit | 0ld" not in report
    assert "| earlier draws | 0ld" in report


def test_an_interrupted_sweep_says_how_to_go_on_and_then_does(lacuna, finished, capsys, interrupted):
    assert "what was scored is in run; lacuna sweep --resume run goes on from there" in capsys.readouterr().err
    assert lacuna("report", "run") == 2
    assert "lacuna sweep --resume run" in capsys.readouterr().err
    assert lacuna("sweep", *SMALL, "--out", "run") == 0
    assert (interrupted / "result.json").read_text() == (finished[0] / "result.json").read_text()


@pytest.mark.parametrize("stage", ["landscape", "held_out_records"])
def test_a_sweep_interrupted_after_the_search_says_how_to_go_on(lacuna, monkeypatch, capsys, stage):
    monkeypatch.setattr(reporting, stage, interrupt)
    assert lacuna("sweep", *SMALL, "--out", "my run") == cli.INTERRUPTED
    assert "lacuna sweep --resume 'my run' goes on from there" in capsys.readouterr().err


def test_an_interrupted_training_has_nothing_to_go_on_from(lacuna, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setups, "prepare", interrupt)
    assert lacuna("sweep", *SMALL, "--out", "run") == cli.INTERRUPTED
    assert capsys.readouterr().err == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 8 TiB"), RuntimeError("RESOURCE_EXHAUSTED: Unable to allocate 8 TiB\nmore")],
)
def test_too_little_memory_is_one_sentence(lacuna, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(search, "run_sweep", fail)
    assert lacuna("sweep", *SMALL) == 2
    assert re.fullmatch(r"lacuna: .*memory; got .*Unable to allocate 8 TiB. Try: .*\n", capsys.readouterr().err)


def test_another_runtime_error_is_not_hidden(lacuna, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(search, "run_sweep", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        lacuna("sweep", *SMALL)


def test_names_with_brackets_are_printed_as_they_are(lacuna, capsys):
    assert lacuna("sweep", *SMALL, "--out", "[red]run[/blue]") == 0
    assert "[red]run[/blue]" in capsys.readouterr().out
    assert lacuna("report", "[/nowhere]") == 2
    assert "[/nowhere]" in capsys.readouterr().err


def test_the_report_is_redrawn_from_the_records_byte_for_byte(lacuna, copied):
    paths = [p for p in copied.rglob("*") if p.suffix in (".md", ".png")]
    drawn = [p.read_bytes() for p in paths]
    for path in paths:
        path.unlink()
    assert lacuna("report", str(copied)) == 0
    assert [p.read_bytes() for p in paths] == drawn


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "sorted"], "one of copy, .*got `sorted`. Try: `sort`"),
        (["--sigmas", "0"], r"positive finite.*got \(0.0,\)"),
        (["--sigmas", "-1e-3", "1e-3"], r"positive finite.*got \(-0.001"),
        (["--sigmas", "nan"], "positive finite.*nan"),
        (["--sigmas", "1e-2", "1e-3"], "ascending order"),
        (["--num-candidates", "0"], "num_candidates.*got 0"),
        (["--top-k", "81"], "between 1 and the 80 evaluations.*got 81"),
        (["--top-k", "0"], "between 1 and the 80 evaluations.*got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1; got 0"),
        (["--probes", "1"], "probes must be at least 2, or 0 for no prediction; got 1"),
        (["--seed", "-1"], "seed must be.*got -1"),
        (["--setup-seed", "-1"], "seed must be.*got -1"),
        (["--width", "0"], "width must be at least 1; got 0"),
        (["--chunk", "0"], "chunk must be at least 1; got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2_and_writes_nothing(lacuna, tmp_path, capsys, arguments, sentence):
    assert lacuna("sweep", *SMALL, *arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"lacuna: .*{sentence}.*\.\n", err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--cache", "precious/cache must be a folder; got the file .*precious"),
        ("--out", "precious/run must be a folder; got the file .*precious"),
    ],
)
def test_a_folder_that_cannot_be_is_found_out_before_the_training(tmp_path, monkeypatch, capsys, option, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setups.digit_models, "fit", lambda *_, **__: pytest.fail("trained"))
    Path("precious").write_text("thesis")
    folders = {"--cache": "cache", "--out": "run"} | {option: f"precious/{option[2:].replace('out', 'run')}"}
    assert cli.run(["sweep", *SMALL, *chain(*folders.items())]) == 2
    assert re.fullmatch(rf"lacuna: {sentence}. Try: .*\n", capsys.readouterr().err)
    assert content(tmp_path) == {tmp_path / "precious": b"thesis"}


def test_a_folder_of_something_else_is_found_out_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setups.digit_models, "fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "thesis.txt").write_text("precious")
    assert cli.run(["sweep", *SMALL, "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 2
    assert "holds no sweep" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--nonsense", "1"], ["--state", "forgot"], ["--num-candidates", "many"]])
def test_an_option_that_does_not_parse_is_status_2(lacuna, tmp_path, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        lacuna("sweep", *option)
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [["--seed", "1"], ["--batch-size", "9"], ["--task", "copy"], ["--no-antithetic"]])
def test_a_folder_with_another_run_is_left_alone(lacuna, copied, capsys, change):
    before = content(copied)
    assert lacuna("sweep", *SMALL, "--out", str(copied), *change) == 2
    assert "holds a run of another identity" in capsys.readouterr().err
    assert content(copied) == before


def test_a_loss_that_is_not_finite_at_the_base_point_writes_nothing(lacuna, tmp_path, capsys, monkeypatch):
    prepare = setups.prepare

    def broken(*arguments, **options):
        setup = prepare(*arguments, **options)
        return setup._replace(params=jax.tree.map(lambda p: p * np.nan, setup.params))

    monkeypatch.setattr(setups, "prepare", broken)
    assert lacuna("sweep", *SMALL) == 2
    assert "loss at the base point must be finite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_candidates_that_are_not_finite_are_recorded_and_reported(lacuna, tmp_path, capsys, monkeypatch):
    prepare = setups.prepare

    def broken_far_away(*arguments, **options):
        setup = prepare(*arguments, **options)
        near = 2 * trees.norm(setup.params)
        loss = setup.task.objective.loss
        far = Objective(lambda params, batch: jnp.where(trees.norm(params) < near, loss(params, batch), jnp.nan))
        return setup._replace(task=setup.task._replace(objective=far))

    monkeypatch.setattr(setups, "prepare", broken_far_away)
    assert lacuna("sweep", *SMALL, "--sigmas", "1e-3", "10") == 0
    (run,) = tmp_path.glob("runs/sweep/*")
    table = pq.read_table(run / "scores.parquet").to_pylist()
    assert {row["status"] for row in table if row["sigma"] == 10} == {"nonfinite_loss"}
    assert {row["status"] for row in table if row["sigma"] == 1e-3} == {"ok"}
    assert "no finite loss" in capsys.readouterr().out
    assert "| losses that were not finite | 40 at σ = 10 |" in (run / "report.md").read_text()


def test_the_configuration_and_the_command_are_recorded_without_the_folder(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    assert config["sigmas"] == [1e-3, 1e-2]
    assert config["command"].startswith("lacuna sweep --num-candidates 20 --sigmas 0.001 0.01")
    assert "--out" not in config["command"]


def test_the_best_candidate_of_the_report_has_the_reported_loss_bit_for_bit(finished, cache):
    (top,) = records.select(records.read(finished[0] / "records.jsonl"), "top_score", rank=1)
    setup = setups.prepare(setups.SetupConfig(), eval_batch_size=8, cache=cache)
    sweep = search.Sweep(search.gaussian(stacked=setup.model.stacked), (1e-3, 1e-2), 20, top_k=3)
    where = top.where
    winner = search.candidate(setup.params, sweep, where["index"], where["sigma"], where["sign"])
    batch = setup.batch
    assert search.score(setup.task.objective.loss, winner, batch) == np.float32(top.value)


def test_the_winners_are_scored_again_on_eight_batches_and_the_metrics_are_of_the_same_rows(finished, cache):
    found = records.read(finished[0] / "records.jsonl")
    setup = setups.prepare(setups.SetupConfig(), eval_batch_size=8, cache=cache)
    batches = [setup.task.held_out(step) for step in range(8)]
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    for name, value in setup.task.metric(setup.params, rows).items():
        np.testing.assert_allclose(records.value(found, "metric", name=name, point="base"), value, rtol=1e-5)
    (top,) = records.select(found, "top_score", rank=1)
    sweep = search.Sweep(search.gaussian(stacked=setup.model.stacked), (1e-3, 1e-2), 20, top_k=3)
    winner = search.candidate(setup.params, sweep, *(top.where[name] for name in ("index", "sigma", "sign")))
    base, best = ([search.score(setup.task.objective, point, b) for b in batches] for point in (setup.params, winner))
    assert records.value(found, "held_out_gain", group="winner") == pytest.approx(
        np.mean(base) - np.mean(best), rel=1e-3
    )
    assert {record.where["num_batches"] for record in records.select(found, "shrinkage")} == {8}
