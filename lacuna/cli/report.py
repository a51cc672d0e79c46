"""`lacuna report`: the report of a run, drawn again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class ReportCommand:
    """Redraw the figures and report.md of a sweep or a capture from its records."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""

    to: Path | None = None
    """Write the report there and leave the run folder as it is."""


def report(command: ReportCommand, console: Console) -> None:
    """Run `lacuna report`."""
    from lacuna.reports import capture_report, sweep_report

    write = capture_report.write_report if _is_capture(command.run) else sweep_report.write_report
    console.print(f"Report: {write(command.run, command.to)}", soft_wrap=True)


def _is_capture(run: Path) -> bool:
    from lacuna.reports import capture_report, rundir

    config = run / "config.json"
    return config.exists() and rundir.read_json(config).get("experiment") == capture_report.EXPERIMENT
