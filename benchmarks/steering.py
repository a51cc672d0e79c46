"""Steering DistilGPT-2 at full size: a grid of arms in one call.

    python -m benchmarks steering

Question: what do 64 arms (a vector, a level, a strength and positions each) cost in one compiled call, one arm after
the other and several side by side, beside 64 calls of one arm and beside 64 calls of a compiled function that steers by
hand (goal: at most 1.0 of it)? Random float32 weights, eight prompts of 32 tokens for answers, two rows of 64 tokens
for text. The floor is the matrix products of 64 forward passes alone, at this machine's rate for a square one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from lacuna import models, steering
from lacuna.checkpoints.configs import spec_from_config
from lacuna.tasks.contrast import Prompts

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
)
NUM_ARMS, NUM_PAIRS = 64, 5
PROMPT_SHAPE, TEXT_SHAPE = (8, 32), (2, 64)
WIDTHS = (1, 4, 16)


def prompts() -> Prompts:
    """Random ones, all of one length, with two choices."""
    rng, (num_rows, length) = np.random.default_rng(0), PROMPT_SHAPE
    tokens = rng.integers(0, SPEC.vocab_size, PROMPT_SHAPE).astype(np.int32)
    choices = np.broadcast_to(np.array([3, 9], np.int32), (num_rows, 2))
    return Prompts(tokens, np.full(num_rows, length, np.int32), choices, rng.integers(0, 2, num_rows).astype(np.int32))


@partial(jax.jit, static_argnums=0)
def by_hand(model: models.Model, params: Any, tokens: jax.Array, steer: jax.Array) -> jax.Array:
    """The log odds of one arm, as one would write it: no mass, and no divergence."""
    logits = models.choice_logits(model, params, tokens, jnp.array([3, 9]), steer=steer)
    return logits[:, 0] - logits[:, 1]


def floor_s(num_tokens: int, num_heads: int, rate: float) -> float:
    """Seconds of the matrix products of 64 forward passes, the head applied so many times in each."""
    blocks = SPEC.num_layers * (4 * SPEC.width**2 + 2 * SPEC.width * SPEC.mlp_width)
    return NUM_ARMS * 2 * (num_tokens * blocks + num_heads * SPEC.width * SPEC.vocab_size) / rate


def arms_in_one_call() -> list[str]:
    """64 arms in one call against one call for each."""
    model = models.causal_lm(SPEC)
    params = model.init(jax.random.key(0))
    rows, rng = prompts(), np.random.default_rng(1)
    vectors = rng.normal(size=(4, SPEC.num_layers + 1, SPEC.width)).astype(np.float32)
    masks = steering.position_masks(rows, ("last", "all"))
    grid = steering.grid(model, vectors=range(4), levels=(1, 3), strengths=(-0.1, -0.05, 0.05, 0.1), masks=(0, 1))
    text = rng.integers(0, SPEC.vocab_size, TEXT_SHAPE).astype(np.int32)
    answers = partial(steering.steered_answers, model, params, rows, vectors)
    cost = partial(steering.steered_text, model, params, text, vectors)
    alone = [steering.Arms(*(part[i : i + 1] for part in grid)) for i in range(NUM_ARMS)]
    tokens = jnp.asarray(rows.tokens)

    def steers() -> list[jax.Array]:
        found = []
        for vector, level, strength, mask in zip(*grid, strict=True):
            added = np.zeros((SPEC.num_layers + 1, *PROMPT_SHAPE, SPEC.width), np.float32)
            added[level] = masks[mask, :, :, None] * strength * vectors[vector, level]
            found.append(by_hand(model, params, tokens, jnp.asarray(added)))
        return found

    rate = harness.gemm_rate()
    floors = {
        "answers": floor_s(PROMPT_SHAPE[0] * PROMPT_SHAPE[1], PROMPT_SHAPE[0], rate),
        "text": floor_s(TEXT_SHAPE[0] * TEXT_SHAPE[1], TEXT_SHAPE[0] * TEXT_SHAPE[1], rate),
    }
    lines = [
        "| 64 arms | wall | beside one call for each arm, wall | CPU | floor |",
        "|---|---|---|---|---|",
    ]
    for what, measured in {"answers": answers, "text": cost}.items():
        where = (masks,) if what == "answers" else ()
        runs = {"one call for each arm": lambda m=measured, w=where: [m(one, *w) for one in alone]}
        for width in WIDTHS:
            runs[f"one call, {width} side by side"] = partial(measured, grid, *where, width=width)
        if what == "answers":
            runs["by hand, log odds alone, a call for each"] = steers
        timings = harness.interleave(*runs.values(), num_pairs=NUM_PAIRS)
        for name, timing in zip(runs, timings, strict=True):
            ratios = (harness.ratio(getattr(timing, by), getattr(timings[0], by)) for by in ("wall_s", "cpu_s"))
            lines.append(f"| {what}: {name} | {timing} | {' | '.join(map(str, ratios))} | {floors[what]:.2f} s |")
    return [*lines, "", f"- products at {rate / 1e9:.0f} GFLOP/s", ""]


def report() -> list[str]:
    """The lines of the report."""
    return arms_in_one_call()
