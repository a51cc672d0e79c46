"""Lanczos with full orthogonality on a Hessian: time, memory and orthogonality beside matfree.

    python -m benchmarks lanczos

Question: what does an orthonormal Krylov basis of rank 32 cost at P = 5e5 and 1e7, and how far is that from
the floor? Peer: matfree's `tridiag_sym` with full reorthogonalisation, on the same Hessian product. The floor
is 32 products, plus two reads of the rows that are there at each step at the machine's read rate.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from lacuna import geometry, trees
from lacuna.derivatives import hvp

RANK = 32
WIDTHS = {"5e5": (506, 16), "1e7": (2200, 60)}
EPS = np.finfo(np.float32).eps


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


def programs(size: str) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    from matfree import decomp

    params, batch = problem(size)
    start = jax.grad(loss)(params, batch)
    operator = hvp(loss, params, batch)
    diagonal = jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), start)
    scale = jax.tree_util.Partial(lambda d, delta: jax.tree.map(jnp.multiply, d, delta), diagonal)
    peer = decomp.tridiag_sym(RANK, reortho="full")
    theirs = jax.jit(lambda v, p, b: peer(lambda u, p, b: hvp(loss, p, b)(u), v, p, b))

    @jax.jit
    def products(operator: Any, v: Any) -> Any:
        return jax.lax.fori_loop(0, RANK, lambda _, u: jax.tree.map(lambda x: 1e2 * x, operator(u)), v)

    return {
        "lacuna": lambda: geometry.krylov(operator, start, rank=RANK),
        "matfree": lambda: theirs(start, params, batch),
        "products alone": lambda: products(operator, start),
        "lacuna, diagonal operator": lambda: geometry.krylov(scale, start, rank=RANK),
    }


def orthogonality(rows: Any) -> float:
    """|Q Q^T - I| in the 2-norm, in eps, summed in float64 block by block."""
    found = np.zeros((RANK, RANK))
    for leaf in jax.tree.leaves(rows):
        matrix = np.asarray(leaf).reshape(RANK, -1)
        for at in range(0, matrix.shape[1], 2**18):
            block = matrix[:, at : at + 2**18].astype(np.float64)
            found += block @ block.T
    return float(np.linalg.norm(found - np.eye(RANK), 2) / EPS)


def measure(size: str) -> list[str]:
    """The lines of the report for one size."""
    run = programs(size)
    num_params = trees.size(problem(size)[0])
    basis_bytes = 4 * RANK * num_params
    ours, theirs, products, diagonal = harness.interleave(*run.values())
    rate = harness.read_rate()
    floor = np.median(products.wall_s) + RANK**2 * num_params * 4 / rate
    basis, info = run["lacuna"]()
    ritz = np.linalg.eigvalsh(np.asarray(info.matrix, np.float64))
    peer = np.linalg.eigvalsh(np.asarray(run["matfree"]().J_small, np.float64))
    memory = {
        name: harness.peak_bytes("benchmarks.lanczos", size, name) / basis_bytes for name in ("lacuna", "matfree")
    }
    defects = [orthogonality(basis.rows), orthogonality(run["lacuna, diagonal operator"]()[0].rows)]
    return [
        f"## P = {num_params:,}, rank {RANK}",
        "",
        "| what | measured |",
        "|---|---|",
        f"| lacuna | {ours} |",
        f"| matfree 0.6.3, full reorthogonalisation | {theirs} |",
        f"| lacuna / matfree, wall | {harness.ratio(ours.wall_s, theirs.wall_s)} |",
        f"| lacuna / matfree, CPU | {harness.ratio(ours.cpu_s, theirs.cpu_s)} |",
        f"| lacuna on a diagonal operator (Gram-Schmidt alone) | {diagonal} |",
        f"| {RANK} Hessian products alone | {products} |",
        f"| floor: products and two reads of the filled rows a step at {rate / 1e9:.0f} GB/s | {floor:.3g} s |",
        f"| orthogonality, 2-norm of Q Qᵀ - I | {defects[0]:.1f} eps; diagonal operator {defects[1]:.1f} eps |",
        f"| largest Ritz value | {ritz[-1]:.6g}, matfree {peer[-1]:.6g}: {abs(ritz[-1] / peer[-1] - 1):.1e} apart |",
        f"| peak memory over the basis, lacuna | {memory['lacuna']:.2f} |",
        f"| peak memory over the basis, matfree | {memory['matfree']:.2f} |",
        "",
    ]


def report() -> list[str]:
    """The lines of the report."""
    return [line for size in WIDTHS for line in measure(size)]


def main() -> None:
    """Memory of one program in a process of its own: `--memory SIZE NAME`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, required=True, metavar=("SIZE", "NAME"))
    size, name = parser.parse_args().memory
    harness.print_peak(programs(size)[name])


if __name__ == "__main__":
    main()
