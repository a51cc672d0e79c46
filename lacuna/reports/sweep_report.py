"""The report of a sweep: one table, one page, redrawn from the records of its folder."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna.errors import InvalidInput
from lacuna.reports import records as record_files
from lacuna.reports import rundir
from lacuna.reports.figures import sweep_figures
from lacuna.reports.records import Record, select, value

LINEAR_SHARE = 0.9
"""A sigma is judged against the theory where its F1 share is above this."""


@dataclass(frozen=True)
class SigmaRow:
    """What was predicted and found at one sigma, over all N draws. Gains are in the unit of the loss.

    Attributes:
      verdict: by rule: `in band` or `OUTSIDE` in the linear regime; beyond it, where the measured gain fell
        all the same; and `compared` where the theorem is not about this noise.
    """

    sigma: float
    relative_radius: float
    f1_share: float
    f1_slope: float
    predicted: float
    low: float
    high: float
    asymptotic: float
    measured: float
    verdict: str


def sigma_rows(records: Sequence[Record]) -> list[SigmaRow]:
    """One row for each searched sigma, ascending."""
    sign = "both" if select(records, "measured_gain", sign="both") else "+"
    n = int(value(records, "num_candidates"))
    rows = []
    for record in select(records, "relative_radius"):
        sigma = float(record.where["sigma"])

        def gain(quantity: str, sigma: float = sigma) -> float:
            return value(records, quantity, sigma=sigma, sign=sign, n=n)

        share = value(records, "f1_share", sigma=sigma)
        low, high, measured = gain("predicted_low"), gain("predicted_high"), gain("measured_gain")
        rows.append(
            SigmaRow(
                sigma=sigma,
                relative_radius=record.value,
                f1_share=share,
                f1_slope=value(records, "f1_slope", sigma=sigma),
                predicted=gain("predicted_gain"),
                low=low,
                high=high,
                asymptotic=gain("asymptotic_gain"),
                measured=measured,
                verdict=_verdict(share, low, high, measured, predicted=value(records, "is_predicted") != 0),
            )
        )
    return rows


def _verdict(share: float, low: float, high: float, measured: float, *, predicted: bool) -> str:
    if math.isnan(measured):
        return "no finite loss"
    side = "in band" if low <= measured <= high else "above" if measured > high else "below"
    if not predicted:
        return f"compared: {side}"
    if math.isnan(share):
        return side
    if share > LINEAR_SHARE:
        return side if side == "in band" else f"OUTSIDE: {side}"
    return f"not linear: {side}"


def summary(records: Sequence[Record]) -> str:
    """The outcome in two sentences."""
    rows = sigma_rows(records)
    base, best = value(records, "base_score"), select(records, "top_score", rank=1)
    if not best:
        return "No candidate had a finite loss."
    where, gain = best[0].where, base - best[0].value
    judged = [row for row in rows if row.f1_share > LINEAR_SHARE and not row.verdict.startswith("compared")]
    inside = sum(row.verdict == "in band" for row in judged)
    sentences = [
        f"The best candidate is draw {where['index']} at σ = {where['sigma']:g}, sign {where['sign']:+d}: "
        f"loss {base:.6g} → {best[0].value:.6g}, a gain of {gain:.4g}."
    ]
    if judged:
        sentences.append(
            f"At {inside} of the {len(judged)} sigmas with an F1 share above {LINEAR_SHARE} "
            f"the measured gain lies in the predicted {_level(records)} band."
        )
    elif any(row.verdict.startswith("compared") for row in rows):
        sentences.append("The theorem is not about this noise: what it says of the Gaussian one is there to compare.")
    elif any(not math.isnan(row.f1_share) for row in rows):
        sentences.append(
            f"No searched sigma has an F1 share above {LINEAR_SHARE}: the theory is not tested; search smaller ones."
        )
    sigma_star = value(records, "sigma_star")
    if math.isfinite(sigma_star):
        sentences.append(f"The linear regime reaches σ* = {sigma_star:g} among the searched sigmas.")
    return " ".join(sentences)


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
        raise InvalidInput(f"the documents of {run} must say what was run", got=f"no `{absent[0]}`")
    to = run if to is None else to
    rundir.check_folder(to)
    figures = sweep_figures(records)
    page = _markdown(records, config, environment, list(figures))
    (to / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(to / "figures" / f"{name}.png")
    report = to / "report.md"
    report.write_text(page, encoding="utf-8")
    return report


def _continue_command(run: Path) -> str:
    try:
        by_command = "command" in rundir.read_json(run / "config.json")
    except InvalidInput:
        by_command = False
    return f"lacuna sweep --resume {shlex.quote(str(run))}" if by_command else "the program that began it, once more"


CAPTIONS = {
    "gain_by_sigma": "Gain of the whole sweep against sigma, as it is and in units of σ|a|, where Theorem 1 is a "
    "horizontal line. The dots are measured; the theory knows only the "
    "gradient and the curvature at the base point.",
    "best_of_n": "Best of N at each sigma: the mean over all subsets of N draws beside the prediction. A panel "
    "titled in red lies beyond the linear regime.",
    "linear_regime": "Odd part F1 and even part F2 of the loss along the noise (left), and the share of the odd "
    "part (right).",
}


def _markdown(
    records: Sequence[Record], config: dict[str, Any], environment: dict[str, Any], figures: Sequence[str]
) -> str:
    n = int(value(records, "num_candidates"))
    both = ", over both signs of every draw" if config.get("antithetic") else ""
    parts = [
        f"# Best of {n:,} draws: {config['title']}",
        summary(records),
        _sigma_table(records, UNITS[config.get("unit", "sigma")]),
        f"Gains are base loss minus best loss{both}. Predicted: σ|a| E[max] − σ²/2 [tr H + (m₂ − 1) uᵀHu]"
        f"{_of_what(config)}. The rule: "
        f"where the F1 share is above {LINEAR_SHARE}, the measured gain must lie in the band.",
        *[f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}*" for name in figures],
        *_held_out(records),
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


def _of_what(config: dict[str, Any]) -> str:
    """What the letters of the prediction mean, where the noise is not the plain Gaussian one."""
    family, unit = config.get("family", "gaussian"), config.get("unit", "sigma")
    if family == "gaussian" and unit == "sigma":
        return ""
    return ", where |a|, H and u are those along the noise, for a step of σ = 1"


def _sigma_table(records: Sequence[Record], unit: str) -> str:
    head = [unit, "relative radius", "F1 share", "F1 slope", "predicted gain", f"{_level(records)} band"]
    tries = "2N" if select(records, "measured_gain", sign="both") else "N"  # both signs of a draw are two tries
    head += [f"σ\\|a\\|√(2 ln {tries})", "measured gain", "verdict"]
    lines = []
    for row in sigma_rows(records):
        line = [f"{row.sigma:g}", f"{row.relative_radius:.3g}", _number(row.f1_share, ".3f")]
        measured = _number(row.measured, ".4g")
        line += [_number(row.f1_slope, ".2f"), f"{row.predicted:.4g}", f"[{row.low:.4g}, {row.high:.4g}]"]
        line += [f"{row.asymptotic:.4g}", measured and f"**{measured}**", row.verdict]
        lines.append(line)
    return _table(head, lines)


def _base_table(records: Sequence[Record]) -> str:
    trace, error = value(records, "curvature_trace"), value(records, "curvature_trace_error")
    of_noise = ", along the noise, for σ = 1" if _slope(records) else ""
    lines = [
        ["loss", f"{value(records, 'base_score'):.6g}"],
        ["parameters P", f"{value(records, 'num_params'):,.0f}"],
        ["gradient norm \\|a\\|", f"{value(records, 'gradient_norm'):.4g}"],
        ["parameter norm \\|θ\\|", f"{value(records, 'params_norm'):.4g}"],
        *_slope(records),
        [f"curvature along the gradient uᵀHu{of_noise}", f"{value(records, 'curvature_along'):.4g}"],
        [f"trace of the Hessian{of_noise}", f"{trace:.4g} ± {error:.2g}"],
        ["σ of the largest predicted gain", f"{value(records, 'predicted_best_sigma'):.3g}"],
    ]
    return _table(["quantity", "value"], lines)


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
    return _table(["", ""], lines)


def _commit(environment: dict[str, Any]) -> str:
    changed = " with uncommitted changes" if environment["dirty"] else ""
    return (environment["commit"] or "not a checkout") + changed


def _nonfinite(records: Sequence[Record]) -> str:
    counts = {r.where["sigma"]: r.value for r in select(records, "num_nonfinite") if r.value}
    where = ", ".join(f"{count:,.0f} at σ = {sigma:g}" for sigma, count in counts.items())
    return where or "none"


def _held_out(records: Sequence[Record]) -> list[str]:
    """What became of the winners on data that the search did not see."""
    lines = []
    for record in select(records, "held_out_gain"):
        group, size, num_finite = (record.where[name] for name in ("group", "size", "num_finite"))
        label = f"{group}" if num_finite == size else f"{group} ({num_finite} of {size} finite)"
        on_search = value(records, "search_gain", group=group)
        lines.append([label, _number(on_search, ".4g"), _number(record.value, ".4g")])
    if not lines:
        return []
    parts = [
        "## On data the search did not see",
        _table(["candidates", "gain on the search batch", "gain on held-out rows"], lines),
        "A winner owes a part of its gain to the batch it won on; the random candidates owe nothing.",
    ]
    metrics = select(records, "metric")
    points = list(dict.fromkeys(str(r.where["point"]) for r in metrics))
    lines = [
        [name, *(f"{value(metrics, 'metric', name=name, point=point):.4f}" for point in points)]
        for name in dict.fromkeys(str(r.where["name"]) for r in metrics)
    ]
    return [*parts, _table(["metric on held-out rows", *points], lines)] if lines else parts


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
    return ["## The best candidates", _table(["place", "draw", "σ", "sign", "loss", "gain"], lines), rule]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(x: float, spec: str) -> str:
    """`x` by a format specification, or nothing where there is no number."""
    return "" if math.isnan(x) else format(x, spec)


def _level(records: Sequence[Record]) -> str:
    return f"{100 * value(records, 'band_level'):g} %"
