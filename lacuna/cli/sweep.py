"""`lacuna sweep`: a search around a trained model, from the training to the report."""

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lacuna.cli import options as sweep_options
from lacuna.cli import points
from lacuna.cli.interrupt import say_on_interrupt
from lacuna.cli.options import SweepOptions
from lacuna.cli.tables import plain_table
from lacuna.errors import InvalidInput, LacunaError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from lacuna.cli.points import Point
    from lacuna.reports.records import Record
    from lacuna.reports.sweep_outcome import SigmaRow
    from lacuna.search import Candidate, Sweep, SweepResult


SCORING = "Scoring the winners on held-out rows, drawing the report ..."


@dataclass(frozen=True)
class SweepCommand(SweepOptions):
    """Best-of-N random search around a trained model, with the theory's prediction beside the result.

    Every draw of noise is scored at every sigma and with both signs, on all devices of all hosts. Around the base
    point the expected gain is σ|a| E[max of N normals] − curvature; the report shows where that holds.
    Results go to a run folder: the score table (Parquet), records, figures and report.md.

    Ctrl-C and SIGTERM end it after the chunk in flight; --resume goes on from there.
    """

    out: Path | None = None
    """Run folder. If it holds this same run, unfinished or shorter, the sweep goes on from there.
    Default: runs/sweep/<time>-<hash>."""

    resume: Path | None = None
    """Go on with the run in this folder: its settings are the defaults of all options."""

    extend: Path | None = None
    """Like --resume, for a run that is to have more candidates: with --num-candidates."""

    distributed: bool = False
    """One of several processes that run this same command; the cluster says who is who (Cloud TPU, SLURM, MPI,
    GKE). Where none does, give the three options below."""

    coordinator: str | None = None
    """host:port of process 0."""

    num_processes: int | None = None
    """How many processes there are."""

    process_id: int | None = None
    """Which of them this is, from 0."""


def sweep(
    command: SweepCommand, console: Console, again: Callable[[SweepCommand], SweepCommand] = lambda command: command
) -> Path:
    """Run `lacuna sweep`: prepare the point, search around it, predict, report. Returns the run folder.

    Args:
      command: its options.
      console: where to print.
      again: the options read once more, with others as the defaults.
    """
    from lacuna import hosts

    sweep_options.start(command)  # before anything touches a device
    processes = (command.coordinator, command.num_processes, command.process_id)
    if command.distributed or any(one is not None for one in processes):
        console.print("Waiting for the other processes of the run ...")
        hosts.start(*processes)
    console.quiet = not hosts.is_first()
    if command.resume or command.extend:
        config = hosts.agree(lambda: _config_of_run(command))
        command = again(replace(command, **sweep_options.known_options(config, but=frozenset())))
        sweep_options.keep_programs(command)
    mesh = points.mesh_of(command)
    settings = points.check(command, mesh)
    hosts.agree(lambda: _check_folder(command))

    from lacuna import search
    from lacuna.reports import sweep_outcome
    from lacuna.reports.progress import progress

    setup = points.prepare(command, mesh, console)
    settings = points.with_family(settings, command, setup)
    objective, batch, held_out = setup.task.objective, setup.batch, setup.held_out
    out = Path(hosts.agree(lambda: str(_folder(command))))
    config = _config(command)
    onwards = f"lacuna sweep --resume {shlex.quote(str(out))} goes on from there"
    say_on_interrupt(f": what was scored is in {out}; {onwards}", where=out / "scores.log")
    try:
        result = _search(console, setup, settings, mesh, out, config)
        measures = command.probes > 0 and objective.smooth
        told = "Measuring gradient and curvature at the base point ..." if measures else SCORING
        console.print(told)
        records = _metric_records(result, setup)
        with progress(console if measures else Console(quiet=True), "measuring", unit="probes") as advance:

            def measured(done: int, total: int) -> None:
                advance(done, total, "")
                if done == total:
                    console.print(SCORING)

            written, found = search.report_run(
                out,
                result,
                objective,
                setup.params,
                batch,
                held_out=held_out,
                records=records,
                config=config,
                num_probes=command.probes,
                progress=measured,
            )
    except KeyboardInterrupt as stop:
        kept = (out / "scores.log").exists() or not hosts.is_first()
        stop.args = (f"{stop}: what was scored is in {out}; {onwards}" if kept else "",)
        raise
    except OSError as fault:
        if not (out / "scores.log").exists():
            raise
        raise LacunaError(
            f"the run folder {out} must take what is written to it; what was scored before is kept",
            got=fault,
            hint=f"room on its disk, then lacuna sweep --resume {shlex.quote(str(out))}",
        ) from fault
    console.print(_table(sweep_outcome.sigma_rows(found)))
    console.print(sweep_outcome.summary(found))
    console.print(f"Report: {written}", soft_wrap=True)
    return out


def _config_of_run(command: SweepCommand) -> dict[str, Any]:
    """What the folder of the run that is to go on says of it."""
    from lacuna.reports import rundir

    run = command.resume or command.extend
    assert run is not None
    if command.resume is not None and command.extend is not None:
        raise InvalidInput("resume and extend are two ways to go on", got="both", hint="one of the two")
    rundir.check_seal(run)
    config = rundir.read_json(run / "config.json")
    rundir.read_json(run / "environment.json")  # or it would be missed when all is scored
    if config.get("experiment") == "capture":
        raise InvalidInput(f"{run} must be a run of `lacuna sweep`", got="one of `lacuna capture`, which is whole")
    if "state" not in config or "task" not in config:
        raise InvalidInput(
            f"{run} must be a run of `lacuna sweep`",
            got="one around a loss that this command does not know",
            hint="run_sweep(..., out=, resume=True) in the program that began it",
        )
    return config


def _check_folder(command: SweepCommand) -> None:
    """Raise unless the run can be kept where it is to be kept. Writes nothing."""
    from lacuna.search.run_folder import check_run, check_vacant

    run = command.resume or command.extend
    if run is None:
        if command.out is not None:
            check_vacant(command.out)
        return
    if command.out is not None:
        raise InvalidInput("a run goes on in its own folder", got=f"--out {command.out}", hint="no --out")
    asked, scored, now = _draws_asked(run), check_run(run), command.num_candidates
    if command.resume is not None and now > asked:
        raise InvalidInput(
            f"{run} was to have {asked:,} draws",
            got=f"--num-candidates {now}",
            hint=f"lacuna sweep --extend {shlex.quote(str(run))} --num-candidates {now}",
        )
    if command.extend is not None and now <= max(asked, scored):
        raise InvalidInput(
            f"to extend {run} takes more than its {max(asked, scored):,} draws",
            got=f"--num-candidates {now}",
            hint=f"--num-candidates {2 * max(asked, scored)}",
        )


def _draws_asked(run: Path) -> int:
    from lacuna.reports import rundir

    asked = rundir.read_json(run / "config.json").get("num_candidates")
    if type(asked) is not int:
        raise InvalidInput(f"config.json of {run} must hold an integer as its num_candidates", got=repr(asked))
    return asked


def _folder(command: SweepCommand) -> Path:
    from lacuna.reports import rundir

    given = command.out or command.resume or command.extend
    return given or rundir.new_run(Path("runs"), "sweep", _options(command))


def _options(command: SweepCommand) -> dict[str, Any]:
    own = asdict(command)
    return {f.name: str(own[f.name]) if isinstance(own[f.name], Path) else own[f.name] for f in fields(SweepOptions)}


def _config(command: SweepCommand) -> dict[str, Any]:
    """What the run folder says of the command."""
    asked = sweep_options.command_line("sweep", command, SweepOptions)
    return {"title": points.title(command), "command": asked, **_options(command)}


def _search(
    console: Console, setup: "Point", settings: "Sweep", mesh: "Mesh", out: Path, config: dict[str, Any]
) -> "SweepResult":
    """The search itself, with its progress."""
    from lacuna import meshes, search
    from lacuna.reports import rundir
    from lacuna.reports.progress import progress

    machine = meshes.describe(mesh)
    processes = f", {machine['num_processes']} processes" if machine["num_processes"] > 1 else ""
    console.print(
        f"Best of {settings.num_candidates:,} draws: {config['title']}; "
        f"{settings.num_evaluations:,} candidates on {mesh.size} {machine['device_kind']} device(s){processes}, "
        f"into {out}",
        soft_wrap=True,
    )
    unit_scale = settings.num_evaluations // settings.num_candidates
    with progress(console, "searching", unit="candidates", scale=unit_scale) as advance:
        return search.run_sweep(
            setup.task.objective,
            setup.params,
            setup.batch,
            settings,
            mesh=mesh,
            out=out,
            resume=True,
            documents={"config.json": config, "environment.json": rundir.environment(machine)},
            progress=lambda done, total: advance(done, total, ""),
            notice=lambda sentence: console.print(sentence, style="yellow", soft_wrap=True),
        )


def _metric_records(result: "SweepResult", setup: "Point") -> "list[Record]":
    """The task's metrics on held-out rows, at the base point and at the winner: means over batches of one size."""
    import jax

    from lacuna.reports.records import Record

    metric = jax.jit(setup.task.metric)
    points: dict[str, Callable[[Any], dict[str, Any]]] = {"base": partial(metric, setup.params)}
    if result.best is not None:
        points["winner"] = _metric_at(result.best, result.sweep, setup)
    found = []
    for point, of_rows in points.items():
        of_batch = [jax.device_get(of_rows(rows)) for rows in setup.held_out]
        for name in of_batch[0]:
            mean = sum(float(one[name]) for one in of_batch) / len(of_batch)
            found.append(Record("sweep", "metric", mean, "1", {"name": name, "point": point}))
    return found


def _metric_at(best: "Candidate", sweep: "Sweep", setup: "Point") -> Callable[[Any], dict[str, Any]]:
    """The metrics at a candidate, on rows."""
    import jax
    from jax.tree_util import Partial

    from lacuna import models, search, trees

    searched, metric = setup.task.objective, setup.task.metric
    if searched.noisy_loss is None:
        return partial(jax.jit(metric), search.candidate(setup.params, sweep, best.index, best.sigma, best.sign))
    # As the search made its weights: there may be no room for a whole model more, and factors are not rounded there.
    data, layerwise = trees.as_data(metric), searched.perturbed_loss is not None
    names = jax.eval_shape(metric, setup.params, setup.held_out[0])
    objectives = {name: models.searchable(Partial(_Named(name), data), layerwise=layerwise) for name in names}

    def at_best(rows: Any) -> dict[str, Any]:
        return {
            name: search.rescore(objective, setup.params, rows, sweep, (best,))[0]
            for name, objective in objectives.items()
        }

    return at_best


@dataclass(frozen=True)
class _Named:
    """One of the numbers of a metric, called as a loss is."""

    name: str

    def __call__(self, metric: Callable[..., Any], params: Any, rows: Any) -> Any:
        return metric(params, rows)[self.name]


def _table(rows: "list[SigmaRow]") -> Table:
    heads = ("σ", "F1\nshare", "gain\npredicted", "with its\nband", "asymp-\ntote", "gain\nmeasured", "verdict")
    table = plain_table(*heads, text=(6,))
    for row in rows:
        table.add_row(
            f"{row.sigma:g}",
            _number(row.f1_share, ".3f"),
            _number(row.predicted),
            "" if math.isnan(row.low) else f"{row.low:.3g}–{row.high:.3g}",
            _number(row.asymptotic),
            _number(row.measured),
            row.verdict,
        )
    return table


def _number(x: float, spec: str = ".3g") -> str:
    """`x` by a format specification, or nothing where there is no number."""
    return "" if math.isnan(x) else format(x, spec)
