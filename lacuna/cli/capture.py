"""`lacuna capture`: how much of a fine-tuning's displacement lies in which basis."""

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from lacuna.cli.tables import format_bytes, plain_table
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from lacuna.captures import BasisKind, BasisSpec
    from lacuna.checkpoints import Adapter
    from lacuna.models import Model
    from lacuna.reports.records import Record
    from lacuna.setups import LanguageModel, TaskConfig
    from lacuna.types import Params


@dataclass(frozen=True)
class CaptureCommand:
    """How much of YOUR fine-tuning's displacement lies in which basis: of gradients, a Krylov space, first updates.

    Reads the model before and after (two folders, a folder and its LoRA adapter, or two adapters of one base), makes
    each basis at the start, and prints what it captures beside random subspaces, random displacements of the same
    lengths and, with --control-task, the same basis of another text; by layer and by kind of matrix, too. With a task
    also what the projections are worth in held-out loss. Results go to a folder: records, figures and report.md.

    Everything is float32. A basis of rank k takes k times the memory of the weights, three or four of them at a time.
    """

    from_: Annotated[str, tyro.conf.arg(name="from")]
    """Where the displacement begins: model folder, an id on the hub, or folder of a LoRA adapter that PEFT wrote."""

    to: str
    """Where it ends: a model of the same architecture, or an adapter. From a model to an adapter of it, the
    displacement is that of the merged weights; from adapter to adapter, that of their factors."""

    basis: tuple[Literal["random", "gradient", "krylov", "prefix"], ...] = ()
    """Bases to be made at the start: a random one; the leading directions of minibatch gradients; the Krylov space of
    the Hessian from the gradient; the first updates of a training. Default: all that need no more than is given."""

    rank: int = 16
    """Of each basis."""

    task: str | None = None
    """Data of the fine-tuning, for gradients, products and losses: what `lacuna sweep --model` takes as its task. A
    part of it is held out of the bases."""

    control_task: str | None = None
    """Another task, of which each of those bases is made once more."""

    tokenizer: str | None = None
    """Folder or id of the tokenizer, if it is not that of the model."""

    base: str | None = None
    """From adapter to adapter: folder or id of the model under both, if it is not the one that they name."""

    length: int = 128
    """Tokens in a row of text."""

    begin: str = ""
    """Text of a token that stands in front of every question, such as <s>."""

    batch_size: int = 8
    """Rows in a batch."""

    num_batches: int | None = None
    """Of the gradient basis: gradients of which the leading directions are taken. Default: as many as the rank."""

    optimiser: Literal["sgd", "momentum", "adam"] = "adam"
    """Of the first updates."""

    learning_rate: float = 1e-4
    """Of the first updates, constant."""

    num_draws: int = 8
    """Random displacements of each law to compare with."""

    seed: int = 0
    """Of random bases and displacements, and of the order of the rows."""

    out: Path | None = None
    """Folder of the results; must not be there, or be empty. Default: runs/capture/<time>-<hash>."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json or adapter_config.json not to be looked at, if you know that they change nothing."""


class _Ends(NamedTuple):
    """The two points, not read yet, but known to be of one tree.

    Attributes:
      model: their architecture.
      folder: of the weights at the start, or under both adapters.
      end: folder of the weights at the end; None where an adapter makes it.
      adapters: none, that of the end, or those of both.
      notes: what a reader of the report has to know.
    """

    model: "Model"
    folder: Path
    end: Path | None
    adapters: "tuple[Adapter, ...]"
    notes: tuple[str, ...]


class _Points(NamedTuple):
    """The start, with what is below it, and the end."""

    start: "LanguageModel"
    end: "Params"


def capture(command: CaptureCommand, console: Console) -> Path:
    """Run `lacuna capture`. Returns the folder of the results."""
    from lacuna.checkpoints import load_tokenizer
    from lacuna.checkpoints.export import check_new
    from lacuna.reports import rundir
    from lacuna.setups import language

    specs = _specs(command)
    options = _options(command)
    out = command.out or rundir.new_run(Path("runs"), "capture", options)
    rundir.check_folder(out)
    check_new(out)  # before a long read
    ends = _ends(command)
    configs = _tasks(command)
    found = [language.read(config) for config in configs]  # what is wrong with a file is told before a long read
    tokenizer = load_tokenizer(command.tokenizer or ends.folder) if configs else None

    from lacuna import captures, trees

    told = partial(console.print, soft_wrap=True)
    notice = partial(console.print, style="yellow", soft_wrap=True)
    data = [
        language.task_data(ends.model, one, config, tokenizer, notice=notice)
        for one, config in zip(found, configs, strict=True)
    ]
    for one, config in zip(data, configs, strict=True):
        _check_enough(one.train, config.source, specs, command)
    console.print("Reading ...")
    points = _read(ends, command, told)
    opened = points.start
    delta = captures.displacement(opened.params, points.end)
    del points  # the end is not needed any more
    for note in ends.notes:
        console.print(note, style="yellow", soft_wrap=True)
    size = 4 * trees.size(delta)
    most = max(max(3 * spec.rank, 4 * (spec.num_batches or spec.rank) * (spec.kind == "gradient")) for spec in specs)
    told(f"{size // 4:,} parameters; the largest basis takes {format_bytes(most * size)} of memory while it is made.")
    tasks = [language.with_task(opened, one, config) for one, config in zip(data, configs, strict=True)]
    own, control, *_ = [*(captures.TaskAt(one.task.objective.loss, one.task.train) for one in tasks), None, None]
    records = captures.measure(
        opened.params,
        delta,
        specs,
        task=own,
        control=control,
        held_out=tasks[0].held_out if tasks else (),
        stacked=ends.model.stacked,
        seed=command.seed,
        num_draws=command.num_draws,
        told=lambda sentence: told(f"{sentence} ..."),
    )
    return _written(command, ends, options, out, records, console)


def _specs(command: CaptureCommand) -> "list[BasisSpec]":
    """The bases that are asked for; what can be wrong with the options is found here, before anything is read."""
    from lacuna import keys
    from lacuna.captures import BasisSpec
    from lacuna.captures.bases import TASKLESS

    for name, least in (("rank", 1), ("batch_size", 1), ("length", 2), ("num_draws", 1), ("num_batches", 1)):
        value = getattr(command, name)
        if value is not None and not least <= value < 2**31:
            raise InvalidInput(
                f"{name} must be at least {least} and below 2^31", got=value, hint=f"--{_flag(name)} {least}"
            )
    keys.root(command.seed)  # raises for one out of range
    for name in ("task", "control_task", "tokenizer", "base"):
        if getattr(command, name) == "":
            raise InvalidInput(
                f"{name} must be a name or a path", got="an empty one", hint=f"no --{_flag(name)} at all"
            )
    if command.task is None and command.control_task is not None:
        raise InvalidInput("a control task stands beside a task", got="--control-task alone", hint="--task FILE")
    defaults = {field.name: field.default for field in fields(CaptureCommand)}
    every = ("gradient", "krylov", "prefix", "random")
    kinds = tuple(dict.fromkeys(command.basis)) or (TASKLESS if command.task is None else every)
    needy = [kind for kind in kinds if kind not in TASKLESS]
    if command.task is None and needy:
        raise InvalidInput(f"the basis `{needy[0]}` needs a task", got="no --task", hint="--task FILE")

    for names, of, got, heeded in (
        (("tokenizer", "length", "begin", "batch_size"), "a task", "no --task", command.task is not None),
        (("num_batches",), "a basis of gradients", "none of those", "gradient" in kinds),
        (("optimiser", "learning_rate"), "a basis of first updates", "none of those", "prefix" in kinds),
    ):
        unheeded = [name for name in names if getattr(command, name) != defaults[name] and not heeded]
        if unheeded:
            raise InvalidInput(f"{unheeded[0]} is an option of {of}", got=got)

    def spec(kind: "BasisKind") -> BasisSpec:
        num = command.num_batches if kind == "gradient" else None
        return BasisSpec(kind, command.rank, num, optimiser=command.optimiser, learning_rate=command.learning_rate)

    return [spec(kind) for kind in kinds]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _options(command: CaptureCommand) -> dict[str, Any]:
    """The options by the names of their flags, without the folder of the results."""
    own = {name.removesuffix("_"): value for name, value in asdict(command).items() if name != "out"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}


def _command_line(command: CaptureCommand) -> str:
    """The shortest command that asks for the same."""
    words = ["lacuna", "capture", "--from", command.from_, "--to", command.to]
    for field in fields(CaptureCommand):
        value = getattr(command, field.name)
        if field.name in ("from_", "to", "out") or value == field.default:
            continue
        words += [f"--{_flag(field.name)}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _ends(command: CaptureCommand) -> _Ends:
    """What the two sources are, from their settings and headers alone."""
    from lacuna.checkpoints import load_adapter, sources
    from lacuna.checkpoints.configs import spec_from_config
    from lacuna.models import causal_lm

    def is_adapter(source: str) -> bool:
        try:
            return (Path(source).expanduser() / sources.ADAPTER_CONFIG).is_file()
        except (OSError, RuntimeError):  # too long a name, or the home of nobody: `find` says so
            return False

    def model_in(folder: Path) -> "Model":
        return causal_lm(spec_from_config(sources.read_config(folder), ignore=command.ignore))

    first, last = command.from_, command.to
    if is_adapter(first) and not is_adapter(last):
        raise InvalidInput(
            "an adapter's displacement is from its model to it, or to another adapter",
            got=f"from the adapter {first} to the model {last}",
            hint=f"--from {shlex.quote(last)} --to {shlex.quote(first)}",
        )
    if command.base is not None and not (is_adapter(first) and is_adapter(last)):
        raise InvalidInput("base is an option of two adapters", got=f"{first} and {last}")
    if not is_adapter(last):
        return _two_models(sources.find(first), sources.find(last), model_in)
    if not is_adapter(first):
        folder = sources.find(first)
        model = model_in(folder)
        return _Ends(model, folder, None, (load_adapter(last, model, ignore=command.ignore),), ())
    return _two_adapters(command, model_in)


def _two_models(first: Path, last: Path, model_in: Callable[[Path], "Model"]) -> _Ends:
    """Two model folders of one architecture."""
    from lacuna.checkpoints.matching import abstract
    from lacuna.errors import TreeMismatch

    models = model_in(first), model_in(last)
    shapes = [{name: leaf.shape for name, leaf in abstract(model.spec).items()} for model in models]
    for name in [*shapes[0], *shapes[1]]:
        here, there = (list(one[name]) if name in one else None for one in shapes)
        if here != there:
            told = (f"{'none' if shape is None else shape} in {at}" for shape, at in ((here, first), (there, last)))
            raise TreeMismatch(
                "a displacement needs two models of one architecture",
                got=f"`{name}`: {', '.join(told)}",
                hint="a model and what was fine-tuned from it",
            )
    own, other = (asdict(model.spec) for model in models)
    differ = [f"{name} {own[name]} and {other[name]}" for name in own if own[name] != other[name]]
    note = f"The settings of the two models differ in {', '.join(differ)}: those of the start are used."
    return _Ends(models[0], first, last, (), (note,) if differ else ())


def _two_adapters(command: CaptureCommand, model_in: Callable[[Path], "Model"]) -> _Ends:
    """Two adapters of one model, of the same sites, ranks and strengths."""
    from lacuna.checkpoints import load_adapter, sources
    from lacuna.checkpoints.peft_config import read_peft_config
    from lacuna.errors import TreeMismatch

    base = command.base or read_peft_config(Path(command.from_).expanduser(), ignore=command.ignore).base
    if not base:
        raise InvalidInput(f"{command.from_} does not name its model", hint="--base FOLDER")
    folder = sources.find(base, weights=command.task is not None)
    model = model_in(folder)
    pair = tuple(load_adapter(source, model, ignore=command.ignore) for source in (command.from_, command.to))
    first, last = (adapter.spec for adapter in pair)
    if first != last:
        told = "; ".join(
            ", ".join(f"{site.name} of ranks {_few(site.ranks)} and alphas {_few(site.alphas)}" for site in spec.sites)
            for spec in (first, last)
        )
        raise TreeMismatch(
            "two adapters need the same sites, ranks and strengths", got=told, hint="two adapters of one training"
        )
    notes = ["The displacement is that of the adapters' factors, not of the weights that they are added to."]
    if not any(bool((leaf != 0).any()) for name, leaf in _named(pair[0].params) if name.endswith("/B")):
        notes.append("B is zero at the start, and so is the gradient of A: bases made there see B alone.")
    return _Ends(model, folder, None, pair, tuple(notes))


def _few(numbers: tuple[int | float, ...]) -> str:
    """Numbers that are mostly one and the same."""
    return "/".join(f"{number:g}" for number in dict.fromkeys(numbers))


def _named(tree: Any) -> list[tuple[str, Any]]:
    from lacuna import trees

    return trees.named_leaves(tree)


def _read(ends: _Ends, command: CaptureCommand, told: Callable[[str], None]) -> _Points:
    """Both points, float32."""
    import jax
    import jax.numpy as jnp

    from lacuna import models
    from lacuna.checkpoints import load_hf
    from lacuna.setups import LanguageModel

    def read(folder: Path) -> "Params":
        return load_hf(folder, dtype="float32", ignore=command.ignore, report=lambda one: told(str(one)))[1]

    if len(ends.adapters) == 2:
        first, last = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one.params) for one in ends.adapters)
        base = None if command.task is None else read(ends.folder)  # which only a loss reads
        return _Points(LanguageModel(ends.model, first, base, ends.adapters[0], ends.folder), last)
    start = read(ends.folder)
    end = read(ends.end) if ends.end is not None else models.merged(start, ends.adapters[0].lora)
    return _Points(LanguageModel(ends.model, start, None, None, ends.folder), end)


def _tasks(command: CaptureCommand) -> "list[TaskConfig]":
    """The task and the control task, as far as they are given."""
    from lacuna.setups import TaskConfig

    shared = {"length": command.length, "batch_size": command.batch_size, "begin": command.begin, "seed": command.seed}
    return [TaskConfig(source, **shared) for source in (command.task, command.control_task) if source is not None]


def _check_enough(train: Any, name: str, specs: "list[BasisSpec]", command: CaptureCommand) -> None:
    """Raise if a basis would read a row twice."""
    from lacuna.tasks import RowStream

    if not isinstance(train, RowStream):
        return  # rows without an end
    needed, there = command.batch_size * max(spec.steps.stop for spec in specs), train.num_rows
    if needed > there:
        raise InvalidInput(
            f"the bases need {needed:,} rows of {name}, none of them twice",
            got=f"{there:,}",
            hint="a smaller --rank, --batch-size or --length, or more rows",
        )


def _written(
    command: CaptureCommand,
    ends: _Ends,
    options: dict[str, Any],
    out: Path,
    records: "list[Record]",
    console: Console,
) -> Path:
    """The folder of the results, whole or not at all, and a table on the screen."""
    from lacuna import meshes
    from lacuna.checkpoints.whole_folder import whole_folder
    from lacuna.reports import capture_report, rundir
    from lacuna.reports import records as record_files

    title = " to ".join(Path(source).name or source for source in (command.from_, command.to))
    config = {"experiment": capture_report.EXPERIMENT, "title": title, "command": _command_line(command)}
    machine = meshes.describe(meshes.candidate_mesh())
    with whole_folder(out, replace=False) as unfinished:
        rundir.write_json(unfinished / "config.json", {**config, **options, "notes": list(ends.notes)})
        rundir.write_json(unfinished / "environment.json", rundir.environment(machine))
        record_files.write(unfinished / "records.jsonl", records)
        rundir.seal(unfinished)
        capture_report.write_report(unfinished)
    console.print(_table(records))
    console.print(capture_report.summary(records), soft_wrap=True)
    console.print(f"Report: {out / 'report.md'}", soft_wrap=True)
    return out


def _table(records: "list[Record]") -> Table:
    from lacuna.reports import capture_report

    table = plain_table("basis", "k", "mass", "norm", "random\nlevel", "random signs,\nlargest", "loss drop\nkept")
    for row in capture_report.rows_of(records):
        table.add_row(
            row.name,
            str(row.rank),
            f"{row.mass:.3g}",
            f"{row.mass**0.5:.3g}",
            f"{row.level:.2g}",
            f"{row.controls['random signs'][1]:.2g}",
            "" if math.isnan(row.recovery) else f"{row.recovery:.3g}",
        )
    return table
