"""A record survives its line of JSON, and a file of records is found by what it says."""

import json
import math

import pytest

from lacuna.errors import InvalidInput
from lacuna.reports import records
from lacuna.reports.records import Record

GAIN = Record("sweep", "gain", 0.25, "loss", {"sigma": 1e-3, "sign": "both", "n": 8})


@pytest.mark.parametrize("value", [0.1, -3e-20, math.nan, math.inf, -math.inf])
def test_a_record_comes_back_from_its_line(value):
    record = Record("sweep", "gain", value, "loss", {"sigma": 1e-3, "sign": "+", "n": 8})
    again = Record.from_json(record.to_json())
    assert repr(again) == repr(record)  # NaN is not equal to itself, but looks the same


def test_a_line_is_strict_json_and_carries_its_schema():
    entry = json.loads(Record("sweep", "gain", math.nan, "loss").to_json(), parse_constant=pytest.fail)
    assert entry["schema"] == records.SCHEMA


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"schema": 1, "experiment": "x"}', GAIN.to_json()[:-3]])
def test_a_line_that_is_no_record_is_refused(line):
    with pytest.raises(InvalidInput, match="one JSON object a line"):
        Record.from_json(line)


def test_a_newer_schema_is_refused():
    with pytest.raises(InvalidInput, match="schema 1"):
        Record.from_json(GAIN.to_json().replace('"schema": 1', '"schema": 2'))


def test_records_are_selected_by_quantity_and_place(tmp_path):
    others = [
        Record("sweep", "gain", 0.5, "loss", {"sigma": 1e-2, "sign": "+", "n": 8}),
        Record("sweep", "P", 9.0, "1"),
    ]
    records.write(tmp_path / "r.jsonl", [GAIN, *others])
    found = records.read(tmp_path / "r.jsonl")
    assert found == [GAIN, *others]
    assert records.select(found, "gain", sign="both") == [GAIN]
    assert records.value(found, "gain", sigma=1e-2) == 0.5
    assert math.isnan(records.value(found, "gain", sigma=7.0))
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_missing_file_of_records_is_one_sentence(tmp_path):
    with pytest.raises(InvalidInput, match="no such file"):
        records.read(tmp_path / "r.jsonl")
