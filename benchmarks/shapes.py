"""Language models of the true shapes with random weights, and what a candidate of them costs at least."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lacuna import keys, models, trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.models.model import Model
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch
from lacuna.types import Objective, Params

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
    },
    "qwen2.5-0.5b": {
        **_QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        **_QWEN, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""As they were released."""


class Problem(NamedTuple):
    """A language model and rows that candidates are scored on."""

    model: Model
    params: Params
    batch: Batch


def problem(name: str, *, num_rows: int, length: int, dtype: Any) -> Problem:
    """A model of a shape, its matrices in a dtype and never in another, and random tokens.

    Args:
      name: one of `CONFIGS`.
      num_rows: B.
      length: S.
      dtype: of the matrices; vectors are float32.
    """
    model = models.causal_lm(spec_from_config(CONFIGS[name]))
    shapes = jax.eval_shape(model.init, keys.root(0))

    def of_leaf(leaf_name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_vector = len(leaf.shape) - model.stacked(leaf_name) < 2
        if is_vector:
            return jnp.full(leaf.shape, float(leaf_name.endswith("scale")), jnp.float32)
        return _normal(keys.leaf(keys.root(0), leaf_name), leaf.shape, dtype)

    params = trees.map_named(of_leaf, shapes)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.spec.vocab_size, (num_rows, length)), jnp.int32)
    return Problem(model, params, Batch(tokens, jnp.broadcast_to(jnp.arange(length) > 0, tokens.shape)))


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def objective(model: Model, *, layerwise: bool = False, chunk: int | None = None) -> Objective:
    """Mean cross-entropy of the next token, as a sweep scores it.

    Args:
      model: of `causal_lm`.
      layerwise: noise is made one layer at a time.
      chunk: tokens that the head is applied to at a time.
    """
    loss = language_loss(Partial(partial(models.next_token_nats, model, chunk=chunk)))
    return models.searchable(loss, layerwise=layerwise)
