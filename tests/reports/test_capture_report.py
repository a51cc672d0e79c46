"""The page of a capture: what it says of records that are written here by hand."""

import dataclasses
import json
import math
import re

import pytest

from lacuna.errors import InvalidInput
from lacuna.reports import capture_report
from lacuna.reports import records as record_files
from lacuna.reports.records import Record

OWN, CONTROL, RANDOM = (("gradient", "own"), ("gradient", "control"), ("random", ""))


def record(quantity, value, **where):
    return Record("capture", quantity, float(value), "1", where)


def found(masses, *, drop=None, error=0.01):
    """Records of bases with given masses, all at rank 2 of 1,000; and of a loss, if it is said how far it drops."""
    records = [record("num_params", 1000), record("displacement_norm", 2.0), record("params_norm", 4.0)]
    for place in ({"by": "all"}, *({"by": "layer", "layer": layer} for layer in ("final_norm", "embedding", 1, 0))):
        share = {"embedding": 0.5, 0: 0.3, 1: 0.2}.get(place.get("layer"), 0.0)
        records += [record("block_mass_share", share, **place), record("relative_radius", 0.5, **place)]
    records += [record("block_mass_share", 1.0, by="kind", kind="mlp/up")]
    if drop is not None:
        records += [record("loss", 3.0, point="start"), record("loss", 3.0 - drop, point="end")]
        records += [record("loss_drop", drop, num_batches=8), record("loss_drop_error", error, num_batches=8)]
    for (basis, task), mass in masses.items():
        where = {"basis": basis, "task": task, "rank": 2}
        values = {"capture_mass": mass, "random_mass": 0.002, "random_low": 0.0001, "random_high": 0.007, "wall_s": 1.0}
        records += [record(name, value, **where) for name, value in values.items()]
        records.append(record("status", 0, **where, words=""))
        for law in ("random signs", "random entries"):
            records += [record("control_mass", m, **where, law=law, draw=i) for i, m in enumerate((0.001, 0.004))]
        records += [record("block_capture", mass, **where, by="all"), record("block_random", 0.01, **where, by="all")]
        if drop is not None and drop > 0:
            records.append(record("functional_recovery", 0.25, **where))
    return records


def folder(path, records, **config):
    path.mkdir()
    settings = {"experiment": "capture", "title": "a to b", "from": "a", "to": "b", **config}
    machine = {"packages": {"jax": "1"}, "commit": "abc", "dirty": False, "num_devices": 1, "device_kind": "cpu"}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "environment.json").write_text(json.dumps({**machine, "machine": "a machine"}))
    record_files.write(path / "records.jsonl", records)
    return path


def test_controls_are_mean_and_largest_of_their_draws():
    (row,) = capture_report.rows_of(found({OWN: 0.1}))
    assert row.controls["random signs"] == (pytest.approx(0.0025), 0.004)
    assert (row.rank, row.level, row.low, row.high) == (2, 0.002, 0.0001, 0.007)


def test_a_part_that_began_at_zero_has_no_relative_radius(tmp_path):
    records = [
        dataclasses.replace(r, value=math.nan) if r.quantity == "relative_radius" else r for r in found({OWN: 0.1})
    ]
    page = capture_report.write_report(folder(tmp_path / "run", records)).read_text()
    assert "relative radius" not in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


@pytest.mark.parametrize(
    ("masses", "sentence"),
    [
        ({OWN: 0.14}, "gradient 20 times the upper end of the random level."),
        ({OWN: 0.14, CONTROL: 0.07}, "gradient 2 times the control task."),
        ({OWN: 0.0035}, "gradient 0.5 times the upper end of the random level, so NOT above chance."),
        ({RANDOM: 0.003}, "0.3 %, inside its interval"),
        ({RANDOM: 0.03}, "3 %, OUTSIDE its interval"),
    ],
)
def test_a_basis_is_read_against_the_highest_of_its_controls(masses, sentence):
    assert sentence in capture_report.answers(found(masses))["Beyond chance"]


@pytest.mark.parametrize(
    ("drop", "sentences"),
    [
        (None, ["Not known: no loss was given."]),
        (-0.1, ["does not drop (3.0000 to 3.1000), so there is nothing to recover"]),
        (0.5, ["drops by 0.5 ± 0.01 (3.0000 to 2.5000)", "gradient 25 % (control task 25 %)."]),
        (0.015, ["within two of its errors of zero"]),
    ],
)
def test_what_a_projection_is_worth_is_said_where_the_loss_drops(drop, sentences):
    said = capture_report.answers(found({OWN: 0.1, CONTROL: 0.05}, drop=drop))["Worth"]
    for sentence in sentences:
        assert sentence in said


def test_layers_stand_in_the_order_of_the_model(tmp_path):
    run = folder(tmp_path / "run", found({OWN: 0.1}), notes=["mind this"])
    page = capture_report.write_report(run).read_text()
    places = [line.split("|")[1].strip() for line in page.split("By layer")[1].split("</details>")[0].splitlines()[4:8]]
    assert places == ["embedding", "0", "1", "final_norm"]
    assert "| note | mind this |" in page
    assert "Run it again" not in page  # no command is known


def test_a_folder_without_what_a_report_needs_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="none of `capture_mass`"):
        capture_report.write_report(folder(tmp_path / "empty", []))
    run = folder(tmp_path / "run", found({OWN: 0.1}))
    (run / "environment.json").write_text("{}")
    with pytest.raises(InvalidInput, match="no `packages`"):
        capture_report.write_report(run)
