"""Many recoveries at once: 8 pipelines in one compiled program beside a Python loop of 8.

    python -m benchmarks pipelines

Question: what does a sweep over seeds of "recover, take the prefix basis, read all captures" gain from being
one program? Each pipeline has P = 1e5, 32 recorded steps of momentum, one orthonormalisation of its updates and
32 prefix captures. The floor is that of the training: three products with every weight for each row of the batch.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, timed
from lacuna import geometry, trees
from lacuna.training import RecoverConfig, recover, trajectory

NUM_PIPELINES, NUM_STEPS, WIDTH = 8, 32, 220
CONFIG = RecoverConfig("momentum", 0.05, num_steps=NUM_STEPS)
TOLERANCE = 1e-5
"""Of captures, which are shares of one: float32 sums over the steps in other orders."""


def loss(params: Any, batch: Any) -> jax.Array:
    """Two square layers, mean squared error to a target of the batch."""
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)


def params_of(seed: Any) -> Any:
    """P = 96,800 weights."""
    keys = jax.random.split(jax.random.key(seed))
    first, second = (jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys)
    return {"first": first, "second": second}


class Batches:
    """`batch_at(step)`, a pytree whose only leaf is its seed."""

    def __init__(self, seed: Any):
        self.seed = seed

    def __call__(self, step: Any) -> Any:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(self.seed), step), (16, WIDTH))
        return x, jnp.sin(3 * x)


jax.tree_util.register_pytree_node(Batches, lambda b: ((b.seed,), None), lambda _, c: Batches(*c))


def pipeline(seed: Any, *, by_row: bool = False) -> jax.Array:
    """Prefix captures of the whole displacement, f32[32]."""
    path = trajectory(loss, params_of(seed), Batches(seed), CONFIG)
    whole = jax.tree.map(lambda u: jnp.sum(u, axis=0), path.updates)
    return geometry.prefix_captures(path.updates, whole, by_row=by_row)


def measure() -> Iterator[Row]:
    """The rows."""
    seeds = jnp.arange(NUM_PIPELINES)
    by_vmap = jax.jit(jax.vmap(pipeline))
    # Traced code cannot tell that it will run on one CPU: it is told.
    by_map = jax.jit(lambda seeds: jax.lax.map(partial(pipeline, by_row=jax.default_backend() == "cpu"), seeds))
    points = [params_of(seed) for seed in range(NUM_PIPELINES)]

    def loop() -> list[jax.Array]:
        found = []
        for seed, params in enumerate(points):
            path = recover(loss, params, Batches(jnp.int32(seed)), CONFIG)
            whole = jax.tree.map(lambda u: jnp.sum(u, axis=0), path.updates)
            found.append(geometry.prefix_captures(path.updates, whole))
        return found

    captures = np.stack(loop())
    notes = [
        harness.check_same("pipelines", program(seeds), captures, tolerance=TOLERANCE) for program in (by_map, by_vmap)
    ]
    flop = NUM_PIPELINES * NUM_STEPS * 3 * 2 * 16 * trees.size(points[0])
    floor = harness.rates().floor_s(flop=flop)
    mapped, looped = harness.interleave(lambda: by_map(seeds), loop)
    vmapped = harness.once(lambda: by_vmap(seeds))[0]
    yield timed("one program, lax.map", mapped, floor=floor, note=notes[0])
    yield timed("Python loop over jitted kernels", looped, floor=floor)
    yield Row("one program, vmap", vmapped, "s", floor=floor, note=notes[1])
    yield compared("lax.map / Python loop, wall", harness.ratio(mapped.wall_s, looped.wall_s), goal="<= 1")
