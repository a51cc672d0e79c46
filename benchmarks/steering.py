"""Steering: a grid of arms in one call, and the null of a cosine by matrix products.

    python -m benchmarks steering

First question, on a GPT-2 of 3 layers of width 256 with 4,096 tokens: what do 64 arms (a vector, a level, a strength
and positions each) cost in one compiled call, one arm after the other and several side by side, beside 64 calls of one
arm and beside 64 calls of a compiled function that steers by hand (goal: at most 1.0 of it)? Random float32 weights,
eight prompts of 32 tokens for answers, two rows of 64 tokens for text. The floor is the matrix products of 64 forward
passes alone, at this machine's rate for a square one.

Second question: what does the null of a cosine map cost, all levels by eight tokens of the prompt by 1,000 shuffled
labellings, beside a loop over labellings, each a gradient and a pushforward (goal: tens of times less)? A random Qwen2
of 5 layers of width 64, 64 prompts to fit on and 32 held out, of 24 tokens. The loop is run for 10 labellings and
counted a hundred times. The floor is the products of its passes: forward, and twice that backward, for each prompt to
fit on, and for each of them a tangent through the held-out ones; those of the 1,000 labellings are half as much again.

Third question: what do contrast vectors (CAA) of every level cost beside the library steering-vectors, from the same
weights and 64 pairs of prompts of one length, on a GPT-2 of 6 layers of width 256?
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, needs, timed
from lacuna import models, steering
from lacuna.checkpoints import export_hf
from lacuna.checkpoints.configs import spec_from_config
from lacuna.tasks.contrast import Prompts, Spans

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 256, "n_layer": 3, "n_head": 8, "n_positions": 256, "vocab_size": 4096}
)
NUM_ARMS = 64
PROMPT_SHAPE, TEXT_SHAPE = (8, 32), (2, 64)
WIDTHS = (1, 4)
NULL_TOLERANCE = 1e-3
"""Of cosines, of which the smallest shifts have the most rounding."""
TOLERANCE = 1e-4
"""Of log odds, nulls and vectors, relative to the largest: float32 in other orders."""


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


def num_flop(num_tokens: int, num_heads: int) -> int:
    """Of the matrix products of 64 forward passes, the head applied so many times in each."""
    blocks = SPEC.num_layers * (4 * SPEC.width**2 + 2 * SPEC.width * SPEC.mlp_width)
    return NUM_ARMS * 2 * (num_tokens * blocks + num_heads * SPEC.width * SPEC.vocab_size)


def arms_in_one_call() -> Iterator[Row]:
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

    by_arm = np.stack([np.asarray(odds) for odds in steers()])
    note = harness.check_same("arms", answers(grid, masks).log_odds, by_arm, tolerance=TOLERANCE)
    rates = harness.rates()
    flop = {
        "answers": num_flop(PROMPT_SHAPE[0] * PROMPT_SHAPE[1], PROMPT_SHAPE[0]),
        "text": num_flop(TEXT_SHAPE[0] * TEXT_SHAPE[1], TEXT_SHAPE[0] * TEXT_SHAPE[1]),
    }
    for what, measured in {"answers": answers, "text": cost}.items():
        where = (masks,) if what == "answers" else ()
        runs = {"one call for each arm": lambda m=measured, w=where: [m(one, *w) for one in alone]}
        if what == "answers":
            runs["by hand, log odds alone, a call for each"] = steers
        for width in WIDTHS:
            runs[f"one call, {width} side by side"] = partial(measured, grid, *where, width=width)
        timings = dict(zip(runs, harness.interleave(*runs.values()), strict=True))
        for name, timing in timings.items():
            yield timed(f"{NUM_ARMS} arms, {what}: {name}", timing, floor=rates.floor_s(flop=flop[what]))
        for width in WIDTHS:
            for peer in list(runs)[: -len(WIDTHS)]:
                one = timings[f"one call, {width} side by side"]
                yield compared(f"{what}: one call, {width} side by side / {peer}, wall",
                               harness.ratio(one.wall_s, timings[peer].wall_s), goal="<= 1",
                               note=note if what == "answers" else "")  # fmt: skip


NULL_SPEC = spec_from_config(
    {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "vocab_size": 512}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
)
NUM_FIT, NUM_HELD_OUT, LENGTH, NUM_SHUFFLED, NUM_LOOPED = 64, 32, 24, 1000, 10


def null_of_a_map() -> Iterator[Row]:
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

    labellings = steering.shuffled_labels(fit.positive, NUM_SHUFFLED, seed=0)[:NUM_LOOPED]

    def by_products() -> Any:
        return steering.cosine_map(margin, stream, params, fit, held_out, read=read, num_shuffled=NUM_SHUFFLED)

    def by_loop() -> list[jax.Array]:
        steps = (
            steering.label_step(margin, params, fit._replace(right=np.where(labels, 0, 1).astype(np.int32)))
            for labels in labellings
        )
        return [steering.pushforward(at, params, step) for step in steps]

    found = by_products()
    shifts = np.mean(np.stack(by_loop()), axis=2)
    cosines = np.sum(shifts * found.contrast, axis=-1) / (
        np.linalg.norm(shifts, axis=-1) * np.linalg.norm(found.contrast, axis=-1)
    )
    null = found.nulls["mean", "gradient"].values[:NUM_LOOPED]
    note = harness.check_same("null of a cosine", null, cosines, tolerance=NULL_TOLERANCE)
    of_map, of_loop = harness.interleave(by_products, by_loop)
    times = NUM_SHUFFLED / NUM_LOOPED
    block = 2 * NULL_SPEC.width**2 + 2 * NULL_SPEC.width * NULL_SPEC.num_kv_heads * NULL_SPEC.head_width
    block += 3 * NULL_SPEC.width * NULL_SPEC.mlp_width
    passes = NUM_FIT * (3 + NUM_HELD_OUT) * 2 * LENGTH * NULL_SPEC.num_layers * block
    what = f"null of {NULL_SPEC.num_layers + 1} levels by 8 tokens"
    yield timed(f"{what}: {NUM_SHUFFLED:,} labellings by products", of_map, floor=harness.rates().floor_s(flop=passes))
    yield timed(f"{what}: {NUM_LOOPED} labellings in a loop", of_loop)
    for by, clock in (("cpu_s", "CPU"), ("wall_s", "wall")):
        beside = harness.ratio(times * getattr(of_loop, by), getattr(of_map, by))
        yield compared(f"{what}: a loop over {NUM_SHUFFLED:,} / by products, {clock}", beside, goal=">= 10", note=note)


CAA_SPEC = {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 4096}
NUM_QUESTIONS, CAA_BATCH = 64, 32


@needs("torch", "transformers", "steering_vectors")
def contrast_vectors() -> Iterator[Row]:
    """Contrast vectors beside steering-vectors on transformers."""
    import torch
    from steering_vectors import train_steering_vector
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = models.causal_lm(spec_from_config(CAA_SPEC))
    params = model.init(jax.random.key(0))
    with tempfile.TemporaryDirectory() as scratch:
        peer = GPT2LMHeadModel.from_pretrained(export_hf(model, params, Path(scratch) / "model")).eval()
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(CAA_SPEC["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    tokens = np.random.default_rng(3).integers(1, CAA_SPEC["vocab_size"], (2, NUM_QUESTIONS, LENGTH)).astype(np.int32)
    texts = [[" ".join(f"w{i}" for i in row) for row in side] for side in tokens]
    ends = np.full(NUM_QUESTIONS, LENGTH, np.int32)
    positive, negative = (Spans(side, ends - 1, ends, ends - 1) for side in tokens)
    read = steering.Read("index", index=-1)

    def ours() -> np.ndarray:
        return steering.paired(model, params, positive, negative, read=read, batch_size=CAA_BATCH).vectors[1:, 0]

    def theirs() -> np.ndarray:
        pairs = list(zip(*texts, strict=True))
        found = train_steering_vector(peer, tokenizer, pairs, batch_size=CAA_BATCH).layer_activations
        return np.stack([found[level].numpy() for level in sorted(found)])

    note = harness.check_same("contrast vectors", ours(), theirs(), tolerance=TOLERANCE)
    mine, other = harness.interleave(ours, theirs)
    blocks = 12 * CAA_SPEC["n_layer"] * CAA_SPEC["n_embd"] ** 2
    floor = harness.rates().floor_s(flop=2 * 2 * NUM_QUESTIONS * LENGTH * blocks)
    what = f"contrast vectors of {NUM_QUESTIONS} pairs at every level"
    yield timed(f"lacuna: {what}", mine, floor=floor)
    yield timed(f"steering-vectors: {what}", other, floor=floor, note="which takes text, and splits it")
    yield compared("lacuna / steering-vectors, wall", harness.ratio(mine.wall_s, other.wall_s), goal="<= 1", note=note)


def measure() -> Iterator[Row]:
    """The rows."""
    yield from arms_in_one_call()
    yield from null_of_a_map()
    yield from contrast_vectors()
