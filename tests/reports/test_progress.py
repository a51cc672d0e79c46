"""A log gets a line now and then; the rate leaves out what came before the first call."""

import io
import re

import pytest
from rich.console import Console

from lacuna.reports import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def test_a_plain_line_comes_every_ten_seconds_and_at_the_end(clock):
    console = plain()
    with progress.progress(console, "searching", unit="candidates", scale=8) as advance:
        clock[0] += 1000  # compilation
        for done in range(0, 26, 5):
            advance(done, 25, "")
            clock[0] += 4
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "searching: 120 of 200 candidates, 10 a second, 8 s left",
        "searching: 200 of 200 candidates, 10 a second, done",
    ]


def test_why_nothing_is_done_yet_is_said_and_does_not_count(clock):
    console = plain()
    with progress.progress(console, "training", unit="steps") as advance:
        advance(0, 30, "compiling")
        clock[0] += 1000
        for done in (10, 30):
            advance(done, 30, "")
            clock[0] += 20
    lines = console.file.getvalue().splitlines()
    assert lines == ["training: compiling ...", "training: 30 of 30 steps, 1 a second, done"]


def test_a_terminal_gets_a_bar_with_the_note_that_counts_in_the_unit_of_its_rate():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.progress(console, "training", unit="steps", scale=8) as advance:
        advance(0, 2, "loss 2.0")
        advance(2, 2, "loss 1.0")
    assert "loss 1.0" in console.file.getvalue()
    assert "16/16" in console.file.getvalue()


def test_slow_work_has_a_rate_and_an_end_on_a_terminal():
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=120, get_time=lambda: now[0])
    with progress.progress(console, "training", unit="steps") as advance:
        for done in (0, 10, 20):
            advance(done, 30, "")
            now[0] += 40
    shown = console.file.getvalue()
    assert "0.25 steps/s" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "00:40" in shown
