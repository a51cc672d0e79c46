"""Steering: a grid of arms in one call, and the null of a cosine by matrix products.

    python -m benchmarks steering

First question, on a GPT-2 of 6 layers of width 256 with 4,096 tokens: what do 64 arms (a vector, a level, a strength
and positions each) cost in one compiled call, one arm after the other and several side by side, beside 64 calls of one
arm and beside 64 calls of a compiled function that steers by hand (goal: at most 1.0 of it)? Random float32 weights,
eight prompts of 32 tokens for answers, two rows of 64 tokens for text. The floor is the matrix products of 64 forward
passes alone, at this machine's rate for a square one.

Second question: what does the null of a cosine map cost, all levels by eight tokens of the prompt by 1,000 shuffled
labellings, beside a loop over labellings, each a gradient and a pushforward (goal: tens of times less)? A random Qwen2
of 5 layers of width 64, 64 prompts to fit on and 32 held out, of 24 tokens. The loop is run for 20 labellings and
counted fifty times. The floor is the products of its passes: forward, and twice that backward, for each prompt to fit
on, and for each of them a tangent through the held-out ones; those of the 1,000 labellings are half as much again.
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
    {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 4096}
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


NULL_SPEC = spec_from_config(
    {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "vocab_size": 512}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
)
NUM_FIT, NUM_HELD_OUT, LENGTH, NUM_SHUFFLED, NUM_LOOPED = 64, 32, 24, 1000, 20


def null_of_a_map() -> list[str]:
    """1,000 labellings at once against a loop over them."""
    model, rng = models.causal_lm(NULL_SPEC), np.random.default_rng(2)
    params = model.init(jax.random.key(0))
    margin, stream = partial(steering.choice_margin, model), partial(steering.read_stream, model)
    fit, held_out = (
        Prompts(
            rng.integers(0, NULL_SPEC.vocab_size, (num, LENGTH)).astype(np.int32),
            np.full(num, LENGTH, np.int32),
            np.broadcast_to(np.array([3, 9], np.int32), (num, 2)),
            (np.arange(num) % 2).astype(np.int32),
        )
        for num in (NUM_FIT, NUM_HELD_OUT)
    )
    read = steering.Read(back=tuple(range(8)))
    at = steering.reading(stream, held_out.tokens, read.weights(held_out.spans))

    def by_products() -> Any:
        return steering.cosine_map(margin, stream, params, fit, held_out, read=read, num_shuffled=NUM_SHUFFLED)

    def by_loop() -> Any:
        found = []
        for labels in steering.shuffled_labels(fit.positive, NUM_LOOPED, seed=0):
            rows = fit._replace(right=np.where(labels, 0, 1).astype(np.int32))
            found.append(steering.pushforward(at, params, steering.label_step(margin, params, rows)))
        return found

    of_map, of_loop = harness.interleave(by_products, by_loop, num_pairs=NUM_PAIRS)
    times = NUM_SHUFFLED / NUM_LOOPED
    by_cpu, by_wall = (harness.ratio(getattr(of_loop, by), getattr(of_map, by)) for by in ("cpu_s", "wall_s"))
    block = 2 * NULL_SPEC.width**2 + 2 * NULL_SPEC.width * NULL_SPEC.num_kv_heads * NULL_SPEC.head_width
    block += 3 * NULL_SPEC.width * NULL_SPEC.mlp_width
    passes = NUM_FIT * (3 + NUM_HELD_OUT) * 2 * LENGTH * NULL_SPEC.num_layers * block
    return [
        f"| null of {NULL_SPEC.num_layers + 1} levels by 8 tokens | time |",
        "|---|---|",
        f"| {NUM_SHUFFLED:,} labellings by products | {of_map} |",
        f"| {NUM_LOOPED} labellings in a loop | {of_loop} |",
        "",
        f"- a loop over {NUM_SHUFFLED:,} labellings would take {times:.0f} x {by_cpu} = {times * by_cpu.median:.0f} "
        f"times the CPU time, {times:.0f} x {by_wall} = {times * by_wall.median:.0f} times the time on the clock",
        f"- floor of the products: {passes / harness.gemm_rate():.2f} s",
        "",
    ]


def report() -> list[str]:
    """The lines of the report."""
    return [*arms_in_one_call(), *null_of_a_map()]
