"""How searches around language models are judged: intervals over seeds, and what the theory foretells."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lacuna import theory
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select, value

LEVEL = 0.95
"""Of the intervals over seeds."""

MOST = 10.0**12
"""Draws beyond which none are counted."""

OBJECTIVES = {"nats": "nats", "accuracy": "right answers"}
"""What is judged, in words."""


class Interval(NamedTuple):
    """Student's interval of a mean over seeds; infinite for one seed alone."""

    low: float
    mean: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of a number of each seed."""
        from scipy.special import stdtrit

        num, mean = len(values), float(np.mean(values)) if values else math.nan
        if num < 2:
            return cls(-math.inf, mean, math.inf)
        half_width = float(stdtrit(num - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / math.sqrt(num))
        return cls(mean - half_width, mean, mean + half_width)

    def __str__(self) -> str:
        return f"{self.mean:.2g} [{self.low:.2g}, {self.high:.2g}]" if math.isfinite(self.low) else f"{self.mean:.2g}"


def of_group(records: Sequence[Record], quantity: str, **where: Place) -> list[float]:
    """A quantity of each seed, in their order."""
    return [value(records, quantity, seed=seed, **where) for seed in seeds_of(records)]


def distance(records: Sequence[Record], one: dict[str, Place], other: dict[str, Place], **where: Place) -> Interval:
    """How much more one group gains on held-out rows than another, paired by seed."""
    gains = [of_group(records, "held_out_gain", **where, **group) for group in (one, other)]
    return Interval.of([a - b for a, b in zip(*gains, strict=True)])


def places_of(records: Sequence[Record]) -> list[str]:
    """Those that were searched, in the order of the records."""
    return list(dict.fromkeys(str(record.where["place"]) for record in select(records, "held_out_gain", group="top")))


def claims(records: Sequence[Record], config: Any) -> list[Claim]:
    """One row for each model and objective."""
    rows = []
    for place in places_of(records):
        for objective, words in OBJECTIVES.items():
            at: dict[str, Place] = {"place": place, "objective": objective}
            if not select(records, "held_out_gain", **at):
                continue
            top: dict[str, Place] = {"objective": objective, "group": "top"}
            gain = Interval.of(of_group(records, "held_out_gain", place=place, **top))
            beyond = distance(records, top, {"objective": objective, "group": "random"}, place=place)
            random, winner = (spread(records, "held_out_gain", **at, group=group) for group in ("random", "winner"))
            searched = spread(records, "search_gain", **at, group="top")
            length, greedy, blind = (
                spread(records, name, **at) for name in ("chosen_radius", "greedy_gain", "greedy_radius")
            )
            control = f"{config.top_k} random candidates of that length {random}; distance {beyond}"
            holds = beyond.low > 0
            if objective == "accuracy":
                chance: dict[str, Place] = {"objective": "shuffled labels", "group": "top"}
                against = distance(records, top, chance, place=place)
                found = {
                    name: spread(records, name, place=place, **chance) for name in ("search_gain", "held_out_gain")
                }
                control += (
                    f"; shuffled labels gain {found['search_gain']} on scored rows and {found['held_out_gain']} on "
                    f"held-out ones, distance {against}"
                )
                holds = holds and against.low > 0
            elif (bias := spread(records, "bias_gain", place=place)).values:
                control += f"; one fitted number for each answer, and no search: {bias}"
            rows.append(
                Claim(
                    "C13",
                    f"random search lowers the loss on held-out rows: {place}, by {words}",
                    "random search works on language models (no figure known to us)",
                    f"mean gain of the top {config.top_k}, 95 % interval over seeds: {gain}, at length {length}; the "
                    f"winner {winner}; on scored rows the top {config.top_k} {searched}; at the length that is best on "
                    f"scored rows, {blind}, on held-out ones {greedy}",
                    control,
                    verdict(gain.low > 0, holds, len(seeds_of(records))),
                )
            )
    return rows


class Shape(NamedTuple):
    """A landscape along Gaussian steps, in units of the weights' norm.

    Attributes:
      slope: of the loss; its standard deviation for a step of one.
      trace: `tr H`.
      along: `u^T H u`.
      trace_error: standard error of the trace.
      curvature_spread: standard deviation of `z^T H z`.
    """

    slope: float
    trace: float
    along: float
    trace_error: float
    curvature_spread: float

    @classmethod
    def of(cls, records: Sequence[Record], **where: Place) -> "Shape":
        """Of one seed, or on average over them."""
        return cls(*(spread(records, name, **where).mean for name in cls._fields))

    def gain(self, n: Any, radius: float) -> Float[np.ndarray, "..."]:
        """Of the best of n, both signs of each, as foretold."""
        return np.asarray(theory.best_of_n_gain(n, radius, self.slope, self.trace, self.along, both_signs=True))

    def band(self, n: Any, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """In which one search ends with a probability of 0.99."""
        law = {"both_signs": True, "level": 0.99, "curvature_trace_error": self.trace_error}
        low, high = theory.best_of_n_band(n, radius, self.slope, self.trace, self.along, **law)
        return np.asarray(low), np.asarray(high)

    def improving(self, radius: float | Float[np.ndarray, "n"]) -> Float[np.ndarray, "..."]:
        """The share of candidates whose loss is lower: `Phi(-σ tr H / 2 / sqrt(|a|² + σ² s² / 4))`.

        To second order the change is `σ <a, z> + σ²/2 z^T H z`, of mean `σ²/2 tr H`; it is taken to be normal, and its
        two parts to be uncorrelated, as they are for normal z.
        """
        from scipy.special import ndtr

        radius = np.asarray(radius, np.float64)
        return ndtr(-radius / 2 * self.trace / np.hypot(self.slope, radius / 2 * self.curvature_spread))

    def draws_for(self, gain: float, radius: float) -> float:
        """How many Gaussian draws gain as much at this step, as foretold; infinite beyond `MOST`."""
        sizes = np.unique(np.rint(np.geomspace(1, MOST, 241)).astype(np.int64))
        gains = self.gain(sizes, radius)
        if not gain <= gains.max():
            return math.inf
        if gain <= gains[0]:
            return 1.0
        first = int(np.argmax(gains >= gain))
        return float(np.exp(np.interp(gain, gains[first - 1 : first + 1], np.log(sizes[first - 1 : first + 1]))))


class Worth(NamedTuple):
    """What a family gains beside Gaussian steps of one sigma, at one length and number of draws.

    Attributes:
      ratio: of its gain to that which is foretold of them, over seeds.
      draws: how many Gaussian ones gain as much, as foretold on average: at the ratio and at both ends of its interval.
    """

    ratio: Interval
    draws: tuple[float, float, float]


def worth(records: Sequence[Record], place: str, family: str, radius: float, n: int) -> Worth:
    """Of a family at a length, the best of n draws."""
    ratios = []
    for seed in seeds_of(records):
        foretold = float(Shape.of(records, seed=seed, place=place).gain(n, radius))
        ratios.append(value(records, "gain", seed=seed, place=place, family=family, radius=radius, n=n) / foretold)
    ratio, shape = Interval.of(ratios), Shape.of(records, place=place)
    foretold = float(shape.gain(n, radius))
    low, mean, high = (shape.draws_for(end * foretold, radius) for end in ratio)
    return Worth(ratio, (low, mean, high))
