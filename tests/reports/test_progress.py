"""A log gets a line now and then; the rate leaves out what came before the first call."""

import io

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
        "searching: 15 of 25, 10 candidates/s, 8 s left",
        "searching: 25 of 25, 10 candidates/s, done",
    ]


def test_a_terminal_gets_a_bar_with_the_note():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.progress(console, "training", unit="steps") as advance:
        advance(0, 2, "loss 2.0")
        advance(2, 2, "loss 1.0")
    assert "loss 1.0" in console.file.getvalue()
    assert "2/2" in console.file.getvalue()
