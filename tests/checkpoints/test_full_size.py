"""Models of the true size in the layout of the released files: minutes and gigabytes, so `pytest -m slow` alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import full_size
from lacuna import models, trees
from lacuna.checkpoints import load_hf
from lacuna.derivatives import example_gradients, gradient

pytestmark = pytest.mark.slow
SITES = {"gpt2": "qkv", "qwen": "query"}


def adapter_loss(model, site, params, factors, tokens):
    lora = models.Lora({"layers": {"attention": {site: factors}}}, 2.0)
    return jnp.mean(models.next_token_nats(model, params, tokens, lora=lora))


@pytest.mark.parametrize("name", full_size.MODELS)
def test_a_model_of_the_true_size_is_loaded_run_and_differentiated_by_example(name, tmp_path):
    reports = []
    tensors = full_size.MODELS[name](tmp_path / name)
    model, params = load_hf(tmp_path / name, report=reports.append)
    assert reports[0].num_parameters == trees.size(params) == sum(x.size for x in tensors.values())
    assert len(reports[0].ignored) == (12 if name == "gpt2" else 0)
    # Every number is there: sums of integers that hold the bits do not depend on the order.
    bits = [
        np.asarray(x).reshape(-1).view(f"u{x.dtype.itemsize}").sum(dtype=np.uint64) for x in jax.tree.leaves(params)
    ]
    known = [x.reshape(-1).view(f"u{x.dtype.itemsize}").sum(dtype=np.uint64) for x in tensors.values()]
    assert sum(map(int, bits)) == sum(map(int, known))
    kernel = params["layers"]["mlp"]["down"]["kernel"]
    last = tensors["h.11.mlp.c_proj.weight"] if name == "gpt2" else tensors["model.layers.23.mlp.down_proj.weight"].T
    np.testing.assert_array_equal(kernel[-1], last)

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.spec.vocab_size, (3, 16)))
    logits = model.apply(params, tokens).logits
    assert np.isfinite(logits).all()
    site = SITES[name]
    _, width_in, width_out = params["layers"]["attention"][site]["kernel"].shape
    keys = jax.random.split(jax.random.key(1))
    shapes = {"A": (model.spec.num_layers, width_in, 4), "B": (model.spec.num_layers, 4, width_out)}
    factors = {factor: 0.02 * jax.random.normal(key, shapes[factor]) for factor, key in zip(shapes, keys, strict=True)}
    loss = jax.tree_util.Partial(partial(adapter_loss, model, site), params)
    rows = example_gradients(loss, factors, tokens, chunk=1)
    whole = gradient(loss, factors, tokens)
    for each, one in zip(jax.tree.leaves(rows), jax.tree.leaves(whole), strict=True):
        assert each.shape == (3, *one.shape)
        # bfloat16 rounds by 2^-9 in each of 24 layers, forward and backward.
        off = np.linalg.norm(np.mean(each, axis=0) - one) / np.linalg.norm(one)
        assert off < (1e-4 if name == "gpt2" else 48 * 2**-9)
