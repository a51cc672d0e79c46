"""JAX's own random bits, made by a CPU in one pass: four times as fast, and without arrays in between.

On a CPU jax rolls the rounds of threefry into a loop that carries whole arrays through memory. Written out, the rounds
are elementwise, and XLA fuses them with whatever becomes of the bits: normals that are added to weights are then never
in memory. The bits are the same, which a test compares; on other platforms jax's kernels make them.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import random as extended
from jaxtyping import Array, UInt32

from lacuna.types import Key

MANY = 2**16
"""Words from which on the rounds are written out."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

_Words = UInt32[Array, "*shape"]


def unrolled(key: Key) -> Key:
    """The same key, whose bits a CPU makes in one pass: for large arrays of noise.

    Args:
      key: a threefry key, of any shape.
    """
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_IMPLEMENTATION)


def _random_bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    def by_jax(key: UInt32[Array, "2"]) -> Array:
        return extended.threefry_prng_impl.random_bits(key, bit_width, shape)

    # The high word of every count is zero; and of few bits the rounds take longer to compile than to roll.
    counted = bit_width == 32 and MANY <= math.prod(shape) < 2**32
    partitionable = getattr(jax.config, "jax_threefry_partitionable")  # noqa: B009  (its type has no such name)
    if not counted or not partitionable:
        return by_jax(key)

    def in_one_pass(key: UInt32[Array, "2"]) -> _Words:
        place = jnp.zeros(shape, jnp.uint32)
        for axis in range(len(shape)):
            stride = jnp.uint32(math.prod(shape[axis + 1 :]))
            place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
        first, second = _threefry2x32(key[0], key[1], jnp.zeros(shape, jnp.uint32), place)
        return first ^ second

    return lax.platform_dependent(key, cpu=in_one_pass, default=by_jax)


def _threefry2x32(key0: Array, key1: Array, x0: _Words, x1: _Words) -> tuple[_Words, _Words]:
    """Twenty rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(_PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << rotation) | (x1 >> (32 - rotation)))
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


_IMPLEMENTATION = extended.define_prng_impl(
    key_shape=(2,),
    seed=extended.threefry_prng_impl.seed,
    split=extended.threefry_prng_impl.split,
    random_bits=_random_bits,
    fold_in=extended.threefry_prng_impl.fold_in,
    name="lacuna_unrolled_threefry",
    tag="lut",
)
