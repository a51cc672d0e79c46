"""Claims and the report of an experiment: what the paper says, what was found, the control, the verdict by rule."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lacuna.errors import InvalidInput
from lacuna.reports import rundir
from lacuna.reports.records import Place, Record, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_SEEDS = 5
"""Seeds of model and data order below which no verdict is given."""

REPRODUCED = "reproduced"
CONTROL_FAILS = "reproduced but the control fails"
NOT_REPRODUCED = "not reproduced"
TOO_SMALL = "not run at the paper's scale"


@dataclass(frozen=True)
class Claim:
    """One row of a claim table.

    Attributes:
      name: of the claim in the design, such as `C4`.
      claim: in one sentence.
      paper: the paper's figure.
      ours: ours, with its spread over seeds.
      control: what it stands beside, with its own figure.
      verdict: by `verdict`.
    """

    name: str
    claim: str
    paper: str
    ours: str
    control: str
    verdict: str


def verdict(claim_holds: bool, control_holds: bool, num_seeds: int) -> str:
    """The verdict of a rule: whether the claim itself holds, and whether its control lets it mean anything."""
    if num_seeds < LEAST_SEEDS:
        return TOO_SMALL
    if not claim_holds:
        return NOT_REPRODUCED
    return REPRODUCED if control_holds else CONTROL_FAILS


@dataclass(frozen=True)
class Spread:
    """One number for each seed.

    Attributes:
      values: in the order of the seeds.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds; NaN if there is none."""
        return float(np.mean(self.values)) if self.values else float("nan")

    def __str__(self) -> str:
        if not self.values:
            return "not measured"
        low, high = min(self.values), max(self.values)
        return f"{self.mean:.3g}" if low == high else f"{self.mean:.3g} ({low:.2g} to {high:.2g})"


def spread(records: Sequence[Record], quantity: str, **where: Place) -> Spread:
    """The values of a quantity over the seeds, in the order of the records."""
    return Spread(tuple(record.value for record in select(records, quantity, **where)))


def seeds_of(records: Sequence[Record]) -> list[int]:
    """The seeds that the records speak of, ascending."""
    return sorted({int(record.where["seed"]) for record in records if "seed" in record.where})


def write_report(
    to: Path,
    *,
    title: str,
    about: str,
    claims: Sequence[Claim],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    figures: Mapping[str, tuple["Figure", str]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write `report.md` and its figures.

    Args:
      to: the folder; made if there is none.
      title: heading.
      about: a paragraph below it.
      claims: rows of the claim table.
      tables: further tables by heading: column names and rows.
      figures: by file name without extension, each with its caption.
      config: of the run; its `command` is repeated at the end.
      environment: of the run.

    Returns:
      The path of `report.md`.
    """
    (to / "figures").mkdir(parents=True, exist_ok=True)
    for name, (figure, _) in figures.items():
        figure.savefig(to / "figures" / f"{name}.png")
    head = ["", "claim", "paper", "ours, mean (range over seeds)", "control", "verdict"]
    rows = [[c.name, c.claim, c.paper, c.ours, c.control, f"**{c.verdict}**"] for c in claims]
    parts = [f"# {title}", about, table(head, rows)]
    parts += [f"![{caption}](figures/{name}.png)\n\n*{caption}*" for name, (_, caption) in figures.items()]
    for heading, (columns, lines) in tables.items():
        parts += [f"## {heading}", table(columns, lines)]
    changed = " with uncommitted changes" if environment["dirty"] else ""
    made = [
        ["machine", f"{environment['num_devices']} × {environment['device_kind']}; {environment['machine']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())],
        ["commit", (environment["commit"] or "not a checkout") + changed],
        ["wall time", f"{config['wall_s']:.0f} s, with the training of models that were not in the cache"],
    ]
    parts += ["## How it was run", table(["", ""], made), f"Run it again:\n\n```sh\n{config['command']}\n```"]
    report = to / "report.md"
    with rundir.whole_file(report) as unfinished:  # the name of a folder may be no UTF-8
        unfinished.write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")
    return report


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; a bar in a cell is a character like any other."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def read_run(run: Path) -> tuple[list[Record], dict[str, Any], dict[str, Any]]:
    """Records, configuration and environment of a finished experiment.

    Raises:
      InvalidInput: the folder is not one, or the experiment was interrupted.
    """
    from lacuna.reports import records as record_files

    config, environment = (rundir.read_json(run / f"{name}.json") for name in ("config", "environment"))
    for name in ("experiment", "command"):
        if name not in config:
            raise InvalidInput(
                f"{run} must be the folder of an experiment",
                got=f"a config.json without `{name}`",
                hint="the folder that the experiment printed",
            )
    if not (run / "records.jsonl").exists():
        go_on = f"{config['command']} --out {shlex.quote(str(run))}"
        raise InvalidInput(f"{run} must be a finished experiment", got="one that was interrupted", hint=go_on)
    return record_files.read(run / "records.jsonl"), config, environment
