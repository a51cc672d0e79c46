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
from lacuna.models.causal_lm import init, stream
from lacuna.search import gaussian, low_rank
from lacuna.types import Factors

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = jnp.asarray(tiny_hf.tokens())
SCALE = 0.05
NAMES = ["gpt2", "qwen2", "olmo2"]
"""Learned positions, tied, with biases; rotary and tied; rotary, untied, with norms of queries and keys."""
every_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", params=NAMES)
def tiny(request):
    """A model, its weights, and noise of rank 1 for all of them, in full and by factors."""
    model, params = load_hf(GOLDEN / request.param)
    family, key = low_rank(1, stacked=model.stacked), keys.root(3)
    return model, params, family.draw(key, params), family.factored_draw(key, params)


def is_factors(leaf):
    return isinstance(leaf, Factors)


READINGS = {
    "stream": lambda m, p: stream(m.spec, p, TOKENS).hidden,
    "apply": lambda m, p: m.apply(p, TOKENS).logits,
    "next_token_nats": lambda m, p: models.next_token_nats(m, p, TOKENS),
    "next_token_nats in chunks": lambda m, p: models.next_token_nats(m, p, TOKENS, chunk=5),
    "next_token_right": lambda m, p: models.next_token_right(m, p, TOKENS),
    "choice_logits": lambda m, p: models.choice_logits(m, p, TOKENS, jnp.asarray([3, 7])),
    "logits_at": lambda m, p: models.logits_at(m, p, TOKENS, jnp.asarray([4, 9])),
    "span_nats": lambda m, p: models.span_nats(m, p, TOKENS, np.asarray([2, 3]), np.asarray([5, 9])),
    "greedy": lambda m, p: models.greedy(m, p, TOKENS[:, :6], num_tokens=4),
}


def every_reading(model, params):
    """What every function of a causal language model says of these weights."""
    return {name: reading(model, params) for name, reading in READINGS.items()}


def assert_equal_readings(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_function_takes_layers_that_are_moved_as_they_are_used(tiny):
    model, params, noise, _ = tiny

    def of(leaf_name, layer):
        leaf = dict(trees.named_leaves(noise))[leaf_name]
        return leaf if layer is None else leaf[layer]

    def move(leaf_name, layer, leaf):
        return trees.axpy(SCALE, of(leaf_name, layer), leaf)

    found = jax.jit(lambda params: every_reading(model, models.layer_by_layer(params, move)))(params)
    expected = every_reading(model, trees.axpy(SCALE, noise, params))
    assert_equal_readings(found, expected)
    assert np.abs(expected["apply"] - model.apply(params, TOKENS).logits).max() > 0.1


def test_every_function_takes_factors_beside_the_weights(tiny):
    model, params, noise, factors = tiny
    found = jax.jit(lambda params: every_reading(model, models.beside(params, factors, SCALE)))(params)
    assert_equal_readings(found, every_reading(model, trees.axpy(SCALE, noise, params)))


def test_factors_of_each_leaf_alone_are_beside_it_and_move_what_the_leaf_moves(tiny):
    model, params, noise, factors = tiny
    names = [name for name, leaf in named(factors) if is_factors(leaf)]
    tables = {"embedding", "positions", "head/kernel"} & {*trees.leaf_names(params)}
    assert tables <= {*names}
    assert all(name in tables or name.endswith("/kernel") for name in names)

    @jax.jit
    def logits(params):
        return model.apply(params, TOKENS).logits

    base = logits(params)
    nothing = jax.tree.map(jnp.zeros_like, noise)
    for name in names:
        of_one = trees.map_named(lambda n, leaf, made, zero, name=name: made if n == name else zero, params, factors,
                                 nothing)  # fmt: skip
        dense = trees.map_named(lambda n, made, zero, name=name: made if n == name else zero, noise, nothing)
        moved = models.beside(params, of_one, SCALE)
        assert isinstance(dict(named(moved))[name], models.PlusLowRank)
        expected = logits(trees.axpy(SCALE, dense, params))
        np.testing.assert_allclose(logits(moved), expected, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.abs(expected - base).max() > 1e-3, name


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


@every_model
def test_all_candidates_share_one_product_with_each_kernel(name):
    model, params = load_hf(GOLDEN / name)
    family, num = low_rank(1, stacked=model.stacked), 5
    noise = jax.vmap(lambda key: family.factored_draw(key, params))(jax.random.split(keys.root(0), num))

    def of_all(params, noise):
        return jax.vmap(lambda one: models.next_token_nats(model, models.beside(params, one, SCALE), TOKENS))(noise)

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


def test_layer_by_layer_no_more_than_a_layer_of_noise_is_there_however_deep_the_model():
    spec = load_hf(GOLDEN / "qwen2")[0].spec
    family, key = gaussian(stacked=lambda name: name.startswith("layers/")), keys.root(0)

    def bytes_of(num_layers, layerwise):
        deep = models.causal_lm(replace(spec, num_layers=num_layers, width=64, mlp_width=256, windows=()))
        params = jax.eval_shape(lambda key: init(deep.spec, key), keys.root(0))

        def move(leaf_name, layer, leaf):
            return trees.axpy(SCALE, family.leaf(key, leaf_name, layer, leaf), leaf)

        def logits(params):
            if layerwise:
                return models.next_token_nats(deep, models.layer_by_layer(params, move), TOKENS)
            return models.next_token_nats(deep, trees.axpy(SCALE, family.draw(key, params), params), TOKENS)

        memory = jax.jit(logits).lower(params).compile().memory_analysis()
        one_layer = sum(leaf.size * 4 for leaf in jax.tree.leaves(params["layers"])) // num_layers
        return memory.temp_size_in_bytes, one_layer

    (shallow, one_layer), (deep, _) = bytes_of(4, True), bytes_of(16, True)
    whole, _ = bytes_of(16, False)
    assert deep - shallow < one_layer / 4
    assert deep < 3 * one_layer < 16 * one_layer <= whole
