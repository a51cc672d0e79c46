"""`lacuna sweep`: a search around a trained model, from the training to the report."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from lacuna.cli.tables import plain_table
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from lacuna.reports.records import Record
    from lacuna.reports.sweep_report import SigmaRow
    from lacuna.search import Sweep, SweepResult
    from lacuna.setups import Setup
    from lacuna.types import Batch

SEARCH_STEP = 1_000_000
"""Which training batch a sweep scores: one that no training here has seen."""


@dataclass(frozen=True)
class SweepCommand:
    """Best-of-N Gaussian search around a trained model, with the theory's prediction beside the result.

    Every draw of noise is scored at every sigma and with both signs, on all local devices. Around the base
    point the expected gain is σ|a| E[max of N normals] − curvature; the report shows where that holds.
    Results go to a run folder: the score table (Parquet), records, figures and report.md.
    """

    state: Literal["forgotten", "undertrained", "trained"] = "forgotten"
    """Starting point: the synthetic transformer trained on all digit tasks and then made to forget the
    task (forgotten), stopped early (undertrained), or trained to the end (trained)."""

    task: str = "sort"
    """Digit task whose loss is minimised: copy, reverse, sort, add, running_sum, rotate, complement,
    neighbour_sum, ..."""

    num_candidates: int = 1024
    """N: independent draws of noise. Each is scored at every sigma and sign."""

    sigmas: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Standard deviations of the noise on each coordinate, ascending. One draw serves all of them."""

    antithetic: bool = True
    """Score both signs of every draw; needed for the odd/even (F1/F2) split."""

    seed: int = 0
    """Seed of the noise. Draw i depends on (seed, i) alone."""

    setup_seed: int = 0
    """Seed of the model's training and of all data."""

    batch_size: int = 128
    """Rows in the batch that every candidate is scored on (the same one for all)."""

    top_k: int | None = None
    """How many of the best candidates to list and to score again on held-out rows. Default: 16, or all."""

    chunk: int | None = None
    """Draws dispatched at once; sets how often progress is shown and how much a kill can lose. Changes no score."""

    width: int = 1
    """Candidates evaluated side by side on a device. 1 is best on a CPU; try 8 to 64 on a GPU or TPU."""

    probes: int = 64
    """Hessian products for the estimate of the curvature's trace."""

    out: Path | None = None
    """Run folder. If it holds this same run, unfinished or shorter, the sweep goes on from there.
    Default: runs/sweep/<time>-<hash>."""

    cache: Path = Path("~/.cache/lacuna")
    """Folder that keeps trained starting points."""


def sweep(command: SweepCommand, console: Console, arguments: Sequence[str] = ()) -> Path:
    """Run `lacuna sweep`: prepare the point, search around it, predict, report. Returns the run folder."""
    from lacuna import meshes

    meshes.use_all_cpu_cores()  # before anything touches a device

    from lacuna import search
    from lacuna.reports import records, rundir, sweep_report

    settings = _settings(command)
    setup = _prepare(command, console)
    settings = replace(settings, family=search.gaussian(stacked=setup.model.stacked))
    objective, batch, held_out = setup.task.objective, setup.task.train(SEARCH_STEP), setup.task.held_out(0)
    options: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(command).items()}
    out = command.out or rundir.new_run(Path("runs"), "sweep", options)
    title = f"{command.state} synthetic transformer, task `{command.task}`"
    config = {"title": title, "command": shlex.join(["lacuna", *_without_out(arguments)]), **options}
    try:
        result = _search(console, setup, settings, out, config)
        console.print("Measuring gradient and curvature at the base point, scoring the winners on held-out rows ...")
        around = search.landscape(objective, setup.params, batch, num_probes=command.probes)
        found = search.sweep_records(result, around)
        found += search.held_out_records(result, objective, setup.params, batch, held_out)
        found += _metric_records(result, setup, held_out)
        # Only now: an interrupted extension leaves the report of what was finished as it was.
        rundir.write_json(out / "config.json", config)
        rundir.write_json(out / "environment.json", _environment(out, result))
        rundir.write_json(out / "result.json", {"scores_sha256": result.sha256})
        records.write(out / "records.jsonl", found)
        written = sweep_report.write_report(out)
    except KeyboardInterrupt:
        again = f"the same command with --out {shlex.quote(str(out))} goes on from there"
        told = f": what was scored is in {out}; {again}" if (out / "scores.log").exists() else ""
        raise KeyboardInterrupt(told) from None
    console.print(_table(sweep_report.sigma_rows(found)))
    console.print(sweep_report.summary(found))
    console.print(f"Report: {written}", soft_wrap=True)
    return out


def _settings(command: SweepCommand) -> "Sweep":
    """What to evaluate. What can be wrong with the options of the search is found here, before any training."""
    from lacuna import search
    from lacuna.search.run_folder import check_vacant

    if command.out is not None:
        check_vacant(command.out)

    for name, least in (("batch_size", 1), ("probes", 2)):
        if getattr(command, name) < least:
            raise InvalidInput(f"{name} must be at least {least}", got=getattr(command, name))
    return search.Sweep(
        search.gaussian(),
        command.sigmas,
        command.num_candidates,
        seed=command.seed,
        antithetic=command.antithetic,
        top_k=command.top_k,
        chunk=command.chunk,
        width=command.width,
    )


def _prepare(command: SweepCommand, console: Console) -> "Setup":
    """The starting point, with a progress line for each training that has to be run."""
    from contextlib import ExitStack

    from lacuna import setups
    from lacuna.reports.progress import Advance, progress

    with ExitStack() as stack:
        shown: dict[str, Advance] = {}

        def advance(stage: str, step: int, num_steps: int, loss: float) -> None:
            if stage not in shown:
                stack.close()  # the stage before is over
                shown[stage] = stack.enter_context(progress(console, stage, unit="steps"))
            shown[stage](step, num_steps, f"loss {loss:.3f}")

        config = setups.SetupConfig(state=command.state, task=command.task, seed=command.setup_seed)
        return setups.prepare(
            config,
            eval_batch_size=command.batch_size,
            cache=command.cache,
            advance=advance,
            notice=lambda sentence: console.print(sentence, style="yellow", soft_wrap=True),
        )


def _search(console: Console, setup: "Setup", settings: "Sweep", out: Path, config: dict[str, Any]) -> "SweepResult":
    """The search itself, with its progress."""
    from lacuna import meshes, search
    from lacuna.reports import rundir
    from lacuna.reports.progress import progress

    mesh = meshes.candidate_mesh()
    machine = meshes.describe(mesh)
    console.print(
        f"Searching around the {config['title']}: {settings.num_candidates:,} draws, "
        f"{settings.num_evaluations:,} candidates, on {mesh.size} {machine['device_kind']} device(s), into {out}",
        soft_wrap=True,
    )
    unit_scale = settings.num_evaluations // settings.num_candidates
    with progress(console, "searching", unit="candidates", scale=unit_scale) as advance:
        return search.run_sweep(
            setup.task.objective,
            setup.params,
            setup.task.train(SEARCH_STEP),
            settings,
            mesh=mesh,
            out=out,
            resume=True,
            documents={"config.json": config, "environment.json": rundir.environment(machine)},
            progress=lambda done, total: advance(done, total, ""),
        )


def _metric_records(result: "SweepResult", setup: "Setup", rows: "Batch") -> "list[Record]":
    """The task's metrics on held-out rows, at the base point and at the winner."""
    import jax

    from lacuna import search
    from lacuna.reports.records import Record

    points = {"base": setup.params}
    if result.best is not None:
        best = result.best
        points["winner"] = search.candidate(setup.params, result.sweep, best.index, best.sigma, best.sign)
    metric = jax.jit(setup.task.metric)
    return [
        Record("sweep", "metric", float(value), "1", {"name": name, "point": point})
        for point, params in points.items()
        for name, value in metric(params, rows).items()
    ]


def _environment(out: Path, result: "SweepResult") -> dict[str, Any]:
    """What the scores were made with: of this call if it scored any, and of earlier ones that did it otherwise."""
    from lacuna import meshes
    from lacuna.reports import rundir

    before = rundir.read_json(out / "environment.json")
    if not result.num_scored:
        return before
    now = rundir.environment(meshes.describe(meshes.candidate_mesh()))
    told = ("commit", "dirty", "machine", "num_devices", "device_kind")
    earlier = [*before.get("earlier", []), {name: before[name] for name in told}]
    return now | {"earlier": [one for one in earlier if one != {name: now[name] for name in told}]}


def _without_out(arguments: Sequence[str]) -> list[str]:
    """The arguments less `--out FOLDER`: a command that is run again makes a folder of its own."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--out="):
            skip = argument == "--out"
            kept += [] if skip else [argument]
        else:
            skip = False
    return kept


def _table(rows: "list[SigmaRow]") -> Table:
    heads = ("σ", "F1\nshare", "gain\npredicted", "with its\nband", "asymp-\ntote", "gain\nmeasured", "verdict")
    table = plain_table(*heads, text=(6,))
    for row in rows:
        table.add_row(
            f"{row.sigma:g}",
            f"{row.f1_share:.3f}",
            f"{row.predicted:.3g}",
            f"{row.low:.3g}–{row.high:.3g}",
            f"{row.asymptotic:.3g}",
            f"{row.measured:.3g}",
            row.verdict,
        )
    return table
