"""Slow and obvious answers in numpy, written from the definitions and sharing no code with lacuna."""

from itertools import combinations, product
from typing import Any

import jax
import numpy as np


def flat(tree: Any) -> np.ndarray:
    """All elements of a tree in one float64 vector, in the order of its leaves."""
    leaves = [np.asarray(leaf).astype(np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *leaves])


def bits(tree: Any) -> list[bytes]:
    """The raw bytes of every leaf: equal lists mean equal bits, NaN included."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def axpy(scale: float, delta: Any, params: Any) -> Any:
    """`params + scale * delta` in float32 with two roundings, and a last one to the dtype of the point."""

    def move(d: Any, p: Any) -> np.ndarray:
        wide, step = np.asarray(p).astype(np.float32), np.float32(scale) * np.asarray(d).astype(np.float32)
        return (wide + step).astype(np.asarray(p).dtype)

    return jax.tree.map(move, delta, params)


def mean_of_best(values: list[float], size: int) -> float:
    """Mean of the maximum over all subsets of a size, by listing them."""
    return float(np.mean([max(subset) for subset in combinations(values, size)]))


def full_sort(scores: np.ndarray, sigmas: tuple[float, ...], k: int) -> list[tuple[int, float, int, float]]:
    """The k best `(index, sigma, sign, score)` of a whole table [N, sigmas, signs], ties in table order."""
    everywhere = product(range(scores.shape[0]), range(scores.shape[1]), range(scores.shape[2]))
    rows = [(scores[i, s, z], i, s, z) for i, s, z in everywhere if np.isfinite(scores[i, s, z])]
    return [(i, sigmas[s], (1, -1)[z], float(score)) for score, i, s, z in sorted(rows)[:k]]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays of equal size."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])
