"""C5: the gain of best-of-N search is sigma times the gradient's norm times the maximum of N normals, in any dimension.

Paper: arXiv 2606.10929, Theorem 1. The best of N Gaussian steps of size sigma gains sigma |a| E[max of N normals]:
the number of parameters does not enter. What ends it is curvature, whose trace grows with the dimension. Steps are
given in units of the sigma at which the gradient and the Hessian's trace foretell the end of the linear regime, and
gains in units of sigma |a|, so that landscapes of any size and steepness share one figure. Searches: planted
quadratics with |a| = 1 and N to 1e5, untrained transformers of growing width, and three states of the trained one.
Expect: measured over predicted near 1 with the spread of a maximum, 0.12 at N = 256 and 0.06 at 1e5.
`python -m experiments search-scaling:small`. `smoke` shrinks the training, the landscapes, the draws and the seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import drawing
from experiments.recoveries import StartSpec, Told, starting_point
from experiments.searches import PROGRAMS, SEARCH_STEP, STATES, Known, known_landscape, noise_seed, scored_rows
from experiments.trajectory_prefix import SMOKE_START
from lacuna import keys, search, theory
from lacuna.models.model import Model
from lacuna.models.synthetic import SyntheticSpec, synthetic
from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select, value
from lacuna.tasks import digits
from lacuna.types import Batch, Loss, Params

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "search_scaling", "What the best of N random steps gains"
ABOUT = (
    "Theorem 1: the best of N random steps of size σ lowers the loss by σ|a| times the expected maximum of N standard "
    "normals, whatever the number of parameters. Here both signs of each draw are tried, so the maximum is that of "
    "|Z|; it is exact, and √(2 ln 2N) stands beside it. Every search was predicted from the gradient and the Hessian "
    "at its base point before a step was taken. Steps are in units of the foretold end of the linear regime, gains in "
    "units of σ|a|. The rule: wherever the odd part of the loss holds more than 0.9 of the squares (the F1 share), the "
    "measured gain lies in the predicted band. A row holds several searches, so its band is widened until all of "
    "them together lie inside with probability 0.99. The control: of an eighth of the draws, over all subsets, the "
    "gain is nearer to the exact maximum than to the asymptote, and measured over predicted has no trend with the "
    "number of parameters."
)

LEVEL = 0.99
"""Probability that all searches of a row lie in their bands."""

GROUPS = ("planted", "width", *STATES)
"""Rows of the claim table."""

SMALLEST = 0
"""Place of the smallest step in the configuration: the one at which curves against N and P are drawn."""


@dataclass(frozen=True)
class Config:
    """Best-of-N searches.

    Attributes:
      num_seeds: seeds 0, 1, ... of models, data, landscapes and noise.
      steps: sizes of the steps in units of the foretold end of the linear regime, ascending.
      num_draws: N; each draw is tried with both signs.
      most_draws: N at the smallest step on the planted landscapes and on the narrowest transformer.
      planted: numbers of parameters of the planted quadratics.
      most_numbers: normals that a planted search may draw; larger landscapes are searched with fewer draws.
      widths: of the untrained transformers, of one layer.
      num_rows: rows of the scored batch.
      num_probes: Hessian products for the trace.
      start: the three states.
    """

    num_seeds: int = 5
    steps: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    num_draws: int = 256
    most_draws: int = 100_000
    planted: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)
    most_numbers: int = 200_000_000
    widths: tuple[int, ...] = (16, 64, 128, 256)
    num_rows: int = 8
    num_probes: int = 32
    start: StartSpec = field(default_factory=StartSpec)


PRESETS = {
    "smoke": Config(
        1,
        (0.1, 1.0),
        num_draws=16,
        most_draws=64,
        planted=(10, 100),
        widths=(16, 32),
        num_rows=2,
        num_probes=2,
        start=SMOKE_START,
    ),
    "small": Config(),
    "paper": Config(num_seeds=10, num_draws=4096, most_draws=1_000_000, most_numbers=2_000_000_000),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found: list[Record] = []
    for size in config.planted:
        told(f"planted quadratic of {size:,} parameters")
        most = min(config.most_draws, max(config.num_draws, config.most_numbers // size))
        params = {"x": jnp.zeros(size)}
        found += _searched(config, "planted", seed, planted_loss, params, planted(size, seed), most)
    for width in config.widths:
        told(f"untrained transformer of width {width}")
        model, loss = _transformer(width)
        params = model.init(keys.stream(seed, "init"))
        rows = digits.digit_task(config.start.task, model.apply, seed=seed, batch_size=config.num_rows)
        most = config.most_draws if width == config.widths[0] else config.num_draws
        found += _searched(config, "width", seed, loss, params, rows.train(SEARCH_STEP), most)
    for state in STATES:
        start = starting_point(config.start, seed, cache, told, state=state)
        told(f"the {state} transformer")
        rows = scored_rows(start, config.start.task, config.num_rows)
        found += _searched(config, state, seed, start.loss, start.params, rows, config.num_draws)
    return found


def planted_loss(params: Params, batch: Batch) -> Float[Array, ""]:
    """`<a, x> + <x, h x> / 2 + <a, x>^2 / 4`: gradient a at zero, Hessian diag(h) + a a^T / 2."""
    gradient, curvature = batch
    along = jnp.vdot(gradient, params["x"])
    return along + jnp.vdot(params["x"], curvature * params["x"]) / 2 + along**2 / 4


def planted(size: int, seed: int) -> Batch:
    """A gradient of length one, and curvatures of both signs whose sum is 10 at any size."""
    rng = np.random.default_rng((seed, size))
    gradient = rng.normal(size=size)
    curvature = 10 / size * (1 + 2 * rng.normal(size=size) / np.sqrt(10))
    return jnp.float32(gradient / np.linalg.norm(gradient)), jnp.float32(curvature)


@cache
def _transformer(width: int) -> tuple[Model, Loss]:
    """A transformer of one layer, and its loss; the same functions for every seed."""
    model = synthetic(SyntheticSpec(digits.vocab_size, num_layers=1, width=width, mlp_width=4 * width))
    return model, digits.digit_task(digits.DIGIT_TASKS[0], model.apply, seed=0, batch_size=1).objective.loss


def _searched(
    config: Config, group: str, seed: int, loss: Loss, params: Params, batch: Batch, most_draws: int
) -> list[Record]:
    """Predict one landscape, then search it at every step; most draws at the smallest, for the curve against N."""
    known = known_landscape(loss, params, batch, num_probes=config.num_probes, seed=seed)
    where: dict[str, Place] = {"seed": seed, "group": group, "num_params": known.num_params}
    parts = {config.steps: most_draws}
    if most_draws > config.num_draws:
        parts = {config.steps[:1]: most_draws, config.steps[1:]: config.num_draws}
    best = float(theory.best_sigma(config.num_draws, known.slope, *known.curvature, both_signs=True))
    found = [
        Record(NAME, "gradient_norm", known.slope, "loss"),
        Record(NAME, "end", known.end, "1"),
        Record(NAME, "predicted_best", best / known.end, "end"),
    ]
    gains: list[float] = []
    for steps, num_draws in parts.items():
        sigmas = tuple(step * known.end for step in steps)
        sweep = search.Sweep(search.gaussian(), sigmas, num_draws, seed=noise_seed(NAME, *where.values(), steps[0]))
        result = search.run_sweep(loss, params, batch, sweep, programs=PROGRAMS)
        found += _compared(config, result, known, group, steps)
        curves = search.measured_curves(result.base_score, result.scores, np.asarray([config.num_draws]))
        gains += curves["both"][0].tolist()
    peak = search.next_sigma(config.steps, np.asarray(gains), predicted_best=best / known.end)
    found.append(Record(NAME, "found_best", peak.sigma if peak.because == "peak" else math.nan, "end"))
    return [replace(record, where=where | record.where) for record in found]


def _compared(
    config: Config, result: search.SweepResult, known: Known, group: str, steps: tuple[float, ...]
) -> Iterator[Record]:
    """What was predicted and what was found, in units of sigma |a|."""
    sweep, num_draws = result.sweep, result.sweep.num_candidates
    num_searches = config.num_seeds * {"planted": len(config.planted), "width": len(config.widths)}.get(group, 1)
    levels = {"": LEVEL, "_of_row": 1 - (1 - LEVEL) / num_searches}
    regime = theory.linear_regime(
        np.float32(sweep.sigmas), result.scores[..., 0], result.scores[..., 1], result.base_score
    )
    for j, (step, sigma) in enumerate(zip(steps, sweep.sigmas, strict=True)):
        unit, at = sigma * known.slope, np.float32(sigma)
        sizes = np.asarray([num_draws])
        if step == config.steps[SMALLEST]:
            curve = search.subset_sizes(num_draws, per_octave=1)
            sizes = np.unique([*curve, config.num_draws, few(num_draws)])
        curves = search.measured_curves(result.base_score, result.scores[:, j : j + 1], sizes)
        quantities: dict[str, Float[np.ndarray, sizes] | Float[Array, sizes]] = {
            "measured": curves["both"][:, 0] / unit,
            "predicted": theory.best_of_n_gain(sizes, at, known.slope, *known.curvature, both_signs=True) / unit,
            "first_order": theory.expected_max_abs(sizes),
            "asymptote": theory.asymptotic_max(sizes, both_signs=True),
        }
        for name, level in levels.items():
            low, high = theory.best_of_n_band(
                sizes,
                at,
                known.slope,
                *known.curvature,
                both_signs=True,
                level=level,
                curvature_trace_error=known.curvature_trace_error,
            )
            quantities |= {f"low{name}": low / unit, f"high{name}": high / unit}
        yield Record(NAME, "num_draws", float(num_draws), "1", {"step": step})
        yield Record(NAME, "share", float(regime.share[j]), "1", {"step": step})
        for quantity, values in quantities.items():
            for n, number in zip(sizes.tolist(), np.asarray(values).tolist(), strict=True):
                yield Record(NAME, quantity, number, "σ|a|", {"step": step, "n": n})


@dataclass(frozen=True)
class Judged:
    """One search at one step in the linear regime.

    Attributes:
      num_params: P.
      step: size of the step in units of the foretold end.
      ratio: measured over predicted gain.
      in_band: whether the measured gain lies in the band of this search alone.
      in_band_of_row: and in that of all searches of its row together.
    """

    num_params: int
    step: float
    ratio: float
    in_band: bool
    in_band_of_row: bool


def judged(records: Sequence[Record], group: str) -> list[Judged]:
    """Every search of a group, at every step where the F1 share is above 0.9."""
    rows = []
    for record in select(records, "share", group=group):
        if not record.value > theory.SHARE:
            continue
        n = int(value(records, "num_draws", **record.where))

        def at(quantity: str, where: dict[str, Place] = record.where, n: int = n) -> float:
            return value(records, quantity, **where, n=n)

        measured = at("measured")
        rows.append(
            Judged(
                num_params=int(record.where["num_params"]),
                step=float(record.where["step"]),
                ratio=measured / at("predicted"),
                in_band=at("low") <= measured <= at("high"),
                in_band_of_row=at("low_of_row") <= measured <= at("high_of_row"),
            )
        )
    return rows


def few(num_draws: int) -> int:
    """Draws at which a search meets the asymptote: over all subsets of so many, the luck of the best averages out."""
    return max(1, num_draws // 8)


def exact_and_asymptotic(records: Sequence[Record], group: str) -> tuple[Spread, Spread]:
    """Measured over predicted gain of a few draws at the smallest step, the prediction by either maximum."""
    ratios = []
    for record in select(records, "share", group=group):
        n = few(int(value(records, "num_draws", **record.where)))
        names = ("measured", "predicted", "first_order", "asymptote")
        measured, predicted, exact, asymptote = (value(records, name, **record.where, n=n) for name in names)
        if math.isfinite(measured):
            ratios.append((measured / predicted, measured / (predicted - exact + asymptote)))
    by_exact, by_asymptote = zip(*ratios, strict=True) if ratios else ((), ())
    return Spread(by_exact), Spread(by_asymptote)


def trend(rows: Sequence[Judged]) -> tuple[float, float]:
    """Slope of measured over predicted against log10 P, and its standard error; zeros where P does not vary.

    At the smallest step alone: the steps of one search share their draws, and are no independent measurements.
    """
    rows = [row for row in rows if row.step == min(one.step for one in rows)]
    if len(rows) < 3:
        return 0.0, 0.0
    logs, ratios = np.log10([row.num_params for row in rows]), np.asarray([row.ratio for row in rows])
    spread_of_logs = np.sum((logs - logs.mean()) ** 2)
    if spread_of_logs < 1e-9:
        return 0.0, 0.0
    slope = np.sum((logs - logs.mean()) * ratios) / spread_of_logs
    rest = ratios - ratios.mean() - slope * (logs - logs.mean())
    return float(slope), float(np.sqrt(np.sum(rest**2) / (len(rows) - 2) / spread_of_logs))


WORDS = {
    "planted": "on planted quadratics",
    "width": "on untrained transformers of growing width",
    "undertrained": "around the under-trained transformer",
    "forgotten": "around the one that forgot",
    "trained": "around the trained one",
}


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each group of landscapes."""
    rows = []
    for group in GROUPS:
        searches = judged(records, group)
        ratios = Spread(tuple(row.ratio for row in searches))
        by_exact, by_asymptote = exact_and_asymptotic(records, group)
        slope, error = trend(searches)
        sizes = [int(record.where["num_params"]) for record in select(records, "end", group=group)]
        of_size = f"P = {min(sizes):,}" + (f" to {max(sizes):,}" if max(sizes) > min(sizes) else "")
        inside, inside_row = sum(row.in_band for row in searches), sum(row.in_band_of_row for row in searches)
        nearer = abs(by_exact.mean - 1) < abs(by_asymptote.mean - 1)
        level = f", trend {slope:+.3f} ± {error:.3f} for each tenfold P" if max(sizes) > min(sizes) else ""
        rows.append(
            Claim(
                "C5",
                f"the gain is σ|a| E[max] {WORDS[group]}, {of_size}",
                "it is, in any dimension (Theorem 1)",
                f"measured over predicted {ratios}; in the {100 * LEVEL:g} % band {inside} of {len(searches)}, in "
                f"that of the row {inside_row}",
                f"of N/8 draws {by_exact}, with √(2 ln 2N) for E[max] {by_asymptote}{level}",
                verdict(
                    bool(searches) and inside_row == len(searches),
                    nearer and abs(slope) <= 3 * error,
                    len(seeds_of(records)),
                ),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Every landscape at every step."""
    lines = []
    for group in GROUPS:
        for size in sorted({int(record.where["num_params"]) for record in select(records, "end", group=group)}):
            place: dict[str, Place] = {"group": group, "num_params": size}
            for step in config.steps:
                draws = int(value(records, "num_draws", **place, step=step))
                where = place | {"step": step, "n": draws}
                numbers = [str(spread(records, name, **where)) for name in ("predicted", "measured")]
                share = str(spread(records, "share", **place, step=step))
                lines.append([group, f"{size:,}", f"{draws:,}", f"{step:g}", share, *numbers])
    head = ["landscape", "P", "N", "step", "F1 share", "predicted gain / σ|a|", "measured"]
    bests = []
    for group in GROUPS:
        predicted, found = (spread(records, name, group=group) for name in ("predicted_best", "found_best"))
        inside = Spread(tuple(number for number in found.values if math.isfinite(number)))
        bests.append([WORDS[group], str(predicted), str(inside), f"{len(inside.values)} of {len(found.values)}"])
    columns = ["searches", "predicted", "found", "of which the largest gain lay between two steps"]
    return {
        f"The step that gains most, N = {config.num_draws}": (columns, bests),
        "Every landscape at every step": (head, lines),
    }


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Gain against N, against P and against the size of the step, all in units of sigma |a|."""
    figure, (by_n, by_p, by_step) = drawing.panels(3, width=3.9, height=4.0, sharey=False)
    _against_n(by_n, records, config)
    _against_p(by_p, records, config)
    _against_step(by_step, records, config)
    handles, labels = [], []
    for panel in (by_n, by_p):
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    caption = (
        "Gain of the best of N draws (both signs of each) in units of σ|a|, mean over seeds. Left: against N, at the "
        "smallest step; landscapes of ten and of a hundred thousand parameters lie on one curve, the exact expected "
        f"maximum, below the textbook asymptote. Middle: the same at N = {config.num_draws} against the number of "
        "parameters, a dot for each seed. Right: against the size of the step in units of the foretold end of the "
        "linear regime; the lines know the gradient and the curvature at the base point alone. Where they bend down "
        "the theorem's promise of more gain for a larger step ends."
    )
    return {"search_scaling": (figure, caption)}


def _against_n(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    import matplotlib as mpl

    step = config.steps[SMALLEST]
    sizes = search.subset_sizes(config.most_draws, per_octave=1)
    panel.plot(
        sizes, theory.expected_max_abs(sizes), color=drawing.PREDICTED, lw=4, alpha=0.35, label="E max|Z|, exact"
    )
    panel.plot(sizes, theory.asymptotic_max(sizes, both_signs=True), color=drawing.CONTROL, ls="--", label="√(2 ln 2N)")
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(config.planted)))
    for size, shade in zip(config.planted, shades, strict=True):
        drawing.curve(
            panel, records, "measured", "n", group="planted", num_params=size, step=step, color=shade, lw=1,
            label=f"planted, P = {size:,}",
        )  # fmt: skip
    narrow = min(int(record.where["num_params"]) for record in select(records, "end", group="width"))
    drawing.curve(
        panel, records, "measured", "n", group="width", num_params=narrow, step=step, color=drawing.MEASURED, lw=1.2,
        label=f"transformer, P = {narrow:,}",
    )  # fmt: skip
    panel.set_xscale("log")
    panel.set_xlabel("N, draws")
    panel.set_ylabel("gain / σ|a|")
    panel.set_title("more draws", loc="left")


def _against_p(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    step, n = config.steps[SMALLEST], config.num_draws
    panel.axhline(theory.expected_max_abs(n), color=drawing.PREDICTED, lw=4, alpha=0.35)
    panel.axhline(theory.asymptotic_max(n, both_signs=True), color=drawing.CONTROL, ls="--")
    looks = {"planted": ("o", drawing.PREDICTED, "planted quadratics"), "width": ("s", drawing.MEASURED, "untrained")}
    looks |= dict.fromkeys(STATES, ("^", drawing.LIMIT, "the three states"))
    for group, (marker, colour, label) in looks.items():
        found = select(records, "measured", group=group, step=step, n=n)
        places = [float(record.where["num_params"]) for record in found]
        panel.plot(places, [r.value for r in found], marker, color=colour, ms=4, alpha=0.6, label=label)
    panel.set_xscale("log")
    panel.set_ylim(0, None)
    panel.set_xlabel("P, parameters")
    panel.set_title(f"more parameters, N = {n}", loc="left")


def _against_step(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    colours = (drawing.PREDICTED, drawing.LIMIT, drawing.MEASURED)
    for state, colour in zip(STATES, colours, strict=True):
        where: dict[str, Place] = {"group": state, "n": config.num_draws}
        drawing.curve(panel, records, "predicted", "step", color=colour, ls="-", lw=1, **where)
        found = select(records, "measured", **where)
        places = [float(record.where["step"]) for record in found]
        panel.plot(places, [r.value for r in found], "o", color=colour, ms=4, alpha=0.7, label=state)
    panel.axhline(theory.expected_max_abs(config.num_draws), color=drawing.PREDICTED, lw=4, alpha=0.35)
    panel.axvline(1, color=drawing.CONTROL, lw=0.8)
    panel.set_xscale("log")
    panel.set_xlabel("step σ over the foretold end of the linear regime")
    panel.set_title(f"larger steps, N = {config.num_draws}", loc="left")
    panel.legend(fontsize=8, title="state")
