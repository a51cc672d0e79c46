"""What a sweep found, sigma by sigma and in five answers, read from its records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lacuna.reports.records import Record, select, value

LINEAR_SHARE = 0.9
"""A sigma is judged against the theory where its F1 share is above this."""


@dataclass(frozen=True)
class SigmaRow:
    """What was predicted and found at one sigma, over all N draws. Gains are in the unit of the loss.

    Attributes:
      is_linear: in the linear regime and above rounding: there the theory is judged.
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
    is_linear: bool
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
        resolved = value(records, "f1_resolved", sigma=sigma) != 0  # early runs did not say
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
                is_linear=resolved and share > LINEAR_SHARE,
                verdict=_verdict(
                    share, low, high, measured, predicted=value(records, "is_predicted") != 0, resolved=resolved
                ),
            )
        )
    return rows


def _verdict(share: float, low: float, high: float, measured: float, *, predicted: bool, resolved: bool) -> str:
    if math.isnan(measured):
        return "no finite loss"
    if math.isnan(low + high):
        return "no prediction"
    if not resolved:
        return "lost in rounding"
    side = "in band" if low <= measured <= high else "above" if measured > high else "below"
    if not predicted:
        return f"compared: {side}"
    if math.isnan(share):
        return side
    if share > LINEAR_SHARE:
        return side if side == "in band" else f"OUTSIDE: {side}"
    return f"not linear: {side}"


def answers(records: Sequence[Record]) -> dict[str, str]:
    """The five questions that a sweep is run for, each with its answer in a sentence or two.

    A question that older records cannot answer is left out.
    """
    found = {
        "Predicted": _predicted(records),
        "Found": _found(records),
        "Linear up to": _linear_up_to(records),
        "Survives": _survives(records),
        "Next": _next(records),
    }
    return {question: answer for question, answer in found.items() if answer}


def summary(records: Sequence[Record]) -> str:
    """The five answers, one a line."""
    return "\n".join(f"{question}: {answer}" for question, answer in answers(records).items())


def level(records: Sequence[Record]) -> str:
    """The probability of the predicted band, in per cent."""
    return f"{100 * value(records, 'band_level'):g} %"


def moves_in_steps(records: Sequence[Record]) -> bool:
    """Whether the loss counts right answers and has no gradient; early runs did not say, and had one."""
    return value(records, "is_smooth") == 0


def _predicted(records: Sequence[Record]) -> str:
    rows = sigma_rows(records)
    if moves_in_steps(records):
        return "Nothing: a loss that moves in steps has no gradient."
    if math.isnan(value(records, "gradient_norm")):
        return "Nothing: it was not asked for."
    if value(records, "is_predicted") == 0:
        return "The theorem is not about this noise: what it says of the Gaussian one is there to compare."
    rows = [row for row in rows if not math.isnan(row.predicted)]
    if not rows:
        return "Nothing: slope or curvature at the base point is not a finite number."
    linear = [row for row in rows if row.is_linear]
    best = max(linear or rows, key=lambda row: row.predicted)
    gain = (
        f"The best of {value(records, 'num_candidates'):,.0f} draws gains {best.predicted:.4g} at σ = {best.sigma:g}, "
        f"with a {level(records)} band from {best.low:.4g} to {best.high:.4g}."
    )
    if linear or all(math.isnan(row.f1_share) for row in rows):
        return gain
    return f"{gain} At no searched sigma is the loss linear and the step above rounding, so the theory is not tested."


def _found(records: Sequence[Record]) -> str:
    best = select(records, "top_score", rank=1)
    if not best:
        return "No candidate had a finite loss."
    where, base = best[0].where, value(records, "base_score")
    winner = (
        f"Draw {where['index']} at σ = {where['sigma']:g}, sign {where['sign']:+d}, takes the loss from {base:.6g} "
        f"to {best[0].value:.6g}, a gain of {base - best[0].value:.4g}."
    )
    tied = value(records, "num_tied")
    if tied > 0:
        others = "Another candidate has" if tied == 1 else f"{tied:,.0f} other candidates have"
        winner += f" {others} the same loss; the first of them is named."
    rows = [row for row in sigma_rows(records) if not math.isnan(row.measured)]
    rows = [row for row in rows if row.verdict not in ("no prediction", "lost in rounding")]
    judged = [row for row in rows if row.is_linear]
    known = any(not math.isnan(row.f1_share) for row in rows)
    if value(records, "is_predicted") == 0 or not rows or (known and not judged):
        return winner
    told = judged if known else rows
    inside = sum(row.verdict == "in band" for row in told)
    which = f"sigmas with an F1 share above {LINEAR_SHARE}" if known else "searched sigmas"
    same = " (of the same draws)" if len(told) > 1 else ""
    return f"{winner} At {inside} of the {len(told)} {which}{same} the measured gain lies in the band."


def _linear_up_to(records: Sequence[Record]) -> str:
    if moves_in_steps(records):
        return ""
    foretold = value(records, "predicted_sigma_star")
    known = f" Slope and curvature at the base point foretell {foretold:.2g}." if math.isfinite(foretold) else ""
    return _measured_end(records) + known


def _measured_end(records: Sequence[Record]) -> str:
    sigma_star, shares = value(records, "sigma_star"), select(records, "f1_share")
    if math.isfinite(sigma_star):
        largest = select(records, "relative_radius")[-1].where["sigma"]
        farther = ", the largest; it may reach farther" if sigma_star == largest else ""
        return f"σ* = {sigma_star:g} among the searched sigmas{farther}."
    known = [record for record in shares if not math.isnan(record.value)]
    if not shares:
        return "Not known: it takes both signs of every draw."
    if not known:
        return "Not known: it takes two draws or more with finite losses of both signs, and losses that change."
    best = max(known, key=lambda record: record.value)
    if best.value > LINEAR_SHARE:
        return "No σ* found: where the F1 share is high, F1 does not grow in proportion to σ or is lost in rounding."
    return f"No searched sigma: the F1 share is at most {best.value:.2f}, at σ = {best.where['sigma']:g}."


def _survives(records: Sequence[Record]) -> str:
    groups = select(records, "held_out_gain")
    if not groups:
        scored = select(records, "top_score")
        return "Not known: no held-out data was given." if scored else "Nothing: no candidate had a finite loss."
    if value(records, "search_gain", group=groups[0].where["group"]) <= 0:
        return "There is no gain to survive."
    groups = [record for record in groups if record.where.get("num_finite") != 0]
    if not groups:
        return "Not known: no candidate had a finite loss on all held-out data."
    told = [f"{_left(records, record)} ({str(record.where['group']).removesuffix(', mean')})" for record in groups]
    bounds = select(records, "shrinkage_low")
    known = any(math.isfinite(record.value) for record in bounds)
    interval = f", with {percent(float(bounds[0].where['level']))} intervals" if known else ""
    return f"Left of the gain on held-out data{interval}: {', '.join(told)}. Nobody selected random draws."


def _left(records: Sequence[Record], record: Record) -> str:
    """The share of a group's gain that is left, or both gains where that is not known."""
    group = record.where["group"]
    share, low, high = (value(records, f"shrinkage{end}", group=group) for end in ("", "_low", "_high"))
    if math.isnan(share):
        return f"{record.value:.4g} where the search batch gave {value(records, 'search_gain', group=group):.4g}"
    return percent(share) + ("" if math.isnan(low) else f" [{100 * low:.0f}, {100 * high:.0f}]")


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


REASONS = {
    "peak": "a parabola through the best sigma and its neighbours peaks here",
    "edge": "beside the best sigma no loss was finite, and this is half way",
    "rising": "the gain is largest at the largest searched sigma",
    "rising_to_predicted": "the gain is largest at the largest searched sigma, and is predicted to be largest here",
    "unresolved": "no searched sigma changed the loss at all",
    "falling": "the gain is largest at the smallest searched sigma",
    "falling_to_predicted": "the gain is largest at the smallest searched sigma, and is predicted to be largest here",
    "no_gain": "no searched sigma gained anything",
    "lost": "no loss was finite",
}
"""Why a sigma is to be searched next, by the word of its record."""


def _next(records: Sequence[Record]) -> str:
    found = select(records, "next_sigma")
    return f"Search σ = {found[0].value:.2g}: {REASONS[str(found[0].where['because'])]}." if found else ""
