"""A language model of eight leaves, no two axes of which are mistaken for each other, split or whole."""

import jax
import jax.numpy as jnp
import numpy as np

from lacuna import trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.models import causal_lm, next_token_nats
from lacuna.types import Objective

MODEL = causal_lm(
    spec_from_config(
        {"model_type": "olmo", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 112}
        | {"num_hidden_layers": 2, "num_attention_heads": 8, "tie_word_embeddings": True}
    )
)
PARAMS = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, MODEL.init(jax.random.key(0)))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 7)))


def loss(params, tokens):
    """Mean cross-entropy of the next token."""
    return jnp.mean(next_token_nats(MODEL, params, tokens))


def perturbed_loss(params, move, tokens):
    """The same where each leaf, and each layer of a stacked one, is moved as it is used."""
    rest = trees.map_named(lambda name, leaf: move(name, None, leaf), {"embedding": params["embedding"]})

    def of_layer(layer, weights):
        return trees.map_named(lambda name, leaf: move(f"layers/{name}", layer, leaf), weights)

    return jnp.mean(next_token_nats(MODEL, {**params, **rest}, tokens, layer_map=of_layer))


LAYERWISE = Objective(loss, perturbed_loss=perturbed_loss)
