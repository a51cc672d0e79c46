"""The report of a sweep: one page, redrawn from the records of its folder."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lacuna.errors import InvalidInput
from lacuna.reports import records as record_files
from lacuna.reports import rundir
from lacuna.reports.claims import table
from lacuna.reports.figures import sweep_figures
from lacuna.reports.records import Record, select, value
from lacuna.reports.sweep_outcome import LINEAR_SHARE, answers, level, moves_in_steps, percent, sigma_rows

MACHINE = ("packages", "commit", "dirty", "num_devices", "device_kind", "machine")
DOCUMENTED = ("title", "scores_sha256", *MACHINE)
"""What a report repeats from `config.json`, `result.json` and `environment.json`."""


def write_report(run: Path, to: Path | None = None) -> Path:
    """Draw the figures and write `report.md` of a run from its records.

    Args:
      run: folder of a finished sweep.
      to: another folder to write into; default: the run's own.

    Returns:
      The path of `report.md`.

    Raises:
      InvalidInput: `run` holds no records of a finished sweep.
    """
    with rundir.as_written(run):
        return _written(run, run if to is None else to)


def _written(run: Path, to: Path) -> Path:
    """The report of a sweep whose documents are as they were written."""
    if (run / "identity.json").exists() and not (run / "records.jsonl").exists():
        raise InvalidInput(
            f"{run} must be a finished sweep", got="one that was interrupted", hint=_continue_command(run)
        )
    records = record_files.read(run / "records.jsonl")
    config = rundir.read_json(run / "config.json") | rundir.read_json(run / "result.json")
    environment = rundir.read_json(run / "environment.json")
    asked, found = config.get("num_candidates"), value(records, "num_candidates")
    if asked != found or not select(records, "relative_radius"):
        raise InvalidInput(
            f"{run} must be a finished sweep of {asked} draws",
            got=f"records of {found:g}",
            hint=_continue_command(run),
        )
    absent = [name for name in DOCUMENTED if name not in config | environment]
    if absent:
        raise InvalidInput(
            f"the documents of {run} must say what was run",
            got=f"no `{absent[0]}`",
            hint="the folder as the run left it, or a new run",
        )
    rundir.check_folder(to)
    figures = sweep_figures(records)
    page = _markdown(records, config, environment, list(figures))
    (to / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(to / "figures" / f"{name}.png")
    report = to / "report.md"
    with rundir.whole_file(report) as unfinished:  # the name of a folder may be no UTF-8
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    return report


def _continue_command(run: Path) -> str:
    try:
        by_command = "command" in rundir.read_json(run / "config.json")
    except InvalidInput:
        by_command = False
    return f"lacuna sweep --resume {shlex.quote(str(run))}" if by_command else "the program that began it, once more"


CAPTIONS = {
    "gain_by_sigma": "Gain of the whole sweep against sigma, in the unit of its loss (nats for a cross-entropy) and in "
    "units of σ|a|, where Theorem 1 is a horizontal line; |a| is the norm of the gradient. The dots are measured; the "
    "theory knows only the gradient and the curvature at the base point.",
    "best_of_n": "Best of N at each sigma: the mean over all subsets of N draws beside the prediction. A panel "
    "that is called not linear lies beyond the regime that the theory is judged in.",
    "linear_regime": "Odd part F1 and even part F2 of the loss along the noise (left), and the share of the odd "
    "part (right), which is linear above the dashed line.",
}


def _markdown(
    records: Sequence[Record], config: dict[str, Any], environment: dict[str, Any], figures: Sequence[str]
) -> str:
    n = int(value(records, "num_candidates"))
    both = ", over both signs of every draw" if config.get("antithetic") else ""
    parts = [
        f"# Best of {n:,} draws: {config['title']}",
        "\n".join(f"- **{question}.** {answer}" for question, answer in answers(records).items()),
        _sigma_table(records, UNITS[config.get("unit", "sigma")]),
        f"Gains are base loss minus best loss{both}. {_rule(records, config)}",
        *[f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}*" for name in figures],
        *_held_out(records),
        *_realised(records),
        *_finalists(records, width=config.get("width", 1)),
        "## The base point",
        _base_table(records),
        "## How it was run",
        _run_table(records, config, environment),
        *([f"Run it again:\n\n```sh\n{config['command']}\n```"] if "command" in config else []),
    ]
    return "\n\n".join(parts) + "\n"


UNITS = {"sigma": "σ", "rms_radius": "σ, rms radius", "exact_radius": "σ, radius"}
"""Head of the column of sigmas, by what they measure."""


def _formula(records: Sequence[Record], config: dict[str, Any]) -> str:
    """How the gain is predicted, and what the letters mean where the noise is not the plain Gaussian one."""
    dimension = value(records, "sphere_dimension")
    if not math.isnan(dimension):
        return (
            "σ|a| m₁ − σ²/2 [m₂ uᵀHu + (1 − m₂)/(k − 1) (tr H − uᵀHu)], with a and H in the space of the noise, and "
            f"m₁, m₂ the moments of the largest coordinate on a sphere in k = {dimension:,.0f} dimensions"
        )
    plain = (config.get("family", "gaussian"), config.get("unit", "sigma")) == ("gaussian", "sigma")
    along = "" if plain else " along the noise, for a step of σ = 1"
    return (
        "σ|a| E[max] − σ²/2 [tr H + (m₂ − 1) uᵀHu], with the gradient a, its direction u and the Hessian H"
        f"{along}, and with m₂ = E[max²]"
    )


def _rule(records: Sequence[Record], config: dict[str, Any]) -> str:
    """How the gains are judged."""
    if moves_in_steps(records):
        return (
            "The loss counts wrong answers: it moves in steps, equal scores are common, and the best of many "
            "candidates owes much to luck. What it is worth is told by the rows that the search did not see."
        )
    if math.isnan(value(records, "gradient_norm")):
        return "Nothing was predicted."
    return (
        f"Predicted: {_formula(records, config)}. The rule: where the F1 share is above {LINEAR_SHARE}, the measured "
        "gain must lie in the band."
    )


def _sigma_table(records: Sequence[Record], unit: str) -> str:
    head = [unit, "relative radius", "F1 share", "F1 slope", "predicted gain", f"{level(records)} band"]
    tries = "2N" if select(records, "measured_gain", sign="both") else "N"  # both signs of a draw are two tries
    head += [f"σ|a|√(2 ln {tries})", "measured gain", "verdict"]
    lines = []
    for row in sigma_rows(records):
        odd = [_number(row.f1_share, ".3f"), _number(row.f1_slope, ".2f")]
        line = [f"{row.sigma:g}", _number(row.relative_radius, ".3g"), *(("", "") if moves_in_steps(records) else odd)]
        measured = _number(row.measured, ".4g")
        band = "" if math.isnan(row.low) else f"[{row.low:.4g}, {row.high:.4g}]"
        line += [_number(row.predicted, ".4g"), band]
        line += [_number(row.asymptotic, ".4g"), measured and f"**{measured}**", row.verdict]
        lines.append(line)
    return table(head, lines)


def _base_table(records: Sequence[Record]) -> str:
    trace, error = value(records, "curvature_trace"), value(records, "curvature_trace_error")
    of_noise = ", along the noise, for σ = 1" if _slope(records) else ""
    lines = [
        ["loss", f"{value(records, 'base_score'):.6g}"],
        ["parameters P", f"{value(records, 'num_params'):,.0f}"],
        ["parameter norm |θ|", f"{value(records, 'params_norm'):.4g}"],
    ]
    if not math.isnan(trace):
        lines += [
            ["gradient norm |a|", f"{value(records, 'gradient_norm'):.4g}"],
            *_slope(records),
            [f"curvature along the gradient uᵀHu{of_noise}", f"{value(records, 'curvature_along'):.4g}"],
            [f"trace of the Hessian{of_noise}", f"{trace:.4g} ± {error:.2g}"],
            ["σ of the largest predicted gain", f"{value(records, 'predicted_best_sigma'):.3g}"],
        ]
    return table(["quantity", "value"], lines)


def _slope(records: Sequence[Record]) -> list[list[str]]:
    """The slope along the noise, where that is not the gradient's norm."""
    slope, gradient_norm = value(records, "slope"), value(records, "gradient_norm")
    return (
        []
        if math.isclose(slope, gradient_norm, rel_tol=1e-5)
        else [["slope along the noise, for σ = 1", f"{slope:.4g}"]]
    )


def _run_table(records: Sequence[Record], config: dict[str, Any], environment: dict[str, Any]) -> str:
    rate = value(records, "evaluation_rate")
    lines = [
        ["noise", config.get("family", "gaussian")],
        ["candidates", f"{value(records, 'num_evaluations'):,.0f}"],
        ["candidates a second", _number(rate, ",.1f") or "all from the log"],
        ["losses that were not finite", _nonfinite(records)],
        ["machine", f"{environment['num_devices']} × {environment['device_kind']}; {environment['machine']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())],
        ["commit", _commit(environment)],
        *[["earlier draws", f"{_commit(one)}; {one['machine']}"] for one in environment.get("earlier", [])],
        ["SHA-256 of the score table", f"`{config['scores_sha256']}`"],
    ]
    return table(["", ""], lines)


def _commit(environment: dict[str, Any]) -> str:
    changed = " with uncommitted changes" if environment["dirty"] else ""
    return (environment["commit"] or "not a checkout") + changed


def _nonfinite(records: Sequence[Record]) -> str:
    counts = {r.where["sigma"]: r.value for r in select(records, "num_nonfinite") if r.value}
    where = ", ".join(f"{count:,.0f} at σ = {sigma:g}" for sigma, count in counts.items())
    return where or "none"


def _held_out(records: Sequence[Record]) -> list[str]:
    """What became of the winners on data that the search did not see."""
    groups = select(records, "held_out_gain")
    if not groups:
        return []
    head = ["candidates", "gain on the search batch", "gain on held-out rows"]
    told = select(records, "shrinkage_low")  # earlier runs had none
    if told:
        head += ["left", f"{percent(float(told[0].where['level']))} interval"]
    lines = []
    for record in groups:
        group, size, num_finite = (record.where[name] for name in ("group", "size", "num_finite"))
        share, low, high = (value(records, f"shrinkage{end}", group=group) for end in ("", "_low", "_high"))
        line = [f"{group}" if num_finite == size else f"{group} ({num_finite} of {size} finite)"]
        line += [_number(value(records, "search_gain", group=group), ".4g"), _number(record.value, ".4g")]
        if told:
            line += [_number(share, ".3f"), "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"]
        lines.append(line)
    parts = [
        "## On data the search did not see",
        table(head, lines),
        "A winner may owe a part of its gain to the batch it won on. Nobody selected the random candidates: theirs "
        f"differ as far as the batches do.{_batches(told)}",
    ]
    metrics = select(records, "metric")
    points = list(dict.fromkeys(str(r.where["point"]) for r in metrics))
    lines = [
        [name, *(f"{value(metrics, 'metric', name=name, point=point):.4f}" for point in points)]
        for name in dict.fromkeys(str(r.where["name"]) for r in metrics)
    ]
    return [*parts, table(["metric on held-out rows", *points], lines)] if lines else parts


def _batches(told: Sequence[Record]) -> str:
    """What the interval is of, where there is one."""
    if not any(math.isfinite(record.value) for record in told):
        return ""
    return f" The interval is that of a mean over {told[0].where['num_batches']} batches."


def _realised(records: Sequence[Record]) -> list[str]:
    """What rounding left of the steps, where weights are kept in fewer bits than float32."""
    lines = []
    for record in select(records, "realised_share"):
        sigma, leaves = record.where["sigma"], str(record.where["leaves"])
        noise, unmoved = (value(records, q, sigma=sigma, leaves=leaves) for q in ("rounding_noise", "unmoved"))
        lines.append([f"{sigma:g}", leaves, f"{record.value:.3f}", f"{noise:.3f}", f"{100 * unmoved:.2g} %"])
    if not lines:
        return []
    return [
        "## What rounding left of each step",
        table(["σ", "weights", "share realised", "noise added", "did not move"], lines),
        "Some weights are kept in fewer bits than float32, so a candidate is rounded. The share is how far the weights "
        "went along the step that was asked for, 1 where nothing is lost; the noise is the length of what rounding "
        "added across it, in units of the step's.",
    ]


def _finalists(records: Sequence[Record], width: int) -> list[str]:
    base = value(records, "base_score")
    lines = []
    for record in select(records, "top_score"):
        where = record.where
        line = [str(where["rank"]), str(where["index"]), f"{where['sigma']:g}", f"{where['sign']:+d}"]
        lines.append([*line, f"{record.value:.6g}", f"{base - record.value:.4g}"])
    if not lines:
        return []
    rule = "Ties go to the lower draw, then the smaller σ, then the sign +."
    if width > 1:
        rule += f" The sweep ran {width} candidates wide; four times as many finalists were scored again one by one."
    best = table(["place", "draw", "σ", "sign", "loss", "gain"], lines)
    return [f"<details><summary>The {len(lines)} best candidates</summary>", best, rule, "</details>"]


def _number(x: float, spec: str) -> str:
    """`x` by a format specification, or nothing where there is no number."""
    return "" if math.isnan(x) else format(x, spec)
