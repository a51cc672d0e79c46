"""Tables and figures of steering: in the shape of the paper's Table 6, with intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import drawing
from experiments.steering_judged import points, random_level, worst_other
from lacuna.reports.claims import Spread, seeds_of, spread
from lacuna.reports.records import Place, Record, select
from lacuna.steering import MatchStatus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "contrast": drawing.MEASURED,
    "shift of a step": drawing.PREDICTED,
    "step of the weights": drawing.LIMIT,
    "random": drawing.CONTROL,
}

HEAD = ["model", "steered by", "KL, 95th percentile"]
GAINS = ["balanced accuracy, points", "paired 95 % interval", "accuracy, points", "paired 95 % interval", "AUROC"]
GAINS += ["paired 95 % interval", "signed log odds, nats", "McNemar's p, median"]
COSTS = ["other task that loses most, points", "plain text, nats a token", "KL reached on other text"]
COSTS += ["probability on the answers"]
COSTS += ["level", "strength", "matched"]


def _arms(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(record.where["arm"]) for record in select(records, "balanced_accuracy_gain")))


def _mean(records: Sequence[Record], quantity: str, **where: Place) -> Spread:
    """Over the arms of a kind first, then by seed."""
    values = [[r.value for r in select(records, quantity, seed=seed, **where)] for seed in seeds_of(records)]
    return Spread(tuple(float(np.mean(each)) for each in values if each))


def _interval(records: Sequence[Record], quantity: str, scale: float, **where: Place) -> str:
    low, high = (_mean(records, f"{quantity}_{end}", **where).mean * scale for end in ("low", "high"))
    return f"{low:.3g} to {high:.3g}"


def tables(records: Sequence[Record], config: Any) -> drawing.Tables:
    """Gains and costs of every kind of arm, at every KL."""
    model = str(records[0].where["model"])
    gains, costs = [], []
    for target in config.targets:
        for arm in _arms(records):
            where: dict[str, Place] = {"arm": arm, "target": target}
            named = [model, arm, f"{target:g}"]
            cells = []
            for metric, scale in (("balanced_accuracy", 100.0), ("accuracy", 100.0), ("auroc", 1.0)):
                found = _mean(records, f"{metric}_gain", **where)
                cells += [
                    points(found) if scale > 1 else str(found),
                    _interval(records, f"{metric}_gain", scale, **where),
                ]
            median = float(np.median(spread(records, "mcnemar_p", **where).values))
            gains.append([*named, *cells, str(_mean(records, "signed_log_odds_gain", **where)), f"{median:.2g}"])
            other, lost = worst_other(records, **where)
            several = [str(_mean(records, quantity, **where)) for quantity in ("nats_gain", "kl", "mass")]
            status = spread(records, "status", **where).values
            levels = sorted({int(value) for value in spread(records, "level", **where).values})
            strengths = [abs(value) for value in spread(records, "strength", **where).values]
            told = ", ".join(map(str, levels)) or "all of them"
            matched = f"{sum(value == MatchStatus.MATCHED for value in status)} of {len(status)}"
            costs.append([*named, f"{other}: {points(lost)}", *several, told, f"{np.mean(strengths):.3g}", matched])
        where = {"target": target}
        above = [points(random_level(records, f"{name}_gain", **where)) for name in ("balanced_accuracy", "accuracy")]
        blank = ["", above[1], "", str(random_level(records, "auroc_gain", **where)), "", "", ""]
        gains.append([model, "random, 95th percentile of a seed", f"{target:g}", above[0], *blank])
    names = ("accuracy", "balanced_accuracy", "auroc", "signed_log_odds", "positive_share", "mass")
    base = [[name.replace("_", " "), str(spread(records, name, arm="model"))] for name in names]
    for other in dict.fromkeys(str(r.where["other"]) for r in select(records, "other_accuracy")):
        base.append([f"accuracy on {other}", str(spread(records, "other_accuracy", arm="model", other=other))])
    return {
        "Gain on the target, at equal cost": ([*HEAD, *GAINS], gains),
        "What it costs": ([*HEAD, *COSTS], costs),
        "The model by itself": (["", "mean (range over seeds)"], base),
    }


def figures(records: Sequence[Record], config: Any) -> dict[str, tuple["Figure", str]]:
    """Gain against the matched cost, and what a push does along its strength."""
    num = len(seeds_of(records))
    return {
        "gains": (
            _gains(records, config),
            f"Gain on the judged questions at matched KL, means over {num} seeds with the mean paired 95 % interval; "
            "the band: random directions, each with the level and the sign that were best on other questions, 5th to "
            "95th percentile over all seeds.",
        ),
        "curves": (
            _curves(records),
            "Along the strength, as a share of the stream's norm, at each vector's chosen level: steered at all tokens "
            "(lines, range over seeds shaded) and at the last alone (dashed); of random directions the first.",
        ),
    }


def _gains(records: Sequence[Record], config: Any) -> "Figure":
    shown = {
        "balanced_accuracy": "balanced accuracy, points",
        "auroc": "AUROC",
        "signed_log_odds": "signed log odds, nats",
    }
    figure, panels = drawing.panels(3, sharey=False)
    at = np.arange(len(config.targets))
    for panel, (metric, title) in zip(panels, shown.items(), strict=True):
        scale = 100.0 if metric == "balanced_accuracy" else 1.0
        band = [[r.value for r in select(records, f"{metric}_gain", arm="random", target=t)] for t in config.targets]
        low, high = (scale * np.asarray([np.percentile(each, q) for each in band]) for q in (5, 95))
        panel.fill_between(at, low, high, color=drawing.CONTROL, alpha=0.25, lw=0, label="random directions")
        for i, (arm, colour) in enumerate(LOOKS.items()):
            if arm == "random":
                continue
            mean, below, above = (
                scale
                * np.asarray([_mean(records, f"{metric}_gain{end}", arm=arm, target=t).mean for t in config.targets])
                for end in ("", "_low", "_high")
            )
            error = np.maximum([mean - below, above - mean], 0)
            panel.errorbar(
                at + 0.08 * (i - 1), mean, error, fmt=drawing.MARKERS[colour], ms=4, color=colour, capsize=2, label=arm
            )
        panel.axhline(0, color="0.6", lw=0.8)
        panel.set_xticks(at, [f"{target:g}" for target in config.targets])
        panel.set_xlim(-0.4, len(at) - 0.6)
        panel.set_xlabel("KL, 95th percentile, nats")
        panel.set_title(f"gain in {title}")
    drawing.legend_above(figure, panels[0])
    return figure


def _curves(records: Sequence[Record]) -> "Figure":
    shown = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "mass": "probability on the answers"}
    figure, panels = drawing.panels(3, sharey=False)
    for panel, (metric, title) in zip(panels, shown.items(), strict=True):
        for arm, colour in LOOKS.items():
            drawing.curve(
                panel, records, f"curve_{metric}", "alpha", arm=arm, mask="all", color=colour, lw=1.4, label=arm
            )
            drawing.curve(
                panel, records, f"curve_{metric}", "alpha", arm=arm, mask="last", color=colour, lw=1.0, ls="--"
            )
        panel.set_xlabel("strength, share of the stream's norm")
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_title(title)
    drawing.legend_above(figure, panels[0])
    return figure
