"""Multiple choice as something to minimise: what a model thinks of each answer, and how often the right one wins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int32

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.tasks.contrast import Question, choice_spans
from lacuna.tasks.language import NatsAt
from lacuna.tasks.task import Encode
from lacuna.types import Loss, Params


class Choices(NamedTuple):
    """Questions and their answers, as rows of tokens of which a few positions are read.

    Where every answer is a single token a question is one row (r = 1, c = C), its prompt; else it is a row for each
    answer (r = C, c = 1), the last token of which is asked for but not there.

    Attributes:
      tokens: the rows, padded behind by token 0.
      at: positions whose next token is asked for.
      wanted: that token, for each of the answers that the row is read for.
      counted: which of them are there; answers have different lengths.
      right: which answer is right.
    """

    tokens: Int32[Array | np.ndarray, "B r S"]
    at: Int32[Array | np.ndarray, "B r A"]
    wanted: Int32[Array | np.ndarray, "B r c A"]
    counted: Bool[Array | np.ndarray, "B r c A"]
    right: Int32[Array | np.ndarray, "B"]


def choice_rows(questions: Sequence[Question], encode: Encode, *, max_length: int, begin: int | None = None) -> Choices:
    """Questions as a batch of all of them.

    Args:
      questions: with equally many answers each, of any number of tokens.
      encode: `encode(text) -> tokens`, without special tokens.
      max_length: tokens that a question may have with its longest answer.
      begin: token in front of every row; None puts nothing there.

    Raises:
      InvalidInput: as `contrast.choice_spans`.
    """
    spans = choice_spans(questions, encode, max_length=max_length, begin=begin)
    behind = np.arange(np.max(spans.end - spans.start))
    counted = behind < (spans.end - spans.start)[:, None]
    at = np.where(counted, spans.start[:, None] - 1 + behind, 0)
    wanted = np.where(counted, np.take_along_axis(spans.tokens, at + 1, axis=1), 0)
    # Nothing is asked behind the last token of an answer.
    read = np.arange(spans.tokens.shape[1] - 1) < spans.end[:, None] - 1
    tokens = np.where(read, spans.tokens[:, :-1], 0)

    def of_questions(array: np.ndarray) -> np.ndarray:
        return array.reshape(len(questions), -1, *array.shape[1:])

    right = np.asarray([question.right for question in questions], np.int32)
    tokens, at, wanted, counted = map(of_questions, (tokens, at.astype(np.int32), wanted, counted))
    if len(behind) == 1:  # the rows of a question are alike
        return Choices(tokens[:, :1], at[:, :1], wanted[:, None], counted[:, None], right)
    return Choices(tokens, at, wanted[:, :, None], counted[:, :, None], right)


def choice_nats(nats_at: NatsAt, params: Params, batch: Choices) -> Float[Array, "B C"]:
    """Cross-entropy in nats of each answer given its prompt, summed over the answer's tokens.

    Args:
      nats_at: `nats_at(params, tokens, at, wanted)`, such as `partial(models.nats_at, model)`.
      params: the point.
      batch: the questions.
    """
    num_questions, num_rows = batch.tokens.shape[:2]

    def rows(array: Any) -> Array:
        return jnp.asarray(array).reshape(num_questions * num_rows, *array.shape[2:])

    found = nats_at(params, rows(batch.tokens), rows(batch.at), rows(batch.wanted))
    # Chosen and not multiplied: what is asked where nothing counts may be NaN.
    return jnp.sum(jnp.where(rows(batch.counted), found, 0), axis=-1).reshape(num_questions, -1)


def _nats(nats: Float[Array, "B C"], right: Int32[Array, "B"]) -> Float[Array, "B"]:
    """Minus the log-probability of the right answer among the given ones."""
    return jax.nn.logsumexp(-nats, axis=1) + jnp.take_along_axis(nats, right[:, None], axis=1)[:, 0]


def _log_odds(nats: Float[Array, "B C"], right: Int32[Array, "B"]) -> Float[Array, "B"]:
    """Minus the log-odds of the right answer against the others."""
    others = jnp.where(jnp.arange(nats.shape[1]) == right[:, None], -jnp.inf, -nats)
    return jax.nn.logsumexp(others, axis=1) + jnp.take_along_axis(nats, right[:, None], axis=1)[:, 0]


def _wrong(nats: Float[Array, "B C"], right: Int32[Array, "B"]) -> Float[Array, "B"]:
    """1 where another answer is likelier; the first of equals wins. NaN where one of them has no number."""
    wrong = (jnp.argmin(nats, axis=1) != right).astype(jnp.float32)
    return jnp.where(jnp.isnan(nats).any(axis=1), jnp.nan, wrong)


_OF_QUESTION: dict[str, Callable[..., Float[Array, "B"]]] = {"nats": _nats, "log_odds": _log_odds, "accuracy": _wrong}

OBJECTIVES = tuple(_OF_QUESTION)
"""Of `choice_loss`."""


def choice_loss(nats_at: NatsAt, *, objective: str = "nats") -> Loss:
    """What a search over multiple choice minimises, as a function of parameters and `Choices`.

    All objectives are means over questions. Answers are compared by their whole probability, which favours short ones:
    one whose tokens begin those of another is never less likely.

    Args:
      nats_at: as for `choice_nats`. One that is a pytree is data to whatever is compiled of the loss.
      objective: `nats`, minus the log-probability of the right answer among the given ones; `log_odds`, minus the
        log-odds of the right answer against the others (linear where the other saturates); `accuracy`, the share of
        questions that are answered wrong: 1 - accuracy. It moves in steps of 1/B, so that ties are common and the
        first of them wins, and it has no gradient.

    Raises:
      InvalidInput: no such objective.
    """
    if objective not in OBJECTIVES:
        raise InvalidInput(f"objective must be one of {', '.join(OBJECTIVES)}", got=f"`{objective}`")
    return Partial(_MeanLoss(objective), trees.as_data(nats_at))


@dataclass(frozen=True)
class _MeanLoss:
    """Equal to another by value, so that programs made of it are not compiled twice."""

    objective: str

    def __call__(self, nats_at: NatsAt, params: Params, batch: Choices) -> Float[Array, ""]:
        return jnp.mean(_OF_QUESTION[self.objective](choice_nats(nats_at, params, batch), jnp.asarray(batch.right)))


def choice_metric(nats_at: NatsAt) -> Any:
    """`metric(params, batch)` with `accuracy` and `log_odds`, in nats of the right answer; the higher the better."""
    return Partial(_metric, trees.as_data(nats_at))


def _metric(nats_at: NatsAt, params: Params, batch: Choices) -> dict[str, Array]:
    nats, right = choice_nats(nats_at, params, batch), jnp.asarray(batch.right)
    return {"accuracy": 1 - jnp.mean(_wrong(nats, right)), "log_odds": -jnp.mean(_log_odds(nats, right))}
