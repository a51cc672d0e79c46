"""Tables and figures of the cosines of shifts and contrasts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import drawing
from experiments.caa_judged import LEAST_P, RADII, READOUT, at_chosen
from lacuna.reports.claims import seeds_of, spread
from lacuna.reports.records import Place, Record, select
from lacuna.steering.cosines import READOUTS, SHUFFLED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READ = {"mean": "mean over prompts", "class_difference": "class difference", "per_prompt": "prompt by prompt"}
WHOSE = {"gradient": "the gradient's", "pipeline": "gradient's and contrast's"}

APART = ["questions", "shuffled over", "read out", "whose labels are shuffled", "cosine", "mean when shuffled"]
APART += ["deviation", "z", "p of the largest |z| over levels", "seeds with p < 0.01"]
CONFOUNDS = ["level", "shift and the head's difference", "contrast and that", "shift and contrast without that"]
CONFOUNDS += ["shift and paired vector", "contrast and paired vector", "deviation over prompts"]


def _levels(records: Sequence[Record]) -> list[int]:
    return sorted({int(record.where["level"]) for record in select(records, "cosine")})


def tables(records: Sequence[Record], config: Any) -> drawing.Tables:
    """Whether labels can be told apart first, then everything by level."""
    parts = dict.fromkeys((r.where["part"], r.where["over"]) for r in select(records, "p_of_maximum"))
    apart = []
    for part, over in parts:
        for readout in READOUTS:
            for shuffled in SHUFFLED:
                where: dict[str, Place] = {"part": part, "over": over, "readout": readout, "shuffled": shuffled}
                p = spread(records, "p_of_maximum", back=0, **where)
                several = ("cosine", "null_mean", "null_deviation", "z")
                cells = [str(at_chosen(records, quantity, **where)) for quantity in several]
                below = sum(value < LEAST_P for value in p.values)
                names = [str(part), str(over), READ[readout], WHOSE[shuffled]]
                apart.append([*names, *cells, str(p), f"{below} of {len(p.values)}"])
    by_level, confounds, errors = [], [], []
    judged: dict[str, Place] = {"part": "other events", "over": "events", "back": 0}
    for level in _levels(records):
        at = {**judged, "level": level}
        for readout in READOUTS:
            own = [str(spread(records, "cosine", readout=readout, shuffled="gradient", **at))]
            for shuffled in SHUFFLED:
                several = ("null_mean", "null_deviation", "z", "p")
                own += [str(spread(records, q, readout=readout, shuffled=shuffled, **at)) for q in several]
            own.append(str(spread(records, "subtracted_cosine", readout=readout, **at)))
            by_level.append([str(level), READ[readout], *own])
        cells = [str(spread(records, "cosine_to_unembedding", of=of, **at)) for of in ("shift", "contrast")]
        cells.append(str(spread(records, "cosine_without_unembedding", **at)))
        cells += [str(spread(records, "cosine_to_paired", of=of, level=level, back=0)) for of in ("shift", "contrast")]
        cells.append(str(spread(records, "deviation_over_prompts", **at)))
        confounds.append([str(level), *cells])
        missed = [str(spread(records, "linear_error", radius=radius, level=level)) for radius in RADII]
        errors.append([str(level), *missed])
    names = dict.fromkeys(str(r.where["module"]) for r in select(records, "module_share"))
    modules = [[name, str(spread(records, "module_share", module=name))] for name in names]
    modules.sort(key=lambda line: -abs(spread(records, "module_share", module=line[0]).mean))
    both = [f"{name} shuffled: {what}" for name in ("gradient", "pipeline") for what in ("mean", "deviation", "z", "p")]
    return {
        "Are the labels told apart from shuffled ones? At the level chosen on other questions": (APART, apart),
        "By level, at the last token of the prompt": (
            ["level", "read out", "cosine", *both, "less the shift expected of shuffled labels"],
            by_level,
        ),
        "What else lies along it: the head, and the vector of answered pairs": (CONFOUNDS, confounds),
        "How far a step is from linear, |finite - exact| / |finite|, by its radius": (
            ["level", *(f"{radius:.0e}" for radius in RADII)],
            errors,
        ),
        "Which modules' change makes the shift at the last level": (["module", "share, along the whole"], modules),
    }


def figures(records: Sequence[Record], config: Any) -> dict[str, tuple["Figure", str]]:
    """Heat maps of cosine and z, and the cosines by level with both nulls."""
    num = len(seeds_of(records))
    return {
        "maps": (
            _maps(records, config),
            f"Class difference on questions of other events, means over {num} seeds: the cosine of the shift with the "
            "contrast vector and its z against labels shuffled over events. Level 0 at the last token is the same "
            "token in all prompts: nothing differs there.",
        ),
        "levels": (
            _by_level(records),
            "Cosine at the last token of the prompt by level (circles, one for each seed) and what shuffled labels "
            "give: mean and middle 95 %, over the labels of the gradient alone and of gradient and contrast.",
        ),
    }


def _maps(records: Sequence[Record], config: Any) -> "Figure":
    levels, back = _levels(records), sorted(config.back, reverse=True)
    figure, panels = drawing.panels(2, width=4.2, height=0.5 * len(levels) + 1.4)
    where: dict[str, Place] = {"part": "other events", "over": "events", "readout": READOUT}
    for panel, quantity, title in zip(panels, ("cosine", "z"), ("cosine", "z, null-centred"), strict=True):
        grid = np.full((len(levels), len(back)), np.nan)
        for i, level in enumerate(levels):
            for j, place in enumerate(back):
                found = spread(records, quantity, level=level, back=place, shuffled="gradient", **where)
                grid[i, j] = found.mean
        limit = 1.0 if quantity == "cosine" else max(4.0, float(np.nanmax(np.abs(grid))))
        image = panel.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * limit
                text = f"{value:.2f}" if quantity == "cosine" else f"{value:.1f}"
                panel.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        panel.set_xticks(range(len(back)), [f"-{place + 1}" for place in back])
        panel.set_yticks(range(len(levels)), [str(level) for level in levels])
        panel.set_xlabel("token of the prompt, from its end")
        panel.set_title(title)
        panel.grid(False)
        figure.colorbar(image, ax=panel)
    panels[0].set_ylabel("level of the stream")
    return figure


def _by_level(records: Sequence[Record]) -> "Figure":
    levels = _levels(records)
    figure, panels = drawing.panels(3)
    for panel, readout in zip(panels, READOUTS, strict=True):
        where: dict[str, Place] = {"part": "other events", "over": "events", "readout": readout, "back": 0}
        for shuffled, colour in (("gradient", drawing.CONTROL), ("pipeline", drawing.PREDICTED)):
            mean, low, high = (
                np.asarray([spread(records, q, level=level, shuffled=shuffled, **where).mean for level in levels])
                for q in ("null_mean", "null_low", "null_high")
            )
            panel.plot(levels, mean, color=colour, lw=1.2, label=f"shuffled: {WHOSE[shuffled]} labels")
            panel.fill_between(levels, low, high, color=colour, alpha=0.18, lw=0)
        found = select(records, "cosine", shuffled="gradient", **where)
        panel.plot(
            [r.where["level"] for r in found],
            [r.value for r in found],
            "o",
            color=drawing.MEASURED,
            ms=4,
            label="true labels",
        )
        panel.axhline(0, color="0.6", lw=0.8)
        panel.set_xticks(levels)
        panel.set_ylim(-1.05, 1.05)
        panel.set_xlabel("level of the stream")
        panel.set_title(READ[readout])
    panels[0].set_ylabel("cosine of shift and contrast")
    drawing.legend_above(figure, panels[0], columns=3)
    return figure
