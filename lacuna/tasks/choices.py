"""Multiple choice as something to minimise: what a model thinks of each answer, and how often the right one wins."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int32

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.tasks.contrast import Question, choice_spans, chosen, prompt_rows
from lacuna.tasks.language import NatsAt
from lacuna.tasks.task import Encode
from lacuna.types import Loss, Params

OBJECTIVES = ("nats", "log_odds", "accuracy")
"""Of `choice_loss`."""


class Choices(NamedTuple):
    """Questions and their answers, as rows of tokens of which a few positions are read.

    Where every answer is told by one token behind its prompt a question is one row (r = 1, c = C); else it is a row for
    each answer (r = C, c = 1).

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
      max_length: tokens that a row may have.
      begin: token in front of every row; None puts nothing there.

    Raises:
      InvalidInput: as `contrast.choice_spans`.
    """
    right = np.asarray([question.right for question in questions], np.int32)
    spans = choice_spans(questions, encode, max_length=max_length, begin=begin)
    num_questions, num_choices = len(questions), len(questions[0].choices)
    lengths = (spans.end - spans.start).reshape(num_questions, num_choices)
    first = np.take_along_axis(spans.tokens, spans.start[:, None], axis=1).reshape(num_questions, num_choices)
    if (lengths == 1).all() and all(len(set(row)) == num_choices for row in first.tolist()):
        prompts = prompt_rows(questions, encode, max_length=max_length, begin=begin)
        counted = np.ones((num_questions, 1, num_choices, 1), bool)
        at = (prompts.length - 1)[:, None, None]
        return Choices(prompts.tokens[:, None], at, prompts.choices[:, None, :, None], counted, right)
    behind = np.arange(int(lengths.max()))
    counted = behind < (spans.end - spans.start)[:, None]
    at = np.where(counted, spans.start[:, None] - 1 + behind, 0)
    wanted = np.where(counted, np.take_along_axis(spans.tokens, at + 1, axis=1), 0)

    def of_questions(array: np.ndarray) -> np.ndarray:
        return array.reshape(num_questions, num_choices, *array.shape[1:])

    several = of_questions(wanted)[:, :, None], of_questions(counted)[:, :, None]
    return Choices(of_questions(spans.tokens), of_questions(at).astype(np.int32), *several, right)


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


def choice_loss(nats_at: NatsAt, *, objective: str = "nats") -> Loss:
    """What a search over multiple choice minimises, as a function of parameters and `Choices`.

    Args:
      nats_at: as for `choice_nats`. One that is a pytree is data to whatever is compiled of the loss.
      objective: `nats`, minus the log-probability of the right answer among the given ones; `log_odds`, minus the
        log-odds of the right answer against the others (linear where the other saturates); `accuracy`, the share of
        questions where another answer is likelier: it moves in steps of 1/B, so that ties are common and the first of
        them wins, and it has no gradient. All are means over questions; answers are compared by their whole
        probability, which favours short ones.

    Raises:
      InvalidInput: no such objective.
    """
    if objective not in OBJECTIVES:
        raise InvalidInput(f"objective must be one of {', '.join(OBJECTIVES)}", got=f"`{objective}`")
    return Partial(partial(_mean_loss, objective), trees.as_data(nats_at))


def _mean_loss(objective: str, nats_at: NatsAt, params: Params, batch: Choices) -> Float[Array, ""]:
    nats = choice_nats(nats_at, params, batch)
    right = jnp.asarray(batch.right)[:, None]
    if objective == "accuracy":
        # Which rules of two are alike: shortest of equals is the first.
        won = chosen(nats, jnp.ones(nats.shape, jnp.int32)) == right[:, 0]
        return jnp.where(jnp.isnan(nats).any(), jnp.nan, jnp.mean((~won).astype(jnp.float32)))
    of_right = -jnp.take_along_axis(nats, right, axis=1)[:, 0]
    if objective == "nats":
        return jnp.mean(jax.nn.logsumexp(-nats, axis=1) - of_right)
    others = jnp.where(jnp.arange(nats.shape[1]) == right, -jnp.inf, -nats)
    return jnp.mean(jax.nn.logsumexp(others, axis=1) - of_right)


def choice_metric(nats_at: NatsAt) -> Any:
    """`metric(params, batch)` with `accuracy` and `log_odds`, in nats of the right answer; the higher the better."""
    return Partial(_metric, *(choice_loss(nats_at, objective=objective) for objective in ("accuracy", "log_odds")))


def _metric(error: Loss, against: Loss, params: Params, batch: Choices) -> dict[str, Array]:
    return {"accuracy": 1 - error(params, batch), "log_odds": -against(params, batch)}
