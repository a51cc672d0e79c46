"""`lacuna report`: the report of a run, drawn again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class ReportCommand:
    """Redraw the figures and report.md of a run from its records."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""

    to: Path | None = None
    """Write the report there and leave the run folder as it is."""


def report(command: ReportCommand, console: Console) -> None:
    """Run `lacuna report`."""
    from lacuna.reports import sweep_report

    console.print(f"Report: {sweep_report.write_report(command.run, command.to)}", soft_wrap=True)
