"""Lanczos with full orthogonality on a Hessian: time, memory and orthogonality beside matfree, laplax and scipy.

    python -m benchmarks lanczos

Question: what does an orthonormal Krylov basis cost, of rank 32 at P = 5e5 and of rank 16 at 1e7, and how far is that
from the floor? Peers, on the same Hessian product: matfree's `tridiag_sym` and laplax's `lanczos_iterations`, both with
full reorthogonalisation, and scipy's `eigsh` with 32 vectors, which stops once it has the largest eigenvalue. The floor
is the products themselves, timed in turn, and two reads of the rows that are there at each step.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks import harness
from benchmarks.harness import Rates
from benchmarks.rows import Row, compared, needs, timed
from lacuna import geometry, trees
from lacuna.derivatives import hvp

RANKS = {"5e5": 32, "1e7": 16}
WIDTHS = {"5e5": (506, 16), "1e7": (2200, 60)}
EPS = np.finfo(np.float32).eps
RITZ_TOLERANCE = 1e-4
"""Of the largest Ritz value, between programs: the sums of a Hessian product are taken in other orders."""


def loss(params: Any, batch: Any) -> jax.Array:
    """A tanh network of three layers, mean squared error."""
    x, y = batch
    hidden = jnp.tanh(jnp.tanh(x @ params["first"] + params["bias"]) @ params["second"])
    return jnp.mean((hidden @ params["last"] - y) ** 2)


def problem(size: str) -> tuple[Any, Any]:
    """Parameters and a batch of eight rows."""
    width, outputs = WIDTHS[size]
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"first": (width, width), "second": (width, width), "last": (width, outputs)}
    params = {
        name: jax.random.normal(key, shape) / width**0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    batch = jax.random.normal(keys[3], (8, width)), jax.random.normal(keys[4], (8, outputs))
    return params | {"bias": jnp.zeros(width)}, batch


def ours(size: str) -> Callable[[], Any]:
    """The basis and its tridiagonal matrix."""
    params, batch = problem(size)
    start, operator = jax.grad(loss)(params, batch), hvp(loss, params, batch)
    return lambda: geometry.krylov(operator, start, rank=RANKS[size])


def of_matfree(size: str) -> Callable[[], Any]:
    """The same by matfree."""
    from matfree import decomp

    params, batch = problem(size)
    start = jax.grad(loss)(params, batch)
    peer = decomp.tridiag_sym(RANKS[size], reortho="full")
    program = jax.jit(lambda v, p, b: peer(lambda u, p, b: hvp(loss, p, b)(u), v, p, b))
    return lambda: program(start, params, batch)


def of_laplax(size: str) -> Callable[[], Any]:
    """The same by laplax, whose vectors are flat; compiled as a whole, or it would be at every call."""
    from laplax.curv.lanczos import lanczos_iterations

    params, batch = problem(size)
    start, unravel = ravel_pytree(jax.grad(loss)(params, batch))

    @jax.jit
    def program(v: Any, p: Any, b: Any) -> Any:
        def product(u: Any) -> Any:
            return ravel_pytree(hvp(loss, p, b)(unravel(u)))[0]

        return lanczos_iterations(product, v, maxiter=RANKS[size], dtype=jnp.float32)

    return lambda: program(start, params, batch)


def of_scipy(size: str) -> Callable[[], Any]:
    """The largest eigenvalue by scipy's ARPACK, from the same start."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    params, batch = problem(size)
    start, unravel = ravel_pytree(jax.grad(loss)(params, batch))
    product = jax.jit(lambda u, p, b: ravel_pytree(hvp(loss, p, b)(unravel(u)))[0])

    def program() -> np.ndarray:
        operator = LinearOperator(
            (start.size, start.size), lambda u: np.asarray(product(u.ravel(), params, batch)), dtype=np.float32
        )
        return eigsh(
            operator, 1, which="LA", ncv=RANKS[size], v0=np.asarray(start), tol=1e-4, return_eigenvectors=False
        )

    return program


PROGRAMS = {"lacuna": ours, "matfree": of_matfree, "laplax": of_laplax}
"""What has its memory measured, by name."""


def largest_ritz(diagonal: Any, beside: Any) -> float:
    """The largest eigenvalue of a tridiagonal matrix."""
    diagonal, beside = np.asarray(diagonal, np.float64), np.asarray(beside, np.float64)[: np.size(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))[-1])


def orthogonality(found: Any) -> float:
    """|Q Q^T - I| in the 2-norm, in eps, summed in float64 block by block."""
    rank = jax.tree.leaves(found)[0].shape[0]
    products = np.zeros((rank, rank))
    for leaf in jax.tree.leaves(found):
        matrix = np.asarray(leaf).reshape(rank, -1)
        for at in range(0, matrix.shape[1], 2**18):
            block = matrix[:, at : at + 2**18].astype(np.float64)
            products += block @ block.T
    return float(np.linalg.norm(products - np.eye(rank), 2) / EPS)


def alone(size: str, rates: Rates) -> Iterator[Row]:
    """Time beside the products alone, and orthogonality."""
    params, batch = problem(size)
    start, operator = jax.grad(loss)(params, batch), hvp(loss, params, batch)
    num_params, rank = trees.size(params), RANKS[size]
    diagonal = jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), start)
    scale = jax.tree_util.Partial(lambda d, delta: jax.tree.map(jnp.multiply, d, delta), diagonal)

    @jax.jit
    def products(operator: Any, v: Any) -> Any:
        return jax.lax.fori_loop(0, rank, lambda _, u: jax.tree.map(lambda x: 1e2 * x, operator(u)), v)

    def on_diagonal() -> Any:
        return geometry.krylov(scale, start, rank=rank)

    run = ours(size)
    whole, bare, orthogonal = harness.interleave(run, lambda: products(operator, start), on_diagonal)
    reads = rates.floor_s(num_bytes=4 * rank**2 * num_params)
    at = f"P = {num_params:,}, rank {rank}"
    yield timed(f"lacuna, {at}", whole, floor=float(np.median(bare.wall_s)) + reads, note="floor: products and reads")
    yield timed(f"{rank} Hessian products alone, {at}", bare)
    yield timed(f"lacuna on a diagonal operator: Gram-Schmidt alone, {at}", orthogonal, floor=reads, note="two reads")
    for name, program in {"Hessian": run, "diagonal operator": on_diagonal}.items():
        yield Row(f"‖QQᵀ - I‖₂ of the {name}, {at}", orthogonality(program()[0].rows), "eps")


def beside(name: str, size: str, peer: Callable[[], Any], ritz: Callable[[Any], float]) -> Iterator[Row]:
    """Ratios of time to a peer, the largest Ritz value checked first."""
    run = ours(size)
    matrix = np.asarray(run()[1].matrix, np.float64)
    note = harness.check_same(name, np.linalg.eigvalsh(matrix)[-1], ritz(peer()), tolerance=RITZ_TOLERANCE)
    mine, theirs = harness.in_turn(partial(harness.once, run), partial(harness.once, peer))  # both are warm
    at = f"P = {trees.size(problem(size)[0]):,}"
    yield timed(f"{name}, {at}", theirs)
    yield compared(f"lacuna / {name}, {at}, wall", harness.ratio(mine.wall_s, theirs.wall_s), note=note)
    yield compared(f"lacuna / {name}, {at}, CPU", harness.ratio(mine.cpu_s, theirs.cpu_s), note=note)


@needs("matfree")
def beside_matfree(size: str) -> Iterator[Row]:
    """matfree's `tridiag_sym`."""

    def ritz(found: Any) -> float:
        return float(np.linalg.eigvalsh(np.asarray(found.J_small, np.float64))[-1])

    yield from beside("matfree", size, of_matfree(size), ritz)


@needs("laplax")
def beside_laplax(size: str) -> Iterator[Row]:
    """laplax's `lanczos_iterations`."""
    yield from beside("laplax", size, of_laplax(size), lambda found: largest_ritz(found[0], found[1]))


@needs("scipy")
def beside_scipy(size: str) -> Iterator[Row]:
    """scipy's `eigsh`: the largest eigenvalue alone, by ARPACK with as many vectors."""
    yield from beside("scipy eigsh, one eigenvalue", size, of_scipy(size), lambda found: float(found[-1]))


def memory(name: str, size: str) -> Iterator[Row]:
    """The most memory that a run adds, beside that of its basis."""
    size_bytes = 4 * RANKS[size] * trees.size(problem(size)[0])
    peak = harness.peak_bytes("benchmarks.lanczos", size, name)
    yield Row(
        f"{name}: peak memory / the basis, P = {size}", peak / size_bytes, floor=1, note="in a process of its own"
    )


@needs("matfree")
def matfree_memory() -> Iterator[Row]:
    """Peak memory of matfree."""
    yield from memory("matfree", "5e5")


@needs("laplax")
def laplax_memory() -> Iterator[Row]:
    """Peak memory of laplax."""
    yield from memory("laplax", "5e5")


def measure() -> Iterator[Row]:
    """The rows."""
    rates = harness.rates()
    for size in WIDTHS:
        yield from alone(size, rates)
        yield from beside_matfree(size)
    yield from beside_laplax("5e5")
    yield from beside_scipy("5e5")
    for size in WIDTHS:
        yield from memory("lacuna", size)
    yield from matfree_memory()
    yield from laplax_memory()


def main() -> None:
    """Memory of one program in a process of its own: `--memory SIZE NAME`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, required=True, metavar=("SIZE", "NAME"))
    size, name = parser.parse_args().memory
    harness.print_peak(PROGRAMS[name](size))


if __name__ == "__main__":
    main()
