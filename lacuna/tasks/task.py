"""What a task is: an objective, a metric, and batches that any step can ask for again."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int

from lacuna.types import Objective, Params


class Batch(NamedTuple):
    """Rows of tokens, some of which are answers.

    Attributes:
      tokens: the whole rows, questions and answers.
      answer: true where the token is an answer, to be predicted from the position before it.
    """

    tokens: Int[Array, "B S"]
    answer: Bool[Array, "B S"]


Step = int | Int[Array, ""]
"""Index of a batch in its stream."""


Encode = Callable[[str], Sequence[int]]
"""`encode(text) -> tokens`, without special tokens."""


class HasLogits(Protocol):
    """What a task needs to see of a model's output."""

    @property
    def logits(self) -> Float[Array, "B S V"]: ...


Apply = Callable[[Params, Int[Array, "B S"]], HasLogits]
"""`apply(params, tokens)`, whose logits at position s are of the token at s + 1."""


class Task(NamedTuple):
    """A task over some tree of parameters.

    Attributes:
      name: as in commands and records.
      objective: the loss in nats an answer token, and `predict`.
      metric: `metric(params, batch)` gives named scalars, float32; higher is better.
      train: `train(step) -> Batch`; pure and traceable, the same batch whenever it is asked for.
      held_out: as `train`, from an independent stream.
    """

    name: str
    objective: Objective
    metric: Callable[[Params, Batch], dict[str, Array]]
    train: Callable[[Step], Batch]
    held_out: Callable[[Step], Batch]
