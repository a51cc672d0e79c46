"""Sweeps around GPT-2 at full size: what noise costs, what one draw at several sigmas saves, and what memory it takes.

    python -m benchmarks language_sweeps

Questions: how many normals does a core make a second? How near do candidates come to the rate of bare forward passes
when a draw is scored at one sigma, and when it serves four sigmas and both signs? What do noise of rank 1 beside the
weights, and noise made layer by layer, cost instead? How much memory does a search add to the weights: no more than
one candidate, and layer by layer no more than the largest leaf and activations? Random float32 weights, eight rows of
16 tokens, one device with all cores; a bare forward pass is run twice, in turn with each draw. The floor of a forward
pass is its products with a weight at this machine's rate for a square one, that of a draw is to write it.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, shapes
from benchmarks.rows import Row, compared, timed
from lacuna import keys, meshes, search, trees
from lacuna.search import evaluate
from lacuna.search.plan import flops
from lacuna.search.stepper import Stepper

NUM_ROWS, LENGTH = 8, 16
SIGMAS = (3e-4, 1e-3, 3e-3, 1e-2)
NUM_BARE = 2


BASE_TOLERANCE = 1e-4
"""Of the loss at the base point: a pass beside factors, or layer by layer, sums in another order."""


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


def noise() -> Iterator[Row]:
    """A draw of all parameters."""
    program, size = _draw()
    (timing,) = harness.interleave(program)
    rate = size / np.median(timing.cpu_s) / 1e6
    note = f"{rate:.0f} million a second of a core; floor: to write them, at the rate of a read"
    floor = harness.rates().floor_s(num_bytes=4 * size)
    yield timed(f"noise alone: {size / 1e6:.0f} million normals", timing, floor=floor, note=note)


def rates() -> Iterator[Row]:
    """Candidates beside bare forward passes, both run in turn."""
    found = shapes.problem("gpt2", num_rows=NUM_ROWS, length=LENGTH, dtype=jnp.float32)
    floor = harness.rates().floor_s(flop=flops(shapes.objective(found.model).loss, found.params, found.batch))
    base = float(_forwards(1)())
    del found
    for name, way in WAYS.items():
        stepper, num = _stepper(**way), _num(way)
        note = harness.check_same("the base point", stepper.base_score(), base, tolerance=BASE_TOLERANCE)
        ours, bare = harness.interleave(partial(stepper.run, 0, 1), _forwards(NUM_BARE))
        each = harness.Timing(ours.wall_s / num, ours.cpu_s / num)
        forward = harness.Timing(bare.wall_s / NUM_BARE, bare.cpu_s / NUM_BARE)
        yield timed(f"a candidate, {name}", each, floor=floor)
        yield compared(f"its rate / that of bare forward passes, {name}", harness.ratio(forward.wall_s, each.wall_s),
                       floor=1, note=note)  # fmt: skip


def memory() -> Iterator[Row]:
    """What a run adds to the weights."""
    base = 4 * _draw()[1] / 1e6
    config = shapes.CONFIGS["gpt2"]
    largest = config["vocab_size"] * config["n_embd"] * 4 / 1e6
    for name, way in WAYS.items():
        if way["antithetic"]:
            added = harness.peak_bytes("benchmarks.language_sweeps", "--way", name) / 1e6
            planned = _stepper(**way).compiled.memory_analysis().temp_size_in_bytes / 1e6
            note = f"the compiler plans {planned:.0f} MB; weights {base:.0f} MB, embedding {largest:.0f} MB"
            yield Row(f"memory that a run adds, {name}", added, "MB", note=note)


def measure() -> Iterator[Row]:
    """The rows."""
    yield from noise()
    yield from rates()
    yield from memory()


def main() -> None:
    """Memory of one way: `--memory --way NAME`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", action="store_true", required=True)
    parser.add_argument("--way", choices=[*WAYS], required=True)
    stepper = _stepper(**WAYS[parser.parse_args().way])
    harness.print_peak(lambda: stepper.run(0, 1))


if __name__ == "__main__":
    main()
