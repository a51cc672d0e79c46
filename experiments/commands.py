"""`python -m experiments EXPERIMENT:PRESET ...`, `all:PRESET`, `report RUN`, `handbook`: claims measured and told."""

import difflib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from lacuna.errors import InvalidInput, LacunaError

INTERRUPTED = 130

USAGE = """\
python -m experiments EXPERIMENT:PRESET [--out RUN] [--cache FOLDER] [options of the experiment]
python -m experiments EXPERIMENT:PRESET EXPERIMENT:PRESET ... [--cache FOLDER]
python -m experiments all:PRESET [--cache FOLDER]    every one; each has a folder of its own and goes on by itself
python -m experiments report RUN [--to FOLDER]
python -m experiments handbook                       the README's tables of claims and of errors, made anew

Experiments: {experiments}.
Presets: smoke (seconds), small (minutes, offline; the gallery), paper.
`python -m experiments EXPERIMENT:PRESET --help` lists an experiment's options."""


@dataclass(frozen=True)
class Report:
    """Draw the figures and report.md of a finished run again."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""

    to: Path | None = None
    """Write there, with the records, and leave the run as it is."""


@dataclass(frozen=True)
class Where:
    """Where an experiment keeps things."""

    out: Path | None = None
    """Run folder; one that holds the same run goes on. Default: runs/<experiment>/<time>-<hash>."""

    cache: Path = Path("~/.cache/lacuna")
    """Folder that keeps trained models."""


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    console, complaints = (Console(stderr=stderr, markup=False, highlight=False) for stderr in (False, True))

    def told(sentence: str) -> None:
        console.print(sentence, soft_wrap=True)

    try:
        _run(list(arguments), told)
    except KeyboardInterrupt as stop:
        complaints.print(f"Interrupted{stop}.", style="red", soft_wrap=True)
        return INTERRUPTED
    except (LacunaError, OSError) as error:
        complaints.print(f"experiments: {error}", style="red", soft_wrap=True)
        return 2
    return 0


def _run(arguments: list[str], told: Any) -> None:
    from experiments.registry import EXPERIMENTS, PRESET_NAMES
    from lacuna import meshes

    meshes.use_all_cpu_cores()  # a search runs candidates side by side; the cores work together on all else

    known = [name.replace("_", "-") for name in EXPERIMENTS]
    if not arguments or arguments[0] in ("-h", "--help"):
        told(USAGE.format(experiments=", ".join(known)))
        return
    if arguments[0] == "report":
        asked = tyro.cli(Report, args=arguments[1:], prog="python -m experiments report")
        _report(asked.run, asked.to, told)
        return
    if arguments == ["handbook"]:
        from experiments import handbook

        told(f"Written: {handbook.write()}")
        return
    named = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    rest = arguments[len(named) :]
    if not named:
        raise InvalidInput("an experiment must be named first", got=f"`{rest[0]}`", hint=f"{known[0]}:smoke {rest[0]}")
    wanted = [one for argument in named for one in _expanded(argument, known, PRESET_NAMES)]
    if len(wanted) == 1:
        _one(*wanted[0], rest, told)
        return
    where = tyro.cli(Where, args=rest, prog=f"python -m experiments {' '.join(named)}")
    if where.out is not None:
        raise InvalidInput("several experiments have a run folder each", got=f"--out {where.out}")
    for name, preset in wanted:
        _one(name, preset, ["--cache", str(where.cache)], told)


def _expanded(argument: str, known: Sequence[str], presets: Sequence[str]) -> list[tuple[str, str]]:
    """The experiments that `EXPERIMENT:PRESET` or `all:PRESET` names, each with the preset."""
    name, _, preset = argument.partition(":")
    if name not in (*known, "all") or preset not in presets:
        every = [f"{one}:{size}" for one in (*known, "all") for size in presets]
        near = difflib.get_close_matches(argument, every, n=1, cutoff=0)
        raise InvalidInput(
            f"EXPERIMENT:PRESET is one of {', '.join((*known, 'all'))} with {', '.join(presets)}",
            got=f"`{argument}`",
            hint=near[0],
        )
    return [(one, preset) for one in (known if name == "all" else [name])]


def _one(name: str, preset: str, arguments: list[str], told: Any) -> None:
    """Run one experiment and draw its report."""
    from experiments import running
    from experiments.registry import EXPERIMENTS

    module = EXPERIMENTS[name.replace("-", "_")]
    prog = f"python -m experiments {name}:{preset}"
    where = tyro.cli(Where, args=_only(arguments, ("--out", "--cache")), prog=prog)
    config = tyro.cli(
        module.Config,
        default=module.PRESETS[preset],
        args=_without(arguments, ("--out", "--cache")),
        prog=prog,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    command = running.command_line([f"{name}:{preset}", *_without(arguments, ("--out", "--cache"))])
    cache = where.cache.expanduser()
    out = running.run(module, config, command=command, out=where.out, cache=cache, told=told)
    _report(out, None, told)


def _split(arguments: list[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The named options with their values, and the rest."""
    of_names: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(arguments):
        head = arguments[i].split("=", 1)[0]
        width = 1 if head not in names or "=" in arguments[i] else 2
        (of_names if head in names else rest).extend(arguments[i : i + width])
        i += width
    return of_names, rest


def _only(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    return _split(arguments, names)[0]


def _without(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    return _split(arguments, names)[1]


def _report(run: Path, to: Path | None, told: Any) -> None:
    from experiments import running

    path, rows = running.report(run, to)
    for row in rows:
        told(f"{row.name}: {row.claim}\n    ours: {row.ours}\n    control: {row.control}\n    {row.verdict}")
    told(f"Report: {path}")
