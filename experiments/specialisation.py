"""C9: sequential specialisation is brittle, simultaneous training robust.

Paper: arXiv 2606.10929, Table 5 and Figure 4; its protocol is not available to us. Ours: T tasks have U batches each.
*Sequential* takes all batches of the first task, then all of the next; *simultaneous* takes the very same batches
dealt in turn. One Adam with a constant rate, its state kept from task to task: nothing but the order of the batches
differs. Two systems: the synthetic transformer, trained before on the other digit tasks, and an adapter on a frozen
language model, fresh, on the same operations as text whose rows name their operation.
Expect, from one or two seeds: a gap of 0.4 in both systems. A forgotten task comes back to the adapter in a quarter to
a half of the updates that it took at first, to the synthetic model in about as many.
`python -m experiments specialisation:small`. `smoke` shrinks models, lessons and seeds. Five seeds of `small` take half
an hour on one core of an AMD EPYC.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import drawing, language_models, lessons
from experiments.language_models import LanguageModelSpec
from experiments.lessons import School
from experiments.recoveries import Told
from lacuna import keys, models, setups, trees
from lacuna.errors import InvalidInput
from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Record, select, value
from lacuna.tasks import digits, mappings
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.training import BatchAt, TrainConfig, fit
from lacuna.types import Loss, Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "specialisation", "The same tasks one after the other, or together"
ABOUT = (
    "Every task has the same number of batches. *Sequential*: all batches of one task, then all of the next, in "
    "several orders. *Simultaneous*: the very same batches dealt in turn. The optimiser and its state go on through "
    "both, so only the order of the batches differs. Accuracies are of answer digits on held-out rows. *Forgetting*: "
    "what a task loses from the end of its own stage to the end of all. *Recovery*: updates on the task alone, from "
    "the sequential end, on batches not seen before, until its accuracy is back at 95 % of what it was after its own "
    "stage, beside the updates that this took the first time (then Adam's state was that of the tasks before, now it "
    "is fresh). The rule: the gap in final mean accuracy is more than three times its spread, the standard deviation "
    "over seeds of a seed's mean gap over its orders; the control: the batches are the same, tasks were learnt in "
    "their own stage, and simultaneous training has learnt: a mean accuracy of 0.9 at least for both."
)

System = Literal["synthetic", "lora"]

RATES: dict[System, float] = {"synthetic": 1e-3, "lora": 3e-3}
"""Constant learning rates of Adam, at which each task alone is learnt. The paper's are not available to us."""

REGAINED = 0.95
"""Share of the accuracy after its own stage at which a task counts as regained."""

LEARNT = 0.9
"""Mean accuracy below which simultaneous training has not learnt, and the comparison means nothing."""


@dataclass(frozen=True)
class Config:
    """Tasks one after the other against the same batches dealt in turn.

    Attributes:
      num_seeds: seeds 0, 1, ... of model, data and orders.
      systems: what is trained.
      tasks: what it learns, each for as many updates; the synthetic model knows the other digit tasks before.
      num_orders: of the tasks one after the other.
      num_updates: on each task.
      batch_size: rows of a batch.
      check_every: updates between two looks at the held-out accuracies; divides num_updates.
      num_held_out: held-out rows of each task.
      training_steps: of the synthetic model on the other tasks, before.
      training_rows: rows of a batch there.
      rank: of the adapter, at every linear map.
      base: the frozen language model.

    Raises:
      InvalidInput: fewer than two tasks or unknown ones, no order, or updates that are no multiple of check_every.
    """

    num_seeds: int = 5
    systems: tuple[System, ...] = get_args(System)
    tasks: tuple[str, ...] = ("sort", "copy", "running_max")
    num_orders: int = 2
    num_updates: int = 150
    batch_size: int = 32
    check_every: int = 5
    num_held_out: int = 64
    training_steps: int = 250
    training_rows: int = 128
    rank: int = 8
    base: LanguageModelSpec = field(default_factory=LanguageModelSpec)

    def __post_init__(self) -> None:
        for task in self.tasks:
            digits.task_token(task)
        if not 2 <= len(set(self.tasks)) == len(self.tasks) < len(digits.DIGIT_TASKS):
            raise InvalidInput("tasks must be two or more, all different, and not all there are", got=self.tasks)
        if self.num_orders < 1:
            raise InvalidInput("num_orders must be at least 1", got=self.num_orders)
        if self.check_every < 1 or self.num_updates < 1 or self.num_updates % self.check_every:
            raise InvalidInput(
                "num_updates must be a multiple of check_every, both positive",
                got=f"{self.num_updates} and {self.check_every}",
            )


SMOKE_BASE = LanguageModelSpec(
    texts=language_models.PYTHON, vocab_size=300, width=16, num_layers=1, num_heads=2, pretrain_steps=0
)
PRESETS = {
    "smoke": Config(
        1,
        tasks=("copy", "running_max"),
        num_orders=2,
        num_updates=4,
        batch_size=4,
        check_every=2,
        num_held_out=4,
        training_steps=2,
        training_rows=7,
        rank=2,
        base=SMOKE_BASE,
    ),
    "small": Config(),
    "paper": Config(num_seeds=10, num_orders=6),
}


def resolved(config: Config) -> dict[str, str]:
    """What stands for defaults here."""
    return language_models.resolved(config.base) if "lora" in config.systems else {}


class Start(NamedTuple):
    """Where a system starts.

    Attributes:
      model: its name, for the table.
      params: what is trained.
      school: its tasks.
    """

    model: str
    params: Params
    school: School


def _examined_on(streams: Sequence[BatchAt]) -> Batch:
    """The first batch of each stream, one below the other."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stream(0) for stream in streams))


@cache
def _digit_functions() -> tuple[Loss, Loss]:
    """Loss and accuracy of every digit task, the same objects for every seed, so that nothing is compiled twice."""
    task = digits.digit_task(digits.DIGIT_TASKS[0], setups.digit_model().apply, seed=0, batch_size=1)

    def accuracy(params: Params, batch: Batch) -> Float[Array, ""]:
        return task.metric(params, batch)["accuracy"]

    return trees.as_data(task.objective.loss), trees.as_data(accuracy)


def _synthetic(config: Config, seed: int, cache: Path, told: Told) -> Start:
    """The multitask transformer, which knows the other digit tasks."""
    model, (loss, accuracy) = setups.digit_model(), _digit_functions()
    others = [name for name in digits.DIGIT_TASKS if name not in config.tasks]
    train = TrainConfig(num_steps=config.training_steps, warmup_steps=min(50, config.training_steps // 2))
    recipe = {"version": setups.VERSION, "spec": asdict(model.spec), "seed": seed}
    recipe |= {"tasks": others, "batch_size": config.training_rows, "train": asdict(train)}

    def trained() -> Params:
        told(f"training on {', '.join(others)}: {train.num_steps} steps")
        data = digits.mixture(others, seed=seed, batch_size=config.training_rows)
        return fit(loss, model.init(keys.stream(seed, "init")), data, train).params

    params = setups.kept(model, recipe, trained, cache=cache, notice=told)
    made = partial(digits.mixture, seed=seed)
    streams = tuple(made([task], batch_size=config.batch_size) for task in config.tasks)
    held_out = [made([task], batch_size=config.num_held_out, split="held_out") for task in config.tasks]
    name = f"the synthetic transformer, trained on {len(others)} other tasks"
    return Start(name, params, School(loss, accuracy, streams, _examined_on(held_out), RATES["synthetic"]))


def _lora(config: Config, seed: int, cache: Path, told: Told) -> Start:
    """A fresh adapter at every linear map of a frozen language model."""
    base = language_models.base(config.base, cache, told)
    spec = models.lora_spec(base.model, rank=config.rank, sites=".*")
    loss, accuracy = (
        language_loss(models.over_adapter(of_next, base.model, base.params, spec))
        for of_next in (models.next_token_nats, models.next_token_right)
    )
    made = partial(mappings.mapping, encode=base.encode, seed=seed, named=True)
    streams = tuple(made(task, batch_size=config.batch_size) for task in config.tasks)
    held_out = [made(task, batch_size=config.num_held_out, split="held_out") for task in config.tasks]
    school = School(loss, accuracy, streams, _examined_on(held_out), RATES["lora"])
    name = f"an adapter of rank {config.rank} on {base.name}"
    return Start(name, spec.init(keys.stream(seed, "adapter")), school)


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found: list[Record] = []
    for system in config.systems:
        start = (_synthetic if system == "synthetic" else _lora)(config, seed, cache, told)
        found += _of_system(config, seed, system, start, told)
    return found


def _of_system(config: Config, seed: int, system: System, start: Start, told: Told) -> list[Record]:
    """Both arms of a system, and what comes back after the sequential one."""
    found: list[Record] = []
    tasks, every = config.tasks, config.check_every
    checks = config.num_updates // every

    def record(quantity: str, number: object, **where: str | int) -> None:
        where = {"seed": seed, "system": system, **where}
        found.append(Record(NAME, quantity, float(np.asarray(number)), "1", where))

    def curves(accuracy: Float[np.ndarray, "c T"], places: Sequence[int], **where: str | int) -> None:
        for check, of_task in enumerate(accuracy):
            record("mean_accuracy", of_task.mean(), updates=check * every, **where)
            for position, task in enumerate(places, start=1):
                named = {"task": tasks[task], "position": position, "updates": check * every}
                record("accuracy", of_task[task], **named, **where)

    record("size", trees.size(start.params), model=start.model)
    orders = lessons.orders(seed, len(tasks), config.num_orders)
    together = lessons.simultaneous(orders[0], config.num_updates)
    told(f"{system}: {', '.join(tasks)} together")
    learnt = lessons.learn(start.school, start.params, jnp.asarray(together), every=every)
    curves(np.asarray(learnt.accuracy), orders[0], arm="simultaneous")

    for number, order in enumerate(orders):
        told(f"{system}: {', then '.join(tasks[task] for task in order)}")
        apart = lessons.sequential(order, config.num_updates)
        record("shared_batches", lessons.shared(apart, together), order=number)
        learnt = lessons.learn(start.school, start.params, jnp.asarray(apart), every=every)
        accuracy = np.asarray(learnt.accuracy)
        curves(accuracy, order, arm="sequential", order=number)
        for position, task in enumerate(order, start=1):
            where = {"order": number, "position": position, "task": tasks[task]}
            own = accuracy[(position - 1) * checks : position * checks + 1, task]
            target = REGAINED * own[-1]
            first, most = jnp.int32(config.num_updates), jnp.int32(config.num_updates)
            again = lessons.relearn(
                start.school, learnt.params, jnp.int32(task), jnp.float32(target), first, most, every=every
            )
            record("learnt", own[-1], **where)
            record("kept", accuracy[-1, task], **where)
            record("forgetting", own[-1] - accuracy[-1, task], **where)
            record("first_cost", lessons.updates_to(target, own, every=every), **where)
            record("recovery_cost", again.num_updates, **where)
            record("regained", again.regained, **where)
    return found


def _finals(records: Sequence[Record], config: Config, system: System) -> tuple[Spread, Spread, Spread]:
    """Final mean accuracy over the tasks, simultaneous and sequential, and the gap: of each seed, over its orders."""
    last = config.num_updates * len(config.tasks)
    rows = []
    for seed in seeds_of(records):
        where = {"seed": seed, "system": system, "updates": last}
        together = value(records, "mean_accuracy", arm="simultaneous", **where)
        apart = np.mean([r.value for r in select(records, "mean_accuracy", arm="sequential", **where)])
        rows.append((together, float(apart), float(together - apart)))
    together, apart, gap = zip(*rows, strict=True)
    return Spread(together), Spread(apart), Spread(gap)


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each system."""
    rows = []
    for system in config.systems:
        together, apart, gap = _finals(records, config, system)
        num_seeds = len(gap.values)
        # One seed has no spread; it has no verdict either.
        deviation = float(np.std(gap.values, ddof=1)) if num_seeds > 1 else 0.0
        beside = f"{gap.mean / deviation:.2g} times its spread over seeds" if deviation else "no spread over seeds"
        same = spread(records, "shared_batches", system=system)
        matched = bool(same.values) and min(same.values) == 1.0
        own = spread(records, "learnt", system=system)
        rows.append(
            Claim(
                "C9",
                f"{system}: {len(config.tasks)} tasks one after the other end below the same batches dealt in turn",
                "sequential brittle, simultaneous robust (its figures are not available to us)",
                f"gap in mean accuracy {gap}, {beside}",
                f"{'the same batches' if matched else 'NOT the same batches'}, {config.num_updates} updates a task in "
                f"both; simultaneous ends at {together}, sequential at {apart}; after their own stage {own}",
                verdict(gap.mean > 3 * deviation, matched and min(together.mean, own.mean) >= LEARNT, num_seeds),
            )
        )
    return rows


def _by_position(records: Sequence[Record], config: Config, system: System) -> list[list[str]]:
    """A line for each place in the order."""
    lines = []
    for position in range(1, len(config.tasks) + 1):
        where = {"system": system, "position": position}
        regained = spread(records, "regained", **where)
        cells = [str(spread(records, name, **where)) for name in ("learnt", "kept", "forgetting")]
        first, again = (_counted(spread(records, name, **where)) for name in ("first_cost", "recovery_cost"))
        censored = sum(one < 1 for one in regained.values)
        never = f"; {censored} of {len(regained.values)} not within {config.num_updates}" if censored else ""
        lines.append([system, str(position), *cells, first, f"{again}{never}"])
    return lines


def _counted(updates: Spread) -> str:
    """Mean and range of whole numbers."""
    return f"{updates.mean:.0f} ({min(updates.values):.0f} to {max(updates.values):.0f})"


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Accuracies stage by stage, forgetting and recovery by position, final accuracies by task."""
    num_tasks = len(config.tasks)
    found: drawing.Tables = {}
    for system in config.systems:
        head = ["after stage", *(f"task of stage {p}" for p in range(1, num_tasks + 1)), "mean", "simultaneous, mean"]
        lines = []
        for stage in range(num_tasks + 1):
            where = {"system": system, "updates": stage * config.num_updates}
            cells = [
                spread(records, "accuracy", arm="sequential", position=p, **where) for p in range(1, num_tasks + 1)
            ]
            means = [spread(records, "mean_accuracy", arm=arm, **where) for arm in ("sequential", "simultaneous")]
            lines.append([str(stage or "start"), *map(str, cells), *map(str, means)])
        found[f"Accuracy after each stage, {system} (mean and range over orders and seeds)"] = (head, lines)
    head = ["system", "position", "accuracy after its stage", "at the end", "forgetting"]
    head += ["updates to 95 % of it, first time", "again, from the end"]
    found["Forgetting and recovery by position"] = (
        head,
        [line for system in config.systems for line in _by_position(records, config, system)],
    )
    last, lines = config.num_updates * num_tasks, []
    for system in config.systems:
        for task in config.tasks:
            where = {"system": system, "task": task}
            arms = ("simultaneous", "sequential")
            ends = [spread(records, "accuracy", arm=arm, updates=last, **where) for arm in arms]
            lines.append([system, task, *map(str, ends), str(spread(records, "learnt", **where))])
    found["Final accuracy by task"] = (["system", "task", "simultaneous", "sequential", "after its own stage"], lines)
    sizes = {system: select(records, "size", system=system)[0] for system in config.systems}
    found["The systems"] = (
        ["system", "what is trained", "parameters", "learning rate of Adam"],
        [[system, str(one.where["model"]), f"{one.value:,.0f}", f"{RATES[system]:g}"] for system, one in sizes.items()],
    )
    return found


STYLES = ("-", "--", ":", "-.")
"""Of stages, one after the other: bands overlap, and grey print has no colours."""


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Accuracy along the updates: by position one after the other, and the mean over the tasks of both arms."""
    from matplotlib import colormaps

    num_tasks, stage = len(config.tasks), config.num_updates
    figure, panels = drawing.panels(2, rows=len(config.systems), width=4.4, height=3.2)
    for row, system in enumerate(config.systems):
        apart, means = panels[2 * row : 2 * row + 2]
        for position in range(1, num_tasks + 1):
            colour = colormaps["viridis"](0.85 * (position - 1) / max(1, num_tasks - 1))
            where = {"arm": "sequential", "system": system, "position": position}
            label = f"task of stage {position}"
            drawing.curve(
                apart,
                records,
                "accuracy",
                "updates",
                color=colour,
                ls=STYLES[position % len(STYLES)],
                label=label,
                **where,
            )
        for arm, colour in (("simultaneous", drawing.MEASURED), ("sequential", drawing.PREDICTED)):
            look = {"color": colour, "label": f"{arm}, mean over the tasks"}
            drawing.curve(means, records, "mean_accuracy", "updates", arm=arm, system=system, **look)
        apart.set_title(f"{system}: one after the other")
        means.set_title(f"{system}: one after the other, and dealt in turn")
        apart.set_ylabel("held-out accuracy")
        for panel in (apart, means):
            for end in range(1, num_tasks):
                panel.axvline(end * stage, color=drawing.CONTROL, ls=":", lw=1)
            panel.set_ylim(-0.02, 1.02)
            panel.set_xlim(0, num_tasks * stage)
            panel.set_xlabel("updates, over all tasks")
    panels[1].legend(loc="lower right")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Held-out accuracy along the updates: mean over orders and seeds, shaded from the smallest to the largest. "
        "Dotted lines: where one task ends and the next begins, in the sequential arm. Both arms see the same batches."
    )
    return {"specialisation": (figure, caption)}
