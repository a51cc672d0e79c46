"""Adapters on DistilGPT-2 at full size: gradients of eight tasks, and what recording a recovery costs.

    python -m benchmarks adapters

Questions: what do the adapter gradients of eight tasks cost, in chunks of 1 to 8, beside the one gradient of all of
their tokens (goal: at most 1.15 of it)? What does a recovery that records every update cost beside a bare loop of the
same optimiser (goal: at most 1.10, in CPU time)? Random float32 weights, an adapter of rank 8 at every linear map,
eight tasks of two rows of 32 tokens. The floor is the matrix products alone at this machine's rate for a square one:
forward, and back by the activations; products with the factors are not counted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from lacuna import models
from lacuna.checkpoints.configs import spec_from_config
from lacuna.derivatives import gradient, task_gradients
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.training import RecoverConfig, recover

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
)
NUM_TASKS, NUM_ROWS, LENGTH, RANK, NUM_STEPS = 8, 2, 32, 8, 4


def batches() -> Batch:
    """Random tokens, a leading axis of tasks."""
    tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, (NUM_TASKS, NUM_ROWS, LENGTH))
    return Batch(jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(LENGTH) > 0, tokens.shape))


def floor_s() -> tuple[float, float]:
    """Seconds of the matrix products, forward and back, of one gradient of all tokens; and the rate they run at."""
    width, hidden = SPEC.width, SPEC.mlp_width
    products = SPEC.num_layers * (4 * width * width + 2 * width * hidden) + width * SPEC.vocab_size
    rate = harness.gemm_rate()
    return 2 * 2 * products * NUM_TASKS * NUM_ROWS * LENGTH / rate, rate


def bare(loss: Any, start: Any, batch: Batch, config: RecoverConfig) -> Any:
    """As many steps of the same optimiser, of which nothing is kept."""
    optimiser = optax.adam(config.learning_rate)

    def step(state: Any, _: None) -> tuple[Any, None]:
        point, moments = state
        slope = jax.grad(loss)(point, batch)
        request, moments = optimiser.update(slope, moments, point)
        return (optax.apply_updates(point, request), moments), None

    return jax.lax.scan(step, (start, optimiser.init(start)), length=config.num_steps)[0][0]


def always(batch: Batch, step: Any) -> Batch:
    """The same batch at every step."""
    return batch


def report() -> list[str]:
    """The lines of the report."""
    model = models.causal_lm(SPEC)
    params = model.init(jax.random.key(0))
    lora = models.lora_spec(model, rank=RANK, sites=".*")
    factors = jax.tree.map(lambda x: x + 0.01, lora.init(jax.random.key(1)))
    loss = language_loss(models.over_adapter(models.next_token_nats, model, params, lora))
    tasks = batches()
    together = jax.tree.map(lambda x: x.reshape(-1, LENGTH), tasks)
    runs = {"one gradient of all tokens": lambda: gradient(loss, factors, together)}
    for chunk in (1, 2, 4, 8):
        runs[f"a gradient of each task, {chunk} at a time"] = partial(task_gradients, loss, factors, tasks, chunk=chunk)
    timings = harness.interleave(*runs.values())
    floor, rate = floor_s()
    lines = [
        f"- {sum(x.size for x in jax.tree.leaves(factors)):,} factors; floor of one gradient: {floor:.2f} s at "
        f"{rate / 1e9:.0f} GFLOP/s",
        "",
        "| gradients of 8 tasks, 512 tokens in all | wall | beside one gradient, wall | CPU |",
        "|---|---|---|---|",
    ]
    for name, timing in zip(runs, timings, strict=True):
        ratios = (harness.ratio(getattr(timing, by), getattr(timings[0], by)) for by in ("wall_s", "cpu_s"))
        lines.append(f"| {name} | {timing} | {' | '.join(map(str, ratios))} |")
    config = RecoverConfig("adam", 1e-4, NUM_STEPS)
    one = jax.tree.map(lambda x: x[:2].reshape(-1, LENGTH), tasks)
    stream = jax.tree_util.Partial(always, one)
    unkept = jax.jit(bare, static_argnums=3)
    recorded, plain = harness.interleave(
        lambda: recover(loss, factors, stream, config).updates, lambda: unkept(loss, factors, one, config)
    )
    size = 4 * sum(x.size for x in jax.tree.leaves(factors)) / 1e6
    return [
        *lines,
        "",
        f"- {NUM_STEPS} steps of Adam on {4 * LENGTH} tokens, every update ({size:.1f} MB) recorded: {recorded}; a "
        f"bare loop: {plain}; recorded / bare, CPU: {harness.ratio(recorded.cpu_s, plain.cpu_s)}, wall: "
        f"{harness.ratio(recorded.wall_s, plain.wall_s)}",
        "",
    ]
