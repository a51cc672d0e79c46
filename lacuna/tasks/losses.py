"""Loss and accuracy on the answer tokens of a batch, from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class AnswerAccuracy(NamedTuple):
    """How often the answers are right.

    Attributes:
      per_token: share of the answer tokens that are right.
      exact_match: share of the rows whose answer tokens are all right.
    """

    per_token: Float[Array, ""]
    exact_match: Float[Array, ""]


def _of_next(logits: Float[Array, "B Q V"], num_tokens: int) -> Float[Array, "B R V"]:
    """Logits of the tokens 1, 2, ...: position s predicts s + 1, so the last position has nothing to predict."""
    return logits[:, : num_tokens - 1].astype(jnp.float32)


def answer_cross_entropy(
    logits: Float[Array, "B Q V"], tokens: Int[Array, "B S"], answer: Bool[Array, "B S"]
) -> Float[Array, ""]:
    """Mean cross-entropy in nats per answer token, with a float32 log-sum-exp.

    Args:
      logits: at position s, of the token at s + 1; the logits of the last token of a row are not used, so
        it does not matter whether they are there (Q = S) or not (Q = S - 1).
      tokens: whole rows.
      answer: which tokens count; the first token of a row cannot.

    Returns:
      The mean over all answer tokens of the batch; 0 if there are none.
    """
    logits = _of_next(logits, tokens.shape[1])
    counts = answer[:, 1:].astype(jnp.float32)
    of_token = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - of_token
    return jnp.sum(nats * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def answer_accuracy(
    logits: Float[Array, "B Q V"], tokens: Int[Array, "B S"], answer: Bool[Array, "B S"]
) -> AnswerAccuracy:
    """Accuracy per answer token and per row, by teacher forcing: one forward pass over the true rows.

    The exact match is that of greedy decoding. Decoding goes on along the true row for as long as it is
    right, so up to and including its first mistake it sees the prefixes that teacher forcing shows; hence
    one of them makes a mistake in a row if and only if the other does. The accuracy per token has no such
    reading: after a mistake decoding leaves the true row.

    Args:
      logits: as for `answer_cross_entropy`.
      tokens: whole rows.
      answer: which tokens count; a row without any counts as matched.
    """
    counts = answer[:, 1:]
    right = jnp.argmax(_of_next(logits, tokens.shape[1]), axis=-1) == tokens[:, 1:]
    per_token = jnp.sum(right & counts) / jnp.maximum(jnp.sum(counts), 1)
    exact = jnp.mean(jnp.all(right | ~counts, axis=1))
    return AnswerAccuracy(per_token.astype(jnp.float32), exact.astype(jnp.float32))
