"""What a benchmark found, a row each: printed, kept as JSON lines, and drawn as the page of a machine."""

import json
import math
import operator
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import Ratio, Timing, median_of

Measure = Callable[..., Iterator["Row"]]

_SIDES = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
      what: is measured, in words.
      value: median of all runs; NaN where nothing was measured.
      unit: of value, low, high and floor; "1" for ratios.
      low: lower end of the 90 % interval of the median, or NaN.
      high: its upper end, or NaN.
      num_runs: that the median is of.
      goal: `"<= 1.15"`, `">= 0.5"` or empty.
      floor: the least (of times) or most (of rates) that this machine allows, or NaN.
      note: what the floor is made of, what was checked before it was timed, or why it was skipped.
    """

    what: str
    value: float = math.nan
    unit: str = "1"
    low: float = math.nan
    high: float = math.nan
    num_runs: int = 1
    goal: str = ""
    floor: float = math.nan
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met` or `missed` when the whole interval lies on one side of the goal, else `not certain`."""
        if not self.goal or math.isnan(self.value):
            return ""
        side, mark = self.goal.split()
        ends = [self.value if math.isnan(end) else end for end in (self.low, self.high)]
        held = [_SIDES[side](end, float(mark)) for end in ends]
        return "met" if all(held) else "not certain" if any(held) else "missed"


def timed(what: str, timing: Timing, *, cpu: bool = False, **more: Any) -> Row:
    """A row of seconds, of the clock or of all cores."""
    each = timing.cpu_s if cpu else timing.wall_s
    value, low, high = median_of(each)
    return Row(what, value, "s", low, high, len(each), **more)


def compared(what: str, ratio: Ratio, **more: Any) -> Row:
    """A row of a ratio of paired runs."""
    return Row(what, ratio.median, "1", ratio.low, ratio.high, ratio.num_pairs, **more)


def skipped(what: str, why: str) -> Row:
    """A row of a peer that is not installed, or of a program that does not fit."""
    return Row(what, note=f"skipped: {why}")


def needs(*packages: str) -> Callable[[Measure], Measure]:
    """Of a function that measures beside a peer: one skipped row in its place where a package is not installed."""

    def wrap(measure: Measure) -> Measure:
        @wraps(measure)
        def rows(*arguments: Any) -> Iterator[Row]:
            absent = [package for package in packages if find_spec(package) is None]
            if absent:
                question = (measure.__doc__ or measure.__name__).partition("\n")[0].rstrip(".")
                yield skipped(question, f"{' and '.join(absent)} not installed")
            else:
                yield from measure(*arguments)

        vars(rows)["packages"] = packages
        return rows

    return wrap


def write(path: Path, rows: Iterable[Row]) -> None:
    """One JSON line for each row; NaN is null."""
    path.write_text("".join(f"{_line(row)}\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` made."""
    return [_row(line) for line in path.read_text(encoding="utf-8").splitlines()]


def show(rows: Iterable[Row]) -> None:
    """JSON lines on standard output, for the process that asked with `from_process`."""
    for row in rows:
        print(_line(row), flush=True)


def from_process(module: str, *arguments: object, environment: dict[str, str] | None = None) -> list[Row]:
    """The rows that `python -m module arguments` shows, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [_row(line) for line in run.stdout.splitlines()]


def _line(row: Row) -> str:
    return json.dumps({name: _plain(value) for name, value in asdict(row).items()})


def _row(line: str) -> Row:
    numbers = {name for name, kind in Row.__annotations__.items() if kind is float}
    document = json.loads(line)
    return Row(**{name: math.nan if name in numbers and value is None else value for name, value in document.items()})


def verdicts(rows: Iterable[Row]) -> str:
    """How many goals were met, and how many not, in words."""
    found = Counter(row.verdict for row in rows)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in ("met", "missed", "not certain"))


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown lines of these rows."""
    head = ["| what | measured | 90 % interval | runs | goal | floor | note |", "|---|---|---|---|---|---|---|"]
    return head + [f"| {' | '.join(_cells(row))} |" for row in rows]


def _cells(row: Row) -> list[str]:
    unit = "" if row.unit == "1" else f" {row.unit}"
    goal = f"{row.goal}: {row.verdict}" if row.verdict else row.goal
    interval = "" if math.isnan(row.low) else f"{row.low:.3g} to {row.high:.3g}"
    measured, floor = ("" if math.isnan(number) else f"{number:.3g}{unit}" for number in (row.value, row.floor))
    what, note = (text.replace("|", "\\|") for text in (row.what, row.note))
    return [what, measured, interval, str(row.num_runs) if measured else "", goal, floor, note]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
