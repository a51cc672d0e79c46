"""The report of a capture: one page, redrawn from the records of its folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna.errors import InvalidInput
from lacuna.reports import records as record_files
from lacuna.reports import rundir
from lacuna.reports.claims import table
from lacuna.reports.figures import ASYMPTOTE, LIMIT, MEASURED, NEXT, PREDICTED, STYLE
from lacuna.reports.records import Place, Record, select, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPERIMENT = "capture"

DOCUMENTED = ("title", "from", "to", "packages", "commit", "dirty", "num_devices", "device_kind", "machine")
"""What a report repeats from `config.json` and `environment.json`."""

ABOUT = {
    "random": "a uniformly random subspace",
    "gradient": "leading directions of minibatch gradients at the start",
    "krylov": "Krylov space of one batch's Hessian from its gradient, at the start",
    "prefix": "first updates of a training from the start",
}
"""What each basis is."""

MARKERS = {"random signs": "x", "random entries": "+"}
"""Of random displacements, by their law."""

AFTER = ("final_norm", "head")
"""Leaves behind the last layer."""

LOOKS = {"gradient": (PREDICTED, "o"), "krylov": (NEXT, "s"), "prefix": (MEASURED, "D"), "random": (ASYMPTOTE, "^")}
"""Colour and marker of each basis."""

CAPTIONS = {
    "captures": "Share of the squared displacement in each basis (filled), and in the same basis of the control task "
    "(open). Vermilion: the random level k/P with its 95 % interval. Grey: random displacements as long as the real "
    "one in every block, their mean and their largest, with the real entries' sizes and random signs (x) and with "
    "normal entries (+).",
    "places": "Where the displacement is (above), and what each basis, cut to a block and orthonormalised there, holds "
    "of it (below), by layer and by kind of matrix. Dashed: the level of random subspaces of the same ranks in the "
    "same blocks.",
}


@dataclass(frozen=True)
class Row:
    """What was found of one basis.

    Attributes:
      basis: its kind.
      task: `own`, `control`, or nothing.
      rank: its dimension.
      mass: share of the squared displacement.
      level: that of a random subspace, with the interval from `low` to `high`.
      controls: mean and largest mass of random displacements, by their law.
      recovery: share of the loss drop that is kept; NaN if that was not measured.
      block_mass: capture by the basis cut into blocks, beside its level `block_level`.
      status: what there is to say of the basis, in words.
    """

    basis: str
    task: str
    rank: int
    mass: float
    level: float
    low: float
    high: float
    controls: dict[str, tuple[float, float]]
    recovery: float
    block_mass: float
    block_level: float
    status: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.basis}, control task" if self.task == "control" else self.basis


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each basis, in the order of the records."""
    rows = []
    for record in select(records, "capture_mass"):
        where: dict[str, Place] = {name: record.where[name] for name in ("basis", "task", "rank")}
        controls: dict[str, list[float]] = {}
        for one in select(records, "control_mass", **where):
            controls.setdefault(str(one.where["law"]), []).append(one.value)
        level, low, high = (value(records, f"random_{name}", **where) for name in ("mass", "low", "high"))
        rows.append(
            Row(
                basis=str(where["basis"]),
                task=str(where["task"]),
                rank=int(where["rank"]),
                mass=record.value,
                level=level,
                low=low,
                high=high,
                controls={law: (sum(found) / len(found), max(found)) for law, found in controls.items()},
                recovery=value(records, "functional_recovery", **where),
                block_mass=value(records, "block_capture", by="all", **where),
                block_level=value(records, "block_random", by="all", **where),
                status=str(select(records, "status", **where)[0].where["words"]),
            )
        )
    return rows


def write_report(run: Path, to: Path | None = None) -> Path:
    """Draw the figures and write `report.md` of a capture from its records.

    Args:
      run: its folder.
      to: another folder to write into; default: the run's own.

    Returns:
      The path of `report.md`.

    Raises:
      InvalidInput: `run` holds no records of a capture.
    """
    with rundir.as_written(run):
        return _written(run, run if to is None else to)


def _written(run: Path, to: Path) -> Path:
    """The report of a capture whose documents are as they were written."""
    records = record_files.read(run / "records.jsonl")
    config, environment = (rundir.read_json(run / f"{name}.json") for name in ("config", "environment"))
    absent = [name for name in DOCUMENTED if name not in config | environment]
    if absent:
        raise InvalidInput(
            f"the documents of {run} must say what was compared",
            got=f"no `{absent[0]}`",
            hint="the folder as the run left it, or a new one",
        )
    if not select(records, "capture_mass"):
        raise InvalidInput(
            f"{run} must hold the records of a capture",
            got="none of `capture_mass`",
            hint="the folder as the run left it, or a new one",
        )
    rundir.check_folder(to)
    figures = capture_figures(records)
    page = _markdown(records, config, environment)
    (to / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(to / "figures" / f"{name}.png")
    report = to / "report.md"
    with rundir.whole_file(report) as unfinished:  # the name of a folder may be no UTF-8
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    return report


def answers(records: Sequence[Record]) -> dict[str, str]:
    """What a capture is made for, each question with its answer in a sentence or two."""
    return {
        "Moved": _moved(records),
        "Captured": _captured(records),
        "Beyond chance": _beyond_chance(records),
        "Worth": _worth(records),
    }


def summary(records: Sequence[Record]) -> str:
    """The answers, one a line."""
    return "\n".join(f"{question}: {answer}" for question, answer in answers(records).items())


def percent(share: float) -> str:
    """A share in per cent, to two digits; in powers of ten where it is small."""
    if not abs(share) < math.inf:
        return "unknown"
    return f"{100 * share:.2g} %" if abs(share) >= 1e-6 or share == 0 else f"{share:.1e}"


def _moved(records: Sequence[Record]) -> str:
    length, size = value(records, "displacement_norm"), value(records, "num_params")
    layers = [r for r in select(records, "block_mass_share", by="layer") if not math.isnan(r.value)]
    most = max(layers, key=lambda r: r.value)
    where = most.where["layer"]
    place = f"layer {where}" if isinstance(where, int) else f"`{where}`"
    radius = _radius(records, by="all")
    relative = f", a relative radius of {radius}" if radius else ""
    return (
        f"{size:,.0f} parameters, by |d| = {length:.4g}{relative}. Most of it is in {place}: "
        f"{percent(most.value)} of |d|²."
    )


def _radius(records: Sequence[Record], **where: Place) -> str:
    """How far a part moved in lengths of its start; nothing where that was zero."""
    radius = value(records, "relative_radius", **where)
    return "" if math.isnan(radius) else f"{radius:.2g}"


def _captured(records: Sequence[Record]) -> str:
    own = [row for row in rows_of(records) if row.task == "own"] or rows_of(records)
    best = max(own, key=lambda row: row.mass)
    return (
        f"At most {percent(best.mass)} of the squared displacement ({percent(best.mass**0.5)} of its norm), by the "
        f"{best.basis} basis of rank {best.rank}; a random one of that rank holds {percent(best.level)}."
    )


def _beyond_chance(records: Sequence[Record]) -> str:
    """Each basis against the largest of what it stands beside."""
    rows = rows_of(records)
    told = []
    for row in rows:
        if row.task == "control" or row.basis == "random":
            continue
        others = {law: largest for law, (_, largest) in row.controls.items()}
        others["the upper end of the random level"] = row.high
        for other in rows:
            if (other.basis, other.task) == (row.basis, "control"):
                others["the control task"] = other.mass
        name = max(others, key=lambda other: others[other])
        above = row.mass / others[name]
        told.append(f"{row.basis} {above:.3g} times {name}" + ("" if above > 1 else ", so NOT above chance"))
    if not told:
        (row, *_) = rows
        inside = "inside" if row.low <= row.mass <= row.high else "OUTSIDE"
        return f"The random basis holds {percent(row.mass)}, {inside} its interval; no other was asked for."
    return f"Beside the highest of its controls, {'; '.join(told)}."


def _worth(records: Sequence[Record]) -> str:
    drop, error = value(records, "loss_drop"), value(records, "loss_drop_error")
    if math.isnan(drop):
        return "Not known: no loss was given."
    ends = " to ".join(f"{value(records, 'loss', point=point):.4f}" for point in ("start", "end"))
    if drop <= 0:
        return f"The held-out loss does not drop ({ends}), so there is nothing to recover."
    doubt = "" if math.isnan(error) else f" ± {error:.1g}"
    rows = rows_of(records)
    controls = {row.basis: f" (control task {percent(row.recovery)})" for row in rows if row.task == "control"}
    own = [row for row in rows if row.task != "control"]
    kept = [f"{row.basis} {percent(row.recovery)}{controls.get(row.basis, '')}" for row in own]
    few = " The drop is within two of its errors of zero: read nothing into this." if drop <= 2 * error else ""
    return (
        f"The held-out loss drops by {drop:.3g}{doubt} ({ends}). Projected, it keeps of that: {', '.join(kept)}.{few}"
    )


def _markdown(records: Sequence[Record], config: dict[str, Any], environment: dict[str, Any]) -> str:
    parts = [
        f"# Captures: {config['title']}",
        "\n".join(f"- **{question}.** {answer}" for question, answer in answers(records).items()),
        _bases_table(records),
        "Mass is |Qd|²/|d|² and norm its square root. A random subspace of rank k has the law Beta(k/2, (P − k)/2). "
        "Random signs keep the size of every entry of d, random entries its length in every block: what a basis holds "
        "of these, it holds because of where d is, not of which way it points.",
        *[f"![{caption}](figures/{name}.png)\n\n*{caption}*" for name, caption in CAPTIONS.items()],
        *_folded("By layer", _places_table(records, "layer")),
        *_folded("By kind of matrix", _places_table(records, "kind")),
        "A capture here is of the basis cut to each block (a leaf, in each layer) and orthonormalised there, so it has "
        "more directions than k in all, and a level of its own, Σ w k/P over blocks with w their shares of |d|².",
        "## How it was run",
        _run_table(records, config, environment),
        *([f"Run it again:\n\n```sh\n{config['command']}\n```"] if "command" in config else []),
    ]
    return "\n\n".join(parts) + "\n"


def _folded(title: str, content: str) -> list[str]:
    return [f"<details><summary>{title}</summary>", content, "</details>"]


def _bases_table(records: Sequence[Record]) -> str:
    rows = rows_of(records)
    head = ["basis", "k", "mass", "norm", "random level k/P", "mass / level"]
    head += [f"{law}: mean, largest" for law in MARKERS] + ["loss drop kept", "in blocks (level)", ""]
    lines = []
    for row in rows:
        line = [row.name, str(row.rank), f"**{row.mass:.3g}**", f"{row.mass**0.5:.3g}"]
        line += [f"{row.level:.2g} [{row.low:.2g}, {row.high:.2g}]", f"{row.mass / row.level:.3g}" if row.level else ""]
        line += [f"{row.controls[law][0]:.2g}, {row.controls[law][1]:.2g}" for law in MARKERS]
        line += ["" if math.isnan(row.recovery) else f"{row.recovery:.3g}"]
        lines.append([*line, f"{row.block_mass:.3g} ({row.block_level:.2g})", row.status])
    return table(head, lines)


def _places_table(records: Sequence[Record], by: str) -> str:
    rows = rows_of(records)
    lines = []
    for place in _places(records, by):
        at: dict[str, Place] = {"by": by, by: place}
        line = [
            str(place),
            f"{value(records, 'block_mass_share', **at):.3g}",
            _radius(records, **at),
        ]
        for row in rows:
            of = {"basis": row.basis, "task": row.task, **at}
            found, level = (value(records, quantity, **of) for quantity in ("block_capture", "block_random"))
            line.append("" if math.isnan(found) else f"{found:.2g} ({level:.2g})")
        lines.append(line)
    return table([by, "share of |d|²", "radius", *(f"{row.name} (level)" for row in rows)], lines)


def _places(records: Sequence[Record], by: str) -> list[Place]:
    """Layers or kinds in the order in which a forward pass meets them, as far as their names tell."""

    def key(place: Place) -> tuple[int, int]:
        if isinstance(place, int):
            return 1, place
        return (2 if place in AFTER else 0), 0

    found = [record.where[by] for record in select(records, "block_mass_share", by=by)]
    return sorted(found, key=key) if by == "layer" else found


def _run_table(records: Sequence[Record], config: dict[str, Any], environment: dict[str, Any]) -> str:
    changed = " with uncommitted changes" if environment["dirty"] else ""
    kinds = dict.fromkeys(row.basis for row in rows_of(records))
    lines = [
        ["from", str(config["from"])],
        ["to", str(config["to"])],
        *[[kind, ABOUT.get(kind, "given")] for kind in kinds],
        *[["note", str(note)] for note in config.get("notes", [])],
        ["time", f"{sum(r.value for r in select(records, 'wall_s')):.0f} s for the bases and what they capture"],
        ["machine", f"{environment['num_devices']} × {environment['device_kind']}; {environment['machine']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())],
        ["commit", (environment["commit"] or "not a checkout") + changed],
    ]
    return table(["", ""], lines)


def capture_figures(records: Sequence[Record]) -> dict[str, "Figure"]:
    """All figures of a capture, by file name without extension."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return {"captures": _captures_figure(records), "places": _places_figure(records)}


def _subplots(rows: int, columns: int, **options: Any) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size, sharing = options.pop("size"), options
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def _captures_figure(records: Sequence[Record]) -> "Figure":
    """Capture by basis, beside its level and controls, on a logarithmic axis."""
    rows = rows_of(records)
    kinds = list(dict.fromkeys(row.basis for row in rows))
    figure, axes = _subplots(1, 1, size=(8.8, 1.3 + 0.62 * len(kinds)))
    (panel,) = axes.flat
    every = [x for row in rows for x in (row.mass, row.low, *(mean for mean, _ in row.controls.values())) if x > 0]
    least = min(every) / 3
    for row in rows:
        place = kinds.index(row.basis)
        if row.task == "control":
            panel.plot(max(row.mass, least), place, "o", mfc="white", mec=MEASURED, ms=7, label="control task")
            continue
        panel.plot(
            [max(row.low, least), row.high], [place + 0.17] * 2, color=LIMIT, lw=5, alpha=0.35, solid_capstyle="butt"
        )
        panel.plot(row.level, place + 0.17, "|", color=LIMIT, ms=12, mew=2, label="random level, 95 %")
        for (law, marker), down in zip(MARKERS.items(), (0.32, 0.44), strict=True):
            mean, largest = row.controls[law]
            panel.plot([max(mean, least), largest], [place + down] * 2, color=ASYMPTOTE, lw=0.8)
            panel.plot(max(mean, least), place + down, marker, color=ASYMPTOTE, ms=6, mew=1.5, label=law)
        panel.plot(max(row.mass, least), place, "o", color=MEASURED, ms=7, label="the displacement")
    panel.set_xscale("log")
    panel.set_xlim(least, 1.6)
    panel.set_ylim(len(kinds) - 0.35, -0.5)
    ranks = {row.basis: row.rank for row in rows if row.task != "control"}
    panel.set_yticks(range(len(kinds)), [f"{kind}, k = {ranks[kind]}" for kind in kinds])
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("capture mass |Qd|²/|d|²")
    _legend_above(figure, panel, columns=5)
    return figure


def _places_figure(records: Sequence[Record]) -> "Figure":
    """By layer and by kind: shares of the squared displacement, and captures within beside their random level."""
    figure, axes = _subplots(2, 2, size=(9.6, 6.2), sharex="col", sharey="row")
    rows = [row for row in rows_of(records) if row.task != "control"]
    for column, by in enumerate(("layer", "kind")):
        places = _places(records, by)
        numbered = [i for i, place in enumerate(places) if isinstance(place, int)]
        above, below = axes[:, column]
        shares = [value(records, "block_mass_share", by=by, **{by: place}) for place in places]
        above.bar(range(len(places)), shares, color=ASYMPTOTE, width=0.7, zorder=2)
        level: list[float] = []
        for row in rows:
            of: dict[str, Place] = {"basis": row.basis, "task": row.task, "by": by}
            found = [value(records, "block_capture", **of, **{by: place}) for place in places]
            level = [value(records, "block_random", **of, **{by: place}) for place in places]
            colour, marker = LOOKS.get(row.basis, (LIMIT, "v"))
            below.plot(range(len(places)), found, color=colour, marker=marker, ms=5, ls="", label=row.basis)
            below.plot(numbered, [found[i] for i in numbered], color=colour, lw=1)
        below.plot(range(len(places)), level, color=LIMIT, ls="--", lw=1.2, drawstyle="steps-mid", label="random level")
        below.set_yscale("log")
        _name_places(below, places)
        below.set_xlabel("layer" if by == "layer" else "kind of matrix")
    axes[0, 0].set_ylabel("share of |d|²")
    axes[1, 0].set_ylabel("capture mass within")
    _legend_above(figure, axes[1, 0], columns=6)
    return figure


def _name_places(panel: "Axes", places: Sequence[Place]) -> None:
    """Every word is shown, of the numbers as many as there is room for."""
    step = max(1, math.ceil(sum(isinstance(place, int) for place in places) / 14))
    shown = [i for i, place in enumerate(places) if isinstance(place, str) or place % step == 0]
    panel.set_xticks(shown, [str(places[i]) for i in shown])
    for label in panel.get_xticklabels():
        if not label.get_text().isdigit():
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def _legend_above(figure: "Figure", panel: "Axes", *, columns: int) -> None:
    """The panel's legend above the whole figure, each name once."""
    named = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns)
