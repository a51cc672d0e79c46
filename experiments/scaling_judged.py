"""How the searches of a scaling experiment are judged: their bands, and what the best of few draws says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lacuna import theory
from lacuna.reports.claims import spread
from lacuna.reports.records import Place, Record, select, value

LEVEL = 0.99
"""Probability that all searches of a row lie in their bands; and of the control's intervals."""

FEW = 8
"""Draws of the control: the best of few out of many is known well, and there the asymptote is far off."""

TOLERANCE, TREND = 0.02, 0.05
"""What the control may be off by: the mean, and the change for each tenfold P."""


class Shape(NamedTuple):
    """A landscape in units in which the gradient's norm and the foretold end of the linear regime are one.

    Attributes:
      trace: `tr H`.
      along: `u^T H u`.
      trace_error: standard error of the trace.
    """

    trace: float
    along: float
    trace_error: float

    def gain(self, n: int, step: float | np.ndarray) -> Float[np.ndarray, "..."]:
        """Predicted, in units of sigma |a|."""
        return np.asarray(theory.best_of_n_gain(n, step, 1.0, self.trace, self.along, both_signs=True)) / step

    def band(self, n: int, step: float | np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """In which the measured gain lies with this probability, in units of sigma |a|."""
        low, high = theory.best_of_n_band(
            n, step, 1.0, self.trace, self.along, both_signs=True, level=level, curvature_trace_error=self.trace_error
        )
        return np.asarray(low) / step, np.asarray(high) / step


def shape_of(records: Sequence[Record], **where: Place) -> Shape:
    """Of one search, or on average over seeds."""
    return Shape(*(spread(records, name, **where).mean for name in Shape._fields))


@dataclass(frozen=True)
class Judged:
    """One search at one step in the linear regime.

    Attributes:
      seed: of the search.
      measured: gain in units of sigma |a|.
      predicted: the same.
      shape: of the landscape.
      step: in units of the foretold end.
      num_draws: N.
    """

    seed: int
    measured: float
    predicted: float
    shape: Shape
    step: float
    num_draws: int

    def inside(self, level: float) -> bool:
        """Whether the measured gain lies in the band of this probability."""
        low, high = self.shape.band(self.num_draws, self.step, level)
        return bool(low <= self.measured <= high)


def judged(records: Sequence[Record], group: str) -> list[Judged]:
    """Every search of a group, at every step where the F1 share is above 0.9."""
    rows = []
    for record in select(records, "share", group=group):
        if record.value > theory.SHARE:
            step, n = float(record.where["step"]), int(value(records, "num_draws", **record.where))
            shape = shape_of(records, **{name: record.where[name] for name in ("seed", "group", "num_params")})
            measured = value(records, "gain", **record.where, n=n)
            predicted = float(shape.gain(n, step))
            rows.append(Judged(int(record.where["seed"]), measured, predicted, shape, step, n))
    return rows


@dataclass(frozen=True)
class Mean:
    """A mean with its Student interval of probability `LEVEL`."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of independent measurements; the interval of one alone is infinite."""
        from scipy.special import stdtrit

        if len(values) < 2:
            return cls(float(np.mean(values)) if values else math.nan, math.inf)
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        return cls(float(np.mean(values)), float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * error))

    def holds_one(self) -> bool:
        """Whether it agrees with one."""
        return abs(self.mean - 1) <= self.half_width + TOLERANCE

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}" if math.isfinite(self.half_width) else f"{self.mean:.3f}"


class Control(NamedTuple):
    """What the best of few draws says, over the searches of a group.

    Attributes:
      exact: measured over predicted.
      asymptotic: the same with the asymptote in the place of the exact maximum.
      trend: change of the first for each tenfold P; zero where P does not vary.
      trend_error: its standard error.
    """

    exact: Mean
    asymptotic: Mean
    trend: float
    trend_error: float

    def holds(self) -> bool:
        """The rule."""
        flat = abs(self.trend) + 2 * self.trend_error < TREND
        return self.exact.holds_one() and not self.asymptotic.holds_one() and flat


def control(records: Sequence[Record], group: str) -> Control:
    """Of a group, at the smallest step."""
    exact, asymptote = theory.expected_max_abs(FEW), theory.asymptotic_max(FEW, both_signs=True)
    logs, ratios, others = [], [], []
    for record in select(records, "gain_of_few", group=group):
        shape = shape_of(records, **{name: record.where[name] for name in ("seed", "group", "num_params")})
        predicted = float(shape.gain(FEW, float(record.where["step"])))
        logs.append(math.log10(record.where["num_params"]))
        ratios.append(record.value / predicted)
        others.append(record.value / (predicted - exact + asymptote))
    return Control(Mean.of(ratios), Mean.of(others), *trend_of(np.asarray(logs), np.asarray(ratios)))


def trend_of(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Slope of a straight line and its standard error; zeros where x does not vary."""
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return 0.0, 0.0
    size = np.sum((x - x.mean()) ** 2)
    slope = np.sum((x - x.mean()) * y) / size
    rest = y - y.mean() - slope * (x - x.mean())
    return float(slope), float(np.sqrt(np.sum(rest**2) / (len(x) - 2) / size))
