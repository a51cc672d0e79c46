"""What a sweep's scores say, beside what the theory said they would: everything a report needs, as records."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from lacuna import theory
from lacuna.reports.records import Record, value
from lacuna.search.landscape import Landscape
from lacuna.search.next_sigma import next_sigma
from lacuna.search.select import measured_curves, subset_sizes
from lacuna.search.sweep import Sweep, SweepResult

EXPERIMENT = "sweep"

BAND_LEVEL = 0.99
"""Probability that the winner's step along the gradient lies in the predicted band."""

SIGMAS_A_DECADE = 24
"""How finely the predicted gain is drawn between the searched sigmas."""


def sweep_records(result: SweepResult, landscape: Landscape) -> list[Record]:
    """All numbers of a sweep's report: measured, predicted, where the linear regime ends, where to search next.

    Gains are base score minus best score, in the unit of the loss. The measured curve is the exact mean
    over all subsets of N' draws; with antithetic draws it is given for both signs together and for each
    alone. Predictions are those of `lacuna.theory` from the gradient and curvature at the base point.

    Args:
      result: the finished sweep.
      landscape: of the same loss on the same batch.
    """
    found = [
        *_base(result, landscape),
        *_regime(result, landscape),
        *_curves(result, landscape),
        *_gain_by_sigma(result, landscape),
    ]
    return [*found, _next(result.sweep, found), *_top(result)]


def _record(quantity: str, number: object, unit: str = "1", **where: str | int | float) -> Record:
    return Record(EXPERIMENT, quantity, float(np.asarray(number)), unit, where)


def _base(result: SweepResult, landscape: Landscape) -> Iterator[Record]:
    sweep = result.sweep
    yield _record("base_score", result.base_score, "loss")
    yield _record("num_candidates", sweep.num_candidates)
    yield _record("num_evaluations", sweep.num_evaluations)
    yield _record("band_level", BAND_LEVEL)
    yield _record("num_params", landscape.num_params)
    yield _record("gradient_norm", landscape.gradient_norm, "loss")
    yield _record("slope", landscape.slope, "loss")
    yield _record("is_predicted", landscape.is_predicted, sigma_unit=sweep.unit)
    if landscape.dimension is not None:
        yield _record("sphere_dimension", landscape.dimension)
    elif landscape.is_predicted:
        yield _record("predicted_sigma_star", landscape.predicted_sigma_star)
    yield _record("params_norm", landscape.params_norm)
    yield _record("curvature_along", landscape.curvature_along, "loss")
    yield _record("curvature_trace", landscape.curvature_trace, "loss")
    yield _record("curvature_trace_error", landscape.curvature_trace_error, "loss")
    if result.num_scored:
        evaluations = result.num_scored * len(sweep.sigmas) * sweep.num_signs
        yield _record("evaluation_rate", evaluations / result.wall_s, "1/s")


def _regime(result: SweepResult, landscape: Landscape) -> Iterator[Record]:
    sweep = result.sweep
    for j, sigma in enumerate(sweep.sigmas):
        yield _record("num_nonfinite", np.sum(~np.isfinite(result.scores[:, j])), sigma=sigma)
        radius = sigma * landscape.step_norm / landscape.params_norm if landscape.params_norm else np.nan
        yield _record("relative_radius", radius, sigma=sigma)
    if not sweep.antithetic:
        return  # an odd part needs both signs
    plus, minus = result.scores[..., 0], result.scores[..., 1]
    regime = theory.linear_regime(np.asarray(sweep.sigmas, np.float32), plus, minus, result.base_score)
    for j, sigma in enumerate(sweep.sigmas):
        yield _record("f1_rms", regime.f1_rms[j], "loss", sigma=sigma)
        yield _record("f2_rms", regime.f2_rms[j], "loss", sigma=sigma)
        yield _record("f1_share", regime.share[j], sigma=sigma)
        yield _record("f1_resolved", regime.resolved[j], sigma=sigma)
        yield _record("f1_slope", regime.f1_slope[j], sigma=sigma)
        yield _record("f2_slope", regime.f2_slope[j], sigma=sigma)
        floor = theory.rounding_floor(result.base_score, sigma, landscape.slope)
        yield _record("rounding_floor", floor, sigma=sigma)
    # sigma_star is one of the searched sigmas: give it as the user wrote it, not as float32 rounds it.
    found = np.asarray(regime.sigmas) == np.asarray(regime.sigma_star)
    yield _record("sigma_star", np.asarray(sweep.sigmas)[found][0] if found.any() else np.nan)


def _curves(result: SweepResult, landscape: Landscape) -> Iterator[Record]:
    sweep = result.sweep
    sizes = subset_sizes(sweep.num_candidates)
    for sign, measured in measured_curves(result.base_score, result.scores, sizes).items():
        for j, sigma in enumerate(sweep.sigmas):
            predicted = _predict(sizes, sigma, landscape, both_signs=sign == "both")
            for i, size in enumerate(sizes.tolist()):
                where = {"sigma": sigma, "sign": sign, "n": size}
                yield _record("measured_gain", measured[i, j], "loss", **where)
                if sign != "-":  # minus obeys the law of plus
                    for quantity, values in predicted.items():
                        yield _record(quantity, values[i], "loss", **where)


def _gain_by_sigma(result: SweepResult, landscape: Landscape) -> Iterator[Record]:
    """The predicted gain of the whole sweep as a smooth function of sigma, and the sigma where it is largest."""
    sweep = result.sweep
    both = sweep.antithetic
    low, high = sweep.sigmas[0] / 2, sweep.sigmas[-1] * 2
    grid = np.geomspace(low, high, max(2, round(SIGMAS_A_DECADE * np.log10(high / low))))
    predicted = _predict(np.asarray(sweep.num_candidates), grid, landscape, both_signs=both)
    for i, sigma in enumerate(grid.tolist()):
        for quantity, values in predicted.items():
            yield _record(f"{quantity}_by_sigma", values[i], "loss", sigma=sigma)
    best = theory.best_sigma(
        sweep.num_candidates,
        landscape.slope,
        landscape.curvature_trace,
        landscape.curvature_along,
        both_signs=both,
        dimension=landscape.dimension,
    )
    yield _record("predicted_best_sigma", best / landscape.unit_step)


def _predict(
    n: np.ndarray, sigma: float | Float[np.ndarray, "S"], landscape: Landscape, *, both_signs: bool
) -> dict[str, np.ndarray]:
    slope, curvature = landscape.slope, (landscape.curvature_trace, landscape.curvature_along)
    error = landscape.curvature_trace_error
    step = np.asarray(sigma * landscape.unit_step, np.float32)
    law = {"both_signs": both_signs, "dimension": landscape.dimension}
    low, high = theory.best_of_n_band(n, step, slope, *curvature, level=BAND_LEVEL, curvature_trace_error=error, **law)
    return {
        "predicted_gain": np.asarray(theory.best_of_n_gain(n, step, slope, *curvature, **law)),
        "predicted_low": np.asarray(low),
        "predicted_high": np.asarray(high),
        "first_order_gain": np.asarray(theory.best_of_n_gain(n, step, slope, **law)),
        "asymptotic_gain": np.asarray(sigma * slope * theory.asymptotic_max(n, both_signs=both_signs)),
    }


def _next(sweep: Sweep, found: list[Record]) -> Record:
    """Which sigma to search next, from the measured gains of the whole sweep."""
    whole = {"sign": "both" if sweep.antithetic else "+", "n": sweep.num_candidates}
    gains = [value(found, "measured_gain", sigma=sigma, **whole) for sigma in sweep.sigmas]
    predicted = value(found, "predicted_best_sigma") if value(found, "is_predicted") else np.inf
    chosen = next_sigma(sweep.sigmas, np.asarray(gains), predicted_best=predicted)
    return _record("next_sigma", chosen.sigma, because=chosen.because)


def _top(result: SweepResult) -> Iterator[Record]:
    if result.best is not None:
        yield _record("num_tied", np.sum(result.scores == np.float32(result.best.score)) - 1)
    for rank, best in enumerate(result.top_k, start=1):
        where = {"rank": rank, "index": best.index, "sigma": best.sigma, "sign": best.sign}
        yield _record("top_score", best.score, "loss", **where)
