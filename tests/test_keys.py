"""Streams are addressed by name and index, by threefry alone."""

from zlib import crc32

import jax
import numpy as np
import pytest

from lacuna import keys
from lacuna.errors import InvalidInput


def words(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_the_key_of_a_leaf_is_seed_then_index_then_crc32_then_layer():
    by_hand = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 5)
    by_hand = jax.random.fold_in(by_hand, crc32(b"layers/up"))
    draw = keys.candidate(keys.root(7), 5)
    assert words(keys.leaf(draw, "layers/up")) == words(by_hand)
    assert words(keys.leaf(draw, "layers/up", 3)) == words(jax.random.fold_in(by_hand, 3))


def test_a_named_stream_is_seed_then_crc32():
    by_hand = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), crc32(b"init"))
    assert words(keys.stream(7, "init")) == words(by_hand)


def test_the_generator_is_threefry_whatever_the_default_is():
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        key = keys.root(0)
    finally:
        jax.config.update("jax_default_prng_impl", before)
    assert str(jax.random.key_impl(key)) == "threefry2x32"


def test_known_numbers_of_the_noise_law_do_not_change():
    """Every recorded sweep depends on these: another threefry or CRC would lose them all."""
    key = keys.leaf(keys.candidate(keys.root(42), 1000), "layers/qkv", 2)
    assert words(key) == [796662697, 1141289769]
    np.testing.assert_allclose(jax.random.normal(key, (2,)), [0.66585046, -0.26465243], rtol=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InvalidInput, match=str(seed)):
        keys.root(seed)
    keys.root(2**32 - 1)


@pytest.mark.parametrize("pair", [("plumless", "buckeroo"), ("a/b", "a/b")])
def test_two_names_with_one_crc32_are_refused(pair):
    assert crc32(pair[0].encode()) == crc32(pair[1].encode())
    with pytest.raises(InvalidInput, match=f"`{pair[0]}` and `{pair[1]}`"):
        keys.check_distinct(["w", pair[0], "v", pair[1]])
    keys.check_distinct(["w", pair[0], "v"])
