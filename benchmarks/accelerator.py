"""Sweeps and kernels on an accelerator: candidates a second, the price of noise, and gigabytes a second.

    python -m benchmarks.accelerator

Questions: how many candidates a second does one device score around GPT-2, Qwen2.5-0.5B and Qwen2.5-7B (their shapes,
random weights in bfloat16), 64 rows of 128 tokens each? What share of the device's own matrix product is that, and what
does noise cost beside the forward pass: in full, with both signs of a draw, made layer by layer, and of rank 1 beside
the weights? How near do the geometry kernels come to the rate of a copy? Needs nothing but lacuna; ends within ten
minutes, and leaves out what there was no time or memory for. `--rows 2 --length 16 --models gpt2` is a try on a CPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, rows, shapes
from benchmarks.rows import Row, skipped
from lacuna import geometry, keys, meshes, search, trees
from lacuna.reports import rundir
from lacuna.search.plan import flops, plan_sweep
from lacuna.types import Batch, Params

MARKS = {"gpt2": 150, "qwen2.5-0.5b": 45, "qwen2.5-7b": 4}
"""Candidates a second at 64 x 128 tokens: a first mark."""


@dataclass(frozen=True)
class Way:
    """How candidates are made.

    Attributes:
      name: for the table.
      low_rank: noise of rank 1, else in full.
      layerwise: made one layer at a time.
      antithetic: both signs of a draw.
      width: candidates side by side.
    """

    name: str
    low_rank: bool = False
    layerwise: bool = False
    antithetic: bool = False
    width: int = 1


WAYS = (
    Way("in full"),
    Way("in full, both signs", antithetic=True),
    Way("layer by layer", layerwise=True),
    Way("rank 1", low_rank=True),
    Way("rank 1, 4 side by side", low_rank=True, width=4),
)


def matmul_rate(size: int, dtype: Any) -> float:
    """FLOP/s of a square matrix product, the best of several runs of a chain of ten."""
    x = jnp.ones((size, size), dtype)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: (y @ x) * (1 / size), x).astype(dtype))
    jax.block_until_ready(chain(x))
    return 10 * 2 * size**3 / min(harness.once(lambda: chain(x))[0] for _ in range(5))


def copy_rate(num_bytes: int) -> float:
    """Bytes a second, read and written, of `y = x + 1`."""
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(x))
    return 2 * num_bytes / min(harness.once(lambda: copy(x))[0] for _ in range(9))


def forward_rate(objective: Any, params: Params, batch: Batch, *, seconds: float) -> float:
    """Losses a second at the base point alone: what noise is a price beside."""
    score = jax.jit(lambda params, batch: objective.loss(params, batch))
    jax.block_until_ready(score(params, batch))
    took = harness.once(lambda: score(params, batch))[0]
    num = max(3, min(200, round(seconds / took)))
    began = time.perf_counter()
    jax.block_until_ready([score(params, batch) for _ in range(num)])
    return num / (time.perf_counter() - began)


def sweeps(name: str, arguments: argparse.Namespace, peak: float, left: Callable[[], float]) -> Iterator[Row]:
    """Candidates a second of one model."""
    options = {"num_rows": arguments.rows, "length": arguments.length, "dtype": jnp.dtype(arguments.dtype)}
    try:
        found = shapes.problem(name, **options)
        plain = shapes.objective(found.model, chunk=arguments.chunk)
        base = forward_rate(plain, found.params, found.batch, seconds=arguments.seconds)
    except Exception as fault:  # a device says in many ways that it is full
        yield skipped(name, _first_line(fault))
        return
    each = flops(plain.loss, found.params, found.batch)
    goal = f">= {MARKS[name]}" if (arguments.rows, arguments.length) == (64, 128) else ""
    share = f"{each * base / peak:.0%} of the peak, {each / 1e9:,.0f} GFLOP each"
    yield Row(f"{name}: forward passes without noise", base, "1/s", floor=peak / each, note=share)
    for way in WAYS:
        what = f"{name}: candidates, {way.name}"
        if left() < 30:
            yield skipped(what, "no time")
            continue
        family = (partial(search.low_rank, 1) if way.low_rank else search.gaussian)(stacked=found.model.stacked)
        sweep = search.Sweep(family, (1e-3,), 10_000, antithetic=way.antithetic, width=way.width)
        objective = shapes.objective(found.model, layerwise=way.layerwise, chunk=arguments.chunk)
        try:
            plan = plan_sweep(objective, found.params, found.batch, sweep, trial_s=arguments.seconds)
        except Exception as fault:
            yield skipped(what, _first_line(fault))
            continue
        note = (
            f"{each * plan.rate / peak:.0%} of the peak; noise takes {1 - plan.rate / base:.0%} of the time; "
            f"{(plan.params_bytes + plan.working_bytes) / 1e9:.3g} GB; compiled in {plan.compile_s:.0f} s"
        )
        yield Row(what, plan.rate, "1/s", goal=goal, floor=peak / each, note=note)


def kernels(num_params: int, copied: float, *, rank: int = 16) -> Iterator[Row]:
    """Geometry kernels on rows of so many numbers, beside the bytes that they must read."""
    key = keys.root(0)
    like = {"a": jnp.zeros((num_params // 2,)), "b": jnp.zeros((num_params // 2048, 1024))}
    stacked = jax.jit(
        lambda key: trees.map_named(
            lambda name, leaf: jax.random.normal(keys.leaf(key, name), (rank, *leaf.shape)), like
        )
    )(key)
    delta = jax.tree.map(lambda leaf: leaf[0], stacked)
    basis = geometry.orthonormalise(stacked)
    size = 4 * trees.size(like)
    programs: dict[str, tuple[Callable[[], Any], float]] = {
        "gram": (lambda: geometry.gram(stacked), rank * size),
        "capture": (lambda: geometry.capture(basis, delta), (rank + 1) * size),
        "prefix_captures": (lambda: geometry.prefix_captures(stacked, delta), (rank + 1) * size),
        "orthonormalise": (lambda: geometry.orthonormalise(stacked), 2 * rank * size),
        "sketch of 4,096": (lambda: geometry.Sketch(key, 4096)(delta), size),
    }
    for name, (program, least) in programs.items():
        what = f"{name}, P = {num_params:,}, k = {rank}"
        try:
            (timing,) = harness.interleave(program)
        except Exception as fault:
            yield skipped(what, _first_line(fault))
            continue
        rate, low, high = harness.median_of(least / timing.wall_s / 1e9)
        note = f"{least / 1e9:.2g} GB at least; {1e9 * rate / copied:.0%} of a copy"
        yield Row(what, rate, "GB/s", low, high, len(timing.wall_s), floor=copied / 1e9, note=note)


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:80]


def main() -> None:
    """Measure, print the rows, and keep them in a file if one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=[*shapes.CONFIGS], default=[*shapes.CONFIGS])
    parser.add_argument("--rows", type=int, default=64, help="that every candidate is scored on")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--dtype", default="bfloat16", help="of the matrices")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens that the head is applied to at a time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds that all of it may take")
    parser.add_argument("--size", type=int, default=4096, help="of the matrix product")
    parser.add_argument("--kernel-params", type=int, default=2**26, help="numbers in a row of the geometry kernels")
    parser.add_argument("--out", type=Path, help="file for the JSON lines")
    arguments = parser.parse_args()
    began = time.monotonic()

    def left() -> float:
        return arguments.limit - (time.monotonic() - began)

    mesh = meshes.candidate_mesh(jax.devices()[:1])
    machine = rundir.environment(meshes.describe(mesh))
    peak, copied = matmul_rate(arguments.size, jnp.dtype(arguments.dtype)), copy_rate(2**30)
    print(
        f"{machine['device_kind']}; {machine['machine']}; jax {jax.__version__}: a square {arguments.dtype} product of "
        f"{arguments.size} runs at {peak / 1e12:.3g} TFLOP/s, a copy at {copied / 1e9:.0f} GB/s.\n"
    )
    found: list[Row] = []
    for part in (*(sweeps(name, arguments, peak, left) for name in arguments.models),
                 kernels(arguments.kernel_params, copied)):  # fmt: skip
        for row in part:
            found.append(row)
            print("\n".join(rows.table(found) if len(found) == 1 else rows.table([row])[2:]), flush=True)
    if arguments.out is not None:
        rows.write(arguments.out, found)


if __name__ == "__main__":
    main()
