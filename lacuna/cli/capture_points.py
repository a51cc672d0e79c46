"""What `lacuna capture` compares: two models, a model and its adapter, two adapters, or a recovery of our own."""

import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from lacuna.cli.points import device_bytes, prepare_digits
from lacuna.cli.tables import format_bytes
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from lacuna.captures import BasisSpec, TaskAt
    from lacuna.checkpoints import Adapter
    from lacuna.cli.capture import CaptureCommand
    from lacuna.models import Model
    from lacuna.setups import LanguageModel, TaskConfig
    from lacuna.types import Batch, Delta, Params


class Compared(NamedTuple):
    """A displacement, and what bases are made of at its start.

    Attributes:
      title: of the report.
      first: where it begins, for the report.
      last: where it ends, for the report.
      start: the point.
      delta: from there to the end, float32.
      stacked: whether a leaf of that name is stacked by layers.
      tasks: none, that of the fine-tuning, or it and the control.
      held_out: batches of the fine-tuning's task that no basis is made of.
      notes: what a reader of the report has to know.
    """

    title: str
    first: str
    last: str
    start: "Params"
    delta: "Delta"
    stacked: Callable[[str], bool]
    tasks: "tuple[TaskAt, ...]"
    held_out: "tuple[Batch, ...]"
    notes: tuple[str, ...] = ()


RECOVERY_STEPS = 100

RECOVERY_AT = 1_000_000
"""Step of the stream at which the recovery begins: no basis is made of the rows there."""


def recovery(command: "CaptureCommand", specs: "list[BasisSpec]", console: Console) -> Compared:
    """The synthetic transformer that forgot a digit task, and where training on the task takes it from there."""
    import jax
    import numpy as np

    from lacuna import captures, setups, trees
    from lacuna.tasks import digits
    from lacuna.training import RecoverConfig, from_step, recover

    assert command.asked_task is not None
    apply = setups.digit_model().apply
    names = [name for name in (command.asked_task, command.control_task) if name is not None]
    files = [name for name in names if "." in name or "/" in name]
    if files:
        raise InvalidInput("without a model a task is one on digits", got=files[0], hint="--from FOLDER --to FOLDER")
    own, *control = [digits.digit_task(name, apply, seed=command.seed, batch_size=command.rows) for name in names]
    config = setups.SetupConfig(task=own.name)
    _check_fits(trees.size(jax.eval_shape(setups.digit_model().init, jax.random.key(0))), specs, console)
    setup = prepare_digits(config, console, batch_size=command.rows, cache=command.cache)
    how = f"{RECOVERY_STEPS} steps of {command.optimiser} at {command.learning_rate:g}, {command.rows} rows each"
    console.print(f"Recovering `{own.name}`: {how} ...", soft_wrap=True)
    settings = RecoverConfig(command.optimiser, command.learning_rate, num_steps=RECOVERY_STEPS)
    path = recover(own.objective.loss, setup.params, from_step(own.train, RECOVERY_AT), settings, recorded=1)
    held_out = tuple(own.held_out(step) for step in range(setups.HELD_OUT_BATCHES))
    loss = jax.jit(own.objective.loss)
    before, after = (float(np.mean([loss(point, rows) for rows in held_out])) for point in (setup.params, path.end))
    if not after < before:  # or it is NaN
        raise InvalidInput(
            f"the recovery by {command.optimiser} must lower the loss on held-out rows",
            got=f"{before:.3g} to {after:.3g} nats a digit at a learning rate of {command.learning_rate:g}",
            hint="--learning-rate 1e-4",
        )
    console.print(f"Its loss on held-out rows went from {before:.3g} to {after:.3g} nats a digit.", soft_wrap=True)
    return Compared(
        title=f"a recovery of `{own.name}`",
        first=f"the synthetic transformer that forgot `{own.name}`",
        last=f"the same after {how}",
        start=setup.params,
        delta=captures.displacement(setup.params, path.end),
        stacked=setup.model.stacked,
        tasks=tuple(captures.TaskAt(task.objective.loss, task.train) for task in (own, *control)),
        held_out=held_out,
    )


def models(command: "CaptureCommand", specs: "list[BasisSpec]", console: Console) -> Compared:
    """What two folders or ids name, and the texts of their tasks."""
    from lacuna import captures
    from lacuna.checkpoints import load_tokenizer
    from lacuna.setups import language

    ends = _ends(command)
    configs = _tasks(command)
    found = [language.read(config) for config in configs]  # what is wrong with a file is told before a long read
    tokenizer = load_tokenizer(command.tokenizer or ends.folder) if configs else None
    notice = partial(console.print, style="yellow", soft_wrap=True)
    data = [
        language.task_data(ends.model, one, config, tokenizer, notice=notice)
        for one, config in zip(found, configs, strict=True)
    ]
    for one, config in zip(data, configs, strict=True):
        _check_enough(one.train, config.source, specs, command)
    _check_fits(_size(ends), specs, console)
    console.print("Reading ...")
    opened, end = _read(ends, command, partial(console.print, soft_wrap=True))
    tasks = [language.with_task(opened, one, config) for one, config in zip(data, configs, strict=True)]
    first, last = str(command.from_), str(command.to)
    return Compared(
        title=" to ".join(Path(source).name or source for source in (first, last)),
        first=first,
        last=last,
        start=opened.params,
        delta=captures.displacement(opened.params, end),  # the end is not needed any more
        stacked=ends.model.stacked,
        tasks=tuple(captures.TaskAt(one.task.objective.loss, one.task.train) for one in tasks),
        held_out=tasks[0].held_out if tasks else (),
        notes=ends.notes,
    )


def _check_fits(size: int, specs: "list[BasisSpec]", console: Console) -> None:
    """Say what the bases take, and raise if there is no such basis or no room for one."""
    import jax

    from lacuna import meshes

    rank = max(spec.rank for spec in specs)
    if rank > size:
        raise InvalidInput(f"rank must be at most the {size:,} numbers that move", got=rank)
    gradients = [spec.num_batches or spec.rank for spec in specs if spec.kind == "gradient"]
    most = 4 * size * max(3 * rank, 4 * max(gradients, default=0))
    limit = device_bytes(meshes.candidate_mesh(jax.local_devices()[:1]))  # nothing is split here
    if limit is not None and most > limit:
        raise InvalidInput(
            f"the bases must fit: the largest takes {format_bytes(most)} while it is made",
            got=f"{format_bytes(limit)} of memory",
            hint="a smaller --rank or --num-batches",
        )
    console.print(f"{size:,} parameters; the largest basis takes {format_bytes(most)} of memory while it is made.")


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


def _ends(command: "CaptureCommand") -> _Ends:
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
    assert first is not None
    assert last is not None
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
    return _two_adapters(first, last, command, model_in)


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


def _two_adapters(first: str, last: str, command: "CaptureCommand", model_in: Callable[[Path], "Model"]) -> _Ends:
    """Two adapters of one model, of the same sites, ranks and strengths."""
    from lacuna.checkpoints import load_adapter, sources
    from lacuna.checkpoints.peft_config import read_peft_config
    from lacuna.errors import TreeMismatch

    base = command.base or read_peft_config(Path(first).expanduser(), ignore=command.ignore).base
    if not base:
        raise InvalidInput(f"{first} does not name its model", hint="--base FOLDER")
    folder = sources.find(base, weights=command.task is not None)
    model = model_in(folder)
    pair = tuple(load_adapter(source, model, ignore=command.ignore) for source in (first, last))
    own, other = (adapter.spec for adapter in pair)
    if own != other:
        told = "; ".join(
            ", ".join(f"{site.name} of ranks {_few(site.ranks)} and alphas {_few(site.alphas)}" for site in spec.sites)
            for spec in (own, other)
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


def _size(ends: _Ends) -> int:
    """Of the displacement."""
    import jax

    from lacuna import trees

    if len(ends.adapters) == 2:
        return trees.size(ends.adapters[0].params)
    return trees.size(jax.eval_shape(ends.model.init, jax.random.key(0)))


def _read(ends: _Ends, command: "CaptureCommand", told: Callable[[str], None]) -> _Points:
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


def _tasks(command: "CaptureCommand") -> "list[TaskConfig]":
    """The task and the control task, as far as they are given."""
    from lacuna.setups import TaskConfig

    shared = {"length": command.length, "batch_size": command.rows, "begin": command.begin, "seed": command.seed}
    return [TaskConfig(source, **shared) for source in (command.task, command.control_task) if source is not None]


def _check_enough(train: Any, name: str, specs: "list[BasisSpec]", command: "CaptureCommand") -> None:
    """Raise if a basis would read a row twice."""
    from lacuna.tasks import RowStream

    if not isinstance(train, RowStream):
        return  # rows without an end
    needed, there = command.rows * max(spec.steps.stop for spec in specs), train.num_rows
    if needed > there:
        raise InvalidInput(
            f"the bases need {needed:,} rows of {name}, none of them twice",
            got=f"{there:,}",
            hint="a smaller --rank, --batch-size or --length, or more rows",
        )
