"""What a task is: an objective, a metric, and batches that any step can ask for again."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

from lacuna.errors import InvalidInput
from lacuna.types import Objective, Params


class Batch(NamedTuple):
    """Rows of tokens, some of which are answers.

    Attributes:
      tokens: the whole rows, questions and answers.
      answer: true where the token is an answer, to be predicted from the position before it.
    """

    tokens: Int[Array, "B S"]
    answer: Bool[Array, "B S"]


Step = int | Integer[Array, ""]
"""Index of a batch in its stream, in [0, 2^32)."""


def step_index(step: Step) -> UInt32[Array, ""]:
    """The step as a word of the generator.

    Raises:
      InvalidInput: it is no integer, or not in [0, 2^32), where it is known.
    """
    if not isinstance(step, jax.Array):
        try:
            place = operator.index(step)
        except TypeError as fault:
            raise InvalidInput("a step must be an integer in [0, 2^32)", got=repr(step)) from fault
        if not 0 <= place < 2**32:
            raise InvalidInput("a step must be an integer in [0, 2^32)", got=place)
        return jnp.uint32(place)
    return step.astype(jnp.uint32)


Encode = Callable[[str], Sequence[int]]
"""`encode(text) -> tokens`, without special tokens."""


class HasLogits(Protocol):
    """What a task needs to see of a model's output."""

    @property
    def logits(self) -> Float[Array, "B S V"]:
        """Of the next token at each position."""
        ...


Apply = Callable[[Params, Int[Array, "B S"]], HasLogits]
"""`apply(params, tokens)`, whose logits at position s are of the token at s + 1."""


class Task(NamedTuple):
    """A task over some tree of parameters.

    Attributes:
      name: as in commands and records.
      objective: what is minimised; of language models the loss in nats a token that counts, unless its maker says so.
      metric: `metric(params, batch)` gives named scalars, float32; the higher the better, but for `perplexity`, of
        which less is better.
      train: `train(step)` gives a `Batch`, or what the objective reads in its place; pure and traceable, the same
        whenever it is asked for.
      held_out: as `train`, from an independent stream.
    """

    name: str
    objective: Objective
    metric: Callable[[Params, Any], dict[str, Array]]
    train: Callable[[Step], Any]
    held_out: Callable[[Step], Any]
