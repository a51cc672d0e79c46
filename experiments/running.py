"""Running an experiment seed by seed, and drawing its report from the records."""

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from experiments import programs
from experiments.registry import EXPERIMENTS
from lacuna import meshes
from lacuna.errors import InvalidInput, RunMismatch
from lacuna.reports import claims as reports
from lacuna.reports import records as record_files
from lacuna.reports import rundir

MOST = 2**31
"""What no axis of an array can have."""

Told = Callable[[str], None]


def run(module: ModuleType, config: Any, *, command: str, out: Path | None, cache: Path, told: Told) -> Path:
    """Run an experiment, or go on with one in `out`; returns the run folder.

    Every seed's records are on disk before the next begins.

    Raises:
      InvalidInput: no seed at all, or a folder that cannot be one.
      RunMismatch: `out` holds something else, or a run of another configuration.
    """
    if config.num_seeds < 1:
        raise InvalidInput("num_seeds must be at least 1", got=config.num_seeds)
    _check_numbers(config)
    settings = asdict(config)
    out = rundir.new_run(Path("runs"), module.NAME, settings) if out is None else out
    rundir.check_folder(out)
    rundir.check_folder(cache)
    stamp = out / "config.json"
    spent = 0.0
    # A run may be given more seeds; everything else tells one run from another, what files stand for defaults, too.
    meant = module.resolved(config) if hasattr(module, "resolved") else {}
    identity = {"experiment": module.NAME, "config": rundir.config_hash({**settings, **meant, "num_seeds": 0})}
    if stamp.exists():
        known = rundir.read_json(stamp)
        spent = known.get("wall_s", 0.0)
        if any(known.get(name) != value for name, value in identity.items()):
            raise RunMismatch(f"{out} holds a run of another configuration", hint="another --out folder")
    elif out.exists() and any(out.iterdir()):
        raise RunMismatch(f"{out} is not empty and holds no experiment", hint="another --out folder")
    (out / "seeds").mkdir(parents=True, exist_ok=True)
    (out / rundir.SEAL).unlink(missing_ok=True)
    document = {**identity, "command": command, **{name: _plain(value) for name, value in settings.items()}}
    rundir.write_json(stamp, document | {"wall_s": spent})
    rundir.write_json(out / "environment.json", rundir.environment(meshes.describe(meshes.candidate_mesh())))

    told(f"{module.NAME}: {out}; interrupted, it goes on with {command} --out {shlex.quote(str(out))}")
    began, num_done = time.monotonic(), 0
    for seed in range(config.num_seeds):
        kept = out / "seeds" / f"{seed}.jsonl"
        if kept.exists():
            continue
        left = ""
        if num_done:
            each = (time.monotonic() - began) / num_done
            left = f", about {each * (config.num_seeds - seed):,.0f} s left"
        told(f"{module.NAME}: seed {seed + 1} of {config.num_seeds}{left}")
        found = module.run_seed(config, seed, cache, lambda sentence: told(f"  {sentence}"))
        record_files.write(kept, found)
        programs.forget_many()
        num_done += 1
        rundir.write_json(stamp, document | {"wall_s": spent + time.monotonic() - began})
    every = [out / "seeds" / f"{seed}.jsonl" for seed in range(config.num_seeds)]
    record_files.write(out / "records.jsonl", [record for path in every for record in record_files.read(path)])
    rundir.seal(out)
    return out


def _check_numbers(config: Any) -> None:
    """Raise for a number that no experiment has a use for, before a model is trained."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            _check_numbers(value)
        for number in value if isinstance(value, tuple) else (value,):
            least = 0 if isinstance(number, int) else -MOST
            if isinstance(number, int | float) and not least <= number < MOST:
                asked = "a whole number in [0, 2^31)" if isinstance(number, int) else "a number below 2^31 in size"
                raise InvalidInput(f"{field.name} must be {asked}", got=number)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def report(run: Path, to: Path | None = None) -> tuple[Path, list[reports.Claim]]:
    """Draw the report of a run from its records; returns its path and the claim rows.

    With `to` it is drawn there, and the run's documents are copied, so that it can be drawn again from that folder.

    Raises:
      InvalidInput: the folder holds no finished experiment, or `to` is where another is run.
    """
    to = run if to is None else to
    elsewhere = to.resolve() != run.resolve()
    if elsewhere and (to / "seeds").exists():
        raise InvalidInput(
            "--to must be a folder for a report", got=f"{to}, where an experiment is run", hint="a new one"
        )
    with rundir.as_written(run):
        found = _reported(run, to)
    if elsewhere:
        rundir.copy_sealed(run, to)
    return found


def _reported(run: Path, to: Path) -> tuple[Path, list[reports.Claim]]:
    records, document, environment = reports.read_run(run)
    if document["experiment"] not in EXPERIMENTS:
        raise InvalidInput(f"an experiment is one of {', '.join(EXPERIMENTS)}", got=f"`{document['experiment']}`")
    module = EXPERIMENTS[document["experiment"]]
    config = _config_of(module, document)
    rundir.check_folder(to)
    import matplotlib as mpl

    from experiments.drawing import STYLE

    with mpl.rc_context(STYLE):
        figures = module.figures(records, config)
        rows = module.claims(records, config)
        path = reports.write_report(
            to,
            title=module.TITLE,
            about=module.ABOUT,
            claims=rows,
            tables=module.tables(records, config),
            figures=figures,
            config=document,
            environment=environment,
        )
    return path, rows


def _config_of(module: ModuleType, document: dict[str, Any]) -> Any:
    """The configuration that was written down."""
    return _rebuilt(module.Config, document)


def _rebuilt(kind: Any, value: Any) -> Any:
    """A value of JSON as its type has it: specifications within specifications, and tuples."""
    if is_dataclass(kind) and isinstance(value, dict):
        types = get_type_hints(kind)
        known = {field.name for field in fields(kind)} & value.keys()
        return kind(**{name: _rebuilt(types[name], value[name]) for name in known})
    return tuple(value) if isinstance(value, list) else value


def command_line(arguments: list[str]) -> str:
    """The command as a user types it, less `--out`."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--out="):
            skip = argument == "--out"
            kept += [] if skip else [argument]
        else:
            skip = False
    return shlex.join(["python", "-m", "experiments", *kept])
