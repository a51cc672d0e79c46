"""Random bits in one pass are jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import keys
from lacuna.threefry import unrolled

SHAPES = [(), (0,), (5, 3), (2**16,), (1000, 77), (3, 17, 19, 101)]


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_normals_are_those_of_jax(shape):
    key = keys.leaf(keys.root(3), "embedding", 2)
    for draw in (jax.random.bits, jax.random.normal, jax.random.uniform):
        made = jax.jit(draw, static_argnums=1)
        np.testing.assert_array_equal(made(unrolled(key), shape), made(key, shape))


def test_they_are_under_vmap_and_for_other_widths():
    several = jax.random.split(keys.root(5), 4)
    draw = jax.vmap(lambda key: jax.random.normal(unrolled(key), (331, 205)))
    np.testing.assert_array_equal(draw(several), [jax.random.normal(key, (331, 205)) for key in several])
    for dtype in (jnp.uint8, jnp.uint16):
        key = keys.root(7)
        made, by_jax = (jax.random.bits(one, (2**16,), dtype) for one in (unrolled(key), key))
        np.testing.assert_array_equal(made, by_jax)


def test_other_settings_of_threefry_are_followed():
    key = keys.root(3)
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(jax.random.normal(unrolled(key), (2**16,)), jax.random.normal(key, (2**16,)))


def test_no_array_stands_between_the_key_and_what_it_is_added_to():
    """Of jax's own there are three."""

    def moved(key):
        return 1.0 + jax.random.normal(key, (2**20,))

    def temporary_bytes(function):
        return jax.jit(function).lower(keys.root(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(moved) > 2**20
    assert temporary_bytes(lambda key: moved(unrolled(key))) < 2**20
