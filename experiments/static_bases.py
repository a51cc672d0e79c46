"""C2: static bases miss the recovery direction.

Paper: arXiv 2606.10929, abstract. A basis that was built at the forgotten point, from gradients, curvature, task
vectors or at random, holds little of the displacement that the recovery then makes; the first updates hold more.
Each stands beside its own random level: k / P for a subspace of the whole tree, a weighted one for blocks.
Expect, from a prototype: 0.02 to 0.29 for static bases of rank 16, 3e-5 for a random one, 0.5 to 0.7 for the prefix.
`python -m experiments static-bases:small`. `smoke` shrinks the training, the recovery and the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import drawing
from experiments.recoveries import FORGETTING, StartSpec, Told, displacement, run_recovery, starting_point, static_bases
from experiments.trajectory_prefix import SMOKE_START
from lacuna import geometry, keys
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Record
from lacuna.training import Optimiser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "static_bases", "Static bases and the recovery direction"
ABOUT = (
    "Mass of the whole displacement of a recovery in bases of one rank that were built at the forgotten point, before "
    "any step was taken, beside the span of the first updates. *The forgetting itself* is the displacement that made "
    "the model forget: nobody has it who has only the forgotten model. The rule: every static basis below 0.35 where "
    "the prefix of equal rank is above 0.5."
)
PREFIX, BLOCKS = "the first updates", "random, per layer"


@dataclass(frozen=True)
class Config:
    """Captures by static bases.

    Attributes:
      num_seeds: seeds 0, 1, ... of model and data order.
      rank: of every basis; of each block's for the per-layer one.
      optimisers: of the recoveries.
      num_gradients: minibatch gradients behind the gradient bases.
      num_task_vectors: other tasks behind the task-vector basis.
      start: the forgotten point.
    """

    num_seeds: int = 5
    rank: int = 16
    optimisers: tuple[Optimiser, ...] = ("sgd", "momentum", "adam")
    num_gradients: int = 32
    num_task_vectors: int = 8
    start: StartSpec = field(default_factory=StartSpec)


PRESETS = {
    "smoke": Config(1, 2, ("sgd", "adam"), num_gradients=3, num_task_vectors=1, start=SMOKE_START),
    "small": Config(),
    "paper": Config(num_seeds=10),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    start = starting_point(config.start, seed, cache, told)
    told("static bases")
    bases = static_bases(
        start, rank=config.rank, num_gradients=config.num_gradients, num_task_vectors=config.num_task_vectors
    )
    key = keys.stream(seed, "random blocks")
    blocks = geometry.random_block_basis(key, start.params, rank=config.rank, stacked=start.model.stacked)
    found: list[Record] = []
    for optimiser in config.optimisers:
        told(f"recovery by {optimiser}")
        path = run_recovery(start, optimiser, recorded=config.rank)
        delta = displacement(start, path)
        prefix = geometry.trajectory_prefix(path.updates, rank=config.rank)

        def record(basis: str, mass: object, level: object, rank: object, optimiser: str = optimiser) -> None:
            where = {"seed": seed, "optimiser": optimiser, "basis": basis}
            for quantity, value in (("mass", mass), ("random_level", level), ("rank", rank)):
                found.append(Record(NAME, quantity, float(np.asarray(value)), "1", where))

        for name, basis in {**bases, PREFIX: prefix}.items():
            mass, level = geometry.capture(basis, delta).mass, geometry.random_mass(basis.rank, delta)
            record(name, mass, level, basis.rank)
        of_blocks = geometry.block_capture(blocks, delta)
        record(BLOCKS, of_blocks.mass, of_blocks.random_mass, of_blocks.rank)
    return found


def _names(records: Sequence[Record], of: str) -> list[str]:
    return list(dict.fromkeys(str(record.where[of]) for record in records))


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each optimiser."""
    rows = []
    for optimiser in _names(records, "optimiser"):
        masses = {name: spread(records, "mass", optimiser=optimiser, basis=name) for name in _names(records, "basis")}
        prefix = masses.pop(PREFIX)
        masses.pop(FORGETTING)
        best = max(masses, key=lambda name: masses[name].mean)
        level = spread(records, "random_level", optimiser=optimiser, basis="random")
        rows.append(
            Claim(
                "C2",
                f"static bases of rank {config.rank} miss the direction of a recovery by {optimiser}",
                "they miss it (no figure known to us)",
                f"best static basis ({best}) {masses[best]}",
                f"first {config.rank} updates {prefix}; random {masses['random']}, level {level.mean:.2g}",
                verdict(masses[best].mean < 0.35, prefix.mean > 0.5, len(seeds_of(records))),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Mass, rank and random level of every basis."""
    lines = []
    for optimiser in _names(records, "optimiser"):
        for name in _names(records, "basis"):
            mass, level, rank = (
                spread(records, quantity, optimiser=optimiser, basis=name)
                for quantity in ("mass", "random_level", "rank")
            )
            density = mass.mean / level.mean if level.mean else float("nan")
            lines.append([optimiser, name, f"{rank.mean:.4g}", str(mass), f"{level.mean:.2g}", f"{density:.3g}"])
    head = ["recovery by", "basis", "rank in all", "mass", "random level", "mass over level"]
    return {"Every basis": (head, lines)}


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Mass by basis, with the random level as a tick."""
    names = sorted(_names(records, "basis"), key=lambda name: name == PREFIX)  # the first updates last
    optimisers = _names(records, "optimiser")
    figure, panels = drawing.panels(len(optimisers), sharey=True, left=True)
    places = np.arange(len(names))[::-1]
    for panel, optimiser in zip(panels, optimisers, strict=True):
        for place, name in zip(places, names, strict=True):
            masses = spread(records, "mass", optimiser=optimiser, basis=name)
            level = spread(records, "random_level", optimiser=optimiser, basis=name).mean
            colour = drawing.MEASURED if name == PREFIX else drawing.CONTROL if "random" in name else drawing.PREDICTED
            panel.plot(
                np.maximum(masses.values, 1e-7),
                [place] * len(masses.values),
                drawing.MARKERS[colour],
                color=colour,
                ms=4,
                alpha=0.7,
            )
            panel.plot([level], [place], "|", color=drawing.LIMIT, ms=12)
        panel.axvline(0.35, color=drawing.CONTROL, ls="--", lw=0.8)
        panel.set_xscale("log")
        panel.set_xlim(1e-6, 1.3)
        panel.set_title(f"recovery by {optimiser}")
        panel.set_xlabel("mass of the displacement")
        panel.set_yticks(places, names)
    caption = (
        f"Mass of the displacement in bases of rank {config.rank} built before the recovery, a dot for each seed; red "
        "ticks: the random level of the same ranks; dashed: the rule's 0.35."
    )
    return {"static_bases": (figure, caption)}
