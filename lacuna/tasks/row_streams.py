"""Rows as streams of batches that any step can ask for again: shuffled anew in every epoch, or in their order."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.task import Batch, Step, step_index
from lacuna.tasks.text import TokenRows
from lacuna.types import Key

RowBatch = tuple[Any, ...]
"""A named tuple of arrays that have the rows in front: `Batch`, `Choices`, `ShortAnswers`."""

_NUM_ROUNDS = 24
"""Of the Feistel network. Thousands of rows need fewer; at 12 the 720 orders of six rows are not equally frequent."""


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "key"], meta_fields=["batch_size"])
@dataclass(frozen=True, eq=False)  # hashed by identity, so that jax.jit(stream) works as well
class RowStream:
    """`stream(step) -> Batch`; made by `row_stream` and `in_order`. A pytree whose arrays are data.

    Position p of the stream, which is row p mod B of batch p // B, belongs to epoch p // n.

    Attributes:
      rows: a batch of all n rows, whose every array has them in front; a batch of the stream is of its kind.
      key: of the shuffling; None keeps the order of the rows.
      batch_size: B.
    """

    rows: Any  # arrays, or what a transformation of the tree puts in their place
    key: Any
    batch_size: int

    @property
    def num_rows(self) -> int:
        """n."""
        return jax.tree.leaves(self.rows)[0].shape[0]

    def __call__(self, step: Step) -> Any:
        """The batch at a step: a pure function of its index, traceable; its cost does not grow with n."""
        num_rows = self.num_rows
        # step = cycle n + within, so position = (cycle B) n + within B + row: no product reaches 2^32.
        cycle, within = jnp.divmod(step_index(step), jnp.uint32(num_rows))
        position = within * jnp.uint32(self.batch_size) + jnp.arange(self.batch_size, dtype=jnp.uint32)
        epoch, row = jnp.divmod(position, jnp.uint32(num_rows))
        if self.key is not None:
            epoch = epoch + cycle * jnp.uint32(self.batch_size)
            row = _shuffled(self.key, epoch, row, num_rows)
        return jax.tree.map(lambda array: array[row], self.rows)


def row_stream(rows: TokenRows | RowBatch, *, seed: int, batch_size: int, name: str = "train") -> RowStream:
    """All rows in every epoch, each once, in an order that depends on seed, name and epoch.

    Args:
      rows: of `pack` or `pair_rows`, or a batch of all rows of any kind; they are put on the device.
      seed: of the order.
      batch_size: B, in rows; a batch may take the end of an epoch and the beginning of the next.
      name: of the stream; streams of other names have other orders.

    Raises:
      InvalidInput: a batch without rows, rows times batch size not below 2^32, or a seed outside [0, 2^32).
    """
    return _stream(rows, keys.stream(seed, f"rows/{name}"), batch_size)


def in_order(rows: TokenRows | RowBatch, batch_size: int) -> RowStream:
    """The rows in their order, for evaluation: batch i holds the rows i B, i B + 1, ... modulo n.

    Raises:
      InvalidInput: as `row_stream`.
    """
    return _stream(rows, None, batch_size)


def _stream(rows: TokenRows | RowBatch, key: Key | None, batch_size: int) -> RowStream:
    if batch_size < 1:
        raise InvalidInput("a batch needs at least one row", got=f"batch_size={batch_size}")
    every = Batch(jnp.asarray(rows.tokens), jnp.asarray(rows.answer)) if isinstance(rows, TokenRows) else rows
    num_rows = len(every[0])
    if num_rows < 1:
        raise InvalidInput("a stream needs at least one row", got="none")
    if num_rows * batch_size >= 2**32:
        raise InvalidInput(
            "the number of rows times the batch size must be below 2^32", got=f"{num_rows} x {batch_size}"
        )
    return RowStream(jax.tree.map(jnp.asarray, every), key, batch_size)


def _shuffled(key: Key, epoch: UInt32[Array, "B"], row: UInt32[Array, "B"], num_rows: int) -> UInt32[Array, "B"]:
    """Where the permutations of the epochs send the rows.

    A Feistel network permutes the numbers of as many bits as n - 1 has, fewer than 2n of them; one that leaves [0, n)
    is sent on until it is back (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002, cycle walking).
    """
    of_epoch = jax.vmap(lambda index: jax.random.bits(jax.random.fold_in(key, index), (_NUM_ROUNDS,)))(epoch)
    num_bits = (num_rows - 1).bit_length()

    def walk(state: tuple[Array, Array]) -> tuple[Array, Array]:
        row, is_there = state
        row = jnp.where(is_there, row, _permuted(of_epoch, row, num_bits))
        return row, row < num_rows

    return jax.lax.while_loop(lambda state: ~jnp.all(state[1]), walk, (row, jnp.zeros(row.shape, bool)))[0]


def _permuted(round_keys: UInt32[Array, "B r"], row: UInt32[Array, "B"], num_bits: int) -> UInt32[Array, "B"]:
    """A permutation of the numbers of `num_bits` bits: each half in turn is changed by a function of the other."""
    widths = (num_bits // 2, num_bits - num_bits // 2)
    low, high = row & _mask(widths[0]), row >> widths[0]
    for place in range(0, _NUM_ROUNDS, 2):
        high = high ^ _mixed(low, round_keys[:, place]) & _mask(widths[1])
        low = low ^ _mixed(high, round_keys[:, place + 1]) & _mask(widths[0])
    return high << widths[0] | low


def _mask(num_bits: int) -> UInt32[Array, ""]:
    return jnp.uint32(2**num_bits - 1)


def _mixed(value: UInt32[Array, "B"], round_key: UInt32[Array, "B"]) -> UInt32[Array, "B"]:
    """The finaliser of MurmurHash3, whose every bit depends on every bit of `value + round_key`."""
    x = value + round_key
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
