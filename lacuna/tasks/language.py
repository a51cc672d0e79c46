"""Tasks of language models: the loss of the tokens that count, perplexity and accuracy, over any tree of parameters."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from lacuna import trees
from lacuna.tasks.task import Batch, Step, Task
from lacuna.types import Loss, Objective, Params

OfNext = Callable[..., Array]
"""`of_next(params, tokens) -> [B, S-1]`: something of each next token."""

NatsAt = Callable[..., Array]
"""`nats_at(params, tokens, at=, wanted=) -> [B, c, A]`: of the tokens that are wanted behind a few positions."""


def language_loss(nats: OfNext) -> Loss:
    """The mean cross-entropy in nats of the tokens that count (`Batch.answer`), as a function of parameters and batch.

    Args:
      nats: `nats(params, tokens) -> float[B, S-1]`, entry s for the token at s + 1, such as
        `models.over_adapter(models.next_token_nats, ...)`. One that is a pytree is data to whatever is compiled of
        the loss, frozen weights included.

    Returns:
      A pytree. 0 where no token counts; the first token of a row cannot.
    """
    return Partial(_mean_of_counted, trees.as_data(nats))


def _mean_of_counted(of_next: OfNext, params: Params, batch: Batch) -> Float[Array, ""]:
    counts = batch.answer[:, 1:]
    found = jnp.where(counts, of_next(params, batch.tokens), 0)  # what does not count may be anything, NaN too
    return jnp.sum(found.astype(jnp.float32)) / jnp.maximum(jnp.sum(counts), 1)


def _metric(loss: Loss, accuracy: Loss, params: Params, batch: Batch) -> dict[str, Array]:
    return {"accuracy": accuracy(params, batch), "perplexity": jnp.exp(loss(params, batch))}


def language_task(
    name: str,
    train: Callable[[Step], Batch],
    held_out: Callable[[Step], Batch],
    nats: OfNext,
    right: Callable[..., Bool[Array, "B R"]],
) -> Task:
    """A task of a language model, or of an adapter of one.

    Args:
      name: as in records.
      train: `train(step) -> Batch`; one that is a pytree is data to what is compiled.
      held_out: the same on rows that no training sees.
      nats: as for `language_loss`.
      right: `right(params, tokens) -> bool[B, S-1]`, whether each next token is the likeliest.

    Returns:
      The task: its loss in nats a token that counts, its metrics `accuracy` over those tokens and `perplexity`,
      the exponential of the loss (lower is better; 1 where no token counts).
    """
    loss, accuracy = language_loss(nats), language_loss(right)
    metric: Any = Partial(_metric, loss, accuracy)
    return Task(name, Objective(loss), metric, train, held_out)
