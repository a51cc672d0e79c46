"""GPT-2 at full size: compile time, tokens a second beside torch, gradients of single rows, the price of steering.

    python -m benchmarks language_models

Questions: does compiling stay flat in the number of layers? How do the forward pass and the gradient of all 124
million parameters compare with transformers on torch, on one core and on two? What do the gradients of eight rows
by an adapter cost beside the one gradient of their batch? Is a steer of zeros free? Random float32 weights, eight
rows of 64 tokens. The floor is the matrix products alone at this machine's rate for a square one.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from lacuna import models
from lacuna.checkpoints.configs import spec_from_config
from lacuna.derivatives import example_gradients, gradient

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
)
NUM_ROWS, LENGTH, LORA_RANK = 8, 64, 8


def loss(params: Any, tokens: Any, *, model: models.Model) -> jax.Array:
    """Mean cross-entropy of the next token; all logits at once, as torch does it."""
    return jnp.mean(models.next_token_nats(model, params, tokens, chunk=0))


def adapter_loss(params: Any, factors: Any, tokens: Any) -> jax.Array:
    """The same by the factors of an adapter, the weights frozen."""
    lora = models.Lora(factors, 2.0)
    return jnp.mean(models.next_token_nats(models.causal_lm(SPEC), params, tokens, chunk=0, lora=lora))


def tokens() -> jax.Array:
    """Random ones."""
    return jnp.asarray(np.random.default_rng(0).integers(0, SPEC.vocab_size, (NUM_ROWS, LENGTH)))


def compile_seconds(num_layers: int) -> float:
    """To lower and compile the loss and its gradient by all parameters."""
    model = models.causal_lm(replace(SPEC, num_layers=num_layers))
    abstract = jax.eval_shape(model.init, jax.random.key(0)), jax.eval_shape(tokens)
    began = time.perf_counter()
    jax.jit(jax.value_and_grad(partial(loss, model=model))).lower(*abstract).compile()
    return time.perf_counter() - began


def num_products() -> int:
    """Multiply-adds with a weight for each token in a forward pass."""
    width, hidden = SPEC.width, SPEC.mlp_width
    return SPEC.num_layers * (4 * width * width + 2 * width * hidden) + width * SPEC.vocab_size


def torch_programs(num_threads: int) -> dict[str, Any]:
    """Forward pass and gradient by transformers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(num_threads)
    peer = GPT2LMHeadModel(GPT2Config()).eval()
    given = torch.from_numpy(np.asarray(tokens()).astype(np.int64))

    def forward() -> Any:
        with torch.no_grad():
            return peer(given, use_cache=False).logits.numpy()

    def backward() -> Any:
        peer.zero_grad(set_to_none=True)
        logits = peer(given, use_cache=False).logits[:, :-1]
        found = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), given[:, 1:].reshape(-1))
        found.backward()
        return found.item()

    return {"forward": forward, "forward and backward": backward}


def throughput(num_cores: int) -> list[str]:
    """Rows of the table of tokens a second."""
    model = models.causal_lm(SPEC)
    params, rows = model.init(jax.random.key(0)), tokens()
    forward = jax.jit(lambda p, t: model.apply(p, t).logits)
    backward = jax.jit(jax.value_and_grad(partial(loss, model=model)))
    ours = {"forward": lambda: forward(params, rows), "forward and backward": lambda: backward(params, rows)}
    theirs = torch_programs(num_cores)
    rate, lines = harness.gemm_rate(), []
    for (name, mine), times in zip(ours.items(), (1, 3), strict=True):
        one, other = harness.interleave(mine, theirs[name])
        floor = times * 2 * num_products() * rows.size / rate
        per_s = [rows.size / np.median(timing.wall_s) for timing in (one, other)]
        lines.append(
            f"| {name}, {num_cores} core(s) | {one}: {per_s[0]:.0f} | {other}: {per_s[1]:.0f} | "
            f"{harness.ratio(one.wall_s, other.wall_s)} | {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s |"
        )
    return lines


def on_cores(num_cores: int) -> list[str]:
    """`throughput` in a process of its own that may use so many cores."""
    command = [sys.executable, "-m", "benchmarks.language_models", "--cores", str(num_cores)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def adapters_and_steering() -> list[str]:
    """Gradients of single rows beside that of the batch, and a steer of zeros beside none."""
    model = models.causal_lm(SPEC)
    params, rows = model.init(jax.random.key(0)), tokens()
    shapes = {"A": (SPEC.num_layers, SPEC.width, LORA_RANK), "B": (SPEC.num_layers, LORA_RANK, 3 * SPEC.width)}
    pair = {name: 0.01 * jax.random.normal(jax.random.key(1), shape) for name, shape in shapes.items()}
    factors = {"layers": {"attention": {"qkv": pair}}}
    held = jax.tree_util.Partial(adapter_loss, params)
    runs = {"one gradient of the batch": lambda: gradient(held, factors, rows)}
    for chunk in (1, 2, 4, 8):
        runs[f"a gradient of each row, {chunk} at a time"] = partial(
            example_gradients, held, factors, rows, chunk=chunk
        )
    timings = harness.interleave(*runs.values())
    lines = ["| by an adapter of rank 8 at every `attention/qkv` | time | beside the batch |", "|---|---|---|"]
    for name, timing in zip(runs, timings, strict=True):
        lines.append(f"| {name} | {timing} | {harness.ratio(timing.wall_s, timings[0].wall_s)} |")
    forward = jax.jit(lambda p, t, s: model.apply(p, t, steer=s).logits)
    zeros = jnp.zeros((SPEC.num_layers + 1, SPEC.width))
    plain, steered = harness.interleave(lambda: forward(params, rows, None), lambda: forward(params, rows, zeros))
    return [*lines, "", f"- steer of zeros / none, wall: {harness.ratio(steered.wall_s, plain.wall_s)}"]


def report() -> list[str]:
    """The lines of the report."""
    compiled = ", ".join(f"{layers} layers {compile_seconds(layers):.2f} s" for layers in (6, 12, 24, 48))
    table = [
        "| what | lacuna: tokens a second | transformers on torch: tokens a second | lacuna / torch, wall | floor |",
        "|---|---|---|---|---|",
        *on_cores(1),
        *on_cores(2),
    ]
    return [f"- compiling loss and gradient: {compiled}", "", *table, "", *adapters_and_steering(), ""]


def main() -> None:
    """Throughput on so many cores: `--cores N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", type=int, required=True)
    num_cores = parser.parse_args().cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])  # before the first device is made
    print("\n".join(throughput(num_cores)))


if __name__ == "__main__":
    main()
