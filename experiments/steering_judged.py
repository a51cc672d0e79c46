"""The rule for the gain and the cost of steering."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lacuna.reports.claims import Claim, Spread, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select
from lacuna.steering import MatchStatus

JUDGED = "contrast"
"""The arm that the claim is about."""


def random_level(records: Sequence[Record], quantity: str, **where: Place) -> Spread:
    """Of each seed the 95th percentile of a quantity over the random directions."""
    values = [
        [record.value for record in select(records, quantity, arm="random", seed=seed, **where)]
        for seed in seeds_of(records)
    ]
    return Spread(tuple(float(np.percentile(each, 95)) for each in values if each))


def is_above_random(records: Sequence[Record], metric: str, **where: Place) -> bool:
    """Whether the lower end of the arm's gain is above the random directions', as means over seeds."""
    low = spread(records, f"{metric}_gain_low", arm=JUDGED, **where)
    return low.mean > random_level(records, f"{metric}_gain", **where).mean


def worst_other(records: Sequence[Record], **where: Place) -> tuple[str, Spread]:
    """The other task that loses most, a mean over seeds, and its change."""
    names = dict.fromkeys(str(r.where["other"]) for r in select(records, "other_accuracy_gain", **where))
    found = {name: spread(records, "other_accuracy_gain", other=name, **where) for name in names}
    return min(found.items(), key=lambda item: item[1].mean) if found else ("none", Spread(()))


def points(change: Spread) -> str:
    """A share as points."""
    return str(Spread(tuple(round(100 * value, 9) + 0.0 for value in change.values)))  # no -1e-14, and no -0


def claims(records: Sequence[Record], config: Any) -> list[Claim]:
    """One row."""
    at: dict[str, Place] = {"target": config.chosen_at}
    gain, auroc = (spread(records, f"{name}_gain", arm=JUDGED, **at) for name in ("balanced_accuracy", "auroc"))
    low, high = (spread(records, f"balanced_accuracy_gain_{end}", arm=JUDGED, **at) for end in ("low", "high"))
    plain = spread(records, "accuracy_gain", arm=JUDGED, **at)
    other, lost = worst_other(records, arm=JUDGED, **at)
    nats = spread(records, "nats_gain", arm=JUDGED, **at)
    random = random_level(records, "balanced_accuracy_gain", **at)
    found = [status for arm in (JUDGED, "random") for status in spread(records, "status", arm=arm, **at).values]
    matched = f"{sum(status == MatchStatus.MATCHED for status in found)} of {len(found)}"
    holds, control = (is_above_random(records, name, **at) for name in ("balanced_accuracy", "auroc"))
    return [
        Claim(
            "C11",
            f"steering has a gain on its target and a cost elsewhere ({records[0].where['model']})",
            "OLMo on BoolQ: +1.2 points, -17 elsewhere",
            f"by the contrast vector, points: balanced accuracy {points(gain)}, paired interval "
            f"{100 * low.mean:.3g} to {100 * high.mean:.3g}; accuracy {points(plain)}; {other} {points(lost)}; "
            f"plain text {nats} nats",
            f"random directions, 95th percentile {points(random)} points; AUROC {auroc}, of them "
            f"{random_level(records, 'auroc_gain', **at)}; at equal cost {matched} arms",
            verdict(holds, control_holds=control, num_seeds=len(seeds_of(records))),
        )
    ]
