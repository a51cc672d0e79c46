"""Every experiment from end to end at its smallest, and how a run goes on, is refused and is drawn again."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from experiments import commands as command
from experiments import registry, running
from experiments.recoveries import StartSpec
from lacuna.errors import InvalidInput, RunMismatch
from lacuna.reports import records, rundir
from lacuna.reports.records import Record


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder for the runs, and the trained models that several of them share."""
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module", params=registry.EXPERIMENTS)
def run(smoke, request):
    """The run folder of an experiment with the preset `smoke`: each is run once, within the time of one test."""
    name = request.param
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(smoke)
        assert command.run([f"{name.replace('_', '-')}:smoke", "--cache", str(smoke / "cache")]) == 0
    (run,) = (smoke / "runs" / name).iterdir()
    return run


def test_every_experiment_leaves_a_whole_run_behind(run):
    name = run.parent.name
    report = (run / "report.md").read_text()
    config = json.loads((run / "config.json").read_text())
    assert config["command"] == f"python -m experiments {name.replace('_', '-')}:smoke"
    assert config["command"] in report
    assert "not run at the paper's scale" in report
    assert "nan" not in report
    figures = list((run / "figures").glob("*.png"))
    assert figures
    for figure in figures:
        assert f"(figures/{figure.name})" in report
        assert figure.stat().st_size > 10_000


def test_a_report_is_redrawn_byte_for_byte_elsewhere(run, tmp_path):
    gallery = tmp_path / "gallery"
    assert command.run(["report", str(run), "--to", str(gallery)]) == 0
    # The documents of the run are there, too: it can be drawn again from the gallery.
    for path in [run / "report.md", run / "records.jsonl", run / "config.json", *(run / "figures").iterdir()]:
        assert (gallery / path.relative_to(run)).read_bytes() == path.read_bytes()
    assert rundir.check_seal(gallery)


def test_a_report_is_not_drawn_into_the_folder_of_another_run(tmp_path):
    other = tmp_path / "other"
    (other / "seeds").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="--to must be a folder for a report"):
        running.report(tmp_path / "run", other)
    assert [path.name for path in other.iterdir()] == ["seeds"]


@dataclass(frozen=True)
class Config:
    num_seeds: int = 3
    rank: int = 2
    start: StartSpec = field(default_factory=StartSpec)


def toy(fails_at=None):
    """An experiment of no cost that is interrupted at a seed."""

    def run_seed(config, seed, cache, told):
        if seed == fails_at:
            raise KeyboardInterrupt
        seen.append(seed)
        return [Record("toy", "mass", seed / 10, "1", {"seed": seed})]

    seen = []
    return SimpleNamespace(NAME="toy", run_seed=run_seed, seen=seen)


def run_toy(module, out, config=Config()):
    return running.run(module, config, command="toy", out=out, cache=out.parent, told=lambda sentence: None)


def test_a_killed_run_goes_on_with_the_seed_it_was_at(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_toy(toy(fails_at=2), tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"interrupted. Try: toy --out "):
        running.report(tmp_path / "run")
    module = toy()
    run_toy(module, tmp_path / "run")
    assert module.seen == [2]
    assert [r.value for r in records.read(tmp_path / "run" / "records.jsonl")] == [0.0, 0.1, 0.2]


def test_a_run_that_goes_on_adds_up_its_time(tmp_path):
    run_toy(toy(), tmp_path / "run")
    stamp = tmp_path / "run" / "config.json"
    document = json.loads(stamp.read_text())
    stamp.write_text(json.dumps(document | {"wall_s": 100.0}))
    run_toy(toy(), tmp_path / "run", Config(num_seeds=4))
    assert 100 < json.loads(stamp.read_text())["wall_s"] < 160


def test_a_run_says_where_it_is_and_how_it_goes_on(tmp_path):
    told = []
    running.run(toy(), Config(), command="toy", out=tmp_path / "run", cache=tmp_path, told=told.append)
    assert told[0] == f"toy: {tmp_path / 'run'}; interrupted, it goes on with toy --out {tmp_path / 'run'}"


def test_a_run_may_be_given_more_seeds_and_nothing_else(tmp_path):
    run_toy(toy(), tmp_path / "run")
    module = toy()
    run_toy(module, tmp_path / "run", Config(num_seeds=5))
    assert module.seen == [3, 4]
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(RunMismatch, match="another configuration"):
        run_toy(toy(), tmp_path / "run", Config(rank=3))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunMismatch, match="holds no experiment"):
        run_toy(toy(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trajectory-prefx:small"], "Try: trajectory-prefix:small"),
        (["trajectory-prefix:tiny"], "got `trajectory-prefix:tiny`"),
        (["trajectory-prefix:smoke", "--num-seeds", "0"], "num_seeds must be at least 1; got 0"),
        (["all:smoke", "--out", "x"], "several experiments have a run folder each"),
        (["basis-drift:smoke", "static-bases:smoke", "--out", "x"], "several experiments have a run folder each"),
        (["basis-drift:smoke", "static-base:smoke"], "Try: static-bases:smoke"),
        (["--cache", "x"], "an experiment must be named first; got `--cache`"),
        (["search-scaling:smoke", "--steps", "1", "0.1"], "steps must be two or more, positive and ascending"),
        (["signal-density:smoke", "--num-best", "999"], "num_best must be between 2 and num_draws"),
        (["linear-regime:smoke", "--tasks", "copy"], "tasks must hold the one of interest"),
        (["report", "nowhere"], "nowhere must be the folder of a run"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert command.run(arguments) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command.run(["trajectory-prefix:smoke", "--max-rnk", "3"])
    assert stopped.value.code == 2
    assert "--max-rank" in capsys.readouterr().err


def test_without_arguments_the_experiments_are_listed(capsys):
    assert command.run([]) == 0
    assert "trajectory-prefix" in capsys.readouterr().out


def test_an_option_reaches_the_records(tmp_path, monkeypatch):
    """One value, from the command line to the configuration that is written down."""
    monkeypatch.chdir(tmp_path)
    seen = []
    module = registry.EXPERIMENTS["krylov_recovery"]
    monkeypatch.setattr(module, "run_seed", lambda config, *_: seen.append(config) or [])
    monkeypatch.setattr(running, "report", lambda run, to=None: (run, []))
    assert command.run(["krylov-recovery:smoke", "--size", "31", "--batch-size", "7", "--out", "run"]) == 0
    assert (seen[0].size, seen[0].start.batch_size) == (31, 7)
    document = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (document["size"], document["start"]["batch_size"]) == (31, 7)
    assert document["command"] == "python -m experiments krylov-recovery:smoke --size 31 --batch-size 7"
