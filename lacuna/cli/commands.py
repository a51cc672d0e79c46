"""The commands and their options, as they are typed."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from lacuna.cli.capture import CaptureCommand
from lacuna.cli.export import ExportCommand
from lacuna.cli.plan import PlanCommand
from lacuna.cli.report import ReportCommand
from lacuna.cli.sweep import SweepCommand
from lacuna.cli.verify import VerifyCommand
from lacuna.errors import InvalidInput

Command = (
    Annotated[SweepCommand, tyro.conf.subcommand("sweep")]
    | Annotated[CaptureCommand, tyro.conf.subcommand("capture")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[VerifyCommand, tyro.conf.subcommand("verify-hf")]
)


def parse(arguments: Sequence[str], **options: Any) -> Any:
    """The command that the arguments ask for; `~` stands for the home in every path.

    Raises:
      SystemExit: of status 2, for an option that is none or does not parse.
      InvalidInput: a path in the home of nobody.
    """
    command = tyro.cli(
        Command,  # pyrefly: ignore  (tyro takes a union of types; its annotations do not say so)
        prog="lacuna",
        description="Local linear geometry of trained networks.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
        **options,
    )
    paths = {field.name: getattr(command, field.name) for field in fields(command)}
    return replace(command, **{name: _at_home(name, path) for name, path in paths.items() if isinstance(path, Path)})


KEPT = ("cache", "compilation_cache")
"""Paths that a run folder tells of, as they were typed."""


def _at_home(name: str, path: Path) -> Path:
    try:
        found = path.expanduser()
    except RuntimeError as fault:
        raise InvalidInput(f"{name} must be a path", got=f"{path}, in the home of nobody") from fault
    return path if name in KEPT else found
