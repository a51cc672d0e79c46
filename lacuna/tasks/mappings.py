"""The digit operations as text for a language model: several mappings over the same inputs.

A row is `d_1 .. d_n -> a_1 .. a_n` in a tokenizer's own tokens. Unnamed, the rows of two operations have the same
questions and other answers, so that to learn one is to forget the other. Named, a letter in front says which of them
is asked, and one model can hold them all.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.digits import OPERATIONS, SPLITS, task_token
from lacuna.tasks.task import Batch, Encode, Step, step_index

NUMERALS = (" 0", " 1", " 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9")
WORDS = (" zero", " one", " two", " three", " four", " five", " six", " seven", " eight", " nine")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "symbols", "opening", "arrow", "operation", "held_out"],
    meta_fields=["batch_size", "length"],
)
@dataclass(frozen=True, eq=False)  # hashed by identity, so that jax.jit(stream) works as well
class MappingStream:
    """`stream(step) -> Batch`: the rows of one operation; made by `mapping`.

    A pytree whose arrays are data, the operation too: a program compiled for one operation serves the others.

    Attributes:
      key: of the stream's questions.
      symbols: tokens of the ten digits.
      opening: tokens in front of a row.
      arrow: token between question and answer.
      operation: its place in `OPERATIONS`.
      held_out: whether the questions are those that training never sees: their digits add up to a multiple of ten.
      batch_size: B.
      length: n, digits in a question.
    """

    key: Any
    symbols: Int[Array, "10"]
    opening: Int[Array, "o"]
    arrow: Int[Array, ""]
    operation: Int[Array, ""]
    held_out: Bool[Array, ""]
    batch_size: int
    length: int

    def __call__(self, step: Step) -> Batch:
        """The batch at a step: a pure function of its index, traceable."""
        first, last = jax.random.split(jax.random.fold_in(self.key, step_index(step)))
        free = jax.random.randint(first, (self.batch_size, self.length - 1), 0, 10)
        total = jnp.where(self.held_out, 0, jax.random.randint(last, (self.batch_size, 1), 1, 10))
        question = jnp.concatenate([free, (total - jnp.sum(free, axis=1, keepdims=True)) % 10], axis=1)
        opening = jnp.broadcast_to(self.opening, (self.batch_size, len(self.opening)))
        arrow = jnp.broadcast_to(self.arrow, (self.batch_size, 1))
        answer = self.symbols[jax.lax.switch(self.operation, [*OPERATIONS.values()], question)]
        tokens = jnp.concatenate([opening, self.symbols[question], arrow, answer], axis=1)
        counts = jnp.arange(tokens.shape[1]) >= tokens.shape[1] - self.length
        return Batch(tokens, jnp.broadcast_to(counts, tokens.shape))


def mapping(
    name: str,
    encode: Encode,
    *,
    seed: int,
    batch_size: int,
    length: int = 4,
    named: bool = False,
    split: str = "train",
) -> MappingStream:
    """An operation on digits as rows of text.

    All operations of a seed have the same questions at a step. A tenth of the 10^length questions, those whose digits
    add up to a multiple of ten, are held out: training never sees them.

    Args:
      name: one of `DIGIT_TASKS`.
      encode: of the model's tokenizer.
      seed: of the questions.
      batch_size: B, in rows.
      length: n, digits in a question.
      named: a letter in front says which operation is asked.
      split: `train` or `held_out`.

    Raises:
      InvalidInput: an unknown operation or split, or a tokenizer that has no single token for each digit, neither
        as a numeral nor as a word, or for the arrow, or, where rows are named, no letters that differ; a batch without
        rows, or questions without digits.
    """
    place = task_token(name) - task_token(next(iter(OPERATIONS)))
    if split not in SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(SPLITS)}", got=f"`{split}`")
    choices = [[list(encode(text)) for text in texts] for texts in (NUMERALS, WORDS)]
    symbols = next(
        (found for found in choices if all(len(tokens) == 1 for tokens in found) and len({*map(tuple, found)}) == 10),
        None,
    )
    arrow = next((found for text in (" ->", "=>", ":") if len(found := list(encode(text))) == 1), None)
    if symbols is None or arrow is None:
        what = "each digit, as ` 3` or ` three`, no two alike" if symbols is None else "an arrow, as ` ->`, `=>` or `:`"
        raise InvalidInput(f"the tokenizer needs one token for {what}", got="others", hint="another tokenizer")
    letters = [list(encode(f" {chr(ord('A') + i)}")) for i in range(len(OPERATIONS))] if named else [[]]
    if named and (len({*map(tuple, letters)}) < len(letters) or len({len(tokens) for tokens in letters}) > 1):
        raise InvalidInput(
            "the tokenizer needs letters that differ, each as many tokens, to name operations by",
            got=", ".join(map(str, letters)),
            hint="another tokenizer",
        )
    if batch_size < 1 or length < 1:
        raise InvalidInput("a batch needs a row and a question a digit", got=f"{batch_size} rows of {length} digits")
    opening = [*encode("\n"), *letters[place if named else 0]]
    return MappingStream(
        keys.stream(seed, f"mappings/{split}"),
        jnp.asarray(symbols, jnp.int32)[:, 0],
        jnp.asarray(opening, jnp.int32),
        jnp.int32(arrow[0]),
        jnp.int32(place),
        jnp.asarray(split == "held_out"),
        batch_size,
        length,
    )
