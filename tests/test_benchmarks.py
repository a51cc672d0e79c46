"""What `python -m benchmarks` stands on: its table of contents, rows, verdicts and the page."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import harness, rows
from benchmarks.rows import Row

PEERS = [
    pytest.param(part, package, id=f"{name}.{part.__name__}-{package}")
    for name in command.NAMES
    for part in vars(importlib.import_module(f"benchmarks.{name}")).values()
    if getattr(part, "__module__", "") == f"benchmarks.{name}"
    for package in getattr(part, "packages", ())
]


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_states_a_question_and_can_be_measured(name):
    module = importlib.import_module(f"benchmarks.{name}")
    title, _, question = module.__doc__.partition("\n")
    assert title.endswith(".")
    assert f"python -m benchmarks {name}" in question
    assert "?" in question
    assert callable(module.measure)


def test_every_peer_that_is_compared_with_can_be_absent():
    packages = {package for part in PEERS for package in part.values[1:]}
    peers = {"matfree", "laplax", "scipy", "evosax", "torch", "transformers", "steering_vectors", "sklearn"}
    assert packages == peers


@pytest.mark.parametrize(("part", "package"), PEERS)
def test_a_peer_that_is_not_installed_is_one_skipped_row(part, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (row,) = part()
    assert row.note.startswith("skipped: ")
    assert package in row.note
    assert math.isnan(row.value)


@pytest.mark.parametrize(
    ("goal", "low", "high", "verdict"),
    [
        ("<= 1", 0.8, 1.0, "met"),
        ("<= 1", 0.8, 1.1, "not certain"),
        ("<= 1", 1.1, 1.2, "missed"),
        (">= 0.5", 0.5, 0.9, "met"),
        (">= 0.5", 0.4, 0.9, "not certain"),
        (">= 0.5", 0.1, 0.4, "missed"),
        ("", 0.1, 0.4, ""),
    ],
)
def test_a_goal_is_met_or_missed_by_all_of_the_interval_or_not_certain(goal, low, high, verdict):
    assert Row("a", (low + high) / 2, low=low, high=high, goal=goal).verdict == verdict


def test_a_number_without_an_interval_meets_its_goal_or_misses_it():
    assert Row("a", 1.0, goal="<= 1").verdict == "met"
    assert Row("a", 1.1, goal="<= 1").verdict == "missed"
    assert rows.skipped("a", "no peer").verdict == ""


def test_rows_are_the_same_after_a_file(tmp_path):
    timing = harness.Timing(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    found = [
        rows.timed("a | b", timing, floor=0.5, note="x"),
        rows.compared("c", harness.ratio(timing.wall_s, timing.cpu_s), goal="<= 1"),
        rows.skipped("d", "not installed"),
    ]
    rows.write(tmp_path / "rows.jsonl", found)
    assert "NaN" not in (tmp_path / "rows.jsonl").read_text()  # which is no JSON
    assert repr(rows.read(tmp_path / "rows.jsonl")) == repr(found)  # NaN is not equal to itself


def test_the_page_is_drawn_from_rows_and_names_the_goals_that_were_not_met(tmp_path):
    rows.write(
        tmp_path / "lanczos.jsonl", [Row("slow thing", 3.0, "s", goal="<= 2"), Row("good thing", 1.0, goal="<= 2")]
    )
    rows.write(
        tmp_path / "kernels.jsonl", [Row("quick thing", 0.25, "s", floor=0.125), rows.skipped("a peer", "absent")]
    )
    page = command.drawn(tmp_path)
    assert page[0].startswith("Goals: 1 met, 1 missed, 0 not certain;")
    assert sum("slow thing" in line for line in page) == 2
    assert sum("good thing" in line for line in page) == 1
    assert "| quick thing | 0.25 s |  | 1 |  | 0.125 s |  |" in page
    assert "| a peer |  |  |  |  |  | skipped: absent |" in page
    titles = [line for line in page if line.startswith("## ")]
    assert len(titles) == 3
    assert titles[1].startswith("## Geometry kernels")  # in the order of the table of contents


def test_an_unknown_benchmark_ends_with_status_2_and_says_which_there_are():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "warp"], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert run.returncode == 2
    assert "warp" in run.stderr
    assert "lanczos" in run.stderr


def test_the_interval_of_a_median_holds_nine_runs_but_the_ends():
    median, low, high = harness.median_of(np.arange(9.0))
    assert median == 4
    assert (low, high) == (1, 7)


def test_answers_that_differ_are_not_timed():
    assert harness.check_same("x", [1.0, 2.0], [1.0, 2.0], tolerance=0) == "answers 0e+00 apart"
    with pytest.raises(ValueError, match="x: answers must agree to 1e-03"):
        harness.check_same("x", [1.0, 2.01], [1.0, 2.0], tolerance=1e-3)
    with pytest.raises(ValueError, match="nan"):
        harness.check_same("x", [np.nan], [1.0], tolerance=1e-3)


def test_programs_run_in_turn_nine_times_and_three_times_where_patience_ends(monkeypatch):
    order = []

    def measure(name):
        order.append(name)
        return 1.0, 2.0

    one, other = harness.in_turn(lambda: measure("a"), lambda: measure("b"))
    assert order == ["a", "b"] * 9
    assert one.wall_s.tolist() == [1.0] * 9
    assert other.cpu_s.tolist() == [2.0] * 9
    monkeypatch.setattr(harness, "PATIENCE_S", 0.0)
    assert len(harness.in_turn(lambda: measure("a"))[0].wall_s) == 3
