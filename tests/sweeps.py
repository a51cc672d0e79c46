"""Records of small sweeps, made by hand: what a report is drawn from in these tests."""

import math

from lacuna.reports.records import Record

SIGMAS = (1e-3, 1e-2)
N = 8


def sweep_records(
    *, measured=(1.0, 9.0), shares=(0.99, 0.5), low=0.5, high=2.0, sigma_star=1e-3, sign="both", top=True
) -> list[Record]:
    """A sweep of two sigmas whose band is the same at both."""

    def record(quantity, value, **where):
        return Record("sweep", quantity, value, "loss", where)

    single = {"base_score": 3.0, "num_candidates": N, "num_evaluations": 4 * N, "num_params": 10}
    single |= {"gradient_norm": 2.0, "slope": 2.0, "params_norm": 5.0, "curvature_along": 1.0, "curvature_trace": 4.0}
    single |= {"curvature_trace_error": 0.5, "predicted_best_sigma": 0.1, "band_level": 0.99, "sigma_star": sigma_star}
    found = [record(quantity, float(value)) for quantity, value in single.items()]
    predicted = {"predicted_gain": 1.1, "predicted_low": low, "predicted_high": high, "first_order_gain": 1.2}
    predicted["asymptotic_gain"] = 1.4
    for sigma, gain, share in zip(SIGMAS, measured, shares, strict=True):
        found.append(record("relative_radius", sigma / 5, sigma=sigma))
        found.append(record("num_nonfinite", 0.0 if math.isfinite(gain) else 2.0 * N, sigma=sigma))
        if sign == "both":
            found.append(record("f1_share", share, sigma=sigma))
            for quantity in ("f1_rms", "f2_rms", "f1_slope", "f2_slope", "rounding_floor"):
                found.append(record(quantity, 1e-2, sigma=sigma))
        for n in (1, N):
            found.append(record("measured_gain", gain * n / N, sigma=sigma, sign=sign, n=n))
            found += [record(name, value, sigma=sigma, sign=sign, n=n) for name, value in predicted.items()]
        found += [record(f"{name}_by_sigma", value, sigma=sigma) for name, value in predicted.items()]
    if top:
        found.append(record("top_score", 2.0, rank=1, index=5, sigma=1e-2, sign=-1))
    return found


NOTHING_FINITE = {
    "measured": (math.nan, math.nan),
    "shares": (math.nan, math.nan),
    "sigma_star": math.nan,
    "top": False,
}
