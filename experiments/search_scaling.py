"""C5: the gain of best-of-N search is sigma times the gradient's norm times the maximum of N normals, in any dimension.

Paper: arXiv 2606.10929, Theorem 1. The best of N Gaussian steps of size sigma gains sigma |a| E[max of N normals]:
the number of parameters does not enter. What ends it is curvature, whose trace grows with the dimension. Steps are
given in units of the sigma at which the gradient and the Hessian's trace foretell the end of the linear regime, and
gains in units of sigma |a|, so that landscapes of any size and steepness share one figure. Searches: planted
quadratics with |a| = 1 and N to 1e5, untrained transformers of growing width, and three states of the trained one.
Expect: measured over predicted near 1, for one search of N = 256 with a spread of 0.12, that of a maximum.
About six minutes on two cores of an AMD EPYC, less the training of the states. `python -m experiments
search-scaling:small`. `smoke` shrinks the training, the landscapes, the draws and the seeds.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import drawing
from experiments.recoveries import StartSpec, Told, starting_point
from experiments.scaling_judged import FEW, LEVEL, Shape, control, judged, shape_of
from experiments.searches import PROGRAMS, SEARCH_STEP, STATES, known_landscape, noise_seed, scored_rows
from experiments.trajectory_prefix import SMOKE_START
from lacuna import keys, search, theory
from lacuna.errors import InvalidInput
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
    "Theorem 1: the best of N random steps of standard deviation σ in each coordinate lowers the loss by σ|a| E[max of "
    "N normals], a the gradient, whatever the number P of parameters. Here both signs of each draw are tried, so the "
    "maximum is that of |Z|; it is exact, and √(2 ln 2N) stands beside it. Every search was predicted from gradient "
    "and curvature at its base point before a step was taken. Steps are in units of the σ at which these foretell "
    "the end of the linear regime, gains in units of σ|a|: so all gradients count as one. On planted quadratics the "
    "theorem is mathematics, and what is tested is the code. The rule: wherever the odd part of the loss holds more "
    "than 0.9 of the squares (the F1 share), the measured gain lies in the predicted band, made so wide that all "
    "searches and steps of a row lie inside with a probability of 0.99 or more. The band of one search is wide; the "
    "control is sharper: the mean gain of 8 of the first draws, over all subsets and searches, agrees with the exact "
    "maximum to its 99 % interval or 2 %, does not agree with the asymptote, and changes by less than 5 % for each "
    "tenfold P (with twice its error)."
)

GROUPS = ("planted", "width", *STATES)
"""Rows of the claim table."""


@dataclass(frozen=True)
class Config:
    """Best-of-N searches.

    Attributes:
      num_seeds: seeds 0, 1, ... of models, data, landscapes and noise.
      steps: sizes of the steps in units of the foretold end of the linear regime, ascending, two or more.
      num_draws: N; each draw is tried with both signs.
      most_draws: N at the smallest step on the planted landscapes and on the narrowest transformer.
      planted: numbers of parameters of the planted quadratics.
      most_numbers: normals that a planted search may draw; larger landscapes are searched with fewer draws.
      widths: of the untrained transformers, of one layer.
      num_rows: rows of the scored batch.
      num_probes: Hessian products for the trace.
      start: the three states.

    Raises:
      InvalidInput: steps that do not ascend, or draws out of order.
    """

    num_seeds: int = 5
    steps: tuple[float, ...] = (0.1, 0.3, 0.7, 3.0, 10.0)
    num_draws: int = 256
    most_draws: int = 100_000
    planted: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)
    most_numbers: int = 200_000_000
    widths: tuple[int, ...] = (16, 64, 128, 256)
    num_rows: int = 8
    num_probes: int = 32
    start: StartSpec = field(default_factory=StartSpec)

    def __post_init__(self) -> None:
        if len(self.steps) < 2 or self.steps[0] <= 0 or np.any(np.diff(self.steps) <= 0):
            raise InvalidInput("steps must be two or more, positive and ascending", got=self.steps, hint="0.1 1")
        if not FEW <= self.num_draws <= self.most_draws:
            raise InvalidInput(
                f"num_draws must be at least {FEW} and at most most_draws", got=(self.num_draws, self.most_draws)
            )


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
    """A gradient of length one, and curvatures of many sizes whose sum is 10 at any P."""
    rng = np.random.default_rng((seed, size))
    gradient, wild = rng.normal(size=(2, size))
    curvature = 10 / size + (wild - wild.mean()) * 20 / size / np.sqrt(10)
    return jnp.float32(gradient / np.linalg.norm(gradient)), jnp.float32(curvature)


@functools.cache
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
    end = known.predicted_sigma_star
    unit = end / known.gradient_norm
    shape = Shape(known.curvature_trace * unit, known.curvature_along * unit, known.curvature_trace_error * unit)
    best = float(theory.best_sigma(config.num_draws, 1.0, shape.trace, shape.along, both_signs=True))
    found = [Record(NAME, name, number, "|a|/end") for name, number in shape._asdict().items()]
    found.append(Record(NAME, "gradient_norm", known.gradient_norm, "loss/parameter"))
    found.append(Record(NAME, "end", end, "parameter"))
    parts = {config.steps: most_draws}
    if most_draws > config.num_draws:
        parts = {config.steps[:1]: most_draws, config.steps[1:]: config.num_draws}
    gains: list[float] = []
    for steps, num_draws in parts.items():
        name = noise_seed(NAME, seed, group, known.num_params, len(steps))
        sweep = search.Sweep(search.gaussian(), tuple(step * end for step in steps), num_draws, seed=name)
        result = search.run_sweep(loss, params, batch, sweep, programs=PROGRAMS)
        found += _measured(config, result, steps, known.gradient_norm)
        whole = search.measured_curves(result.base_score, result.scores, np.asarray([config.num_draws]))
        gains += whole["both"][0].tolist()
    peak = search.next_sigma(config.steps, np.asarray(gains), predicted_best=best)
    found.append(Record(NAME, "predicted_best", best, "end"))
    found.append(Record(NAME, "found_best", peak.sigma if peak.because == "peak" else math.nan, "end"))
    return [replace(record, where=where | record.where) for record in found]


def _measured(
    config: Config, result: search.SweepResult, steps: tuple[float, ...], gradient_norm: float
) -> list[Record]:
    """Gains in units of sigma |a|, and the share of the odd part."""
    found, num_draws = [], result.sweep.num_candidates
    plus, minus = result.scores[..., 0], result.scores[..., 1]
    regime = theory.linear_regime(np.float32(result.sweep.sigmas), plus, minus, result.base_score)

    def gains(j: int, num: int, sizes: Int[np.ndarray, "sizes"]) -> list[float]:
        scores = result.scores[:num, j : j + 1]
        curve = search.measured_curves(result.base_score, scores, sizes)["both"][:, 0]
        return (curve / (result.sweep.sigmas[j] * gradient_norm)).tolist()

    for j, step in enumerate(steps):
        sizes = np.asarray([num_draws])
        if step == config.steps[0]:
            sizes = search.subset_sizes(num_draws, per_octave=1)
            (few,) = gains(j, config.num_draws, np.asarray([FEW]))
            found.append(Record(NAME, "gain_of_few", few, "σ|a|", {"step": step}))
        found.append(Record(NAME, "num_draws", float(num_draws), "1", {"step": step}))
        found.append(Record(NAME, "share", float(regime.share[j]), "1", {"step": step}))
        for n, gain in zip(sizes.tolist(), gains(j, num_draws, sizes), strict=True):
            found.append(Record(NAME, "gain", gain, "σ|a|", {"step": step, "n": n}))
    return found


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
        searches, few = judged(records, group), control(records, group)
        of_row = 1 - (1 - LEVEL) / max(1, len(searches))
        inside, inside_row = (sum(one.inside(level) for one in searches) for level in (LEVEL, of_row))
        seeds = sorted({one.seed for one in searches})
        ratios = [[one.measured / one.predicted for one in searches if one.seed == seed] for seed in seeds]
        sizes = sorted({int(record.where["num_params"]) for record in select(records, "end", group=group)})
        several = len(sizes) > 1
        trend = f"; {few.trend:+.3f} ± {few.trend_error:.3f} for each tenfold P" if several else ""
        rows.append(
            Claim(
                "C5",
                f"the gain is σ|a| E[max] {WORDS[group]}, P = {sizes[0]:,}" + f" to {sizes[-1]:,}" * several,
                "it is, in any dimension (Theorem 1)",
                f"measured over predicted {Spread(tuple(float(np.mean(each)) for each in ratios))}; in the "
                f"{100 * LEVEL:g} % band of its own {inside} of {len(searches)}, in that of the row {inside_row}",
                f"of {FEW} draws {few.exact}, with √(2 ln 2N) for E[max] {few.asymptotic}{trend}",
                verdict(bool(searches) and inside_row == len(searches), few.holds(), len(seeds_of(records))),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Which step gains most, and every landscape at every step."""
    bests = []
    for group in GROUPS:
        predicted, found = (spread(records, name, group=group) for name in ("predicted_best", "found_best"))
        inside = Spread(tuple(number for number in found.values if math.isfinite(number)))
        bests.append([WORDS[group], str(predicted), str(inside), f"{len(inside.values)} of {len(found.values)}"])
    lines = []
    for group in GROUPS:
        for size in sorted({int(record.where["num_params"]) for record in select(records, "end", group=group)}):
            place: dict[str, Place] = {"group": group, "num_params": size}
            shape = shape_of(records, **place)
            for step in config.steps:
                n = int(value(records, "num_draws", **place, step=step))
                numbers = f"{float(shape.gain(n, step)):.3g}", str(spread(records, "gain", **place, step=step, n=n))
                share = str(spread(records, "share", **place, step=step))
                lines.append([group, f"{size:,}", f"{n:,}", f"{step:g}", share, *numbers])
    columns = ["searches", "predicted", "found", "of which the largest gain lay between two steps"]
    head = ["landscape", "P", "N", "step", "F1 share", "predicted gain / σ|a|", "measured"]
    return {
        f"The step that gains most, N = {config.num_draws}, in units of the foretold end": (columns, bests),
        "Every landscape at every step": (head, lines),
    }


COLOURS = dict(zip(STATES, (drawing.PREDICTED, drawing.LIMIT, "#009e73"), strict=True))


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Gain against N, against P and against the size of the step."""
    figure, (by_n, by_p, by_step) = drawing.panels(3, width=4.0, height=4.3, sharey=False)
    _against_n(by_n, records, config)
    _against_p(by_p, records, config)
    _against_step(by_step, records, config)
    caption = (
        "The best of N random steps of size σ per coordinate around a point with gradient a and P parameters, both "
        "signs of each draw tried. Left: the gain in units of σ|a| against N, mean over seeds, at the smallest step: "
        "whatever P is, it follows the exact expected maximum of N normals and not its textbook asymptote (curves end "
        "where the search of a large landscape ended; shaded: where one search ends up in 99 % of all cases). Middle: "
        f"the same for the best of {FEW} out of {config.num_draws} draws against P, a marker for each search. "
        "Right: the gain itself, in units of |a| times the σ at which the linear regime is foretold to end, against σ "
        "in that unit. The straight line is Theorem 1: twice the step, twice the gain. The curves, with the band of "
        "one search, know the curvature at the base point, too; dots are measured, dotted lines mark the foretold best "
        "step. Left of 1 the theorem is to hold; beyond it the gain grows more slowly than the step, has a largest "
        "value, and is lost."
    )
    return {"search_scaling": (figure, caption)}


def _against_n(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    import matplotlib as mpl

    sizes = search.subset_sizes(config.most_draws, per_octave=1)
    low, high = (theory.max_quantile(sizes, q, both_signs=True) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    panel.fill_between(sizes, low, high, color=drawing.CONTROL, alpha=0.15, lw=0)
    panel.plot(sizes, theory.expected_max_abs(sizes), color=drawing.PREDICTED, lw=5, alpha=0.35, label="exact E[max]")
    panel.plot(sizes, theory.asymptotic_max(sizes, both_signs=True), color=drawing.CONTROL, ls="--", label="√(2 ln 2N)")
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(config.planted)))
    lines = [("planted", p, shade, f"planted, P = {p:,}") for p, shade in zip(config.planted, shades, strict=True)]
    narrow = min(int(record.where["num_params"]) for record in select(records, "end", group="width"))
    lines.append(("width", narrow, drawing.MEASURED, f"transformer, P = {narrow:,}"))
    for group, size, colour, label in lines:
        found = select(records, "gain", group=group, num_params=size, step=config.steps[0])
        places = sorted({int(record.where["n"]) for record in found})
        means = [np.mean([record.value for record in found if record.where["n"] == n]) for n in places]
        panel.plot(places, means, color=colour, lw=1.2, ls="--" if group == "width" else "-", label=label)
    panel.set_xscale("log")
    panel.set_xlabel("N, draws")
    panel.set_ylabel("gain / σ|a|")
    panel.set_title("more draws")
    panel.legend(fontsize=7.5)


def _against_p(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    panel.axhline(theory.expected_max_abs(FEW), color=drawing.PREDICTED, lw=5, alpha=0.35)
    panel.axhline(theory.asymptotic_max(FEW, both_signs=True), color=drawing.CONTROL, ls="--")
    looks = {"planted": ("o", drawing.CONTROL), "width": ("s", drawing.MEASURED)}
    looks |= {state: (drawing.MARKERS[colour], colour) for state, colour in COLOURS.items()}
    labels = {"planted": "planted quadratics", "width": "untrained transformers"}
    for group, (marker, colour) in looks.items():
        found = select(records, "gain_of_few", group=group)
        places = [float(record.where["num_params"]) for record in found]
        label = labels.get(group, group)
        panel.plot(places, [r.value for r in found], marker, color=colour, ms=4, alpha=0.7, label=label)
    panel.set_xscale("log")
    panel.set_ylim(0, None)
    panel.set_xlabel("P, parameters")
    panel.set_ylabel("gain / σ|a|")
    panel.set_title(f"more parameters, best of {FEW}")
    panel.legend(fontsize=7.5)


def _against_step(panel: "Axes", records: Sequence[Record], config: Config) -> None:
    grid, n = np.geomspace(config.steps[0] / 1.3, config.steps[-1] * 1.3, 60), config.num_draws
    exact = float(theory.expected_max_abs(n))
    panel.plot(grid, exact * grid, color=drawing.PREDICTED, lw=5, alpha=0.35, label="σ|a| E[max]")
    for state, colour in COLOURS.items():
        shape = shape_of(records, group=state)
        low, high = (grid * edge for edge in shape.band(n, grid, LEVEL))
        panel.fill_between(grid, np.maximum(low, 1e-3), np.maximum(high, 1e-3), color=colour, alpha=0.12, lw=0)
        predicted = grid * shape.gain(n, grid)
        panel.plot(grid, np.where(predicted > 0, predicted, np.nan), color=colour, lw=1.2, label=f"{state}, predicted")
        panel.axvline(spread(records, "predicted_best", group=state).mean, color=colour, ls=":", lw=1)
        found = select(records, "gain", group=state, n=n)
        steps = np.asarray([float(record.where["step"]) for record in found])
        panel.plot(steps, steps * [r.value for r in found], drawing.MARKERS[colour], color=colour, ms=4, alpha=0.7)
    panel.axvline(1, color=drawing.CONTROL, lw=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(grid[0], grid[-1])
    panel.set_ylim(exact * config.steps[0] / 2, exact * config.steps[-1])
    panel.set_xlabel("σ over the foretold end of the linear regime")
    panel.set_ylabel("gain / (|a| foretold end)")
    panel.set_title(f"larger steps, N = {n}")
    panel.legend(fontsize=7.5)
