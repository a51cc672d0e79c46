"""Geometry kernels beside the floor of the machine: Gram, orthonormalise, capture, project and spectra at P = 1e7.

    python -m benchmarks kernels

Questions: what share of the machine's best do the kernels reach on 16 rows of 1e7 numbers (goal: half of it, 0.4 for
the Gram matrix)? The floor is the longer of two times, both measured in turn with the kernel: to read the least bytes,
and to do the least operations at the rate of a square matrix product. How do capture and Krylov grow with P and with k?
How do spectra compare with scikit-learn's `randomized_svd` and `PCA`, at P = 3e5? The least of a kernel is what any
algorithm needs: every row read once, once more to project where the rows do not fit in a cache, k(k + 1)P operations
for inner products.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, needs, timed
from lacuna import geometry, keys, trees

RANK, NUM_PARAMS, PEER_PARAMS = 16, 10_000_000, 300_000
SIZES, RANKS = (100_000, 1_000_000, 4_000_000), (4, 16, 64)
TOLERANCE = 1e-4
"""Of singular values and inner products, relative to the largest: float32 sums over P."""


class Kernel(NamedTuple):
    """A program and the least that it takes.

    Attributes:
      program: takes nothing.
      num_bytes: read and written.
      flop: operations.
      goal: share of the floor.
    """

    program: Callable[[], Any]
    num_bytes: int
    flop: int
    goal: float = 0.5


def rows_of(rank: int, num_params: int) -> Any:
    """Random rows on two leaves, a vector and a matrix."""
    like = {"a": (num_params // 2,), "b": (num_params // 2000, 1000)}

    @jax.jit
    def draw(key: jax.Array) -> Any:
        return {name: jax.random.normal(keys.leaf(key, name), (rank, *shape)) for name, shape in like.items()}

    return draw(keys.root(0))


def flat(rows: Any) -> np.ndarray:
    """The matrix of rows."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(rows)], axis=1)


def kernels(rank: int, num_params: int) -> tuple[dict[str, Kernel], str]:
    """All of them, and what was checked of them."""
    rows = rows_of(rank, num_params)
    delta = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0) + 1.0, rows)
    basis = geometry.orthonormalise(rows)
    row, products = 4 * num_params, rank * (rank + 1) * num_params
    matrix, vector = flat(rows), flat(jax.tree.map(lambda leaf: leaf[None], delta))[0]
    gram = matrix @ matrix.T
    inside = np.linalg.solve(gram.astype(np.float64), matrix @ vector) @ (matrix @ vector)
    notes = [
        harness.check_same("gram", geometry.gram(rows), gram, tolerance=TOLERANCE),
        harness.check_same("capture", geometry.capture(basis, delta).mass, inside / (vector @ vector),
                           tolerance=TOLERANCE),
        harness.check_same("spectrum", geometry.spectrum(rows).singular_values ** 2, np.linalg.eigvalsh(gram)[::-1],
                           tolerance=TOLERANCE),
    ]  # fmt: skip
    found = {
        "gram": Kernel(lambda: geometry.gram(rows), rank * row, products, 0.4),
        "orthonormalise": Kernel(lambda: geometry.orthonormalise(rows), 2 * rank * row, 2 * products),
        "capture": Kernel(lambda: geometry.capture(basis, delta), (rank + 1) * row, 2 * rank * num_params),
        "project": Kernel(lambda: geometry.project(basis, delta), (2 * rank + 2) * row, 4 * rank * num_params),
        "spectrum": Kernel(lambda: geometry.spectrum(rows), rank * row, products),
    }
    return found, "; ".join(notes)


def beside_floors() -> Iterator[Row]:
    """Each kernel in turn with a read and a square product."""
    (read, num_bytes), (product, flop) = harness.reading(), harness.multiplying()
    found, note = kernels(RANK, NUM_PARAMS)
    for name, kernel in found.items():
        timing, reads, products = harness.interleave(kernel.program, read, product)
        by_bytes = kernel.num_bytes * reads.wall_s / num_bytes
        by_flop = kernel.flop * products.wall_s / flop
        floors = np.maximum(by_bytes, by_flop)
        bound = "bytes" if np.median(by_bytes) > np.median(by_flop) else "operations"
        least = f"{kernel.num_bytes / 1e9:.2g} GB, {kernel.flop / 1e9:.2g} GFLOP, bound by {bound}"
        at = f"{name}, P = {NUM_PARAMS:,}, k = {RANK}"
        yield timed(at, timing, floor=float(np.median(floors)), note=least)
        yield compared(f"floor / time: {at}", harness.ratio(floors, timing.wall_s), goal=f">= {kernel.goal}", floor=1,
                       note=note)  # fmt: skip


def scaling() -> Iterator[Row]:
    """Capture and Krylov, with a diagonal operator, against P and k."""
    rates = harness.rates()
    for rank, num_params in [*((RANK, size) for size in SIZES), *((k, SIZES[1]) for k in RANKS if k != RANK)]:
        rows = rows_of(rank, num_params)
        basis, delta = geometry.orthonormalise(rows), jax.tree.map(lambda leaf: leaf[0] + 1.0, rows)
        diagonal = jax.tree.map(lambda leaf: leaf[0], rows)
        operator = jax.tree_util.Partial(lambda d, x: jax.tree.map(jnp.multiply, d, x), diagonal)
        captured, krylov = harness.interleave(
            partial(geometry.capture, basis, delta), partial(geometry.krylov, operator, delta, rank=rank)
        )
        at = f"P = {num_params:,}, k = {rank}"
        yield timed(f"capture, {at}", captured, floor=rates.floor_s(num_bytes=4 * (rank + 1) * num_params))
        floor = rates.floor_s(num_bytes=4 * rank**2 * num_params)
        yield timed(
            f"krylov of a diagonal operator, {at}", krylov, floor=floor, note="two reads of its rows at each step"
        )


@needs("sklearn")
def beside_sklearn() -> Iterator[Row]:
    """Spectra beside scikit-learn."""
    from sklearn.decomposition import PCA
    from sklearn.utils.extmath import randomized_svd

    rows = rows_of(RANK, PEER_PARAMS)
    centred = jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=0), rows)
    matrix = flat(rows)

    def by_svd() -> np.ndarray:
        return randomized_svd(matrix, RANK, random_state=0)[1]

    def by_pca() -> np.ndarray:
        return PCA(RANK - 1, svd_solver="full").fit(matrix).singular_values_

    for name, ours, theirs in (
        ("randomized_svd", rows, by_svd),
        ("PCA, of rows less their mean", centred, by_pca),
    ):
        found = geometry.spectrum(ours).singular_values
        peer = theirs()
        note = harness.check_same(name, found[: len(peer)], peer, tolerance=TOLERANCE)
        mine, other = harness.interleave(lambda ours=ours: geometry.spectrum(ours), theirs)
        at = f"k = {RANK}, P = {trees.size(rows) // RANK:,}"
        yield timed(f"scikit-learn's {name}, {at}", other)
        yield compared(f"spectrum / scikit-learn's {name}", harness.ratio(mine.wall_s, other.wall_s), goal="<= 1",
                       note=note)  # fmt: skip


def measure() -> Iterator[Row]:
    """The rows."""
    yield from beside_floors()
    yield from scaling()
    yield from beside_sklearn()
