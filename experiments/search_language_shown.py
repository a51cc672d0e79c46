"""Tables and the figure of the searches around language models."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import drawing
from experiments.search_language_judged import Shape, places_of, worth
from lacuna import theory
from lacuna.reports.claims import spread
from lacuna.reports.records import Place, Record, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "one σ"

SEARCHES = {"nats": "nats", "accuracy": "right answers", "shuffled labels": "shuffled labels"}
"""What was searched over, in words."""


def tables(records: Sequence[Record], config: Any) -> drawing.Tables:
    """Held-out rows, theory, families and density."""
    places = config.places
    scored = f"{places.num_questions} questions or {places.num_rows} rows of {places.length} tokens"
    few = f"the best of {config.num_compared} of {config.num_family_draws} draws"
    return {
        f"Candidates scored again on held-out rows, {scored} scored before": _held_out(records),
        f"The best of {config.num_draws} Gaussian draws, foretold and found": _by_radius(records, config),
        f"Families at one root mean square length, {few}": _families(records, config),
        "Which share of candidates improves on the scored rows": _improving(records, config),
    }


def _held_out(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for place in places_of(records):
        for objective, words in SEARCHES.items():
            for group in ("winner", "top", "random"):
                at: dict[str, Place] = {"place": place, "objective": objective, "group": group}
                gains = [spread(records, name, **at) for name in ("search_gain", "held_out_gain")]
                if not gains[0].values:
                    continue
                kept, low, high = (
                    spread(records, name, **at) for name in ("shrinkage", "shrinkage_low", "shrinkage_high")
                )
                told = f"{kept}, [{low.mean:.2g}, {high.mean:.2g}]" if np.isfinite(kept.mean) else "nothing to keep"
                radius = spread(records, "chosen_radius", place=place, objective=objective)
                lines.append([place, words, group, str(radius), *map(str, gains), told])
        names = ("step_radius", "step_gain", "step_held_out_gain")
        lines.append(
            [place, "no search", "one gradient step", *(str(spread(records, name, place=place)) for name in names), ""]
        )
        share = spread(records, "share_foretold", place=place)
        lines.append([place, "nats", "any, foretold to first order", "", "", "", str(share)])
    columns = ["model and task", "searched over", "candidates", "length", "gain on scored rows"]
    return [*columns, "on held-out rows", "share kept, [95 % over batches]"], lines


def _by_radius(records: Sequence[Record], config: Any) -> tuple[list[str], list[list[str]]]:
    lines = []
    for place in places_of(records):
        shape = Shape.of(records, place=place)
        for radius in config.radii:
            at: dict[str, Place] = {"place": place, "radius": radius}
            low, high = shape.band(config.num_draws, radius)
            lines.append(
                [
                    place,
                    f"{radius:g}",
                    f"{float(shape.gain(config.num_draws, radius)):.2g} [{float(low):.2g}, {float(high):.2g}]",
                    str(spread(records, "gain", **at, family=PLAIN, n=config.num_draws)),
                    str(spread(records, "f1_share", **at)),
                    str(spread(records, "top_at_length", **at, objective="nats")),
                ]
            )
    columns = ["model and task", "length", "foretold gain [99 % of searches], nats", "found gain", "odd share"]
    return [*columns, "its top K on held-out rows"], lines


def _families(records: Sequence[Record], config: Any) -> tuple[list[str], list[list[str]]]:
    lines = []
    for place in places_of(records):
        for radius in config.family_radii:
            for family in (PLAIN, *config.families):
                at: dict[str, Place] = {"place": place, "radius": radius, "family": family}
                gain, kept = (
                    spread(records, "gain", **at, n=config.num_compared),
                    spread(records, "held_out_gain", **at),
                )
                ratio, draws = worth(records, place, family, radius, config.num_compared)
                lines.append([place, f"{radius:g}", family, str(gain), str(ratio), _counted(draws), str(kept)])
    columns = ["model and task", "length", "family", "gain on scored rows, nats"]
    columns += ["over the Gaussian, foretold [95 % over seeds]", "Gaussian draws for as much, foretold"]
    return [*columns, f"best few on held-out rows (one σ: of {config.num_draws})"], lines


def _counted(draws: tuple[float, float, float]) -> str:
    """At the ratio, and at the ends of its interval."""

    def told(number: float) -> str:
        if math.isinf(number):
            return "no number"
        return f"{number:,.0f}" if number < 10_000 else f"{number:.0e}"

    low, mean, high = map(told, draws)
    return mean if low == high else f"{mean} [{low} to {high}]"


def _points(records: Sequence[Record]) -> list[tuple[str, int]]:
    """All places with their numbers of parameters."""
    found = [(str(r.where["place"]), int(r.where["num_params"])) for r in select(records, "improving")]
    return list(dict.fromkeys(found))


def _improving(records: Sequence[Record], config: Any) -> tuple[list[str], list[list[str]]]:
    lines = []
    for place, size in sorted(_points(records), key=lambda point: point[1]):
        shape = Shape.of(records, place=place)
        line = [place, f"{size:,}"]
        for radius in config.radii:
            found = spread(records, "improving", place=place, radius=radius)
            line.append(f"{found.mean:.2f} / {float(shape.improving(radius)):.2f}")
        lines.append(line)
    return ["model and task", "P", *(f"length {radius:g}: found / foretold" for radius in config.radii)], lines


def figures(records: Sequence[Record], config: Any) -> dict[str, tuple["Figure", str]]:
    """The searches on one page, and the families on another."""
    names = places_of(records)
    columns = (len(names) + 3) // 2
    figure, panels = drawing.panels(columns, rows=2, width=4.6, height=3.7, sharey=False)
    for panel in panels[len(names) : -2]:
        panel.set_axis_off()
    for panel, place in zip(panels, names, strict=False):
        _against_n(panel, records, config, place)
    _density(panels[-2], records, config)
    _kept(panels[-1], records)
    caption = (
        "Gaussian steps around the weights, both signs of each draw, mean over seeds. For each model and task the gain "
        "of the best of N on the scored rows (dots), beside what gradient and curvature foretold (lines; shaded, where "
        "the odd part of the loss holds more than 0.9: where one search of that N ends in 99 % of all cases), for "
        "steps of several lengths, as shares of the weights' norm; what is not positive is not drawn. Then the share "
        "of candidates that improve at all: dots found, lines foretold by the normal law of the text; models differ in "
        "size and task at once, twins in training alone. Last: what candidates gain on rows that the search did not "
        "see, in units of the winner's gain on the rows that it saw; a dot for each seed, a bar for the mean."
    )
    found = {"search_language": (figure, caption)}
    return found | _families_figure(records, config, names)


def _against_n(panel: "Axes", records: Sequence[Record], config: Any, place: str) -> None:
    import matplotlib as mpl

    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(config.radii)))
    shape = Shape.of(records, place=place)
    for radius, shade in zip(config.radii, shades, strict=True):
        found = select(records, "gain", place=place, radius=radius, family=PLAIN)
        sizes = np.asarray(sorted({int(record.where["n"]) for record in found}))
        means = np.asarray([np.mean([r.value for r in found if r.where["n"] == n]) for n in sizes])
        low, high = shape.band(sizes, radius)
        foretold = shape.gain(sizes, radius)
        tiny = float(np.max(np.abs(means))) * 1e-3
        if spread(records, "f1_share", place=place, radius=radius).mean > theory.SHARE:
            panel.fill_between(sizes, np.maximum(low, tiny), np.maximum(high, tiny), color=shade, alpha=0.12, lw=0)
        panel.plot(sizes, np.where(foretold > 0, foretold, np.nan), color=shade, lw=1.2)
        panel.plot(sizes, np.where(means > 0, means, np.nan), "o", color=shade, ms=4, label=f"length {radius:g}")
    best = max(record.value for record in select(records, "gain", place=place, family=PLAIN))
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_ylim(best / 500, best * 3)
    panel.set_xlabel("N, draws")
    panel.set_ylabel("gain on scored rows, nats")
    panel.set_title(place)
    panel.legend(fontsize=7.5, loc="lower right")


MARKERS = "osD^vP*X"
COLOURS = (drawing.PREDICTED, drawing.MEASURED, "#009e73", "#cc79a7", drawing.LIMIT, "#56b4e9", "#e69f00", "#999999")


def _density(panel: "Axes", records: Sequence[Record], config: Any) -> None:
    grid = np.geomspace(config.radii[0] / 1.3, config.radii[-1] * 1.3, 60)
    points = sorted(_points(records), key=lambda point: point[1])
    for i, (place, size) in enumerate(points):
        colour = COLOURS[i % len(COLOURS)]
        panel.plot(grid, Shape.of(records, place=place).improving(grid), color=colour, lw=1.2)
        found = [spread(records, "improving", place=place, radius=radius).mean for radius in config.radii]
        panel.plot(config.radii, found, MARKERS[i % len(MARKERS)], color=colour, ms=4, label=f"{place}, P = {size:.2g}")
    panel.axhline(0.5, color=drawing.CONTROL, lw=0.8)
    panel.set_xscale("log")
    panel.set_ylim(-0.02, 0.62)
    panel.set_xlabel("length of a step over the weights' norm")
    panel.set_ylabel("share of candidates that improve")
    panel.set_title("density")
    panel.legend(fontsize=7, loc="lower left")


def _kept(panel: "Axes", records: Sequence[Record]) -> None:
    looks = {"winner": drawing.MEASURED, "top": drawing.PREDICTED, "random": drawing.CONTROL}
    rows = [
        (place, objective)
        for place in places_of(records)
        for objective in SEARCHES
        if select(records, "search_gain", place=place, objective=objective)
    ]
    for y, (place, objective) in enumerate(rows):
        for shift, (group, colour) in zip((-0.22, 0, 0.22), looks.items(), strict=True):
            at: dict[str, Place] = {"place": place, "objective": objective}
            of_winner = spread(records, "search_gain", **at, group="winner").values
            gains = spread(records, "held_out_gain", **at, group=group).values
            shares = np.asarray([gain / best for gain, best in zip(gains, of_winner, strict=True) if best > 0])
            if len(shares):
                label = {"label": group} if y == 0 else {}
                panel.barh(y + shift, shares.mean(), 0.2, color=colour, alpha=0.35, **label)
                panel.plot(shares, np.full(len(shares), y + shift), drawing.MARKERS[colour], color=colour, ms=3)
    panel.axvline(0, color="black", lw=0.8)
    panel.axvline(1, color=drawing.CONTROL, lw=0.8, ls="--")
    panel.set_yticks(range(len(rows)), [f"{place}\n{SEARCHES[objective]}" for place, objective in rows], fontsize=7.5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel("held-out gain over the winner's searched gain")
    panel.set_title("held-out rows")
    panel.legend(fontsize=7.5, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _families_figure(records: Sequence[Record], config: Any, names: Sequence[str]) -> dict[str, tuple["Figure", str]]:
    figure, panels = drawing.panels(
        len(config.family_radii), rows=len(names), width=4.2, height=3.6, sharey=True, left=True
    )
    families = (PLAIN, *config.families)
    places = [(place, radius) for place in names for radius in config.family_radii]
    for panel, (place, radius) in zip(panels, places, strict=True):
        for y, family in enumerate(families):
            at: dict[str, Place] = {"place": place, "radius": radius, "family": family}
            for quantity, marker, colour, more in (
                ("gain", "o", drawing.PREDICTED, {"n": config.num_compared}),
                ("held_out_gain", "D", drawing.MEASURED, {}),
            ):
                found = spread(records, quantity, **at, **more)
                label = {"gain": "scored rows", "held_out_gain": "held-out rows"}[quantity]
                panel.plot(found.values, np.full(len(found.values), y), marker, color=colour, ms=3, alpha=0.4)
                panel.plot(found.mean, y, marker, color=colour, ms=6, label=label if y == 0 else None)
        step = spread(records, "step_held_out_gain", place=place).mean
        panel.axvline(step, color=drawing.MEASURED, ls=":", lw=1.2, label="one gradient step, held-out rows")
        panel.axvline(0, color="black", lw=0.8)
        near_zero = _near_zero(records, config, place, radius)
        panel.set_xscale("symlog", linthresh=near_zero)
        ends = panel.get_xlim()
        decades = [near_zero * 10.0**k for k in range(1, 5)]
        panel.set_xticks([*(-decade for decade in decades), 0, *decades])
        panel.set_yticks(range(len(families)), families)
        panel.set_ylim(len(families) - 0.5, -0.5)
        panel.set_xlim(*ends)
        panel.set_xlabel("gain, nats")
        panel.set_title(f"{place}\nlength {radius:g}", fontsize=9)
    drawing.legend_above(figure, panels[0], columns=3)
    caption = (
        f"Families of steps of one root mean square length: the best of {config.num_compared} draws, both signs, on "
        f"the scored rows (mean over the subsets of {config.num_family_draws}), and the mean of the best few on "
        f"held-out ones (of one σ, of all {config.num_draws}); large markers are means over seeds. The axis "
        "is linear around zero and logarithmic beyond. "
        "Scales and bases but those of weights, of operator norms and of random directions were made of gradients on "
        "other rows: what these are worth by themselves says the dotted line, one step down such a gradient, of the "
        "length that is best on the scored rows."
    )
    return {"families": (figure, caption)}


def _near_zero(records: Sequence[Record], config: Any, place: str, radius: float) -> float:
    """The power of ten below the gain of Gaussian steps."""
    found = spread(records, "gain", place=place, radius=radius, family=PLAIN, n=config.num_compared)
    return 10.0 ** math.floor(math.log10(max(abs(found.mean), 1e-6)))
