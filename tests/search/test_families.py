"""The noise law: what a draw is made of, and that it has the variance that the theorem is about."""

from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.search import LeafFamily, gaussian

LIKE = {
    "a": jnp.zeros((60, 20)),
    "b": jnp.zeros((60, 20)),
    "layers": {"up": jnp.zeros((3, 20, 30)), "down": jnp.zeros((3, 20, 30))},
}
FAMILY = gaussian(stacked=lambda name: name.startswith("layers/"))
SEED, INDEX = 11, 7


draw = jax.jit(FAMILY.draw)


def drawn(like=LIKE, index=INDEX):
    return draw(keys.candidate(keys.root(SEED), index), like)


def by_hand(name, shape, layer=None):
    key = jax.random.fold_in(jax.random.key(SEED, impl="threefry2x32"), INDEX)
    key = jax.random.fold_in(key, crc32(name.encode()))
    return jax.random.normal(key if layer is None else jax.random.fold_in(key, layer), shape, jnp.float32)


def test_a_draw_is_made_of_seed_index_name_and_layer():
    delta = drawn()
    assert oracles.bits(delta["a"]) == oracles.bits(by_hand("a", (60, 20)))
    up = jnp.stack([by_hand("layers/up", (20, 30), layer) for layer in range(3)])
    assert oracles.bits(delta["layers"]["up"]) == oracles.bits(up)


def test_a_stacked_leaf_drawn_whole_equals_its_layers_drawn_alone():
    whole = drawn()["layers"]["down"]
    key = keys.candidate(keys.root(SEED), INDEX)
    one_layer = jax.ShapeDtypeStruct((20, 30), jnp.float32)
    of_layer = jax.jit(lambda layer: FAMILY.leaf(key, "layers/down", layer, one_layer))
    alone = [of_layer(layer) for layer in range(3)]
    assert oracles.bits(whole) == oracles.bits(jnp.stack(alone))


@pytest.mark.parametrize(
    "pair",
    [
        lambda d: (d["a"], d["b"]),
        lambda d: (d["layers"]["up"], d["layers"]["down"]),
        lambda d: (d["layers"]["up"][0], d["layers"]["up"][2]),
        lambda d: (d["a"], drawn(index=INDEX + 1)["a"]),
    ],
    ids=["leaves", "stacked leaves", "layers", "draws"],
)
def test_noise_of_equal_shape_is_uncorrelated(pair):
    one, other = pair(drawn())
    assert abs(oracles.correlation(one, other)) < 5 / np.sqrt(one.size)


def test_the_noise_of_a_leaf_does_not_depend_on_the_rest_of_the_tree_or_its_order():
    whole = drawn()
    alone = drawn(like={"b": LIKE["b"]})
    assert oracles.bits(alone["b"]) == oracles.bits(whole["b"])
    reordered = drawn(like={"z": jnp.zeros(3), "layers": {"up": LIKE["layers"]["up"]}, "0": jnp.zeros(2)})
    assert oracles.bits(reordered["layers"]["up"]) == oracles.bits(whole["layers"]["up"])


def test_noise_is_float32_of_unit_scale_whatever_the_dtype_and_value_of_the_point():
    half = drawn(like={"a": jnp.full((60, 20), 3, jnp.bfloat16)})
    assert half["a"].dtype == jnp.float32
    assert oracles.bits(half["a"]) == oracles.bits(drawn()["a"])
    noise = oracles.flat(drawn())
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)


def reseeded_for_every_tensor(key, leaf_name, layer, like):
    """What published code does: tensors of equal shape get equal noise."""
    del leaf_name, layer
    return jax.random.normal(key, like.shape)


@pytest.mark.parametrize(
    ("family", "lawful"), [(FAMILY, True), (LeafFamily("broken", "", reseeded_for_every_tensor, FAMILY.layered), False)]
)
def test_the_variance_of_noise_along_a_gradient_is_its_square_norm_only_under_the_law(family, lawful):
    num_draws = 2048
    gradient = {"a": jnp.full(16, 0.5), "b": jnp.full(16, 0.5), "layers": {"up": jnp.full((4, 16), 0.25)}}

    def along_gradient(index):
        delta = family.draw(keys.candidate(keys.root(SEED), index), gradient)
        return sum(jax.tree.leaves(jax.tree.map(lambda d, g: jnp.sum(d * g), delta, gradient)))

    sample = jax.jit(lambda: lax.map(along_gradient, jnp.arange(num_draws), batch_size=256))()
    square_norm = np.sum(np.square(oracles.flat(gradient)))
    # The sample variance of n normals has a standard error of sqrt(2 / n) times the variance.
    within = abs(np.var(sample, ddof=1) - square_norm) < 3 * np.sqrt(2 / num_draws) * square_norm
    assert within == lawful


def test_no_leaf_is_stacked_unless_the_model_says_so():
    like = {"layers": {"up": LIKE["layers"]["up"]}}
    whole = jax.jit(gaussian().draw)(keys.candidate(keys.root(SEED), INDEX), like)
    assert oracles.bits(whole) == oracles.bits(by_hand("layers/up", (3, 20, 30)))


def test_a_scalar_said_to_be_stacked_is_refused_by_name():
    with pytest.raises(InvalidInput, match=r"`layers/gain` is said to be stacked; got a scalar"):
        FAMILY.draw(keys.root(0), {"layers": {"gain": jnp.float32(1)}})
