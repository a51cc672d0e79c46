"""A model split over a mesh is the same model, and no device ever sees another's weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
from jax.sharding import PartitionSpec

from lacuna import meshes, trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.models import causal_lm, next_token_nats, sharding

SIZES = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 8}
MODELS = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 53, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 8},
    "llama": SIZES | {"model_type": "llama", "vocab_size": 64, "attention_bias": True, "mlp_bias": True},
    "qwen2": SIZES | {"model_type": "qwen2", "vocab_size": 64, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen3": SIZES | {"model_type": "qwen3", "vocab_size": 64, "num_key_value_heads": 4, "head_dim": 8},
    "olmo": SIZES | {"model_type": "olmo", "vocab_size": 64, "clip_qkv": 0.5, "tie_word_embeddings": True},
    "olmo2": SIZES | {"model_type": "olmo2", "vocab_size": 64, "num_key_value_heads": 2},
}
NUM_ROWS, LENGTH = 2, 7
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 53, (NUM_ROWS, LENGTH)))
COLLECTIVE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)"
)


def prepared(name):
    model = causal_lm(spec_from_config(MODELS[name]))
    params = model.init(jax.random.key(0))
    return model, jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, params)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("split", [2, 8])
def test_logits_are_those_of_one_device_and_so_are_gradients(name, split):
    model, params = prepared(name)
    mesh = meshes.model_mesh(split, jax.devices())
    placed = sharding.place(params, mesh)
    assert any(len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    program = jax.jit(lambda p, t: model.apply(p, t).logits).lower(placed, TOKENS).compile()
    known = model.apply(params, TOKENS).logits
    np.testing.assert_allclose(program(placed, TOKENS), known, rtol=0, atol=1e-5)
    found = [(tuple(map(int, shape.split(","))), kind) for _, shape, kind in COLLECTIVE.findall(program.as_text())]
    assert found
    for shape, kind in found:  # of tokens, never of weights
        assert shape[0] == NUM_ROWS * LENGTH or shape[:2] == (NUM_ROWS, LENGTH), (kind, shape)

    if split != 8 or name not in ("gpt2", "qwen3"):
        return

    def loss(p):
        return jnp.mean(next_token_nats(model, p, TOKENS))

    slope, expected = jax.jit(jax.grad(loss))(placed), jax.grad(loss)(params)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True):
        # The norms blow up the rounding of an embedding that is small beside them.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("name", tiny_hf.MODELS)
def test_every_leaf_that_is_large_has_axes_that_fit_it(name):
    family, sizes = tiny_hf.MODELS[name]
    spec = spec_from_config({**sizes, "model_type": {"GPT2": "gpt2"}.get(family, family.lower())})
    like = jax.eval_shape(causal_lm(spec).init, jax.random.key(0))
    for leaf_name, leaf in zip(trees.leaf_names(like), jax.tree.leaves(like), strict=True):
        stacked = leaf_name.startswith("layers/")
        axes = sharding.AXES.get(leaf_name.removeprefix("layers/"))
        assert axes is None or len(axes) + stacked == leaf.ndim, leaf_name
        assert axes is not None or not leaf_name.endswith("kernel"), leaf_name


def test_an_axis_that_does_not_divide_is_left_whole():
    mesh = meshes.model_mesh(8, jax.devices())
    assert sharding.partition("embedding", (64, 48), mesh) == PartitionSpec("model")
    assert sharding.partition("embedding", (53, 48), mesh) == PartitionSpec()
    assert sharding.partition("layers/mlp/up/kernel", (3, 48, 96), mesh) == PartitionSpec(None, None, "model")
    assert sharding.partition("layers/mlp/down/kernel", (3, 96, 48), mesh) == PartitionSpec(None, "model")
    assert sharding.partition("layers/mlp_norm/scale", (3, 48), mesh) == PartitionSpec()
    rules = (("vocab", "candidates"), ("width", "model"))
    assert sharding.partition("embedding", (64, 48), meshes.model_mesh(4, jax.devices()), rules) == PartitionSpec(
        "candidates", "model"
    )
    assert sharding.partition("embedding", (64, 48), meshes.candidate_mesh()) == PartitionSpec()


def test_a_mesh_of_explicit_axes_serves_as_well():
    model, params = prepared("qwen3")
    explicit = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    logits = model.apply(sharding.place(params, explicit), TOKENS).logits
    np.testing.assert_allclose(logits, model.apply(params, TOKENS).logits, rtol=0, atol=1e-5)


def test_a_mesh_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(InvalidInput, match=r"must be a multiple of `model`; got 8 and 3"):
        meshes.model_mesh(3, jax.devices())
