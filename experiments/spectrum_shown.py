"""The spectra of language models' gradients drawn: the parts of a model, directions beside chance, and the tables."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import drawing
from experiments.spectrum_judged import LEAST_P, between, num_tasks, points, settings, worst
from lacuna.reports.claims import seeds_of, spread
from lacuna.reports.records import Place, Record, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDER = ("embedding", "attention in", "attention out", "mlp up", "mlp down", "norms", "head")
MOST_TOLD = 12
"""Layers up to which there is room for numbers in a map."""

FLOOR = 1e-5
"""What is smaller or negative is drawn here, below a figure's end."""

LEAST_SHARE = 0.003
"""Smaller shares are drawn like this one."""


def _label(layer: int) -> str:
    return str(layer) if layer else "outside"


def tables(records: Sequence[Record], config: Any) -> drawing.Tables:
    """The scatter in all parameters, by kind and by layer, one task alone, and how the gradients were multiplied."""
    whole, kinds, layers, alone, done = [], [], [], [], []
    for where in settings(records):
        named = [str(value) for value in where.values()]
        cells = []
        for quantity in ("participation_ratio", "share_of_energy"):
            cells += [str(spread(records, quantity, **where)), between(records, where, quantity)]
        half = f"{num_tasks(records, where) / 2:g}"
        contrast = spread(records, "share_of_contrast", **where)
        last = [str(spread(records, "p_value", **where)), str(contrast) if contrast.values else "-"]
        whole.append([*named, cells[0], half, *cells[1:], *last])
        if where["scaling"] == "raw":
            continue
        for lines, cut in ((kinds, "kind"), (layers, "layer")):
            for part in _parts(records, {**where, "cut": cut}):
                at = {**where, "cut": cut, **part}
                name = str(part["kind"]) if cut == "kind" else _label(int(part["layer"]))
                several = (str(spread(records, f"part_{q}", **at)) for q in ("participation_ratio", "share"))
                worsts = (f"{worst(records, f'part_{q}', **at):.2g}" for q in ("p_value", "p_adjusted"))
                lines.append([*named[:-1], name, *several, *worsts])
    for point in points(records):
        named = [str(value) for value in point.values()]
        for task in dict.fromkeys(r.where["task"] for r in select(records, "nats", **point)):
            several = ("nats", "one_task_participation_ratio", "one_task_top_energy")
            alone.append([*named, str(task), *(str(spread(records, q, **point, task=task)) for q in several)])
        cells = [f"{spread(records, q, **point).mean:,.0f}" for q in ("num_params", "num_gradients")]
        wall, error = (spread(records, q, **point) for q in ("gradients_wall_s", "sketch_error"))
        told = f"{error}" if error.mean else "exact"
        done.append([*named, *cells, str(wall), told])
    head = ["model", "arm", "tasks", "gradients"]
    ratios = ["participation ratio", "share of its energy", "largest p", "largest p, corrected"]
    scattered = [
        "participation ratio",
        "must be below",
        "by bootstrap",
        "share of all energy",
        "by bootstrap",
        "p",
        "texts against digits",
    ]
    return {
        "Scatter between tasks, in all parameters": ([*head, *scattered], whole),
        "By kind of matrix, gradients scaled to length one within it": ([*head[:3], "kind", *ratios], kinds),
        "By layer, gradients scaled to length one within it": ([*head[:3], "layer", *ratios], layers),
        f"One task alone: {config.num_batches} minibatches": (
            ["model", "arm", "task", "nats a token", "participation ratio", "top-1 energy"],
            alone,
        ),
        "How the gradients were multiplied": (
            ["model", "arm", "parameters", "gradients computed", "seconds a seed", "error of a product by its length"],
            done,
        ),
    }


def _parts(records: Sequence[Record], where: dict[str, Place]) -> list[dict[str, Place]]:
    """Kinds and layers of a cut, in the order of `ORDER`, then of the layers."""
    found = {(r.where["kind"], r.where["layer"]) for r in select(records, "part_share", **where)}
    place = {kind: i for i, kind in enumerate((*ORDER, "all"))}
    ordered = sorted(found, key=lambda part: (place[str(part[0])], int(part[1])))
    return [{"kind": kind, "layer": layer} for kind, layer in ordered]


def figures(records: Sequence[Record], config: Any) -> dict[str, tuple["Figure", str]]:
    """Maps of layers by kinds, and energies by direction, for each model."""
    found: dict[str, tuple[Figure, str]] = {}
    for number, model in enumerate(dict.fromkeys(str(point["model"]) for point in points(records)), start=1):
        of_model = [point for point in points(records) if point["model"] == model]
        found[f"parts_{number}"] = _maps(records, of_model)
        found[f"directions_{number}"] = _directions(records, of_model, config.num_batches)
    return found


def _maps(records: Sequence[Record], of_model: list[dict[str, Place]]) -> tuple["Figure", str]:
    """Share of each part's energy that is scatter between tasks."""
    num_layers = max(int(r.where["layer"]) for r in select(records, "part_share", **of_model[0]))
    width = 2.2 + 0.55 * (num_layers + 1)
    figure, panels = drawing.panels(2, rows=len(of_model), width=width, height=3.2, left=True, sharey=False)
    image: Any = None
    places = [(point, tasks) for point in of_model for tasks in ("all", "mappings")]
    for panel, (point, tasks) in zip(panels, places, strict=True):
        where: dict[str, Place] = {**point, "tasks": tasks, "scaling": "normalised"}
        image = _map(panel, records, where, num_layers)
        panel.set_title(f"{point['arm']}, {'all tasks' if tasks == 'all' else 'the mappings alone'}")
        panel.set_xlabel("layer")
    figure.colorbar(image, ax=panels, label="share of the part's energy", shrink=0.8)
    caption = (
        f"{of_model[0]['model']}: the share of a part's energy that is scatter between tasks, with gradients scaled to "
        "length one within the part, mean over seeds. In each field the participation ratio; in brackets where, "
        f"corrected for the number of fields, p is not below {LEAST_P} in every seed. Right and below: all kinds and "
        "all layers together."
    )
    return figure, caption


def _map(panel: "Axes", records: Sequence[Record], where: dict[str, Place], num_layers: int) -> Any:
    """Kinds down, layers across; the last row and column are sums."""
    from matplotlib.colors import LogNorm

    kinds = [*(kind for kind in ORDER if select(records, "part_share", **where, kind=kind)), "all"]
    layers = [layer for layer in range(num_layers + 1) if select(records, "part_share", **where, layer=layer)] + [-1]
    shares = np.full((len(kinds), len(layers)), np.nan)
    for i, kind in enumerate(kinds):
        for j, layer in enumerate(layers):
            cut = "layer" if kind == "all" else "kind" if layer == -1 else "cell"
            at: dict[str, Place] = {**where, "cut": cut, "kind": kind, "layer": layer}
            if not select(records, "part_share", **at):
                continue
            shares[i, j] = max(LEAST_SHARE, spread(records, "part_share", **at).mean)
            is_scatter = worst(records, "part_p_adjusted", **at) < LEAST_P
            if len(layers) <= MOST_TOLD or not is_scatter:
                ratio = spread(records, "part_participation_ratio", **at).mean
                told = f"{ratio:.1f}" if len(layers) <= MOST_TOLD else ""
                panel.text(
                    j,
                    i,
                    told if is_scatter else f"({told})",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if shares[i, j] < 0.15 else "black",
                )
    image = panel.imshow(shares, norm=LogNorm(LEAST_SHARE, 1), cmap="viridis", aspect="auto")
    panel.grid(False)
    names = ["all" if layer == -1 else _label(layer) for layer in layers]
    every = 1 if len(layers) <= 2 * MOST_TOLD else 4
    panel.set_xticks(range(0, len(layers), every), names[::every], rotation=90 if every > 1 else 0)
    panel.set_yticks(range(len(kinds)), kinds)
    return image


def _drawable(records: Sequence[Record], where: dict[str, Place]) -> list[Record]:
    """The energies of the directions that are positive in the mean, for a logarithmic axis."""
    found = select(records, "energy", **where)
    positive = {i for i in {r.where["i"] for r in found} if spread(found, "energy", i=i).mean > FLOOR}
    return [replace(r, value=max(r.value, FLOOR)) for r in found if r.where["i"] in positive]


def _directions(records: Sequence[Record], of_model: list[dict[str, Place]], num_batches: int) -> tuple["Figure", str]:
    """Energy by direction beside permuted labels."""
    figure, panels = drawing.panels(2, rows=len(of_model), width=3.8, height=3.4)
    places = [(point, tasks) for point in of_model for tasks in ("all", "mappings")]
    for panel, (point, tasks) in zip(panels, places, strict=True):
        where: dict[str, Place] = {**point, "tasks": tasks}
        count = num_tasks(records, {**where, "scaling": "raw"})
        for scaling, colour in (("raw", drawing.MEASURED), ("normalised", drawing.PREDICTED)):
            look = {"color": colour, "label": f"{scaling} gradients"}
            drawing.curve(panel, _drawable(records, {**where, "scaling": scaling}), "energy", "i", **look)
        at_random = [
            spread(records, "energy_at_random", **where, scaling="normalised", i=i).mean for i in range(1, count + 1)
        ]
        directions, bounds = np.arange(1, count + 1), np.maximum(at_random, FLOOR)
        panel.fill_between(directions, FLOOR, bounds, color=drawing.CONTROL, alpha=0.25, lw=0, label="permuted labels")
        shown = min(count, num_batches)
        alone = [
            np.mean([r.value for r in select(records, "one_task_energy", **point, i=i)]) for i in range(1, shown + 1)
        ]
        panel.plot(range(1, shown + 1), alone, color=drawing.CONTROL, ls="--", lw=1, label="minibatches of one task")
        panel.set_yscale("log")
        panel.set_ylim(10 * FLOOR, 1.2)
        panel.set_title(f"{point['arm']}, {'all tasks' if tasks == 'all' else 'the mappings alone'}")
        panel.set_xlabel("direction")
    for panel in panels[::2]:
        panel.set_ylabel("share of all energy")
    drawing.legend_above(figure, panels[0], columns=2)
    seeds = len(seeds_of(records))
    caption = (
        f"{of_model[0]['model']}: scatter between tasks by direction, strongest first, as a share of all energy; mean "
        f"of {seeds} {'seed' if seeds == 1 else 'seeds'}, shaded from the smallest to the largest; directions below "
        "zero, where there is noise alone, are not drawn. Grey: up to the 95 % quantile of permuted labels, normalised "
        "gradients. Dashed: one task's own minibatches, their mean gradient among it, averaged over the tasks."
    )
    return figure, caption
