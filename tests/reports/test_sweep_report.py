"""Verdicts follow their rule, and a report is drawn from the records of a folder alone."""

import dataclasses
import json
import math
import re

import pytest
import sweeps

from lacuna.errors import InvalidInput
from lacuna.reports import records, sweep_outcome, sweep_report


@pytest.mark.parametrize(
    ("share", "measured", "verdict"),
    [
        (0.95, 1.0, "in band"),
        (0.95, 0.5, "in band"),
        (0.95, 0.4, "OUTSIDE: below"),
        (0.95, 2.1, "OUTSIDE: above"),
        (0.9, 2.1, "not linear: above"),
        (0.2, 1.0, "not linear: in band"),
        (math.nan, 1.0, "in band"),
        (0.95, math.nan, "no finite loss"),
    ],
)
def test_a_verdict_needs_the_band_where_the_odd_share_is_above_nine_tenths(share, measured, verdict):
    rows = sweep_outcome.sigma_rows(sweeps.sweep_records(measured=(measured, 1.0), shares=(share, 0.1)))
    assert rows[0].verdict == verdict


def run_folder(path, found):
    records.write(path / "records.jsonl", found)
    config = {"title": "a test", "command": "lacuna sweep", "antithetic": True, "num_candidates": sweeps.N}
    (path / "config.json").write_text(json.dumps(config))
    (path / "result.json").write_text(json.dumps({"scores_sha256": "abc123"}))
    machine = {"num_devices": 2, "device_kind": "cpu", "machine": "a machine", "packages": {"jax": "0.1"}}
    (path / "environment.json").write_text(json.dumps({**machine, "commit": "", "dirty": False}))
    return path


LEFT = ((2.0, 1.0, (0.5, 0.4, 0.6)), (1.5, 1.2, (0.8, 0.7, 0.9)), (-1.0, -0.9, (0.9, 0.8, 1.0)))
NEXT = (0.03, "rising")


@pytest.mark.parametrize(
    "kind",
    [{}, {"sign": "+"}, sweeps.NOTHING_FINITE, {"left": LEFT, "next_sigma": NEXT}, {"next_sigma": (1e-6, "lost")}],
)
def test_a_report_shows_every_figure_that_it_draws(tmp_path, kind):
    report = sweep_report.write_report(run_folder(tmp_path, sweeps.sweep_records(**kind)))
    text = report.read_text()
    shown = re.findall(r"\((figures/\w+\.png)\)", text)
    assert sorted(tmp_path.glob("figures/*")) == sorted(tmp_path / name for name in shown)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in shown)
    assert "abc123" in text
    assert "lacuna sweep" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_report_can_be_drawn_elsewhere_and_leaves_the_run_as_it_was(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run_folder(run, sweeps.sweep_records())
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    sweep_report.write_report(run, tmp_path / "gallery")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert (tmp_path / "gallery" / "report.md").exists()


def test_the_report_of_an_interrupted_run_says_how_to_go_on(tmp_path):
    run_folder(tmp_path, [])
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(InvalidInput, match=rf"interrupted. Try: lacuna sweep --resume {re.escape(str(tmp_path))}"):
        sweep_report.write_report(tmp_path)
    assert not (tmp_path / "figures").exists()


def edit(path, **changes):
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: entry for name, entry in document.items() if entry is not None}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: edit(run / "config.json", num_candidates=99), r"of 99 draws; got records of 8. Try: lacuna sweep"),
        (lambda run: (run / "records.jsonl").write_text(""), "got records of nan"),
        (lambda run: (run / "records.jsonl").write_bytes(b"\xff\n"), "one JSON object a line"),
        (lambda run: edit(run / "config.json", title=None), "got no `title`"),
        (lambda run: edit(run / "environment.json", packages=None), "got no `packages`"),
        (
            lambda run: (run / "result.json").write_text("[]"),
            r"result.json must be a JSON document.*; got a list",
        ),
        (lambda run: (run / "result.json").write_bytes(b"\xff"), r"result.json must be a JSON document of a run; got"),
    ],
)
def test_damaged_documents_are_one_sentence_and_draw_nothing(tmp_path, damage, sentence):
    run_folder(tmp_path, sweeps.sweep_records())
    damage(tmp_path)
    with pytest.raises(InvalidInput, match=sentence):
        sweep_report.write_report(tmp_path)
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(("sign", "tries"), [("both", "2N"), ("+", "N")])
def test_the_asymptote_counts_both_signs_of_a_draw_as_two_tries(tmp_path, sign, tries):
    text = sweep_report.write_report(run_folder(tmp_path, sweeps.sweep_records(sign=sign))).read_text()
    assert f"√(2 ln {tries})" in text


def test_the_report_says_who_wins_a_tie_and_what_a_wider_sweep_did_about_its_finalists(tmp_path):
    run_folder(tmp_path, sweeps.sweep_records())
    assert "Ties go to the lower draw" in (plain := sweep_report.write_report(tmp_path).read_text())
    edit(tmp_path / "config.json", width=8)
    assert "8 candidates wide" in sweep_report.write_report(tmp_path).read_text()
    assert "wide" not in plain


def test_a_point_of_zeros_has_no_relative_radius(tmp_path):
    found = sweeps.sweep_records()
    for i, record in enumerate(found):
        if record.quantity == "relative_radius":
            found[i] = dataclasses.replace(record, value=math.nan)
    text = sweep_report.write_report(run_folder(tmp_path, found)).read_text()
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def page(tmp_path, **kind):
    return sweep_report.write_report(run_folder(tmp_path, sweeps.sweep_records(**kind))).read_text()


def test_a_report_begins_with_the_answers(tmp_path):
    found = sweeps.sweep_records(left=LEFT, next_sigma=NEXT)
    answers = [f"- **{question}.** {answer}" for question, answer in sweep_outcome.answers(found).items()]
    title, *shown = page(tmp_path, left=LEFT, next_sigma=NEXT).split("\n\n")[:2]
    assert title == "# Best of 8 draws: a test"
    assert shown == ["\n".join(answers)]


def test_held_out_gains_stand_beside_their_share_and_its_interval(tmp_path):
    text = page(tmp_path, left=LEFT)
    assert "| candidates | gain on the search batch | gain on held-out rows | left | 95 % interval |" in text
    assert "| winner | 2 | 1 | 0.500 | [0.400, 0.600] |" in text
    assert "that of a mean over 8 batches" in text


@pytest.mark.parametrize(
    ("share", "line"),
    [
        ((0.5, math.nan, math.nan), "| winner | 2 | 1 | 0.500 |  |"),
        ((math.nan, math.nan, math.nan), "| winner | 2 | 1 |  |  |"),
        (None, "| winner | 2 | 1 |"),
    ],
)
def test_a_share_or_an_interval_that_is_not_known_leaves_its_place_empty(tmp_path, share, line):
    text = page(tmp_path, left=[(2.0, 1.0, share)])
    assert line in text.splitlines()
    assert "that of a mean over" not in text


def test_the_finalists_are_folded_away(tmp_path):
    assert "<details><summary>The 1 best candidates</summary>\n\n| place |" in page(tmp_path)


def test_what_rounding_left_of_each_step_is_a_row_for_each_kind_of_weights(tmp_path):
    told = {"realised_share": 0.25, "rounding_noise": 0.625, "unmoved": 0.974}
    where = {"sigma": 1e-3, "leaves": "vectors"}
    rounding = [records.Record("sweep", quantity, number, "1", where) for quantity, number in told.items()]
    run = run_folder(tmp_path, [*sweeps.sweep_records(), *rounding])
    text = sweep_report.write_report(run).read_text()
    assert "| 0.001 | vectors | 0.250 | 0.625 | 97 % |" in text
    assert "What rounding left" not in page(tmp_path)
