"""Adapters on DistilGPT-2 at full size: gradients of eight tasks, and what recording a recovery costs.

    python -m benchmarks adapters

Questions: what do the adapter gradients of eight tasks cost, one by one and together, beside the one gradient of all of
their tokens (goal: at most 1.15 of it)? What does a recovery that records every update cost beside a bare loop of the
same optimiser (goal: at most 1.10, in CPU time)? Random float32 weights, an adapter of rank 8 at every linear map,
eight tasks of two rows of 24 tokens. The floor is the matrix products alone at this machine's rate for a square one:
forward, and back by the activations; products with the factors are not counted.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.rows import Row, compared, timed
from lacuna import models
from lacuna.checkpoints.configs import spec_from_config
from lacuna.derivatives import gradient, task_gradients
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.training import RecoverConfig, recover

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
)
NUM_TASKS, NUM_ROWS, LENGTH, RANK, NUM_STEPS = 8, 2, 24, 8, 3
TOLERANCE = 1e-4
"""Of gradients, relative to their largest number: the same float32 sums in other orders."""
STEP_TOLERANCE = 1e-3
"""Of the length of Adam's way: it divides by the size of each gradient, and the rounding of the smallest ones grows."""


def batches() -> Batch:
    """Random tokens, a leading axis of tasks."""
    tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, (NUM_TASKS, NUM_ROWS, LENGTH))
    return Batch(jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(LENGTH) > 0, tokens.shape))


def num_flop() -> int:
    """Of the matrix products, forward and back, of one gradient of all tokens."""
    width, hidden = SPEC.width, SPEC.mlp_width
    products = SPEC.num_layers * (4 * width * width + 2 * width * hidden) + width * SPEC.vocab_size
    return 2 * 2 * products * NUM_TASKS * NUM_ROWS * LENGTH


def bare(loss: Any, start: Any, batch: Batch, config: RecoverConfig) -> Any:
    """As many steps of the same optimiser, of which nothing is kept."""
    optimiser = optax.adam(config.learning_rate)

    def step(state: Any, _: None) -> tuple[Any, None]:
        point, moments = state
        slope = jax.grad(loss)(point, batch)
        request, moments = optimiser.update(slope, moments, point)
        return (optax.apply_updates(point, request), moments), None

    return jax.lax.scan(step, (start, optimiser.init(start)), length=config.num_steps)[0][0]


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def always(batch: Batch, step: Any) -> Batch:
    """The same batch at every step."""
    return batch


def measure() -> Iterator[Row]:
    """The rows."""
    model = models.causal_lm(SPEC)
    params = model.init(jax.random.key(0))
    lora = models.lora_spec(model, rank=RANK, sites=".*")
    factors = jax.tree.map(lambda x: x + 0.01, lora.init(jax.random.key(1)))
    loss = language_loss(models.over_adapter(models.next_token_nats, model, params, lora))
    tasks = batches()
    together = jax.tree.map(lambda x: x.reshape(-1, LENGTH), tasks)
    runs = {chunk: partial(task_gradients, loss, factors, tasks, chunk=chunk) for chunk in (1, NUM_TASKS)}
    whole = flat(gradient(loss, factors, together))
    for chunk, run in runs.items():
        mean = flat(jax.tree.map(lambda leaf: np.mean(leaf, axis=0), run()))
        note = harness.check_same(f"gradients, {chunk} at a time", mean, whole, tolerance=TOLERANCE)
    one, *each = harness.interleave(lambda: gradient(loss, factors, together), *runs.values())
    floor = harness.rates().floor_s(flop=num_flop())
    num = f"{sum(x.size for x in jax.tree.leaves(factors)):,} factors"
    yield timed(f"one gradient of all tokens, {num}", one, floor=floor)
    for chunk, timing in zip(runs, each, strict=True):
        yield timed(f"a gradient of each of {NUM_TASKS} tasks, {chunk} at a time", timing, floor=floor, note=note)
        goal = "<= 1.15" if chunk == NUM_TASKS else ""
        yield compared(
            f"the same / one gradient, {chunk} at a time, wall", harness.ratio(timing.wall_s, one.wall_s), goal=goal
        )
    yield from recording(loss, factors, jax.tree.map(lambda x: x[:2].reshape(-1, LENGTH), tasks))


def recording(loss: Any, factors: Any, batch: Batch) -> Iterator[Row]:
    """What it costs to keep every update."""
    config = RecoverConfig("adam", 1e-4, NUM_STEPS)
    stream = jax.tree_util.Partial(always, batch)
    unkept = jax.jit(bare, static_argnums=3)
    ends = (recover(loss, factors, stream, config).end, unkept(loss, factors, batch, config))
    mine, theirs = (flat(end) - flat(factors) for end in ends)
    note = harness.check_same("displacements", mine, theirs, tolerance=STEP_TOLERANCE, size=np.linalg.norm)
    recorded, plain = harness.interleave(
        lambda: recover(loss, factors, stream, config).updates, lambda: unkept(loss, factors, batch, config)
    )
    size = 4 * sum(x.size for x in jax.tree.leaves(factors)) / 1e6
    what = f"{NUM_STEPS} steps of Adam on {batch.tokens.size} tokens"
    yield timed(f"{what}, every update ({size:.1f} MB) recorded", recorded)
    yield timed(f"{what}, nothing kept", plain)
    yield compared(
        "recorded / nothing kept, CPU", harness.ratio(recorded.cpu_s, plain.cpu_s), goal="<= 1.10", note=note
    )
