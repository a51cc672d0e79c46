"""C14: structure partly persists between weights and activations.

Paper: arXiv 2606.10929, abstract; its exact measure is not available to us, so we fix two. Along a recovery, does the
direction of a contrast in activations, and of the shift by one step on the contrast's labels, stay where it was at the
start? Between the ceiling, two halves of the prompts, and the null, shuffled labels. And do the first updates, pushed
forward to activations at the start, hold the true displacement of activations at the end, as they do that of weights?
`python -m experiments activation-drift:small`. `smoke` shrinks the training, the recovery, the prompts and the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import drawing
from experiments.persistence import MEAN, Contrast, direction_measures, displacement_measures
from experiments.recoveries import StartSpec, Told, run_recovery, starting_point
from experiments.trajectory_prefix import SMOKE_START
from lacuna.errors import InvalidInput
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record
from lacuna.tasks import Prompts, digit_contrast
from lacuna.training import Optimiser

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "activation_drift", "What of weights persists in activations"
ABOUT = (
    "Two directions of the residual stream at the last token of a prompt, at a step of the recovery and at its start, "
    "from two halves of the prompts: the contrast vector, which is the mean over prompts whose answer begins with one "
    "digit less that of the other; and the label shift, which is how one step on those labels moves held-out prompts "
    "of the one digit apart from the other, to first order. *Null*: the cosine when the labels of the later half are "
    "shuffled, which need not be about zero. *Ceiling*: the cosine that sampling alone leaves if nothing moved, the "
    "geometric mean of the split-half cosines at the two steps. Cosines are averaged over the levels behind each "
    "block; no level is picked. The rule: at the last step, in every seed and for both directions, the cosine is above "
    "its null (null-centred p < 0.01) and below the ceiling. The control: so is the split-half cosine there above its "
    "own null in every seed, and the mean ceiling above 0.3.\n\n"
    "Then the displacement of activations over the whole recovery, in the span of the first m updates pushed forward "
    "at the start, beside that of weights in the span of those updates. A prefix contains its own steps: *remainder* "
    "is the displacement from step m on, *another run* the prefix of a recovery with other data."
)

WORDS = {"contrast": "contrast vector", "shift": "label shift"}
"""Names of the two directions."""


LEAST_CEILING = 0.3
"""Below it the halves of the prompts are too few to tell a direction."""

LARGEST_P = 0.01


@dataclass(frozen=True)
class Config:
    """Directions of activations along a recovery, and its displacement in activations.

    Attributes:
      num_seeds: seeds 0, 1, ... of model, data and labellings.
      digits: that the answers of the prompts begin with.
      num_fit: prompts in each half; half of them of each digit.
      num_held_out: prompts that are moved.
      num_shuffled: labellings of the null; 200 or more resolve p < 0.01.
      steps: of the recovery, ascending, 0 first.
      prefixes: m, ascending.
      optimiser: of the recovery.
      start: the forgotten point.

    Raises:
      InvalidInput: prompts that cannot be halved, or steps that the recovery does not have.
    """

    num_seeds: int = 5
    digits: tuple[int, int] = (0, 1)
    num_fit: int = 128
    num_held_out: int = 64
    num_shuffled: int = 1000
    steps: tuple[int, ...] = (0, 1, 3, 10, 30, 100)
    prefixes: tuple[int, ...] = (1, 2, 4, 8, 16)
    optimiser: Optimiser = "sgd"
    start: StartSpec = field(default_factory=StartSpec)

    def __post_init__(self) -> None:
        if self.num_fit % 2 or self.num_held_out % 2:
            raise InvalidInput("num_fit and num_held_out must be even", got=(self.num_fit, self.num_held_out))
        last = self.start.recovery_steps
        for name, numbers, least in (("steps", self.steps, 0), ("prefixes", self.prefixes, 1)):
            if sorted({*numbers}) != [*numbers] or not numbers or numbers[0] < least or numbers[-1] > last:
                raise InvalidInput(f"{name} must ascend from {least} or more to {last} or fewer", got=numbers)
        if self.steps[0] != 0:
            raise InvalidInput("steps must begin with 0", got=self.steps)


PRESETS = {
    "smoke": Config(
        1, num_fit=8, num_held_out=4, num_shuffled=20, steps=(0, 2, 6), prefixes=(1, 2, 4), start=SMOKE_START
    ),
    "small": Config(),
    "paper": Config(num_seeds=10),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    start = starting_point(config.start, seed, cache, told)
    prompts = contrast_of(config, seed)
    told(f"recoveries by {config.optimiser}")
    path = run_recovery(start, config.optimiser)
    other = run_recovery(start, config.optimiser, offset=start.stretches.held_out_run)
    told("directions along it")
    measures = list(direction_measures(start, path, prompts, config.steps, num_shuffled=config.num_shuffled))
    told("displacements")
    measures += displacement_measures(start, path, other, prompts.held_out, config.prefixes)
    return [Record(NAME, quantity, value, "1", {"seed": seed, **at}) for quantity, value, at in measures]


def contrast_of(config: Config, seed: int) -> Contrast:
    """The prompts of a seed."""
    drawn = partial(digit_contrast, seed, config.start.task, digits=config.digits)
    fit = drawn(num_rows=2 * config.num_fit)
    by_kind = np.argsort(fit.right, kind="stable")
    one, other = (Prompts(*(column[by_kind[half::2]] for column in fit)) for half in (0, 1))
    return Contrast((one, other), drawn(num_rows=config.num_held_out, split="held_out"))


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row: both directions must keep to the rule."""
    last = config.steps[-1]
    holds, controls, ours, beside = [], [], [], []
    for vector, name in WORDS.items():
        where: dict[str, Place] = {"vector": vector, "step": last, "level": MEAN}
        now, null, ceiling = (spread(records, q, **where) for q in ("with_start", "with_start_null", "ceiling"))
        below = all(value < most for value, most in zip(now.values, ceiling.values, strict=True))
        holds.append(_above_null(records, "with_start", where) and below)
        controls.append(_above_null(records, "split_half", where) and ceiling.mean > LEAST_CEILING)
        largest_p = max(spread(records, "with_start_p", **where).values)
        ours.append(f"{name} {now}, p at most {largest_p:.2g}")
        beside.append(f"{name}: null {null}, ceiling {ceiling}, two halves {spread(records, 'split_half', **where)}")
    row = Claim(
        "C14",
        f"directions of activations partly persist over {last} steps of the recovery",
        "partly persists (no figure known)",
        "cosine with the start: " + "; ".join(ours),
        "; ".join(beside),
        verdict(all(holds), all(controls), len(seeds_of(records))),
    )
    return [row]


def _above_null(records: Sequence[Record], quantity: str, where: dict[str, Place]) -> bool:
    """Whether a cosine is above that of shuffled labels in every seed."""
    found, null, p = (spread(records, quantity + suffix, **where).values for suffix in ("", "_null", "_p"))
    return all(value > mean and odds < LARGEST_P for value, mean, odds in zip(found, null, p, strict=True))


LEVELS_SHOWN = ("with_start", "with_start_null", "with_start_p", "ceiling", "split_half", "split_half_null")

SPACES = {"pushed": "activations", "weight": "weights"}
"""Where the displacement is measured, by the prefix of its quantities."""

CAPTURES = {
    "prefix": "first m updates",
    "remainder": "the displacement from step m on",
    "other_run": "first m updates of another run",
}


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Cosines by step, those of the last step by level, then the masses."""
    steps, last = config.steps, config.steps[-1]
    levels = [*sorted({int(r.where["level"]) for r in records if r.where.get("level", MEAN) != MEAN}), MEAN]
    head = ["with the start", "its null", "its p", "ceiling", "two halves", "their null"]

    def cells(**where: Place) -> list[str]:
        return [str(spread(records, quantity, **where)) for quantity in LEVELS_SHOWN]

    by_step = [[WORDS[v], str(s), *cells(vector=v, step=s, level=MEAN)] for v in WORDS for s in steps]
    by_level = [[WORDS[v], str(level), *cells(vector=v, step=last, level=level)] for v in WORDS for level in levels]
    both = [f"contrast_with_shift{suffix}" for suffix in ("", "_null", "_null_deviation", "_p")]
    between = [[str(s), *(str(spread(records, q, step=s, level=MEAN)) for q in both)] for s in steps]
    pushed = [f"pushed_{name}" for name in (*CAPTURES, "random")]
    weights = [f"weight_{name}" for name in (*CAPTURES, "level")]
    masses = [
        [
            str(m),
            *(str(spread(records, q, m=m, level=MEAN)) for q in pushed),
            str(spread(records, "pushed_level", m=m)),
            *(str(spread(records, q, m=m)) for q in weights),
        ]
        for m in config.prefixes
    ]
    return {
        "Cosines by step, mean over levels": (["direction", "step", *head], by_step),
        f"Cosines at step {last}, by level": (["direction", "level", *head], by_level),
        "Contrast vector with label shift": (["step", "cosine", "null", "deviation of the null", "p"], between),
        "Masses of the displacement": (
            [
                "m",
                *(f"activations: {name}" for name in (*CAPTURES.values(), "m random directions", "m / dimension")),
                *(f"weights: {name}" for name in (*CAPTURES.values(), "m / P")),
            ],
            masses,
        ),
        "Distance of the displacement of activations from its first order": (
            ["level", "relative error"],
            [[str(level), str(spread(records, "linear_error", level=level))] for level in levels],
        ),
    }


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Cosines along the path, and masses by m."""
    return {"persistence": _persistence(records, config.steps[-1]), "pushed_captures": _captures(records)}


def _persistence(records: Sequence[Record], last: int) -> tuple["Figure", str]:
    figure, panels = drawing.panels(3)
    for panel, vector in zip(panels, WORDS, strict=False):
        where: dict[str, Place] = {"vector": vector, "level": MEAN}
        for quantity, look in (
            ("with_start", {"color": drawing.MEASURED, "label": "with the start"}),
            ("ceiling", {"color": drawing.CONTROL, "ls": "--", "label": "ceiling: had nothing moved"}),
            ("split_half", {"color": drawing.PREDICTED, "ls": ":", "label": "two halves at the same step"}),
        ):
            drawing.curve(panel, records, quantity, "step", **look, **where)
        _null_band(panel, records, "with_start", where)
        panel.set_title(WORDS[vector])
    drawing.curve(panels[2], records, "contrast_with_shift", "step", level=MEAN, color=drawing.LIMIT)
    _null_band(panels[2], records, "contrast_with_shift", {"level": MEAN})
    panels[2].set_title("the one with the other, same step")
    for panel in panels:
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(-0.1, 1.2 * last)
        panel.set_ylim(-1.05, 1.05)
        panel.set_xlabel("step of the recovery")
    panels[0].set_ylabel("cosine, mean over levels")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Cosines along the recovery: mean over seeds, shaded from the smallest to the largest. Grey: the "
        "null, the middle 95 % of shuffled labels. Between it and the ceiling a direction persists in part."
    )
    return figure, caption


def _null_band(panel: "Axes", records: Sequence[Record], quantity: str, where: dict[str, Place]) -> None:
    """The middle 95 % of the null, its ends averaged over seeds."""
    steps = sorted({int(r.where["step"]) for r in records if "step" in r.where})
    low, high = (
        [spread(records, f"{quantity}_null_{end}", step=step, **where).mean for step in steps]
        for end in ("low", "high")
    )
    panel.fill_between(steps, low, high, color=drawing.CONTROL, alpha=0.25, lw=0, hatch="//", label="null")


def _captures(records: Sequence[Record]) -> tuple["Figure", str]:
    figure, panels = drawing.panels(2)
    looks = {
        "prefix": {"color": drawing.CONTROL, "ls": "--"},
        "remainder": {"color": drawing.LIMIT},
        "other_run": {"color": drawing.MEASURED},
    }
    for panel, (space, words) in zip(panels, SPACES.items(), strict=True):
        where: dict[str, Place] = {"level": MEAN} if space == "pushed" else {}
        for name, look in looks.items():
            drawing.curve(panel, records, f"{space}_{name}", "m", label=CAPTURES[name], **look, **where)
        random = f"{space}_{'random' if space == 'pushed' else 'level'}"
        drawing.curve(
            panel, records, random, "m", label="m random directions", color=drawing.PREDICTED, ls=":", **where
        )
        panel.set_title(words)
        panel.set_xlabel("m, updates in the prefix")
        panel.set_xscale("log", base=2)
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("mass of the displacement")
    drawing.legend_above(figure, panels[0], columns=2)
    caption = (
        "Mass of the recovery's displacement in a span of m directions, in activations (pushed forward at the start; "
        "mean over levels) and in weights: mean over seeds, shaded from the smallest to the largest."
    )
    return figure, caption
