"""C4: the first recovery updates span most of the displacement (77 % for a LoRA recovery).

Paper: arXiv 2606.10929, abstract. Whether its 77 % is mass or norm is not known to us: mass leads, norm stands
beside it. A prefix contains its own steps, so its plain capture is inflated by bookkeeping; what decides is
what it captures of the path after it (remainder), of another run from the same start with other data (held-out),
and how much of the loss drop survives in its span (functional).
Expect, from a prototype: SGD at m = 16 plain 0.67, remainder 0.08, held-out 0.40; static bases 0.02 to 0.29.
`python -m experiments trajectory-prefix:small`. `smoke` shrinks the training, the recovery and the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import drawing
from experiments.prefixes import best_static, prefix_measures, recovered, shown_ranks
from experiments.recoveries import StartSpec, Told, starting_point, static_bases
from lacuna.geometry import capture
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Record
from lacuna.training import Optimiser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "trajectory_prefix", "The first recovery updates and what they span"
ABOUT = (
    "Masses (squared norms) of a recovery's displacement in the span of its first m updates. *Plain*: of the whole "
    "displacement, which contains those updates. *Remainder*: of what comes after them. *Held-out*: of the "
    "displacement of another recovery from the same point with other data. *Functional*: the share of the drop in "
    "held-out loss that survives when the displacement is replaced by its projection, beside the share that the m "
    "steps make by themselves. The rule: plain at least 0.6, and held-out at least twice the best static basis of "
    "equal rank."
)


@dataclass(frozen=True)
class Config:
    """Prefix captures of recoveries.

    Attributes:
      num_seeds: seeds 0, 1, ... of model and data order.
      rank: m at which the rule is applied; static bases have this rank.
      max_rank: largest m.
      optimisers: of the recoveries.
      num_gradients: minibatch gradients behind the static gradient bases.
      num_task_vectors: other tasks behind the task-vector basis.
      start: the forgotten point.
    """

    num_seeds: int = 5
    rank: int = 16
    max_rank: int = 32
    optimisers: tuple[Optimiser, ...] = ("sgd", "momentum", "adam")
    num_gradients: int = 32
    num_task_vectors: int = 4
    start: StartSpec = field(default_factory=StartSpec)


SMOKE_START = StartSpec(
    training_steps=3, undertrained_steps=2, training_rows=18, forget_steps=2, recovery_steps=6, batch_size=4
)
PRESETS = {
    "smoke": Config(1, 2, 4, ("sgd", "adam"), num_gradients=3, num_task_vectors=1, start=SMOKE_START),
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
    found: list[Record] = []
    for optimiser in config.optimisers:
        told(f"recovery by {optimiser}")
        run = recovered(start, optimiser, max_rank=config.max_rank)
        measures = list(prefix_measures(start, run, rank=config.rank, max_rank=config.max_rank))
        measures += [
            ("static", float(capture(basis, run.delta).mass), {"basis": name}) for name, basis in bases.items()
        ]
        found += [
            Record(NAME, q, value, "1", {"seed": seed, "optimiser": optimiser, **at}) for q, value, at in measures
        ]
    return found


def _optimisers(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(r.where["optimiser"]) for r in records if "optimiser" in r.where))


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each optimiser."""
    rows, m = [], config.rank
    for optimiser in _optimisers(records):
        plain, held_out = (spread(records, q, optimiser=optimiser, m=m) for q in ("plain", "held_out"))
        remainder = spread(records, "remainder", optimiser=optimiser, m=m)
        functional, own = (spread(records, q, optimiser=optimiser, m=m) for q in ("functional", "own_drop"))
        best, static = best_static(records, optimiser=optimiser)
        rows.append(
            Claim(
                "C4",
                f"the first {m} of {config.start.recovery_steps} {optimiser} updates span most of the displacement",
                "0.77 (LoRA; power unknown)",
                f"plain {plain}",
                f"held-out {held_out}; remainder {remainder}; functional {functional}, of which the {m} steps alone "
                f"make {own}; "
                f"best static ({best}) {static:.3g}",
                verdict(plain.mean >= 0.6, held_out.mean >= 2 * static, len(seeds_of(records))),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Masses and functional shares by rank, then the losses."""
    head = ["optimiser", "m", "held-out", "remainder", "functional", "functional, held-out"]
    head += ["loss drop of the m steps themselves", "plain", "plain, norm"]
    lines, losses = [], []
    for optimiser in _optimisers(records):
        for m in shown_ranks(config.rank, config.max_rank):
            cells = [
                str(spread(records, quantity, optimiser=optimiser, m=m))
                for quantity in ("held_out", "remainder", "functional", "functional_held_out", "own_drop", "plain")
            ]
            norm = spread(records, "plain", optimiser=optimiser, m=m).mean ** 0.5
            lines.append([optimiser, str(m), *cells, f"{norm:.3g}"])
        several = ("start_loss", "end_loss", "cosine_of_runs", "random_level")
        losses.append([optimiser, *(str(spread(records, quantity, optimiser=optimiser)) for quantity in several)])
    return {
        "Captures by rank": (head, lines),
        "The recoveries": (["optimiser", "loss at the start", "at the end", "cosine of two runs", "k / P"], losses),
    }


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Capture against m, a panel for each optimiser."""
    optimisers = _optimisers(records)
    figure, panels = drawing.panels(len(optimisers))
    for panel, optimiser in zip(panels, optimisers, strict=True):
        for quantity, look in (
            ("plain", {"color": drawing.CONTROL, "ls": "--"}),
            ("held_out", {"color": drawing.MEASURED}),
            ("remainder", {"color": drawing.LIMIT}),
        ):
            drawing.curve(panel, records, quantity, "m", label=quantity.replace("_", "-"), optimiser=optimiser, **look)
        _, static = best_static(records, optimiser=optimiser)
        panel.axhline(static, color=drawing.PREDICTED, ls=":", label=f"best static basis of rank {config.rank}")
        panel.set_title(optimiser)
        panel.set_xlabel("m, updates in the prefix")
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("mass of the displacement")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Mass captured by the span of the first m updates: mean over seeds, shaded from the smallest to the largest. "
        "Plain capture counts the prefix's own steps; held-out and remainder do not."
    )
    return {"prefix_captures": (figure, caption)}
