"""Matrices in bfloat16, vectors in float32: the arithmetic stays narrow, and a search moves every leaf in its own."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_hf
from jax.extend import core

from lacuna import keys, trees
from lacuna.checkpoints import export_hf, load_hf
from lacuna.errors import InvalidInput
from lacuna.models import block, greedy, narrowed, next_token_nats
from lacuna.search import Sweep, candidate, gaussian, rescore, run_sweep

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = jnp.asarray(tiny_hf.tokens())
FAMILIES = ("gpt2", "qwen2")
HALF, WHOLE = jnp.dtype("bfloat16"), jnp.dtype("float32")
of_families = pytest.mark.parametrize("name", FAMILIES)


def mixed(name):
    model, params = load_hf(GOLDEN / name)
    return model, params, narrowed(params, "bfloat16", model.stacked)


def loss(model, params, tokens):
    return jnp.mean(next_token_nats(model, params, tokens))


def dots(jaxpr):
    """Dtypes of the operands of every matrix product, in loops and functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(x.aval.dtype for x in equation.invars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from dots(inner)


@of_families
def test_matrices_are_narrow_and_vectors_are_not(name):
    _, params, both = mixed(name)
    for (leaf_name, leaf), before in zip(trees.named_leaves(both), jax.tree.leaves(params), strict=True):
        is_matrix = leaf_name.endswith("kernel") or leaf_name in ("embedding", "positions")
        assert leaf.dtype == (HALF if is_matrix else WHOLE), leaf_name
        np.testing.assert_array_equal(leaf, np.asarray(before).astype(leaf.dtype))


def test_vectors_of_a_narrow_model_become_float32_and_what_is_not_floating_stays():
    point = {"half": jnp.ones(3, HALF), "scalar": jnp.ones((), jnp.float16), "count": jnp.arange(6).reshape(2, 3)}
    found = narrowed(point | {"layers/w": jnp.ones((4, 3))}, HALF, lambda name: name.startswith("layers/"))
    dtypes = {name: str(leaf.dtype) for name, leaf in found.items()}
    assert dtypes == {"half": "float32", "scalar": "float32", "count": "int32", "layers/w": "float32"}


@pytest.mark.parametrize("dtype", ["int8", "nonsense"])
def test_a_dtype_that_is_not_floating_is_refused(dtype):
    with pytest.raises(InvalidInput, match=rf"rounded to a floating dtype; got {dtype}. Try: bfloat16"):
        narrowed({"w": jnp.ones((2, 2))}, dtype, lambda name: False)


@of_families
def test_every_matrix_product_takes_the_dtype_of_the_matrices(name):
    model, _, both = mixed(name)
    forward = jax.make_jaxpr(lambda p: model.apply(p, TOKENS).logits)(both)
    kinds = list(dots(forward.jaxpr))
    assert len(kinds) >= 7  # four of a block's matrices or more, two of the attention, the head
    assert set(kinds) == {(HALF, HALF)}
    assert forward.out_avals[0].dtype == WHOLE


@of_families
def test_the_backward_pass_is_as_narrow_as_that_of_a_model_of_one_dtype(name):
    model, params, both = mixed(name)
    half = jax.tree.map(lambda x: x.astype(HALF), params)
    slopes = [jax.make_jaxpr(jax.grad(partial(loss, model)))(point, TOKENS) for point in (both, half)]
    of_both, of_half = (sorted(map(str, dots(slope.jaxpr))) for slope in slopes)
    assert of_both == of_half
    assert [aval.dtype for aval in slopes[0].out_avals] == [leaf.dtype for leaf in jax.tree.leaves(both)]


@of_families
def test_the_logits_of_both_precisions_are_those_of_float32_to_the_rounding_of_the_matrices(name):
    model, params, both = mixed(name)
    known, found = model.apply(params, TOKENS).logits, model.apply(both, TOKENS, taps="all")
    assert found.resid.dtype == HALF
    off = jnp.sqrt(jnp.mean(jnp.square(found.logits - known)) / jnp.mean(jnp.square(known)))
    assert off < 0.02  # two layers of a handful of roundings, each of 2^-9 at most


def test_a_bias_is_added_in_float32_and_rounded_once():
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), HALF) for shape in ((1, 1, 8), (8, 300)))
    bias = random.normal(size=300).astype(np.float32)
    found = block._Linear(300, True).apply({"params": {"kernel": kernel, "bias": jnp.asarray(bias)}}, x, None)
    product = np.asarray(x[0] @ kernel)
    narrow = (product.astype(np.float32) + bias.astype(HALF).astype(np.float32)).astype(HALF)
    expected = (product.astype(np.float32) + bias).astype(HALF)
    assert np.mean(expected != narrow) > 0.1
    assert found.dtype == HALF
    np.testing.assert_array_equal(found[0], expected)


def test_what_is_written_one_token_at_a_time_is_what_is_likeliest():
    model, _, both = mixed("gpt2")
    found = greedy(model, both, TOKENS, num_tokens=1)
    np.testing.assert_array_equal(found[:, 0], jnp.argmax(model.apply(both, TOKENS).logits[:, -1], -1))


@of_families
def test_a_candidate_moves_every_leaf_in_its_own_dtype_and_scores_the_recorded_bits(name):
    model, _, both = mixed(name)
    sweep = Sweep(gaussian(stacked=model.stacked), (1e-2,), 4, seed=5, top_k=2)
    objective = jax.tree_util.Partial(loss, model)
    result = run_sweep(objective, both, TOKENS, sweep)
    np.testing.assert_array_equal(
        rescore(objective, both, TOKENS, sweep, result.top_k), [c.score for c in result.top_k]
    )
    noise = jax.jit(sweep.family.draw)(keys.candidate(keys.root(5), 3), both)
    made = candidate(both, sweep, 3, 1e-2)
    assert oracles.bits(made) == oracles.bits(oracles.axpy(np.float32(1e-2), noise, both))
    assert jax.tree.map(lambda x: x.dtype, made) == jax.tree.map(lambda x: x.dtype, both)


@of_families
def test_a_file_of_both_precisions_has_one_dtype_and_holds_every_bit(name, tmp_path):
    model, _, both = mixed(name)
    again, loaded = load_hf(export_hf(model, both, tmp_path / "out"))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {WHOLE}
    back = narrowed(loaded, HALF, again.stacked)
    assert trees.content_digest(back) == trees.content_digest(both)
    asked = load_hf(export_hf(model, both, tmp_path / "half", like=GOLDEN / name, dtype="bfloat16"))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(asked)} == {HALF}
