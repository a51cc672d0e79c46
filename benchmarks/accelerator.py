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

from benchmarks import harness, shapes
from lacuna import geometry, keys, meshes, search, trees
from lacuna.reports import rundir
from lacuna.search.plan import flops, plan_sweep
from lacuna.types import Batch, Params

MARKS = {"gpt2": (150, 383), "qwen2.5-0.5b": (45, 96.5), "qwen2.5-7b": (4, 6.8)}
"""Candidates a second at 64 x 128 tokens: a first mark, and the roofline at 790 TFLOP/s."""


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


def sweeps(
    name: str, arguments: argparse.Namespace, peak: float, left: Callable[[], float]
) -> Iterator[dict[str, str]]:
    """Rows of the table for one model."""
    options = {"num_rows": arguments.rows, "length": arguments.length, "dtype": jnp.dtype(arguments.dtype)}
    try:
        found = shapes.problem(name, **options)
        plain = shapes.objective(found.model, chunk=arguments.chunk)
        base = forward_rate(plain, found.params, found.batch, seconds=arguments.seconds)
    except Exception as fault:  # a device says in many ways that it is full
        yield {"model": name, "noise": "", "candidates/s": f"left out: {_first_line(fault)}"}
        return
    each = flops(plain.loss, found.params, found.batch)
    row = {"model": name, "noise": "none", "candidates/s": f"{base:.3g}", "of the peak": f"{each * base / peak:.0%}"}
    yield row | {"GFLOP each": f"{each / 1e9:,.0f}", **_marks(name, arguments, base)}
    for way in WAYS:
        if left() < 30:
            yield {"model": name, "noise": way.name, "candidates/s": "left out: no time"}
            continue
        family = (partial(search.low_rank, 1) if way.low_rank else search.gaussian)(stacked=found.model.stacked)
        sweep = search.Sweep(family, (1e-3,), 10_000, antithetic=way.antithetic, width=way.width)
        objective = shapes.objective(found.model, layerwise=way.layerwise, chunk=arguments.chunk)
        try:
            plan = plan_sweep(objective, found.params, found.batch, sweep, trial_s=arguments.seconds)
        except Exception as fault:
            yield {"model": name, "noise": way.name, "candidates/s": f"left out: {_first_line(fault)}"}
            continue
        memory = plan.params_bytes + plan.working_bytes
        yield {
            "model": name,
            "noise": way.name,
            "candidates/s": f"{plan.rate:.3g}",
            "of the peak": f"{each * plan.rate / peak:.0%}",
            "noise's share of the time": f"{1 - plan.rate / base:.0%}",
            "memory": f"{memory / 1e9:.3g} GB",
            "compiled in": f"{plan.compile_s:.0f} s",
            **_marks(name, arguments, plan.rate),
        }


def _marks(name: str, arguments: argparse.Namespace, rate: float) -> dict[str, str]:
    """The share of the first mark and of the roofline, which are those of 64 x 128 tokens."""
    if (arguments.rows, arguments.length) != (64, 128):
        return {}
    mark, roof = MARKS[name]
    return {"of the mark": f"{rate / mark:.0%} of {mark}", "of the roofline": f"{rate / roof:.0%} of {roof}"}


def kernels(num_params: int, copied: float, *, rank: int = 16) -> Iterator[dict[str, str]]:
    """Geometry kernels on rows of so many numbers, beside the bytes that they must read."""
    key = keys.root(0)
    like = {"a": jnp.zeros((num_params // 2,)), "b": jnp.zeros((num_params // 2048, 1024))}
    rows = jax.jit(
        lambda key: trees.map_named(
            lambda name, leaf: jax.random.normal(keys.leaf(key, name), (rank, *leaf.shape)), like
        )
    )(key)
    delta = jax.tree.map(lambda leaf: leaf[0], rows)
    basis = geometry.orthonormalise(rows)
    size = 4 * trees.size(like)
    programs: dict[str, tuple[Callable[[], Any], float]] = {
        "gram": (lambda: geometry.gram(rows), rank * size),
        "capture": (lambda: geometry.capture(basis, delta), (rank + 1) * size),
        "prefix_captures": (lambda: geometry.prefix_captures(rows, delta), (rank + 1) * size),
        "orthonormalise": (lambda: geometry.orthonormalise(rows), 2 * rank * size),
        "sketch of 4,096": (lambda: geometry.Sketch(key, 4096)(delta), size),
    }
    for name, (program, least) in programs.items():
        try:
            jax.block_until_ready(program())
            rate = least / min(harness.once(program)[0] for _ in range(5))
        except Exception as fault:
            yield {"kernel": name, "GB/s": f"left out: {_first_line(fault)}"}
            continue
        yield {"kernel": name, "least bytes": f"{least / 1e9:.2g} GB", "GB/s": f"{rate / 1e9:.0f}",
               "of a copy": f"{rate / copied:.0%}"}  # fmt: skip


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:80]


def table(rows: list[dict[str, str]]) -> list[str]:
    """Rows as Markdown; what a row has not is left empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Measure, print the tables, and keep them in a file if one is named."""
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
    parser.add_argument("--out", type=Path, help="file to write the tables to")
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
    rows: list[dict[str, str]] = []
    for name in arguments.models:
        rows += sweeps(name, arguments, peak, left)
        print(f"{name}: {arguments.limit - left():.0f} s so far", flush=True)
    text = [f"{arguments.rows} x {arguments.length} tokens for each candidate.", "", *table(rows), ""]
    text += table([*kernels(arguments.kernel_params, copied)])
    print("\n".join(text))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(["# Accelerator", "", *text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
