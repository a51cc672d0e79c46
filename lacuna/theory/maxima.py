"""The largest of n draws of a symmetric law, from the law's quantiles: in float64 on the host.

One identity carries it. The maximum M of n draws of a law F has `P(M <= x) = F(x)^n`, so its quantile is
`M(q) = F^-1(q^(1/n))`, and any moment is an integral over q: `E g(M) = int_0^1 g(M(q)) dq`. With both
signs of every draw the maximum is `max_i |X_i|`; as `P(|X| <= x) = 2 F(x) - 1`, its quantile is
`M(q) = F^-1((1 + q^(1/n)) / 2)`.

`q^(1/n)` lies within `1/n` of one, where float64 has lost `log10 n` digits of the distance that matters.
So everything goes through the survival side `1 - q^(1/n) = -expm1(log(q) / n)`, which loses none.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import NDArray

from lacuna.errors import InvalidInput

Count = int | np.integer | Int[np.ndarray, "..."]
"""N: a positive integer known outside compiled code, or an array of them (a best-of-N curve)."""

Double = np.float64 | Float64[np.ndarray, "..."]
"""A float64 number, or an array of them in the shape of the counts."""

Quantile = Callable[[Double, Double], Double]
"""`F^-1(p)` from `p - 1/2` and `min(p, 1 - p)`, each of which the caller has without cancellation."""

# E g(M) with q = exp(-e^s): the weight e^(s - e^s) is analytic for |Im s| < pi/2, so the trapezoid rule
# with step h is off by exp(-pi^2 / h), 7e-18 here; the window ends where the weight is below 1e-17.
_STEP = 0.25
_NODES = np.exp(np.arange(-40.0, 3.76, _STEP))
_WEIGHTS = _STEP * _NODES * np.exp(-_NODES)
_BLOCK = 256
"""Counts handled at a time: (counts x nodes) numbers stay in cache, and a long curve in memory."""


def quantile_of_max(quantile: Quantile, n: NDArray[np.int64], log_q: Double, *, both_signs: bool) -> Double:
    """`F^-1(q^(1/n))` or `F^-1((1 + q^(1/n)) / 2)` from `log q`."""
    log_p = log_q / n
    p, survival = np.exp(log_p), -np.expm1(log_p)
    found = quantile(p / 2, survival / 2) if both_signs else quantile(p - 0.5, np.minimum(p, survival))
    return np.asarray(found)[()]


def moment_of_max(quantile: Quantile, n: NDArray[np.int64], power: int, *, both_signs: bool) -> Double:
    """`E M^power` in the shape of `n`, by the trapezoid rule over `s = log(-log q)`."""
    flat = n.reshape(-1, 1)
    blocks = (flat[i : i + _BLOCK] for i in range(0, max(len(flat), 1), _BLOCK))
    moments = [quantile_of_max(quantile, block, -_NODES, both_signs=both_signs) ** power @ _WEIGHTS for block in blocks]
    moment = np.concatenate(moments).reshape(n.shape)
    if power % 2 and not both_signs:
        # A lone draw has mean zero by symmetry; the quadrature leaves 1e-17 of it.
        moment = np.where(n == 1, 0.0, moment)
    return moment[()]


def counts(asked: str, n: object) -> NDArray[np.int64]:
    """`n` as an integer array, or `InvalidInput` in the caller's name."""
    return _positive_integers(
        n, f"{asked} needs a number of draws n that is a positive integer", "n = 1 is the smallest, a single draw"
    )


def count_of(asked: str, what: str, number: object) -> int:
    """A single positive integer, or `InvalidInput` in the caller's name."""
    found = _positive_integers(number, f"{asked} needs a {what} that is a positive integer", f"a {what} of 1 or more")
    if found.ndim:
        raise InvalidInput(f"{asked} needs a single {what}", got=repr(number), hint="one call for each")
    return int(found)


def _positive_integers(value: object, asked: str, hint: str) -> NDArray[np.int64]:
    found = np.asarray(value)
    if not np.issubdtype(found.dtype, np.integer) or np.any(found < 1):
        raise InvalidInput(asked, got=repr(value), hint=f"{hint}; convert a float with int()")
    return found.astype(np.int64)  # narrower ones would take the logarithms with them


def probabilities(asked: str, p: object) -> NDArray[np.float64]:
    """`p` as a float64 array, or `InvalidInput` in the caller's name."""
    found = np.asarray(p, np.float64)
    if not np.all((found >= 0) & (found <= 1)):
        raise InvalidInput(f"{asked} needs probabilities in [0, 1]", got=repr(p), hint="0.5 is the median")
    return found
