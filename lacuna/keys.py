"""Random streams addressed by name and index, so that any draw can be made again from a few integers.

Only threefry is used: `rbg` gives other numbers under vmap than alone, and `philox` does not compile on
several devices. Names enter by CRC-32, which does not change between processes as `hash` does.
"""

from collections.abc import Iterable
from zlib import crc32

import jax
from jaxtyping import Array, Integer

from lacuna.errors import InvalidInput
from lacuna.types import Key

SEED_LIMIT = 2**32
"""Seeds and indices are unsigned 32-bit words of the generator."""


def digest(name: str) -> int:
    """CRC-32 of a name: an unsigned 32-bit integer."""
    return crc32(name.encode())


def root(seed: int) -> Key:
    """The key of a seed.

    Raises:
      InvalidInput: the seed is not in [0, 2^32).
    """
    if not 0 <= seed < SEED_LIMIT:
        raise InvalidInput("seed must be an integer in [0, 2^32)", got=seed, hint="0")
    return jax.random.key(seed, impl="threefry2x32")


def stream(seed: int, name: str) -> Key:
    """The key of a named stream (`"digits/train"`, `"init"`), independent of the candidates' keys by name."""
    return jax.random.fold_in(root(seed), digest(name))


def candidate(key: Key, index: int | Integer[Array, ""]) -> Key:
    """The key of draw `index` of the sweep whose root key is `key`."""
    return jax.random.fold_in(key, index)


def leaf(key: Key, name: str, layer: int | Integer[Array, ""] | None = None) -> Key:
    """The key of one leaf of a draw, or of one layer of a stacked leaf.

    It depends on the leaf's own name and on nothing else in the tree: adding or freezing other leaves, or
    reordering them, leaves its noise as it was.
    """
    of_leaf = jax.random.fold_in(key, digest(name))
    return of_leaf if layer is None else jax.random.fold_in(of_leaf, layer)


def check_distinct(names: Iterable[str]) -> None:
    """Raise `InvalidInput` if two names are equal or share a CRC-32: the leaves would share their noise."""
    seen: dict[int, str] = {}
    for name in names:
        if digest(name) in seen:  # equal names too: {"a": {"b": x}, "a/b": y} has `a/b` twice
            raise InvalidInput(
                "every leaf needs a name with its own CRC-32, because that keys its noise",
                got=f"`{seen[digest(name)]}` and `{name}` with the same {digest(name):#010x}",
                hint="rename one of the two leaves",
            )
        seen[digest(name)] = name
