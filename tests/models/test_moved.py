"""A candidate's weights as a forward pass takes them are those of the candidate that is made whole."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
from jax.extend import core

from lacuna import keys, models, trees
from lacuna.checkpoints import load_hf
from lacuna.models.causal_lm import init
from lacuna.search import low_rank
from lacuna.types import Factors

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = jnp.asarray(tiny_hf.tokens())
SCALE = 0.05


@pytest.fixture(scope="module", params=["gpt2", "olmo2"])
def tiny(request):
    """A model and its weights, and noise of rank 1 in full and by factors.

    GPT-2 has learned positions, biases and a tied head; OLMo 2 has none of these.
    """
    model, params = load_hf(GOLDEN / request.param)
    family, key = low_rank(1, stacked=model.stacked), keys.root(3)
    return model, params, jax.jit(family.draw)(key, params), jax.jit(family.factored_draw)(key, params)


@pytest.fixture(scope="module")
def expected(tiny):
    """What the weights say that are moved as a whole."""
    model, params, noise, _ = tiny
    return every_reading(model, trees.axpy(SCALE, noise, params))


def is_factors(leaf):
    return isinstance(leaf, Factors)


READINGS = {
    "apply": lambda m, p: m.apply(p, TOKENS).logits,
    "next_token_nats in chunks": lambda m, p: models.next_token_nats(m, p, TOKENS, chunk=5),
    "next_token_right": lambda m, p: models.next_token_right(m, p, TOKENS),
    "choice_logits": lambda m, p: models.choice_logits(m, p, TOKENS, jnp.asarray([3, 7])),
    "logits_at": lambda m, p: models.logits_at(m, p, TOKENS, jnp.asarray([4, 9])),
    "greedy": lambda m, p: models.greedy(m, p, TOKENS[:, :6], num_tokens=4),
}


def every_reading(model, params):
    """What every function of a causal language model says of these weights."""
    return {name: reading(model, params) for name, reading in READINGS.items()}


def assert_equal_readings(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_function_takes_layers_that_are_moved_as_they_are_used(tiny, expected):
    model, params, noise, _ = tiny

    def of(leaf_name, layer):
        leaf = dict(trees.named_leaves(noise))[leaf_name]
        return leaf if layer is None else leaf[layer]

    def move(leaf_name, layer, leaf):
        return trees.axpy(SCALE, of(leaf_name, layer), leaf)

    found = jax.jit(lambda params: every_reading(model, models.layer_by_layer(params, move)))(params)
    assert_equal_readings(found, expected)
    assert np.abs(expected["apply"] - model.apply(params, TOKENS).logits).max() > 0.1


def test_every_function_takes_factors_beside_the_weights(tiny, expected):
    model, params, _, factors = tiny
    found = every_reading(model, models.beside(params, factors, SCALE))
    assert_equal_readings(found, expected)


def test_factors_of_each_leaf_alone_are_beside_it_and_move_what_the_leaf_moves(tiny):
    model, params, noise, factors = tiny
    names = [name for name, leaf in named(factors) if is_factors(leaf)]
    tables = {"embedding", "positions", "head/kernel"} & {*trees.leaf_names(params)}
    assert tables <= {*names}
    assert all(name in tables or name.endswith("/kernel") for name in names)

    @jax.jit
    def by_factors(left_out):
        kept = trees.map_named(lambda name, _, made: kept_alone(left_out[name], made), params, factors)
        return model.apply(models.beside(params, kept, SCALE), TOKENS).logits

    @jax.jit
    def in_full(left_out):
        kept = trees.map_named(lambda name, made: kept_alone(left_out[name], made), noise)
        return model.apply(trees.axpy(SCALE, kept, params), TOKENS).logits

    everything = dict.fromkeys(trees.leaf_names(params), True)
    base = in_full(everything)
    for name in names:
        left_out = everything | {name: False}
        np.testing.assert_allclose(by_factors(left_out), in_full(left_out), rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.abs(in_full(left_out) - base).max() > 1e-3, name


def kept_alone(left_out, noise):
    """The noise of a leaf, or as many zeros."""
    return jax.tree.map(lambda x: jnp.where(left_out, 0, x), noise)


def named(tree):
    """Named leaves, those of low rank whole."""

    def whole(leaf):
        return isinstance(leaf, (Factors, models.PlusLowRank))

    return [(trees.leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=whole)]


def test_factors_that_no_path_takes_are_multiplied_out(tiny):
    """A family that knows of no layers makes one matrix of each stack."""
    model, params, *_ = tiny
    family, key = low_rank(1), keys.root(3)
    moved = models.beside(params, family.factored_draw(key, params), SCALE)
    beside = {name for name, leaf in named(moved) if isinstance(leaf, models.PlusLowRank)}
    assert beside == {"embedding", "positions", "head/kernel"} & {*trees.leaf_names(params)}
    expected = trees.axpy(SCALE, family.draw(key, params), params)
    np.testing.assert_allclose(model.apply(moved, TOKENS).logits, model.apply(expected, TOKENS).logits, atol=1e-5)


def test_noise_in_full_moves_the_weights_to_the_last_bit(tiny):
    _, params, noise, _ = tiny
    moved = models.beside(params, noise, SCALE)
    jax.tree.map(np.testing.assert_array_equal, moved, trees.axpy(SCALE, noise, params))


def test_an_adapter_and_a_map_of_layers_go_with_moved_weights(tiny):
    model, params, noise, factors = tiny
    spec = models.lora_spec(model, rank=2, sites="attention/.*")
    lora = spec.bind(jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), spec.init(keys.root(1))))
    double = lambda layer, weights: jax.tree.map(lambda x: 2 * x, weights)  # noqa: E731

    def move(leaf_name, layer, leaf):
        return trees.axpy(SCALE, jnp.ones_like(leaf), leaf)

    moved = trees.axpy(SCALE, noise, params)
    expected = model.apply(moved, TOKENS, lora=lora).logits
    found = model.apply(models.beside(params, factors, SCALE), TOKENS, lora=lora).logits
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    ones = trees.axpy(SCALE, jax.tree.map(jnp.ones_like, params), params)
    expected = model.apply(ones, TOKENS, lora=lora, layer_map=double).logits
    found = model.apply(models.layer_by_layer(params, move), TOKENS, lora=lora, layer_map=double).logits
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_token_beyond_the_vocabulary_is_no_number_beside_factors_too(tiny):
    model, params, _, factors = tiny
    logits = model.apply(models.beside(params, factors, SCALE), TOKENS.at[0, 3].set(999)).logits
    assert np.isnan(logits[0, 3:]).all()
    assert np.isfinite(logits[1]).all()


def test_the_embedding_of_a_tied_model_is_moved_once():
    model, params = load_hf(GOLDEN / "gpt2")
    moved = []

    def move(leaf_name, layer, leaf):
        moved.append((leaf_name, layer is None, leaf.ndim))
        return leaf

    models.next_token_nats(model, models.layer_by_layer(params, move), TOKENS)
    outside = sorted(name for name, whole, _ in moved if whole)
    assert outside == ["embedding", "final_norm/bias", "final_norm/scale", "positions"]
    assert max(ndim for name, _, ndim in moved if name.startswith("layers/")) == 2


def test_bfloat16_weights_stay_so_and_what_is_beside_them_is_rounded_with_the_result(tiny):
    model, params, _, factors = tiny
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = model.apply(models.beside(half, factors, SCALE), TOKENS, taps="all")
    assert found.resid.dtype == jnp.bfloat16
    exact = model.apply(models.beside(params, factors, SCALE), TOKENS).logits
    error = np.sqrt(np.mean(np.square(found.logits - exact)) / np.mean(np.square(exact)))
    assert error < 16 * 2**-8  # a rounding for each of about sixteen steps between tokens and logits


def products(jaxpr):
    """Shapes of operands, results and the batched axes of every matrix product, inner programs included."""
    for equation in every_equation(jaxpr):
        if equation.primitive.name == "dot_general":
            _, (batched, _) = equation.params["dimension_numbers"]
            yield *(x.aval.shape for x in (*equation.invars, *equation.outvars)), batched


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "olmo2"])
def test_all_candidates_share_one_product_with_each_kernel(name):
    model, params = load_hf(GOLDEN / name)
    family, num = low_rank(1, stacked=model.stacked), 5
    every_key = jax.random.split(keys.root(0), num)
    noise = jax.eval_shape(jax.vmap(lambda key: family.factored_draw(key, params)), every_key)
    tokens = TOKENS[:, :11]  # twice eleven is the width of nothing

    def of_all(params, noise):
        return jax.vmap(lambda one: models.next_token_nats(model, models.beside(params, one, SCALE), tokens))(noise)

    jaxpr = jax.make_jaxpr(of_all)(params, noise).jaxpr
    kernels = {leaf.shape[-2:] for name, leaf in trees.named_leaves(params) if name.endswith("kernel")}
    kernels |= {params["embedding"].T.shape} if model.spec.tied else set()
    shared = [p for p in products(jaxpr) if p[1] in kernels]
    num_linear = sum(name.endswith("kernel") for name in trees.leaf_names(params)) + model.spec.tied
    assert len(shared) == num_linear  # each once
    for left, right, out, batched in shared:
        assert batched == ()
        assert left[0] == out[0] == num
        assert left[-1] == right[0]
    copies = {(num, *shape) for shape in kernels} | {(num, model.spec.num_layers, *shape) for shape in kernels}
    shapes = {var.aval.shape for eqn in every_equation(jaxpr) for var in eqn.outvars}
    assert not copies & shapes


def every_equation(jaxpr):
    """All equations, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from every_equation(inner)


def test_layer_by_layer_no_more_than_a_layer_is_moved_at_a_time_however_deep_the_model():
    spec = load_hf(GOLDEN / "qwen2")[0].spec

    def wave(leaf, layer):
        return jnp.sin(layer + jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)

    def move(leaf_name, layer, leaf):
        return trees.axpy(SCALE, wave(leaf, 0 if layer is None else layer), leaf)

    def moved_whole(params):
        return trees.axpy(SCALE, jax.tree.map(lambda leaf: wave(leaf, 0), params), params)

    def bytes_of(num_layers, moved):
        deep = models.causal_lm(replace(spec, num_layers=num_layers, width=64, mlp_width=512, windows=()))
        params = jax.eval_shape(lambda key: init(deep.spec, key), keys.root(0))
        nats = jax.jit(lambda params: models.next_token_nats(deep, moved(params), TOKENS))
        one_layer = sum(4 * leaf.size for leaf in jax.tree.leaves(params["layers"])) // num_layers
        return nats.lower(params).compile().memory_analysis().temp_size_in_bytes, one_layer

    (shallow, one_layer), (deep, _) = (bytes_of(n, lambda params: models.layer_by_layer(params, move)) for n in (4, 16))
    assert deep - shallow < one_layer / 10
    assert deep < 2 * one_layer
    assert bytes_of(16, moved_whole)[0] >= 16 * one_layer
