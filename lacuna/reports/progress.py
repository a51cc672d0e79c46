"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_EVERY_S = 10.0
RATE_OVER_S = 300.0

Advance = Callable[[int, int, str], None]
"""`advance(done, total, note)`; the note is a few words on where the work stands."""


class _Rate(ProgressColumn):
    """Work done a second, over the last minutes."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_digits(speed)} {self._unit}/s" if speed else "", style="cyan")


def _digits(rate: float) -> str:
    """A rate, to two digits where it is small."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def progress(console: Console, title: str, *, unit: str, scale: int = 1) -> Iterator[Advance]:
    """Show progress, rate and remaining time of a piece of work.

    Args:
      console: where to; a bar if it is a terminal, else a line every ten seconds.
      title: what the work is.
      unit: what is counted, e.g. `candidates`.
      scale: units for each step of `done`.
    """
    if not console.is_terminal:
        yield _plain_lines(console, title, unit, scale)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=RATE_OVER_S) as bar:
        shown = bar.add_task(title, total=None, note="compiling")
        yield lambda done, total, note: bar.update(shown, completed=done * scale, total=total * scale, note=note)


def _plain_lines(console: Console, title: str, unit: str, scale: int) -> Advance:
    first: tuple[float, int] | None = None  # the rate counts from there: what came before was compilation
    last = 0.0

    def advance(done: int, total: int, note: str) -> None:
        nonlocal first, last
        if not done and note:
            console.print(f"{title}: {note} ...", highlight=False)
            return
        now = time.monotonic()
        if first is None:
            first = now, done
            last = now
        if (done < total and now - last < PLAIN_EVERY_S) or now == first[0]:
            return
        last = now
        rate = (done - first[1]) / (now - first[0])
        left = "done" if done >= total else f"{(total - done) / rate:,.0f} s left" if rate else ""
        parts = [f"{done * scale:,} of {total * scale:,} {unit}", f"{_digits(rate * scale)} a second", left, note]
        console.print(f"{title}: {', '.join(part for part in parts if part)}", highlight=False)

    return advance
