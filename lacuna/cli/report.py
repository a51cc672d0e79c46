"""`lacuna report`: the report of a run, drawn again."""

import shlex
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

    is_capture = _is_capture(command.run)
    write = capture_report.write_report if is_capture else sweep_report.write_report
    console.print(f"Report: {write(command.run, command.to)}", soft_wrap=True)
    if not is_capture:  # whose page would wait for JAX to be imported
        _say_if_partial(command.run, console)


def _say_if_partial(run: Path, console: Console) -> None:
    """What was interrupted while more draws were added has a page of the draws before."""
    from lacuna.reports import rundir
    from lacuna.search.run_folder import LOG, STAMP, check_run

    if not (run / LOG).exists() or not (run / STAMP).exists():
        return
    drawn, scored = rundir.read_json(run / "config.json").get("num_candidates"), check_run(run)
    if drawn is not None and scored > drawn:
        console.print(
            f"{scored:,} draws are scored, and this page is of {drawn:,}: "
            f"lacuna sweep --extend {shlex.quote(str(run))} --num-candidates ... goes on from there",
            style="yellow",
            soft_wrap=True,
        )


def _is_capture(run: Path) -> bool:
    from lacuna.reports import capture_report, rundir

    config = run / "config.json"
    return config.exists() and rundir.read_json(config).get("experiment") == capture_report.EXPERIMENT
