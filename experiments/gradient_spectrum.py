"""C1: task gradients are locally low-rank.

Paper: arXiv 2606.10929, abstract and Figure 5 (strong on the synthetic model and on LoRA; on Qwen-7B not to be told
from sampling noise). Minibatch gradients of several tasks are compared through the Gram matrix of two disjoint
halves of the batches: in the product of task means from different halves the noise of the batches cancels on
average, and what is left is the scatter between tasks. Its eigenvalues say how many directions tell the tasks apart.
Null: the labels of the tasks permuted over the batches.
Expect, from a prototype: top-1 energy of one task's minibatch gradients 0.85, participation ratio 1.4.
`python -m experiments gradient-spectrum:small`. `smoke` shrinks the training, the batches and the seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from experiments import drawing
from experiments.prefixes import Measure
from experiments.recoveries import Start, StartSpec, Told, minibatch_gradients, rows_of, starting_point
from experiments.task_scatter import between_tasks, halves, normalised, participation_ratio, permuted
from experiments.trajectory_prefix import SMOKE_START
from lacuna import geometry
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record
from lacuna.tasks import digits
from lacuna.types import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "gradient_spectrum", "The spectrum of task gradients"
ABOUT = (
    "Spectrum of the scatter between tasks, from two disjoint halves of the batches, at the multitask point and at the "
    "point that forgot one task; with gradients as they are and with each scaled to length one. The rule: the scatter "
    "is larger than under permuted labels (p below 0.01) and its participation ratio is below half the number of "
    "tasks. One task's own minibatch spectrum is the reference."
)


@dataclass(frozen=True)
class Config:
    """Between-task spectra.

    Attributes:
      num_seeds: seeds 0, 1, ... of model and data order.
      num_batches: minibatches of each task, in two halves.
      num_permutations: of the labels.
      start: the forgotten point.
    """

    num_seeds: int = 5
    num_batches: int = 8
    num_permutations: int = 400
    start: StartSpec = field(default_factory=StartSpec)


PRESETS = {
    "smoke": Config(1, num_batches=2, num_permutations=20, start=SMOKE_START),
    "small": Config(),
    "paper": Config(num_seeds=10, num_permutations=2000),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    start = starting_point(config.start, seed, cache, told)
    rng = np.random.default_rng(seed)
    found: list[Record] = []
    for point, params in (("multitask", start.trained), ("forgotten", start.params)):
        told(f"gradients of {len(start.streams)} tasks at the {point} point")
        measures = spectrum_measures(
            start, params, rng, num_batches=config.num_batches, num_permutations=config.num_permutations
        )
        found += [Record(NAME, q, value, "1", {"seed": seed, "point": point, **at}) for q, value, at in measures]
    return found


def spectrum_measures(
    start: Start, params: Params, rng: np.random.Generator, *, num_batches: int, num_permutations: int
) -> Iterator[Measure]:
    """The scatter between all tasks of a starting point at some parameters, and the spectrum of one task alone."""
    names = list(start.streams)
    labels, half = halves(len(names), num_batches)
    gradients = rows_of(*(minibatch_gradients(start, params, name, first=0, num=num_batches) for name in names))
    whole = np.asarray(geometry.gram(gradients), np.float64)
    for scaling, gram in (("raw", whole), ("normalised", normalised(whole))):
        values = between_tasks(gram, labels, half)
        null = [between_tasks(gram, permuted(labels, half, rng), half).sum() for _ in range(num_permutations)]
        positive = np.maximum(values, 0)
        at: dict[str, Place] = {"scaling": scaling}
        yield "p_value", float((1 + np.sum(np.asarray(null) >= values.sum())) / (1 + len(null))), at
        yield "participation_ratio", participation_ratio(values), at
        yield "share_of_energy", float(values.sum() * num_batches / np.trace(gram)), at
        for i, value in enumerate(positive / positive.sum(), start=1):
            yield "energy", float(value), {**at, "i": i}
    own = labels == (names.index(start.task.name) if start.task.name in names else 0)
    squares = np.maximum(np.linalg.eigvalsh(whole[np.ix_(own, own)])[::-1], 0)
    spectrum = geometry.spectrum_of(jnp.asarray(np.sqrt(squares), jnp.float32))
    yield "one_task_participation_ratio", float(spectrum.participation_ratio), {}
    yield "one_task_top_energy", float(spectrum.top_energy[0]), {}


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each point and scaling."""
    rows, num_tasks = [], len(digits.DIGIT_TASKS)
    for point in ("multitask", "forgotten"):
        for scaling in ("raw", "normalised"):
            ratio, p = (
                spread(records, quantity, point=point, scaling=scaling)
                for quantity in ("participation_ratio", "p_value")
            )
            rows.append(
                Claim(
                    "C1",
                    f"the gradients of {num_tasks} tasks differ in few directions at the {point} point ({scaling})",
                    "low rank (strong on the synthetic model)",
                    f"participation ratio {ratio} of at most {num_tasks - 1}",
                    f"permuted labels: p {p}, largest {max(p.values):.2g}",
                    verdict(ratio.mean < num_tasks / 2, max(p.values) < 0.01, len(seeds_of(records))),
                )
            )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """The scatter between tasks, and one task's own spectrum."""
    lines, own = [], []
    for point in ("multitask", "forgotten"):
        for scaling in ("raw", "normalised"):
            several = ("participation_ratio", "share_of_energy", "p_value")
            lines.append(
                [point, scaling, *(str(spread(records, name, point=point, scaling=scaling)) for name in several)]
            )
        one = ("one_task_participation_ratio", "one_task_top_energy")
        own.append([point, *(str(spread(records, name, point=point)) for name in one)])
    return {
        "Scatter between tasks": (
            ["point", "gradients", "participation ratio", "share of all energy", "p"],
            lines,
        ),
        f"Minibatch gradients of `{config.start.task}` alone": (["point", "participation ratio", "top-1 energy"], own),
    }


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Energy by direction."""
    figure, panels = drawing.panels(2, width=3.8)
    for panel, point in zip(panels, ("multitask", "forgotten"), strict=True):
        for scaling, colour in (("raw", drawing.MEASURED), ("normalised", drawing.PREDICTED)):
            look = {"color": colour, "label": f"{scaling} gradients"}
            drawing.curve(panel, records, "energy", "i", point=point, scaling=scaling, **look)
        most = len(digits.DIGIT_TASKS) - 1
        panel.axhline(1 / most, color=drawing.CONTROL, ls="--", lw=1, label="all directions alike")
        panel.set_title(f"{point} point")
        panel.set_xlabel("direction")
    panels[0].set_ylabel("share of the scatter between tasks")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Share of the between-task scatter by direction, strongest first: mean over seeds, shaded from the smallest to "
        "the largest."
    )
    return {"gradient_spectrum": (figure, caption)}
