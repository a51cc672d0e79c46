"""Figures of a sweep, drawn from its records alone.

One look for all: what was measured is dark and solid, what was predicted is blue with its band, what the
textbook asymptote says is grey and dashed, the end of the linear regime is a vermilion line, and the sigma to
search next a thin green one. The colours stay apart for colour-blind readers and in grey print.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lacuna.reports.records import Place, Record, select, value
from lacuna.reports.sweep_outcome import moves_in_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURED, PREDICTED, ASYMPTOTE, LIMIT, NEXT = "#1a1a1a", "#0072b2", "#8c8c8c", "#d55e00", "#009e73"

MARKERS = {MEASURED: "o", PREDICTED: "s", ASYMPTOTE: "D", LIMIT: "^", NEXT: "v"}
"""Of series that differ in colour, so that grey print tells them apart, too."""

STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def sweep_figures(records: Sequence[Record]) -> dict[str, "Figure"]:
    """All figures of a sweep, by file name without extension."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figures = {"gain_by_sigma": gain_by_sigma(records), "best_of_n": best_of_n(records)}
        if select(records, "f1_share") and not moves_in_steps(records):
            figures["linear_regime"] = linear_regime(records)
    return figures


def best_of_n(records: Sequence[Record]) -> "Figure":
    """The best-of-N curve at every sigma: measured over all subsets, predicted with its band, asymptote."""
    sigmas = _places(select(records, "relative_radius"), "sigma")
    sign = _sign(records)
    columns = math.ceil(len(sigmas) / max(1, round(len(sigmas) / 2))) if len(sigmas) > 1 else 1
    rows = math.ceil(len(sigmas) / columns)
    figure, axes = _subplots(rows, columns, width=4.6 * columns, height=2.9 * rows + 0.5)
    for panel, sigma in zip(axes.flat, sigmas, strict=False):
        n, measured = _curve(records, "measured_gain", "n", sigma=sigma, sign=sign)
        _, low = _curve(records, "predicted_low", "n", sigma=sigma, sign=sign)
        _, high = _curve(records, "predicted_high", "n", sigma=sigma, sign=sign)
        _, predicted = _curve(records, "predicted_gain", "n", sigma=sigma, sign=sign)
        _, asymptote = _curve(records, "asymptotic_gain", "n", sigma=sigma, sign=sign)
        if not math.isnan(value(records, "slope")):
            panel.fill_between(n, low, high, color=PREDICTED, alpha=0.18, lw=0, label=_band_label(records))
            panel.plot(n, predicted, color=PREDICTED, label="predicted, second order")
            panel.plot(n, asymptote, color=ASYMPTOTE, ls="--", label=_asymptote_label(records))
        panel.plot(n, measured, color=MEASURED, marker="o", ms=3, label="measured, mean over subsets")
        panel.set_xscale("log", base=2)
        _fit_to(panel, measured, predicted, low, high)
        share = value(records, "f1_share", sigma=sigma)
        if moves_in_steps(records):
            share = math.nan
        regime = "" if math.isnan(share) else f",  F1 share {share:.2f}" + ", not linear" * (share <= 0.9)
        panel.set_title(f"σ = {sigma:g}{regime}", color=LIMIT if share <= 0.9 else "black")
    for panel in list(axes.flat)[len(sigmas) :]:
        panel.set_axis_off()
    for panel in axes[-1]:
        panel.set_xlabel("N, draws" + (" (both signs of each)" if sign == "both" else ""))
    for panel in axes[:, 0]:
        panel.set_ylabel("gain in loss")
    _legend_above(figure, axes.flat[0], columns=2 * columns)
    return figure


def gain_by_sigma(records: Sequence[Record]) -> "Figure":
    """The gain of the whole sweep against sigma: as it is, and in units of the loss's own spread sigma |a|.

    On the right Theorem 1 is a horizontal line, the same for every model and dimension; curvature bends it.
    """
    num_candidates = int(value(records, "num_candidates"))
    sigmas, measured = _curve(records, "measured_gain", "sigma", sign=_sign(records), n=num_candidates)
    slope = value(records, "slope")
    ways = (False,) if math.isnan(slope) else (False, True)
    figure, axes = _subplots(1, len(ways), width=4.6 * len(ways), height=4.0)
    for panel, normalised in zip(axes[0], ways, strict=True):

        def draw(quantity: str, normalised: bool = normalised) -> tuple[np.ndarray, np.ndarray]:
            grid, gains = _curve(records, f"{quantity}_by_sigma", "sigma")
            return grid, gains / (slope * grid if normalised else 1.0)

        grid, low = draw("predicted_low")
        high, predicted = draw("predicted_high")[1], draw("predicted_gain")[1]
        dots = measured / (slope * sigmas) if normalised else measured
        panel.axhline(0, color="black", lw=0.6)
        if not math.isnan(slope):
            panel.fill_between(grid, low, high, color=PREDICTED, alpha=0.18, lw=0, label=_band_label(records))
            panel.plot(grid, predicted, color=PREDICTED, label="predicted, second order")
            panel.plot(*draw("first_order_gain"), color=PREDICTED, ls=":", label="predicted, first order")
            panel.plot(*draw("asymptotic_gain"), color=ASYMPTOTE, ls="--", label=_asymptote_label(records))
        panel.plot(sigmas, dots, color=MEASURED, marker="o", ms=5, lw=0, label="measured")
        searched = grid <= sigmas[-1] * 1.05
        _fit_to(panel, dots, high[searched], predicted[searched & (predicted > 0)])
        shown = [sigmas[0] / 2, sigmas[-1] * 2, *(record.value for record in select(records, "next_sigma"))]
        _scale_of_sigmas(panel, min(shown) / 1.2, max(shown) * 1.2)
        _mark_sigma_star(panel, records)
        _mark_next_sigma(panel, records)
        panel.set_xlabel(_sigma_label(records))
        panel.set_ylabel("gain / σ|a|" if normalised else f"gain in loss, best of {num_candidates:,} draws")
    _legend_above(figure, axes[0, 0], columns=5)
    return figure


def linear_regime(records: Sequence[Record]) -> "Figure":
    """Odd and even part of the loss along the noise: sizes against sigma, and the share of the odd part."""
    figure, axes = _subplots(1, 2, width=9.2, height=3.6)
    left, right = axes[0]
    sigmas, odd = _curve(records, "f1_rms", "sigma")
    _, even = _curve(records, "f2_rms", "sigma")
    _, share = _curve(records, "f1_share", "sigma")
    _, floor = _curve(records, "rounding_floor", "sigma")
    slope = value(records, "slope")
    left.loglog(sigmas, slope * sigmas, color=PREDICTED, label="σ|a|, predicted F1")
    left.loglog(sigmas, odd, color=MEASURED, marker="o", lw=0, label="F1 rms (odd part)")
    left.loglog(sigmas, even, color=LIMIT, marker="s", ms=5, lw=0.8, label="F2 rms (even part)")
    steepest = even[0] * (sigmas / sigmas[0]) ** 2 if even[0] > 0 else np.full(len(sigmas), np.nan)
    left.loglog(sigmas, steepest, color=LIMIT, ls=":", lw=1, label="slope 2")
    left.loglog(sigmas, floor * slope * sigmas, color=ASYMPTOTE, ls="--", label="rounding floor")
    for panel in (left, right):
        _scale_of_sigmas(panel, sigmas[0] / 2, sigmas[-1] * 2)
    left.set_xlabel(_sigma_label(records))
    left.set_ylabel("change in loss")
    left.legend(fontsize=8)
    right.plot(sigmas, share, color=MEASURED, marker="o")
    right.axhline(0.9, color=ASYMPTOTE, lw=0.8, ls="--")
    right.set_ylim(-0.03, 1.05)
    right.set_xlabel(_sigma_label(records))
    right.set_ylabel("F1 share")
    _mark_sigma_star(right, records)
    return figure


def _subplots(rows: int, columns: int, *, width: float, height: float) -> tuple["Figure", np.ndarray]:
    # Figure objects, not pyplot: nothing global, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _sign(records: Sequence[Record]) -> str:
    """Which curve tells the story: both signs together where the draws are antithetic."""
    return "both" if select(records, "measured_gain", sign="both") else "+"


def _band_label(records: Sequence[Record]) -> str:
    return f"predicted, {100 * value(records, 'band_level'):g} % band"


def _asymptote_label(records: Sequence[Record]) -> str:
    tries = "2N" if _sign(records) == "both" else "N"  # both signs of a draw are two tries
    return f"$\\sigma|a|\\sqrt{{2\\,\\ln {tries}}}$"


def _places(records: Sequence[Record], name: str) -> list[float]:
    return sorted({float(r.where[name]) for r in records})


def _curve(records: Sequence[Record], quantity: str, along: str, **where: Place) -> tuple[np.ndarray, np.ndarray]:
    found = sorted(select(records, quantity, **where), key=lambda r: float(r.where[along]))
    return np.asarray([float(r.where[along]) for r in found]), np.asarray([r.value for r in found])


def _fit_to(panel: "Axes", measured: np.ndarray, *others: np.ndarray) -> None:
    """Limits that show the measurement and as much of the prediction as does not dwarf it."""
    finite = measured[np.isfinite(measured)]
    if not len(finite):
        return
    span = max(np.ptp(np.append(finite, 0.0)), 1e-12)
    near = [o[np.isfinite(o) & (o > finite.min() - span) & (o < finite.max() + span)] for o in others]
    shown = np.concatenate([finite, [0.0], *near])
    margin = 0.08 * (np.ptp(shown) or 1.0)
    panel.set_ylim(shown.min() - margin, shown.max() + margin)


def _mark_sigma_star(panel: "Axes", records: Sequence[Record]) -> None:
    sigma_star = value(records, "sigma_star")
    if math.isfinite(sigma_star):
        _mark(panel, sigma_star, f"σ* = {sigma_star:g}", color=LIMIT, width=1.2, line=1)


def _mark_next_sigma(panel: "Axes", records: Sequence[Record]) -> None:
    for record in select(records, "next_sigma"):  # one, or none in earlier runs
        _mark(panel, record.value, f"next: {record.value:.2g}", color=NEXT, width=0.7, line=2)


def _mark(panel: "Axes", sigma: float, label: str, *, color: str, width: float, line: int) -> None:
    """A vertical line with a label on one of the lines below the upper edge, on the side where there is room."""
    panel.axvline(sigma, color=color, lw=width)
    low, high = panel.get_xlim()
    right = math.log(sigma / low) < 0.75 * math.log(high / low)
    panel.annotate(
        label,
        (sigma, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if right else -4, -11 * line + 1),
        textcoords="offset points",
        ha="left" if right else "right",
        color=color,
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
    )


def _scale_of_sigmas(panel: "Axes", low: float, high: float) -> None:
    """A logarithmic axis with labels that stay apart, two at least: decades, on a short axis numbers between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.xaxis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 20 * low else (1, 3)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda sigma, _: f"{sigma:g}"))


def _legend_above(figure: "Figure", panel: "Axes", *, columns: int) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _sigma_label(records: Sequence[Record]) -> str:
    """What sigma measures."""
    told = select(records, "is_predicted")
    unit = told[0].where.get("sigma_unit", "sigma") if told else "sigma"
    return {"rms_radius": "σ, rms radius", "exact_radius": "σ, radius"}.get(str(unit), "σ, per coordinate")
