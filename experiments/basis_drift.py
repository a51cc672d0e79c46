"""C3: the useful basis drifts within 100 steps.

Paper: arXiv 2606.10929, abstract. The span of a task's minibatch gradients is taken along a recovery and compared
with where it began. Sampling alone makes two such bases differ, so the overlap of two disjoint halves of the data
at one step is the ceiling: drift is what is lost below it.
Expect, from a prototype: overlap after 10 steps 0.03 to 0.13.
`python -m experiments basis-drift:small`. `smoke` shrinks the training, the recovery and the seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from experiments import drawing
from experiments.prefixes import Measure
from experiments.recoveries import Start, StartSpec, Told, minibatch_gradients, run_recovery, starting_point
from experiments.trajectory_prefix import SMOKE_START
from lacuna import geometry, trees
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record
from lacuna.training import Optimiser, Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "basis_drift", "The drift of the gradient basis"
ABOUT = (
    "Overlap of the span of the forgotten task's minibatch gradients at a step of the recovery with the span at the "
    "start, from other batches, beside the overlap of two disjoint halves of the batches at the same step. The rule: "
    "at the last step the overlap with the start is below half the split-half overlap there."
)


@dataclass(frozen=True)
class Config:
    """Overlap of gradient bases along a recovery.

    Attributes:
      num_seeds: seeds 0, 1, ... of model and data order.
      rank: of each basis.
      num_gradients: minibatch gradients in each half.
      steps: of the recovery, ascending, 0 first.
      optimiser: of the recovery.
      start: the forgotten point.
    """

    num_seeds: int = 5
    rank: int = 8
    num_gradients: int = 16
    steps: tuple[int, ...] = (0, 1, 3, 10, 30, 100)
    optimiser: Optimiser = "sgd"
    start: StartSpec = field(default_factory=StartSpec)


PRESETS = {
    "smoke": Config(1, rank=2, num_gradients=3, steps=(0, 2, 6), start=SMOKE_START),
    "small": Config(),
    "paper": Config(num_seeds=10),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    start = starting_point(config.start, seed, cache, told)
    told(f"recovery by {config.optimiser}")
    path = run_recovery(start, config.optimiser)
    told("gradients along it")
    measures = drift_measures(start, path, config.steps, rank=config.rank, num_gradients=config.num_gradients)
    return [
        Record(NAME, quantity, value, "rad" if quantity == "angle" else "1", {"seed": seed, **at})
        for quantity, value, at in measures
    ]


def drift_measures(
    start: Start, path: Trajectory, steps: Sequence[int], *, rank: int, num_gradients: int
) -> Iterator[Measure]:
    """Overlaps of the task's gradient basis along a recovery: with the start, with the step before, of two halves."""
    first = before = None
    for step in steps:
        travelled = jax.tree.map(lambda u, step=step: jnp.sum(u[:step], axis=0), path.updates)
        point = trees.axpy(1.0, travelled, start.params)
        one, other = (
            geometry.gradient_basis(
                minibatch_gradients(start, point, start.task.name, first=half * num_gradients, num=num_gradients),
                rank=rank,
            )
            for half in (0, 1)
        )
        first, before = first or one, before or one
        where: dict[str, Place] = {"step": step}
        yield "with_start", float(geometry.overlap(first, other)), where
        yield "with_start_same_batches", float(geometry.overlap(first, one)), where
        yield "with_step_before", float(geometry.overlap(before, other)), where
        yield "split_half", float(geometry.overlap(one, other)), where
        yield "angle", float(geometry.principal_angles(first, other)[0]), where
        yield "random_level", float(geometry.random_mass(rank, start.params)), where
        before = one


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row."""
    last = config.steps[-1]
    now, ceiling = (spread(records, quantity, step=last) for quantity in ("with_start", "split_half"))
    holds = now.mean < 0.5 * ceiling.mean
    return [
        Claim(
            "C3",
            f"the gradient basis of the forgotten task drifts within {last} steps",
            "it drifts within 100 steps",
            f"overlap with the start after {last} steps {now}",
            f"two halves of the data at step {last}: {ceiling}; random "
            f"{spread(records, 'random_level', step=last).mean:.1g}",
            verdict(holds, control_holds=ceiling.mean > 0.1, num_seeds=len(seeds_of(records))),
        )
    ]


SHOWN = {
    "with_start": "with the start, other batches",
    "with_start_same_batches": "with the start, same batches",
    "with_step_before": "with the step before",
    "split_half": "two halves at the same step",
}


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Overlaps by step."""
    lines = [
        [str(step), *(str(spread(records, quantity, step=step)) for quantity in (*SHOWN, "angle"))]
        for step in config.steps
    ]
    return {"Overlaps by step": (["step", *SHOWN.values(), "smallest angle to the start, rad"], lines)}


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Overlap against the step."""
    figure, (panel,) = drawing.panels(1, width=5.6)
    looks = {
        "with_start": {"color": drawing.MEASURED},
        "with_start_same_batches": {"color": drawing.MEASURED, "ls": ":"},
        "with_step_before": {"color": drawing.PREDICTED},
        "split_half": {"color": drawing.CONTROL, "ls": "--"},
    }
    for quantity, look in looks.items():
        drawing.curve(panel, records, quantity, "step", label=SHOWN[quantity], **look)
    panel.set_xscale("symlog", linthresh=1)
    panel.set_xlabel("step of the recovery")
    panel.set_ylabel("overlap, 0 to 1")
    panel.set_ylim(-0.02, 1.02)
    drawing.legend_above(figure, panel, columns=2)
    caption = (
        f"Overlap of gradient bases of rank {config.rank} along the recovery: mean over seeds, shaded from the "
        "smallest to the largest. The grey line is what sampling alone leaves; the distance below it is drift."
    )
    return {"basis_drift": (figure, caption)}
