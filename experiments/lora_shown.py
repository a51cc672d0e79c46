"""Tables and figures of the recoveries of adapters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import drawing
from experiments.lora_judged import answers, points, regained, runs
from experiments.prefixes import best_static, shown_ranks
from lacuna.reports.claims import spread
from lacuna.reports.records import Place, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"sgd": drawing.MEASURED, "momentum": drawing.PREDICTED, "adam": drawing.LIMIT}

CAPTURES = ["m", "held-out", "remainder", "functional", "functional, held-out", "loss drop of the m steps alone"]
CAPTURES += ["plain", "plain, norm"]
OVERLAPS = ["step", "with the start, other batches", "with the start, same batches", "with the step before"]
OVERLAPS += ["two halves at the same step", "random"]
LOSSES = ["learning rate", "loss at the start", "at the end", "share regained", "cosine of two runs"]
LOSSES += ["random level", "random level by factor and layer"]
SPECTRA = ["point", "gradients", "participation ratio", "share of all energy", "p"]
SPECTRA += ["one task alone: participation ratio", "top-1 energy"]


def _named(records: Sequence[Record], quantity: str, at: str, **where: Place) -> list[Any]:
    """The values of a place at which a quantity was recorded, in their order."""
    chosen = (r for r in records if r.quantity == quantity and all(r.where[k] == v for k, v in where.items()))
    return list(dict.fromkeys(r.where[at] for r in chosen))


def tables(records: Sequence[Record], config: Any) -> drawing.Tables:
    """The two answers first, then everything else."""
    head = ["model", "pair", "recovery by"]
    captures, statics, parts, ends, losses = [], [], [], [], []
    for run in runs(records):
        named = [str(value) for value in run.values()]
        for m in shown_ranks(config.rank, config.max_rank):
            several = ("held_out", "remainder", "functional", "functional_held_out", "own_drop", "plain")
            norm = spread(records, "plain", m=m, **run).mean ** 0.5
            captures.append([*named, str(m), *(str(spread(records, q, m=m, **run)) for q in several), f"{norm:.3g}"])
        for name in _named(records, "static", "basis", **run):
            mass, rank = (spread(records, q, basis=name, **run) for q in ("static", "static_rank"))
            later = spread(records, "static_of_remainder", basis=name, **run)
            statics.append([*named, name, f"{rank.mean:.4g}", str(mass), str(later)])
        mass, rank = (spread(records, name, **run) for name in ("block_mass", "block_rank"))
        statics.append(
            [*named, "random, of this rank in every factor of every layer", f"{rank.mean:.4g}", str(mass), ""]
        )
        for part in _named(records, "part_share", "part", **run):
            several = ("part_share", "part_held_out", "part_remainder", "part_plain", "part_level")
            parts.append([*named, str(part), *(str(spread(records, q, part=part, **run)) for q in several)])
        ends += [[*named, *line] for line in _extrapolated(records, config, run)]
        several = ("rate", "start_loss", "end_loss")
        cells = [*(str(spread(records, quantity, **run)) for quantity in several), str(regained(records, run))]
        levels = ("cosine_of_runs", "random_level", "block_level")
        losses.append([*named, *cells, *(str(spread(records, quantity, **run)) for quantity in levels)])
    spectra, drifts, states = [], [], []
    for point in points(records):
        named = [str(value) for value in point.values()]
        at = ("fresh", "learnt", "forgotten")
        nats = [str(spread(records, "nats", point=one, **point)) for one in at]
        states.append([*named, *nats, f"{spread(records, 'num_factors', **point).mean:,.0f}"])
        for where in ("fresh", "forgotten"):
            for scaling in ("raw", "normalised"):
                several = ("participation_ratio", "share_of_energy", "p_value")
                one = {**point, "point": where}
                cells = [str(spread(records, q, scaling=scaling, **one)) for q in several]
                alone = [str(spread(records, f"one_task_{q}", **one)) for q in ("participation_ratio", "top_energy")]
                spectra.append([*named, where, scaling, *cells, *alone])
        for step in config.drift_steps:
            several = ("with_start", "with_start_same_batches", "with_step_before", "split_half", "random_level")
            drifts.append(
                [*named, str(step), *(str(spread(records, f"drift_{q}", step=step, **point)) for q in several)]
            )
    return {
        "Two answers": (
            [
                *head,
                f"do the first {config.rank} updates hold most of it?",
                "do they say more than their own steps?",
            ],
            answers(records, config),
        ),
        "Captures by the number of updates": (
            [*head, *CAPTURES],
            captures,
        ),
        "Static bases of the same rank": (
            [*head, "basis", "rank", "mass of the displacement", f"of what comes after {config.rank} updates"],
            statics,
        ),
        f"By site and by layer, m = {config.rank}": (
            [*head, "part", "share of the displacement", "held-out", "remainder", "plain", "random level"],
            parts,
        ),
        "The end predicted from the first m updates: share of the loss drop": (
            [*head, "m", "the m steps alone", "directions", "to the last step", "to the chosen step", "chosen step"],
            ends,
        ),
        f"Drift of the gradient basis along a recovery by {config.optimisers[0]}, rank {config.drift_rank}": (
            [*head[:2], *OVERLAPS],
            drifts,
        ),
        "Scatter between the adapter gradients of eight tasks (of domains: four stretches of each text)": (
            [*head[:2], *SPECTRA],
            spectra,
        ),
        "Losses of task A, nats a token": (
            [*head[:2], "fresh adapter", "learnt", "forgotten", "factors in all"],
            states,
        ),
        "The recoveries": (
            [*head, *LOSSES],
            losses,
        ),
    }


def _extrapolated(records: Sequence[Record], config: Any, run: dict[str, Place]) -> list[list[str]]:
    """A line for each prefix and number of directions."""
    lines = []
    for m in config.extrapolated:
        own = str(spread(records, "extrapolation_own_drop", m=m, **run))
        for rank in config.extrapolated_ranks:
            at: dict[str, Place] = {"m": m, "rank": rank, **run}
            shares = [str(spread(records, "extrapolated", horizon=horizon, **at)) for horizon in ("end", "chosen")]
            lines.append([str(m), own, str(rank), *shares, str(spread(records, "horizon", **at))])
    return lines


def figures(records: Sequence[Record], config: Any) -> dict[str, tuple["Figure", str]]:
    """Captures, static bases, sites and layers, extrapolation, drift."""
    return {
        "prefix_captures": _captures(records, config),
        "static_bases": _static_bases(records, config),
        "sites_and_layers": _parts(records, config),
        "extrapolation": _ends(records, config),
        "drift": _drift(records, config),
    }


def _title(where: dict[str, Place], records: Sequence[Record]) -> str:
    """What tells a panel from the others."""
    several = len({point["model"] for point in points(records)}) > 1
    names = [str(where[name]) for name in ("model", "pair", "optimiser") if name in where]
    return ", ".join(names if several else names[1:])


def _captures(records: Sequence[Record], config: Any) -> tuple["Figure", str]:
    every = list(runs(records))
    figure, panels = drawing.panels(len(config.optimisers), rows=len(points(records)), height=3.0)
    for panel, run in zip(panels, every, strict=True):
        for quantity, look in (
            ("plain", {"color": drawing.CONTROL, "ls": "--"}),
            ("held_out", {"color": drawing.MEASURED}),
            ("remainder", {"color": drawing.LIMIT}),
        ):
            drawing.curve(panel, records, quantity, "m", label=quantity.replace("_", "-"), **look, **run)
        _, static = best_static(records, **run)
        panel.axhline(static, color=drawing.PREDICTED, ls=":", label=f"best static basis of rank {config.rank}")
        panel.set_title(_title(run, records))
        panel.set_xlabel("m, updates in the prefix")
        panel.set_ylim(-0.02, 1.02)
    for panel in panels[:: len(config.optimisers)]:
        panel.set_ylabel("mass of the displacement")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Mass captured by the span of the first m updates of an adapter's recovery: mean over seeds, shaded from the "
        "smallest to the largest. Plain capture counts the prefix's own steps; held-out and remainder do not."
    )
    return figure, caption


def _static_bases(records: Sequence[Record], config: Any) -> tuple["Figure", str]:
    every = points(records)
    figure, panels = drawing.panels(len(every), left=True)
    for panel, point in zip(panels, every, strict=True):
        names = _named(records, "static", "basis", **point)
        rows = [*names, f"the first {config.rank} updates of another run"]
        places = np.arange(len(rows))[::-1]
        for shift, optimiser in zip(np.linspace(0.2, -0.2, len(config.optimisers)), config.optimisers, strict=True):
            run: dict[str, Place] = {**point, "optimiser": optimiser}
            found = [spread(records, "static", basis=name, **run) for name in names]
            found.append(spread(records, "held_out", m=config.rank, **run))
            look = {"color": COLOURS[optimiser], "ms": 4, "alpha": 0.7}
            for place, masses in zip(places, found, strict=True):
                label = optimiser if place == places[0] else None
                values = np.maximum(masses.values, 1e-6)
                panel.plot(
                    values, [place + shift] * len(values), drawing.MARKERS[COLOURS[optimiser]], label=label, **look
                )
        panel.set_xscale("log")
        panel.set_xlim(1e-5, 1.3)
        panel.set_title(_title(point, records))
        panel.set_xlabel("mass of the displacement")
        panel.set_yticks(places, rows)
    drawing.legend_above(figure, panels[0])
    caption = (
        f"Mass of a recovery's displacement in bases of rank {config.rank} built before it (task vectors and the "
        "forgetting itself: as many as there are), a dot for each seed, beside the span of another run's first updates."
    )
    return figure, caption


def _parts(records: Sequence[Record], config: Any) -> tuple["Figure", str]:
    every = points(records)
    figure, panels = drawing.panels(len(every), left=True, height=4.2)
    optimiser = config.optimisers[0]
    looks = {
        "part_plain": {"color": drawing.CONTROL, "marker": "|", "ms": 12},
        "part_held_out": {"color": drawing.MEASURED, "marker": "o", "ms": 5},
        "part_remainder": {"color": drawing.LIMIT, "marker": "o", "ms": 5, "mfc": "none"},
        "part_share": {"color": drawing.PREDICTED, "marker": "x", "ms": 5},
    }
    for panel, point in zip(panels, every, strict=True):
        names = _named(records, "part_share", "part", **point)
        places = np.arange(len(names))[::-1]
        for quantity, look in looks.items():
            found = [spread(records, quantity, part=name, optimiser=optimiser, **point) for name in names]
            label = quantity.removeprefix("part_").replace("_", "-").replace("share", "share of the displacement")
            panel.plot([one.mean for one in found], places, ls="", label=label, **look)
            ends = [(min(one.values), max(one.values)) for one in found]
            panel.hlines(places, *zip(*ends, strict=True), color=look["color"], lw=1, alpha=0.5)
        panel.set_xlim(-0.02, 1.02)
        panel.set_title(_title(point, records))
        panel.set_xlabel("mass")
        panel.set_yticks(places, [str(name) for name in names])
    drawing.legend_above(figure, panels[0])
    caption = (
        f"Captures of each site's and each layer's own displacement by its own first {config.rank} updates "
        f"({optimiser}), and the share it has of the whole: means over seeds, lines from the smallest to the largest."
    )
    return figure, caption


def _ends(records: Sequence[Record], config: Any) -> tuple["Figure", str]:
    every = list(runs(records))
    figure, panels = drawing.panels(len(config.optimisers), rows=len(points(records)), height=3.0)
    colours = (drawing.MEASURED, drawing.PREDICTED, drawing.LIMIT)
    for panel, run in zip(panels, every, strict=True):
        drawing.curve(
            panel,
            records,
            "extrapolation_own_drop",
            "m",
            label="the m steps alone",
            color=drawing.CONTROL,
            ls="--",
            **run,
        )
        for rank, colour in zip(config.extrapolated_ranks, colours, strict=False):
            label = f"{rank} direction{'s' if rank > 1 else ''}, chosen step"
            at: dict[str, Place] = {"rank": rank, "horizon": "chosen", **run}
            drawing.curve(panel, records, "extrapolated", "m", label=label, color=colour, **at)
        panel.axhline(1, color=drawing.CONTROL, lw=0.8)
        panel.set_title(_title(run, records))
        panel.set_xlabel("m, updates that were made")
        panel.set_xticks(config.extrapolated, [str(m) for m in config.extrapolated])
    for panel in panels[:: len(config.optimisers)]:
        panel.set_ylabel("share of the loss drop")
    drawing.legend_above(figure, panels[0])
    caption = (
        "Share of the recovery's drop in held-out loss at the point that straight lines through the first m updates "
        "predict, as far along them as a batch of training rows says, beside what the m steps themselves reach; 1 is "
        "the real end. Mean over seeds, shaded from the smallest to the largest."
    )
    return figure, caption


def _drift(records: Sequence[Record], config: Any) -> tuple["Figure", str]:
    every = points(records)
    figure, panels = drawing.panels(len(every))
    looks = {
        "with_start": ("with the start, other batches", {"color": drawing.MEASURED}),
        "with_step_before": ("with the step before", {"color": drawing.PREDICTED}),
        "split_half": ("two halves at the same step", {"color": drawing.CONTROL, "ls": "--"}),
    }
    for panel, point in zip(panels, every, strict=True):
        for quantity, (label, look) in looks.items():
            drawing.curve(panel, records, f"drift_{quantity}", "step", label=label, **look, **point)
        panel.set_xscale("symlog", linthresh=5)
        panel.set_title(_title(point, records))
        panel.set_xlabel(f"step of the recovery by {config.optimisers[0]}")
        panel.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("overlap, 0 to 1")
    drawing.legend_above(figure, panels[0], columns=3)
    caption = (
        f"Overlap of bases of {config.drift_rank} leading adapter gradients along the recovery: mean over seeds, "
        "shaded from the smallest to the largest. The grey line is what sampling alone leaves; the distance below it "
        "is drift."
    )
    return figure, caption
