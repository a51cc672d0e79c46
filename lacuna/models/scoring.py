"""What a language model thinks of given tokens, without the [B, S, V] logits ever being there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.block import CausalLMSpec
from lacuna.models.causal_lm import Mask, head_kernel, last_positions, logits_of, stream
from lacuna.models.model import Model
from lacuna.models.moved import looked_up, weights_of
from lacuna.types import Params


def next_token_nats(
    model: Model, params: Params, tokens: Int[Array, "B S"], *, chunk: int | None = None, **options: Any
) -> Float[Array, "B S-1"]:
    """Cross-entropy in nats of each next token, the log-sum-exp in float32.

    Where they would not fit, the head is applied to `chunk` tokens of the batch at a time, forward and backward, so
    that the memory is that of chunk x V logits. A mean over the tokens that count is the loss of a language model.

    Args:
      model: of `causal_lm`.
      params: its parameters.
      tokens: entry s of a row of the result is for the token at s + 1.
      chunk: tokens at a time; at 0 all of them. None takes all while their logits stay below 256 MiB, and otherwise
        as many as fill 64 MiB: to compute them twice costs a sixth of the whole gradient of GPT-2.
      options: those of `apply`: mask, positions, lora, steer, layer_map. What is predicted from padding, or is
        padding, has no meaning: weigh it with zero.

    Raises:
      InvalidInput: a negative chunk.
    """
    return _of_next(_nats, model, params, tokens, chunk, options)


def next_token_right(
    model: Model, params: Params, tokens: Int[Array, "B S"], *, chunk: int | None = None, **options: Any
) -> Bool[Array, "B S-1"]:
    """Whether each next token is the one that the model finds likeliest.

    Args:
      model: as for `next_token_nats`, like the rest.
      params: its parameters.
      tokens: rows of tokens.
      chunk: positions whose logits are made at a time.
      options: others of the model's `apply`.

    Returns:
      Entry s is of the token at s + 1.
    """
    return _of_next(_right, model, params, tokens, chunk, options)


def _nats(logits: Float[Array, "n V"], wanted: Int[Array, "n"]) -> Float[Array, "n"]:
    of_wanted = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_wanted


def _right(logits: Float[Array, "n V"], wanted: Int[Array, "n"]) -> Bool[Array, "n"]:
    return jnp.argmax(logits, axis=-1) == wanted


def _of_next(
    score: Callable[..., Array], model: Model, params: Params, tokens: Array, chunk: int | None, options: Any
) -> Array:
    """`score(logits, wanted)` of each next token, [B, S-1]."""
    if chunk is None:
        whole_bytes = 4 * tokens.size * model.spec.vocab_size
        chunk = 0 if whole_bytes <= 2**28 else max(1, 2**26 // (4 * model.spec.vocab_size))
    if chunk < 0:
        raise InvalidInput("chunk must not be negative", got=chunk)
    hidden = stream(model.spec, params, tokens, **options).hidden[:, :-1]
    kernel = head_kernel(model.spec, params)

    def scored(hidden: Float[Array, "n D"], wanted: Int[Array, "n"]) -> Array:
        return score(logits_of(hidden, kernel), wanted)

    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)
    if not chunk or chunk >= flat.shape[0]:
        return scored(flat, wanted).reshape(tokens.shape[0], -1)
    room = -flat.shape[0] % chunk
    parts = (
        jnp.pad(flat, ((0, room), (0, 0))).reshape(-1, chunk, flat.shape[-1]),
        jnp.pad(wanted, (0, room)).reshape(-1, chunk),
    )
    found = lax.map(lambda part: jax.checkpoint(scored, prevent_cse=False)(*part), parts)
    return found.reshape(-1)[: flat.shape[0]].reshape(tokens.shape[0], -1)


def span_nats(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    start: Array | np.ndarray,
    end: Array | np.ndarray,
    **options: Any,
) -> Float[Array, "B"]:
    """Cross-entropy in nats of a span of each row: minus the log-probability of an answer, given what is before it.

    Args:
      model: of `causal_lm`.
      params: its parameters.
      tokens: rows; padding may stand behind the spans.
      start: int[B], the first position of each span. A row's first token is never predicted and counts nothing.
      end: int[B], the position behind its last.
      options: those of `next_token_nats`: chunk, mask, positions, lora, steer, layer_map.

    Raises:
      InvalidInput: a start or an end that is not one integer for each row.
    """
    for name, places in (("start", start), ("end", end)):
        if places.shape != tokens.shape[:1] or not jnp.issubdtype(places.dtype, jnp.integer):
            raise InvalidInput(
                f"{name} must be one integer for each of {tokens.shape[0]} rows",
                got=f"{places.dtype}{list(places.shape)}",
            )
    nats = next_token_nats(model, params, tokens, **options)
    at = jnp.arange(1, tokens.shape[1])
    # Chosen and not multiplied: what stands outside may be NaN.
    return jnp.sum(jnp.where((at >= jnp.asarray(start)[:, None]) & (at < jnp.asarray(end)[:, None]), nats, 0), axis=1)


def nats_at(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    at: Int[Array, "B A"],
    wanted: Int[Array, "B c A"],
    **options: Any,
) -> Float[Array, "B c A"]:
    """Cross-entropy in nats of the tokens that are wanted behind a few positions; the head is applied there alone.

    Args:
      model: of `causal_lm`.
      params: its parameters.
      tokens: rows; padding may stand behind the last position that is read.
      at: of each row the positions; what is wanted behind position s is the token at s + 1.
      wanted: c tokens for each of them: those of c answers.
      options: the others of `apply`: mask, positions, lora, steer.
    """
    hidden = stream(model.spec, params, tokens, **options).hidden
    there = jnp.take_along_axis(hidden, at[:, :, None], axis=1)
    logits = logits_of(there, head_kernel(model.spec, params))
    of_wanted = jnp.take_along_axis(logits, jnp.swapaxes(wanted, 1, 2), axis=-1)
    return jnp.swapaxes(jax.nn.logsumexp(logits, axis=-1)[..., None] - of_wanted, 1, 2)


def choice_logits(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    choices: Int[Array, "n"],
    *,
    mask: Mask | None = None,
    **options: Any,
) -> Float[Array, "B n"]:
    """Logits of a few tokens after each row: which answer the model would give.

    Args:
      model: of `causal_lm`.
      params: its parameters.
      tokens: prompts.
      choices: the tokens that are compared; only their columns of the head are read.
      mask: False where there is padding; a row ends with its last token.
      options: the others of `apply`.

    Returns:
      float32 logits, comparable with each other alone: they are not normalised over the vocabulary. NaN for a choice
      beyond it.
    """
    hidden = stream(model.spec, params, tokens, mask=mask, **options).hidden
    last = jnp.take_along_axis(hidden, last_positions(mask, tokens.shape)[:, None, None], axis=1)[:, 0]
    weights = weights_of(params)
    rows = weights["embedding"] if model.spec.tied else weights["head"]["kernel"].T
    return logits_of(last, looked_up(rows, choices).T)


def logits_at(
    model: Model, params: Params, tokens: Int[Array, "B S"], at: Int[Array, "B"], **options: Any
) -> Float[Array, "B V"]:
    """Logits of the token that follows one position of each row, without those of the others.

    Args:
      model: of `causal_lm`, whose head is applied there alone; of another the logits are taken from all of them.
      params: its parameters.
      tokens: rows.
      at: of each row a position.
      options: the others of `apply`: steer, lora.
    """
    if not isinstance(model.spec, CausalLMSpec):
        return jnp.take_along_axis(model.apply(params, tokens, **options).logits, at[:, None, None], axis=1)[:, 0]
    hidden = stream(model.spec, params, tokens, **options).hidden
    there = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
    return logits_of(there, head_kernel(model.spec, params))
