"""Records of small sweeps, made by hand: what a report is drawn from in these tests."""

import math

from lacuna.reports.records import Record

SIGMAS = (1e-3, 1e-2)
N = 8


def sweep_records(
    *,
    sigmas=SIGMAS,
    measured=(1.0, 9.0),
    shares=(0.99, 0.5),
    low=0.5,
    high=2.0,
    sigma_star=1e-3,
    sign="both",
    top=True,
    next_sigma=None,
    predicted=(1.1, 1.1),
    left=(),
) -> list[Record]:
    """A sweep of two sigmas whose band is the same at both.

    Args:
      next_sigma: pair of the sigma to search next and why; None as in early runs.
      left: of each group of finalists its gain on the search batch, that on held-out data, and the share that is left
        with its interval, or None as in early runs.
    """

    def record(quantity, value, **where):
        return Record("sweep", quantity, value, "loss", where)

    single = {"base_score": 3.0, "num_candidates": N, "num_evaluations": 4 * N, "num_params": 10}
    single |= {"gradient_norm": 2.0, "slope": 2.0, "params_norm": 5.0, "curvature_along": 1.0, "curvature_trace": 4.0}
    single |= {"curvature_trace_error": 0.5, "predicted_best_sigma": 0.1, "band_level": 0.99, "sigma_star": sigma_star}
    found = [record(quantity, float(value)) for quantity, value in single.items()]
    laws = {"predicted_low": low, "predicted_high": high, "first_order_gain": 1.2, "asymptotic_gain": 1.4}
    for sigma, gain, share, expected in zip(sigmas, measured, shares, predicted, strict=True):
        of_sigma = laws | {"predicted_gain": expected}
        found.append(record("relative_radius", sigma / 5, sigma=sigma))
        found.append(record("num_nonfinite", 0.0 if math.isfinite(gain) else 2.0 * N, sigma=sigma))
        if sign == "both":
            found.append(record("f1_share", share, sigma=sigma))
            for quantity in ("f1_rms", "f2_rms", "f1_slope", "f2_slope", "rounding_floor"):
                found.append(record(quantity, 1e-2, sigma=sigma))
        for n in (1, N):
            found.append(record("measured_gain", gain * n / N, sigma=sigma, sign=sign, n=n))
            found += [record(name, value, sigma=sigma, sign=sign, n=n) for name, value in of_sigma.items()]
        found += [record(f"{name}_by_sigma", value, sigma=sigma) for name, value in of_sigma.items()]
    if top:
        found.append(record("top_score", 2.0, rank=1, index=5, sigma=1e-2, sign=-1))
    if next_sigma is not None:
        found.append(record("next_sigma", next_sigma[0], because=next_sigma[1]))
    for group, (search_gain, held_out_gain, share) in zip(GROUPS, left, strict=False):
        num_finite = 0 if math.isnan(search_gain) else 4
        where = {"group": group, "size": 4, "num_finite": num_finite, "num_batches": 8}
        found.append(record("search_gain", search_gain, **where))
        found.append(record("held_out_gain", held_out_gain, **where))
        if share is not None:
            found += [record(f"shrinkage{end}", s, level=0.95, **where) for end, s in zip(ENDS, share, strict=True)]
    return found


GROUPS = ("winner", "top 4, mean", "4 random draws at the winner's σ, mean")
ENDS = ("", "_low", "_high")


NOTHING_FINITE = {
    "measured": (math.nan, math.nan),
    "shares": (math.nan, math.nan),
    "sigma_star": math.nan,
    "top": False,
}
