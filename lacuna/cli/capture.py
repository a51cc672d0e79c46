"""`lacuna capture`: how much of a fine-tuning's displacement lies in which basis."""

import math
import shlex
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from lacuna.cli.points import DIGIT_TASK
from lacuna.cli.tables import plain_table
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from lacuna.captures import BasisKind, BasisSpec
    from lacuna.cli.capture_points import Compared
    from lacuna.reports.records import Record


@dataclass(frozen=True)
class CaptureCommand:
    """How much of a fine-tuning's displacement lies in which basis: of gradients, a Krylov space, first updates.

    Reads the model before and after (two folders, a folder and its LoRA adapter, or two adapters of one base), makes
    each basis at the start, and prints what it captures beside random subspaces, random displacements of the same
    lengths and, with --control-task, the same basis of another task; by layer and by kind of matrix, too. With a task
    also what the projections are worth in held-out loss. Results go to a folder: records, figures and report.md.

    With neither --from nor --to it is tried on a recovery of our own: the synthetic transformer that forgot a digit
    task learns it again, in 100 steps on other rows than the bases are made of.

    Everything is float32. A basis of rank k takes k times the memory of the weights, three or four of them at a time.
    """

    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Where the displacement begins: model folder, an id on the hub, or folder of a LoRA adapter that PEFT wrote."""

    to: str | None = None
    """Where it ends: a model of the same architecture, or an adapter. From a model to an adapter of it, the
    displacement is that of the merged weights; from adapter to adapter, that of their factors."""

    basis: tuple[Literal["random", "gradient", "krylov", "prefix"], ...] = ()
    """Bases to be made at the start: a random one; the leading directions of minibatch gradients; the Krylov space of
    the Hessian from the gradient; the first updates of a training. Default: all that need no more than is given."""

    rank: int = 16
    """Directions of each basis."""

    task: str | None = None
    """Data of the fine-tuning, for gradients, products and losses: what `lacuna sweep --model` takes as its task. A
    part of it is held out of the bases. Without --from: the digit task that is recovered (sort, if nothing is said)."""

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

    batch_size: int | None = None
    """Rows in a batch. Default: 8, of a digit task 128."""

    num_batches: int | None = None
    """Of the gradient basis: gradients of which the leading directions are taken. Default: as many as the rank."""

    optimiser: Literal["sgd", "momentum", "adam"] = "adam"
    """Of the training whose first updates are a basis and, without --from, of the recovery."""

    learning_rate: float = 1e-4
    """Of the same, constant."""

    num_draws: int = 8
    """Random displacements of each law to compare with."""

    seed: int = 0
    """Of random bases and displacements, and of the order of the rows."""

    out: Path | None = None
    """Folder of the results; must not be there, or be empty. Default: runs/capture/<time>-<hash>."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json or adapter_config.json not to be looked at, if you know that they change nothing."""

    cache: Path = Path("~/.cache/lacuna")
    """Folder that keeps the synthetic transformer."""

    @property
    def asked_task(self) -> str | None:
        """The task of the bases."""
        return DIGIT_TASK if self.task is None and self.is_recovery else self.task

    @property
    def is_recovery(self) -> bool:
        """Whether no model is named."""
        return self.from_ is None and self.to is None

    @property
    def rows(self) -> int:
        """In a batch."""
        return self.batch_size or (128 if self.is_recovery else 8)


def capture(command: CaptureCommand, console: Console) -> Path:
    """Run `lacuna capture`. Returns the folder of the results."""
    from lacuna.checkpoints.export import check_new
    from lacuna.cli import capture_points
    from lacuna.reports import rundir

    specs = _specs(command)
    options = _options(command)
    out = command.out or rundir.new_run(Path("runs"), "capture", options)
    rundir.check_folder(out)
    check_new(out, what="a capture")  # before a long read
    if command.is_recovery:
        compared = capture_points.recovery(command, specs, console)
    else:
        compared = capture_points.models(command, specs, console)

    from lacuna import captures

    told = partial(console.print, soft_wrap=True)
    for note in compared.notes:
        told(note, style="yellow")
    own, control, *_ = [*compared.tasks, None, None]
    records = captures.measure(
        compared.start,
        compared.delta,
        specs,
        task=own,
        control=control,
        held_out=compared.held_out,
        stacked=compared.stacked,
        seed=command.seed,
        num_draws=command.num_draws,
        told=lambda sentence: told(f"{sentence} ..."),
    )
    return _written(command, compared, options, out, records, console)


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
    if not 0 < command.learning_rate < math.inf:
        raise InvalidInput(
            "learning_rate must be positive and finite", got=command.learning_rate, hint="--learning-rate 1e-4"
        )
    keys.root(command.seed)  # raises for one out of range
    for name in ("from_", "to", "task", "control_task", "tokenizer", "base"):
        if getattr(command, name) == "":
            flag = _flag(name)
            raise InvalidInput(f"{flag} must be a name or a path", got="an empty one", hint=f"no --{flag} at all")
    if (command.from_ is None) != (command.to is None):
        there, other = ("to", "from") if command.from_ is None else ("from", "to")
        raise InvalidInput("a displacement has two ends", got=f"--{there} alone", hint=f"--{other} FOLDER")
    if command.asked_task is None and command.control_task is not None:
        raise InvalidInput("a control task stands beside a task", got="--control-task alone", hint="--task FILE")
    if command.control_task is not None and command.control_task == command.asked_task:
        raise InvalidInput("a control task is another one", got=f"{command.control_task} as both")
    defaults = {field.name: field.default for field in fields(CaptureCommand)}
    every = ("gradient", "krylov", "prefix", "random")
    kinds = tuple(dict.fromkeys(command.basis)) or (TASKLESS if command.asked_task is None else every)
    needy = [kind for kind in kinds if kind not in TASKLESS]
    if command.asked_task is None and needy:
        raise InvalidInput(f"the basis `{needy[0]}` needs a task", got="no --task", hint="--task FILE")

    models, has_task = "--from FOLDER --to FOLDER", command.asked_task is not None
    trained = "prefix" in kinds or command.is_recovery
    for names, of, got, hint, heeded in (
        (("tokenizer", "length", "begin", "ignore"), "a language model", "no --from", models, not command.is_recovery),
        (("base",), "two adapters", "no --from", models, not command.is_recovery),
        (("tokenizer", "length", "begin", "batch_size"), "a task", "no --task", "--task FILE", has_task),
        (("num_batches",), "a basis of gradients", "none of those", "--basis gradient", "gradient" in kinds),
        (("optimiser", "learning_rate"), "a basis of first updates", "none of those", "--basis prefix", trained),
    ):
        unheeded = [name for name in names if getattr(command, name) != defaults[name] and not heeded]
        if unheeded:
            raise InvalidInput(f"{unheeded[0]} is an option of {of}", got=got, hint=hint)

    def spec(kind: "BasisKind") -> BasisSpec:
        num = command.num_batches if kind == "gradient" else None
        return BasisSpec(kind, command.rank, num, optimiser=command.optimiser, learning_rate=command.learning_rate)

    return [spec(kind) for kind in kinds]


WHERE = ("out", "cache")
"""Options that say where and not what."""


def _flag(name: str) -> str:
    return name.removesuffix("_").replace("_", "-")


def _options(command: CaptureCommand) -> dict[str, Any]:
    """The options by the names of their flags, with what stands for none, without folders that change no number."""
    own = {name.removesuffix("_"): value for name, value in asdict(command).items() if name not in WHERE}
    own |= {"task": command.asked_task, "batch_size": command.rows}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}


def _command_line(command: CaptureCommand) -> str:
    """The shortest command that asks for the same."""
    words = ["lacuna", "capture"]
    for field in fields(CaptureCommand):
        value = getattr(command, field.name)
        if field.name in WHERE or value == field.default:
            continue
        words += [f"--{_flag(field.name)}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _written(
    command: CaptureCommand,
    compared: "Compared",
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

    config = {"experiment": capture_report.EXPERIMENT, "title": compared.title, "command": _command_line(command)}
    told = {"from": compared.first, "to": compared.last, "notes": list(compared.notes)}
    machine = meshes.describe(meshes.candidate_mesh())
    with whole_folder(out, replace=False) as unfinished:
        rundir.write_json(unfinished / "config.json", {**config, **options, **told})
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

    table = plain_table("basis", "k", "mass", "norm", "random\nlevel", "largest of\nrandom signs", "loss drop\nkept")
    for row in capture_report.rows_of(records):
        table.add_row(
            row.name.removesuffix(" task"),  # or the table is wider than 80 columns
            str(row.rank),
            f"{row.mass:.3g}",
            f"{row.mass**0.5:.3g}",
            f"{row.level:.2g}",
            f"{row.controls['random signs'][1]:.2g}",
            "" if math.isnan(row.recovery) else f"{row.recovery:.3g}",
        )
    return table
