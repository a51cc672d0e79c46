"""Sweeps around GPT-2 at full size: what noise costs, what one draw at several sigmas saves, and what memory it takes.

    python -m benchmarks language_sweeps

Questions: how many normals does a core make a second? How near do candidates come to the rate of bare forward passes
when a draw is scored at one sigma, and when it serves four sigmas and both signs? What do noise of rank 1 beside the
weights, and noise made layer by layer, cost instead? How much memory does a search add to the weights: no more than
one candidate, and layer by layer no more than the largest leaf and activations? Random float32 weights, eight rows of
32 tokens, one device with all cores. The floor of a forward pass is its products with a weight at this machine's rate
for a square one, that of a draw is to write it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, shapes
from lacuna import keys, meshes, search, trees
from lacuna.search import evaluate
from lacuna.search.plan import flops
from lacuna.search.stepper import Stepper

NUM_ROWS, LENGTH = 8, 32
SIGMAS = (3e-4, 1e-3, 3e-3, 1e-2)
NUM_PAIRS = 5


def _stepper(
    *, sigmas: tuple[float, ...], antithetic: bool, low_rank: bool = False, layerwise: bool = False
) -> Stepper:
    """The compiled step of a sweep on one device."""
    found = shapes.problem("gpt2", num_rows=NUM_ROWS, length=LENGTH, dtype=jnp.float32)
    family = (partial(search.low_rank, 1) if low_rank else search.gaussian)(stacked=found.model.stacked)
    sweep = search.Sweep(family, sigmas, 8, antithetic=antithetic)
    program = evaluate.program_of(shapes.objective(found.model, layerwise=layerwise), family)
    return Stepper(program, sweep, found.params, found.batch, meshes.candidate_mesh(jax.devices()[:1]))


WAYS: dict[str, dict[str, Any]] = {
    "one sigma, one sign": {"sigmas": SIGMAS[:1], "antithetic": False},
    "four sigmas, both signs": {"sigmas": SIGMAS, "antithetic": True},
    "four sigmas, both signs, layer by layer": {"sigmas": SIGMAS, "antithetic": True, "layerwise": True},
    "four sigmas, both signs, rank 1": {"sigmas": SIGMAS, "antithetic": True, "low_rank": True},
}
"""Ways to score candidates, as `_stepper` takes them."""


def _num(way: dict[str, Any]) -> int:
    """Candidates of a draw."""
    return len(way["sigmas"]) * (1 + way["antithetic"])


def _forwards(num: int) -> Callable[[], Any]:
    """As many bare forward passes, one after the other in one program."""
    found = shapes.problem("gpt2", num_rows=NUM_ROWS, length=LENGTH, dtype=jnp.float32)
    loss = shapes.objective(found.model).loss

    @jax.jit
    def program(params: Any, batch: Any) -> jax.Array:
        def one(i: Any, total: Any) -> Any:
            tokens = (batch.tokens + i) % found.model.spec.vocab_size  # or the loop would be run once
            return total + loss(params, batch._replace(tokens=tokens))

        return jax.lax.fori_loop(0, num, one, jnp.float32(0))

    return lambda: program(found.params, found.batch)


def _draw() -> tuple[Callable[[], Any], int]:
    """A draw of noise on all parameters, and how many they are."""
    found = shapes.problem("gpt2", num_rows=1, length=2, dtype=jnp.float32)
    family = search.gaussian(stacked=found.model.stacked)
    program = jax.jit(lambda key, params: family.draw(key, params))
    return lambda: program(keys.candidate(keys.root(0), 3), found.params), trees.size(found.params)


def rates() -> list[str]:
    """Rows of the table of candidates a second beside bare forward passes, both run in turn."""
    found = shapes.problem("gpt2", num_rows=NUM_ROWS, length=LENGTH, dtype=jnp.float32)
    each = flops(shapes.objective(found.model).loss, found.params, found.batch)
    peak = harness.gemm_rate()
    lines = [
        "| a draw is scored at | candidates a second | bare forward passes a second | rate beside theirs | floor |"
    ]
    lines.append("|---|---|---|---|---|")
    for name, way in WAYS.items():
        stepper, num = _stepper(**way), _num(way)
        ours, bare = harness.interleave(partial(stepper.run, 0, 1), _forwards(num), num_pairs=NUM_PAIRS)
        rate, other = (num / np.median(timing.wall_s) for timing in (ours, bare))
        beside = harness.ratio(bare.wall_s, ours.wall_s)
        lines.append(
            f"| {name} | {rate:.2f} | {other:.2f} | {beside} | {peak / each:.2f} at {peak / 1e9:.0f} GFLOP/s |"
        )
    return lines


def report() -> list[str]:
    """The lines of the report."""
    program, size = _draw()
    (timing,) = harness.interleave(program, num_pairs=NUM_PAIRS)
    written = 4 * size / harness.read_rate()
    cpu = size / np.median(timing.cpu_s) / 1e6
    drawn = (
        f"- noise alone: {size / 1e6:.0f} million normals in {timing}, {cpu:.0f} million a second of a core; to write "
        f"them takes {written:.2g} s at the rate of a read"
    )
    base = 4 * size
    lines = []
    for name, way in WAYS.items():
        if way["antithetic"]:
            added = harness.peak_bytes("benchmarks.language_sweeps", "--way", name)
            planned = _stepper(**way).compiled.memory_analysis().temp_size_in_bytes
            share = (base + added) / (2 * base)
            lines.append(f"| {name} | {added / 1e6:,.0f} MB | {planned / 1e6:,.0f} MB | {share:.2f} |")
    largest = shapes.CONFIGS["gpt2"]["vocab_size"] * shapes.CONFIGS["gpt2"]["n_embd"] * 4
    head = [
        f"The weights are {base / 1e6:,.0f} MB, the embedding {largest / 1e6:,.0f} MB, a layer 28 MB.",
        "",
        "| way | memory that a run adds | as the compiler plans it | all, beside weights and one candidate |",
        "|---|---|---|---|",
    ]
    return [drawn, "", *rates(), "", *head, *lines, ""]


def main() -> None:
    """Memory of one way: `--memory --way NAME`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", action="store_true", required=True)
    parser.add_argument("--way", choices=[*WAYS], required=True)
    stepper = _stepper(**WAYS[parser.parse_args().way])
    harness.print_peak(lambda: stepper.run(0, 1))


if __name__ == "__main__":
    main()
