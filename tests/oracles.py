"""Slow and obvious answers in numpy, written from the definitions and sharing no code with lacuna."""

from collections.abc import Sequence
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


def mean_of_best(values: Sequence[float], size: int) -> float:
    """Mean of the largest finite value over all subsets of a size that hold one, by listing them; NaN without any."""
    finite = [[value for value in subset if np.isfinite(value)] for subset in combinations(values, size)]
    return float(np.mean([max(subset) for subset in finite if subset])) if any(finite) else np.nan


def full_sort(scores: np.ndarray, sigmas: tuple[float, ...], k: int) -> list[tuple[int, float, int, float]]:
    """The k best `(index, sigma, sign, score)` of a whole table [N, sigmas, signs], ties in table order."""
    everywhere = product(range(scores.shape[0]), range(scores.shape[1]), range(scores.shape[2]))
    rows = [(scores[i, s, z], i, s, z) for i, s, z in everywhere if np.isfinite(scores[i, s, z])]
    return [(i, sigmas[s], (1, -1)[z], float(score)) for score, i, s, z in sorted(rows)[:k]]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays of equal size."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def flat_rows(rows: Any) -> np.ndarray:
    """Rows as a float64 matrix [k, P]."""
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(rows)]
    k = leaves[0].shape[0]
    return np.concatenate([leaf.reshape(k, int(np.prod(leaf.shape[1:]))) for leaf in leaves], axis=1)


def like_rows(matrix: np.ndarray, like: Any) -> Any:
    """The rows of a matrix [k, P] on the tree of `like`, float32."""
    leaves, treedef = jax.tree.flatten(like)
    cuts = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(matrix, cuts, axis=1)
    return treedef.unflatten(
        [np.float32(part.reshape(len(matrix), *np.shape(leaf))) for part, leaf in zip(parts, leaves, strict=True)]
    )


def gram_schmidt(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal rows in order, by float64 Gram-Schmidt with three passes; dependent rows are left out."""
    found: list[np.ndarray] = []
    for vector in matrix:
        rest = vector.copy()
        for _ in range(3):
            for q in found:
                rest -= (q @ rest) * q
        if np.linalg.norm(rest) > 1e-5 * np.linalg.norm(vector):
            found.append(rest / np.linalg.norm(rest))
    return np.asarray(found).reshape(len(found), matrix.shape[1])


def capture_mass(q: np.ndarray, d: np.ndarray) -> float:
    """`|Q d|^2 / |d|^2` for orthonormal rows."""
    return float(np.sum((q @ d) ** 2) / (d @ d))


def krylov_rows(a: np.ndarray, g: np.ndarray, k: int) -> np.ndarray:
    """Orthonormal rows of `g, A g, ...`: each product is made orthogonal before the next, in float64."""
    rows = [g / np.linalg.norm(g)]
    while len(rows) < k:
        rest = a @ rows[-1]
        for _ in range(3):
            for q in rows:
                rest = rest - (q @ rest) * q
        rows.append(rest / np.linalg.norm(rest))
    return np.asarray(rows)


def planted_angles(angles: list[float], size: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal rows of two subspaces [k, size] with these principal angles, in general position."""
    k = len(angles)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, 2 * k)))[0].T
    a, outside = rotation[:k], rotation[k:]
    return a, np.cos(angles)[:, None] * a + np.sin(angles)[:, None] * outside
