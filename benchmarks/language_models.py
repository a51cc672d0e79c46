"""GPT-2 at full size: compile time, the forward pass and the gradient beside torch, gradients of rows, steering.

    python -m benchmarks language_models

Questions: does compiling stay flat in the number of layers? How do the forward pass and the gradient of all 124
million parameters compare with transformers on torch, on one core and on two? What do the gradients of eight rows
by an adapter cost beside the one gradient of their batch? Is a steer of zeros free? Random float32 weights, the same in
both libraries, eight rows of 32 tokens. The floor is the matrix products alone at this machine's rate for a square one.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, from_process, needs, show, timed
from lacuna import models
from lacuna.checkpoints import export_hf
from lacuna.checkpoints.configs import spec_from_config
from lacuna.derivatives import example_gradients, gradient

SPEC = spec_from_config(
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
)
NUM_ROWS, LENGTH, LORA_RANK = 8, 32, 8
NUM_LAYERS = (6, 12, 48)
TOLERANCE = 1e-4
"""Of logits and gradients, relative to their largest number: float32 through 12 layers."""


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


def compiling() -> Iterator[Row]:
    """Seconds of a first call, by the number of layers."""
    compile_seconds(2)  # what a process compiles first pays for much else
    found = {num: compile_seconds(num) for num in NUM_LAYERS}
    for num, seconds in found.items():
        yield Row(f"compiling the loss and its gradient, {num} layers", seconds, "s")
    few, many = NUM_LAYERS[0], NUM_LAYERS[-1]
    yield Row(
        f"the same, {many} layers / {few} layers", found[many] / found[few], goal="<= 1.5", note="one run of each"
    )


def num_products() -> int:
    """Multiply-adds with a weight for each token in a forward pass."""
    width, hidden = SPEC.width, SPEC.mlp_width
    return SPEC.num_layers * (4 * width * width + 2 * width * hidden) + width * SPEC.vocab_size


def torch_programs(model: models.Model, params: Any, num_threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Logits, and the gradient by the embedding as it comes with all others, by transformers."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as scratch:
        peer = GPT2LMHeadModel.from_pretrained(export_hf(model, params, Path(scratch) / "model")).eval()
    given = torch.from_numpy(np.asarray(tokens()).astype(np.int64))

    def forward() -> np.ndarray:
        with torch.no_grad():
            return peer(given, use_cache=False).logits.numpy()

    def backward() -> np.ndarray:
        peer.zero_grad(set_to_none=True)
        logits = peer(given, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), given[:, 1:].reshape(-1)).backward()
        return peer.transformer.wte.weight.grad.numpy()

    return {"forward": forward, "forward and backward": backward}


def throughput(num_cores: int) -> Iterator[Row]:
    """Both libraries on so many cores, which are those of this process."""
    model = models.causal_lm(SPEC)
    params, given = model.init(jax.random.key(0)), tokens()
    forward = jax.jit(lambda p, t: model.apply(p, t).logits)
    backward = jax.jit(jax.grad(partial(loss, model=model)))
    ours = {"forward": lambda: forward(params, given), "forward and backward": lambda: backward(params, given)}
    theirs = torch_programs(model, params, num_cores)
    rates = harness.rates()
    for name, times in (("forward", 1), ("forward and backward", 3)):
        if num_cores == 1 and times == 3:
            continue  # several seconds a run, and two cores say the same
        mine = ours[name]()
        answer = mine["embedding"] if isinstance(mine, dict) else mine
        note = harness.check_same(name, answer, theirs[name](), tolerance=TOLERANCE)
        del mine, answer
        one, other = harness.interleave(ours[name], theirs[name])
        floor = rates.floor_s(flop=times * 2 * num_products() * given.size)
        at = f"{name} of {given.size} tokens, {num_cores} core(s)"
        yield timed(f"lacuna: {at}", one, floor=floor, note=f"{given.size / np.median(one.wall_s):.0f} tokens a second")
        yield timed(f"transformers on torch: {at}", other, floor=floor)
        yield compared(f"lacuna / torch: {at}", harness.ratio(one.wall_s, other.wall_s), goal="<= 1", note=note)


@needs("torch", "transformers")
def beside_torch() -> Iterator[Row]:
    """Forward pass and gradient beside transformers on torch."""
    for num_cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        yield from from_process("benchmarks.language_models", "--cores", num_cores)


def gradients_of_rows() -> Iterator[Row]:
    """Gradients of single rows by an adapter beside that of the batch."""
    model = models.causal_lm(SPEC)
    params, given = model.init(jax.random.key(0)), tokens()
    shapes = {"A": (SPEC.num_layers, SPEC.width, LORA_RANK), "B": (SPEC.num_layers, LORA_RANK, 3 * SPEC.width)}
    pair = {name: 0.01 * jax.random.normal(jax.random.key(1), shape) for name, shape in shapes.items()}
    factors = {"layers": {"attention": {"qkv": pair}}}
    held = jax.tree_util.Partial(adapter_loss, params)
    runs = {chunk: partial(example_gradients, held, factors, given, chunk=chunk) for chunk in (1, NUM_ROWS)}
    whole = gradient(held, factors, given)["layers"]["attention"]["qkv"]["A"]
    each = np.mean(runs[NUM_ROWS]()["layers"]["attention"]["qkv"]["A"], axis=0)
    note = harness.check_same("gradients of rows", each, whole, tolerance=TOLERANCE)
    one, *timings = harness.interleave(lambda: gradient(held, factors, given), *runs.values())
    floor = harness.rates().floor_s(flop=2 * 2 * num_products() * given.size)
    by = f"by an adapter of rank {LORA_RANK} at every `attention/qkv`"
    yield timed(f"one gradient of {NUM_ROWS} rows {by}", one, floor=floor)
    for chunk, timing in zip(runs, timings, strict=True):
        yield compared(
            f"a gradient of each row / that of the batch, {chunk} at a time",
            harness.ratio(timing.wall_s, one.wall_s),
            goal="<= 1.15" if chunk == NUM_ROWS else "",
            note=note,
        )


def steering_by_zeros() -> Iterator[Row]:
    """What the argument alone costs."""
    model = models.causal_lm(SPEC)
    params, given = model.init(jax.random.key(0)), tokens()
    forward = jax.jit(lambda p, t, s: model.apply(p, t, steer=s).logits)
    zeros = jnp.zeros((SPEC.num_layers + 1, SPEC.width))
    note = harness.check_same("zeros", forward(params, given, zeros), forward(params, given, None), tolerance=0)
    steered, plain = harness.interleave(lambda: forward(params, given, zeros), lambda: forward(params, given, None))
    yield compared("steer of zeros / none", harness.ratio(steered.wall_s, plain.wall_s), goal="<= 1.05", note=note)


def measure() -> Iterator[Row]:
    """The rows."""
    yield from compiling()
    yield from beside_torch()
    yield from gradients_of_rows()
    yield from steering_by_zeros()


def main() -> None:
    """Throughput on so many cores: `--cores N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", type=int, required=True)
    num_cores = parser.parse_args().cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])  # before the first device is made
    show(throughput(num_cores))


if __name__ == "__main__":
    main()
