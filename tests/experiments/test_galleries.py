"""The pictures and pages in the repository, beside what the code of today makes of the records that are kept there."""

from pathlib import Path

import pytest

from experiments import running
from lacuna.reports import capture_report

RESULTS = Path(running.__file__).parent / "results"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/records.jsonl")))
def test_a_page_says_what_its_records_say(name, tmp_path):
    draw = capture_report.write_report if name == capture_report.EXPERIMENT else running.report
    draw(RESULTS / name, tmp_path)
    assert (tmp_path / "report.md").read_text() == (RESULTS / name / "report.md").read_text()
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {path.name for path in (RESULTS / name / "figures").iterdir()}
