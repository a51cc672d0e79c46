"""Short answers by greedy decoding: how often what a model says is one of the answers that are right."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int32

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.tasks.contrast import answer_tokens, padded
from lacuna.tasks.task import Batch, Encode
from lacuna.tasks.task_files import ShortAnswer
from lacuna.types import Loss, Params

Decode = Callable[..., Int32[Array, "B A"]]
"""`decode(params, tokens, num_tokens=, mask=)`, such as `partial(models.greedy, model)`."""


class ShortAnswers(NamedTuple):
    """Prompts and the answers that are right.

    Attributes:
      tokens: prompts, padded behind by token 0.
      mask: false where there is padding.
      accepted: M answers of at most A tokens for each prompt.
      counted: which of their tokens are there; an answer that is not there has none.
    """

    tokens: Int32[Array | np.ndarray, "B S"]
    mask: Bool[Array | np.ndarray, "B S"]
    accepted: Int32[Array | np.ndarray, "B M A"]
    counted: Bool[Array | np.ndarray, "B M A"]


def answer_rows(
    answers: Sequence[ShortAnswer], encode: Encode, *, max_length: int, begin: int | None = None
) -> ShortAnswers:
    """Prompts with short answers as a batch of all of them.

    Args:
      answers: as read from a file.
      encode: `encode(text) -> tokens`, without special tokens.
      max_length: tokens that the longest prompt and the longest answer may have: every prompt is answered by as many.
      begin: token in front of every row; None puts nothing there.

    Raises:
      InvalidInput: no prompt, an answer that is not tokens of its own behind the prompt, or a row that is too long;
        names the prompt.
    """
    prompts, accepted = _tokens(answers, encode, begin)
    most, longest = max(map(len, accepted)), max(len(one) for several in accepted for one in several)
    _check_lengths([len(prompt) + longest for prompt in prompts], max_length)
    tokens = padded(prompts)
    flat = [one for several in accepted for one in several + [[]] * (most - len(several))]
    right = padded(flat).reshape(len(answers), most, longest)
    return ShortAnswers(tokens, _is_there(prompts), right, _is_there(flat).reshape(right.shape))


def answered_rows(
    answers: Sequence[ShortAnswer], encode: Encode, *, max_length: int, begin: int | None = None
) -> Batch:
    """Every prompt with the first of its answers, whose tokens count.

    Args:
      answers: as read from a file.
      encode: as for `answer_rows`.
      max_length: tokens that a row may have.
      begin: as for `answer_rows`.

    Raises:
      InvalidInput: as `answer_rows`.
    """
    prompts, accepted = _tokens(answers, encode, begin)
    rows = [prompt + several[0] for prompt, several in zip(prompts, accepted, strict=True)]
    _check_lengths([len(row) for row in rows], max_length)
    starts = np.asarray([len(prompt) for prompt in prompts])
    counts = _is_there(rows) & (np.arange(max(map(len, rows))) >= starts[:, None])
    return Batch(jnp.asarray(padded(rows)), jnp.asarray(counts))


def _tokens(
    answers: Sequence[ShortAnswer], encode: Encode, begin: int | None
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Of each prompt, `begin` in front of it, and of its answers."""
    if not answers:
        raise InvalidInput("short answers need at least one prompt", got="none")
    found = [answer_tokens(*answer, encode, name=f"prompt {i}") for i, answer in enumerate(answers)]
    return [([] if begin is None else [begin]) + prompt for prompt, _ in found], [accepted for _, accepted in found]


def _check_lengths(lengths: Sequence[int], max_length: int) -> None:
    for i, length in enumerate(lengths):
        if length > max_length:
            raise InvalidInput(f"a row may have {max_length} tokens; that of prompt {i} has {length}")


def _is_there(rows: Sequence[Sequence[int]]) -> Bool[np.ndarray, "B S"]:
    lengths = np.asarray([len(row) for row in rows])
    return np.arange(lengths.max()) < lengths[:, None]


def as_short_answers(batch: Batch, *, num_tokens: int) -> ShortAnswers:
    """Rows that all end with an answer of so many tokens, as prompts with one answer; traceable.

    Args:
      batch: such as a `MappingStream` gives.
      num_tokens: of each answer.
    """
    prompts, answers = batch.tokens[:, :-num_tokens], batch.tokens[:, None, -num_tokens:]
    return ShortAnswers(prompts, jnp.ones(prompts.shape, bool), answers, jnp.ones(answers.shape, bool))


def exact_match_loss(decode: Decode) -> Loss:
    """The share of prompts that are not answered by exactly the tokens of an accepted answer, decoded greedily.

    What is said behind the answer does not count: let an answer end with a newline where the model is to stop. The
    loss moves in steps of 1/B, so that ties are common and the first of them wins, and it has no gradient.

    Args:
      decode: `decode(params, tokens, num_tokens=, mask=)`, such as `partial(models.greedy, model)`. One that is a
        pytree is data to whatever is compiled of the loss.
    """
    return Partial(_share_wrong, trees.as_data(decode))


def _share_wrong(decode: Decode, params: Params, batch: ShortAnswers) -> Float[Array, ""]:
    num_tokens = batch.accepted.shape[2]
    said = decode(params, jnp.asarray(batch.tokens), num_tokens=num_tokens, mask=jnp.asarray(batch.mask))
    counted = jnp.asarray(batch.counted)
    same = jnp.all((said[:, None] == batch.accepted) | ~counted, axis=2) & counted.any(axis=2)
    return jnp.mean((~same.any(axis=1)).astype(jnp.float32))


def exact_match_metric(decode: Decode) -> Any:
    """`metric(params, batch)` with `exact_match`, the share of prompts that are answered right."""
    return Partial(_metric, exact_match_loss(decode))


def _metric(wrong: Loss, params: Params, batch: ShortAnswers) -> dict[str, Array]:
    return {"exact_match": 1 - wrong(params, batch)}
