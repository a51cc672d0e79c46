"""A small model of each family and a contrast for it: random, and cheap to compile."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lacuna import keys, models, steering
from lacuna.tasks import Prompts

GPT2 = models.CausalLMSpec(
    vocab_size=23, max_positions=16, num_layers=2, width=12, mlp_width=20, num_heads=3, num_kv_heads=3, head_width=4,
    norm="layer", norm_eps=1e-5, rotary_base=None, fused_qkv=True, qkv_bias=True, out_bias=True, mlp_bias=True,
    activation="gelu_tanh", gated=False,
)  # fmt: skip
QWEN = models.CausalLMSpec(
    vocab_size=23, max_positions=16, num_layers=2, width=12, mlp_width=20, num_heads=2, num_kv_heads=1, head_width=6,
    norm="rms", norm_eps=1e-6, rotary_base=1e3, qkv_bias=True, activation="silu", gated=True, tied=False,
)  # fmt: skip
SYNTHETIC = models.SyntheticSpec(vocab_size=23, max_length=16, num_layers=2, width=12, num_heads=2, mlp_width=20)

SPECS = {"gpt2": GPT2, "qwen2": QWEN, "synthetic": SYNTHETIC}


class Tiny(NamedTuple):
    """A model at a point, and functions of the point."""

    model: models.Model
    params: Any
    stream: Any
    margin: Any


def tiny(name: str = "qwen2", *, scale: float = 3.0) -> Tiny:
    """A random model with weights so large that it is far from linear."""
    spec = SPECS[name]
    model = models.synthetic(spec) if name == "synthetic" else models.causal_lm(spec)
    params = jax.tree.map(lambda x: scale * x, model.init(keys.root(0)))
    return Tiny(model, params, partial(steering.read_stream, model), partial(steering.choice_margin, model))


def prompts(num_rows: int, *, seed: int = 0, num_positive: int | None = None) -> Prompts:
    """Rows of 5 to 9 random tokens; what is behind them is not zero, for nothing may depend on it."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 23, (num_rows, 9)).astype(np.int32)
    length = random.integers(5, 10, num_rows).astype(np.int32)
    right = np.ones(num_rows, np.int32)
    right[: num_rows // 2 if num_positive is None else num_positive] = 0
    return Prompts(tokens, length, np.tile(np.asarray([[4, 17]], np.int32), (num_rows, 1)), random.permutation(right))


def like(params: Any, *, seed: int = 0, scale: float = 1.0) -> Any:
    """A random delta."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * random.normal(size=x.shape), x.dtype), params)
