"""The command line: `lacuna sweep`, `report`, `plan`, `export` and `verify-hf`.

A thin skin: options in, one library call, a table out. Heavy imports happen inside the commands, so that
`lacuna --help` answers at once. Bad input is one sentence on standard error and exit status 2.
"""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from lacuna.errors import InvalidInput, LacunaError

if TYPE_CHECKING:
    from lacuna.reports.records import Record
    from lacuna.reports.sweep_report import SigmaRow
    from lacuna.search import Sweep, SweepResult
    from lacuna.setups import Setup
    from lacuna.types import Batch

SEARCH_STEP = 1_000_000
"""Which training batch a sweep scores: one that no training here has seen."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell reports it."""


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


@dataclass(frozen=True)
class ReportCommand:
    """Redraw the figures and report.md of a run from its records."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""

    to: Path | None = None
    """Write the report there and leave the run folder as it is."""


@dataclass(frozen=True)
class VerifyCommand:
    """Compare our reading of a Hugging Face model with transformers, layer by layer, in float32.

    Needs torch (pip install 'lacuna[parity]'). Exit status 0 if all levels agree, 1 if one does not.
    """

    source: tyro.conf.Positional[str]
    """Model folder, or an id on the hub: GPT-2, Llama, Qwen 1.5 to 3, OLMo or OLMo 2."""

    text: str | None = None
    """What both read; needs a tokenizer. Random tokens, some rows padded on the left, if it is not given."""

    tokenizer: Path | None = None
    """Folder of the tokenizer, if it is not the model's."""

    length: int = 64
    """Random tokens in a row."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


@dataclass(frozen=True)
class PlanCommand:
    """Bytes that a language model needs on each device of a mesh, from its config and headers: no weight is read.

    Neither the devices nor the weights need be there; activations come on top.
    """

    model: str
    """Model folder, or an id on the hub such as Qwen/Qwen2.5-7B, of which the settings alone are fetched."""

    mesh: tuple[int, int] = (1, 1)
    """Devices on the axes `candidates` (copies of the model) and `model` (that each copy is split over)."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the parameters. Default: that of the files, or of the config."""

    device_gb: float | None = None
    """Memory of a device in 10^9 bytes. Default: that of the accelerator that is here, if there is one."""

    leaves: bool = False
    """List every leaf and how it is split."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a language model anew: one file or shards, in another precision, out of any form that is read.

    Reads safetensors, shards or flax_model.msgpack, and writes safetensors with config.json and the tokenizer's
    files, for transformers, vLLM and lacuna. The folder is there whole at the end, or not at all.
    """

    source: tyro.conf.Positional[str]
    """Model folder, or an id on the hub: GPT-2, Llama, Qwen 1.5 to 3, OLMo or OLMo 2."""

    to: Path
    """Folder to write; must not be there, or be empty."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the file. Default: as it is."""

    max_shard_gb: float = 5.0
    """Largest file, in 10^9 bytes."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


Command = (
    Annotated[SweepCommand, tyro.conf.subcommand("sweep")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[VerifyCommand, tyro.conf.subcommand("verify-hf")]
)

DISAGREED = 1
"""Exit status of a comparison that was made and failed."""


def main() -> None:
    """Entry point of the `lacuna` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    command = tyro.cli(
        Command,  # pyrefly: ignore  (tyro takes a union of types; its annotations do not say so)
        prog="lacuna",
        description="Local linear geometry of trained networks.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    # Nothing printed here is markup: a folder may be called [red].
    console, complaints = (Console(stderr=stderr, markup=False, highlight=False) for stderr in (False, True))

    def complain(sentence: str, status: int) -> int:
        complaints.print(sentence, style="red", soft_wrap=True)
        return status

    try:
        if isinstance(command, SweepCommand):
            sweep(command, console, arguments)
        elif isinstance(command, VerifyCommand):
            return 0 if verify_hf(command, console) else DISAGREED
        elif isinstance(command, PlanCommand):
            plan(command, console)
        elif isinstance(command, ExportCommand):
            export(command, console)
        else:
            report(command, console)
    except KeyboardInterrupt as stop:
        return complain(f"Interrupted{stop}.", INTERRUPTED)
    except LacunaError as error:
        return complain(f"lacuna: {error}", 2)
    except OSError as error:
        return complain(f"lacuna: {error}. Is the folder there, and may it be written to?", 2)
    except (MemoryError, RuntimeError) as error:  # JAX reports a full device as a RuntimeError
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = (str(error).splitlines() or ["no more memory"])[0].rstrip(".")
        if not isinstance(command, SweepCommand):
            return complain(f"lacuna: this must fit into memory; got {first}.", 2)
        smaller = "--num-candidates" if isinstance(error, MemoryError) else "--batch-size or --width"
        return complain(f"lacuna: the sweep must fit into memory; got {first}. Try: a smaller {smaller}.", 2)
    return 0


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


def report(command: ReportCommand, console: Console) -> None:
    """Run `lacuna report`."""
    from lacuna.reports import sweep_report

    console.print(f"Report: {sweep_report.write_report(command.run, command.to)}", soft_wrap=True)


def plan(command: PlanCommand, console: Console) -> None:
    """Run `lacuna plan`."""
    from lacuna.checkpoints.plan import plan_hf

    if command.device_gb is not None and not command.device_gb > 0:
        raise InvalidInput("device_gb must be positive", got=command.device_gb)
    candidates, split = command.mesh
    options: dict[str, Any] = {"candidates": candidates, "dtype": command.dtype, "ignore": command.ignore}
    found = plan_hf(command.model, model=split, **options)
    known = "checked against the headers of its weights" if found.checked else "from its config alone"
    console.print(
        f"{found.folder}, {known}: {found.num_parameters:,} parameters, {_gb(found.num_bytes)} as {found.dtype}; "
        f"{candidates} model(s), each on {split} device(s).",
        soft_wrap=True,
    )
    unit, scale = ("GB", 1e9) if found.num_bytes > 1e9 else ("MB", 1e6)
    if command.leaves:
        leaves = _plain_table("leaf", "shape / devices", unit)
        for leaf in found.leaves:
            shares = (f"{n} / {n // m}" if n != m else str(n) for n, m in zip(leaf.shape, leaf.part, strict=True))
            part = math.prod(leaf.part) * found.dtype.itemsize
            leaves.add_row(leaf.name, " x ".join(shares), f"{part / scale:,.2f}")
        console.print(leaves)
    limit = 1e9 * command.device_gb if command.device_gb is not None else _accelerator_bytes()
    table = _plain_table("on each device", unit, *(["of its memory", ""] if limit else []))
    for what, num_bytes in found.needs().items():
        judged = [f"{100 * num_bytes / limit:.0f} %", "fits" if num_bytes < limit else "TOO LARGE"] if limit else []
        table.add_row(what, f"{num_bytes / scale:,.2f}", *judged)
    console.print(table)
    if limit and found.needs()["parameters"] >= limit:
        wider = (split * 2**i for i in range(1, 11))
        fits = (n for n in wider if plan_hf(command.model, model=n, **options).needs()["parameters"] < limit)
        enough = next(fits, None)
        if enough is None:
            console.print(f"The parameters fit on none of --mesh {candidates} {2 * split}, {4 * split}, ...")
        else:
            console.print(f"The parameters fit on --mesh {candidates} {enough}: {candidates * enough} devices.")
    if found.repeated and split > 1:
        console.print(f"{_gb(found.repeated * found.dtype.itemsize)} of it lie whole on every device.")


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


def _accelerator_bytes() -> float | None:
    """Memory of the first device, where that is not the host's own."""
    import jax

    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")


def _plain_table(*heads: str) -> Table:
    """Text on the left, numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True, vertical="bottom")
    return table


def export(command: ExportCommand, console: Console) -> None:
    """Run `lacuna export`."""
    from lacuna.checkpoints import export_hf, load_hf
    from lacuna.checkpoints.export import check_new
    from lacuna.checkpoints.sources import find

    if not 0 < command.max_shard_gb < math.inf:
        raise InvalidInput("max_shard_gb must be positive", got=command.max_shard_gb)
    check_new(command.to)  # before a long read
    folder = find(command.source)
    console.print("Reading ...")
    told = partial(console.print, soft_wrap=True)
    model, params = load_hf(folder, dtype=command.dtype, ignore=command.ignore, report=lambda found: told(str(found)))
    most = int(1e9 * command.max_shard_gb)
    console.print("Writing ...")
    out = export_hf(model, params, command.to, like=folder, max_shard_bytes=most, ignore=command.ignore)
    written = sorted(file.name for file in out.iterdir())
    size = sum((out / name).stat().st_size for name in written)
    console.print(f"Wrote {_gb(size)} to {out}: {', '.join(written)}", soft_wrap=True)


def verify_hf(command: VerifyCommand, console: Console) -> bool:
    """Run `lacuna verify-hf`; whether all levels agree."""
    import numpy as np

    from lacuna.checkpoints import verify
    from lacuna.checkpoints.configs import spec_from_config
    from lacuna.checkpoints.hf import load_tokenizer
    from lacuna.checkpoints.sources import find, read_config

    if command.length < 2:
        raise InvalidInput("length must be at least 2", got=command.length)
    folder = find(command.source)
    spec = spec_from_config(read_config(folder), ignore=command.ignore)
    if command.text is None:
        tokens, mask = verify.sample_tokens(spec.vocab_size, min(command.length, spec.max_positions))
    else:
        ids = load_tokenizer(command.tokenizer or folder)(command.text).input_ids
        if not ids:
            raise InvalidInput("text must hold at least one token", got=f"`{command.text}`")
        tokens = np.asarray([ids], np.int64)
        mask = np.ones_like(tokens)
    found = verify.verify_hf(folder, tokens, mask, ignore=command.ignore)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("level", no_wrap=True)
    for head in ("largest\ndifference", "largest\nvalue", "relative"):
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    table.add_column("", no_wrap=True)
    for level in found.levels:
        verdict = "" if level.passed else "DIFFERS"
        table.add_row(level.name, f"{level.difference:.2e}", f"{level.size:.3g}", f"{level.relative:.1e}", verdict)
    console.print(table)
    verdict = "agrees with" if found.passed else "DIFFERS from"
    console.print(
        f"lacuna {verdict} transformers on {found.num_tokens} tokens (limit {verify.LIMIT:g} of each level's largest "
        f"value): same first choice at {100 * found.same_top:.1f} %, KL {found.divergence_nats:.1e} nats.",
        soft_wrap=True,
    )
    return found.passed


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


def _table(rows: "list[SigmaRow]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("σ", "F1\nshare", "gain\npredicted", "with its\nband", "asymp-\ntote", "gain\nmeasured"):
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    table.add_column("verdict", no_wrap=True)
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
